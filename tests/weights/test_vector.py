import contextlib
import dataclasses
import errno
import json
import math
import os
import stat
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from weightsteer.errors import AdapterError
from weightsteer.weights.lowrank import LowRank, as_dense
from weightsteer.weights.vector import WeightVector, block_of, diagnostics, kind_of

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight")


def random_vector(seed: int, names: tuple[str, ...] = NAMES, base: str | None = None) -> WeightVector:
    """Low-rank on the weights of linear layers, dense on norms."""
    generator = torch.Generator().manual_seed(seed)
    entries = {}
    for name in names:
        if "norm" in name:
            entries[name] = torch.randn(6, generator=generator)
        else:
            rank = int(torch.randint(1, 4, (), generator=generator))
            entries[name] = LowRank(
                torch.randn(6, rank, generator=generator), torch.randn(rank, 5, generator=generator)
            )
    return WeightVector(entries, base, {"terms": [{"weight": 1.0, "adapter": f"v{seed}"}], "notes": []})


def flat(vector: WeightVector) -> torch.Tensor:
    """All entries as one long vector, zero where there is none."""
    parts = []
    for name in NAMES:
        size = 6 if "norm" in name else 30
        change = vector.entries.get(name)
        parts.append(torch.zeros(size) if change is None else as_dense(change).flatten())
    return torch.cat(parts).double()


vectors = st.builds(
    random_vector,
    st.integers(0, 2**31),
    st.sets(st.sampled_from(NAMES), min_size=1).map(lambda n: tuple(sorted(n))),
)
factors = st.floats(-8, 8, allow_subnormal=False)


@settings(deadline=None)
@given(vectors, vectors, factors)
def test_the_algebra_is_that_of_long_vectors(a, b, factor):
    close = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(flat((a - b) + b), flat(a), **close)
    torch.testing.assert_close(flat(factor * (a + b)), factor * flat(a) + factor * flat(b), **close)
    torch.testing.assert_close(flat(a * factor + b * factor), flat((a + b) * factor), **close)
    torch.testing.assert_close(flat(-a), -flat(a), **close)
    # swapping the sides turns the vector round
    torch.testing.assert_close(flat(a - b), flat(-(b - a)), **close)


@settings(deadline=None)
@given(vectors, vectors)
def test_norm_inner_product_and_cosine_are_those_of_long_vectors(a, b):
    assert a.norm() == pytest.approx(flat(a).norm().item(), rel=1e-5)
    assert a.inner(b) == pytest.approx(flat(a).dot(flat(b)).item(), rel=1e-5, abs=1e-4)
    expected = torch.nn.functional.cosine_similarity(flat(a), flat(b), dim=0).item()
    assert a.cosine(b) == pytest.approx(expected, abs=1e-5)
    assert a.cosine(a) == pytest.approx(1)


@settings(deadline=None)
@given(vectors, vectors)
def test_diagnostics_follow_their_definition(plus, minus):
    assume(not torch.equal(flat(plus), flat(minus)))
    found = diagnostics(plus, minus)
    p, m = flat(plus), flat(minus)
    assert found["cosine"] == pytest.approx(torch.nn.functional.cosine_similarity(p, -m, dim=0).item(), abs=1e-5)
    assert found["norm_ratio"] == pytest.approx((p.norm() / m.norm()).item(), rel=1e-5)
    assert found["drift_ratio"] == pytest.approx(((p + m).norm() / (p - m).norm()).item(), rel=1e-4)


def test_diagnostics_of_equal_sides_are_refused():
    with pytest.raises(AdapterError, match=r"\+1·v3 and \+1·v3: are equal"):
        diagnostics(random_vector(3), random_vector(3))


def test_low_rank_and_dense_entries_of_one_name_become_dense():
    a = random_vector(1)
    b = dataclasses.replace(a, entries={name: as_dense(change) for name, change in a.entries.items()})
    assert all(isinstance(change, torch.Tensor) for change in (a + b).entries.values())
    assert a.inner(b) == pytest.approx(a.norm() ** 2)
    assert b.inner(a) == pytest.approx(a.norm() ** 2)


