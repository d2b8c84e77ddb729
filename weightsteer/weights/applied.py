"""A network with changes added to its weights while a block runs: by hooks, else by swapping parameters."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightsteer.errors import AdapterError, report_problems
from weightsteer.weights.base import weight_layout
from weightsteer.weights.lowrank import Change, Layout, LowRank

# (parameter, dtype, device) -> the factors that its hook multiplies with, cast once whatever k.
FactorCache = dict[tuple[str, torch.dtype, torch.device], tuple[Tensor, Tensor]]

COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@contextlib.contextmanager
def applied(
    entries: Mapping[str, Change],
    base: str | None,
    lm: Any,
    k: float | int,
    any_base: bool,
    cache: FactorCache,
) -> Iterator[Any]:
    """Yield `lm`, whose network computes with W + k·w until the block is left, be it by an exception.

    Factors on a linear layer or an embedding are added by a forward hook, output + k·(x·downᵀ)·upᵀ, in the
    network's dtype; so is the bias of a linear layer that has none, output + k·b. Anything else is computed in
    float32, rounded once, and stands in the parameter's place; the very same parameter comes back. At k = 0
    nothing is touched. Blocks nest, and their changes add up; summing the vectors first rounds once instead of twice.
    """
    if not math.isfinite(k):
        raise AdapterError(f"k is {k}. Expected a finite number")
    _check_base(base, lm, any_base)
    targets = _targets(entries, lm.network)
    with contextlib.ExitStack() as undo:
        if k != 0:
            # the tensors outlive the mode they are made in
            with torch.inference_mode(False), torch.no_grad():
                for target in targets:
                    undo.callback((_hook if target.hooked else _swap)(target, float(k), cache))
        yield lm


@dataclass(frozen=True)
class _Target:
    """One entry and the parameter that it changes."""

    name: str
    change: Change
    module: nn.Module
    leaf: str
    kind: Layout | None
    """What the module is, when the parameter is the weight of a linear layer or an embedding."""
    hooked: bool
    dtype: torch.dtype
    device: torch.device


def _check_base(base: str | None, lm: Any, any_base: bool) -> None:
    found = lm.ref.fingerprint
    if None not in (base, found) and base != found and not any_base:
        raise AdapterError(
            f"the vector was made for base {base}, the model {lm.ref.source} is {found}. Expected the same; "
            "for a descendant of the base, such as a task-tuned one, pass any_base=True"
        )


def _targets(entries: Mapping[str, Change], network: Any) -> list[_Target]:
    targets, problems = [], []
    for name, change in entries.items():
        target = _target(name, change, network)
        if isinstance(target, _Target):
            targets.append(target)
        else:
            problems.append(f"{name} {list(change.shape)}: {target}")
    report_problems(AdapterError, f"{type(network).__name__} cannot take the vector", problems)
    return targets


def _target(name: str, change: Change, network: Any) -> _Target | str:
    """Where and how the change of one parameter is applied, or why it cannot be."""
    stem, _, leaf = name.rpartition(".")
    try:
        module = network.get_submodule(stem)
    except AttributeError:
        return f"the network has no {stem}"
    kind, shape = weight_layout(module) if leaf == "weight" else (None, None)
    parameter = module._parameters.get(leaf)
    if shape is None and parameter is not None:
        shape = tuple(parameter.shape)
    absent = parameter is None and leaf == "bias" and weight_layout(module)[0] == "linear"
    if absent:
        shape = (module.out_features,)  # a layer without a bias has one of zero
    if shape is None or tuple(change.shape) != shape:
        return "the network has no such parameter" if shape is None else f"the network has {list(shape)}"
    if isinstance(change, LowRank) and kind and change.layout not in (kind, "parameter"):
        return f"was read as the weight of a {change.layout}, here it is that of a {kind}; load it with base="
    near = parameter if parameter is not None else next(module.parameters(), None)
    device = network.device if near is None else near.device
    if device.type == "meta":
        return "is not in memory; load the whole model"
    dtype = near.dtype if near is not None and near.dtype in COMPUTE_DTYPES else network.dtype
    quantised = parameter.dtype not in COMPUTE_DTYPES if parameter is not None else kind is not None
    hooked = absent or (isinstance(change, LowRank) and kind is not None and (quantised or _is_plain(module)))
    if quantised and not hooked:
        return "is quantised, and only factors of linear layers can be added to it; load it unquantised"
    return _Target(name, change, module, leaf, kind, hooked, dtype, device)


def _is_plain(module: nn.Module) -> bool:
    """Whether a module's output is its input times its weight, so that a hook can add to it."""
    from transformers.pytorch_utils import Conv1D

    forward = type(module).forward
    return forward in (nn.Linear.forward, Conv1D.forward, nn.Embedding.forward) or hasattr(module, "embed_scale")


