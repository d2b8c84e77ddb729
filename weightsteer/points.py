"""The points of a sweep: which vector of which method and training seed, at which strength."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsteer.recipe import Recipe

BASE = "base"
# The base model itself, where the model that is steered is a fine-tune of it.
UNTUNED = "untuned"


@dataclass(frozen=True)
class Point:
    """One way to steer: a method's vector of one training seed at one strength; no vector is the unsteered model."""

    method: str = BASE
    k: float = 0.0
    vector: Any = None
    seed: int | None = None
    """Training seed; None for what is trained once or not at all."""

    def steering(self, lm: Any, any_base: bool = False) -> AbstractContextManager[Any]:
        """`lm` steered so inside the block."""
        return nullcontext(lm) if self.vector is None else self.vector.applied(lm, self.k, any_base=any_base)

    @property
    def path(self) -> Path:
        """Where its results lie below an eval's folder."""
        named = f"{self.k:g}" if float(f"{self.k:g}") == self.k else repr(self.k)
        return Path(self.method, *([f"seed={self.seed}"] if self.seed is not None else []), f"k={named}")


# Label -> training seed (None where there is one vector only) -> vector.
Fitted = Mapping[str, Mapping[int | None, Any]]


def grid(recipe: Recipe, fitted: Fitted) -> list[Point]:
    """The unsteered model, and every vector of every method at every strength."""
    steered = [
        Point(label, k, vector, seed)
        for label, vectors in fitted.items()
        for k in recipe.strengths(label)
        for seed, vector in vectors.items()
    ]
    return [Point(), *steered]
