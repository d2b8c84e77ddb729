"""What the headers tell of a base is what the network tells."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import write_model
from transformers import AutoModel

from weightsteer.errors import AdapterError
from weightsteer.weights import base as base_module
from weightsteer.weights.base import PLAIN, Base
from weightsteer.weights.vector import WeightVector

MERGE = """
import sys
from weightsteer.merging.merge import merge
from weightsteer.weights.vector import WeightVector

base, vector, out = sys.argv[1:]
merge(base, [(WeightVector.load(vector, base), 2.0)], out)
print(*{"transformers", "peft", "pydantic", "yaml"} & set(sys.modules))
"""


@pytest.mark.parametrize("family", PLAIN)
def test_plain_families_are_what_their_headers_say(tmp_path: Path, family: str):
    base = Base.of(write_model(tmp_path, family))
    names = [name for name, stored in base.checkpoint.tensors.items() if len(stored.shape) == 2]
    told = {name: (base.layout(name), base.shape(name)) for name in names}
    assert "network" not in vars(base)
    config = {**base.checkpoint.config, "model_type": "no plain one"}
    base.network  # noqa: B018  from the true configuration
    object.__setattr__(base.checkpoint, "config", config)
    assert told == {name: (base.layout(name), base.shape(name)) for name in names}
    assert {layout for layout, _ in told.values()} == {"linear", "embedding"}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llava", "text_config": {"model_type": "llama"}},
        {"model_type": "llama", "quantization_config": {"quant_method": "fp8"}},
    ],
)
def test_only_a_whole_plain_model_is_taken_at_its_word(tmp_path: Path, config: dict, monkeypatch: pytest.MonkeyPatch):
    """In a larger model the same tensors have other names in the network; quantised ones have other shapes."""
    folder = write_model(tmp_path, "llama")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    monkeypatch.setattr(Base, "parameters", {})
    assert Base.of(folder).layout("model.layers.0.mlp.up_proj.weight") is None


def test_a_bare_decoder_is_no_plain_model(tmp_path: Path):
    """Its tensors have other names in the causal language model that they are loaded into."""
    folder = write_model(tmp_path / "whole", "llama")
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "bare")
    base = Base.of(tmp_path / "bare")
    assert "layers.0.mlp.up_proj.weight" in base.checkpoint.tensors
    assert base.layout("layers.0.mlp.up_proj.weight") is None


def test_what_the_headers_do_not_hold_is_asked_of_the_network(tmp_path: Path):
    base = Base.of(write_model(tmp_path, "llama", tie_word_embeddings=True))
    assert base.layout("lm_head.weight") == "linear"
    assert base.shape("lm_head.weight") == (261, 32)
    assert base.layout("model.no.such.weight") is None
    assert base.shape("model.no.such.weight") is None


def test_an_adapter_on_a_plain_family_needs_no_network(make_adapter, model_folder, monkeypatch: pytest.MonkeyPatch):
    folder, _ = make_adapter("llama", target_modules=["q_proj", "down_proj"])
    with monkeypatch.context() as patch:
        patch.setattr(base_module, "PLAIN", ())
        expected = WeightVector.load(folder, model_folder("llama"))

    def fail(self):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(Base, "network", property(fail))
    assert WeightVector.load(folder, model_folder("llama")).digest == expected.digest


def test_an_adapter_of_another_family_does_not_fit(make_adapter, model_folder):
    folder, _ = make_adapter("gpt2", target_modules=["c_attn"])
    with pytest.raises(AdapterError, match="has no"):
        WeightVector.load(folder, model_folder("llama"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_merge_loads_no_library_that_it_does_not_need(make_adapter, model_folder, tmp_path: Path, family: str):
    """A saved vector knows its layouts, so that not even the base's network is asked."""
    folder, _ = make_adapter(family, target_modules=["c_attn" if family == "gpt2" else "q_proj"])
    WeightVector.load(folder, model_folder(family)).save(tmp_path / "vector")
    paths = [model_folder(family), tmp_path / "vector", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", MERGE, *paths], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
