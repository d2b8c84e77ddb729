"""How much of a weight vector is needed: entries dropped, ranks, blocks or kinds left out, and what effect is left."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from weightsteer.errors import AdapterError
from weightsteer.stage import digest
from weightsteer.stats import RESAMPLES, Estimate
from weightsteer.weights.lowrank import Change, as_dense
from weightsteer.weights.vector import KINDS, WeightVector, block_of, kind_of

# magnitude: the largest elements of each entry; random: elements drawn by lot, the others' share made up for (DARE);
# rank: the largest singular directions of each factored entry.
Rule = Literal["magnitude", "random", "rank"]


@dataclass(frozen=True)
class Point:
    """What a thinned vector still does."""

    share: float
    """Share of the vector that is kept."""
    effect: Estimate
    retained: Estimate
    """The effect, as a share of the whole vector's."""


def thinned(vector: WeightVector, rule: Rule | str, share: float, seed: int = 0) -> WeightVector:
    """The vector with `share` of each entry kept, 0 < share <= 1, by one of three rules; see `Rule`.

    `rank` keeps so many of the `vector.rank` singular directions, one at least; what is not factored it leaves whole.
    """
    if rule not in get_args(Rule):
        raise AdapterError(f"rule {rule!r}: unknown. Expected one of {', '.join(get_args(Rule))}")
    if not 0 < share <= 1:
        raise AdapterError(f"share = {share}: Expected one above 0 and at most 1")
    if rule == "random":
        return drop_and_rescale(vector, 1 - share, seed)
    if rule == "magnitude":
        return vector.sparsify(share)
    smaller, _ = vector.compress(rank=max(1, round(share * vector.rank)))
    return smaller


def drop_and_rescale(vector: WeightVector, drop: float, seed: int = 0) -> WeightVector:
    """DARE: each element is dropped with probability `drop`, the others divided by 1 − drop; the expectation is exact.

    Draws depend on seed and name of an entry alone. What is left of a product of factors is no such product, so every
    entry comes out dense, in memory of the parameter's size; beside them stands one mask of a byte an element at a
    time. Source: arXiv 2311.03099, section 3.
    """
    if not 0 <= drop < 1:
        raise AdapterError(f"drop = {drop}: Expected a probability of at least 0 and below 1")
    if drop == 0:
        return vector
    entries = {name: _dropped(change, drop, seed, name) for name, change in vector.entries.items()}
    return WeightVector(entries, vector.base, {**vector.info, "dropped": drop, "seed": seed})


def only(
    vector: WeightVector, blocks: Collection[int] | None = None, kinds: Collection[str] | None = None
) -> WeightVector:
    """The part of the vector in these 0-based decoder blocks and of these KINDS of module; None: all of them."""
    parts = {name: (block_of(name), kind_of(name)) for name in vector.entries}
    for what, place, wanted in (("block", 0, blocks), ("kind", 1, kinds)):
        known = sorted({part[place] for part in parts.values()} - {None})
        missing = [each for each in wanted or () if each not in known]
        if missing:
            hint = f" ({', '.join(KINDS)})" if place else ""
            raise AdapterError(f"{vector.name}: has no {what} {missing[0]!r}. Expected some of {known}{hint}")
    names = [
        name
        for name, (block, kind) in parts.items()
        if (blocks is None or block in blocks) and (kinds is None or kind in kinds)
    ]
    if not names:
        raise AdapterError(f"{vector.name}: nothing of it is in blocks {blocks} and of kinds {kinds}. Expected a part")
    return replace(vector, entries={name: vector.entries[name] for name in names})


def share_of_parameters(part: WeightVector, whole: WeightVector) -> float:
    """How many of the parameters that `whole` may change are in the entries of `part`, as a share."""
    return sum(_size(c) for c in part.entries.values()) / sum(_size(c) for c in whole.entries.values())


def effect_curve(
    whole: Any,
    versions: Iterable[tuple[float, Any]],
    effect: Callable[[Any], Sequence[float]],
    *,
    seed: int = 0,
) -> list[Point]:
    """What `effect` is left under each (share kept, thinned vector), in their order; vectors may be of any kind.

    `effect` gives a number per item, steered minus unsteered, the same items in the same order for every vector. Each
    version is drawn from the iterable, measured and dropped before the next.
    """
    full = np.asarray(effect(whole), float)
    points = []
    for share, vector in versions:
        points.append(_point(share, np.asarray(effect(vector), float), full, seed))
        del vector
    return points


def _point(share: float, left: np.ndarray, full: np.ndarray, seed: int) -> Point:
    """Means and their ratio, with 95 % percentile-bootstrap intervals over items resampled jointly."""
    if left.shape != full.shape or len(full) < 2 or not (np.isfinite(left).all() and np.isfinite(full).all()):
        raise AdapterError(
            f"effect: gave {left.size} numbers at share {share:g} and {full.size} for the whole vector. Expected the "
            "same items, two at least, all finite"
        )
    if full.mean() == 0:
        raise AdapterError("effect: the whole vector has none on average, so no share of it is left. Expected one")
    items = np.random.default_rng(seed).integers(len(full), size=(RESAMPLES, len(full)))
    means, wholes = left[items].mean(1), full[items].mean(1)
    # A resample in which the whole vector has no effect has no ratio, and takes no part.
    ratios = means[wholes != 0] / wholes[wholes != 0]
    return Point(share, _estimate(left.mean(), means), _estimate(left.mean() / full.mean(), ratios))


def _estimate(mean: float, resampled: np.ndarray) -> Estimate:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(float(mean), float(low), float(high))


def _dropped(change: Change, drop: float, seed: int, name: str) -> Tensor:
    generator = torch.Generator().manual_seed(int(digest([seed, name])[:12], 16))
    mask = torch.empty(change.shape, dtype=torch.bool).bernoulli_(1 - drop, generator=generator)
    return torch.where(mask, as_dense(change), 0.0).div_(1 - drop)


def _size(change: Change) -> int:
    return int(np.prod(change.shape))
