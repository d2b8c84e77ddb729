"""Directions in weight space."""

from typing import Any


def fit(*arguments: Any, **options: Any) -> Any:
    """The weight vector of a recipe: `weightsteer.weights.finetune.fit`, loaded on first use."""
    from weightsteer.weights.finetune import fit

    return fit(*arguments, **options)
