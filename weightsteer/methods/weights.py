"""Contrastive weight steering (arXiv 2511.05408): θ + k(τ⁺ − τ⁻)."""

from pathlib import Path
from typing import Any

from weightsteer.errors import DataError
from weightsteer.recipe import Recipe
from weightsteer.weights.settings import LoraSettings


class Settings(LoraSettings):
    """How the two sides are fine-tuned."""


def check(recipe: Recipe, pairs: Any) -> None:
    """Raise a DataError when learning rates are to be compared and there is nothing to compare them on."""
    rates = recipe.method("weights").learning_rates
    if len(rates) > 1 and not pairs.part("validation").pairs:
        raise DataError(
            f"weights: no validation pairs to choose among the learning rates {list(rates)}. Raise pairs.validation, "
            "or give one learning rate"
        )


def fit(recipe: Recipe, pairs: Any, lm: Any, out: Path) -> Any:
    """The weight vector, below `out`/weights."""
    from weightsteer.weights.finetune import fit

    return fit(recipe, pairs, out / "weights")
