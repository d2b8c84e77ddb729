"""The numbers behind the views, on hand-built cases and against plain forward passes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_language_model

from weightsteer.activations.capture import Example
from weightsteer.activations.letters import encode_questions
from weightsteer.activations.vector import ActivationVector
from weightsteer.activations.views import (
    activation_shift,
    block_cosines,
    components_by_block,
    effect_by_block,
    first_of_two,
    moved_to,
    principal_plane,
    separation,
    shift_cosines,
)
from weightsteer.errors import AdapterError, DataError
from weightsteer.models.blocks import decoder_blocks
from weightsteer.weights.vector import WeightVector


def block_outputs(lm: Any, ids: list[int]) -> torch.Tensor:
    """[blocks, tokens, d_model] of one text."""
    seen: list[torch.Tensor] = []
    hooks = [b.register_forward_hook(lambda _m, _i, out: seen.append(out[0])) for b in decoder_blocks(lm.network)]
    with torch.inference_mode():
        lm.network(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return torch.stack(seen).double()


def test_the_plane_holds_the_two_widest_directions():
    rng = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=rng)).Q
    wide, wider, noise = torch.randn(3, 50, generator=rng)
    values = 7 + 10 * wider[:, None] * basis[0] + 4 * wide[:, None] * basis[1] + 0.01 * noise[:, None] * basis[2]
    points, shares = principal_plane(values)
    # Pairwise distances do not depend on how the axes are turned.
    assert torch.allclose(torch.cdist(points, points), torch.cdist(values, values), atol=0.1)
    covariance = np.linalg.eigvalsh(np.cov(values.numpy().T))[::-1]
    assert shares == pytest.approx((covariance[:2] / covariance.sum()).tolist(), abs=1e-5)
    assert shares[0] > shares[1]
    assert torch.allclose(principal_plane(values.flip(0))[0].flip(0), points, atol=1e-4), "signs do not depend on order"


def test_separation_is_the_variance_between_groups():
    two = torch.tensor([[0.0, 0.0], [0.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
    assert separation(two, "aabb") == pytest.approx(1)
    assert separation(two, "abab") == pytest.approx(0)
    assert separation(two, "aaaa") == pytest.approx(0)
    # Within groups ±1, between them ±2 around the mean: 4 of 5 parts.
    assert separation(torch.tensor([[-3.0], [-1.0], [1.0], [3.0]]), "aabb") == pytest.approx(0.8)
    rng = torch.Generator().manual_seed(0)
    chance = [separation(torch.randn(21, 2, generator=rng), "abc" * 7) for _ in range(400)]
    assert sum(chance) / len(chance) == pytest.approx(2 / 20, abs=0.02)


def test_components_of_captured_activations(monkeypatch: pytest.MonkeyPatch):
    lm = tiny_language_model()
    monkeypatch.setattr("weightsteer.activations.capture.batch_tokens", lambda lm: 30)
    texts = ["one", "another one", "A", "fourth text", "fifth!"]
    ids = [lm.tokens(lm.chat(text)) for text in texts]
    examples = [Example(row, (range(len(row) - 3, len(row) - 2),)) for row in ids]
    labels = {"length": ["s", "l", "s", "l", "s"], "order": list("aabbb")}
    views = components_by_block(lm, examples, labels)
    assert [view.block for view in views] == [0, 1]
    for view in views:
        values = torch.stack([block_outputs(lm, row)[view.block, -3] for row in ids])
        points, shares = principal_plane(values)
        assert torch.allclose(view.points, points, atol=1e-3)
        assert view.shares == pytest.approx(shares, abs=1e-4)
        assert view.separation == pytest.approx({name: separation(points, of) for name, of in labels.items()}, abs=1e-4)
    with pytest.raises(DataError, match=r"components: 5 examples with labels for each. Expected 3 to 4 examples"):
        components_by_block(lm, examples, labels, limit=4)
    with pytest.raises(DataError, match=r"5 examples with labels \{'order': 2\}"):
        components_by_block(lm, examples, {**labels, "order": ["a", "b"]})
    with pytest.raises(DataError, match=r"5 activations: are all the same"):
        components_by_block(lm, [examples[0]] * 5, labels)


def test_cosines_between_blocks():
    vector = ActivationVector({2: torch.tensor([0.0, 5.0]), 0: torch.tensor([1.0, 0.0]), 1: torch.tensor([3.0, 3.0])})
    half = math.sqrt(0.5)
    expected = torch.tensor([[1, half, 0], [half, 1, half], [0, half, 1]], dtype=torch.float64)
    assert torch.allclose(block_cosines(vector), expected)
    with pytest.raises(AdapterError, match=r"activation vector: is zero at block 1. Expected a direction at every"):
        block_cosines(ActivationVector({0: torch.ones(2), 1: torch.zeros(2)}))


def test_a_direction_moved_to_other_blocks():
    vector = ActivationVector({0: torch.tensor([1.0]), 1: torch.tensor([2.0])}, "m", "after_user", {"method": "CAA"})
    moved = moved_to(vector, 1, [0, 1])
    assert [m.directions for m in moved] == [{0: torch.tensor([2.0])}, {1: torch.tensor([2.0])}]
    assert {(m.base, m.mode, m.info["method"]) for m in moved} == {("m", "after_user", "CAA")}
    with pytest.raises(AdapterError, match=r"activation vector: no block 9. Expected one of \[0, 1\]"):
        moved_to(vector, 9, [0])


def test_the_effect_of_a_block_is_the_spread_between_both_signs():
    lm = tiny_language_model()
    questions = encode_questions(lm, ["Q?\n (A) x\n (B) y", "Why?\n (A) x\n (B) y"], "(", [("A", "B"), ("B", "A")])
    rng = torch.Generator().manual_seed(1)
    vectors = [ActivationVector({b: torch.randn(32, generator=rng)}, mode="answer") for b in (0, 1)]
    found = effect_by_block(lm, questions, vectors, k=2.0)
    for row, vector in zip(found, vectors, strict=True):
        [(block, direction)] = vector.directions.items()
        for value, question in zip(row, questions, strict=True):
            p = {}
            for k in (-2.0, 2.0):

                def steer(_m: Any, _i: Any, hidden: Any, k: float = k, direction: Any = direction) -> Any:
                    hidden = hidden.clone()
                    hidden[:, -1] += k * direction
                    return hidden

                hook = decoder_blocks(lm.network)[block].register_forward_hook(steer)
                with torch.inference_mode():
                    logits = lm.network(torch.tensor([question.ids])).logits[0, -1]
                hook.remove()
                p[k] = logits[list(question.options)].softmax(0)[0].item()
            assert value.item() == pytest.approx(p[2.0] - p[-2.0], abs=1e-4)
    assert first_of_two(torch.tensor([math.log(0.3), math.log(0.1)])).item() == pytest.approx(0.75)


def test_the_shift_of_a_weight_vector():
    """A bias of block 0's MLP output moves block 0 by exactly that bias, wherever it is read."""
    lm = tiny_language_model()
    beta = torch.arange(32.0)
    vector = WeightVector({"model.layers.0.mlp.down_proj.bias": beta}, lm.ref.fingerprint)
    examples = [Example(lm.tokens(text), (range(n, n + 1),)) for text, n in (("one text", 7), ("another", 3))]
    shift = activation_shift(lm, vector, 0.5, examples)
    assert torch.allclose(shift[0], 0.5 * beta.double(), atol=1e-4)
    with vector.applied(lm, 0.5) as steered:
        after = [block_outputs(steered, e.ids)[1, e.reads[0].start] for e in examples]
    before = [block_outputs(lm, e.ids)[1, e.reads[0].start] for e in examples]
    expected = sum(a - b for a, b in zip(after, before, strict=True)) / 2
    assert torch.allclose(shift[1], expected, atol=1e-4)
    cosines = shift_cosines(ActivationVector({0: -beta, 1: expected.float()}), shift)
    assert cosines == pytest.approx({0: -1, 1: 1}, abs=1e-4)
    with pytest.raises(AdapterError, match=r"activation vector: has block 5, the shift has 2 blocks"):
        shift_cosines(ActivationVector({5: beta}), shift)
    later = torch.stack([torch.zeros(32, dtype=torch.float64), expected])
    assert shift_cosines(ActivationVector({0: beta, 1: expected.float()}), later) == pytest.approx({1: 1}, abs=1e-4)
    with pytest.raises(AdapterError, match=r"blocks \[0\]: the vector or the shift is zero in all of them"):
        shift_cosines(ActivationVector({0: beta}), torch.zeros(2, 32, dtype=torch.float64))
