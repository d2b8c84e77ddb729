"""How far a change of weights points along known directions: cosines and projections, factors never multiplied out."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer.errors import AdapterError, report_problems
from weightsteer.weights.lowrank import LowRank
from weightsteer.weights.vector import KINDS, WeightVector, block_of, kind_of

# Elements of a whole parameter that are in float32 at one time. Smaller blocks would stay in a core's own cache, but
# the threads that share the work would hand the interpreter over so often that two are slower than one. On a GPU as
# many as make a kernel worth starting.
BLOCK_ELEMENTS = 1 << 20
BLOCK_ELEMENTS_GPU = 1 << 24
SHOWN_PROBLEMS = 5


@runtime_checkable
class Read(Protocol):
    """A parameter's values that are read as they are looked at, some rows at a time."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows of the parameter as a matrix, its leading dimensions taken as one; valid until the next are read."""
        ...


@dataclass(frozen=True)
class Moved:
    """A parameter that changed as a whole: its values now, and before; None for zero."""

    after: Tensor | Read
    before: Tensor | Read | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.after.shape)

    @property
    def device(self) -> torch.device:
        return self.after.device if isinstance(self.after, Tensor) else torch.device("cpu")

    def rows(self, start: int, stop: int, buffers: Float[Tensor, "2 most columns"]) -> Float[Tensor, "rows columns"]:
        """The change in some rows of the parameter, its leading dimensions taken as one; it lies in the buffers."""
        after, before = buffers[:, : stop - start]
        after.copy_(_rows(self.after, start, stop))
        # copied too: to subtract another dtype would take new memory for every block, on every thread
        return after if self.before is None else after.sub_(before.copy_(_rows(self.before, start, stop)))


class Along(NamedTuple):
    """A change along a vector, in the whole model or in a part of it."""

    cosine: float | None
    """None where the change or the vector is zero, which has no direction, or a number is not finite."""
    projection: float | None
    """⟨change, vector⟩ / ‖whole vector‖, in units of the weights; those of disjoint parts add up to the whole's."""


@dataclass(frozen=True)
class Reading:
    """A change along one vector."""

    whole: Along
    without_embeddings: Along
    """Over all parameters but embeddings and head."""
    blocks: Mapping[int, Along]
    """By decoder block, 0-based."""
    kinds: Mapping[str, Along]
    """By kind of module: attention, mlp, ..."""


@dataclass(frozen=True)
class Measurement:
    """A change along each of several vectors."""

    norm: float | None
    """‖θ_t − θ_0‖ over all parameters; None when it is not finite."""
    readings: Mapping[str, Reading]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: pairs are [cosine, projection]."""
        return {"norm": self.norm, "vectors": {name: _reading_to_json(r) for name, r in self.readings.items()}}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Measurement":
        """What `to_json` gave."""
        return cls(content["norm"], {name: _reading_from_json(r) for name, r in content["vectors"].items()})


class Directions:
    """Named vectors, ready to be measured against many times.

    Factors are brought to orthogonal form once, in float64: a contrast vector is the difference of two nearly equal
    products, and float32 would lose in that difference what it is to measure.
    """

    def __init__(self, vectors: Mapping[str, WeightVector]):
        problems = [] if vectors else ["no vector is given. Expected one or more"]
        problems += [f"{name}: is zero, so it has no direction" for name, v in vectors.items() if v.norm() == 0]
        bases = {vector.base: name for name, vector in vectors.items() if vector.base is not None}
        if len(bases) > 1:
            told = ", ".join(f"{name} for base {base}" for base, name in bases.items())
            problems.append(f"made for different bases: {told}. Expected vectors of one base")
        report_problems(AdapterError, "vectors to be monitored", problems)
        self.base = next(iter(bases), None)
        self.digests = {name: vector.digest for name, vector in vectors.items()}
        self.vectors = dict(vectors)

    @property
    def names(self) -> list[str]:
        return list(self.vectors)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter that a vector changes."""
        return {name: tuple(c.shape) for vector in self.vectors.values() for name, c in vector.entries.items()}

    def check_fit(self, what: object, shapes: Mapping[str, tuple[int, ...]], base: str | None, any_base: bool) -> None:
        """An AdapterError where changes of `shapes`, made to `base`, cannot be along each of the vectors."""
        problems = []
        for label, vector in self.vectors.items():
            if not any_base and None not in (vector.base, base) and vector.base != base:
                problems.append(
                    f"{label}: was made for base {vector.base}, the run's is {base}. Expected the same; where the run "
                    "starts from a descendant of the vector's base, say so (any_base)"
                )
            shared = [name for name in vector.entries if name in shapes]
            wrong = [name for name in shared if tuple(vector.entries[name].shape) != shapes[name]]
            problems += [
                f"{label}: changes {name} {list(vector.entries[name].shape)}, the run {list(shapes[name])}"
                for name in wrong[:SHOWN_PROBLEMS]
            ]
            if not shared:
                problems.append(
                    f"{label}: has no parameter in common with the run: it changes {_few(vector.entries)}, the run "
                    f"{_few(shapes)}. Expected a vector of the model that is trained"
                )
        report_problems(AdapterError, what, problems)

    def measure(
        self, changes: Iterable[tuple[str, LowRank | Moved]], dtype: torch.dtype = torch.float32
    ) -> Measurement:
        """Where the changes point; only one parameter of them is looked at at a time. See `products`."""
        return self.measurement((name, self.products(name, change, dtype)) for name, change in changes)

    def products(self, name: str, change: LowRank | Moved, dtype: torch.dtype = torch.float32) -> "Products":
        """What the change of one parameter has in common with each vector.

        ⟨B₁A₁, B₂A₂⟩ = tr((B₁ᵀB₂)(A₂A₁ᵀ)), multiplied in `dtype` and added up in float64.
        """
        stack = self._stacks.get(name)
        with torch.no_grad():
            return _of_factors(change, stack, dtype) if isinstance(change, LowRank) else _of_whole(change, stack)

    def measurement(self, products: Iterable[tuple[str, "Products"]]) -> Measurement:
        """What the products of all parameters come to, in the whole model and in its parts."""
        tally = _Tally(self._squares)
        for name, found in products:
            tally.add(name, found)
        return Measurement(_finite(math.sqrt(_sum(p.square for p in tally.products.values()))), tally.readings())

    def prepare(self) -> None:
        """Do now what the first measurement would do."""
        _ = self._stacks, self._squares

    @cached_property
    def _stacks(self) -> dict[str, "_Stack"]:
        return {name: _Stack.of(name, self.vectors) for name in self.shapes}

    @cached_property
    def _squares(self) -> dict[str, dict[str, float]]:
        """Vector -> parameter -> squared norm."""
        return {label: dict(vector._squares) for label, vector in self.vectors.items()}


