"""Vectors beside one another: all inner products in one pass over the parameters, cosines, and their clusters."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer.errors import AdapterError, report_problems
from weightsteer.weights.lowrank import Change, inner

Changes = Mapping[str, Change]
"""Parameter -> change; each is asked for once, so a mapping may read it from the disk when it is."""


@dataclass(frozen=True)
class CosineMatrix:
    """Cosines of named vectors with one another, and an order in which like stands beside like."""

    names: Sequence[str]
    norms: Sequence[float]
    cosines: Sequence[Sequence[float]]
    order: Sequence[int]
    """Leaves of a hierarchical clustering: average linkage of 1 − cosine, neighbors as near as can be."""

    def cosine(self, one: str, other: str) -> float:
        return self.cosines[self.names.index(one)][self.names.index(other)]

    def among(self, names: Sequence[str]) -> "CosineMatrix":
        """The same cosines of some of the vectors, two or more, their clusters found anew."""
        at = [self.names.index(name) for name in names]
        rows = [[self.cosines[i][j] for j in at] for i in at]
        return CosineMatrix(names, [self.norms[i] for i in at], rows, _cluster(torch.tensor(rows, dtype=torch.float64)))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        rows = [list(row) for row in self.cosines]
        return {"names": list(self.names), "norms": list(self.norms), "cosines": rows, "order": list(self.order)}

    def table(self) -> str:
        """As a table of Markdown, in the order of the clusters."""
        names = [self.names[i] for i in self.order]
        lines = [f"| | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
        for name in names:
            cells = " | ".join(f"{self.cosine(name, other):.3f}".replace("-", "−") for other in names)
            lines.append(f"| {name} | {cells} |")
        return "\n".join(lines)


def cosine_matrix(vectors: Mapping[str, Changes]) -> CosineMatrix:
    """Cosines of vectors and task vectors, each a mapping of parameters to changes (arXiv 2511.05408, Fig. 8, 9).

    A parameter that one of two does not change counts as zero there. An AdapterError names those that are zero.
    """
    names = list(vectors)
    if len(names) < 2:
        raise AdapterError(f"cosine matrix of {len(names)} vectors. Expected two or more")
    products = gram(list(vectors.values()))
    norms = [math.sqrt(max(products[i, i].item(), 0.0)) for i in range(len(names))]
    report_problems(
        AdapterError,
        "cosine matrix",
        [
            f"{name}: is {'zero' if norm == 0 else 'not finite'}, so it has no direction"
            for name, norm in zip(names, norms, strict=True)
            if norm == 0 or not math.isfinite(norm)
        ],
    )
    scale = torch.tensor(norms, dtype=torch.float64)
    cosines = (products / scale / scale[:, None]).clamp(-1, 1)
    cosines.fill_diagonal_(1.0)
    return CosineMatrix(names, norms, cosines.tolist(), _cluster(cosines))


def gram(vectors: Sequence[Changes]) -> Float[Tensor, "n n"]:
    """Inner products of all with all, in float64; only one parameter of them is in memory at a time."""
    products = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for name in dict.fromkeys(name for vector in vectors for name in vector):
        held = [(i, vector[name]) for i, vector in enumerate(vectors) if name in vector]
        shapes = {tuple(change.shape) for _, change in held}
        if len(shapes) > 1:
            told = " and ".join(str(list(shape)) for shape in sorted(shapes))
            raise AdapterError(f"{name}: is {told} in different vectors. Expected vectors of one base")
        for (i, left), (j, right) in _pairs(held):
            products[i, j] += inner(left, right)
    return products + products.T - products.diagonal().diag()


def _pairs(held: Sequence[tuple[int, Change]]) -> Iterator[tuple[tuple[int, Change], tuple[int, Change]]]:
    return ((left, right) for at, left in enumerate(held) for right in held[at:])


def _cluster(cosines: Float[Tensor, "n n"]) -> list[int]:
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distances = (1 - cosines).clamp(min=0)
    distances = (distances + distances.T) / 2
    distances.fill_diagonal_(0.0)
    return leaves_list(linkage(squareform(distances.numpy()), "average", optimal_ordering=True)).tolist()
