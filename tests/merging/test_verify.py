"""Verification recomputes: whatever is not base + Σ k·w, to one element, is found and named."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import HIDDEN, VOCABULARY, head_vector, llama_tensors, random_vector, read, write_checkpoint

from weightsteer.merging import arithmetic, lanes, shards
from weightsteer.merging.merge import merge
from weightsteer.merging.scale import Scale
from weightsteer.merging.verify import verify
from weightsteer.models.safetensors_file import read_header
from weightsteer.stage import file_digest
from weightsteer.weights.vector import WeightVector

UP = "model.layers.0.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", llama_tensors(), shards=3)


@pytest.fixture
def merged(tmp_path: Path, base: Path) -> Path:
    merge(base, [(random_vector(llama_tensors()), 0.5)], tmp_path / "out")
    return tmp_path / "out"


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_element(folder: Path, name: str, index: int, add: int = 1) -> None:
    """Add to the bits of one 16-bit element, and set the shard's digest right again."""
    (file,) = (f for f in folder.glob("*.safetensors") if name in read_header(f).tensors)
    info = read_header(file).tensors[name]
    data = bytearray(file.read_bytes())
    at = info.start + 2 * index
    bits = int.from_bytes(data[at : at + 2], "little")
    data[at : at + 2] = ((bits + add) & 0xFFFF).to_bytes(2, "little")
    file.write_bytes(data)
    edit_json(folder / "weightsteer.json", lambda said: said["shards"].update({file.name: file_digest(file)}))


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_a_merge_is_what_it_says(tmp_path, base, dtype):
    task, vector = random_vector(llama_tensors(), seed=3), random_vector(llama_tensors())
    scale = Scale(alpha=0.5, beta=0.5, modules={"mlp": 2.0})
    merge(base, [(vector, -0.5)], tmp_path / "out", adapter=task, scale=scale, dtype=dtype)
    result = verify(tmp_path / "out")
    assert (result.outcome, result.problems, result.rounded_otherwise) == ("ok", (), 0)
    assert result.tensors == len(llama_tensors())
    assert result.elements == sum(t.numel() for n, t in llama_tensors().items() if n in vector.entries)


def test_an_untied_and_an_unchanged_checkpoint_are_what_they_say(tmp_path):
    base = write_checkpoint(tmp_path / "base", llama_tensors(tied=True), tie_word_embeddings=True)
    change = torch.ones(VOCABULARY, HIDDEN)
    merge(base, [(head_vector(None, change), 1.0)], tmp_path / "untied")
    merge(base, [(head_vector(None, change), 0.0)], tmp_path / "zero")
    assert verify(tmp_path / "untied").outcome == verify(tmp_path / "zero").outcome == "ok"
    edit_json(tmp_path / "untied" / "config.json", lambda config: config.update(tie_word_embeddings=True))
    result = verify(tmp_path / "untied")
    assert result.outcome == "failed"
    assert result.problems == ("config.json: tie_word_embeddings is True; expected False",)


@pytest.mark.parametrize("name", [UP, EMBEDDING, "model.norm.weight"])
def test_one_element_one_unit_off_is_found_wherever_it_is(merged, name):
    """In a changed, an unchanged and a dense tensor; the digest in the provenance was set right again."""
    change_element(merged, name, 7)
    result = verify(merged)
    assert result.outcome == "failed"
    (problem,) = result.problems
    assert problem.startswith(f"{name}: 1 element differs, by up to ")


def test_how_many_differ_and_by_how_much_is_told(merged):
    before = read(merged)[UP].flatten()[:2].double()
    change_element(merged, UP, 0, 40)
    change_element(merged, UP, 1, 3)
    after = read(merged)[UP].flatten()[:2].double()
    furthest = (after - before).abs().max().item()
    assert verify(merged).problems == (f"{UP}: 2 elements differ, by up to {furthest:.3g}",)


def test_minus_zero_in_an_unchanged_tensor_is_a_difference(tmp_path):
    tensors = llama_tensors()
    tensors[EMBEDDING][0, 0] = 0.0
    base = write_checkpoint(tmp_path / "base", tensors)
    merge(base, [(random_vector(tensors), 1.0)], tmp_path / "out")
    change_element(tmp_path / "out", EMBEDDING, 0, 0x8000)
    assert verify(tmp_path / "out").problems == (f"{EMBEDDING}: 1 element differs, by up to 0",)


