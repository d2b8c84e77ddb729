"""Intervals and tests over items: bootstrap means, paired differences and their p-values, rank correlation."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
# Random swaps of a paired test; where fewer swaps than these are all there are, each is counted once.
SWAPS = 10_000


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


def paired_test(
    treated: Sequence[float],
    control: Sequence[float],
    weights: tuple[Sequence[float], Sequence[float]] | None = None,
    *,
    seed: int = 0,
) -> float:
    """Two-sided p-value of `paired_difference`: were the sides alike, how often would they differ by as much?

    A permutation test: each item's two sides, value and weight together, are swapped or not, which without weights is
    a flip of the sign of its difference. Exact while all swaps can be counted (13 items that differ), else 10,000
    random ones, the given one among them, so that no p-value is zero. Swaps that leave a side without an item have no
    difference and take no part.
    """
    if len(treated) != len(control):
        raise ValueError(f"paired test of {len(treated)} and {len(control)} items; they must be the same items")
    w_treated, w_control = weights or (None, None)
    sides = np.array([_sums(treated, w_treated), _sums(control, w_control)])
    if (np.count_nonzero(sides[:, 1], axis=1) < 2).any():
        raise ValueError("fewer than two scored items: nothing can be tested")
    turned = (sides[1] - sides[0]).T  # what swapping an item adds to the treated side and takes from the control
    turned = turned[turned.any(axis=1)]  # an item that is alike on both sides changes nothing
    treated_sums, total = sides[0].sum(-1), sides.sum((0, 2))
    apart = _apart(treated_sums[None], total).item()
    found = np.concatenate([_apart(treated_sums + swaps @ turned, total) for swaps in _swaps(len(turned), seed)])
    found = found[~np.isnan(found)]
    return float(np.mean(found >= apart * (1 - 1e-9)))  # sums in another order differ in their last digits


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in the same order (Holm 1979).

    The smallest is multiplied by their number, the next by one less, and so on; none falls below a smaller one's, none
    exceeds 1. Those below 0.05 then hold a wrong one with a probability of at most 0.05, however they hang together.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values {list(p_values)}: expected numbers from 0 to 1")
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation of two equally long sequences; nan when one of them is constant."""
    if len(x) < 2 or len(set(x)) == 1 or len(set(y)) == 1:
        return math.nan
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)


def _weights(values: Sequence[float], weights: Sequence[float] | None) -> np.ndarray:
    return np.ones(len(values)) if weights is None else np.asarray(weights, float)


def _sums(values: Sequence[float], weights: Sequence[float] | None) -> list[np.ndarray]:
    """Of each item: its weighted value, its weight."""
    counted = _weights(values, weights)
    return [np.asarray(values, float) * counted, counted]


def _apart(treated: np.ndarray, total: np.ndarray) -> np.ndarray:
    """How far the means of the two sides are apart, from (sum, weight) of the treated side and of both together."""
    with np.errstate(invalid="ignore", divide="ignore"):
        control = total - treated
        return np.abs(treated[..., 0] / treated[..., 1] - control[..., 0] / control[..., 1])


def _swaps(n: int, seed: int) -> Iterator[np.ndarray]:
    """Which of `n` items are swapped, a row a way, in blocks that fit in memory: all ways, or random ones and none."""
    if 2**n <= SWAPS:
        yield (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return
    yield np.zeros((1, n))
    rng = np.random.default_rng(seed)
    for start in range(1, SWAPS, 500):
        yield rng.integers(2, size=(min(500, SWAPS - start), n))


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
