"""Attention probabilities, for which an attention that hides them is switched to one that shows them, openly."""

import contextlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer import progress
from weightsteer.errors import ModelError
from weightsteer.models.language_model import LanguageModel


@contextlib.contextmanager
def eager(lm: LanguageModel) -> Iterator[LanguageModel]:
    """`lm` computing attention step by step inside the block, so that probabilities exist; said when it is a change.

    Numbers differ from those of other implementations by rounding: compare within the block only. A ModelError where
    the architecture cannot be switched.
    """
    network = lm.network
    before = network.config._attn_implementation
    if before == "eager":
        yield lm
        return
    progress.say(f"attention: switched from {before}, which hides its probabilities, to eager")
    network.set_attn_implementation("eager")
    try:
        if network.config._attn_implementation != "eager":
            raise ModelError(
                f"{type(network).__name__}: its attention stays {network.config._attn_implementation}, which hides its "
                "probabilities. Expected an architecture that can be switched to eager"
            )
        yield lm
    finally:
        network.set_attn_implementation(before)


@torch.inference_mode()
def attention_probabilities(lm: LanguageModel, ids: list[int]) -> Float[Tensor, "blocks heads tokens tokens"]:
    """How much each token (third) of one text looks at each token (last), in every head; float32, on the CPU."""
    with eager(lm):
        found = lm.network(torch.tensor([ids], device=lm.device), output_attentions=True, use_cache=False).attentions
    return torch.stack([probabilities[0].float().cpu() for probabilities in found])