def test_swapped_shards_are_found(merged):
    first, second, _ = sorted(merged.glob("*.safetensors"))
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    assert verify(merged).outcome == "failed"
    # also with an index that was made to agree
    names = {file.name: list(read_header(file).tensors) for file in merged.glob("*.safetensors")}
    weight_map = {name: file for file, held in names.items() for name in held}
    edit_json(merged / "model.safetensors.index.json", lambda index: index.update(weight_map=weight_map))
    result = verify(merged)
    assert result.outcome == "failed"
    assert any(f"in {first.name}; expected BF16" in problem for problem in result.problems)


def test_a_shard_of_the_base_in_place_of_its_own_is_found(merged, base):
    shard = sorted(merged.glob("*.safetensors"))[1]
    shutil.copy(base / shard.name, shard)
    result = verify(merged)
    assert result.outcome == "failed"
    assert all("elements differ" in problem for problem in result.problems)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = read(folder)
    change(tensors)
    write_checkpoint(folder, tensors, side_files=False)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.pop(UP), f"{UP}: missing"),
        (lambda t: t.update(extra=torch.ones(2)), "extra: not in the base; expected no such tensor"),
        (lambda t: t.update({UP: t[UP].float()}), f"{UP}: F32 [48, 32] in model.safetensors; expected BF16 [48, 32]"),
        (
            lambda t: t.update({UP: t[UP].T.contiguous()}),
            f"{UP}: BF16 [32, 48] in model.safetensors; expected BF16 [48",
        ),
    ],
)
def test_missing_extra_and_reshaped_tensors_are_found(tmp_path, change, problem):
    base = write_checkpoint(tmp_path / "base", llama_tensors())
    merge(base, [(random_vector(llama_tensors()), 0.5)], tmp_path / "out")
    rewrite(tmp_path / "out", change)
    result = verify(tmp_path / "out")
    assert result.outcome == "failed"
    assert any(found.startswith(problem) for found in result.problems)


def test_a_merge_that_equals_its_base_is_found(merged, base):
    for shard in base.glob("*.safetensors"):
        shutil.copy(shard, merged / shard.name)
    result = verify(merged)
    assert result.outcome == "failed"
    assert {problem.split(":")[0] for problem in result.problems} == set(random_vector(llama_tensors()).entries)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda said: said["vectors"][0].update(k=0.6), "elements differ"),
        (lambda said: said["vectors"][0].update(role="adapter", k=0.25), "elements differ"),
        (lambda said: said.update(dtype="float32"), "expected F32"),
        (lambda said: said["applied"].update(share=1.5), "weightsteer.json: share is 1.5; recomputed"),
        (lambda said: said.update(untied=True), "weightsteer.json: untied is True; recomputed False"),
        (lambda said: said.update(scale={"alpha": 2, "beta": 0, "divisor": "L", "modules": {"x": 1}}), "modules.x"),
        (lambda said: said["vectors"][0].update(digest="0" * 64), "the checkpoint was made with 0000000000000000"),
    ],
)
def test_a_provenance_that_does_not_fit_the_weights_is_found(merged, change, problem):
    edit_json(merged / "weightsteer.json", change)
    result = verify(merged)
    assert result.outcome == "failed"
    assert any(problem in found for found in result.problems)


def test_another_vector_with_its_digest_set_right_is_found(merged):
    other = random_vector(llama_tensors(), seed=9)
    shutil.rmtree(merged / "steering")
    other.save(merged / "steering" / "0")
    assert "is vector" in verify(merged).problems[0]
    edit_json(merged / "weightsteer.json", lambda said: said["vectors"][0].update(digest=other.digest))
    result = verify(merged)
    assert result.outcome == "failed"
    assert any("elements differ" in problem for problem in result.problems)


def test_files_that_change_what_is_loaded_are_found(merged):
    (merged / "tokenizer.json").write_text("{}")
    (merged / "chat_template.jinja").unlink()
    (merged / "adapter_config.json").write_text("{}")
    (merged / "pytorch_model.bin").write_bytes(b"")
    (merged / "README.md").write_text("a card is welcome")
    edit_json(merged / "config.json", lambda config: config.update(num_hidden_layers=1))
    assert set(verify(merged).problems) == {
        "tokenizer.json: its content is not the one that was written",
        "chat_template.jinja: missing",
        "adapter_config.json: no part of the merge, but transformers may load it",
        "pytorch_model.bin: no part of the merge, but transformers may load it",
        "config.json: num_hidden_layers is 1; expected 2",
    }


