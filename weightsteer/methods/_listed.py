"""What a method takes from the methods that are listed before it."""

from collections.abc import Sequence
from itertools import takewhile

from weightsteer.errors import RecipeError
from weightsteer.recipe import MethodSettings, Recipe

# Methods that fine-tune both sides, into the folders `positive` and `negative` below their own.
SIDED = ("weights", "bias-only")
# Methods whose vector is a change of weights.
CHANGES = (*SIDED, "one-sided", "joint", "random", "combined")


def check_listed(settings: MethodSettings, recipe: Recipe, labels: Sequence[str], names: Sequence[str]) -> None:
    """Raise a RecipeError when one of `labels` is no method listed before `settings` with one of `names`."""
    before = takewhile(lambda method: method.label != settings.label, recipe.methods)
    known = [method.label for method in before if method.name in names]
    missing = [label for label in labels if label not in known]
    if missing:
        raise RecipeError(
            f"methods {settings.label}.of: {', '.join(map(repr, missing))}, but the methods of use to it that are "
            f"listed before it are {known}. Expected the label of a method {' or '.join(names)}. List it first"
        )
