"""A merge is W + Σ k·w rounded once, on disk, and nothing else."""

import errno
import json
import math
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from small_checkpoints import (
    BLOCKS,
    HIDDEN,
    SIDE_FILES,
    VOCABULARY,
    equal_bytes,
    exact_sum,
    head_vector,
    llama_tensors,
    random_vector,
    read,
    rounded_once,
    write_checkpoint,
)

from weightsteer.errors import AdapterError, CheckpointError
from weightsteer.merging import arithmetic, lanes
from weightsteer.merging import merge as merge_module
from weightsteer.merging import shards as shards_module
from weightsteer.merging.merge import merge
from weightsteer.merging.scale import Scale
from weightsteer.merging.verify import verify
from weightsteer.models.fingerprint import fingerprint
from weightsteer.models.reference import ModelRef
from weightsteer.weights.lowrank import LowRank
from weightsteer.weights.vector import WeightVector

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", llama_tensors(), shards=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 5.0])
def test_every_element_is_the_exact_sum_rounded_once(tmp_path, dtype, size):
    """Mixed magnitudes on purpose. Computing in the stored dtype, or rounding the change first, turns this red."""
    generator = torch.Generator().manual_seed(3)
    tensors = {"model.layers.0.mlp.up_proj.weight": (torch.randn(700, 600, generator=generator)).to(dtype)}
    first, second = (random_vector(tensors, rank=64, size=size**0.5, seed=s) for s in (1, 2))
    base = write_checkpoint(tmp_path / "base", tensors)
    merge(base, [(first, 0.7), (second, -1.3)], tmp_path / "out")
    (name,) = tensors
    exact = exact_sum(tensors[name], [(0.7, first.entries[name]), (-1.3, second.entries[name])])
    same = read(tmp_path / "out")[name] == rounded_once(exact, dtype)
    assert same.double().mean() >= 0.9999


@pytest.mark.parametrize("small_bytes", [0, 1 << 20])
def test_rows_are_merged_in_pieces_that_leave_no_seam(tmp_path, base, monkeypatch, small_bytes):
    """Chunks of 24 rows, blocks of one: the same bytes as in one piece, and the same rows tell what is left of it."""
    vector = random_vector(llama_tensors(), size=0.05)
    everywhere = merge(base, [(vector, 2.0)], tmp_path / "everywhere").provenance.applied
    monkeypatch.setattr(arithmetic, "SMALL_BYTES", small_bytes)
    whole = merge(base, [(vector, 2.0)], tmp_path / "whole").provenance.applied
    monkeypatch.setattr(arithmetic, "CHUNK_BYTES", 24 * 2 * HIDDEN + 1)
    monkeypatch.setattr(arithmetic, "BLOCK_ELEMENTS", HIDDEN)
    pieces = merge(base, [(vector, 2.0)], tmp_path / "pieces").provenance.applied
    tensors = read(tmp_path / "whole")
    assert all(equal_bytes(tensor, read(tmp_path / "pieces")[name]) for name, tensor in tensors.items())
    assert pieces == pytest.approx(whole, rel=1e-6)
    changed = sum(t.numel() for n, t in tensors.items() if n in vector.entries)
    assert whole["measured"] == pytest.approx(changed if small_bytes else changed / 16, rel=0.2)
    assert whole["share"] == pytest.approx(everywhere["share"], abs=0.02)
    assert verify(tmp_path / "pieces").outcome == "ok"


