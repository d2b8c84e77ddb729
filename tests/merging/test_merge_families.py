"""Merged folders of every supported family, reloaded by transformers, compute what the dense sum computes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import equal_bytes, read, write_checkpoint
from torch import Tensor

from weightsteer.merging.merge import merge
from weightsteer.merging.verify import verify
from weightsteer.models.safetensors_file import TensorInfo
from weightsteer.weights.lowrank import LowRank
from weightsteer.weights.placement import EXPERT_PARTS, TRANSPOSED_EXPERTS, place
from weightsteer.weights.vector import WeightVector

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64}
GPT2_SIZES |= {"bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SIZES),
    "qwen2": ("Qwen2Config", {**SIZES, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**SIZES, "head_dim": 8}),
    "mistral": ("MistralConfig", SIZES),
    "gemma3": ("Gemma3TextConfig", {**SIZES, "head_dim": 8}),
    "phi3": ("Phi3Config", SIZES),
    "gpt2": ("GPT2Config", GPT2_SIZES),
    "olmo2": ("Olmo2Config", SIZES),
    "mixtral": ("MixtralConfig", {**SIZES, "num_local_experts": 4}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**SIZES, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "gpt_neox": ("GPTNeoXConfig", {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}),
    "gpt_oss": ("GptOssConfig", {**SIZES, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
K = -1.5


def random_model(family: str, seed: int = 0) -> Any:
    import transformers

    name, settings = FAMILIES[family]
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings))
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, which start as zeros and ones
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def whole_vector(model: Any, embeddings: bool) -> WeightVector:
    """A change of every parameter: factors on matrices and experts, dense on the rest."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    entries: dict[str, LowRank | Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shape = tuple(parameter.shape)
        if re.search("embed|wte|wpe|lm_head", name) and not embeddings:
            continue
        if name == "lm_head.weight" and parameter is model.get_input_embeddings().weight:
            entries[name] = next(iter(entries.values()))  # tied: the embedding's change, the first in the model
        elif len(shape) > 1 and not name.endswith("_bias"):
            entries[name] = LowRank(draw(*shape[:-1], 3), draw(*shape[:-2], 3, shape[-1]))
        else:
            entries[name] = draw(*shape)
    return WeightVector(entries)


def dense_logits(model: Any, vector: WeightVector, k: float, ids: Tensor) -> Tensor:
    """Logits of W + k·w, added in memory."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            change = vector.entries.get(name)
            if change is not None:
                parameter.add_(k * (change.dense() if isinstance(change, LowRank) else change))
        return model(ids).logits


@pytest.mark.parametrize("embeddings", [False, True], ids=["blocks", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_the_reloaded_merge_are_those_of_the_dense_sum(tmp_path, family, embeddings):
    from transformers import AutoModelForCausalLM

    model = random_model(family)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    vector = whole_vector(model, embeddings)
    for shards in ("one", "many"):
        result = merge(tmp_path / shards, [(vector, K)], tmp_path / f"{shards}_out")
        assert not result.provenance.untied
    ids = torch.arange(24).reshape(2, 12) + 3
    before = model(ids).logits
    expected = dense_logits(model, vector, K, ids)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one_out").eval()
    with torch.no_grad():
        found = reloaded(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (expected - before).abs().max() > 0.1
    one, many = read(tmp_path / "one_out"), read(tmp_path / "many_out")
    assert one.keys() == many.keys() == read(tmp_path / "one").keys()
    assert all(equal_bytes(one[name], many[name]) for name in one)
    assert verify(tmp_path / "many_out").problems == ()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("which", ["embedding", "head"])
def test_an_untied_merge_loads_as_it_was_meant(tmp_path, family, which):
    """Only one of the two ends of a tied model changes: reloaded, the other is still the base's."""
    from transformers import AutoModelForCausalLM

    settings = {**FAMILIES[family][1], "tie_word_embeddings": True}
    torch.manual_seed(0)
    import transformers

    model = AutoModelForCausalLM.from_config(getattr(transformers, FAMILIES[family][0])(**settings))
    model.save_pretrained(tmp_path / "base")
    embedding = next(n for n, p in model.named_parameters() if p is model.get_input_embeddings().weight)
    weight = model.get_input_embeddings().weight.detach().clone()
    change = torch.randn(weight.shape)
    result = merge(
        tmp_path / "base",
        [(WeightVector({embedding if which == "embedding" else "lm_head.weight": change}), 1.0)],
        tmp_path / "out",
    )
    assert result.provenance.untied
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ends = [reloaded.get_input_embeddings().weight, reloaded.get_output_embeddings().weight]
    moved, kept = ends if which == "embedding" else ends[::-1]
    torch.testing.assert_close(moved, weight + change)
    torch.testing.assert_close(kept, weight, rtol=0, atol=0)
    assert verify(tmp_path / "out").outcome == "ok"