def test_norms_and_shares_are_counted_by_block_and_by_kind():
    entries = {
        "model.layers.0.self_attn.q_proj.weight": LowRank(torch.tensor([[3.0]]), torch.tensor([[1.0]])),
        "model.layers.2.mlp.down_proj.weight": torch.tensor([[4.0]]),
        "model.layers.2.input_layernorm.weight": torch.tensor([12.0]),
        "lm_head.weight": torch.tensor([[84.0]]),
    }
    vector = WeightVector(entries)
    assert vector.norm() == 85
    assert vector.norm_by_block() == pytest.approx({0: 3, 2: math.hypot(4, 12)})
    assert vector.norm_by_kind() == {"attention": 3, "mlp": 4, "embeddings and head": 84, "norms": 12}
    assert sum(vector.shares_by_kind().values()) == pytest.approx(1)
    assert vector.shares_by_kind()["attention"] == pytest.approx(9 / 7225)
    norms = dict.fromkeys(entries, 50.0) | {"model.norm.weight": 0.0}
    assert vector.relative_norm(norms) == 0.85
    with pytest.raises(AdapterError, match=r"no base norm for lm_head\.weight"):
        vector.relative_norm({name: 1.0 for name in entries if name != "lm_head.weight"})


@pytest.mark.parametrize(
    ("name", "block", "kind"),
    [
        ("model.layers.11.self_attn.o_proj.bias", 11, "attention"),
        ("model.layers.1.self_attn.q_norm.weight", 1, "norms"),
        ("model.layers.1.mlp.experts.gate_up_proj", 1, "mlp"),
        ("model.layers.1.mlp.gate.weight", 1, "mlp"),
        ("model.layers.3.block_sparse_moe.experts.0.w1.weight", 3, "mlp"),
        ("transformer.h.5.attn.c_attn.weight", 5, "attention"),
        ("transformer.h.5.ln_2.weight", 5, "norms"),
        ("transformer.wte.weight", None, "embeddings and head"),
        ("model.embed_tokens.weight", None, "embeddings and head"),
        ("lm_head.weight", None, "embeddings and head"),
        ("model.norm.weight", None, "norms"),
        ("gpt_neox.layers.0.attention.dense.weight", 0, "attention"),
        ("model.language_model.layers.0.mlp.up_proj.weight", 0, "mlp"),
        ("backbone.layers.0.mixer.in_proj.weight", 0, "other"),
    ],
)
def test_parameters_are_recognised_by_their_names(name, block, kind):
    assert (block_of(name), kind_of(name)) == (block, kind)


def test_a_sum_tells_its_terms_and_what_only_one_side_has():
    a, b = random_vector(1, NAMES[:2]), random_vector(2, NAMES[1:])
    difference = 2 * (a - b)
    assert difference.name == "+2·v1 -2·v2"
    assert difference.info["notes"] == [
        f"counted as zero in -1·v2, which lacks them: {NAMES[0]}",
        f"counted as zero in +1·v1, which lacks them: {NAMES[2]}",
    ]


def test_what_the_summands_say_alike_is_kept():
    a = dataclasses.replace(random_vector(1), info={"pairs_digest": "d", "behavior": "calm"})
    b = dataclasses.replace(random_vector(2), info={"pairs_digest": "d", "behavior": "honest"})
    assert (a + b).info == {"pairs_digest": "d", "terms": [], "notes": []}


def test_vectors_of_different_bases_do_not_add_up():
    a, b = random_vector(1, base="first"), random_vector(2, base="second")
    for operation in (lambda: a + b, lambda: a - b, lambda: a.cosine(b), lambda: a.inner(b)):
        with pytest.raises(AdapterError, match=r"\+1·v1 was made for base first; .1·v2 was made for base second"):
            operation()
    assert (a + random_vector(2)).base == "first"
    assert (random_vector(2) - a).base == "first"


def test_entries_of_different_shape_are_refused_by_name():
    other = WeightVector({NAMES[0]: LowRank(torch.ones(7, 1), torch.ones(1, 5))})
    with pytest.raises(AdapterError, match=rf"{NAMES[0]}: .* \[6, 5\] .* \[7, 5\]"):
        random_vector(1) + other


def test_a_vector_of_zero_has_no_direction():
    with pytest.raises(AdapterError, match=r"\+0·v1: is zero"):
        random_vector(2).cosine(0 * random_vector(1))


def test_a_vector_is_not_scaled_by_what_is_not_finite():
    with pytest.raises(AdapterError, match="cannot be scaled by nan"):
        random_vector(1) * math.nan


@settings(deadline=None)
@given(vectors, vectors)
def test_compressing_keeps_the_share_that_it_reports(a, b):
    total = a + b
    smaller, retained = total.compress(rank=1)
    assert smaller.rank <= 1
    assert retained == pytest.approx((smaller.norm() / total.norm()) ** 2, abs=1e-4)
    same, retained = total.compress(energy=1.0)
    torch.testing.assert_close(flat(same), flat(total), rtol=1e-4, atol=1e-4)
    assert retained == pytest.approx(1)


