"""What steering does inside a forward pass: which columns it touches, and what it changes there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from weightsteer.errors import AdapterError, ModelError
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.generate import answer_columns, opening_tokens
from weightsteer.models.language_model import LanguageModel

# all: every token; after_user: every token after the end of the user's turn, and always the last prompt token (arXiv
# 2312.06681, section 3 and its code); generated: the last prompt token and every answer token (arXiv 2507.21509,
# section 3); answer: the answer tokens alone (arXiv 2407.12404).
Mode = Literal["all", "after_user", "generated", "answer"]

# Modules of a decoder block whose output is added to the residual stream, by the naming of the transformers
# architectures: attention (or what stands in its place), then the MLP.
WRITERS = (
    ("self_attn", "attn", "attention", "self_attention", "conv", "linear_attn"),
    ("mlp", "feed_forward", "ffn", "fc2", "block_sparse_moe"),
)

Change = Callable[[Tensor], Tensor]


def add_hooks(
    lm: LanguageModel, directions: Mapping[int, Float[Tensor, " d_model"]], k: Float[Tensor, "rows 1 1"], mode: Mode
) -> Iterator[RemovableHandle]:
    """Hooks for h += k·direction at the output of each block; one k for all rows of a batch, or one for each."""
    blocks, opening = decoder_blocks(lm.network), opening_tokens(lm) if mode == "after_user" else 1
    for block, direction in directions.items():
        step = (k * direction).to(lm.device, lm.network.dtype)
        yield blocks[block].register_forward_hook(_on_output(_adder(step), mode, opening))


def ablate_hooks(
    lm: LanguageModel, direction: Float[Tensor, " d_model"], k: Float[Tensor, "rows 1 1"], mode: Mode
) -> Iterator[RemovableHandle]:
    """Hooks for x −= k·r̂r̂ᵀx at every block's input and at every attention and MLP output; k = 1 takes r̂ out wholly.

    Source: arXiv 2406.11717, section 2.4. Where a norm stands between such an output and the residual stream (Gemma 2
    and later), what it writes back is taken out at the next block's input.
    """
    opening = opening_tokens(lm) if mode == "after_user" else 1
    unit, k = (direction / direction.norm()).to(lm.device), k.to(lm.device)
    change = _ablator(unit, k)
    writers = [residual_writers(block, number) for number, block in enumerate(decoder_blocks(lm.network))]
    for block, modules in zip(decoder_blocks(lm.network), writers, strict=True):
        yield block.register_forward_pre_hook(_on_input(change, mode, opening), with_kwargs=True)
        for module in modules:
            yield module.register_forward_hook(_on_output(change, mode, opening))


def residual_writers(block: Any, number: int) -> tuple[Any, Any]:
    """The attention and the MLP of a decoder block; a ModelError where it is built otherwise."""
    found = [[module for name, module in block.named_children() if name in names] for names in WRITERS]
    if any(len(modules) != 1 for modules in found):
        raise ModelError(
            f"block {number}: has modules {[name for name, _ in block.named_children()]}. Expected one attention "
            f"({', '.join(WRITERS[0])}) and one MLP ({', '.join(WRITERS[1])}). Add a direction instead of ablating it"
        )
    return found[0][0], found[1][0]


def steered_columns(mode: Mode, width: int, opening: int) -> int:
    """How many trailing columns of the running forward pass of `width` columns are steered."""
    if mode == "all":
        return width
    scored = answer_columns(None)  # None: generating, where with a cache every new token comes alone
    if mode == "answer":
        return max(scored - 1, 0) if scored is not None else int(width == 1)
    columns = 1 if scored is None else scored
    if mode == "after_user" and columns:
        columns += opening - 1
    return min(columns, width)


def strengths_of(ks: float | Sequence[float]) -> Float[Tensor, "rows 1 1"]:
    """Strengths in the shape that multiplies activations; an AdapterError for one that is no finite number."""
    k = torch.tensor([ks] if isinstance(ks, int | float) else list(ks), dtype=torch.float32)
    for strength in k[~k.isfinite()].tolist():
        raise AdapterError(f"k = {strength}: not a finite number. Expected one such as -1.5")
    return k[:, None, None]


def _adder(step: Float[Tensor, "rows 1 d_model"]) -> Change:
    def add(hidden: Tensor) -> Tensor:
        _check_rows(len(step), len(hidden))
        return hidden + step

    return add


def _ablator(unit: Float[Tensor, " d_model"], k: Float[Tensor, "rows 1 1"]) -> Change:
    def ablate(hidden: Tensor) -> Tensor:
        _check_rows(len(k), len(hidden))
        # Half precision would leave behind as much as its own rounding of the projection.
        return (hidden.float() - k * (hidden.float() @ unit)[..., None] * unit).to(hidden.dtype)

    return ablate


def _check_rows(strengths: int, rows: int) -> None:
    if strengths not in (1, rows):
        raise AdapterError(
            f"{strengths} strengths, one for each row, meet a batch of {rows} rows. Expected a batch of {strengths}; "
            "see generate_many for one prompt at many strengths"
        )


def _on_output(change: Change, mode: Mode, opening: int) -> Any:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (_changed(output[0], change, mode, opening), *output[1:])
        return _changed(output, change, mode, opening)

    return hook


def _on_input(change: Change, mode: Mode, opening: int) -> Any:
    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (_changed(args[0], change, mode, opening), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": _changed(kwargs["hidden_states"], change, mode, opening)}

    return hook


def _changed(hidden: Tensor, change: Change, mode: Mode, opening: int) -> Tensor:
    width = hidden.shape[1]
    columns = steered_columns(mode, width, opening)
    if columns == width:
        return change(hidden)
    if columns == 0:
        return hidden
    return torch.cat([hidden[:, : width - columns], change(hidden[:, width - columns :])], 1)
