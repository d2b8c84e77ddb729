import json
import math
from types import SimpleNamespace

import pytest
import torch

from weightsteer.errors import AdapterError
from weightsteer.weights.export import export
from weightsteer.weights.lowrank import LowRank
from weightsteer.weights.vector import WeightVector

TOKENS = torch.arange(3, 23).reshape(2, 10)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.fixture
def vector(base) -> WeightVector:
    entries = {
        "model.layers.0.self_attn.q_proj.weight": LowRank(noise(32, 3), noise(3, 32)),
        "model.layers.1.mlp.up_proj.weight": LowRank(noise(32, 5), noise(5, 32)),
    }
    term = {"weight": 1.0, "adapter": "a", "base_model_name_or_path": "org/model"}
    return WeightVector(entries, base("llama-bias").fingerprint, {"terms": [term]})


@torch.inference_mode()
def steered_logits(vector: WeightVector, k: float, network) -> torch.Tensor:
    lm = SimpleNamespace(network=network, ref=SimpleNamespace(source="", fingerprint=vector.base))
    with vector.applied(lm, k):
        return network(TOKENS).logits


@torch.inference_mode()
def peft_logits(folder, network) -> torch.Tensor:
    from peft import PeftModel

    return PeftModel.from_pretrained(network, folder).eval()(TOKENS).logits


def test_an_export_is_k_times_the_vector_at_one_served_rank(vector, load_network, tmp_path):
    done = export(vector, -1.5, tmp_path / "out")
    assert (done.path, done.rank, done.retained) == (tmp_path / "out", 8, 1.0)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (
        8,
        8,
        {},
        {},
    )
    assert config["base_model_name_or_path"] == "org/model"
    torch.testing.assert_close(
        peft_logits(tmp_path / "out", load_network("llama-bias")),
        steered_logits(vector, -1.5, load_network("llama-bias")),
        atol=1e-5,
        rtol=1e-5,
    )
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert (record["k"], record["base"]) == (-1.5, vector.base)
    assert (WeightVector.load(tmp_path / "out") - -1.5 * vector).norm() <= 1e-6 * vector.norm()


def test_a_smaller_rank_compresses_and_reports_what_is_retained(vector, tmp_path):
    done = export(vector, 2, tmp_path / "out", rank=1)
    expected, retained = vector.compress(rank=1)
    assert (done.rank, done.retained) == (1, retained)
    assert 0 < retained < 1
    assert (WeightVector.load(tmp_path / "out") - 2 * expected).norm() <= 1e-5 * vector.norm()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", [False, True])
def test_what_peft_only_stores_whole_is_stored_with_the_base(head, vector, base, load_network, tmp_path):
    vector.entries["model.norm.weight"] = noise(32)
    vector.entries["model.layers.1.mlp.down_proj.bias"] = noise(32)  # its layer has a weight that does not change
    vector.entries["model.layers.0.self_attn.q_proj.bias"] = noise(32)
    if head:  # with an embedding among the targets peft has no lora_bias: q_proj's bias is stored whole too
        vector.entries["model.embed_tokens.weight"] = LowRank(noise(64, 2), noise(2, 32), "embedding")
    with pytest.raises(AdapterError, match=r"whole parameters.*model\.norm\.weight.*Pass base="):
        export(vector, 0.7, tmp_path / "out")
    export(vector, 0.7, tmp_path / "out", base=base("llama-bias"))
    torch.testing.assert_close(
        peft_logits(tmp_path / "out", load_network("llama-bias")),
        steered_logits(vector, 0.7, load_network("llama-bias")),
        atol=1e-5,
        rtol=1e-5,
    )


def test_what_cannot_be_exported_is_refused(vector, base, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(AdapterError, match="k is nan"):
        export(vector, math.nan, out)
    with pytest.raises(AdapterError, match=r"rank is 10\. Expected one that vLLM accepts: 1, 8, 16"):
        export(vector, 1, out, rank=10)
    with pytest.raises(AdapterError, match="has no low-rank entries"):
        export(WeightVector({"model.norm.weight": noise(32)}), 1, out)
    wide = WeightVector({"w.weight": LowRank(noise(600, 520), noise(520, 600))})
    with pytest.raises(AdapterError, match=r"has rank 520, more than the 512.*Pass a rank"):
        export(wide, 1, out)
    with pytest.raises(AdapterError, match="was made for base"):
        export(vector, 1, out, base=base("llama"))
    vector.entries["model.layers.0.nothing.weight"] = noise(3)
    with pytest.raises(AdapterError, match=r"nothing\.weight \[3\]: .* has no such parameter"):
        export(vector, 1, out, base=base("llama-bias"))
    assert not out.exists()
