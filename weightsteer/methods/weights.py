"""Contrastive weight steering (arXiv 2511.05408): θ + k(τ⁺ − τ⁻)."""

from pathlib import Path
from typing import Any

from weightsteer.recipe import Recipe
from weightsteer.weights.settings import LoraSettings


class Settings(LoraSettings):
    """How the two sides are fine-tuned."""


def fit(recipe: Recipe, pairs: Any, lm: Any, out: Path) -> Any:
    """The weight vector, below `out`/weights."""
    from weightsteer.weights.finetune import fit

    return fit(recipe, pairs, out / "weights")
