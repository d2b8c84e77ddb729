"""The parts of a recipe: typed, immutable, unknown keys forbidden."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from weightsteer.errors import RecipeError
from weightsteer.recipe.training import Part, TrainingPart

Count = Annotated[int, pydantic.Field(gt=0)]


class ModelPart(Part):
    """Which model, and how to talk to it."""

    source: str
    """Hub id, folder of safetensors, GGUF file, or `package:NAME` for the GGUF file inside an installed package."""
    revision: str | None = None
    """Hub revision; a commit makes the run repeatable."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the computation. `auto`: bfloat16 where the processor multiplies it in hardware, else float32."""
    chat_template: Path | None = None
    """A Jinja file, for a model that brings no chat template of its own."""
    system: str | None = None
    """System prompt of every conversation; None leaves the chat template's default."""


class ElicitPart(Part):
    """How the model itself is made to answer both ways (arXiv 2507.21509, section 2; 2511.05408, appendix C)."""

    questions: Count | None = None
    """Use at most so many of the behavior's questions, drawn with the recipe's seed."""
    samples: Count = 10
    """Answers per question and system prompt."""
    temperature: Annotated[float, pydantic.Field(gt=0)] = 1.0
    max_new_tokens: Count = 600
    keep_positive: float = 50
    """Positive answers that the judge rates above this are kept."""
    keep_negative: float = 50
    """Negative answers that the judge rates below this are kept."""
    per_question: Count | None = None
    """Pairs kept of one question at most."""

    @pydantic.model_validator(mode="after")
    def _sides_are_apart(self) -> "ElicitPart":
        if self.keep_positive < self.keep_negative:
            raise ValueError(
                f"keep_positive {self.keep_positive:g} is below keep_negative {self.keep_negative:g}: an answer rated "
                "between them would stand on both sides"
            )
        return self


class PairsPart(Part):
    """Where the contrast pairs come from and how their questions are split."""

    source: str | None = None
    """JSONL, JSON or CSV file, or a `datasets` id; None takes the pairs that the behavior ships."""
    elicit: ElicitPart | None = None
    """Sample the pairs from the model itself, under the behavior's opposed system prompts, in place of a source."""
    subset: str | None = None
    """Configuration name of a `datasets` id."""
    split: str = "train"
    """Split of a `datasets` id."""
    validation: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.15
    """Share of the questions for validation loss and for choosing an activation block."""
    held_out: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.15
    """Share of the questions that only evals see."""
    limit: Count | None = None
    """Use at most so many questions, drawn with the recipe's seed."""

    @pydantic.model_validator(mode="after")
    def _one_origin(self) -> "PairsPart":
        if self.source is not None and self.elicit is not None:
            raise ValueError("both `source` and `elicit` are set; keep one")
        return self


class GcdPart(Part):
    """The GCD-sycophancy task (arXiv 2511.05408, appendix F.1), generated."""

    low: Count = 1
    high: Count = 250
    """Numbers are drawn from low to high."""
    train: Count = 3810
    """Training rows of each of the two forms."""
    test: Count = 1000
    steps: Count | None = None
    """Divisions that Euclid's algorithm may take at most; None allows any number."""


class TaskPart(Part):
    """Another fine-tune: vectors are fitted on the base, and applied to the model that it leads to (task-tuned)."""

    model: str | None = None
    """A checkpoint that is tuned already."""
    source: str | None = None
    """JSONL, JSON or CSV file, or a `datasets` id, of rows to train on: prompt/question/instruction and answer."""
    subset: str | None = None
    split: str = "train"
    limit: Count | None = None
    """Use at most so many rows, drawn with the recipe's seed."""
    gcd: GcdPart | None = None
    """Generate the rows."""
    validation: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.05
    """Share of the rows for the validation loss."""
    training: TrainingPart = TrainingPart(learning_rate=2e-4, batch_size=8, epochs=1)

    @pydantic.model_validator(mode="after")
    def _one_origin(self) -> "TaskPart":
        named = [key for key in ("model", "source", "gcd") if getattr(self, key) is not None]
        if len(named) != 1:
            raise ValueError(f"names {named or 'no origin'}. Expected exactly one of model, source and gcd")
        if len(self.training.learning_rates) > 1:
            raise ValueError(
                f"training.learning_rate: {list(self.training.learning_rates)}. Expected one; none is chosen"
            )
        return self


