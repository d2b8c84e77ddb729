"""Sparse activation vectors: what matters is kept, the length stays, and overlaps are held against those of chance."""

from functools import partial
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model

from weightsteer.activations.mechanism.sparsify import (
    THRESHOLDS,
    attribute,
    baselines,
    forced_metrics,
    keep,
    overlap,
    overlaps,
    sparsify,
)
from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError

TEXTS = [(list(b"Is tea good?"), list(b"Oh yes")), (list(b"Tea?"), list(b"No, never"))]
MATTER = [3, 11, 20]


def vector_of(lm: Any, block: int = 0, seed: int = 1) -> ActivationVector:
    direction = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return ActivationVector({block: direction}, lm.ref.fingerprint, "all")


def readout_of_three_dimensions() -> Any:
    """A model whose logits are those of block 0's output in three dimensions: token 1 reads their sum, token 2 minus
    it."""
    lm = tiny_language_model(tie_word_embeddings=False)
    with torch.no_grad():
        for part in (lm.network.model.layers[1].self_attn.o_proj, lm.network.model.layers[1].mlp.down_proj):
            part.weight.zero_()
        lm.network.lm_head.weight.fill_(0)
        lm.network.lm_head.weight[1, MATTER], lm.network.lm_head.weight[2, MATTER] = 1.0, -1.0
    lm.network.model.norm = torch.nn.Identity()
    return lm


def test_the_three_dimensions_that_matter_are_the_ones_kept():
    lm = readout_of_three_dimensions()
    direction = torch.full((32,), 1.0)
    vector = ActivationVector({0: direction}, lm.ref.fingerprint, "all")
    found = attribute(lm, vector, 30.0, forced_metrics(lm, vector, 30.0, TEXTS))
    expected = torch.zeros(32, dtype=torch.bool)
    expected[MATTER] = True
    for r in (0.1, 1, 2.5):
        assert torch.equal(sparsify(vector, found.effects, r).mask, expected)
    assert found.effects[~expected].abs().max() == 0
    # The metric is linear: token 1 minus token 2, twice 30 a dimension at each position that changed from 2 to 1.
    assert found.effects[MATTER[0]].item() % 60 == pytest.approx(0, abs=1e-3)
    assert found.change == pytest.approx(found.effects.sum().item(), rel=1e-5)
    sparse = sparsify(vector, found.effects, 1).vector.directions[0]
    assert torch.equal(sparse != 0, expected)
    assert sparse[3].item() == pytest.approx((32 / 3) ** 0.5)


@pytest.mark.parametrize("mode", ["all", "generated", "answer"])
def test_effects_add_up_to_the_change_of_the_metric(mode: Any):
    lm = tiny_language_model()
    vector = ActivationVector(vector_of(lm).directions, lm.ref.fingerprint, mode)
    metrics = forced_metrics(lm, vector, 3.0, TEXTS)
    found = attribute(lm, vector, 3.0, metrics, steps=200)
    with torch.no_grad():
        base = sum(metric(lm).item() for metric in metrics)
        with vector.applied(lm, 3.0) as steered:
            under = sum(metric(steered).item() for metric in metrics)
    assert found.change == pytest.approx(under - base, rel=1e-4)
    assert found.effects.sum().item() == pytest.approx(found.change, rel=0.02)
    assert under > 0 > base, "each run prefers its own tokens"


def test_forced_metric_sums_where_greedy_tokens_part():
    lm, (prompt, answer) = tiny_language_model(), TEXTS[0]
    vector, k = vector_of(lm), 3.0
    ids, span = torch.tensor([prompt + answer]), slice(len(prompt) - 1, -1)
    with torch.no_grad():
        base = lm.network(ids).logits[0, span]
        with vector.applied(lm, k):
            steered = lm.network(ids).logits[0, span]
        (metric,) = forced_metrics(lm, vector, k, TEXTS[:1])
        pairs = [(s, b) for s, b in zip(steered.argmax(-1), base.argmax(-1), strict=True)]
        expected = sum((z[s] - z[b]).item() for z, (s, b) in zip(base, pairs, strict=True) if s != b)
        assert metric(lm).item() == pytest.approx(expected, rel=1e-4)


