"""Captured means equal those of plain forward passes, one example at a time."""

from functools import partial
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model

from weightsteer.activations.capture import mean_answer_activations
from weightsteer.data.contrast import encode_example
from weightsteer.models import generate
from weightsteer.models.blocks import decoder_blocks

ASKED = [
    ("Is it good?", "Yes, very good indeed!"),
    ("Why?", "No."),
    ("A somewhat longer question, this one?", "Perhaps."),
]


def keep(outputs: list[torch.Tensor], _module: Any, _inputs: Any, output: Any) -> None:
    outputs.append(output[0] if isinstance(output, tuple) else output)


def direct(lm: Any, examples: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Mean over examples of the mean over answer tokens of each block's output, without batches or padding."""
    means = []
    for prompt, answer in examples:
        outputs: list[torch.Tensor] = []
        hooks = [block.register_forward_hook(partial(keep, outputs)) for block in decoder_blocks(lm.network)]
        with torch.inference_mode():
            result = lm.network(torch.tensor([prompt + answer]), output_hidden_states=True)
        for hook in hooks:
            hook.remove()
        assert torch.equal(outputs[0], result.hidden_states[1]), "block 0's output is hidden state 1"
        means.append(torch.stack([output[0, len(prompt) :].double().mean(0) for output in outputs]))
    return torch.stack(means).mean(0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "gpt2", "lfm2"])
@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_means_equal_a_direct_computation(family: str, batch_tokens: int, monkeypatch: pytest.MonkeyPatch):
    config = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False} if family == "lfm2" else {}
    lm = tiny_language_model(family, **config)
    monkeypatch.setattr("weightsteer.activations.capture.batch_tokens", lambda lm: batch_tokens)
    examples = [encode_example(lm, prompt, answer) for prompt, answer in ASKED]
    found = mean_answer_activations(lm, examples)
    assert found.shape == (2, 32)
    assert found.dtype == torch.float64
    assert not any(block._forward_hooks for block in decoder_blocks(lm.network))
    assert torch.allclose(found, direct(lm, examples), atol=1e-5)


def test_every_example_counts_once_however_long_its_answer_is():
    lm = tiny_language_model()
    short, long = (encode_example(lm, "Q?", answer) for answer in ("No.", "Yes " * 20))
    both = mean_answer_activations(lm, [short, long])
    alone = [mean_answer_activations(lm, [example]) for example in (short, long)]
    assert torch.allclose(both, (alone[0] + alone[1]) / 2, atol=1e-5)


def test_hooks_are_removed_after_an_error(monkeypatch: pytest.MonkeyPatch):
    lm = tiny_language_model()
    with pytest.raises(IndexError):
        mean_answer_activations(lm, [([1], [10_000])])
    assert not any(block._forward_hooks for block in decoder_blocks(lm.network))
    assert generate.answer_columns() == 1
