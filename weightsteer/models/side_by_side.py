"""Attention inputs for a prompt with several options after it, side by side and blind to one another."""

import inspect
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Layers that attend to what the mask allows and to nothing else. The others (recurrent, convolutional, chunked) feel
# every column before them.
MASKED_LAYERS = {"full_attention", "sliding_attention"}
# Architectures in which a distance is one of columns, whatever position_ids say: ALiBi, or a window of columns.
COUNTS_COLUMNS = {"bloom", "mpt", "gpt_neo"}


def fits_side_by_side(network: Any) -> bool:
    """Whether options can stand side by side in this architecture; where not, each needs a row of its own."""
    config = network.config.get_text_config()
    by_columns = config.model_type in COUNTS_COLUMNS or getattr(config, "alibi", False)
    return not network._is_stateful and not by_columns and set(_layers(config)) <= MASKED_LAYERS


def sees_everything(network: Any) -> bool:
    """Whether every layer attends to all that came before, so that keys and values are all that needs keeping."""
    config = network.config.get_text_config()
    return fits_side_by_side(network) and set(_layers(config)) == {"full_attention"}


def attention_inputs(
    network: Any, part: Int[Tensor, "rows columns"], positions: Int[Tensor, "rows columns"], cached: int = 0
) -> dict[str, Any]:
    """Mask and positions in the form the network takes; `part` is -1 for padding, 0 for the prompt, 1.. for options.

    The first `cached` columns have been computed: they are seen, but do not look.
    """
    inputs: dict[str, Any] = {}
    if "position_ids" in inspect.signature(network.forward).parameters:
        inputs["position_ids"] = positions[:, cached:].to(network.device)
    if not fits_side_by_side(network):
        return inputs | {"attention_mask": (part >= 0).long().to(network.device)}
    config = network.config.get_text_config()
    allowed, masks = _allowed(part), {}
    for kind in set(_layers(config)):
        near = allowed
        if kind == "sliding_attention":
            near = allowed & (positions[:, :, None] - positions[:, None, :] < config.sliding_window)
        masks[kind] = _additive(near, network.dtype)[:, :, cached:].to(network.device)
    return inputs | {"attention_mask": masks if len(masks) > 1 else next(iter(masks.values()))}


def _layers(config: Any) -> list[str]:
    """Kind of every layer, as far as the configuration tells them apart."""
    window = getattr(config, "sliding_window", None)
    return getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]


def _allowed(part: Int[Tensor, "rows columns"]) -> Bool[Tensor, "rows columns columns"]:
    """Which column (last) each column (middle) sees: causal, over the prompt and the token's own option only."""
    width = part.shape[1]
    query, key = part[:, :, None], part[:, None, :]
    allowed = ((key == 0) | (key == query)) & (key >= 0)
    return allowed & torch.ones(width, width, dtype=torch.bool).tril()


def _additive(
    allowed: Bool[Tensor, "rows columns columns"], dtype: torch.dtype
) -> Float[Tensor, "rows 1 columns columns"]:
    allowed = allowed | torch.eye(allowed.shape[1], dtype=torch.bool)  # padding sees itself: no softmax is empty
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)[:, None]