def test_a_base_model_saved_without_its_prefix_takes_the_same_change(tmp_path):
    model = random_model("gpt2")
    model.save_pretrained(tmp_path / "whole")
    model.transformer.save_pretrained(tmp_path / "bare")
    vector = whole_vector(model, embeddings=False)
    for folder in ("whole", "bare"):
        merge(tmp_path / folder, [(vector, K)], tmp_path / f"{folder}_out")
    whole, bare = read(tmp_path / "whole_out"), read(tmp_path / "bare_out")
    assert {f"transformer.{name}" for name in bare} == whole.keys()
    assert all(equal_bytes(whole[f"transformer.{name}"], bare[name]) for name in bare)


def info(name: str, *shape: int) -> tuple[str, TensorInfo]:
    return name, TensorInfo(name, "F32", shape, Path("x"), 0, 0)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "language_model.model.layers.0.mlp.up_proj.weight"),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
        ("model.norm.weight", "model.language_model.norm.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("model.vision_tower.x.weight", "vision_tower.x.weight"),
    ],
)
def test_layouts_of_older_and_multimodal_checkpoints_are_found(name, stored):
    (placed,) = place(name, (4, 2), dict([info(stored, 4, 2)]))
    assert (placed.stored, placed.rows) == (stored, 4)


def test_names_without_one_clear_place_are_told(tmp_path):
    both = dict([info("norm.weight", 2), info("model.language_model.norm.weight", 2)])
    assert "could be norm.weight or model.language_model.norm.weight" in place("model.norm.weight", (2,), both)
    stem = "model.layers.0.mlp.experts"
    experts = dict(info(f"{stem}.{e}.{p}_proj.weight", 4, 2) for e in range(3) for p in ("gate", "up", "down"))
    fused = f"{stem}.gate_up_proj"
    assert len(place(fused, (3, 8, 2), experts)) == 6
    assert "changes 2 experts, the checkpoint holds more" in place(fused, (2, 8, 2), experts)
    assert "3.gate_proj.weight with 2 columns, found nothing" in place(fused, (4, 8, 2), experts)
    assert "with 8 columns, found [4, 2]" in place(fused, (3, 2, 8), experts)
    assert "changes 9 rows an expert, the checkpoint holds 8" in place(fused, (3, 9, 2), experts)
    whole = dict([info(fused, 3, 8, 8)])
    assert "stores experts transposed" in place(fused, (3, 8, 8), whole, "qwen3_vl_moe")


def test_experts_are_fused_by_transformers_as_the_table_says():
    """Every conversion that transformers does on parameters of these names is the one of EXPERT_PARTS, or refused."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

    known = {tuple(parts) for variants in EXPERT_PARTS.values() for parts in variants}
    checked = 0
    for model_type, transforms in conversion_mapping._build_checkpoint_conversion_mapping().items():
        for transform in transforms:
            if not isinstance(transform, WeightConverter) or "Ernie" in str(transform.operations):
                continue
            sources, (target, *others) = transform.source_patterns, transform.target_patterns
            if sources == [target]:
                assert model_type in TRANSPOSED_EXPERTS, f"{model_type} reshapes {target} under its own name"
            parts = tuple(re.sub(r"^.*experts\.\*\.|\.weight$", "", source.replace("\\", "")) for source in sources)
            if parts in known and "experts" in sources[0]:
                assert parts in EXPERT_PARTS[target.rpartition(".")[2]]
                assert not others
                kinds = [(type(op), getattr(op, "dim", None)) for op in transform.operations]
                assert kinds == [(MergeModulelist, 0), (Concatenate, 1)][: len(parts)], model_type
                checked += 1
    assert checked > 20


def test_reading_needs_no_model_of_transformers(tmp_path):
    """A merge of plain weights works where the architecture is unknown."""
    tensors = {"model.layers.0.odd.weight": torch.randn(4, 3)}
    base = write_checkpoint(tmp_path / "base", tensors, model_type="new_kind", tie_word_embeddings=None)
    merge(base, [(WeightVector({"model.layers.0.odd.weight": torch.ones(4, 3)}), 1.0)], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "new_kind"
