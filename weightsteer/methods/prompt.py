"""The system prompt as a baseline: positive wording for k = 1, negative for k = -1."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic

from weightsteer.errors import RecipeError
from weightsteer.methods import Fit
from weightsteer.recipe import MethodSettings, Recipe, SystemPrompts, load_behavior
from weightsteer.stage import digest

ABOUT = "a system prompt that asks for the behavior (k = 1) or for its opposite (k = −1)"
DIALLED = False


class Settings(MethodSettings):
    """Which of the behavior's opposed system prompts."""

    name: str = "prompt"
    k: tuple[Literal[-1, 1], ...] = (-1, 1)
    """Only the sign means something."""
    number: Annotated[int, pydantic.Field(ge=1)] = 1
    """Which pair of system prompts of the behavior file, counted from 1."""


@dataclass(frozen=True)
class PromptPair:
    """An opposed pair of system prompts, behind the same seam as a vector."""

    prompts: SystemPrompts

    @property
    def digest(self) -> str:
        return digest(self.prompts.model_dump())

    @contextlib.contextmanager
    def applied(self, lm: Any, k: float, any_base: bool = False) -> Iterator[Any]:
        """The same network under the positive (k > 0) or negative (k < 0) system prompt; k = 0 leaves its own."""
        yield lm if k == 0 else lm.with_system(self.prompts.positive if k > 0 else self.prompts.negative)


def fit(settings: Settings, fit: Fit) -> PromptPair:
    """The pair of system prompts; nothing is trained."""
    return check(settings, fit.recipe, fit.pairs)


def check(settings: Settings, recipe: Recipe, pairs: Any) -> PromptPair:
    """The same; a RecipeError when the behavior has no such pair of prompts."""
    prompts = load_behavior(recipe).system_prompts
    if settings.number > len(prompts):
        raise RecipeError(
            f"methods {settings.label}.number: {settings.number}, but behavior {recipe.behavior} has {len(prompts)} "
            "pairs of system prompts. Choose one that exists, add pairs to the behavior file, or leave the method out"
        )
    return PromptPair(prompts[settings.number - 1])