@pytest.mark.parametrize("strengths", [[("a", 0.0)], [("a", 1.0), ("a", -1.0)], [("a", 0.3), ("b", 0.0), ("a", -0.3)]])
def test_a_change_of_zero_gives_the_bytes_of_the_base(tmp_path, base, strengths):
    """Also of -0.0, which adding a zero would turn into 0.0."""
    vectors = {"a": random_vector(llama_tensors()), "b": random_vector(llama_tensors(), seed=5)}
    tensors = llama_tensors()
    tensors["model.norm.weight"][:3] = -0.0
    base = write_checkpoint(tmp_path / "zeros", tensors, shards=3)
    result = merge(base, [(vectors[name], k) for name, k in strengths], tmp_path / "out")
    for path in base.glob("*.safetensors*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert result.changed == 0
    assert result.provenance.applied["share"] is None


def test_the_same_vector_twice_is_added_with_the_sum_of_its_strengths(tmp_path, base):
    vector = random_vector(llama_tensors())
    again = WeightVector(dict(vector.entries), vector.base, {})
    merge(base, [(vector, 0.5), (again, 1.5)], tmp_path / "twice")
    merge(base, [(vector, 2.0)], tmp_path / "once")
    assert read(tmp_path / "twice").keys() == read(tmp_path / "once").keys()
    assert all(equal_bytes(t, read(tmp_path / "once")[n]) for n, t in read(tmp_path / "twice").items())
    assert not (tmp_path / "twice" / "steering" / "1").exists()


def test_one_shard_and_many_give_the_same_tensors(tmp_path, base):
    vector = random_vector(llama_tensors())
    single = write_checkpoint(tmp_path / "single", llama_tensors())
    merge(base, [(vector, 1.0)], tmp_path / "many_out")
    merge(single, [(vector, 1.0)], tmp_path / "single_out")
    many, one = read(tmp_path / "many_out"), read(tmp_path / "single_out")
    assert many.keys() == one.keys()
    assert all(equal_bytes(many[name], one[name]) for name in many)
    assert {p.name for p in (tmp_path / "many_out").glob("*.safetensors")} == {
        p.name for p in base.glob("*.safetensors")
    }


def test_a_task_adapter_is_folded_in_at_full_strength_in_the_same_rounding(tmp_path, base):
    tensors = llama_tensors()
    task, vector = random_vector(tensors, seed=7), random_vector(tensors, seed=8)
    scale = Scale(alpha=0.5)
    merge(base, [(vector, 2.0)], tmp_path / "out", adapter=task, scale=scale)
    merged = read(tmp_path / "out")
    for name in vector.entries:
        exact = exact_sum(tensors[name], [(1.0, task.entries[name]), (2.0 * 0.5, vector.entries[name])])
        assert (merged[name] != rounded_once(exact, torch.bfloat16)).sum() <= 1


def test_what_rounding_left_of_the_change_is_measured(tmp_path, base):
    tensors = llama_tensors()
    for size in (3e-2, 1e-1):  # the smaller one loses much of itself in bfloat16
        vector = random_vector(tensors, size=size)
        result = merge(base, [(vector, 0.2)], tmp_path / f"{size}")
        merged = read(tmp_path / f"{size}")
        names = list(vector.entries)
        asked = torch.cat([exact_sum(0 * tensors[n], [(0.2, vector.entries[n])]).flatten() for n in names])
        kept = torch.cat([(merged[n].double() - tensors[n].double()).flatten() for n in names])
        applied = result.provenance.applied
        assert applied["share"] == pytest.approx((kept @ asked / (asked @ asked)).item(), rel=1e-4)
        assert applied["cosine"] == pytest.approx((kept @ asked / (kept.norm() * asked.norm())).item(), rel=1e-4)
        assert applied["moved"] == pytest.approx((kept != 0).double().mean().item())
        assert applied["measured"] == len(kept)
        assert applied["moved"] < 0.999


def test_a_change_that_rounding_swallows_whole_is_an_error_and_float32_keeps_it(tmp_path):
    ones = {name: torch.ones_like(tensor) for name, tensor in llama_tensors().items()}
    base, vector = write_checkpoint(tmp_path / "base", ones), random_vector(ones, size=1e-2)
    with pytest.raises(CheckpointError, match=r"not one of \d+ elements moved: the change, of norm .*dtype float32"):
        merge(base, [(vector, 1.0)], tmp_path / "out")
    assert list(tmp_path.iterdir()) == [base]
    result = merge(base, [(vector, 1.0)], tmp_path / "out", dtype="float32")
    assert result.provenance.applied["share"] == pytest.approx(1.0, abs=1e-3)


def test_another_dtype_is_stored_for_every_float_tensor_and_in_the_configuration(tmp_path):
    tensors = {**llama_tensors(), "model.rope.positions": torch.arange(5)}
    base = write_checkpoint(tmp_path / "base", tensors, 3, torch_dtype="bfloat16", text_config={"dtype": "bfloat16"})
    vector = random_vector(llama_tensors(), size=1e-3)
    result = merge(base, [(vector, 1.0)], tmp_path / "out", dtype="float32")
    merged = read(tmp_path / "out")
    for name, tensor in tensors.items():
        terms = [(1.0, vector.entries[name])] if name in vector.entries else []
        expected = exact_sum(tensor, terms).float() if tensor.is_floating_point() else tensor
        assert merged[name].dtype == expected.dtype
        assert (merged[name] != expected).sum() == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"], config["text_config"]) == (
        "float32",
        "float32",
        {"dtype": "float32"},
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in merged.values()) == result.size_bytes
    with pytest.raises(CheckpointError, match=r"dtype: 'int8'. Expected float32, bfloat16, float16"):
        merge(base, [(vector, 1.0)], tmp_path / "out2", dtype="int8")


