"""Joint training as a baseline (arXiv 2511.05408, 4.1.2 and 4.3): the wanted answers are mixed into the task's rows."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from weightsteer.errors import RecipeError
from weightsteer.methods import Fit
from weightsteer.recipe import MethodSettings, Recipe
from weightsteer.stage import digest, is_finished, run_stage

ABOUT = "the base trained on the task and on one side's answers together"
SEEDED = True
DIALLED = False
WRITES = ("tuned", "vector")
SIGNS = {"positive": 1, "negative": -1}


class Settings(MethodSettings):
    """What is mixed in. The training is that of the recipe's task."""

    name: str = "joint"
    side: Literal["positive", "negative"] = "negative"
    """Whose answers are learned beside the task."""
    repeat: Annotated[int, pydantic.Field(gt=0)] = 1
    """How often each of these answers stands among the rows of the task."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _sign(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and raw.get("k") is None:
            return {**raw, "k": [SIGNS.get(str(raw.get("side", "negative")), -1)]}
        return raw

    @pydantic.model_validator(mode="after")
    def _is_one_model(self) -> "Settings":
        if self.k != (SIGNS[self.side],):
            raise ValueError(
                f"k is {list(self.k or ())}. Expected [{SIGNS[self.side]}] for the {self.side} side: joint training "
                "gives one model; leave k out"
            )
        return self


def check(settings: Settings, recipe: Recipe, pairs: Any) -> None:
    """Raise a RecipeError when the recipe trains no task."""
    if recipe.task is None or recipe.task.model is not None:
        found = "none" if recipe.task is None else f"a model that is tuned already, {recipe.task.model}"
        raise RecipeError(
            f"methods {settings.label}: mixes answers into the rows of the recipe's task, which is {found}. Expected a "
            "task with rows (task.source or task.gcd). Add one, or leave the method out"
        )


def fit(settings: Settings, fit: Fit) -> Any:
    """±(τ_joint − τ_task): applied at its one k to the task-tuned model, it gives θ + τ_joint."""
    from weightsteer.weights.vector import WeightVector

    folder = fit.folder(settings)
    _train(settings, fit, folder / "tuned")
    tuned = WeightVector.load(folder / "tuned", base=fit.lm.ref.path)
    inputs = {"tuned": tuned.digest, "task": fit.task.digest, "side": settings.side}
    run_stage(folder / "vector", inputs, lambda path: (SIGNS[settings.side] * (tuned - fit.task)).save(path))
    return WeightVector.load(folder / "vector")


def _train(settings: Settings, fit: Fit, folder: Path) -> None:
    """Train the base as the task was, on its rows and the answers."""
    from weightsteer.data.contrast import check_tokens
    from weightsteer.data.tasks import load_examples
    from weightsteer.weights.finetune import load_for_training, resolved, train_adapter, training_inputs

    part, model = fit.recipe.task, fit.recipe.model
    answers = {name: settings.repeat * fit.pairs.part(name).side(settings.side) for name in ("train", "validation")}
    train = [*fit.examples, *answers["train"]]
    validation = [*load_examples(part, fit.recipe.seed)[1], *answers["validation"]]
    training = resolved(part.training)
    inputs = {
        "model": fit.lm.ref.fingerprint,
        "system": model.system,
        "rows": digest([train, validation]),
        "seed": fit.seed,
        "settings": training_inputs(training),
    }
    if not is_finished(folder, inputs):
        lm = load_for_training(model, training)
        check_tokens(fit.pairs, lm, training.max_tokens)
        arguments = (lm, train, validation, training, training.learning_rates[0], fit.seed)
        run_stage(folder, inputs, partial(train_adapter, *arguments, label=f"training {settings.label}"))
