"""A folder of vectors: listed with their cards, found by name, refused for another base."""

import pytest
import torch
from tiny_models import write_model

from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError
from weightsteer.monitor.library import Library, is_library
from weightsteer.weights.vector import WeightVector


@pytest.fixture
def shelf(vector, tmp_path):
    WeightVector(vector.entries, vector.base, {"behavior": "sycophancy", "notes": ["ours"]}).save(
        tmp_path / "sycophancy"
    )
    (tmp_path / "sycophancy" / "README.md").write_text("# Sycophancy")
    ActivationVector({1: torch.ones(32)}, vector.base, info={"behavior": "refusal"}).save(tmp_path / "refusal")
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_lists_what_lies_there_with_cards(shelf, vector):
    library = Library(shelf)
    assert list(library) == ["refusal", "sycophancy"]
    entry = library["sycophancy"]
    assert (entry.kind, entry.behavior, entry.base) == ("weights", "sycophancy", vector.base)
    assert entry.to_json()["card"] == str(shelf / "sycophancy" / "README.md")
    assert entry.to_json()["notes"] == ["ours"]
    assert library["refusal"].to_json()["kind"] == "activations"
    assert library["refusal"].behavior == "refusal"
    assert library["refusal"].card is None
    assert is_library(shelf)
    assert not is_library(shelf / "sycophancy")
    assert not is_library(shelf / "notes")


def test_plain_adapters_are_listed_too(trained_run):
    library = Library(trained_run({}))
    assert list(library) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert library["checkpoint-2"].load().norm() > 0


def test_finds_by_name_and_loads_for_its_base_only(shelf, model_folder, tmp_path):
    library = Library(shelf)
    assert library.find("sycophancy").load(model_folder).norm() > 0
    assert library.find("refusal").load(model_folder).norm() > 0
    with pytest.raises(
        AdapterError, match=r"no vector 'sycofancy' \(did you mean 'sycophancy'\?\). Expected one of ref"
    ):
        library.find("sycofancy")
    other = write_model(tmp_path / "other", seed=5)
    with pytest.raises(AdapterError, match="was made for base"):
        library.find("sycophancy").load(other)
    with pytest.raises(AdapterError, match="was made for base"):
        library.find("refusal").load(other)


def test_damaged_and_empty_folders_are_told(shelf, tmp_path):
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
