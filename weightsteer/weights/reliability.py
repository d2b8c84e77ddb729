"""Is a weight vector one thing? Its agreement across seeds and data halves, and its steering part by part.

The questions that arXiv 2505.22637 and 2407.12404 ask of activation vectors. Cosines are taken between factors, so no
parameter is formed.
"""

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weightsteer.errors import AdapterError
from weightsteer.steerability import Steerability, propensity_curves, steerability
from weightsteer.weights.vector import KINDS, WeightVector, block_of, kind_of


@dataclass(frozen=True)
class Agreement:
    """Cosines between weight vectors, averaged over all pairs of them; 1 is the same direction.

    A part that no pair of vectors both change is not in it.
    """

    vectors: int
    whole: float
    by_block: Mapping[int, float]
    by_kind: Mapping[str, float]
    pairs: Mapping[str, float]
    """"NAME, NAME" -> cosine of the two over all parameters."""


def vector_agreement(vectors: Mapping[str, WeightVector]) -> Agreement:
    """How far vectors of one behavior agree that were made from other seeds or other halves of the data.

    An AdapterError for fewer than two, for one that is zero, and for vectors of two bases.
    """
    if len(vectors) < 2:
        raise AdapterError(f"agreement of {len(vectors)} vectors: expected two or more, of other seeds or data halves")
    pairs = list(itertools.combinations(vectors, 2))
    cosines = {f"{a}, {b}": vectors[a].cosine(vectors[b]) for a, b in pairs}
    blocks, kinds = ({name: group(v) for name, v in vectors.items()} for group in (blocks_of, kinds_of))
    return Agreement(
        len(vectors),
        sum(cosines.values()) / len(cosines),
        _mean_cosines(blocks, pairs),
        _mean_cosines(kinds, pairs),
        cosines,
    )


def blocks_of(vector: WeightVector) -> dict[int, WeightVector]:
    """Decoder block (0-based) -> the vector's change there alone; what lies outside of the blocks is in none."""
    parts = _parts(vector, block_of)
    return {block: parts[block] for block in sorted(b for b in parts if b is not None)}


def kinds_of(vector: WeightVector) -> dict[str, WeightVector]:
    """Kind of module (attention, mlp, ...) -> the vector's change there alone."""
    parts = _parts(vector, kind_of)
    return {kind: parts[kind] for kind in KINDS if kind in parts}


def steerability_of_parts(
    lm: Any,
    parts: Mapping[Any, WeightVector],
    strengths: Sequence[float],
    log_odds: Callable[[Any], Sequence[float]],
    seed: int = 0,
) -> dict[Any, Steerability]:
    """Slope and anti-steerable share of every part of a vector, each applied alone; see `propensity_curves`."""
    return {
        name: steerability(propensity_curves(lm, part, strengths, log_odds), strengths, seed)
        for name, part in parts.items()
    }


def _parts(vector: WeightVector, group: Callable[[str], Hashable]) -> dict[Any, WeightVector]:
    names: dict[Hashable, list[str]] = {}
    for name in vector.entries:
        names.setdefault(group(name), []).append(name)
    return {key: replace(vector, entries={name: vector.entries[name] for name in own}) for key, own in names.items()}


def _mean_cosines(
    parts: Mapping[str, Mapping[Any, WeightVector]], pairs: Sequence[tuple[str, str]]
) -> dict[Any, float]:
    found: dict[Any, list[float]] = {}
    for a, b in pairs:
        for key, part in parts[a].items():
            other = parts[b].get(key)
            if other is not None and part.norm() and other.norm():
                found.setdefault(key, []).append(part.cosine(other))
    return {key: sum(cosines) / len(cosines) for key, cosines in found.items()}
