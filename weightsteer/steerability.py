"""How a model's preference follows the strength of a vector: slope, what the line misses, who moves the wrong way.

Of each item m_LD is read, the log-odds (nats) of the answer that matches the behavior against the other one, at every
strength λ of a grid. A vector is whatever has `applied(lm, k)`: of activations or of weights. Source: arXiv 2407.12404,
sections 3 to 5, and 2505.22637.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from weightsteer.errors import AdapterError, DataError
from weightsteer.stats import Estimate, spearman, weighted_mean

Curves = Float[np.ndarray, "items strengths"]
PerItem = Float[np.ndarray, " items"]


@dataclass(frozen=True)
class Lines:
    """The least-squares line m = c + slope·λ of every item."""

    slope: PerItem
    residual: PerItem
    """Root mean square distance from the line, nats: a line is a summary, not a model."""
    monotone: Bool[np.ndarray, " items"]
    """Whether m rises with every step of λ."""


@dataclass(frozen=True)
class Steerability:
    """What the lines of all items say together."""

    items: int
    slope: Estimate
    """Mean slope, nats per unit of strength; on a common grid the slope of the mean curve."""
    anti_steerable: float
    """Share of items whose slope is not positive."""
    residual: float
    """Mean over items."""
    monotone: float
    """Share of items."""


@dataclass(frozen=True)
class Effect:
    """What one strength does to the items: e = m(k) − m(0)."""

    mean: Estimate
    standardized: float | None
    """Mean of e in standard deviations of e over items; None where all items move alike."""
    wrong_way: float
    """Share of items with e < 0 (e > 0 for a negative strength)."""


@dataclass(frozen=True)
class Bias:
    """Steerability as far as the form of an item explains it."""

    coefficients: Mapping[str, float]
    """Nuisance -> how much steeper the items are that have it."""
    explained: float
    """Share of the variance of the slopes, from 0 to 1; nan where they do not vary."""
    left_out: tuple[str, ...]
    """Nuisances that are the same for every item or not known of some."""


def propensity_curves(
    lm: Any, vector: Any, strengths: Sequence[float], log_odds: Callable[[Any], Sequence[float]]
) -> Curves:
    """m_LD of every item at every strength; `log_odds` scores the items with the model it is given.

    An AdapterError for strengths that `check_strengths` refuses.
    """
    check_strengths(strengths)
    columns = []
    for k in strengths:
        with vector.applied(lm, k) as steered:
            columns.append(np.asarray(log_odds(steered), float))
    return np.stack(columns, 1)


def check_strengths(strengths: Sequence[float]) -> None:
    """Raise an AdapterError unless these are different finite numbers, 0 and a positive one among them."""
    finite = all(math.isfinite(k) for k in strengths)
    if not finite or len(set(strengths)) < len(strengths) or 0 not in strengths or max(strengths) <= 0:
        raise AdapterError(
            f"strengths {list(strengths)}: expected different finite numbers, 0 and a positive one among them, such as "
            "-1, 0, 1"
        )


def lines(curves: Curves, strengths: Sequence[float]) -> Lines:
    """Fit the line of every item."""
    grid = np.asarray(strengths, float)
    centered = grid - grid.mean()
    slope = curves @ centered / (centered @ centered)
    fitted = curves.mean(1, keepdims=True) + slope[:, None] * centered
    rising = np.diff(curves[:, np.argsort(grid)], axis=1) > 0
    return Lines(slope, np.sqrt(np.square(curves - fitted).mean(1)), rising.all(1))


def steerability(curves: Curves, strengths: Sequence[float], seed: int = 0) -> Steerability:
    """The lines of all items together; a DataError for fewer than two items."""
    _check_items(curves)
    fitted = lines(curves, strengths)
    return Steerability(
        items=len(curves),
        slope=weighted_mean(fitted.slope.tolist(), seed=seed),
        anti_steerable=float(np.mean(fitted.slope <= 0)),
        residual=float(fitted.residual.mean()),
        monotone=float(fitted.monotone.mean()),
    )


def item_effects(curves: Curves, strengths: Sequence[float], k: float) -> PerItem:
    """m(k) − m(0) of every item; a DataError where the grid lacks one of the two."""
    grid = list(strengths)
    if k not in grid or 0 not in grid or k == 0:
        raise DataError(
            f"effect at {k:g}: the strengths are {grid}. Expected 0 and another strength, {k:g}, among them"
        )
    return curves[:, grid.index(k)] - curves[:, grid.index(0)]


def effect(effects: PerItem, k: float = 1, seed: int = 0) -> Effect:
    """What strength k does to all items together."""
    _check_items(effects)
    spread = float(effects.std())
    return Effect(
        mean=weighted_mean(effects.tolist(), seed=seed),
        standardized=float(effects.mean()) / spread if spread else None,
        wrong_way=float(np.mean(effects * np.sign(k) < 0)),
    )


def bias(slopes: PerItem, nuisances: Sequence[Mapping[str, bool | None]]) -> Bias:
    """Ordinary least squares of the slopes on indicators of every item, such as "the matching answer is A".

    Source: arXiv 2407.12404, section 4. Two indicators that always go together share their coefficient.
    """
    names = list(dict.fromkeys(name for item in nuisances for name in item))
    columns = {name: [item.get(name) for item in nuisances] for name in names}
    used = [name for name in names if None not in columns[name] and len(set(columns[name])) == 2]
    design = np.array([[1.0] * len(slopes), *(np.asarray(columns[name], float) for name in used)]).T
    found = np.linalg.lstsq(design, slopes, rcond=None)[0]
    total = float(np.square(slopes - slopes.mean()).sum())
    left = float(np.square(slopes - design @ found).sum())
    return Bias(
        dict(zip(used, found[1:].tolist(), strict=True)),
        min(1.0, max(0.0, 1 - left / total)) if total else math.nan,
        tuple(name for name in names if name not in used),
    )


def relative_steerability(transferred: float, own: float) -> float:
    """s(v_A, D_B) / s(v_B, D_B): how much of what a vector made under B does there, one made under A does too."""
    return transferred / own if own else math.nan


def propensity_distance(unsteered_a: PerItem, unsteered_b: Float[np.ndarray, " others"]) -> float:
    """|mean m_LD(D_A; 0) − mean m_LD(D_B; 0)|, nats: how differently the model behaves under two conditions."""
    return abs(float(unsteered_a.mean() - unsteered_b.mean()))


def rank_correlation(x: Sequence[float], y: Sequence[float], seed: int = 0, resamples: int = 2000) -> Estimate:
    """Spearman's correlation over data sets with its 95 % bootstrap interval; nan where one side does not vary.

    A resample in which a side is constant has no correlation, and takes no part.
    """
    from scipy.stats import rankdata

    if len(x) != len(y):
        raise ValueError(f"rank correlation of {len(x)} and {len(y)} values; they must be of the same data sets")
    drawn = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    ranks = [rankdata(np.asarray(side, float)[drawn], axis=1) for side in (x, y)]
    a, b = (r - r.mean(1, keepdims=True) for r in ranks)
    norms = np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))
    known = norms > 0
    low, high = np.quantile((a * b).sum(1)[known] / norms[known], (0.025, 0.975)) if known.any() else (math.nan,) * 2
    return Estimate(spearman(list(x), list(y)), float(low), float(high))


def _check_items(values: np.ndarray) -> None:
    if len(values) < 2:
        raise DataError(f"{len(values)} items: too few to say how they are steered. Expected at least 2. Add items")
    if not np.isfinite(values).all():
        raise DataError("log-odds: not finite. Expected numbers. Lower the strength, or load the model in float32")
