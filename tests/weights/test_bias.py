"""Bias-only fine-tuning: where the biases stand, that they alone are trained, and what they do."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from weightsteer.errors import ModelError
from weightsteer.models.language_model import LanguageModel
from weightsteer.models.reference import ModelRef
from weightsteer.recipe import TrainingPart
from weightsteer.weights.bias import mlp_outputs, quiet_peft, with_biases
from weightsteer.weights.vector import WeightVector

ENDS = {
    "llama": "model.layers.{}.mlp.down_proj",
    "llama-bias": "model.layers.{}.mlp.down_proj",
    "gemma3": "model.layers.{}.mlp.down_proj",
    "gpt2": "transformer.h.{}.mlp.c_proj",
}


def wrapped_by(network: Any, **settings: Any) -> Any:
    with quiet_peft():
        return with_biases(LanguageModel(network, None, ModelRef("", None, Path(), "")), TrainingPart(**settings))


@torch.no_grad()
def logits(network: Any) -> torch.Tensor:
    return network(input_ids=torch.arange(3, 23).reshape(2, 10)).logits


@pytest.mark.parametrize("family", ENDS)
def test_the_layer_that_ends_the_mlp_is_found(family: str, new_network: Any):
    assert mlp_outputs(new_network(family)) == [ENDS[family].format(b) for b in range(2)]


def test_it_is_found_where_the_block_holds_the_mlp_layers_itself():
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    network = OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=32, max_position_embeddings=64))
    assert mlp_outputs(network) == [f"model.decoder.layers.{b}.fc2" for b in range(2)]


@pytest.mark.parametrize("family", ["mixtral", "gpt-oss"])
def test_a_mixture_of_experts_is_refused(family: str, new_network: Any):
    with pytest.raises(
        ModelError,
        match=r"bias-only: block 0 has no one linear layer that ends its MLP; found a mixture of experts. Expected one "
        r"named down_proj, .*. Use another method",
    ):
        wrapped_by(new_network(family))


def test_an_mlp_under_other_names_is_refused(new_network: Any):
    network = new_network("llama")
    mlp = network.model.layers[1].mlp
    mlp.out, mlp.down_proj = mlp.down_proj, torch.nn.Identity()
    with pytest.raises(ModelError, match=r"block 1 has .* found none among its linear layers \['model.layers.1.self_"):
        mlp_outputs(network)


@pytest.mark.parametrize("family", ENDS)
def test_the_biases_alone_are_trainable_and_start_at_nothing(family: str, new_network: Any, recwarn: Any):
    network = new_network(family)
    before = logits(network)
    wrapped = wrapped_by(network)
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert [tuple(p.shape) for p in trained.values()] == [(32,), (32,)]
    assert all(p.dtype == torch.float32 for p in trained.values())
    assert torch.equal(logits(wrapped), before)
    wrapped(input_ids=torch.arange(3, 13)[None]).logits.logsumexp(-1).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in trained.values())
    assert not [str(w.message) for w in recwarn if "gradient_checkpointing" not in str(w.message)]


def test_depth_chooses_the_blocks(new_network: Any):
    wrapped = wrapped_by(new_network("llama"), depth=(0.5, 1))
    trained = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    assert trained == ["base_model.model.model.layers.1.mlp.down_proj.lora_B.default.bias"]


@pytest.mark.parametrize("family", ENDS)
def test_beta_is_a_hook_on_the_mlp_output_and_is_read_as_a_bias(family: str, load_network: Any, tmp_path: Path):
    plain, network = load_network(family, torch.float64), load_network(family)
    wrapped = wrapped_by(network)
    betas = [p for p in wrapped.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for beta in betas:
            beta.copy_(torch.randn(32, generator=generator))
    for name, beta in zip(mlp_outputs(plain), betas, strict=True):
        mlp = plain.get_submodule(name.rpartition(".")[0])
        mlp.register_forward_hook(lambda _module, _inputs, output, beta=beta: output + beta.detach().double())
    torch.testing.assert_close(logits(wrapped).double(), logits(plain), atol=1e-4, rtol=1e-5)

    with quiet_peft():
        wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    vector = WeightVector.load(tmp_path / "adapter")
    assert list(vector.entries) == [f"{ENDS[family].format(b)}.bias" for b in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(vector.entries.values(), betas, strict=True))
    lm = SimpleNamespace(network=load_network(family), ref=SimpleNamespace(source="", fingerprint=None))
    with vector.applied(lm, 1):
        torch.testing.assert_close(logits(lm.network).double(), logits(plain), atol=1e-4, rtol=1e-5)

    vector.save(tmp_path / "vector")
    assert sorted(p.name for p in (tmp_path / "vector").iterdir()) == ["dense.safetensors", "vector.json"]
    again = WeightVector.load(tmp_path / "vector")
    assert again.digest == vector.digest
