"""Projections of prompts, of a fine-tune's shift and of a training set equal plain forward passes, one at a time."""

import contextlib
import math

import pytest
import torch
from tiny_models import tiny_language_model

from weightsteer.activations.vector import ActivationVector
from weightsteer.data.contrast import encode_example
from weightsteer.errors import AdapterError, DataError
from weightsteer.models.generate import generate
from weightsteer.monitor import activations
from weightsteer.monitor.activations import Projections, finetune_shift, project_prompts, screen_training_set
from weightsteer.weights.lowrank import LowRank
from weightsteer.weights.vector import WeightVector

PROMPTS = ["Is it good?", "Why?", [{"role": "user", "content": "A somewhat longer question, this one?"}]]
ROWS = [("Is it good?", "Yes, very good indeed!"), ("Why?", "No."), ("A longer question?", "Perhaps.")]


@pytest.fixture
def direction() -> ActivationVector:
    generator = torch.Generator().manual_seed(0)
    return ActivationVector({b: 3 * torch.randn(32, generator=generator) for b in (0, 1)}, "fp-llama")


def hidden(lm, ids: list[int], block: int) -> torch.Tensor:
    """The output of a block, `[tokens, d_model]`."""
    kept = []
    hook = lm.network.model.layers[block].register_forward_hook(lambda _m, _i, output: kept.append(output))
    with torch.inference_mode():
        lm.network(torch.tensor([ids]))
    hook.remove()
    output = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    return output[0].double()


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_prompts_are_projected_at_their_last_token(direction, batch_tokens, monkeypatch):
    monkeypatch.setattr(activations, "batch_tokens", lambda lm: batch_tokens)
    lm = tiny_language_model()
    found = project_prompts(lm, direction, PROMPTS)
    for block, v in direction.directions.items():
        for prompt, value in zip(PROMPTS, found.blocks[block], strict=True):
            last = hidden(lm, lm.tokens(lm.chat(prompt)), block)[-1]
            assert value == pytest.approx((last @ v.double() / v.double().norm()).item(), abs=1e-4)
    assert not any(layer._forward_hooks for layer in lm.network.model.layers)


def test_the_shift_is_after_minus_before(direction):
    lm = tiny_language_model()
    change = WeightVector({"model.layers.0.mlp.up_proj.weight": LowRank(torch.ones(64, 1), torch.randn(1, 32))})
    found = finetune_shift(lm, change.applied(lm, 1.0, any_base=True), direction, PROMPTS)
    before = project_prompts(lm, direction, PROMPTS)
    with change.applied(lm, 1.0, any_base=True) as tuned:
        after = project_prompts(tuned, direction, PROMPTS)
    for block in (0, 1):
        wanted = [a - b for a, b in zip(after.blocks[block], before.blocks[block], strict=True)]
        assert found.blocks[block] == pytest.approx(wanted)
    assert max(map(abs, found.blocks[1])) > 1e-3
    still = finetune_shift(lm, contextlib.nullcontext(lm), direction, PROMPTS)
    assert still.blocks[1] == pytest.approx([0, 0, 0])


def test_a_training_set_is_held_against_the_models_own_answers(direction):
    lm = tiny_language_model()
    found = screen_training_set(lm, direction, ROWS, max_new_tokens=5)
    own = generate(lm, [prompt for prompt, _ in ROWS], 5)
    v = direction.directions[1].double()
    for (prompt, answer), reply, value in zip(ROWS, own, found.blocks[1], strict=True):
        means = []
        for text in (answer, reply):
            start, rest = encode_example(lm, prompt, text)
            means.append((hidden(lm, start + rest, 1)[len(start) :] @ v / v.norm()).mean().item())
        assert value == pytest.approx(means[0] - means[1], abs=1e-4)
    own_rows = [(prompt, reply) for (prompt, _), reply in zip(ROWS, own, strict=True)]
    assert screen_training_set(lm, direction, own_rows, 5).blocks[1] == pytest.approx([0, 0, 0], abs=1e-5)


def test_numbers_over_rows():
    found = Projections("prompts", {3: [0.0, 1.0, 2.0, 3.0, 4.0]})
    assert found.estimate(3).mean == 2
    assert found.estimate(3).low < 2 < found.estimate(3).high
    assert found.percentile(3, 95) == pytest.approx(3.8)
    alone = Projections("prompts", {0: [2.0]}).estimate(0)
    assert (alone.mean, math.isnan(alone.low)) == (2, True)
    assert found.to_json() == {"kind": "prompts", "blocks": {"3": [0, 1, 2, 3, 4]}}


def test_what_cannot_be_projected_is_told():
    lm = tiny_language_model()
    with pytest.raises(
        AdapterError, match="block 7 of width 32 does not exist in llama, which has 2 blocks of width 32"
    ):
        project_prompts(lm, ActivationVector({7: torch.ones(32)}), PROMPTS)
    with pytest.raises(AdapterError, match="block 0 of width 5 does not exist"):
        project_prompts(lm, ActivationVector({0: torch.ones(5)}), PROMPTS)
    with pytest.raises(AdapterError, match="is zero in block 0"):
        project_prompts(lm, ActivationVector({0: torch.zeros(32)}), PROMPTS)
    with pytest.raises(DataError, match="no prompts to project"):
        project_prompts(lm, ActivationVector({0: torch.ones(32)}), [])
    with pytest.raises(DataError, match="no rows to project"):
        screen_training_set(lm, ActivationVector({0: torch.ones(32)}), [])
