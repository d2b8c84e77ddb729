"""Held-out contrast pairs: is the answer that shows the behavior the likelier one? Serves any behavior."""

from collections.abc import Sequence
from typing import Any

from weightsteer.errors import DataError
from weightsteer.evals import ItemScore
from weightsteer.recipe import EvalSettings

VERSION = 1
KIND = "behavior"
PAIRS = True
METRICS = {
    "log_odds": "log-likelihood per token of the positive less that of the negative answer, nats; higher = more of it",
    "share": "share of the held-out questions whose positive answer is the likelier one per token",
}


class Settings(EvalSettings):
    """Whose held-out pairs; `items` may name a pairs file in their place."""

    behavior: str | None = None
    """Another behavior than the recipe's, for which one of its methods has a vector."""


def read_items(settings: Settings, given: Any) -> list[Any]:
    """The held-out pairs of the run, or all pairs of the file that `items` names."""
    from weightsteer.data.contrast import read_pairs

    if settings.items is not None:
        return list(read_pairs(str(settings.items)))
    pairs = given.pairs
    if settings.behavior is not None:
        if settings.behavior not in given.others:
            raise DataError(
                f"{settings.label}.behavior: no method of this recipe is fitted on '{settings.behavior}'. Expected one "
                f"of {sorted(given.others)}"
            )
        pairs = given.others[settings.behavior]
    held_out = [] if pairs is None else list(pairs.part("held_out").pairs)
    if not held_out:
        raise DataError("preference: there are no held-out pairs. Raise pairs.held_out, or name a pairs file as items")
    return held_out


def score(lm: Any, items: Sequence[Any], settings: Any = None, given: Any = None) -> list[ItemScore]:
    """Per-token log-odds, so that neither side gains by being short."""
    from weightsteer.models.generate import score_options

    scored = score_options(lm, [p.prompt for p in items], [(p.positive, p.negative) for p in items], label="preference")
    results = []
    for pair, ((positive, n_positive), (negative, n_negative)) in zip(items, scored, strict=True):
        log_odds = positive / n_positive - negative / n_negative
        results.append(ItemScore(pair.id, {"log_odds": log_odds, "share": float(log_odds > 0)}))
    return results
