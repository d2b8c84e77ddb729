"""Plain fine-tuning as a baseline: the positive adapter alone for k = 1, the negative one alone for k = -1."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from weightsteer.methods import Fit
from weightsteer.recipe import MethodSettings
from weightsteer.stage import digest

ABOUT = "plain fine-tuning on one side: positive for k = 1, negative for k = −1"
SEEDED = True


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
    def applied(self, lm: Any, k: float, any_base: bool = False) -> Iterator[Any]:
        """θ + τ⁺ for k > 0, θ + τ⁻ for k < 0, θ for k = 0."""
        side = self.positive if k > 0 else self.negative
        with side.applied(lm, float(k != 0), any_base) as tuned:
            yield tuned


def fit(settings: Settings, fit: Fit) -> FinetunedPair:
    """Both sides of the weight vector."""
    from weightsteer.weights.vector import WeightVector

    sides = [WeightVector.load(fit.out / "weights" / side, base=fit.lm.ref.path) for side in ("positive", "negative")]
    return FinetunedPair(*sides)