@dataclass(frozen=True)
class _Stack:
    """What the vectors have for one parameter: all their factors side by side, and what is dense."""

    labels: Sequence[str]
    """Vectors with factors, in the order in which they stand side by side."""
    ranks: Sequence[int]
    up: Tensor | None
    down_t: Tensor | None
    """The second factors transposed, `[..., d_in, ranks]`: what is multiplied by them runs along d_in."""
    dense: Mapping[str, Tensor]

    @classmethod
    def of(cls, name: str, vectors: Mapping[str, WeightVector]) -> "_Stack":
        held = {label: vector.entries[name] for label, vector in vectors.items() if name in vector.entries}
        factored = {label: c.compress(energy=1.0)[0] for label, c in held.items() if isinstance(c, LowRank)}
        ups, downs = [c.up for c in factored.values()], [c.down for c in factored.values()]
        return cls(
            list(factored),
            [c.rank for c in factored.values()],
            torch.cat(ups, dim=-1) if ups else None,
            torch.cat(downs, dim=-2).mT.contiguous() if downs else None,
            {label: c for label, c in held.items() if not isinstance(c, LowRank)},
        )

    def split(self, columns: Tensor) -> dict[str, float]:
        """Sum over the columns of each vector; they are in float64."""
        rest = iter(columns.tolist())
        return {label: math.fsum(islice(rest, rank)) for label, rank in zip(self.labels, self.ranks, strict=True)}


class Products(NamedTuple):
    """Of one parameter: ‖change‖² and ⟨change, vector⟩."""

    square: float
    inner: dict[str, float]


def _of_factors(change: LowRank, stack: _Stack | None, dtype: torch.dtype) -> Products:
    up, down = change.up.to(dtype), change.down.to(dtype)
    square = ((up.mT @ up) * (down @ down.mT)).sum(dtype=torch.float64).item()
    inner: dict[str, float] = {}
    if stack is not None and stack.up is not None and stack.down_t is not None:
        left, right = up.mT @ stack.up.to(up), down @ stack.down_t.to(down)
        inner |= stack.split((left * right).reshape(-1, left.shape[-1]).sum(0, dtype=torch.float64))
    for label, dense in stack.dense.items() if stack is not None else ():  # ⟨D, UV⟩ = ⟨DVᵀ, U⟩
        inner[label] = ((dense.to(down) @ down.mT).double() * up.double()).sum().item()
    return Products(max(square, 0.0), inner)  # rounding can leave a change of zero slightly below zero


