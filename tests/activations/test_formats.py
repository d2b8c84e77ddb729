"""Layer numbers of others, control vectors of llama.cpp, and a direction baked into a checkpoint as a bias."""

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model, write_model

from weightsteer.activations.formats import (
    as_bias,
    from_block_inputs,
    from_hidden_states,
    from_layers,
    read_gguf,
    write_gguf,
)
from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError
from weightsteer.merging.merge import merge
from weightsteer.models.language_model import load_model
from weightsteer.recipe import ModelPart
from weightsteer.weights.vector import WeightVector


def vector_of(blocks: tuple[int, ...] = (1, 3), **fields: Any) -> ActivationVector:
    rng = torch.Generator().manual_seed(0)
    return ActivationVector({b: torch.randn(32, generator=rng) for b in blocks}, **{"mode": "all", **fields})


def test_one_direction_in_three_numberings():
    """The output of block 1 is hidden state 2, CAA's layer 1 and the input of block 2."""
    lm = tiny_language_model(num_hidden_layers=3)
    with torch.inference_mode():
        states = lm.network(torch.tensor([lm.tokens("text")]), output_hidden_states=True).hidden_states
    from weightsteer.activations.capture import Example, capture

    expected = capture(lm, [Example(lm.tokens("text"), (range(3, 4),))]).mean[0].float()
    rows = torch.stack([state[0, 3] for state in states])
    vector = from_hidden_states(rows, base="fp-llama", behavior="b")
    # transformers' last hidden state has gone through the final norm: all but the last block can be compared.
    assert sorted(vector.directions) == [0, 1, 2]
    layers = from_layers({1: rows[2]}, base="fp-llama")
    inputs = from_block_inputs({2: rows[2]}, base="fp-llama")
    for found in (vector.at(1), layers, inputs):
        assert list(found.directions) == [1]
        assert torch.allclose(found.directions[1], expected[1], atol=1e-5)
        assert not torch.allclose(found.directions[1], expected[0], atol=1e-2)
    assert [found.mode for found in (vector, layers, inputs)] == ["generated", "after_user", "all"]
    assert vector.info == {"layout": "hidden states", "behavior": "b"}


def test_what_no_block_puts_out_and_what_does_not_fit_together():
    with pytest.raises(AdapterError, match=r"input of block 0: is one of embeddings, which no block puts out"):
        from_block_inputs({0: torch.ones(4), 1: torch.ones(4)})
    with pytest.raises(AdapterError, match=r"directions of blocks \[1, 2\]: widths \[3, 4\], not all finite or of one"):
        from_layers({1: torch.ones(3), 2: torch.ones(4)})
    with pytest.raises(AdapterError, match=r"directions of blocks \[0\]: widths \[2\], not all finite"):
        from_hidden_states(torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]))


def test_a_control_vector_comes_back_as_it_was(tmp_path: Path):
    vector = vector_of(base="fp", info={"behavior": "b"})
    write_gguf(vector, tmp_path / "v.gguf", "llama")
    again = read_gguf(tmp_path / "v.gguf")
    assert sorted(again.directions) == [1, 3]
    assert all(torch.equal(v, again.directions[b]) for b, v in vector.directions.items())
    assert (again.mode, again.operation, again.base) == ("all", "add", "fp")
    assert again.info == {"behavior": "b", "layout": "llama.cpp", "model_hint": "llama"}


def test_the_file_is_laid_out_as_llama_cpp_reads_it(tmp_path: Path):
    gguf = pytest.importorskip("gguf")
    vector = vector_of((2, 1))
    write_gguf(vector, tmp_path / "v.gguf", "gemma2")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.architecture"] == "controlvector"
    assert said["controlvector.model_hint"] == "gemma2"
    assert said["controlvector.layer_count"] == 2
    assert [(t.name, t.tensor_type.name, t.shape.tolist()) for t in reader.tensors] == [
        ("direction.1", "F32", [32]), ("direction.2", "F32", [32]),
    ]  # fmt: skip
    assert reader.tensors[0].data.tolist() == vector.directions[1].tolist()


