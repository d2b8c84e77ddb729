"""Plain fine-tuning as a baseline: the positive adapter alone for k = 1, the negative one alone for k = -1."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from weightsteer.recipe import MethodSettings, Recipe
from weightsteer.stage import digest


class Settings(MethodSettings):
    """Trained with the settings of `weights`; nothing of its own."""

    name: str = "finetuned"
    k: tuple[Literal[-1, 1], ...] = (-1, 1)
    """Only the sign means something."""


@dataclass(frozen=True)
class FinetunedPair:
    """The two fine-tuned models, as the changes that make them, behind the same seam as a vector."""

    positive: Any
    negative: Any

    @property
    def digest(self) -> str:
        return digest([self.positive.digest, self.negative.digest])

    @contextlib.contextmanager
    def applied(self, lm: Any, k: float) -> Iterator[Any]:
        """θ + τ⁺ for k > 0, θ + τ⁻ for k < 0, θ for k = 0."""
        side = self.positive if k > 0 else self.negative
        with side.applied(lm, float(k != 0)) as tuned:
            yield tuned


def fit(recipe: Recipe, pairs: Any, lm: Any, out: Path) -> FinetunedPair:
    """Both sides of the weight vector, which is trained first where that has not been done."""
    from weightsteer.weights.finetune import fit
    from weightsteer.weights.vector import WeightVector

    fit(recipe, pairs, out / "weights")
    sides = (WeightVector.load(out / "weights" / side, base=lm.ref.path) for side in ("positive", "negative"))
    return FinetunedPair(*sides)
