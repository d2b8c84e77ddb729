"""Where and how a LoRA file of PEFT holds the two factors of one parameter."""

import re
from collections.abc import Iterable, Mapping

from jaxtyping import Float
from torch import Tensor

from weightsteer.weights.lowrank import Layout, LowRank

PREFIX = "base_model.model."


def factor_keys(layouts: Mapping[str, Layout]) -> dict[str, tuple[str, str]]:
    """The keys of A and B in the file, for each parameter name.

    Parameters that are targeted themselves are wrapped one around the other, in the order in which their
    module registers them: the first stands innermost, under the most `base_layer`.
    """
    wrapped: dict[str, list[str]] = {}
    for name, layout in layouts.items():
        if layout.startswith("parameter"):
            wrapped.setdefault(name.rpartition(".")[0], []).append(name)
    keys = {}
    for name, layout in layouts.items():
        module = name.rpartition(".")[0]
        if layout == "embedding":
            keys[name] = (f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B")
            continue
        around = wrapped[module][wrapped[module].index(name) + 1 :] if layout.startswith("parameter") else []
        stem = f"{PREFIX}{module}{'.base_layer' * len(around)}"
        keys[name] = (f"{stem}.lora_A.weight", f"{stem}.lora_B.weight")
    return keys


def bias_key(name: str) -> str:
    """The key under which the change of the bias `name` stands, as the bias of its module's B."""
    return f"{PREFIX}{name.rpartition('.')[0]}.lora_B.bias"


def factor_shapes(shape: tuple[int, ...], layout: Layout, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of A and B for a parameter of `shape`."""
    d_out, d_in = shape[-2:] if layout in ("linear", "parameter") else shape[:-3:-1]
    experts = shape[0] if len(shape) == 3 else 1
    return (experts * rank, d_in), (d_out, experts * rank)


def pattern_target(name: str, layout: Layout) -> str:
    """What PEFT matches its patterns against: the module, or the parameter where that is the target."""
    return name if layout.startswith("parameter") else name.rpartition(".")[0]


def matching_key(patterns: Iterable[str], target: str) -> str | None:
    """The first pattern that PEFT takes for `target`: a regular expression for all or the last parts."""
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", target)), None)


def from_factors(a: Tensor, b: Tensor, layout: Layout, rank: int, ndim: int) -> LowRank:
    """The change B·A in the orientation of the stored parameter, in float32.

    Fused experts (ndim 3): A is [experts·rank, d_in] with the expert slowest, B is [d_out, rank·experts] with
    the expert fastest.
    """
    a, b = a.float(), b.float()
    if ndim == 3:
        a = a.reshape(-1, rank, a.shape[-1])
        b = b.reshape(b.shape[0], rank, -1).permute(2, 0, 1)
    if layout in ("conv1d", "embedding", "parameter_transposed"):
        return LowRank(a.mT.contiguous(), b.mT.contiguous(), layout)
    return LowRank(b.contiguous(), a.contiguous(), layout)


def to_factors(change: LowRank) -> tuple[Float[Tensor, "rows d_in"], Float[Tensor, "d_out columns"]]:
    """A and B as PEFT stores them at scale 1; the inverse of `from_factors`."""
    b, a = change.up, change.down
    if change.layout in ("conv1d", "embedding", "parameter_transposed"):
        b, a = change.down.mT, change.up.mT
    if b.ndim == 3:
        a = a.reshape(-1, a.shape[-1])
        b = b.permute(1, 2, 0).reshape(b.shape[1], -1)
    return a.contiguous(), b.contiguous()