def test_threshold_of_zero_keeps_everything_and_the_norm_always_stays():
    lm = tiny_language_model()
    vector, effects = vector_of(lm), torch.randn(32, generator=torch.Generator().manual_seed(2))
    whole = sparsify(vector, effects, 0)
    assert whole.mask.all()
    assert (whole.kept, whole.share) == (32, 1.0)
    assert torch.equal(whole.vector.directions[0], vector.directions[0])
    counts = []
    for r in THRESHOLDS:
        sparse = sparsify(vector, effects, r)
        assert sparse.vector.norm() == pytest.approx(vector.norm(), rel=1e-6)
        s, e = vector.directions[0] / vector.norm(), effects / effects.norm()
        assert torch.equal(sparse.mask, e.abs() >= r * s.abs())
        counts.append(sparse.kept)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_baselines_keep_as_many_each_by_its_rule():
    lm = tiny_language_model()
    vector, effects = vector_of(lm), torch.randn(32, generator=torch.Generator().manual_seed(2))
    found = baselines(vector, effects, 5, seed=3)
    assert list(found) == ["random", "magnitude", "effect"]
    assert {sparse.kept for sparse in found.values()} == {5}
    scores = {"magnitude": vector.directions[0].abs(), "effect": effects.abs()}
    for rule, score in scores.items():
        mask = found[rule].mask
        assert score[mask].min() > score[~mask].max()
        assert found[rule].vector.norm() == pytest.approx(vector.norm(), rel=1e-6)
    assert torch.equal(baselines(vector, effects, 5, seed=3)["random"].mask, found["random"].mask)
    assert not torch.equal(baselines(vector, effects, 5, seed=4)["random"].mask, found["random"].mask)


def test_overlap_is_that_of_the_hypergeometric_distribution():
    one, other = torch.tensor([True, True, False, False]), torch.tensor([False, True, True, False])
    found = overlap(one, other)
    # Of 6 ways to choose two of four, 1 shares none, 4 share one (1/3), 1 shares both (1).
    assert (found.shared, found.iou) == (1, pytest.approx(1 / 3))
    assert found.expected_iou == pytest.approx(4 / 6 / 3 + 1 / 6)
    assert found.p_value == pytest.approx(5 / 6)
    assert list(overlaps({"a": one, "b": other, "c": one})) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert overlaps({"a": one, "c": one})["a", "c"].iou == 1


def test_what_cannot_be_sparsified_is_said():
    lm = tiny_language_model()
    vector, effects = vector_of(lm), torch.ones(32)
    with pytest.raises(AdapterError, match=r"blocks \[0, 1\], norm .* Expected one direction that is added"):
        sparsify(ActivationVector({0: torch.ones(32), 1: torch.ones(32)}), effects, 1)
    with pytest.raises(AdapterError, match=r"operation ablate, .* Expected one direction that is added"):
        attribute(lm, vector.ablating(), 1.0, [])
    with pytest.raises(AdapterError, match=r"r = -1: Expected a finite threshold"):
        sparsify(vector, effects, -1)
    with pytest.raises(AdapterError, match=r"effects: shape \[3\], finite. Expected 32 finite numbers"):
        sparsify(vector, torch.ones(3), 1)
    with pytest.raises(AdapterError, match=r"effects: shape \[32\], not finite"):
        sparsify(vector, effects * float("nan"), 1)
    with pytest.raises(AdapterError, match=r"none of the 0 dimensions kept differs from zero"):
        sparsify(ActivationVector({0: torch.ones(32)}), effects, 2.5)
    with pytest.raises(AdapterError, match=r"none of the 1 dimensions kept differs from zero"):
        keep(ActivationVector({0: torch.arange(32.0)}), torch.arange(32) == 0)
    with pytest.raises(AdapterError, match=r"count = 33: Expected 1 to 32"):
        baselines(vector, effects, 33)
    with pytest.raises(AdapterError, match=r"overlap of 0 of 32 and 32 of 32 dimensions"):
        overlap(torch.zeros(32, dtype=torch.bool), torch.ones(32, dtype=torch.bool))


def test_a_metric_that_says_nothing_of_the_vector_is_found_out():
    lm = tiny_language_model()
    vector = vector_of(lm)
    with pytest.raises(AdapterError, match=r"metric: does not depend on the vector. Expected a finite number"):
        attribute(lm, vector, 1.0, [lambda _: torch.tensor(1.0)])
    (metric,) = forced_metrics(lm, vector, 3.0, TEXTS)
    with pytest.raises(AdapterError, match=r"metric: is nan. Expected a finite number"):
        attribute(lm, vector, 3.0, [lambda steered: metric(steered) * float("nan")])
    with pytest.raises(AdapterError, match=r"nowhere choose different tokens in 2 forced sequences"):
        forced_metrics(lm, vector, 1e-9, TEXTS)
    with pytest.raises(AdapterError, match=r"activation vector of base fp-qwen2, model llama is fp-llama"):
        attribute(lm, vector_of(tiny_language_model("qwen2")), 1.0, [metric])
    assert isinstance(metric, partial)
    assert not any(block._forward_hooks for block in lm.network.model.layers), "every hook is gone"