def test_sparsifying_keeps_the_largest_elements_of_each_entry():
    vector = random_vector(4)
    assert vector.sparsify(1) is vector
    for name, kept in vector.sparsify(0.5).entries.items():
        full = as_dense(vector.entries[name])
        assert int((kept != 0).sum()) == full.numel() // 2
        assert full.abs()[kept == 0].max() <= full.abs()[kept != 0].min()
        assert torch.equal(kept[kept != 0], full[kept != 0])
    with pytest.raises(AdapterError, match="density is 0"):
        vector.sparsify(0)


# On disk.


def equal(a: WeightVector, b: WeightVector) -> bool:
    return a.digest == b.digest and a.base == b.base and dict(a.info) == dict(b.info)


LAYOUTS = {
    "model.embed_tokens.weight": LowRank(torch.randn(9, 2), torch.randn(2, 6), "embedding"),
    "model.layers.0.q_proj.weight": LowRank(torch.randn(6, 3), torch.randn(3, 5)),
    "transformer.h.0.c_attn.weight": LowRank(torch.randn(5, 1), torch.randn(1, 6), "conv1d"),
    "model.layers.0.mlp.experts.gate_up_proj": LowRank(torch.randn(4, 6, 2), torch.randn(4, 2, 5)),
    "model.layers.0.mlp.experts.down_proj": LowRank(torch.randn(4, 5, 3), torch.randn(4, 3, 6)),
    "model.layers.1.mlp.experts.down_proj": LowRank(torch.randn(4, 5, 3), torch.randn(4, 3, 6), "parameter_transposed"),
    "model.layers.0.mlp.gate.weight": LowRank(torch.randn(4, 2), torch.randn(2, 6), "parameter"),
    "model.norm.weight": torch.randn(6),
    "model.layers.0.q_proj.bias": torch.randn(6),
}


def test_a_saved_vector_comes_back_to_the_bit(tmp_path):
    vector = WeightVector(LAYOUTS, "print", {"terms": [], "notes": ["größer"], "recipe_digest": "r"})
    vector.save(tmp_path / "v")
    loaded = WeightVector.load(tmp_path / "v")
    assert equal(loaded, vector)
    assert {name: change.layout for name, change in loaded.entries.items() if isinstance(change, LowRank)} == {
        name: change.layout for name, change in LAYOUTS.items() if isinstance(change, LowRank)
    }
    assert json.loads((tmp_path / "v/vector.json").read_text())["peft"] == (
        "incomplete: 2 of 9 changes are in dense.safetensors only"
    )


def test_a_vector_without_factors_is_no_adapter(tmp_path):
    vector = WeightVector({"model.norm.weight": torch.ones(3)})
    vector.save(tmp_path / "v")
    assert sorted(p.name for p in (tmp_path / "v").iterdir()) == ["dense.safetensors", "vector.json"]
    assert equal(WeightVector.load(tmp_path / "v"), vector)


def test_files_honour_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        WeightVector(LAYOUTS).save(tmp_path / "v")
    finally:
        os.umask(old)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "v").iterdir()} == {0o640}


def test_a_folder_that_holds_something_is_not_written_over(tmp_path):
    (tmp_path / "v").mkdir()
    random_vector(1).save(tmp_path / "v")  # an empty folder will do
    with pytest.raises(AdapterError, match=r"v: is there already"):
        random_vector(2).save(tmp_path / "v")
    assert equal(WeightVector.load(tmp_path / "v"), random_vector(1))