def _cast(target: _Target, cache: FactorCache) -> tuple[Tensor, Tensor]:
    """What the input is multiplied with, then what that is multiplied with."""
    assert isinstance(target.change, LowRank)
    key = (target.name, target.dtype, target.device)
    if key not in cache:
        up, down = target.change.up, target.change.down
        pair = (down.mT, up.mT) if target.kind == "linear" else (up, down)
        # contiguous: a transposed factor costs a copy in every call on a CPU
        first, second = (factor.to(target.device, target.dtype).contiguous() for factor in pair)
        cache[key] = first, second
    return cache[key]


def _hook(target: _Target, k: float, cache: FactorCache) -> Callable[[], None]:
    """Have the module add k·x·Δ, or k·b, to its output; return what ends that."""
    if not isinstance(target.change, LowRank):
        return target.module.register_forward_hook(_bias_hook(target.change.to(target.device), k)).remove
    first, second = _cast(target, cache)
    hook = _embedding_hook if target.kind == "embedding" else _linear_hook
    return target.module.register_forward_hook(hook(first, second, k)).remove


def _linear_hook(first: Tensor, second: Tensor, k: float) -> Callable[..., None]:
    def add_change(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        _add(output, args[0].to(first.dtype).reshape(-1, first.shape[0]) @ first, second, k)

    return add_change


def _embedding_hook(first: Tensor, second: Tensor, k: float) -> Callable[..., None]:
    def add_change(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        scale = getattr(module, "embed_scale", None)  # some architectures scale what they look up
        rows = F.embedding(args[0], first).reshape(-1, first.shape[1])
        if scale is not None:
            rows = rows * torch.as_tensor(scale).to(rows)
        _add(output, rows, second, k)

    return add_change


def _bias_hook(bias: Tensor, k: float) -> Callable[..., None]:
    def add_bias(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        output.add_(bias, alpha=k)

    return add_bias


def _add(output: Tensor, left: Tensor, right: Tensor, k: float) -> None:
    """output += k · left @ right, in place: the layer has only just made its output."""
    flat = output.view(-1, right.shape[1])
    if left.dtype == right.dtype == flat.dtype:
        flat.addmm_(left, right, alpha=k)
    else:  # under autocast, or where a quantised layer computes in a dtype of its own
        flat.add_(left @ right, alpha=k)


def _swap(target: _Target, k: float, cache: FactorCache) -> Callable[[], None]:
    """Put W + k·Δ in the place of the parameter; return what puts the old one back."""
    parameters, leaf = target.module._parameters, target.leaf
    old = parameters[leaf]
    parameters[leaf] = nn.Parameter(_moved(old.detach(), target.change, k), requires_grad=False)
    return lambda: parameters.__setitem__(leaf, old)


def _moved(weight: Tensor, change: Change, k: float) -> Tensor:
    """round(W + k·Δ) in the dtype of W, computed in float32 or wider, expert by expert."""
    if weight.ndim > 2:
        slices = range(len(weight))
        parts = ((change.up[i], change.down[i]) if isinstance(change, LowRank) else change[i] for i in slices)
        moved = torch.empty_like(weight)
        for i, part in zip(slices, parts, strict=True):
            moved[i] = _moved(weight[i], LowRank(*part) if isinstance(part, tuple) else part, k)
        return moved
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if isinstance(change, LowRank):
        return torch.addmm(wide, change.up.to(wide), change.down.to(wide), alpha=k).to(weight.dtype)
    return torch.add(wide, change.to(wide), alpha=k).to(weight.dtype)