def test_values_that_overflow_the_stored_dtype_are_an_error(tmp_path):
    base = write_checkpoint(tmp_path / "base", llama_tensors(torch.float16))
    vector = random_vector(llama_tensors(), size=10)
    with pytest.raises(CheckpointError, match=r"model\.layers\.\S+ is not finite in F16 once k·w is added"):
        merge(base, [(vector, 1e4)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- scaling by depth and module -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "blocks", "outside"),
    [
        (Scale(alpha=0.25, beta=0.75), [0.25, 1.0], 0.25),  # LiNeS: the last block keeps its full update
        (Scale(alpha=0.5, beta=0.5, divisor="L"), [0.5, 0.75], 0.5),
        (Scale(alpha=2.0), [2.0, 2.0], 2.0),
    ],
)
def test_a_ramp_over_depth_scales_blocks_and_what_lies_outside(scale, blocks, outside):
    names = [f"model.layers.{b}.mlp.up_proj.weight" for b in range(BLOCKS)] + ["model.norm.weight"]
    factors = scale.factors(names, {"num_hidden_layers": BLOCKS})
    assert list(factors.values()) == pytest.approx([*blocks, outside])


def test_factors_of_modules_multiply_with_the_ramp(tmp_path, base):
    vector = random_vector(llama_tensors())
    scale = Scale(alpha=0.5, beta=0.5, modules={"mlp": 0.0, "self_attn.q_proj": 4.0})
    merge(base, [(vector, 1.0)], tmp_path / "out", scale=scale)
    merged, tensors = read(tmp_path / "out"), llama_tensors()
    for name, change in vector.entries.items():
        factor = 0.0 if ".mlp." in name else (4.0 if "q_proj" in name else 1.0) * (1.0 if ".1." in name else 0.5)
        expected = rounded_once(exact_sum(tensors[name], [(factor, change)]), torch.bfloat16)
        assert (merged[name] != expected).sum() <= 1


def test_a_scale_that_does_not_fit_is_an_error_with_all_its_problems():
    names = ["model.layers.7.mlp.up_proj.weight"]
    with pytest.raises(AdapterError) as error:
        Scale(alpha=math.nan, beta=1.0, modules={"up": 2.0, "mlp": 1.0}).factors(names, {"n_layer": 4})
    for text in ("alpha: nan is not finite", "modules.up: no changed parameter", "beyond the model's 4 blocks"):
        assert text in str(error.value)
    with pytest.raises(AdapterError, match="does not say how many blocks"):
        Scale(beta=1.0).factors(names, {})


# --- what travels along ----------------------------------------------------------------------------------------


def test_small_files_arrive_byte_for_byte_and_honour_the_umask(tmp_path, base):
    (base / "README.md").write_text("the card of the base")
    (base / "tokenizer.json").chmod(0o600)
    before = os.umask(0o027)
    try:
        merge(base, [(random_vector(llama_tensors()), 1.0)], tmp_path / "out")
    finally:
        os.umask(before)
    for name in [*SIDE_FILES, "config.json", "model.safetensors.index.json"]:
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    assert (tmp_path / "out" / "BASE_README.md").read_text() == "the card of the base"
    assert not (tmp_path / "out" / "README.md").exists()
    for path in (tmp_path / "out").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