def test_a_vector_that_could_not_be_written_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        dataclasses.replace(random_vector(1), info={"not": object()}).save(tmp_path / "v")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("weightsteer.weights.vector_files.write_description", full)
    with pytest.raises(AdapterError, match=r"v: could not be written \(No space left on device\)"):
        random_vector(1).save(tmp_path / "v")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"target_modules": [*LINEAR, "embed_tokens", "lm_head"]}),
        ("llama-bias", {"target_modules": LINEAR, "lora_bias": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj", "wte", "lm_head"], "rank_pattern": {"wte": 2}}),
        (
            "mixtral",
            {
                "target_modules": ["q_proj"],
                "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
            },
        ),
        (
            "gpt-oss",
            {
                "target_modules": ["q_proj"],
                "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
            },
        ),
    ],
)
def test_the_saved_difference_loads_in_peft_and_gives_the_same_logits(
    family, settings, make_adapter, load_network, base, tmp_path
):
    from peft import PeftModel

    # unequal ranks, scales and target sets on the two sides; in the difference, ranks that differ between blocks
    positive, _ = make_adapter(family, 1, torch.float32, r=3, lora_alpha=5, **settings)
    fewer = {**settings, "target_modules": settings["target_modules"][:1], "layers_to_transform": [1]}
    negative, _ = make_adapter(family, 2, torch.float32, r=2, use_rslora=True, **fewer)
    model = base(family)
    vector = WeightVector.load(positive, model) - WeightVector.load(negative, model)
    vector.save(tmp_path / "vector")
    network = load_network(family)
    tokens = torch.arange(3, 23).reshape(2, 10)
    lm = SimpleNamespace(network=network, ref=SimpleNamespace(source="", fingerprint=vector.base))
    with torch.inference_mode(), vector.applied(lm, 1):
        expected = network(tokens).logits
    loaded = PeftModel.from_pretrained(load_network(family), tmp_path / "vector").eval()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(tokens).logits, expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(network(tokens).logits, expected, atol=1e-2)
    assert json.loads((tmp_path / "vector/vector.json").read_text())["peft"] == "complete"
    # and is read back as plain PEFT, without vector.json, as the same change
    (tmp_path / "vector/vector.json").unlink()
    again = WeightVector.load(tmp_path / "vector", model)
    assert (again - vector).norm() <= 1e-6 * vector.norm()


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "change", "text"),
    [
        ("adapter_config.json", lambda c: c.update(lora_alpha=7), r"lora_alpha=7 and their patterns differ"),
        ("vector.json", lambda c: c.update(format=9), r"format is 9\. Expected 1"),
        ("vector.json", lambda c: c.update(entries=[]), r"entries, base or info is damaged"),
        (
            "vector.json",
            lambda c: c["entries"].pop("model.norm.weight"),
            r"model\.norm\.weight: not in vector\.json",
        ),
        (
            "vector.json",
            lambda c: c["entries"].pop(NAMES[0]),
            rf"{NAMES[0][:-7]}\.lora_A\.weight: not in vector\.json",
        ),
        ("vector.json", lambda c: c["entries"][NAMES[0]].update(rank=-1), rf"{NAMES[0]}: damaged"),
        (
            "vector.json",
            lambda c: c["entries"][NAMES[0]].update(rank=99),
            r"lora_A\.weight: \[2, 5\]\. Expected \[99, 5\]",
        ),
        (
            "vector.json",
            lambda c: c["entries"][NAMES[2]].update(shape=[7]),
            r"norm\.weight: \[6\]\. Expected \[7\]",
        ),
    ],
)
def test_a_folder_whose_files_disagree_is_refused(file, change, text, tmp_path):
    vector = random_vector(1)
    vector.entries[NAMES[0]] = LowRank(torch.ones(6, 2), torch.ones(2, 5))
    vector.save(tmp_path / "v")
    edit(tmp_path / "v" / file, change)
    with pytest.raises(AdapterError, match=text):
        WeightVector.load(tmp_path / "v")


def test_damage_of_any_kind_is_an_error_of_ours(tmp_path, damaged):
    WeightVector(LAYOUTS, "print", random_vector(1).info).save(tmp_path / "v")
    for file in ("vector.json", "adapter_config.json", "adapter_model.safetensors", "dense.safetensors"):
        path = tmp_path / "v" / file
        whole = path.read_bytes()
        for content in damaged(whole, 2000, 150):
            path.write_bytes(content)
            with contextlib.suppress(AdapterError):  # or a vector that can be used
                loaded = WeightVector.load(tmp_path / "v")
                assert (loaded - 2 * loaded).name
        path.write_bytes(whole)
    WeightVector.load(tmp_path / "v")


def test_the_base_is_checked_where_it_is_given(tmp_path, base):
    random_vector(1, base="print").save(tmp_path / "v")
    with pytest.raises(AdapterError, match="was made for base print;"):
        WeightVector.load(tmp_path / "v", base("llama"))
    random_vector(1).save(tmp_path / "w")
    assert WeightVector.load(tmp_path / "w", base("llama").path).base == base("llama").fingerprint


def test_a_folder_that_is_no_vector_says_so(tmp_path):
    with pytest.raises(AdapterError, match=r"nowhere.adapter_config\.json: cannot be read"):
        WeightVector.load(tmp_path / "nowhere")
