"""Steering value vectors against what attention does to an input, and models in which a head's words are known."""

from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model

from weightsteer.activations.capture import example
from weightsteer.activations.mechanism.values import (
    COLUMNS,
    decompose,
    direction_into,
    head_values,
    mean_shift,
    read_tokens,
)
from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError, ModelError
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.language_model import LanguageModel
from weightsteer.report import mechanism_figures
from weightsteer.report.figures import picture
from weightsteer.stats import Estimate

FAMILIES = ["llama", "qwen2", "gemma3_text", "gpt2", "phi3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_together_are_what_attention_makes_of_one_token(family: str):
    """A token alone attends to itself: attention's output changes by the sum over heads, over the token's norm."""
    lm = tiny_language_model(family)
    block = decoder_blocks(lm.network)[1]
    norm = block.ln_1 if family == "gpt2" else block.input_layernorm
    attention = block.attn if family == "gpt2" else block.self_attn
    s = torch.randn(32, generator=torch.Generator().manual_seed(3))
    if family == "gemma3_text":
        block.post_attention_layernorm.weight.data = torch.linspace(-0.5, 1, 32)
    found: list[torch.Tensor] = []
    tokens = iter((s, -s))
    hooks = [
        # s in the place of the token
        norm.register_forward_pre_hook(lambda _m, given: (next(tokens).expand_as(given[0]),)),
        attention.register_forward_hook(lambda _m, _i, out: found.append(out[0][0, 0])),
    ]
    lm.network(torch.tensor([[65]]))
    lm.network(torch.tensor([[65]]))
    for hook in hooks:
        hook.remove()
    scale = s.std(correction=0) if family == "gpt2" else s.square().mean().sqrt()
    expected = (found[0] - found[1]) / 2  # a bias is the same for both signs
    values = head_values(lm, s, 1)
    assert values.shape == (4, 32)
    if family == "gemma3_text":
        expected = expected * (1 + torch.linspace(-0.5, 1, 32))
    torch.testing.assert_close(values.sum(0) / scale, expected, rtol=1e-3, atol=1e-3)


def heads_of_known_words() -> LanguageModel:
    """Only head 1 of block 1 passes a direction on: dimension 3 becomes dimension 5, which is the letter Q."""
    lm = tiny_language_model()  # heads 0 and 1 share their values
    attention = decoder_blocks(lm.network)[1].self_attn
    attention.v_proj.weight.data.zero_()
    attention.v_proj.weight.data[2, 3] = 1.0
    attention.o_proj.weight.data.zero_()
    attention.o_proj.weight.data[5, 8 + 2] = 2.0
    head = lm.network.lm_head.weight.data
    head[:, 5] = 0
    head[lm.tokens("Q")[0], 5], head[lm.tokens("z")[0], 5] = 3.0, -1.0
    return lm


def test_the_head_and_its_words_are_found():
    lm = heads_of_known_words()
    rows = decompose(lm, 4 * torch.eye(32)[3], [1, 0], shown=2)
    assert [(row.block, row.head) for row in rows] == [(b, h) for b in (0, 1) for h in range(4)]
    found = {row.head: row for row in rows if row.block == 1}
    assert [found[head].gain for head in range(4)] == pytest.approx([0, 2, 0, 0])
    assert found[1].top[0] == ("Q", pytest.approx(3 * 32**0.5))
    assert found[1].bottom[0] == ("z", pytest.approx(-(32**0.5)))
    assert found[1].cosine == pytest.approx(0)
    assert found[0].top == found[0].bottom == ()
    assert found[0].cosine != found[0].cosine
    assert len(found[1].row) == len(COLUMNS)
    assert found[1].row[0] == "1.1"
    assert found[1].row[3].startswith("'Q' ")
    [(top, bottom)] = read_tokens(lm, -torch.eye(32)[5:6], 1)
    assert (top[0][0], bottom[0][0]) == ("z", "Q")


def test_the_shift_of_a_vector_and_what_it_adds():
    lm = tiny_language_model()
    vector = ActivationVector({0: torch.ones(32), 1: torch.arange(32.0)}, mode="all")
    examples = [example(lm.tokens(text), [], "last") for text in ("One text.", "Two.")]
    shift = mean_shift(vector, lm, 2, examples)
    torch.testing.assert_close(shift[0], torch.full((32,), 2.0), rtol=0, atol=1e-5)
    assert not torch.allclose(shift[1], 2 * vector.directions[1])
    assert torch.equal(direction_into(vector, 1), torch.ones(32))
    assert torch.equal(direction_into(vector, 2), torch.ones(32) + torch.arange(32))


def test_what_does_not_fit_is_said():
    lm, vector = tiny_language_model(), ActivationVector({1: torch.ones(32)})
    with pytest.raises(AdapterError, match=r"adds directions of blocks \[1\], nothing that block 1 reads"):
        direction_into(vector, 1)
    with pytest.raises(AdapterError, match=r"ablates directions of blocks \[1\]"):
        direction_into(vector.ablating(), 2)
    with pytest.raises(AdapterError, match=r"a direction of width 8: does not fit llama. Expected one of width 32"):
        head_values(lm, torch.ones(8), 1)
    with pytest.raises(ModelError, match="block 2: does not exist in LlamaForCausalLM"):
        decompose(lm, torch.ones(32), [2])
    with pytest.raises(ModelError, match="head 4 of block 1: does not exist"):
        decompose(lm, torch.ones(32), [1], heads=[4])


def test_figures():
    bars = [("QK", Estimate(0.1, -0.05, 0.2)), ("OV", Estimate(0.7, 0.6, 0.9)), ("MLP", None)]
    label = "share of the effect that is lost"
    told = mechanism_figures.describe_shares(bars, label)
    assert told == "Share of the effect that is lost. QK 10 %; OV 70 %; MLP not scored."
    shown = picture("drop", lambda theme: mechanism_figures.draw_shares(bars, label, theme), told, "")
    grid: Any = [[0.1, 0.2], [0.0, 0.4], [0.3, 0.1]]
    told = mechanism_figures.describe_heads(grid, [4, 5, 6], "gain")
    assert told == "Gain. Largest: 0.400 in head 1 of block 5."
    heads = picture("heads", lambda theme: mechanism_figures.draw_heads(grid, [4, 5, 6], "gain", theme), told, "")
    for image in (shown, heads):
        assert image.light != image.dark
        assert image.size[0] == 1008
