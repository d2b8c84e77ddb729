"""Plain fine-tuning on one side as a baseline, at several points of the training (arXiv 2511.05408, section 3)."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import pydantic

from weightsteer.errors import AdapterError, RecipeError
from weightsteer.methods import Fit
from weightsteer.methods._listed import check_listed
from weightsteer.recipe import MethodSettings, Recipe
from weightsteer.recipe.training import Rate
from weightsteer.stage import digest, is_finished, run_stage

ABOUT = "plain fine-tuning on the positive (k > 0) or negative (k < 0) side; |k| is the share of the training"
SEEDED = True
DIALLED = False


class Settings(MethodSettings):
    """Where in the training, and how that differs from the method whose sides are learned."""

    name: str = "finetuned"
    k: tuple[float, ...] = (-1.0, 1.0)
    """The sign is the side, the magnitude the share of the training steps, above 0 and at most 1."""
    of: str = "weights"
    """Label of a method `weights` listed before, whose training settings and pairs these are. With k of -1 and 1 alone
    and nothing else set its adapters are taken; otherwise there is a training of its own, without early stopping."""
    learning_rate: Rate | None = None
    """None takes that of `of`."""
    epochs: Annotated[float, pydantic.Field(gt=0)] | None = None
    """None takes those of `of`; more show where quality drops."""

    @pydantic.field_validator("k")
    @classmethod
    def _are_shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        wrong = [k for k in value if not 0 < abs(k) <= 1]
        if wrong or not value:
            raise ValueError(f"{wrong or 'empty'}. Expected shares of the training, such as -0.5 or 1")
        return value

    @property
    def trains(self) -> bool:
        """Whether there is a training of its own."""
        return any(abs(k) < 1 for k in self.k) or self.learning_rate is not None or self.epochs is not None


@dataclass(frozen=True)
class FinetunedModels:
    """Fine-tuned models, as the changes that make them, behind the same seam as a vector."""

    changes: Mapping[float, Any]
    """k -> the change of the base."""

    @property
    def digest(self) -> str:
        return digest({f"{k:g}": change.digest for k, change in self.changes.items()})

    @contextlib.contextmanager
    def applied(self, lm: Any, k: float, any_base: bool = False) -> Iterator[Any]:
        """θ + τ of the model at k; an AdapterError when there is none, and θ for k = 0."""
        if k == 0:
            yield lm
            return
        if k not in self.changes:
            raise AdapterError(
                f"finetuned: no model at k = {k:g}. Expected one of {sorted(self.changes)}; list it as k of the method"
            )
        with self.changes[k].applied(lm, 1, any_base) as tuned:
            yield tuned


def check(settings: Settings, recipe: Recipe, pairs: Any) -> None:
    """Raise a RecipeError when the method it is trained like is not there, or has several learning rates."""
    check_listed(settings, recipe, [settings.of], ("weights",))
    rates = recipe.method(settings.of).learning_rates
    if settings.trains and settings.learning_rate is None and len(rates) > 1:
        raise RecipeError(
            f"methods {settings.label}.learning_rate: none is given, and {settings.of} tries {list(rates)}. Expected "
            "one for the whole training. Set it"
        )


def fit(settings: Settings, fit: Fit) -> FinetunedModels:
    """The models at every k."""
    from weightsteer.weights.vector import WeightVector

    check(settings, fit.recipe, fit.pairs)
    sides: dict[float, Literal["positive", "negative"]] = {k: "positive" if k > 0 else "negative" for k in settings.k}
    if settings.trains:
        for side in dict.fromkeys(sides.values()):
            _train(settings, fit, side, sorted({abs(k) for k in settings.k if sides[k] == side}))
        folders = {k: fit.folder(settings) / side / f"at={abs(k):g}" for k, side in sides.items()}
    else:
        folders = {k: fit.out / settings.of / side for k, side in sides.items()}
    return FinetunedModels({k: WeightVector.load(folder, base=fit.lm.ref.path) for k, folder in folders.items()})


def _train(settings: Settings, fit: Fit, side: Literal["positive", "negative"], shares: list[float]) -> None:
    """Train one side to the end, keeping the adapter at each share of the steps."""
    from weightsteer.data.contrast import check_tokens
    from weightsteer.methods.weights import own_pairs
    from weightsteer.weights.finetune import load_for_training, resolved, train_adapter, training_inputs

    like = fit.recipe.method(settings.of)
    changed = {name: getattr(settings, name) for name in ("learning_rate", "epochs") if getattr(settings, name)}
    training = resolved(like.model_copy(update=changed))
    pairs = own_pairs(like, fit.recipe, fit.pairs)
    inputs = {
        "model": fit.lm.ref.fingerprint,
        "system": fit.recipe.model.system,
        "pairs": pairs.digest,
        "seed": fit.seed,
        "settings": training_inputs(training),
        "side": side,
        "at": shares,
    }
    folder = fit.folder(settings) / side
    if not is_finished(folder, inputs):
        lm = load_for_training(fit.recipe.model, training)
        check_tokens(pairs, lm, training.max_tokens)
        rows, [rate] = pairs.part("train").side(side), training.learning_rates
        work = partial(train_adapter, lm, rows, (), training, rate, fit.seed, label=f"training {settings.label} {side}")
        run_stage(folder, inputs, partial(work, snapshots=shares))
