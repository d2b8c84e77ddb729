"""Agreement of weight vectors and steering by their parts."""

import contextlib

import pytest
import torch

from weightsteer.errors import AdapterError
from weightsteer.weights.lowrank import LowRank
from weightsteer.weights.reliability import blocks_of, kinds_of, steerability_of_parts, vector_agreement
from weightsteer.weights.vector import WeightVector

Q, UP, HEAD = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"


def change(seed: int) -> LowRank:
    torch.manual_seed(seed)
    return LowRank(torch.randn(6, 2), torch.randn(2, 5))


def vector(**seeds: int) -> WeightVector:
    names = {"q": Q, "up": UP, "head": HEAD}
    return WeightVector({names[name]: change(seed) for name, seed in seeds.items()})


def test_a_vector_and_its_opposite():
    one = vector(q=0, up=1)
    assert vector_agreement({"a": one, "b": 3 * one}).whole == pytest.approx(1)
    opposite = vector_agreement({"a": one, "b": -one})
    assert opposite.whole == pytest.approx(-1)
    assert opposite.by_block == {0: pytest.approx(-1), 1: pytest.approx(-1)}


def test_every_part_agrees_by_its_own_dense_cosine():
    vectors = {"a": vector(q=0, up=1, head=4), "b": vector(q=0, up=2, head=5), "c": vector(q=0, up=3, head=6)}
    found = vector_agreement(vectors)

    def cosine(a: str, b: str, *names: str) -> float:
        left, right = (torch.cat([vectors[v].entries[n].dense().flatten() for n in names]).double() for v in (a, b))
        return torch.nn.functional.cosine_similarity(left, right, dim=0).item()

    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    assert found.by_kind["attention"] == pytest.approx(1)
    assert found.by_kind["mlp"] == pytest.approx(sum(cosine(a, b, UP) for a, b in pairs) / 3, abs=1e-6)
    assert found.by_block == {0: pytest.approx(1), 1: pytest.approx(found.by_kind["mlp"])}
    assert found.pairs["b, c"] == pytest.approx(cosine("b", "c", Q, UP, HEAD), abs=1e-6)
    assert found.whole == pytest.approx(sum(found.pairs.values()) / 3)


def test_a_part_that_only_one_changes_has_no_cosine():
    found = vector_agreement({"a": vector(q=0), "b": vector(q=0, up=1)})
    assert found.by_block == {0: pytest.approx(1)}


def test_parts_hold_their_entries_alone():
    whole = vector(q=0, up=1, head=2)
    assert {block: list(part.entries) for block, part in blocks_of(whole).items()} == {0: [Q], 1: [UP]}
    assert {kind: list(part.entries) for kind, part in kinds_of(whole).items()} == {
        "attention": [Q], "mlp": [UP], "embeddings and head": [HEAD],
    }  # fmt: skip


def test_each_part_is_steered_alone(monkeypatch: pytest.MonkeyPatch):
    @contextlib.contextmanager
    def applied(self, lm, k, any_base=False):
        yield dict.fromkeys(self.entries, k)

    monkeypatch.setattr(WeightVector, "applied", applied)
    # attention moves both items by 1 a unit, the MLP one of them by −2
    found = steerability_of_parts(
        None, kinds_of(vector(q=0, up=1)), (-1, 0, 1), lambda ks: [ks.get(Q, 0.0), ks.get(Q, 0.0) - 2 * ks.get(UP, 0.0)]
    )
    assert found["attention"].slope.mean == pytest.approx(1)
    assert found["attention"].anti_steerable == 0
    assert found["mlp"].slope.mean == pytest.approx(-1)
    assert found["mlp"].anti_steerable == 1


def test_one_vector_agrees_with_nothing():
    with pytest.raises(AdapterError, match="agreement of 1 vectors"):
        vector_agreement({"a": vector(q=0)})