def _of_whole(change: Moved, stack: _Stack | None) -> Products:
    """Block of rows by block of rows, so that nothing of the parameter's size is in float32."""
    total, width = math.prod(change.shape[:-1]), math.prod(change.shape[-1:])
    experts, device = math.prod(change.shape[:-2]), change.device
    step = max(1, (BLOCK_ELEMENTS if device.type == "cpu" else BLOCK_ELEMENTS_GPU) // max(width, 1))
    buffers = torch.empty(2, min(step, total), width, device=device)
    dense = stack.dense if stack is not None else {}
    square, inner = 0.0, dict.fromkeys(dense, 0.0)
    columns = torch.zeros(sum(stack.ranks) if stack is not None else 0, dtype=torch.float64, device=device)
    for expert in range(experts):
        last = (expert + 1) * (total // experts)
        for start in range(expert * (total // experts), last, step):
            stop = min(start + step, last)
            moved = change.rows(start, stop, buffers)
            # rows in float32, their sum in float64: a million that are alike would be off by one part in 15,000
            square += torch.linalg.vector_norm(moved, dim=-1).double().square().sum().item()
            for label, values in dense.items():
                along = torch.linalg.vecdot(moved, _as_matrix(values)[start:stop].to(moved))
                inner[label] += along.sum(dtype=torch.float64).item()
            if stack is not None and stack.up is not None and stack.down_t is not None:
                down_t = (stack.down_t[expert] if stack.down_t.ndim == 3 else stack.down_t).to(moved)
                columns += ((moved @ down_t) * _as_matrix(stack.up)[start:stop].to(moved)).sum(0, dtype=torch.float64)
    return Products(square, {**inner, **(stack.split(columns) if stack is not None and stack.ranks else {})})


class _Tally:
    """Products by parameter, and what they come to in the parts of the model."""

    def __init__(self, vector_squares: Mapping[str, Mapping[str, float]]):
        self.vector_squares = vector_squares
        self.products: dict[str, Products] = {}

    def add(self, name: str, products: Products) -> None:
        if name in self.products:
            raise AdapterError(f"{name}: stands twice among the changes. Expected each parameter once")
        self.products[name] = products

    def readings(self) -> dict[str, Reading]:
        return {label: self._reading(label) for label in self.vector_squares}

    def _reading(self, label: str) -> Reading:
        names = {*self.products, *self.vector_squares[label]}
        blocks, kinds = _grouped(names, _block_of), _grouped(names, _kind_of)
        inside = [name for kind, group in kinds.items() if kind != "embeddings and head" for name in group]
        return Reading(
            self._along(label, names),
            self._along(label, inside),
            {block: self._along(label, blocks[block]) for block in sorted(b for b in blocks if b is not None)},
            {kind: self._along(label, kinds[kind]) for kind in KINDS if kind in kinds},
        )

    def _along(self, label: str, names: Collection[str]) -> Along:
        changed = [self.products[name] for name in names if name in self.products]
        squares = self.vector_squares[label]
        inner = _sum(products.inner.get(label, 0.0) for products in changed)
        lengths = _sum(p.square for p in changed), _sum(squares.get(name, 0.0) for name in names)
        cosine = inner / math.sqrt(lengths[0] * lengths[1]) if all(lengths) else math.nan
        projection = inner / math.sqrt(_sum(squares.values()))
        return Along(None if math.isnan(cosine) else max(-1.0, min(1.0, cosine)), _finite(projection))


def _rows(values: Tensor | Read, start: int, stop: int) -> Tensor:
    return _as_matrix(values)[start:stop] if isinstance(values, Tensor) else values.rows(start, stop)


def _as_matrix(values: Tensor) -> Tensor:
    return values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values.reshape(1, -1)


# A name's place does not change from one measurement to the next.
_block_of, _kind_of = cache(block_of), cache(kind_of)


def _grouped(names: Iterable[str], group: Callable[[str], Any]) -> dict[Any, list[str]]:
    groups: dict[Any, list[str]] = {}
    for name in names:
        groups.setdefault(group(name), []).append(name)
    return groups


def _sum(values: Iterable[float]) -> float:
    """fsum that takes infinities of both signs for what they make: no number."""
    values = list(values)
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "") if names else "nothing"


def _reading_to_json(reading: Reading) -> dict[str, Any]:
    return {
        "cosine": reading.whole.cosine,
        "projection": reading.whole.projection,
        "without_embeddings": list(reading.without_embeddings),
        "blocks": {str(block): list(along) for block, along in reading.blocks.items()},
        "kinds": {kind: list(along) for kind, along in reading.kinds.items()},
    }


def _reading_from_json(content: Mapping[str, Any]) -> Reading:
    return Reading(
        Along(content["cosine"], content["projection"]),
        Along(*content["without_embeddings"]),
        {int(block): Along(*along) for block, along in content["blocks"].items()},
        {kind: Along(*along) for kind, along in content["kinds"].items()},
    )