def test_pickles_and_other_weights_stay_behind_and_are_named(tmp_path, base):
    others = ["pytorch_model.bin", "pytorch_model.bin.index.json", "m.gguf", "optimizer.pt", "consolidated.safetensors"]
    others += ["onnx/model.onnx", ".cache/x", "steering/0/vector.json", "weightsteer.json"]
    for name in others:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(b"x")
    result = merge(base, [(random_vector(llama_tensors()), 1.0)], tmp_path / "out")
    assert sorted(result.provenance.left_out) == sorted(others)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *(p.name for p in base.glob("model-*")), *(name.split("/")[0] for name in SIDE_FILES),
        "config.json", "model.safetensors.index.json", "weightsteer.json", "steering",
    }  # fmt: skip


def test_a_small_file_that_links_outside_is_refused(tmp_path, base):
    (tmp_path / "secret").write_text("secret")
    (base / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"notes.txt: links to .*secret, outside the folder"):
        merge(base, [(random_vector(llama_tensors()), 1.0)], tmp_path / "out")


def test_the_source_is_never_written_to(tmp_path, base):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in base.rglob("*") if p.is_file()}
    merge(base, [(random_vector(llama_tensors()), 1.0)], tmp_path / "out")
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in base.rglob("*") if p.is_file()} == before
    for out in (base, base / "merged", base / ".." / "base", tmp_path):
        with pytest.raises(CheckpointError, match=r"is the base .*, inside it or around it"):
            merge(base, [(random_vector(llama_tensors()), 1.0)], out)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file: is a file"):
        merge(base, [(random_vector(llama_tensors()), 1.0)], tmp_path / "file")


def test_the_checkpoint_says_what_it_is(tmp_path, base):
    vector = random_vector(llama_tensors(), base=fingerprint(base))
    ref = ModelRef("someone/model", "abc", base, fingerprint(base))
    merge(ref, [(vector, -1.5)], tmp_path / "out", scale=Scale(modules={"mlp": 0.5}))
    said = json.loads((tmp_path / "out" / "weightsteer.json").read_text())
    assert said["base"] == {"source": "someone/model", "revision": "abc", "fingerprint": fingerprint(base)}
    (recorded,) = said["vectors"]
    assert (recorded["k"], recorded["role"], recorded["digest"]) == (-1.5, "vector", vector.digest)
    assert recorded["info"] == vector.info
    assert said["scale"] == {"alpha": 1.0, "beta": 0.0, "divisor": "L-1", "modules": {"mlp": 0.5}}
    assert said["shards"].keys() == {p.name for p in base.glob("*.safetensors")}
    assert "torch" in said["versions"]
    assert WeightVector.load(tmp_path / "out" / "steering" / "0").digest == vector.digest


# --- tied embeddings -------------------------------------------------------------------------------------------


def tied(tmp_path: Path, shards: int = 3, **config: object) -> Path:
    return write_checkpoint(
        tmp_path / "tied", llama_tensors(tied=True), shards, **{"tie_word_embeddings": True, **config}
    )


def change(seed: int = 0) -> torch.Tensor:
    return torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("which", ["embedding", "head", "both"])
def test_a_tied_head_is_untied_openly_when_only_one_of_the_two_changes(tmp_path, shards, which):
    embedding = change(1) if which in ("embedding", "both") else None
    head = change(2) if which in ("head", "both") else None
    base = tied(tmp_path, shards)
    result = merge(base, [(head_vector(embedding, head), 1.0)], tmp_path / "out")
    assert result.provenance.untied
    merged, before = read(tmp_path / "out"), llama_tensors(tied=True)[EMBEDDING]
    for name, delta in ((EMBEDDING, embedding), (HEAD, head)):
        expected = before if delta is None else rounded_once(before.double() + delta.double(), torch.bfloat16)
        assert equal_bytes(merged[name], expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {**json.loads((base / "config.json").read_text()), "tie_word_embeddings": False}
    if shards > 1:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["weight_map"][HEAD] == index["weight_map"][EMBEDDING]
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in merged.values())