def test_what_llama_cpp_could_not_do_is_refused_as_a_whole(tmp_path: Path):
    with pytest.raises(AdapterError) as error:
        write_gguf(vector_of((0, 1), mode="generated"), tmp_path / "v.gguf", "llama")
    assert "v.gguf: 2 problems" in str(error.value)
    assert "the vector's mode is generated; llama.cpp steers every token" in str(error.value)
    assert "block 0 is steered; llama.cpp never does that" in str(error.value)
    with pytest.raises(AdapterError, match=r"operation is ablate; llama.cpp adds"):
        write_gguf(vector_of((1,)).ablating(), tmp_path / "v.gguf", "llama")
    assert not (tmp_path / "v.gguf").exists()


def test_files_that_are_no_control_vectors(tmp_path: Path):
    gguf = pytest.importorskip("gguf")
    (tmp_path / "text").write_text("no GGUF at all")
    for path in ("text", "nowhere"):
        with pytest.raises(AdapterError, match=f"{path}: not a GGUF file .* Expected a llama.cpp control vector"):
            read_gguf(tmp_path / path)
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "llama")
    writer.add_tensor("direction.0", torch.ones(4).numpy())
    writer.add_tensor("direction.1", torch.ones(2, 2).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(AdapterError) as error:
        read_gguf(tmp_path / "model.gguf")
    assert "general.architecture is 'llama'; expected 'controlvector'" in str(error.value)
    assert "tensor direction.0, F32 of shape [4]; expected one-dimensional" in str(error.value)
    assert "tensor direction.1, F32 of shape [2, 2]" in str(error.value)


def test_without_the_package_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    there = builtins.__import__

    def gone(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "gguf":
            raise ImportError("No module named 'gguf'")
        return there(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", gone)
    with pytest.raises(
        AdapterError, match=r"need the package gguf. Install it with: pip install 'weightsteer\[gguf\]'"
    ):
        read_gguf(tmp_path / "v.gguf")


@pytest.mark.parametrize(
    ("family", "config", "name"),
    [
        ("gpt2", {}, "transformer.h.1.mlp.c_proj.bias"),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, "model.decoder.layers.1.fc2.bias"),
        ("llama", {"mlp_bias": True}, "model.layers.1.mlp.down_proj.bias"),
    ],
)
def test_a_direction_as_a_bias_of_the_checkpoint(family: str, config: dict[str, Any], name: str, tmp_path: Path):
    base = write_model(tmp_path / "base", family, **config)
    lm = load_model(ModelPart(source=str(base), dtype="float32"))
    vector = vector_of((1,), base=lm.ref.fingerprint)
    bias = as_bias(lm, vector)
    assert list(bias) == [name]
    merge(base, [(WeightVector(bias, vector.base, {}), -1.5)], tmp_path / "merged")
    merged = load_model(ModelPart(source=str(tmp_path / "merged"), dtype="float32"))
    ids = torch.tensor([lm.tokens(lm.chat("Is it good?"))])
    with torch.inference_mode(), vector.applied(lm, -1.5) as steered:
        expected = steered.network(ids).logits
        assert torch.allclose(merged.network(ids).logits, expected, atol=1e-4)
    assert not torch.allclose(lm.network(ids).logits, expected, atol=1e-2)


def test_architectures_without_such_a_bias():
    vector = vector_of((1,))
    with pytest.raises(AdapterError, match=r"llama: the MLP of block 1 ends in no one linear layer with a bias"):
        as_bias(tiny_language_model(), vector)
    opt = tiny_language_model("opt", ffn_dim=64, word_embed_proj_dim=32, do_layer_norm_before=False)
    with pytest.raises(
        AdapterError, match=r"opt: model.decoder.layers.1.fc2.bias is not simply added to the output of"
    ):
        as_bias(opt, vector)
    for wrong in (vector_of((0, 1)), vector_of((1,), mode="generated"), vector_of((1,)).ablating()):
        with pytest.raises(AdapterError, match="A bias adds one block's direction to every token; expected operation"):
            as_bias(tiny_language_model("gpt2"), wrong)
    with pytest.raises(AdapterError, match="block 7 of width 32 does not exist in gpt2"):
        as_bias(tiny_language_model("gpt2"), replace(vector, directions={7: torch.ones(32)}))
