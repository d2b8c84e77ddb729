"""Captured means equal those of plain forward passes, one example at a time."""

import gc
from functools import partial
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model

from weightsteer.activations.capture import (
    Example,
    Moments,
    activations,
    capture,
    example,
    mean_answer_activations,
    pair_activations,
)
from weightsteer.data.contrast import encode_example
from weightsteer.errors import DataError
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


def read(lm: Any, text: Example) -> torch.Tensor:
    """[reads, blocks, d_model] of one text in a pass of its own."""
    outputs: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(partial(keep, outputs)) for block in decoder_blocks(lm.network)]
    with torch.inference_mode():
        lm.network(torch.tensor([text.ids]))
    for hook in hooks:
        hook.remove()
    hidden = torch.stack([output[0].double() for output in outputs])
    return torch.stack([hidden[:, list(read)].mean(1) for read in text.reads])


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Random recurrent models reach activations of 10⁵, so it is the largest that sets the scale."""
    return (found - expected).abs().max().item() < 1e-5 * expected.abs().max().item()


def several_reads(lm: Any) -> list[Example]:
    return [example(*encode_example(lm, q, a), "prompt", "last_prompt", "answer", "last", 3, -2) for q, a in ASKED]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "lfm2", "mamba"])
def test_several_positions_in_one_pass(family: str, side: str, monkeypatch: pytest.MonkeyPatch):
    config: dict[str, Any] = {
        "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        "mamba": {"state_size": 8},
    }.get(family, {})
    lm = tiny_language_model(family, **config)
    lm.tokenizer.padding_side = side
    texts = several_reads(lm)
    assert [len(r) for r in texts[0].reads] == [len(texts[0].reads[0]), 1, len(texts[0].reads[2]), 1, 1, 1]
    seen = []
    for batch, found in activations(lm, texts):
        for i, row in zip(batch, found, strict=True):
            assert near(row, read(lm, texts[i]))
        seen += batch
    assert sorted(seen) == [0, 1, 2]


def test_what_follows_the_last_read_is_not_computed():
    lm = tiny_language_model()
    widths: list[int] = []
    decoder_blocks(lm.network)[0].register_forward_pre_hook(lambda _m, args: widths.append(args[0].shape[1]))
    prompt, answer = encode_example(lm, "Why?", "Because of a long chain of reasons.")
    capture(lm, [example(prompt, answer, "last_prompt")])
    assert widths == [len(prompt)]


def test_streamed_moments_equal_dense_ones(monkeypatch: pytest.MonkeyPatch):
    lm = tiny_language_model()
    texts = several_reads(lm) * 3
    dense = torch.stack([read(lm, text) for text in texts])
    for tokens in (1, 100, 10_000):
        monkeypatch.setattr("weightsteer.activations.capture.batch_tokens", lambda lm, tokens=tokens: tokens)
        moments = capture(lm, texts)
        assert moments.n == 9
        assert torch.allclose(moments.mean, dense.mean(0), atol=1e-5)
        assert torch.allclose(moments.variance, dense.var(0, correction=0), atol=1e-5)


def test_moments_do_not_cancel():
    """In float32, or as E[x²] − E[x]², a spread of 1 around 10⁸ would be lost."""
    values = 1e8 + torch.randn(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = Moments()
    for rows in values.split(7):
        moments.add(rows)
    assert torch.allclose(moments.mean, values.mean(0), rtol=1e-14)
    assert torch.allclose(moments.variance, values.var(0, correction=0), rtol=1e-9)


def test_pairs_come_together(monkeypatch: pytest.MonkeyPatch):
    lm = tiny_language_model()
    monkeypatch.setattr("weightsteer.activations.capture.batch_tokens", lambda lm: 300)
    ours = [example(*encode_example(lm, q, a), "last") for q, a in ASKED]
    theirs = [example(*encode_example(lm, q, a + " " * 3 + "!"), "answer") for q, a in ASKED]
    seen = []
    for batch, positive, negative in pair_activations(lm, ours, theirs):
        for i, p, n in zip(batch, positive, negative, strict=True):
            assert near(p, read(lm, ours[i]))
            assert near(n, read(lm, theirs[i]))
        seen += batch
    assert sorted(seen) == [0, 1, 2]


def largest_held(lm: Any, texts: list[Example]) -> int:
    """Most bytes in tensors at the start of any pass of a capture, the model's own left out."""
    held: list[int] = []

    def count(_module: Any, _inputs: Any) -> None:
        held.append(sum(t.nbytes for t in gc.get_objects() if type(t) is torch.Tensor))

    hook = decoder_blocks(lm.network)[0].register_forward_pre_hook(count)
    capture(lm, texts)
    hook.remove()
    assert len(held) >= 2
    return max(held)


def test_memory_does_not_grow_with_the_pairs(monkeypatch: pytest.MonkeyPatch):
    lm = tiny_language_model()
    monkeypatch.setattr("weightsteer.activations.capture.batch_tokens", lambda lm: 44)
    texts = [example(*encode_example(lm, "Why?", "No."), "answer")] * 8
    gc.collect()
    few, many = largest_held(lm, texts), largest_held(lm, texts * 4)
    assert many == few


@pytest.mark.parametrize("position", [99, -99])
def test_a_token_that_is_not_there(position: int):
    with pytest.raises(DataError, match=rf"position {position}: is not among 2 prompt and 1 answer tokens. .* -3 to 2"):
        example([1, 2], [3], position)
    with pytest.raises(DataError, match="position 'answer': is not among 2 prompt and 0 answer tokens"):
        example([1, 2], [], "answer")
