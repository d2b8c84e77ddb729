"""Control: a random direction with the norm of another method's vector, entry by entry."""

from typing import Any

from weightsteer.methods import Fit
from weightsteer.methods._listed import CHANGES, check_listed
from weightsteer.recipe import MethodSettings, Recipe
from weightsteer.stage import digest

ABOUT = "θ + k·(a random direction with the norm and rank of the vector, in every parameter)"
SEEDED = True


class Settings(MethodSettings):
    """What it is like; another label is another draw."""

    name: str = "random"
    of: str = "weights"
    """Label of a method listed before whose vector is a change of weights."""


def check(settings: Settings, recipe: Recipe, pairs: Any) -> None:
    """Raise a RecipeError when there is no such vector."""
    check_listed(settings, recipe, [settings.of], CHANGES)


def fit(settings: Settings, fit: Fit) -> Any:
    """The random vector; it is drawn again whenever it is needed."""
    from weightsteer.weights.random import random_like

    return random_like(fit.vectors[settings.of], int(digest([fit.seed, settings.label])[:12], 16))