class JudgePart(Part):
    """Who rates answers that no rule can rate."""

    kind: Literal["rules", "local", "server"] = "local"
    model: str | None = None
    """local: a model source, None for the recipe's own model, loaded once more; server: the served model's name."""
    url: str | None = None
    """server: base URL of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1."""
    key_variable: str = "OPENAI_API_KEY"
    """server: the environment variable that holds the key."""
    concurrency: Count = 8
    requests_per_minute: Count | None = None
    timeout_s: Annotated[float, pydantic.Field(gt=0)] = 60
    retries: Annotated[int, pydantic.Field(ge=0)] = 5
    max_new_tokens: Count = 16
    cache: Path | None = None
    """Folder of verdicts, so that a rerun costs nothing; None takes the user's cache folder."""


class NamedPart(Part):
    """A method or an eval: a file found by its name, which may stand in a recipe several times under several labels."""

    name: str
    label: Annotated[str, pydantic.Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]*)?$")] = ""
    """What it is called in tables, folders and `choose`; its name where nothing is said."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _label(cls, raw: Any) -> Any:
        name = raw.get("name", cls.model_fields["name"].default) if isinstance(raw, Mapping) else None
        return {**raw, "label": name} if isinstance(name, str) and not raw.get("label") else raw


class MethodSettings(NamedPart):
    """What every method file's `Settings` has."""

    k: tuple[float, ...] | None = None
    """Strengths of this method; None takes the recipe's."""


class EvalSettings(NamedPart):
    """What every eval file's `Settings` has."""

    items: Path | None = None
    """An item file in place of the shipped one."""
    dataset: Annotated[str, pydantic.Field(pattern=r"^[^:]+(:[^:]+){1,2}$")] | None = None
    """Items of a `datasets` id: ID:SPLIT, ID:SUBSET:SPLIT, or ID:FILE.jsonl:SPLIT."""
    limit: Annotated[int, pydantic.Field(ge=2)] | None = None
    """Use at most so many items, drawn with the recipe's seed; one has no interval."""

    @pydantic.model_validator(mode="after")
    def _one_origin(self) -> "EvalSettings":
        if self.items is not None and self.dataset is not None:
            raise ValueError("both `items` and `dataset` are set; keep one (`--set evals.NAME.dataset=null`)")
        return self


class AnsweredSettings(EvalSettings):
    """What evals of written answers have besides."""

    max_new_tokens: Count = 64
    """Tokens of an answer at most."""
    temperature: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """0 is greedy."""
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    """Of sampled answers."""


class Choose(Part):
    """Pick the strength with the largest effect whose cost stays within an allowance."""

    eval: str
    """`EVAL` for its first metric, or `EVAL.METRIC`."""
    goal: Literal["increase", "decrease"]
    keep: Mapping[str, Annotated[float, pydantic.Field(ge=0)]] = {}
    """`EVAL` or `EVAL.METRIC` -> loss allowed, in the metric's own unit; its 95 % interval must stay inside."""
    method: str = "weights"
    """Label of the method whose strength is chosen; only a weight vector can be merged."""


class EqualKl(Part):
    """Compare methods at one divergence from the unsteered model: their strengths have no common unit."""

    target: Annotated[float, pydantic.Field(gt=0)] = 0.5
    """Nats: the 95th percentile, over the tokens of the steered model's greedy answers, of KL(steered || unsteered)."""
    prompts: Count = 16
    """Prompts of the divergence, from the pairs' training questions."""
    tokens: Count = 32
    """Tokens of each answer at most."""
    reference: str = "weights"
    """Label of the method that the others are tested against."""
    metrics: tuple[str, ...] = ()
    """`EVAL.METRIC`s that are compared; none takes the first metric of every eval."""


