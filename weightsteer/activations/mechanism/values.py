"""What attention makes of a steering vector, head by head: its value through the output map, read as tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer.activations.capture import Example, capture
from weightsteer.activations.mechanism.anatomy import (
    anatomy,
    check_blocks,
    check_head,
    final_norm,
    matrix,
    through_norm,
)
from weightsteer.activations.mechanism.freezing import Steering
from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError
from weightsteer.models.language_model import LanguageModel

SHOWN = 10
COLUMNS = ("block and head", "gain", "cosine with the vector", "raises", "lowers")

# A token as text, and its logit in units of the vector read: only their order and ratios mean something.
Token = tuple[str, float]


@dataclass(frozen=True)
class HeadValue:
    """What one head writes of a steering vector, whatever the text."""

    block: int
    head: int
    gain: float
    """‖OV(s)‖ / ‖s‖. Comparable within a block: between blocks, tokens' norms differ, which are left out."""
    cosine: float
    """With the vector itself; nan where the head writes nothing."""
    top: tuple[Token, ...]
    """Tokens it raises most, first the most; none where the head writes nothing."""
    bottom: tuple[Token, ...]

    @property
    def row(self) -> tuple[str, float, float, str, str]:
        """In the order of COLUMNS."""
        top, bottom = (" ".join(repr(text) for text, _ in tokens) for tokens in (self.top, self.bottom))
        return f"{self.block}.{self.head}", self.gain, self.cosine, top, bottom


def head_values(lm: LanguageModel, direction: Float[Tensor, " d_model"], block: int) -> Float[Tensor, "heads d_model"]:
    """OV_h(s) = W_O^h W_V^h (γ·s) for every query head of `block`, s being a direction at the block's input; float32.

    The direct contribution of s through a head is this times how much the head attends to steered tokens, each over its
    root mean square. Heads of one group share W_V. A norm of attention's own output (Gemma 2 and later) multiplies with
    its gain too; the scale that it gives a token is left out alike. Source: arXiv 2604.08524 and its code.
    """
    found = anatomy(lm.network, block)
    width = lm.network.config.get_text_config().hidden_size
    if direction.numel() != width:
        raise AdapterError(
            f"a direction of width {direction.numel()}: does not fit {lm.ref.source}. Expected one of width {width}"
        )
    through_v = matrix(found.v.module)[list(found.v.outputs)]
    w_o = matrix(found.o.module).unflatten(1, (found.heads, found.head_dim))
    read = through_norm(found.input_norm, direction.detach().float().to(through_v.device))
    values = (through_v @ read).unflatten(0, (found.kv_heads, found.head_dim)).repeat_interleave(found.group, 0)
    return through_norm(found.attention_norm, torch.einsum("dhe,he->hd", w_o, values)).cpu()


def decompose(
    lm: LanguageModel,
    direction: Float[Tensor, " d_model"],
    blocks: Sequence[int],
    heads: Sequence[int] | None = None,
    shown: int = SHOWN,
) -> list[HeadValue]:
    """Every head of `blocks` that reads the direction, with `shown` tokens that it raises and lowers most."""
    found = []
    for block in check_blocks(lm.network, blocks):
        written = head_values(lm, direction, block)
        numbers = range(len(written))
        if heads is not None:
            numbers = [check_head(anatomy(lm.network, block), head) for head in heads]
        tokens = read_tokens(lm, written[list(numbers)], shown)
        for head, (top, bottom) in zip(numbers, tokens, strict=True):
            gain = (written[head].norm() / direction.float().norm()).item()
            cosine = torch.nn.functional.cosine_similarity(written[head], direction.float().cpu(), dim=0).item()
            found.append(HeadValue(block, head, gain, cosine if gain else float("nan"), top, bottom))
    return found


def read_tokens(
    lm: LanguageModel, vectors: Float[Tensor, "vectors d_model"], shown: int = SHOWN
) -> list[tuple[tuple[Token, ...], tuple[Token, ...]]]:
    """The tokens whose logits each vector raises most, and lowers most, through the final norm and the output head.

    W_U(γ·x / rms(x)); biases are left out, being the same for all. A vector of zero raises nothing.
    """
    head = lm.network.get_output_embeddings()
    normed = through_norm(final_norm(lm.network), vectors.float().to(head.weight.device))
    size = vectors.float().square().mean(-1, keepdim=True).sqrt().to(normed.device)
    logits = (normed / size.where(size > 0, 1)) @ matrix(head).T
    # Rows of the head beyond the tokenizer's tokens are padding.
    logits = logits[:, : len(lm.tokenizer)]
    return [
        (_tokens(lm, row, shown, True), _tokens(lm, row, shown, False)) if float(one) else ((), ())
        for row, one in zip(logits, size, strict=True)
    ]


def direction_into(vector: ActivationVector, block: int) -> Float[Tensor, " d_model"]:
    """What the vector has added to the residual stream by the input of `block`; an AdapterError where that is nothing.

    Along the residual stream alone: see `mean_shift` for all that steering does to it.
    """
    earlier = [direction.float() for b, direction in vector.directions.items() if b < block]
    if vector.operation != "add" or not earlier:
        raise AdapterError(
            f"activation vector: {vector.operation}s directions of blocks {sorted(vector.directions)}, nothing that "
            f"block {block} reads. Expected a vector that adds at an earlier block. Name a later block"
        )
    return torch.stack(earlier).sum(0)


def mean_shift(
    vector: Steering, lm: LanguageModel, k: float, examples: Sequence[Example]
) -> Float[Tensor, "blocks d_model"]:
    """Mean change of the output of every block under k times the vector, at the first read of each example; float32.

    What stands for a weight vector in `decompose`: row b − 1 is a direction at the input of block b.
    """
    before = capture(lm, examples, "unsteered").mean[0]
    with vector.applied(lm, k) as steered:
        return (capture(steered, examples, "steered").mean[0] - before).float()


def _tokens(lm: LanguageModel, logits: Float[Tensor, " vocabulary"], shown: int, largest: bool) -> tuple[Token, ...]:
    values, ids = logits.topk(min(shown, len(logits)), largest=largest)
    return tuple((lm.tokenizer.decode([i]), v) for i, v in zip(ids.tolist(), values.tolist(), strict=True))
