import json
import math

import pytest
import torch

from weightsteer.errors import AdapterError
from weightsteer.weights.combine import combine
from weightsteer.weights.lowrank import LowRank, as_dense
from weightsteer.weights.vector import WeightVector

LINEAR = ["q_proj", "k_proj", "up_proj"]


@pytest.fixture
def finetuned(new_network, tmp_path):
    """A folder with a fine-tune of a family's model."""

    def make(family, seed=5, dtype=torch.float32, only=None, parts=1):
        network = new_network(family).to(dtype)
        noise = new_network(family, seed=seed)
        with torch.no_grad():
            for (name, p), n in zip(network.named_parameters(), noise.parameters(), strict=True):
                if only is None or only in name:
                    p.add_(0.1 * n)
        folder = tmp_path / f"{family}-{seed}"
        network.save_pretrained(folder, max_shard_size="20KB" if parts > 1 else "1GB")
        return folder

    return make


def parameters(folder, dtype=torch.float64):
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return dict(network.named_parameters(remove_duplicate=False))


def assert_is_sum(vector, expected):
    """`vector` holds exactly the changes that are not zero, to float32's precision."""
    for name, change in expected.items():
        found = as_dense(vector.entries[name]).double() if name in vector.entries else torch.zeros_like(change)
        torch.testing.assert_close(found, change, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.filterwarnings("ignore")
def test_adapters_and_vectors_add_up_as_their_dense_float64_deltas(make_adapter, load_network, tmp_path):
    before = dict(load_network("llama", torch.float64).named_parameters())
    rules = [
        {"r": 3, "lora_alpha": 5, "target_modules": LINEAR},
        {"r": 4, "use_rslora": True, "target_modules": ["q_proj", "down_proj", "embed_tokens"]},
        {"r": 2, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"k_proj": 3}, "target_modules": LINEAR},
    ]
    folders, deltas = [], []
    for seed, rule in enumerate(rules):
        folder, model = make_adapter("llama", seed, **rule)
        folders.append(folder)
        deltas.append({n: p - before[n] for n, p in model.merge_and_unload().named_parameters()})
    vector = combine([(folders[0], 1), (str(folders[1]), -1), (WeightVector.load(folders[2]), 0.5)])
    expected = {n: deltas[0][n] - deltas[1][n] + 0.5 * deltas[2][n] for n in before}
    for name, change in expected.items():
        found = as_dense(vector.entries[name]).double() if name in vector.entries else torch.zeros_like(change)
        torch.testing.assert_close(found, change, rtol=1e-5, atol=1e-6)
    assert all(isinstance(change, LowRank) for change in vector.entries.values())
    assert [term["weight"] for term in vector.info["terms"]] == [1, -1, 0.5]
    notes = " ".join(vector.info["notes"])
    assert "counted as zero" in notes
    assert "model.layers.1.mlp.down_proj.weight" in notes
    same = combine([(folders[0], 1), (folders[0], -1)])
    assert same.norm() <= 1e-7 * vector.norm()


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "mixtral", "gpt-oss"])
@pytest.mark.parametrize("streamed", [False, True])
def test_checkpoints_are_subtracted_parameter_by_parameter(family, streamed, finetuned, model_folder, tmp_path):
    tuned, base = finetuned(family, parts=3), model_folder(family)
    vector = combine([(tuned, 0.5), (base, -0.5)], base=base, out=tmp_path / "v" if streamed else None)
    before, after = parameters(base), parameters(tuned)
    expected = {name: 0.5 * (after[name] - before[name]) for name in before}
    assert vector.entries.keys() == before.keys()  # in memory: fused experts, both names of tied weights
    assert_is_sum(vector, expected)
    assert vector.info["terms"][0]["checkpoint"] == str(tuned)
    if streamed:
        assert sorted(p.name for p in (tmp_path / "v").iterdir()) == ["dense.safetensors", "vector.json"]
        assert WeightVector.load(tmp_path / "v").base == vector.base is not None


def test_half_precision_checkpoints_are_subtracted_exactly(finetuned, tmp_path):
    tuned, base = finetuned("llama", 5, torch.bfloat16), finetuned("llama", 6, torch.bfloat16)
    vector = combine([(tuned, 1), (base, -1)])
    before, after = parameters(base), parameters(tuned)
    for name in before:
        assert torch.equal(vector.entries[name].double(), after[name] - before[name])