def test_a_head_that_changes_with_its_embedding_stays_tied(tmp_path):
    base = tied(tmp_path)
    result = merge(base, [(head_vector(change(), change()), 1.0)], tmp_path / "out")
    merged = read(tmp_path / "out")
    assert not result.provenance.untied
    assert HEAD not in merged
    assert equal_bytes(
        merged[EMBEDDING], rounded_once(exact_sum(llama_tensors()[EMBEDDING], [(1.0, change())]), torch.bfloat16)
    )
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_changes_elsewhere_leave_the_tie_alone(tmp_path):
    base = tied(tmp_path)
    merge(base, [(random_vector(llama_tensors(tied=True)), 1.0)], tmp_path / "out")
    assert HEAD not in read(tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_a_tie_of_a_multimodal_model_is_undone_on_both_levels(tmp_path):
    base = tied(tmp_path, tie_word_embeddings=None, text_config={"tie_word_embeddings": True, "x": 1})
    merge(base, [(head_vector(change(), None), 1.0)], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["text_config"] == {"tie_word_embeddings": False, "x": 1}


def test_a_stored_head_that_the_configuration_ties_is_untied_there(tmp_path):
    """Both tensors are stored: transformers would tie them again, and drop the trained head."""
    tensors = {**llama_tensors(), HEAD: llama_tensors()[EMBEDDING].clone()}
    base = write_checkpoint(tmp_path / "base", tensors, tie_word_embeddings=True)
    result = merge(base, [(head_vector(None, change()), 1.0)], tmp_path / "out")
    assert result.provenance.untied
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    merge(base, [(head_vector(change(), change()), 1.0)], tmp_path / "both")
    assert (tmp_path / "both" / "config.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.mark.parametrize(("model_type", "untied"), [("llama", False), ("gemma2", True)])
def test_a_configuration_silent_about_the_tie_means_the_default_of_its_architecture(tmp_path, model_type, untied):
    base = write_checkpoint(tmp_path / "base", llama_tensors(), tie_word_embeddings=None, model_type=model_type)
    assert merge(base, [(head_vector(None, change()), 1.0)], tmp_path / "out").provenance.untied == untied


# --- refusals --------------------------------------------------------------------------------------------------


def test_every_entry_has_to_land_and_all_that_do_not_are_listed(tmp_path, base):
    vector = WeightVector(
        {
            "model.layers.0.mlp.up_proj.weight": torch.ones(HIDDEN, HIDDEN),
            "model.layers.9.mlp.up_proj.weight": torch.ones(48, HIDDEN),
            "model.layers.0.mlp.up_proj.bias": torch.ones(48),
        }
    )
    with pytest.raises(AdapterError, match="the vectors do not fit this base: 3 problems") as error:
        merge(base, [(vector, 0.0)], tmp_path / "out")
    for text in (
        "model.layers.0.mlp.up_proj.weight: changes [32, 32], the checkpoint holds [48, 32]",
        "model.layers.9.mlp.up_proj.weight: no such tensor in the checkpoint",
        "model.layers.0.mlp.up_proj.bias: the layer has no bias in this architecture",
    ):
        assert text in str(error.value)
    assert list(tmp_path.iterdir()) == [base]


def test_a_vector_of_another_base_is_refused_by_both_names_unless_allowed(tmp_path, base):
    vector = random_vector(llama_tensors(), base="feedc0de" * 8)
    with pytest.raises(AdapterError, match=f"made on the base feedc0defeedc0de, this one is {fingerprint(base)[:16]}"):
        merge(base, [(vector, 1.0)], tmp_path / "out")
    assert merge(base, [(vector, 1.0)], tmp_path / "out", any_base=True).provenance.any_base


def test_strengths_that_are_no_numbers_and_nothing_at_all_are_refused(tmp_path, base):
    with pytest.raises(AdapterError, match=r"vector 0 \(\+1·seed 1\): k is nan; expected a finite number"):
        merge(base, [(random_vector(llama_tensors()), math.nan)], tmp_path / "out")
    with pytest.raises(AdapterError, match="nothing to merge"):
        merge(base, [], tmp_path / "out")


@pytest.mark.parametrize("level", [None, "text_config"])
def test_quantised_bases_are_refused_by_name(tmp_path, level):
    quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    base = write_checkpoint(tmp_path / "base", llama_tensors(), **({level: quantised} if level else quantised))
    with pytest.raises(
        CheckpointError, match=r"is quantised \(gptq\).*Merge into the unquantised model, then quantise"
    ):
        merge(base, [(random_vector(llama_tensors()), 1.0)], tmp_path / "out")


def test_targets_stored_as_integers_or_float8_are_refused(tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = {**llama_tensors(), name: torch.zeros(48, HIDDEN).to(torch.float8_e4m3fn)}
    base = write_checkpoint(tmp_path / "base", tensors)
    with pytest.raises(CheckpointError, match=rf"{name}: is stored as F8_E4M3; expected BF16, F16, F32, F64"):
        merge(base, [(random_vector(llama_tensors()), 1.0)], tmp_path / "out")


def test_folders_that_are_no_plain_model_are_refused(tmp_path, base):
    vector = random_vector(llama_tensors())
    (base / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds an adapter beside the model"):
        merge(base, [(vector, 1.0)], tmp_path / "out")
    (base / "adapter_config.json").unlink()
    (base / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        merge(base, [(vector, 1.0)], tmp_path / "out")


def test_two_names_for_one_stored_tensor_are_refused(tmp_path):
    tensors = {name.removeprefix("model."): t for name, t in llama_tensors().items()}
    base = write_checkpoint(tmp_path / "base", tensors)
    vector = WeightVector({"model.norm.weight": torch.ones(HIDDEN), "norm.weight": torch.ones(HIDDEN)})
    with pytest.raises(CheckpointError, match=r"norm.weight: changed as model.norm.weight and as norm.weight"):
        merge(base, [(vector, 1.0)], tmp_path / "out")


# --- again, and the disk ---------------------------------------------------------------------------------------


def test_a_finished_merge_is_not_repeated_and_another_is_refused(tmp_path, base):
    vector = random_vector(llama_tensors())
    first = merge(base, [(vector, 1.0)], tmp_path / "out")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    again = merge(base, [(vector, 1.0)], tmp_path / "out")
    assert again.skipped
    assert not first.skipped
    assert again.provenance == first.provenance
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == stamps
    with pytest.raises(CheckpointError, match=r"out: holds another merge[^$]*'k': 1.0.* there, .*'k': 2.0.* asked for"):
        merge(base, [(vector, 2.0)], tmp_path / "out")
    (base / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"files: .* there, .* asked for"):
        merge(base, [(vector, 1.0)], tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="out: is not empty and no merge that weightsteer finished"):
        merge(base, [(vector, 1.0)], tmp_path / "out")
    (tmp_path / "out" / "mine.txt").unlink()
    merge(base, [(vector, 1.0)], tmp_path / "out")  # an empty folder is as good as none


def test_too_little_room_is_known_before_anything_is_written(tmp_path, base, monkeypatch):
    monkeypatch.setattr(merge_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2, 1, 10**6))
    with pytest.raises(CheckpointError, match=r"0.00 GB are free, the merge needs 0.02 GB"):
        merge(base, [(random_vector(llama_tensors()), 1.0)], tmp_path / "out")
    assert not list(tmp_path.rglob("*.out.partial/*.safetensors"))


@pytest.mark.parametrize("shards", [1, 2, 3, 10])
def test_shards_made_side_by_side_are_those_made_one_by_one(tmp_path, monkeypatch, shards):
    """More shards than threads, as many, and fewer, so that some of the threads only compute."""
    base = write_checkpoint(tmp_path / "base", llama_tensors(), shards=shards)
    vector, threads = random_vector(llama_tensors(), size=0.05), torch.get_num_threads()
    monkeypatch.setattr(arithmetic, "CHUNK_BYTES", 24 * 2 * HIDDEN)
    found = {}
    for workers in (1, 3):
        monkeypatch.setattr(lanes, "_workers", lambda workers=workers: workers)
        found[workers] = merge(base, [(vector, 2.0)], tmp_path / str(workers))
    assert found[1].provenance == found[3].provenance
    assert set(found[3].seconds) == {"read", "compute", "hash", "disk", "total"}
    assert torch.get_num_threads() == threads
    assert verify(tmp_path / "3").outcome == "ok"


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_a_shard_that_fails_ends_the_others(tmp_path, monkeypatch, workers):
    """None may wait for a buffer that one which failed has kept."""
    base = write_checkpoint(tmp_path / "base", llama_tensors(), shards=10)
    monkeypatch.setattr(lanes, "_workers", lambda: workers)
    monkeypatch.setattr(shards_module, "compute", lambda chunk, lane: 1 / 0)
    ended, threads = [], torch.get_num_threads()

    def run() -> None:
        with pytest.raises(ZeroDivisionError):
            merge(base, [(random_vector(llama_tensors()), 1.0)], tmp_path / "out")
        ended.append(torch.get_num_threads())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert ended == [threads]
    assert not (tmp_path / "out").exists()


def test_of_an_embedding_every_row_is_measured(tmp_path):
    """Its factors are zero for every token that was not trained on, wherever these stand."""
    tensors = {"model.embed_tokens.weight": torch.ones(9000, 64).bfloat16()}
    base = write_checkpoint(tmp_path / "base", tensors)
    up = torch.zeros(9000, 1)
    up[5] = 1.0
    vector = WeightVector({"model.embed_tokens.weight": LowRank(up, torch.ones(1, 64), "embedding")})
    applied = merge(base, [(vector, 1.0)], tmp_path / "out").provenance.applied
    assert applied["measured"] == 9000 * 64
    assert applied["share"] == 1.0


def test_where_a_dense_change_is_added_to_factors_every_row_is_measured(tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    base = write_checkpoint(tmp_path / "base", {name: torch.ones(9000, 64).bfloat16()})
    dense = torch.zeros(9000, 64)
    dense[5] = 1.0
    vectors = [WeightVector({name: dense}), WeightVector({name: LowRank(torch.zeros(9000, 1), torch.ones(1, 64))})]
    applied = merge(base, [(vector, 1.0) for vector in vectors], tmp_path / "out").provenance.applied
    assert applied["measured"] == 9000 * 64
    assert applied["share"] == 1.0


def test_a_disk_that_fills_up_is_a_clear_error_and_the_merge_goes_on_later(tmp_path, base, monkeypatch):
    monkeypatch.setattr(lanes, "_workers", lambda: 1)  # the first shard is finished when the third one begins
    vector, files = random_vector(llama_tensors()), set()
    write = os.pwrite

    def full(descriptor, *arguments):
        files.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        if len(files) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, *arguments)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CheckpointError, match=r"out: the disk is full.*goes on from the finished shards"):
        merge(base, [(vector, 1.0)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    partial = tmp_path / ".out.partial"
    assert not (partial / "config.json").exists()
    first = sorted(base.glob("*.safetensors"))[0].name
    stamp = (partial / first).stat().st_mtime_ns
    monkeypatch.undo()
    merge(base, [(vector, 1.0)], tmp_path / "out")
    assert (tmp_path / "out" / first).stat().st_mtime_ns == stamp
    merge(base, [(vector, 1.0)], tmp_path / "other")
    for path in base.glob("*.safetensors"):
        assert (tmp_path / "out" / path.name).read_bytes() == (tmp_path / "other" / path.name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        p.name for p in (tmp_path / "other").iterdir()
    )


def test_what_another_merge_left_behind_is_not_taken_over(tmp_path, base, monkeypatch):
    vector = random_vector(llama_tensors())
    monkeypatch.setattr(merge_module, "_write_companions", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merge(base, [(vector, 1.0)], tmp_path / "out")
    (tmp_path / ".out.partial" / "left.safetensors").write_text("left")
    monkeypatch.undo()
    merge(base, [(vector, 3.0)], tmp_path / "out")
    merge(base, [(vector, 3.0)], tmp_path / "fresh")
    assert all(equal_bytes(t, read(tmp_path / "fresh")[n]) for n, t in read(tmp_path / "out").items())
    assert not (tmp_path / "out" / "left.safetensors").exists()


def test_low_rank_and_dense_changes_of_one_tensor_add_up(tmp_path, base):
    name, tensors = "model.layers.1.mlp.down_proj.weight", llama_tensors()
    dense = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    low = LowRank(torch.ones(HIDDEN, 1), torch.ones(1, 48))
    merge(base, [(WeightVector({name: dense}), 0.5), (WeightVector({name: low}), -0.25)], tmp_path / "out")
    expected = rounded_once(exact_sum(tensors[name], [(0.5, dense), (-0.25, low)]), torch.bfloat16)
    assert equal_bytes(read(tmp_path / "out")[name], expected)
