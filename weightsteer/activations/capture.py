"""Residual activations of all blocks, averaged over answers, in batched forward passes."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer import progress
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.generate import batch_tokens, batches
from weightsteer.models.language_model import LanguageModel


@torch.inference_mode()
def mean_answer_activations(
    lm: LanguageModel, examples: Sequence[tuple[list[int], list[int]]], label: str = ""
) -> Float[Tensor, "blocks d_model"]:
    """Output of every block, mean over the answer tokens of each example, then over examples; float64.

    `examples` are (prompt, answer) token ids; the model reads the prompt before the answer. Sums are streamed, so
    memory does not grow with the data. Source: arXiv 2507.21509, section 2 (response average).
    """
    blocks = decoder_blocks(lm.network)
    sums = torch.zeros(len(blocks), lm.network.config.get_text_config().hidden_size, dtype=torch.float64)
    lengths = [len(prompt) + len(answer) for prompt, answer in examples]
    with progress.task(label or "activations", len(examples)) as advance:
        for batch in batches(lengths, batch_tokens(lm)):
            _add_batch(lm, blocks, [examples[i] for i in batch], sums)
            advance(len(batch))
    return sums / len(examples)


def _add_batch(
    lm: LanguageModel, blocks: Any, examples: list[tuple[list[int], list[int]]], sums: Float[Tensor, "blocks d_model"]
) -> None:
    width = max(len(prompt) + len(answer) for prompt, answer in examples)
    ids = torch.full((len(examples), width), lm.tokenizer.pad_token_id)
    attention = torch.zeros(len(examples), width, dtype=torch.long)
    weight = torch.zeros(len(examples), width)  # 1 / answer length at its tokens: a sum that is a mean
    for row, (prompt, answer) in enumerate(examples):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        attention[row, :end] = 1
        weight[row, len(prompt) : end] = 1 / len(answer)
    weight = weight.to(lm.device)

    def add(block: int, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        sums[block] += torch.einsum("rt,rtd->d", weight, hidden.float()).double().cpu()

    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output, b=b: add(b, output))
        for b, block in enumerate(blocks)
    ]
    try:
        lm.network(
            input_ids=ids.to(lm.device), attention_mask=attention.to(lm.device), logits_to_keep=1, use_cache=False
        )
    finally:
        for hook in hooks:
            hook.remove()
