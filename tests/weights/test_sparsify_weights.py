"""Thinned weight vectors: drop and rescale keeps the mean, parts are parts, the curve is the share of the effect."""

from typing import Any

import pytest
import torch

from weightsteer.errors import AdapterError
from weightsteer.weights.lowrank import LowRank, as_dense
from weightsteer.weights.sparsify import drop_and_rescale, effect_curve, only, share_of_parameters, thinned
from weightsteer.weights.vector import WeightVector

Q, V = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.v_proj.weight"
UP, NORM = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"


@pytest.fixture
def vector() -> WeightVector:
    torch.manual_seed(0)
    factors = torch.randn(6, 4), torch.randn(4, 5)
    entries = {Q: LowRank(*factors), V: LowRank(*factors), UP: LowRank(torch.randn(10, 4), torch.randn(4, 5)),
               NORM: torch.randn(5)}  # fmt: skip
    return WeightVector(entries, "base", {"terms": []})


def test_the_mean_over_many_drops_is_the_vector(vector: WeightVector):
    draws, p = 2000, 0.75
    for name, change in vector.entries.items():
        whole = as_dense(change)
        mean = sum(as_dense(drop_and_rescale(only_entry(vector, name), p, seed).entries[name]) for seed in range(draws))
        # One draw has variance d²·p/(1 − p): five standard errors.
        bound = 5 * whole.abs() * (p / (1 - p) / draws) ** 0.5
        assert ((mean / draws - whole).abs() <= bound).all()


def only_entry(vector: WeightVector, name: str) -> WeightVector:
    return WeightVector({name: vector.entries[name]}, vector.base, vector.info)


def test_what_is_not_dropped_is_scaled_up(vector: WeightVector):
    before = {name: as_dense(change).clone() for name, change in vector.entries.items()}
    thin = drop_and_rescale(vector, 0.5, seed=1)
    kept = 0
    for name, change in thin.entries.items():
        assert isinstance(change, torch.Tensor)
        left = change != 0
        kept += int(left.sum())
        assert torch.allclose(change[left], before[name][left] / 0.5)
        assert torch.equal(as_dense(vector.entries[name]), before[name]), "the vector itself is left alone"
    assert 0.35 < kept / 115 < 0.65
    assert thin.digest == drop_and_rescale(vector, 0.5, seed=1).digest != drop_and_rescale(vector, 0.5, seed=2).digest
    assert not torch.equal(thin.entries[Q], thin.entries[V]), "alike entries are drawn apart"
    assert torch.equal(drop_and_rescale(only_entry(vector, V), 0.5, seed=1).entries[V], thin.entries[V])
    assert thin.info["dropped"] == 0.5
    assert drop_and_rescale(vector, 0.0) is vector


def test_every_rule_keeps_the_share_that_is_asked_for(vector: WeightVector):
    assert thinned(vector, "magnitude", 0.2).digest == vector.sparsify(0.2).digest
    assert thinned(vector, "random", 0.25, seed=3).digest == drop_and_rescale(vector, 0.75, seed=3).digest
    half = thinned(vector, "rank", 0.5)
    assert half.rank == 2
    assert torch.equal(half.entries[NORM], vector.entries[NORM])
    expected, _ = vector.entries[Q].compress(rank=2)
    assert torch.equal(as_dense(half.entries[Q]), expected.dense())
    assert thinned(vector, "rank", 1e-3).rank == 1
    for rule in ("magnitude", "random", "rank"):
        assert (thinned(vector, rule, 1.0) - vector).norm() == pytest.approx(0, abs=1e-6)


def test_parts_by_block_and_kind(vector: WeightVector):
    assert list(only(vector, blocks=[1]).entries) == [V, UP]
    assert list(only(vector, kinds=["attention"]).entries) == [Q, V]
    assert list(only(vector, blocks=range(1, 2), kinds=["attention"]).entries) == [V]
    assert list(only(vector, kinds=["norms"]).entries) == [NORM]
    assert only(vector).digest == vector.digest
    assert share_of_parameters(only(vector, kinds=["attention"]), vector) == pytest.approx(60 / 115)


def test_the_curve_is_the_effect_as_a_share_of_the_whole(vector: WeightVector):
    def effect(v: Any) -> list[float]:
        size = v.norm() / vector.norm()
        return [item * size for item in (1.0, 2.0, 3.0, 6.0)]

    curve = effect_curve(vector, ((share, share * vector) for share in (1.0, 0.5, 0.1)), effect)
    assert [point.share for point in curve] == [1.0, 0.5, 0.1]
    for point in curve:
        assert point.effect.mean == pytest.approx(3 * point.share)
        assert point.effect.low < point.effect.mean < point.effect.high
        # Items keep equal shares, so whichever are drawn the ratio is the same.
        for bound in (point.retained.mean, point.retained.low, point.retained.high):
            assert bound == pytest.approx(point.share)


def test_what_cannot_be_thinned_is_said(vector: WeightVector):
    with pytest.raises(AdapterError, match=r"drop = 1: Expected a probability of at least 0 and below 1"):
        drop_and_rescale(vector, 1)
    with pytest.raises(AdapterError, match=r"share = 0: Expected one above 0"):
        thinned(vector, "rank", 0)
    with pytest.raises(AdapterError, match=r"rule 'luck': unknown. Expected one of magnitude, random, rank"):
        thinned(vector, "luck", 0.5)
    with pytest.raises(AdapterError, match=r"has no block 7. Expected some of \[0, 1\]"):
        only(vector, blocks=[0, 7])
    with pytest.raises(AdapterError, match=r"has no kind 'qk'. Expected some of \['attention', 'mlp', 'norms'\]"):
        only(vector, kinds=["qk"])
    with pytest.raises(AdapterError, match=r"nothing of it is in blocks \[0\] and of kinds \['mlp'\]"):
        only(vector, blocks=[0], kinds=["mlp"])
    with pytest.raises(AdapterError, match=r"gave 1 numbers at share 0.5 and 2 for the whole vector"):
        effect_curve(2, [(0.5, 1)], lambda n: [1.0] * n)
    with pytest.raises(AdapterError, match=r"the whole vector has none on average"):
        effect_curve(2, [(0.5, 1)], lambda _: [1.0, -1.0])
