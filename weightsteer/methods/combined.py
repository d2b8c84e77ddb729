"""Several weight vectors at once: their weighted sum (arXiv 2511.05408, section 3; task arithmetic, 2212.04089)."""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Annotated, Any

import pydantic

from weightsteer.methods import Fit
from weightsteer.methods._listed import CHANGES, check_listed
from weightsteer.recipe import MethodSettings, Recipe
from weightsteer.stage import run_stage

ABOUT = "θ + k·(a weighted sum of weight vectors)"
SEEDED = True
WRITES = ("vector",)


class Settings(MethodSettings):
    """What is summed."""

    name: str = "combined"
    of: Annotated[Mapping[str, float], pydantic.Field(min_length=1)]
    """Label of a method listed before, whose vector is a change of weights -> its weight in the sum."""


def check(settings: Settings, recipe: Recipe, pairs: Any) -> None:
    """Raise a RecipeError when one of the vectors is not there or is no change of weights."""
    check_listed(settings, recipe, list(settings.of), CHANGES)


def fit(settings: Settings, fit: Fit) -> Any:
    """The sum, exact: factors side by side."""
    from weightsteer.weights.vector import WeightVector

    parts = {label: {"weight": weight, "vector": fit.vectors[label].digest} for label, weight in settings.of.items()}
    folder = fit.folder(settings) / "vector"

    def save(path: Any) -> None:
        total = reduce(add, (weight * fit.vectors[label] for label, weight in settings.of.items()))
        terms = [{"weight": weight, "adapter": label} for label, weight in settings.of.items()]
        replace(total, info={**total.info, "kind": "combined", "terms": terms}).save(path)

    run_stage(folder, {"sum": parts}, save)
    return WeightVector.load(folder)
