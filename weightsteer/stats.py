"""Intervals over items: bootstrap means, paired differences, rank correlation (thin over numpy and scipy)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % percentile-bootstrap interval over items."""

    mean: float
    low: float
    high: float


def weighted_mean(values: Sequence[float], weights: Sequence[float] | None = None, *, seed: int = 0) -> Estimate:
    """Mean of `values` (each counted `weights` times, default once) and its interval over resampled items.

    A mean of nothing is a ValueError: it is not zero. One item is as bad: it would look certain.
    """
    return _bootstrap([(np.asarray(values, float), _weights(values, weights))], seed)


def paired_difference(
    treated: Sequence[float],
    control: Sequence[float],
    weights: tuple[Sequence[float], Sequence[float]] | None = None,
    *,
    seed: int = 0,
) -> Estimate:
    """Mean(treated) - mean(control) over the same items in the same order, resampled together.

    `weights` are those of the treated and of the control items: an item may count on one side only (a question that
    only the unsteered model answers rightly), so the difference is one of two ratios, not a mean of differences.
    """
    if len(treated) != len(control):
        raise ValueError(f"paired difference of {len(treated)} and {len(control)} items; they must be the same items")
    w_treated, w_control = weights or (None, None)
    return _bootstrap(
        [
            (np.asarray(treated, float), _weights(treated, w_treated)),
            (np.asarray(control, float), _weights(control, w_control)),
        ],
        seed,
    )


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation of two equally long sequences; nan when one of them is constant."""
    if len(x) < 2 or len(set(x)) == 1 or len(set(y)) == 1:
        return math.nan
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)


def _weights(values: Sequence[float], weights: Sequence[float] | None) -> np.ndarray:
    return np.ones(len(values)) if weights is None else np.asarray(weights, float)


def _bootstrap(sides: list[tuple[np.ndarray, np.ndarray]], seed: int) -> Estimate:
    """First side's weighted mean, less the second's where there is one, over items resampled jointly."""
    if any(np.count_nonzero(weights) < 2 for _, weights in sides):
        raise ValueError("fewer than two scored items: neither a mean nor an interval can be given")
    n = len(sides[0][0])
    resamples = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    # A resample in which no item counts has no mean, and takes no part.
    with np.errstate(invalid="ignore"):
        resampled = _contrast(sides, resamples)
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    return Estimate(float(_contrast(sides, np.arange(n)[None])[0]), float(low), float(high))


def _contrast(sides: list[tuple[np.ndarray, np.ndarray]], items: np.ndarray) -> np.ndarray:
    means = [(values * weights)[items].sum(-1) / weights[items].sum(-1) for values, weights in sides]
    return means[0] if len(means) == 1 else means[0] - means[1]
