"""Steering by one edit of the keys and values of a prompt: how it is found, and a forward pass that makes it."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer import progress
from weightsteer.activations.capture import Moments
from weightsteer.activations.tensor_file import read_tensors, write_tensors
from weightsteer.errors import AdapterError, DataError, ModelError
from weightsteer.models.generate import answer_columns, answer_span, batch_tokens, batches
from weightsteer.models.language_model import LanguageModel
from weightsteer.models.side_by_side import fits_side_by_side
from weightsteer.stage import digest

FILE = "kv_cache_vector.safetensors"
SITE = "cache of the token before the prompt's last, keys rotated; blocks 0-based"
# What a decoder takes with one entry a column, in dimension 1.
PER_COLUMN = ("input_ids", "inputs_embeds", "position_ids", "token_type_ids")


@dataclass(frozen=True, eq=False)
class KVCacheVector:
    """A change of the cached keys and values of one token of the prompt, made once, before the answer begins.

    The token is the one before the prompt's last: the prompt without its last token is computed, its last cached
    position is changed, K += k·S_K and V += k·S_V, and the last token and the answer are computed on that cache.
    Source: arXiv 2507.08799 and its code, which appends a token instead, so that the prompt's own last is changed.
    """

    keys: Mapping[int, Float[Tensor, "kv_heads d_head"]]
    """Block -> change of the rotated key; a block that is not there is not changed."""
    values: Mapping[int, Float[Tensor, "kv_heads d_head"]]
    """Block -> change of the value."""
    base: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """sha256 of the changes."""
        return digest([{b: t.tolist() for b, t in sorted(part.items())} for part in (self.keys, self.values)])

    def save(self, folder: str | Path) -> None:
        """Write one safetensors file whose header says what the vector is."""
        tensors = {f"keys.{b}": t for b, t in self.keys.items()} | {f"values.{b}": t for b, t in self.values.items()}
        write_tensors(Path(folder) / FILE, SITE, tensors, self.base, self.info)

    @classmethod
    def load(cls, folder: str | Path) -> "KVCacheVector":
        """Read what `save` wrote."""
        tensors, base, info = read_tensors(Path(folder) / FILE, SITE, r"(keys|values)\.\d+")
        parts: dict[str, dict[int, Tensor]] = {"keys": {}, "values": {}}
        for name, tensor in tensors.items():
            part, block = name.split(".")
            parts[part][int(block)] = tensor
        return cls(parts["keys"], parts["values"], base, info)

    @contextlib.contextmanager
    def applied(self, lm: LanguageModel, k: float, any_base: bool = False) -> Iterator[LanguageModel]:
        """`lm` with the edit made in every prompt inside the block; k = 0 leaves it alone.

        Generation edits at prefill and nothing after; options and forced answers are scored on the edited cache, in
        two passes instead of one. A prompt of one token, such as that of a plain text, has nothing to edit and raises
        an AdapterError. An `ActivationVector` of mode after_user reaches less far back when it is applied besides.
        """
        self._check(lm, k, any_base)
        if k == 0:
            yield lm
            return
        decoder = lm.network.get_decoder()
        own = decoder.__dict__.get("forward")  # what another edit has put there
        decoder.forward = _edited(decoder.forward, functools.partial(self._edit, k))
        try:
            yield lm
        finally:
            del decoder.forward
            if own is not None:
                decoder.forward = own

    def _edit(self, k: float, cache: Any) -> None:
        """Change the last position of a cache, in every row."""
        for part in ("keys", "values"):
            for block, change in getattr(self, part).items():
                layer = cache.layers[block]
                tensor = getattr(layer, part).clone()  # the network may hold on to the one before
                tensor[..., -1, :] += (k * change).to(tensor.device, tensor.dtype)
                setattr(layer, part, tensor)

    def _check(self, lm: LanguageModel, k: float, any_base: bool) -> None:
        if not math.isfinite(k):
            raise AdapterError(f"k = {k}: not a finite number. Expected one such as -1.5")
        if self.base not in (None, lm.ref.fingerprint) and not any_base:
            raise AdapterError(
                f"KV-cache vector of base {self.base}, model {lm.ref.source} is {lm.ref.fingerprint}. Expected the "
                "base it was made on; pass any_base=True for a fine-tune of it"
            )
        blocks, *shape = _cached_shape(lm)
        for block, change in (*self.keys.items(), *self.values.items()):
            if not 0 <= block < blocks or list(change.shape) != shape:
                raise AdapterError(
                    f"KV-cache vector: block {block} of shape {list(change.shape)} does not exist in {lm.ref.source}. "
                    f"Expected one of its {blocks} blocks, of key-value heads and width {shape}"
                )


def kv_cache_vector(
    lm: LanguageModel,
    positive: Sequence[list[int]],
    negative: Sequence[list[int]],
    *,
    key_scale: float = 0.0,
    value_scale: float = 1.0,
    first_block: int = 1,
    info: Mapping[str, Any] | None = None,
    label: str = "keys and values",
) -> KVCacheVector:
    """Mean difference of the cache at the edited token between two sets of prompts (token ids), times the scales.

    Blocks before `first_block` are left alone. Defaults are those that arXiv 2507.08799 found best, which keep keys as
    they are.
    """
    ours, theirs = (
        _moments(lm, prompts, f"{label}: {side}") for prompts, side in ((positive, "positive"), (negative, "negative"))
    )
    changes = (ours.mean - theirs.mean).float()
    if not changes.isfinite().all():
        raise AdapterError(f"{label} of {lm.ref.source}: not finite. Expected numbers. Load the model in float32")
    blocks = len(changes[0])
    if not 0 <= first_block < blocks or not (key_scale or value_scale):
        raise AdapterError(
            f"first_block {first_block}, scales {key_scale:g} and {value_scale:g}. Expected a block of "
            f"{lm.ref.source}, 0 to {blocks - 1}, and a scale that is not zero"
        )
    keys, values = (
        {block: scale * change[block] for block in range(first_block, blocks)} if scale else {}
        for scale, change in zip((key_scale, value_scale), changes, strict=True)
    )
    scales = {"key_scale": key_scale, "value_scale": value_scale}
    return KVCacheVector(keys, values, lm.ref.fingerprint, {"method": "KV cache", **scales, **(info or {})})


def _cached_shape(lm: LanguageModel) -> tuple[int, int, int]:
    """Blocks of the model, key-value heads of each, and their width; a ModelError where it keeps other state."""
    config = lm.network.config.get_text_config()
    if not fits_side_by_side(lm.network):
        raise ModelError(
            f"{lm.ref.source}: has blocks that keep other state than keys and values, or counts distances in columns. "
            "Expected a model whose blocks all attend. Choose another method for it"
        )
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, width


@torch.inference_mode()
def _moments(lm: LanguageModel, prompts: Sequence[list[int]], label: str) -> Moments:
    """Moments over prompts of keys and values, [2, blocks, heads, width], of the token before the last."""
    from transformers import DynamicCache

    _cached_shape(lm)
    short = [number for number, prompt in enumerate(prompts) if len(prompt) < 2]
    if short or not prompts:
        raise DataError(f"{label}: {len(prompts)} prompts, too short: {short}. Expected some, of two tokens or more")
    moments = Moments()
    with progress.task(label, len(prompts)) as advance:
        for batch in batches([len(prompt) for prompt in prompts], batch_tokens(lm)):
            ends = [len(prompts[i]) - 1 for i in batch]
            # Padding stands on the right, where causal attention does not see it.
            ids = torch.full((len(batch), max(ends)), lm.tokenizer.pad_token_id)
            attention = torch.zeros_like(ids)
            for row, (i, end) in enumerate(zip(batch, ends, strict=True)):
                ids[row, :end], attention[row, :end] = torch.tensor(prompts[i][:end]), 1
            cache = DynamicCache()  # told of no configuration, it keeps all columns of a sliding window too
            lm.network.get_decoder()(
                input_ids=ids.to(lm.device),
                attention_mask=attention.to(lm.device),
                past_key_values=cache,
                use_cache=True,
            )
            rows, last = torch.arange(len(batch)), torch.tensor(ends) - 1
            read = [torch.stack([getattr(layer, part)[rows, :, last] for layer in cache.layers], 1).cpu()
                    for part in ("keys", "values")]  # fmt: skip
            moments.add(torch.stack(read, 1))
            advance(len(batch))
    return moments


def _edited(inner: Callable[..., Any], edit: Callable[[Any], None]) -> Callable[..., Any]:
    """The forward pass of a decoder, with `edit` made to the cache between the prompt and its last token."""
    parameters = list(inspect.signature(inner).parameters)

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        from transformers import DynamicCache

        kwargs = dict(zip(parameters, args, strict=False)) | kwargs
        fed = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
        width, scored = fed.shape[1], answer_columns(None)  # None: generating, where every new token comes alone
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        if scored == 0 or (scored is None and past and width == 1):
            return inner(**kwargs)
        columns = 1 if scored is None else scored
        _check_prompts(kwargs.get("attention_mask"), past + width - columns, columns)
        if cache is None:
            cache = DynamicCache()
        rest, start = {**kwargs, "past_key_values": cache, "use_cache": True}, None
        if columns < width:
            with answer_span(0):
                start = inner(**_columns(rest, 0, width - columns, width))
            rest = _columns(rest, width - columns, width, width)
        edit(cache)
        output = inner(**rest)
        if start is not None:
            output.last_hidden_state = torch.cat([start.last_hidden_state, output.last_hidden_state], 1)
        return output

    return forward


def _columns(kwargs: Mapping[str, Any], start: int, end: int, width: int) -> dict[str, Any]:
    """The inputs of the pass over columns `start` to `end` of `width`."""
    cut = {name: kwargs[name][:, start:end] for name in PER_COLUMN if kwargs.get(name) is not None}
    masks, later = kwargs.get("attention_mask"), width - end

    def seen(mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        mask = mask[..., : mask.shape[-1] - later]
        return mask[:, :, start:end] if mask.ndim == 4 else mask

    mask = {kind: seen(each) for kind, each in masks.items()} if isinstance(masks, Mapping) else seen(masks)
    return {**kwargs, **cut, "attention_mask": mask}


def _check_prompts(masks: Any, before: int, columns: int) -> None:
    """An AdapterError unless every row has a token before its prompt's last; `before` columns precede that one."""
    mask = next(iter(masks.values())) if isinstance(masks, Mapping) else masks
    if mask is None:
        empty = [0] if before == 0 else []
    elif before == 0:
        empty = list(range(len(mask)))
    else:
        # Whether the first column that predicts sees the one before: 1 in a mask of tokens, True or 0 in one that adds.
        seen = mask[:, -columns - 1] if mask.ndim == 2 else mask[:, 0, -columns, -columns - 1]
        empty = (seen == 0 if mask.ndim == 2 or seen.dtype == torch.bool else seen < 0).nonzero().flatten().tolist()
    if empty:
        raise AdapterError(
            f"KV-cache vector: prompts in rows {empty} have one token, and the one before it is what is changed. "
            "Expected prompts of two tokens or more; a plain text has none. Leave such items out"
        )