def test_what_does_not_change_is_left_out(finetuned, model_folder, tmp_path):
    tuned = finetuned("llama-bias", only=".bias")
    for out in (None, tmp_path / "v"):
        vector = combine([(tuned, 1), (model_folder("llama-bias"), -1)], out=out)
        assert vector.entries
        assert all(name.endswith(".bias") for name in vector.entries)
    assert (tmp_path / "v/dense.safetensors").stat().st_size < 40_000


def add_tensors(folder, extra):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, **extra}, folder / "model.safetensors", {"format": "pt"})


def test_a_bias_that_the_architecture_lacks_counts_as_zero_elsewhere(finetuned, model_folder):
    # bias-only training adds one to down_proj, and saves it beside weights that have not changed
    tuned = finetuned("llama", only="nothing")
    name, beta = "model.layers.1.mlp.down_proj.bias", torch.randn(32)
    add_tensors(tuned, {name: beta})
    vector = combine([(tuned, 2), (model_folder("llama"), -2)])
    assert vector.entries.keys() == {name}
    torch.testing.assert_close(vector.entries[name], 2 * beta)
    assert vector.info["notes"] == [f"counted as zero where a checkpoint has none: {name}"]


def test_stored_tensors_that_no_network_loads_must_not_differ(finetuned):
    one, other = finetuned("llama", 5), finetuned("llama", 6)
    for folder in (one, other):
        add_tensors(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    combine([(one, 1), (other, -1)])
    add_tensors(other, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    with pytest.raises(AdapterError, match=r"inv_freq: is no parameter of LlamaForCausalLM and differs"):
        combine([(one, 1), (other, -1)])


def test_checkpoints_and_adapters_can_be_mixed(make_adapter, finetuned, model_folder, tmp_path):
    adapter, _ = make_adapter("llama", r=2, target_modules=["q_proj"])
    tuned, base = finetuned("llama"), model_folder("llama")
    vector = combine([(tuned, 1), (adapter, 3), (base, -1)], out=tmp_path / "v")
    before, after, change = parameters(base), parameters(tuned), WeightVector.load(adapter)
    for name in before:
        expected = (after[name] - before[name]).float()
        if name in change.entries:
            expected = expected + 3 * as_dense(change.entries[name])
        torch.testing.assert_close(vector.entries[name], expected, rtol=1e-5, atol=1e-6)
    assert WeightVector.load(tmp_path / "v").digest == vector.digest


def test_an_adapter_that_needs_the_base_is_read_with_it(make_adapter, model_folder, tmp_path):
    adapter, _ = make_adapter("llama", r=2, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(AdapterError, match=r"is a DoRA adapter.*Pass base="):
        combine([(adapter, 1)])
    assert combine([(adapter, 1)], base=model_folder("llama")).base is not None


def test_weights_of_checkpoints_must_sum_to_0(finetuned, model_folder):
    with pytest.raises(AdapterError, match=r"sum to 0\.5\. Expected 0, such as FINETUNED=1 BASE=-1"):
        combine([(finetuned("llama"), 1), (model_folder("llama"), -0.5)])


def test_checkpoints_that_do_not_fit_are_refused_all_at_once(finetuned, model_folder):
    with pytest.raises(AdapterError) as caught:
        combine([(finetuned("mixtral"), 1), (model_folder("llama"), -1)])
    assert "model.layers.0.mlp.experts.gate_up_proj: not in" in str(caught.value)
    assert "model.layers.0.mlp.gate_proj.weight: not in" in str(caught.value)


def test_equal_checkpoints_are_no_vector(model_folder, tmp_path):
    for out in (None, tmp_path / "v"):
        with pytest.raises(AdapterError, match="their weighted sum is zero"):
            combine([(model_folder("llama"), 1), (model_folder("llama"), -1)], out=out)
    assert not list(tmp_path.iterdir())


def test_other_bad_input(finetuned, tmp_path):
    with pytest.raises(AdapterError, match="nothing is given"):
        combine([])
    with pytest.raises(AdapterError, match=f"{tmp_path}: weight is inf"):
        combine([(tmp_path, math.inf)])
    tuned = finetuned("llama")
    (tuned / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(AdapterError, match=r"config\.json does not lead to a language model \(.*unheard-of"):
        combine([(tuned, 1), (tuned, -1)])
