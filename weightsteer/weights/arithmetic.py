"""W + k·w on a stretch of one tensor, rounded once; merge writes what this computes and verify compares with it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from weightsteer.errors import CheckpointError
from weightsteer.models.safetensors_file import TensorInfo
from weightsteer.weights.checkpoint import TORCH_DTYPES
from weightsteer.weights.lanes import CPU, Lane
from weightsteer.weights.lowrank import Change, LowRank
from weightsteer.weights.placement import Placement

# Read, computed and written at once: large enough that Python costs nothing, small enough for several in flight.
CHUNK_BYTES = 4 << 20
# Elements in arithmetic at once on a processor: three float32 matrices of this size fit the level-2 cache.
BLOCK_ELEMENTS = 1 << 17


@dataclass(frozen=True)
class Applied:
    """How much of a change is left once the sum is rounded. Sums over all changed elements; they add up."""

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

    @property
    def share(self) -> float | None:
        """Part of the change that is in the checkpoint: the projection, 1 without rounding; None of no change."""
        return self.along / self.asked if self.asked else None

    @property
    def cosine(self) -> float | None:
        """Between the change asked for and the one in the checkpoint."""
        both = math.sqrt(self.asked * self.kept)
        return self.along / both if both else None

    @property
    def moved_share(self) -> float | None:
        return self.moved / self.elements if self.elements else None


@dataclass(frozen=True)
class Delta:
    """k·w on the rows of one placement: up @ down plus weighted dense parts, in the dtype of the arithmetic."""

    up: Float[Tensor, "rows rank"] | None
    down: Float[Tensor, "rank columns"] | None
    dense: tuple[tuple[float, Float[Tensor, "rows columns"]], ...]

    @classmethod
    def of(
        cls,
        terms: Sequence[tuple[float, Change]],
        at: Placement,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "Delta":
        """The weighted sum of `terms` where `at` cuts it out of the whole parameter."""
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
        # cat copies even a single factor, so that the product always sees aligned memory and is repeatable.
        return cls(torch.cat(ups, dim=1), torch.cat(downs, dim=0), tuple(dense))

    def write(self, rows: slice, out: Float[Tensor, "some columns"]) -> None:
        """Put the change of `rows` into `out`."""
        if self.up is not None and self.down is not None:
            torch.mm(self.up[rows], self.down, out=out)
        else:
            out.zero_()
        for weight, values in self.dense:
            out.add_(values[rows].to(out.device), alpha=weight)


@dataclass(frozen=True)
class Chunk:
    """Bytes `start` to `stop` of a stored tensor's file, and what becomes of them."""

    source: TensorInfo
    start: int
    stop: int
    dtype: str
    """Of the result, as safetensors names it."""
    change: Delta | None = None
    row: int = 0
    """Row of the change that falls on the first row of this chunk."""


def copies(source: TensorInfo, dtype: str) -> Iterator[Chunk]:
    """The chunks of a tensor that no change falls on."""
    for start in range(source.start, source.stop, CHUNK_BYTES):
        yield Chunk(source, start, min(start + CHUNK_BYTES, source.stop), dtype)


def split(source: TensorInfo, dtype: str, at: Placement, change: Delta) -> Iterator[Chunk]:
    """The chunks of the rows at `at` of a tensor, which take `change`."""
    row_bytes = source.size_bytes // max(source.rows, 1)
    step = max(1, CHUNK_BYTES // max(row_bytes, 1))
    for row in range(0, at.rows if row_bytes else 0, step):
        start, stop = (source.start + (at.at + r) * row_bytes for r in (row, min(row + step, at.rows)))
        yield Chunk(source, start, stop, dtype, change, row)


def accumulator(source: str, result: str) -> torch.dtype:
    """The dtype of product and sum: wide enough that the only rounding that counts is the last one."""
    return torch.float64 if result in ("F32", "F64") or source == "F64" else torch.float32


def compute(chunk: Chunk, lane: Lane, measure: bool = True) -> tuple[UInt8[Tensor, " n"], Applied]:
    """The bytes of the merged checkpoint for `chunk`, in a buffer of `lane`, and what rounding left."""
    data = lane.read(chunk.source.file, chunk.start, chunk.stop)
    if chunk.change is None and chunk.dtype == chunk.source.dtype:
        return data, Applied()
    begin = perf_counter()
    result = TORCH_DTYPES[chunk.dtype]
    base = data.view(TORCH_DTYPES[chunk.source.dtype])
    base = base.view(1, -1) if chunk.change is None else base.view(-1, chunk.source.columns)
    out = base if base.dtype == result else lane.buffer("out", base.numel(), result, CPU).view(base.shape)
    applied = Applied()
    if chunk.change is None:
        out.copy_(base)
    else:
        on_cpu = lane.device.type == "cpu"
        step = max(1, BLOCK_ELEMENTS // base.shape[1]) if on_cpu else len(base)
        for row in range(0, len(base), step):
            rows = slice(row, min(row + step, len(base)))
            applied += _add(chunk, base[rows], out[rows], chunk.row + row, lane, measure)
        if not math.isfinite(applied.asked + applied.kept):
            raise CheckpointError(
                f"{chunk.source.file}: {chunk.source.name} is not finite in {chunk.dtype} once k·w is added. "
                "Expected finite base values and a change that fits. Choose a smaller k, or dtype float32"
            )
    lane.compute_s += perf_counter() - begin
    return out.view(-1).view(torch.uint8), applied


def _add(
    chunk: Chunk,
    base: Float[Tensor, "rows columns"],
    out: Float[Tensor, "rows columns"],
    row: int,
    lane: Lane,
    measure: bool,
) -> Applied:
    """out = round(base + change from `row` on); `out` may be `base` itself."""
    wide = accumulator(chunk.source.dtype, chunk.dtype)
    a, b, c = (lane.buffer(n, base.numel(), wide, lane.device).view(base.shape) for n in ("w", "kw", "sum"))
    rounded = out if out.device == c.device else lane.buffer("rounded", out.numel(), out.dtype, c.device)
    rounded = rounded.view(out.shape)
    a.copy_(base.to(lane.device))
    chunk.change.write(slice(row, row + len(base)), b)
    torch.add(a, b, out=c)
    rounded.copy_(c)
    if rounded is not out:
        out.copy_(rounded)
    if not measure:
        return Applied()
    c.copy_(rounded).sub_(a)
    a, b, c = a.view(-1), b.view(-1), c.view(-1)
    asked, kept, along = torch.dot(b, b).item(), torch.dot(c, c).item(), torch.dot(c, b).item()
    # The number of elements that moved, as a dot product of signs: twice as fast as counting them.
    signs = torch.sign(c, out=a)
    return Applied(asked, kept, along, round(torch.dot(signs, signs).item()), c.numel())


def _matrices(tensor: Tensor) -> Float[Tensor, "experts rows columns"]:
    """A parameter or a factor as a stack of matrices."""
    shape = tensor.shape[-2:] if tensor.ndim > 1 else (1, tensor.numel())
    return tensor.reshape(-1, *shape)