def test_without_the_base_only_the_digests_speak(merged, base, tmp_path):
    base.rename(tmp_path / "moved")
    result = verify(merged)
    assert result.outcome == "could not check"
    assert "the base is not at hand" in result.problems[0]
    assert verify(merged, tmp_path / "moved").outcome == "ok"
    other = write_checkpoint(tmp_path / "other", llama_tensors(seed=1))
    result = verify(merged, other)
    assert result.outcome == "could not check"
    assert "the checkpoint was made from" in result.problems[0]
    change_element(merged, UP, 0)
    edit_json(merged / "weightsteer.json", lambda said: said["shards"].update(dict.fromkeys(said["shards"], "0")))
    result = verify(merged)
    assert result.outcome == "failed"
    assert "its content is not the one that was written" in result.problems[0]


def test_without_provenance_or_vectors_nothing_can_be_checked(merged, base, tmp_path):
    assert "weightsteer.json: cannot be read" in verify(base).problems[0]
    assert verify(tmp_path / "nowhere").outcome == "could not check"
    shutil.rmtree(merged / "steering")
    result = verify(merged)
    assert (result.outcome, len(result.problems)) == ("could not check", 1)
    assert "Expected the vector that was merged" in result.problems[0]
    for text, problem in (
        ("{", "weightsteer.json: not valid"),
        ('{"kind": "vector", "format": 1}', "kind 'vector' of format 1. Expected kind 'checkpoint'"),
        ('{"kind": "checkpoint", "format": 1}', "lacks or adds any_base, applied, base"),
    ):
        (merged / "weightsteer.json").write_text(text)
        result = verify(merged)
        assert result.outcome == "could not check"
        assert problem in result.problems[0]


def test_damage_is_a_failure_and_no_traceback(merged):
    shard = sorted(merged.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    result = verify(merged)
    assert result.outcome == "failed"
    assert "the data ends at byte" in result.problems[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.update(vectors=[1]),
        lambda said: said.update(scale={"alpha": "x", "beta": 0, "divisor": "L", "modules": {}}),
        lambda said: said.update(base={}),
        lambda said: said.update(shards={"a": 1}),
        lambda said: said["vectors"][0].pop("k"),
    ],
)
def test_values_of_the_wrong_kind_in_the_provenance_are_told(merged, change):
    edit_json(merged / "weightsteer.json", change)
    result = verify(merged)
    assert result.outcome == "could not check"
    assert "holds values of the wrong kind" in result.problems[0]


def test_a_disk_that_cannot_be_read_is_no_verdict(merged, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error", "shard")

    monkeypatch.setattr(lanes.Lane, "read", broken)
    result = verify(merged)
    assert result.outcome == "could not check"
    assert result.problems == ("shard: cannot be read (Input/output error)",)


def test_what_is_measured_on_other_elements_is_no_failure(tmp_path, monkeypatch):
    """As another version does; what is far from it is one still."""
    monkeypatch.setattr(arithmetic, "SMALL_BYTES", 1 << 12)
    tensors = {UP: torch.randn(600, 800, generator=torch.Generator().manual_seed(0)).bfloat16()}
    base = write_checkpoint(tmp_path / "base", tensors)
    merge(base, [(random_vector(tensors, rank=64, size=0.1), 0.5)], tmp_path / "out")
    monkeypatch.setattr(arithmetic, "SAMPLE", 1)
    assert verify(tmp_path / "out").outcome == "ok"
    said = json.loads((tmp_path / "out" / "weightsteer.json").read_text())
    said["applied"]["moved"] *= 0.9
    (tmp_path / "out" / "weightsteer.json").write_text(json.dumps(said))
    assert verify(tmp_path / "out").outcome == "failed"


@pytest.mark.gpu
def test_what_a_gpu_merged_a_processor_confirms(tmp_path, base, monkeypatch):
    monkeypatch.setattr(shards, "CUDA_WORTHWHILE", 0)
    merge(base, [(random_vector(llama_tensors()), 0.5)], tmp_path / "gpu")
    assert verify(tmp_path / "gpu").outcome == "ok"


def test_a_processor_that_rounds_the_middle_otherwise_is_no_failure(tmp_path, monkeypatch):
    """The product summed in another order moves a few elements to the other neighbour: counted, not failed."""
    tensors = {UP: torch.randn(600, 800, generator=torch.Generator().manual_seed(0)).bfloat16()}
    base = write_checkpoint(tmp_path / "base", tensors)
    vector = random_vector(tensors, rank=64, size=0.1)
    merge(base, [(vector, 0.5)], tmp_path / "out")

    def other_order(change, values):
        return values.add_(change.up.flip(1) @ change.down.flip(0))

    monkeypatch.setattr(arithmetic.Delta, "add_to", other_order)
    result = verify(tmp_path / "out")
    assert result.outcome == "ok"
    assert 0 < result.rounded_otherwise < 50
    assert isinstance(vector, WeightVector)
