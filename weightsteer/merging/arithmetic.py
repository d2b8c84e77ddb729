"""W + k·w on a stretch of one tensor, rounded once; merge writes what this computes and verify compares with it."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from weightsteer.errors import CheckpointError
from weightsteer.merging.lanes import CPU, Lane
from weightsteer.models.safetensors_file import DTYPE_BITS, TensorInfo
from weightsteer.weights.checkpoint import TORCH_DTYPES
from weightsteer.weights.lowrank import Change, LowRank
from weightsteer.weights.placement import Placement

# Read, computed, written and hashed at once: large enough that Python costs little, small enough to stay in caches.
CHUNK_BYTES = 4 << 20
# Elements in arithmetic at once on a processor: the float32 sum and what it comes from fit the level-2 cache.
BLOCK_ELEMENTS = 192 << 10
# Of a change in factors, what rounding left is measured on one row in so many, for the factors spread it over all rows;
# of a tensor up to this size on all of them.
SAMPLE = 16
SMALL_BYTES = 1 << 20
# ‖change‖² beside ‖base‖² from which float32 is too narrow for bfloat16: at a quarter of the weights' own size, the
# error of a product of rank 64 misrounds one element in 20,000. Judged by the measured rows of each stretch.
LARGE = 1 / 16


@dataclass(frozen=True)
class Applied:
    """How much of a change is left once the sum is rounded: sums over the elements measured, which add up."""

    asked: float = 0.0
    """‖k·w‖²."""
    kept: float = 0.0
    """‖stored − W‖²."""
    along: float = 0.0
    """⟨stored − W, k·w⟩."""
    moved: int = 0
    """Elements whose stored value differs from the base."""
    elements: int = 0

    def __add__(self, other: "Applied") -> "Applied":
        return Applied(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def summary(self) -> dict[str, float | int | None]:
        """What a person wants to know; None where there is no change to speak of.

        share: the part of the change that is in the checkpoint (its projection), 1 without rounding. cosine: between
        the change asked for and the one in the checkpoint. moved: share of the elements with another value. measured:
        number of elements these are taken from.
        """
        both = math.sqrt(self.asked * self.kept)
        return {
            "share": self.along / self.asked if self.asked else None,
            "cosine": self.along / both if both else None,
            "moved": self.moved / self.elements if self.elements else None,
            "measured": self.elements,
        }


@dataclass(frozen=True)
class Delta:
    """k·w on the rows of one placement: up @ down plus weighted dense parts, in the dtype of the arithmetic."""

    up: Float[Tensor, "rows rank"] | None
    down: Float[Tensor, "rank columns"] | None
    dense: tuple[tuple[float, Float[Tensor, "rows columns"]], ...]

    @classmethod
    def of(
        cls, terms: Sequence[tuple[float, Change]], at: Placement, dtype: torch.dtype, device: torch.device = CPU
    ) -> "Delta":
        """The weighted sum of `terms` where `at` cuts it out of the whole parameter; dense parts stay as they are."""
        rows = slice(at.first, at.first + at.rows)
        ups, downs, dense = [], [], []
        for weight, entry in terms:
            if isinstance(entry, LowRank):
                ups.append(_matrices(entry.up)[at.expert, rows].to(device, dtype) * weight)
                downs.append(_matrices(entry.down)[at.expert].to(device, dtype))
            else:
                dense.append((weight, _matrices(entry)[at.expert, rows]))
        if not ups:
            return cls(None, None, tuple(dense))
        # cat copies even a single factor: the product sees it at the same alignment each time, and is repeatable.
        return cls(torch.cat(ups, dim=1), torch.cat(downs, dim=0), tuple(dense))

    def rows(self, some: slice) -> "Delta":
        """This change on some of its rows."""
        return Delta(
            None if self.up is None else self.up[some],
            self.down,
            tuple((weight, values[some]) for weight, values in self.dense),
        )

    def on(self, device: torch.device) -> "Delta":
        """This change with its dense parts on `device` too."""
        return Delta(self.up, self.down, tuple((weight, values.to(device)) for weight, values in self.dense))

    def exact(self) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "rows columns"]]:
        """The change, of factors in float64, and the sum of the magnitudes of which it is made."""
        change = magnitude = torch.zeros(1, 1, dtype=torch.float64)
        if self.up is not None and self.down is not None:
            change, magnitude = self.up @ self.down, self.up.abs() @ self.down.abs()
        for weight, values in self.dense:
            part = weight * values.double()
            change, magnitude = change + part, magnitude + part.abs()
        return change, magnitude

    def blocks(self, rows: int) -> Iterator["Delta"]:
        """This change, so many rows at a time."""
        ups = self.up.split(rows) if self.up is not None else itertools.repeat(None)
        dense = zip(*([(weight, part) for part in values.split(rows)] for weight, values in self.dense), strict=True)
        for up, parts in zip(ups, dense if self.dense else itertools.repeat(()), strict=False):
            yield Delta(up, self.down, parts)

    def write(self, out: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Put the change into `out`, which is returned."""
        if self.up is not None and self.down is not None:
            torch.mm(self.up, self.down, out=out)
        else:
            out.zero_()
        for weight, values in self.dense:
            out.add_(values, alpha=weight)
        return out

    def add_to(self, values: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """`values`, to which the change is added in place: one pass where it is a product and nothing else."""
        if self.up is None or self.down is None or self.dense:
            return values.add_(self.write(torch.empty_like(values)))
        return values.addmm_(self.up, self.down)


class Sum:
    """The weighted sum of changes at one placement, put together once for all the chunks that it falls on."""

    def __init__(self, terms: Sequence[tuple[float, Change]], at: Placement) -> None:
        self._terms, self._at = tuple(terms), at
        self._deltas: dict[tuple[torch.dtype, torch.device], Delta] = {}

    @property
    def spreads(self) -> bool:
        """Whether it falls on every row alike. Dense changes and the factors of an embedding may spare some."""
        return all(isinstance(entry, LowRank) and entry.layout != "embedding" for _, entry in self._terms)

    def delta(self, dtype: torch.dtype, device: torch.device = CPU) -> Delta:
        """The change on all rows of the placement."""
        if (dtype, device) not in self._deltas:  # two threads may both make it: the very same
            self._deltas[dtype, device] = Delta.of(self._terms, self._at, dtype, device)
        return self._deltas[dtype, device]


@dataclass(frozen=True)
class Chunk:
    """Bytes `start` to `stop` of a stored tensor's file, and what becomes of them."""

    source: TensorInfo
    start: int
    stop: int
    dtype: str
    """Of the result, as safetensors names it."""
    sum: Sum | None = None
    """What is added, of which these bytes take `rows` rows from `first` on. None: copied."""
    first: int = 0
    rows: int = 0

    def change(self, dtype: torch.dtype, device: torch.device = CPU) -> Delta:
        """What is added to these bytes."""
        assert self.sum is not None
        return self.sum.delta(dtype, device).rows(slice(self.first, self.first + self.rows)).on(device)

    @property
    def columns(self) -> int:
        """Of the matrix that a change is added to; bytes without a change may be cut anywhere."""
        return self.source.columns if self.sum else 1

    @property
    def size_bytes(self) -> int:
        """Of the result."""
        return (self.stop - self.start) * DTYPE_BITS[self.dtype] // DTYPE_BITS[self.source.dtype]


def copies(source: TensorInfo, dtype: str) -> Iterator[Chunk]:
    """The chunks of a tensor that no change falls on."""
    for start in range(source.start, source.stop, CHUNK_BYTES):
        yield Chunk(source, start, min(start + CHUNK_BYTES, source.stop), dtype)


def split(source: TensorInfo, dtype: str, terms: Sequence[tuple[float, Change]], at: Placement) -> Iterator[Chunk]:
    """The chunks of the rows at `at` of a tensor, which take the weighted sum of `terms`."""
    row_bytes = source.size_bytes // max(source.rows, 1)
    step = max(1, CHUNK_BYTES // max(row_bytes, 1))
    change = Sum(terms, at) if terms else None
    for row in range(0, at.rows if row_bytes else 0, step):
        rows = min(step, at.rows - row)
        start = source.start + (at.at + row) * row_bytes
        yield Chunk(source, start, start + rows * row_bytes, dtype, change, row, rows)


def accumulator(source: str, result: str) -> torch.dtype:
    """The dtype of product and sum: so wide that 9,999 of 10,000 elements come out as the exact sum rounded once.

    For bfloat16, float32 does it, as long as the change is not LARGE.
    """
    return torch.float32 if result == "BF16" and source != "F64" else torch.float64


def compute(chunk: Chunk, lane: Lane) -> tuple[UInt8[Tensor, " n"], Applied]:
    """The bytes of the merged checkpoint for `chunk`, in a buffer of `lane`, and what rounding left."""
    data = lane.read(chunk.source.file, chunk.start, chunk.stop)
    if not chunk.sum and chunk.dtype == chunk.source.dtype:
        return data, Applied()
    begin = perf_counter()
    result = TORCH_DTYPES[chunk.dtype]
    base = data.view(TORCH_DTYPES[chunk.source.dtype]).view(-1, chunk.columns)
    out = base if base.dtype == result else lane.buffer("out", base.numel(), result, CPU).view(base.shape)
    applied = Applied()
    if chunk.sum:
        applied = _add(chunk, base, out, lane)
    else:
        out.copy_(base)
    lane.compute_s += perf_counter() - begin
    return out.view(-1).view(torch.uint8), applied


def bounds(chunk: Chunk, lane: Lane) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The least and the greatest value that each element may have, wherever it was computed.

    The exact sum is known to float64; whoever computed in the accumulator's precision is off by an error of at most
    so many roundings of its summands, and rounds a value on either side of the exact one.
    """
    source, result = TORCH_DTYPES[chunk.source.dtype], TORCH_DTYPES[chunk.dtype]
    base = lane.read(chunk.source.file, chunk.start, chunk.stop, "base again").view(source).double()
    base = base.view(-1, chunk.source.columns)
    delta = chunk.change(torch.float64)
    change, magnitude = delta.exact()
    rank = 0 if delta.down is None else len(delta.down)
    roundings = rank + len(delta.dense) + 4
    error = roundings * torch.finfo(accumulator(chunk.source.dtype, chunk.dtype)).eps * (base.abs() + magnitude)
    low, high = (base + change - error).to(result), (base + change + error).to(result)
    return low.flatten(), high.flatten()


def _add(chunk: Chunk, base: Float[Tensor, "rows columns"], out: Float[Tensor, "rows columns"], lane: Lane) -> Applied:
    """out = round(base + change), block by block; `out` may be `base` itself."""
    weights = base.to(lane.device)
    result = out if lane.device == CPU else torch.empty_like(weights, dtype=out.dtype)
    rows, columns = weights.shape
    every = _measured_one_in(chunk)
    block = max(1, BLOCK_ELEMENTS // columns) if lane.device == CPU else rows
    applied = Applied()
    for start in range(0, rows, block * every):  # as many rows as have one block of measured ones among them
        part = slice(start, start + block * every)
        measured = slice(-(chunk.first + start) % every, None, every)
        applied += _add_rows(chunk, part, measured, weights[part], result[part], block, lane)
    if result.dtype == torch.float16 and not torch.isfinite(result).all():
        raise CheckpointError(
            f"{chunk.source.file}: {chunk.source.name} is not finite in {chunk.dtype} once k·w is added. Expected "
            "numbers below 65,520. Choose a smaller k, or dtype float32"
        )
    if result is not out:
        out.copy_(result)
    return applied


def _add_rows(
    chunk: Chunk,
    part: slice,
    measured: slice,
    weights: Float[Tensor, "rows columns"],
    result: Float[Tensor, "rows columns"],
    block: int,
    lane: Lane,
) -> Applied:
    """Those of a chunk's rows that are its `part`, so many at once."""
    wide = accumulator(chunk.source.dtype, chunk.dtype)
    change = chunk.change(wide, lane.device).rows(part)
    some = weights[measured]
    before, asked, kept = (
        lane.buffer((use, wide), some.numel(), wide, lane.device).view(some.shape)
        for use in ("before", "asked", "kept")
    )
    before.copy_(some)
    change.rows(measured).write(asked)
    is_large = not len(some) or _dot(asked, asked) > LARGE * _dot(before, before)  # perhaps, where none was measured
    if wide == torch.float32 and is_large:
        wide = torch.float64
        change = chunk.change(wide, lane.device).rows(part)
    size = min(block, len(weights))
    scratch = lane.buffer(("sum", wide), size * weights.shape[1], wide, lane.device).view(size, -1)
    for values, target, delta in zip(weights.split(size), result.split(size), change.blocks(size), strict=True):
        target.copy_(delta.add_to(scratch[: len(values)].copy_(values)))
    return _measure(asked, kept.copy_(result[measured]).sub_(before))


def _measured_one_in(chunk: Chunk) -> int:
    """Measured is one row in so many, counted from the first one of the sum, however its rows are cut into chunks."""
    assert chunk.sum is not None
    return SAMPLE if chunk.sum.spreads and chunk.source.size_bytes > SMALL_BYTES else 1


def _measure(asked: Float[Tensor, "rows columns"], kept: Float[Tensor, "rows columns"]) -> Applied:
    sums = _dot(asked, asked), _dot(kept, kept), _dot(kept, asked)
    moved = kept.sign_()  # counted as a dot product of signs: twice as fast as counting
    return Applied(*sums, round(_dot(moved, moved)), kept.numel())


def _dot(left: Tensor, right: Tensor) -> float:
    return torch.dot(left.view(-1), right.view(-1)).item()


def _matrices(tensor: Tensor) -> Float[Tensor, "experts rows columns"]:
    """A parameter or a factor as a stack of matrices."""
    shape = tensor.shape[-2:] if tensor.ndim > 1 else (1, tensor.numel())
    return tensor.reshape(-1, *shape)
