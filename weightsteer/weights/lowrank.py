"""The change of one stored parameter: two factors whose product only `dense` forms, or a dense tensor."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer.errors import AdapterError

# How the owning module holds the parameter, on which PEFT's file format depends. The factors are always in
# the orientation of the stored parameter.
#   linear                weight [d_out, d_in] of nn.Linear
#   conv1d                weight [d_in, d_out] of transformers' Conv1D (GPT-2)
#   embedding             weight [n_tokens, d_model] of nn.Embedding
#   parameter             any other parameter, [d_out, d_in] or [experts, d_out, d_in]
#   parameter_transposed  fused experts stored [experts, d_in, d_out] (gpt-oss)
Layout = Literal["linear", "conv1d", "embedding", "parameter", "parameter_transposed"]


@dataclass(frozen=True, eq=False)
class LowRank:
    """delta = up @ down, all scaling folded in; leading dimensions (experts) are independent changes."""

    up: Float[Tensor, "*experts d_out rank"]
    down: Float[Tensor, "*experts rank d_in"]
    layout: Layout = "linear"

    def __post_init__(self) -> None:
        if self.up.ndim > 2 and self.layout == "linear":
            object.__setattr__(self, "layout", "parameter")  # no module of its own holds fused experts

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter that is changed."""
        return (*self.up.shape[:-1], self.down.shape[-1])

    @property
    def rank(self) -> int:
        """Width of the factors; the rank of the product is at most this."""
        return self.up.shape[-1]

    @property
    def n_outputs(self) -> int:
        """Outputs of the layer that owns the parameter."""
        return self.shape[-2] if self.layout in ("linear", "parameter") else self.shape[-1]

    def dense(self) -> Float[Tensor, "*experts d_out d_in"]:
        """The product, in the dtype of the factors."""
        return self.up @ self.down

    def __add__(self, other: "LowRank") -> "LowRank":
        """The sum, exact: the factors side by side. Ranks add up."""
        self._check_same_parameter(other)
        return replace(self, up=torch.cat([self.up, other.up], dim=-1), down=torch.cat([self.down, other.down], dim=-2))

    def __sub__(self, other: "LowRank") -> "LowRank":
        return self + -other

    def __neg__(self) -> "LowRank":
        return replace(self, up=-self.up)

    def __mul__(self, factor: float | int) -> "LowRank":
        return replace(self, up=self.up * factor)

    __rmul__ = __mul__

    def inner(self, other: "LowRank") -> float:
        """Sum of the elementwise products of the two changes: tr((B₁ᵀB₂)(A₂A₁ᵀ)), in float64."""
        self._check_same_parameter(other)
        left = self.up.double().mT @ other.up.double()
        right = self.down.double() @ other.down.double().mT
        return (left * right).sum().item()

    def norm(self) -> float:
        """Frobenius norm over all experts together."""
        return max(self.inner(self), 0.0) ** 0.5  # rounding can leave a change of zero slightly below zero

    def compress(self, rank: int | None = None, energy: float | None = None) -> tuple["LowRank", float]:
        """The nearest change of lower rank, and the share of the squared norm it retains.

        Either to at most `rank` columns, or to the fewest that retain `energy` (0 < energy <= 1) of the
        squared norm; experts share one rank. QR of both factors and SVD of the core between them, in float64.
        """
        _check_compression(rank, energy)
        if rank is not None and rank >= self.rank:
            return self, 1.0
        q_up, r_up = torch.linalg.qr(self.up.double())
        q_down, r_down = torch.linalg.qr(self.down.double().mT)
        u, s, vh = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
        squared = s.square().reshape(-1, s.shape[-1]).sum(0)
        total = squared.sum().item()
        retained = squared.cumsum(0) / total if total else torch.ones_like(squared)
        if energy is not None:
            # cumsum can end a rounding error below 1, where energy=1 would find nothing
            rank = int((retained < min(energy, retained[-1].item())).sum().item()) + 1
        rank = min(rank or 1, len(retained))
        root = s[..., :rank].sqrt()  # half to each factor keeps both in the range of half precision
        up = (q_up @ u[..., :rank]) * root.unsqueeze(-2)
        down = root.unsqueeze(-1) * (vh[..., :rank, :] @ q_down.mT)
        smaller = replace(self, up=up.to(self.up.dtype), down=down.to(self.down.dtype))
        return smaller, retained[rank - 1].item()

    def _check_same_parameter(self, other: "LowRank") -> None:
        if self.shape != other.shape or self.layout != other.layout:
            raise AdapterError(
                f"two changes of one parameter do not fit: {list(self.shape)} ({self.layout}) and "
                f"{list(other.shape)} ({other.layout}). Expected equal ones: combine vectors of one base only"
            )


Change = LowRank | Tensor

# Elements of a dense change that are in float64 at one time.
BLOCK_ELEMENTS = 1 << 22


def as_dense(change: Change) -> Tensor:
    """A change as a tensor in the parameter's shape."""
    return change.dense() if isinstance(change, LowRank) else change


def add(left: Change, right: Change) -> Change:
    """The sum of two changes of one parameter; dense where one of them is."""
    if isinstance(left, LowRank) and isinstance(right, LowRank):
        return left + right
    if left.shape != right.shape:
        raise AdapterError(
            f"two changes of one parameter do not fit: {list(left.shape)} and {list(right.shape)}. Expected "
            "equal ones: combine vectors of one base only"
        )
    return as_dense(left) + as_dense(right)


def inner(left: Change, right: Change) -> float:
    """Sum of the elementwise products of two changes of one parameter, in float64."""
    if isinstance(left, LowRank):
        return left.inner(right) if isinstance(right, LowRank) else inner(right, left)
    if left.shape != right.shape:
        raise AdapterError(f"no inner product of changes shaped {list(left.shape)} and {list(right.shape)}")
    if isinstance(right, LowRank):  # ⟨D, UV⟩ = ⟨DVᵀ, U⟩
        return _dot(left.float() @ right.down.mT, right.up)
    return _dot(left, right)


def _check_compression(rank: int | None, energy: float | None) -> None:
    if (rank is None) == (energy is None):
        raise AdapterError(f"compress: got rank={rank} and energy={energy}. Give one of the two")
    if rank is not None and rank < 1:
        raise AdapterError(f"compress: rank is {rank}. Expected 1 or more")
    if energy is not None and not 0 < energy <= 1:
        raise AdapterError(f"compress: energy is {energy}. Expected a share above 0 and at most 1")


def _dot(left: Tensor, right: Tensor) -> float:
    blocks = zip(left.flatten().split(BLOCK_ELEMENTS), right.flatten().split(BLOCK_ELEMENTS), strict=True)
    return sum(torch.dot(a.double(), b.double()).item() for a, b in blocks)
