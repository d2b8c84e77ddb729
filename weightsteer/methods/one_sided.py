"""Non-contrastive weight steering (arXiv 2511.05408, section 3): one side of a contrast alone."""

from typing import Any, Literal

from weightsteer.methods import Fit
from weightsteer.methods._listed import SIDED, check_listed
from weightsteer.recipe import MethodSettings, Recipe

ABOUT = "θ + k·τ⁺, or θ − k·τ⁻: one side of the contrast alone"
SEEDED = True


class Settings(MethodSettings):
    """Which side of which method's contrast; nothing is trained."""

    name: str = "one-sided"
    of: str = "weights"
    """Label of a method listed before that fine-tunes both sides."""
    side: Literal["positive", "negative"]


def check(settings: Settings, recipe: Recipe, pairs: Any) -> None:
    """Raise a RecipeError when no method listed before trains the side."""
    check_listed(settings, recipe, [settings.of], SIDED)


def fit(settings: Settings, fit: Fit) -> Any:
    """τ⁺ or −τ⁻, so that k > 0 shows more of the behavior either way."""
    from weightsteer.weights.vector import WeightVector

    side = WeightVector.load(fit.out / settings.of / settings.side, base=fit.lm.ref.path)
    return side if settings.side == "positive" else -side
