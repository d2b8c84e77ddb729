"""What is measured from factors equals what the dense matrices give; groups add up; misfits are told."""

import math
from collections.abc import Iterator

import pytest
import torch
from trainings import random_vector

from weightsteer.errors import AdapterError
from weightsteer.monitor import measure
from weightsteer.monitor.measure import Directions, Measurement, Moved
from weightsteer.weights.lowrank import Change, LowRank, as_dense
from weightsteer.weights.vector import WeightVector, block_of, kind_of


def factored(network, seed: int = 5) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(torch.randn(p.shape[0], 4, generator=generator), torch.randn(4, p.shape[1], generator=generator))
        for name, p in network.named_parameters()
        if "proj" in name
    }


def moved(changes: dict[str, Change]) -> Iterator[tuple[str, Moved]]:
    for name, change in changes.items():
        dense, before = as_dense(change), torch.randn(change.shape)
        yield name, Moved(dense + before, before)


def expected(changes: dict[str, Change], vector: WeightVector, keep) -> tuple[float, float]:
    """Cosine and projection by the definition, over the parameters that are kept."""
    names = {name for name in (*changes, *vector.entries) if keep(name)}
    whole = math.sqrt(sum(as_dense(c).double().square().sum().item() for c in vector.entries.values()))
    pairs = [(changes.get(n), vector.entries.get(n)) for n in names]
    inner = sum((as_dense(c).double() * as_dense(v).double()).sum().item() for c, v in pairs if None not in (c, v))
    c, v = (
        math.sqrt(sum(as_dense(p[i]).double().square().sum().item() for p in pairs if p[i] is not None)) for i in (0, 1)
    )
    return inner / (c * v), inner / whole


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("block_elements", [70, 1 << 20])
def test_equals_the_definition_globally_by_block_and_by_kind(network, vector, dense, block_elements, monkeypatch):
    monkeypatch.setattr(measure, "BLOCK_ELEMENTS", block_elements)
    changes: dict[str, Change] = {**factored(network), "model.embed_tokens.weight": torch.randn(261, 32)}
    stream = moved(changes) if dense else ((n, c if isinstance(c, LowRank) else Moved(c)) for n, c in changes.items())
    found = Directions({"v": vector, "other": random_vector(network, 9)}).measure(stream)
    reading = found.readings["v"]
    parts = [(reading.whole, lambda name: True)]
    parts += [(reading.without_embeddings, lambda name: kind_of(name) != "embeddings and head")]
    parts += [(along, lambda name, b=b: block_of(name) == b) for b, along in reading.blocks.items()]
    parts += [(along, lambda name, k=k: kind_of(name) == k) for k, along in reading.kinds.items() if k != "norms"]
    assert set(reading.blocks) == {0, 1}
    assert set(reading.kinds) == {"attention", "mlp", "embeddings and head", "norms"}
    for along, keep in parts:
        assert along == pytest.approx(expected(changes, vector, keep), abs=1e-5)
    assert reading.kinds["norms"].cosine is None, "nothing of it changed, so it went nowhere"
    norm = math.sqrt(sum(as_dense(c).double().square().sum().item() for c in changes.values()))
    assert found.norm == pytest.approx(norm, rel=1e-5)
    assert sum(along.projection or 0 for along in reading.kinds.values()) == pytest.approx(reading.whole.projection)


def test_a_contrast_of_nearly_equal_products_keeps_its_digits(network):
    positive, noise = WeightVector(factored(network)), WeightVector(factored(network, 8))
    contrast = positive - (positive + 1e-4 * noise)  # all but one part in ten thousand cancels
    found = Directions({"contrast": contrast}).measure(factored(network, 8).items())
    assert found.readings["contrast"].whole.cosine == pytest.approx(-1, abs=1e-4)


def test_many_numbers_that_are_alike_are_added_up_rightly():
    """A million tenths, added one by one in float32, would be off by more than what is promised."""
    name, tenths = "model.layers.0.mlp.up_proj.weight", torch.full((1024, 1024), 0.1)
    found = Directions({"v": WeightVector({name: tenths})}).measure([(name, Moved(tenths))])
    assert found.norm == pytest.approx(102.4, rel=2e-6)
    assert found.readings["v"].whole == pytest.approx((1.0, 102.4), rel=1e-5)


def test_experts_are_measured_one_by_one():
    generator = torch.Generator().manual_seed(0)

    def experts(seed: int) -> LowRank:
        generator.manual_seed(seed)
        return LowRank(torch.randn(3, 8, 2, generator=generator), torch.randn(3, 2, 5, generator=generator))

    name = "model.layers.0.mlp.experts.down_proj"
    change, vector = experts(1), WeightVector({name: experts(2)})
    cosine = torch.nn.functional.cosine_similarity(change.dense().flatten(), experts(2).dense().flatten(), 0).item()
    for one in (change, Moved(change.dense())):
        found = Directions({"v": vector}).measure([(name, one)])
        assert found.readings["v"].whole.cosine == pytest.approx(cosine, abs=1e-5)


def test_no_change_has_no_direction_and_no_number_is_null(network, vector):
    directions = Directions({"v": vector})
    still = directions.measure([(name, c * 0) for name, c in factored(network).items()])
    assert still.norm == 0
    assert still.readings["v"].whole == (None, 0.0)
    broken = factored(network)
    name = next(iter(broken))
    broken[name] = LowRank(broken[name].up * math.nan, broken[name].down)
    burst = directions.measure(broken.items())
    assert (burst.norm, burst.readings["v"].whole) == (None, (None, None))


def test_a_measurement_survives_json(network, vector):
    found = Directions({"v": vector}).measure(factored(network).items())
    assert Measurement.from_json(found.to_json()) == found


def test_vectors_that_cannot_be_monitored_are_told_together(network):
    one, other = random_vector(network, 1, base="aaa"), random_vector(network, 2, base="bbb")
    with pytest.raises(AdapterError) as error:
        Directions({"one": one, "other": other, "none": one * 0})
    assert "none: is zero" in str(error.value)
    assert "one for base aaa, other for base bbb" in str(error.value)
    with pytest.raises(AdapterError, match="no vector is given"):
        Directions({})


def test_another_base_other_shapes_and_other_parameters_are_told(network):
    directions = Directions({"v": random_vector(network, base="aaa")})
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    directions.check_fit("run", shapes, "aaa", any_base=False)
    directions.check_fit("run", shapes, None, any_base=False)
    directions.check_fit("run", shapes, "bbb", any_base=True)
    with pytest.raises(AdapterError, match="v: was made for base aaa, the run's is bbb"):
        directions.check_fit("run", shapes, "bbb", any_base=False)
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(AdapterError, match=r"v: changes .*up_proj.weight \[64, 32\], the run \[7, 7\]"):
        directions.check_fit("run", {**shapes, name: (7, 7)}, "aaa", any_base=False)
    with pytest.raises(AdapterError, match=r"v: has no parameter in common with the run: .* the run tr"):
        directions.check_fit("run", {"transformer.h.0.weight": (2, 2)}, "aaa", any_base=False)


def test_a_parameter_that_stands_twice_is_an_error(network, vector):
    change = next(iter(factored(network).items()))
    with pytest.raises(AdapterError, match="stands twice"):
        Directions({"v": vector}).measure([change, change])
