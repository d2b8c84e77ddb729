"""A folder of vectors: listed with their cards, found by name; what is damaged is told."""

import pytest
import torch

from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError
from weightsteer.show import describe
from weightsteer.weights.library import Library, is_library
from weightsteer.weights.vector import WeightVector


@pytest.fixture
def shelf(tmp_path):
    """Two vectors of norm 5, and a folder that is none."""
    info = {"behavior": "sycophancy", "notes": ["ours"]}
    WeightVector({"model.norm.weight": torch.tensor([3.0, -4.0])}, "f00d", info).save(tmp_path / "sycophancy")
    (tmp_path / "sycophancy" / "README.md").write_text("# Sycophancy")
    ActivationVector({1: torch.tensor([0.0, 5.0])}, "f00d", info={"behavior": "refusal"}).save(tmp_path / "refusal")
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_lists_what_lies_there_with_cards(shelf):
    library = Library(shelf)
    assert list(library) == ["refusal", "sycophancy"]
    entry = library["sycophancy"]
    assert (entry.kind, entry.behavior, entry.base) == ("weights", "sycophancy", "f00d")
    assert entry.to_json()["card"] == str(shelf / "sycophancy" / "README.md")
    assert entry.to_json()["notes"] == ["ours"]
    assert library["refusal"].to_json()["kind"] == "activations"
    assert library["refusal"].behavior == "refusal"
    assert library["refusal"].card is None
    assert is_library(shelf)
    assert not is_library(shelf / "sycophancy")
    assert not is_library(shelf / "notes")
    assert not is_library(shelf / "none")


def test_show_lists_them_with_their_norms(shelf):
    found = describe(shelf)
    assert found["library"] == str(shelf)
    assert {name: (v["norm"], v["base"], v["behavior"]) for name, v in found["vectors"].items()} == {
        "refusal": (5.0, "f00d", "refusal"),
        "sycophancy": (5.0, "f00d", "sycophancy"),
    }
    assert found["vectors"]["sycophancy"]["card"].endswith("README.md")
    (shelf / "sycophancy" / "dense.safetensors").write_bytes(b"cut")
    found = describe(shelf)["vectors"]
    assert found["sycophancy"]["norm"].startswith("not known: ")
    assert "dense.safetensors" in found["sycophancy"]["norm"]
    assert found["refusal"]["norm"] == 5.0


def test_plain_adapters_are_listed_too(make_adapter):
    folder, _ = make_adapter("llama", r=2, target_modules=["q_proj"])
    [entry] = [entry for name, entry in Library(folder.parent).items() if name == folder.name]
    assert (entry.kind, entry.base, entry.behavior) == ("weights", None, None)
    assert describe(folder.parent)["vectors"][folder.name]["norm"] == WeightVector.load(folder).norm() > 0


def test_finds_by_name(shelf):
    assert Library(shelf).find("sycophancy").path == shelf / "sycophancy"
    with pytest.raises(
        AdapterError, match=r"no vector 'sycofancy' \(did you mean 'sycophancy'\?\). Expected one of ref"
    ):
        Library(shelf).find("sycofancy")


def test_damaged_and_empty_folders_are_told(shelf):
    (shelf / "sycophancy" / "vector.json").write_text("{")
    (shelf / "refusal" / "activation_vector.safetensors").write_bytes(b"short")
    with pytest.raises(AdapterError) as error:
        Library(shelf)
    assert "2 problems" in str(error.value)
    assert "sycophancy: its description cannot be read" in str(error.value)
    with pytest.raises(AdapterError, match="no such folder"):
        Library(shelf / "none")
    with pytest.raises(AdapterError, match="holds no vector"):
        Library(shelf / "notes")
