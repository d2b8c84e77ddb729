"""KV-cache steering (arXiv 2507.08799): one change of the prompt's keys and values, before the answer begins."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic

from weightsteer.errors import DataError, RecipeError
from weightsteer.methods import Fit
from weightsteer.recipe import MethodSettings, Recipe
from weightsteer.stage import run_stage

ABOUT = "the prompt's cached values + k·(mean difference under examples of either side), changed once"
WRITES = ("",)
# Evals whose shipped items hold plain texts: they have no prompt whose cache could be changed.
TEXTS = ("capability",)


class Settings(MethodSettings):
    """Which prompts the difference is read from, and what of it is added; defaults of the paper and its code."""

    name: str = "kv-cache"
    examples: Annotated[int, pydantic.Field(gt=0)] = 5
    """Other pairs that stand before each question, with their positive or their negative answers."""
    prompts: Annotated[int, pydantic.Field(gt=0)] = 300
    """Questions that are read at most, each after either kind of examples."""
    key_scale: Annotated[float, pydantic.Field(allow_inf_nan=False)] = 0.0
    """What keys are changed by, times k."""
    value_scale: Annotated[float, pydantic.Field(allow_inf_nan=False)] = 1.0
    """What values are changed by, times k."""
    first_block: Annotated[int, pydantic.Field(ge=0)] = 1
    """Blocks before it, from 0, are left alone."""

    @pydantic.model_validator(mode="after")
    def _changes_something(self) -> "Settings":
        if not (self.key_scale or self.value_scale):
            raise ValueError("key_scale and value_scale are both 0, so nothing is changed; give one of them")
        return self


def check(settings: Settings, recipe: Recipe, pairs: Any) -> None:
    """Raise an error when there are too few pairs for the examples, or an eval scores texts without a prompt."""
    found = len(pairs.part("train").pairs)
    if found <= settings.examples:
        raise DataError(
            f"{settings.label}: {found} training pairs for a question after {settings.examples} examples. Expected "
            f"{settings.examples + 1} or more. Lower examples, or give more pairs"
        )
    without = [e.label for e in recipe.evals if e.name in TEXTS and e.items is None and e.dataset is None]
    if without:
        raise RecipeError(
            f"methods {settings.label}: changes the cache of a prompt, and {', '.join(without)} scores plain texts, "
            "which have none. Expected questions alone. Give the eval items without texts, or leave one of the two out"
        )


def fit(settings: Settings, fit: Fit) -> Any:
    """The change of keys and values."""
    from weightsteer.activations.kv_cache import KVCacheVector

    folder, lm = fit.folder(settings), fit.lm
    inputs = {
        "model": lm.ref.fingerprint,
        "dtype": str(lm.network.dtype),
        "system": lm.system,
        "pairs": fit.pairs.digest,
        "seed": fit.recipe.seed,
        "settings": settings.model_dump(mode="json", exclude={"k", "label"}),
    }
    run_stage(folder, inputs, lambda path: _fit(settings, fit, path))
    return KVCacheVector.load(folder)


def _fit(settings: Settings, fit: Fit, out: Path) -> None:
    from weightsteer.activations.kv_cache import kv_cache_vector

    check(settings, fit.recipe, fit.pairs)
    pairs = fit.pairs.part("train").pairs
    positive, negative = contrast_prompts(pairs, settings.examples, settings.prompts, fit.recipe.seed)
    vector = kv_cache_vector(
        fit.lm,
        *([fit.lm.tokens(fit.lm.chat(prompt)) for prompt in side] for side in (positive, negative)),
        key_scale=settings.key_scale,
        value_scale=settings.value_scale,
        first_block=settings.first_block,
        info={"behavior": fit.pairs.behavior, "pairs_digest": fit.pairs.digest, "examples": settings.examples},
        label=settings.label,
    )
    vector.save(out)


def contrast_prompts(
    pairs: Sequence[Any], examples: int, prompts: int, seed: int
) -> tuple[list[list[Any]], list[list[Any]]]:
    """Conversations that end in a question, after the same other pairs answered positively, and negatively."""
    draw, sides = random.Random(seed), ([], [])  # type: tuple[random.Random, tuple[list[list[Any]], list[list[Any]]]]
    for asked in draw.sample(range(len(pairs)), min(prompts, len(pairs))):
        shown = draw.sample([i for i in range(len(pairs)) if i != asked], examples)
        for side, name in zip(sides, ("positive", "negative"), strict=True):
            turns = [
                turn
                for i in shown
                for turn in (*_turns(pairs[i]), {"role": "assistant", "content": getattr(pairs[i], name).strip()})
                if turn["role"] != "system"  # templates take one at the start at most
            ]
            own = _turns(pairs[asked])
            system = [turn for turn in own if turn["role"] == "system"]
            side.append([*system, *turns, *(turn for turn in own if turn["role"] != "system")])
    return sides


def _turns(pair: Any) -> list[Any]:
    return [{"role": "user", "content": pair.prompt}] if isinstance(pair.prompt, str) else list(pair.prompt)
