"""How a model is fine-tuned: the settings that trained methods and a task share."""

from typing import Annotated, Literal

import pydantic

Rate = Annotated[float, pydantic.Field(gt=0)]


class Part(pydantic.BaseModel):
    """A piece of a recipe: typed, immutable, unknown keys forbidden."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingPart(Part):
    """How a LoRA is trained. Defaults: arXiv 2511.05408, section 3, with the scale and learning rate that small
    models need (its task recipe: alpha 64, 2e-4)."""

    rank: Annotated[int, pydantic.Field(gt=0)] = 32
    alpha: Annotated[float, pydantic.Field(gt=0)] = 64
    """LoRA's alpha; the change is alpha / rank times the product of the factors."""
    learning_rate: Rate | Annotated[tuple[Rate, ...], pydantic.Field(min_length=1)] = 2e-4
    """Several: each is tried on both sides, and the lowest validation loss decides."""
    epochs: Annotated[float, pydantic.Field(gt=0)] = 2
    max_steps: Annotated[int, pydantic.Field(gt=0)] | None = None
    """Optimizer steps at most."""
    batch_size: Annotated[int, pydantic.Field(gt=0)] = 8
    """Examples per optimizer step."""
    micro_batch_size: Annotated[int, pydantic.Field(gt=0)] | None = None
    """Examples per forward pass; None takes the whole batch."""
    warmup_steps: Annotated[int, pydantic.Field(ge=0)] = 5
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 0.01
    validate_every: Annotated[int, pydantic.Field(gt=0)] = 10
    """Optimizer steps between two measurements of the validation loss."""
    patience: Annotated[int, pydantic.Field(gt=0)] = 2
    """Stop after so many measurements without a lower validation loss; the best one is kept."""
    max_tokens: Annotated[int, pydantic.Field(gt=0)] = 1024
    """Longest example; a longer one is an error."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Modules that get a LoRA, as peft names them; the output head is never among `all-linear`."""
    depth: tuple[float, float] = (0.0, 1.0)
    """From where to where in the stack of blocks there is a LoRA: (0.5, 1) is the second half of the model."""
    dtype: Literal["auto", "float32", "mixed", "bfloat16", "float16"] = "auto"
    """Of the frozen network while training; the factors are float32. `mixed`: float32, multiplied in bfloat16. `auto`:
    bfloat16 on a GPU; on a CPU mixed where that is fast, else float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third slower."""

    @pydantic.model_validator(mode="after")
    def _batch_is_divided_evenly(self) -> "TrainingPart":
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self

    @pydantic.field_validator("depth")
    @classmethod
    def _is_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 1:
            raise ValueError(f"{list(value)} is no range. Expected two shares of the depth such as [0.5, 1]")
        return value

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The learning rates to try."""
        return self.learning_rate if isinstance(self.learning_rate, tuple) else (self.learning_rate,)