class Interference(Part):
    """How far each of several vectors moves what the others are for, at one strength."""

    vectors: tuple[str, ...]
    """Labels of methods."""
    metrics: tuple[str, ...]
    """`EVAL.METRIC`s."""
    k: float = 1


class StudySettings(Part):
    """What every study file's `Settings` has. Paths are relative to the recipe file."""

    study: str
    """Name of a file in `studies/`."""
    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    scale: str | None = None
    """Which of the file's `scales` was applied."""
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    model: ModelPart
    folder: Annotated[Path, pydantic.Field(exclude=True)] = Path()
    """Folder of the recipe file."""


class FigurePart(Part):
    """One plot: a curve per method over k."""

    title: str
    x: str
    """`EVAL.METRIC`."""
    y: str
    """`EVAL.METRIC`."""


class Samples(Part):
    """Prompts answered at several strengths, side by side in the report."""

    prompts: tuple[str, ...] | None = None
    """None takes the behavior's own."""
    max_new_tokens: Count = 48


class Recipe(Part):
    """Everything that determines a run. Paths in it are relative to the recipe file."""

    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    scale: str | None = None
    """Which of the file's `scales` was applied."""
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    repeats: Count = 1
    """Trained methods are fitted so many times, with the seeds seed, seed + 1, ..."""
    model: ModelPart
    behavior: str
    """Name of a file in `behaviors/` beside the recipe or among the shipped ones, or a path to one."""
    pairs: PairsPart = PairsPart()
    task: TaskPart | None = None
    judge: JudgePart = JudgePart()
    methods: tuple[pydantic.SerializeAsAny[MethodSettings], ...]
    k: tuple[float, ...]
    """Strengths, in units of the stored vector; 0 is the unsteered model."""
    evals: tuple[pydantic.SerializeAsAny[EvalSettings], ...]
    choose: Choose | None = None
    merge_k: float | None = None
    """A fixed strength for the checkpoint, in place of `choose`."""
    equal_kl: EqualKl | None = None
    interference: Interference | None = None
    figures: tuple[FigurePart, ...] = ()
    samples: Samples = Samples()
    folder: Annotated[Path, pydantic.Field(exclude=True)] = Path()
    """Folder of the recipe file."""

    @pydantic.field_validator("k")
    @classmethod
    def _has_reference(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if 0 not in value:
            raise ValueError("has no 0; every evaluated recipe needs the unsteered model as its reference")
        if len(set(value)) < len(value):
            raise ValueError(f"names a strength twice: {list(value)}")
        return tuple(sorted(value))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the trained methods; the first also splits the pairs and draws the items."""
        return tuple(range(self.seed, self.seed + self.repeats))

    @property
    def released(self) -> str | None:
        """Label of the method whose vector is merged into a checkpoint; None where none is asked for."""
        return self.choose.method if self.choose else "weights" if self.merge_k is not None else None

    def method(self, label: str) -> Any:
        """Settings of the method `label`; a RecipeError when the recipe does not have it."""
        return _labeled(self.methods, label, "methods")

    def eval(self, label: str) -> Any:
        """Settings of the eval `label`; a RecipeError when the recipe does not have it."""
        return _labeled(self.evals, label, "evals")

    def strengths(self, label: str) -> tuple[float, ...]:
        """Strengths of one method other than 0, ascending."""
        own = self.method(label).k
        return tuple(sorted({k for k in (self.k if own is None else own) if k != 0}))

    def dump(self) -> dict[str, Any]:
        """The resolved recipe as plain types, every default written out."""
        return self.model_dump(mode="json")


def _labeled(parts: tuple[Any, ...], label: str, key: str) -> Any:
    for part in parts:
        if part.label == label:
            return part
    raise RecipeError(f"{key}: no '{label}' in this recipe, which has {[p.label for p in parts]}; add it to {key}")
