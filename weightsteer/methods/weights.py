"""Contrastive weight steering (arXiv 2511.05408): θ + k(τ⁺ − τ⁻)."""

from typing import Any

from weightsteer.errors import DataError
from weightsteer.methods import Fit
from weightsteer.recipe import MethodSettings, PairsPart, Recipe, TrainingPart, load_behavior

ABOUT = "θ + k(τ⁺ − τ⁻), both sides fine-tuned on the same questions"
SEEDED = True
WRITES = ("positive", "negative", "vector")


class Settings(MethodSettings, TrainingPart):
    """How the two sides are fine-tuned."""

    name: str = "weights"
    behavior: str | None = None
    """Another behavior than the recipe's, for a vector beside the main one."""
    pairs: PairsPart | None = None
    """Its pairs; None takes those that the behavior ships, split as the recipe says."""


def check(settings: Settings, recipe: Recipe, pairs: Any) -> None:
    """Raise a DataError when learning rates are to be compared and there is nothing to compare them on."""
    if settings.pairs is not None and settings.pairs.elicit is not None:
        raise DataError(
            f"{settings.label}: pairs.elicit, but only the recipe's own pairs are elicited in a run. Expected a "
            "source. Make them with `weightsteer elicit`, and name the file as pairs.source"
        )
    pairs, rates = own_pairs(settings, recipe, pairs), settings.learning_rates
    if len(rates) > 1 and not pairs.part("validation").pairs:
        raise DataError(
            f"{settings.label}: no validation pairs to choose among the learning rates {list(rates)}. Raise "
            "pairs.validation, or give one learning rate"
        )


def own_pairs(settings: Settings, recipe: Recipe, pairs: Any) -> Any:
    """The pairs of the method's own behavior, or the recipe's."""
    from weightsteer.data.contrast import load_pairs

    if settings.behavior is None and settings.pairs is None:
        return pairs
    name = settings.behavior or recipe.behavior
    part = settings.pairs or recipe.pairs.model_copy(update={"source": None, "elicit": None, "limit": None})
    return load_pairs(recipe, part, load_behavior(recipe, name), name)


def fit(settings: Settings, fit: Fit) -> Any:
    """The weight vector."""
    from weightsteer.weights.finetune import fit_contrast

    pairs = own_pairs(settings, fit.recipe, fit.pairs)
    return fit_contrast(settings, fit.recipe, pairs, fit.folder(settings), fit.seed)
