import pytest
import torch

from weightsteer.weights.adapter import read_adapter
from weightsteer.weights.lowrank import as_dense

EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]
EXPERTS_OSS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.experts.down_proj_bias"]

# name -> (family, LoraConfig settings, whether the base is needed)
RULES = {
    "alpha/r": ("llama", {"r": 4, "lora_alpha": 6, "target_modules": EVERYWHERE}, False),
    "rslora": ("llama", {"r": 5, "lora_alpha": 6, "use_rslora": True, "target_modules": EVERYWHERE}, False),
    "patterns": (
        "llama",
        {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": [*EVERYWHERE, "lm_head"],
            "rank_pattern": {r"layers\.0\..*_proj": 2, "q_proj": 3, "^model.layers.1.self_attn.k_proj": 5, "head": 6},
            "alpha_pattern": {"1.self_attn.q_proj": 7, "q_proj": 9, "^lm_head": 11, "elf_attn.k_proj": 13},
        },
        False,
    ),
    "rslora and patterns": (
        "llama",
        {"use_rslora": True, "r": 4, "target_modules": EVERYWHERE, "rank_pattern": {"q_proj": 9}},
        False,
    ),
    "some layers": ("llama", {"r": 2, "target_modules": EVERYWHERE, "layers_to_transform": [1]}, False),
    "lora_bias": ("llama-bias", {"r": 4, "lora_alpha": 6, "lora_bias": True, "target_modules": EVERYWHERE}, False),
    "bias all": ("llama-bias", {"r": 4, "bias": "all", "target_modules": ["q_proj"]}, True),
    "bias lora_only": ("llama-bias", {"r": 4, "bias": "lora_only", "target_modules": ["q_proj", "down_proj"]}, True),
    "fan_in_fan_out": ("gpt2", {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn", "c_proj", "c_fc"]}, False),
    "Conv1D beside Linear": ("gpt2", {"r": 4, "target_modules": ["c_proj", "lm_head"]}, True),
    "embeddings": ("llama", {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "q_proj"]}, False),
    "embeddings and head": ("llama", {"r": 4, "target_modules": ["embed_tokens", "lm_head"]}, True),
    "embeddings of GPT-2": ("gpt2", {"r": 4, "target_modules": ["wte", "wpe", "c_attn"]}, True),
    "modules_to_save": ("llama", {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["norm", "lm_head"]}, True),
    "modules_to_save and bias": ("gpt2", {"target_modules": ["c_attn"], "bias": "all", "modules_to_save": ["ln_f"]}, True),
    "dora": ("llama", {"r": 4, "lora_alpha": 6, "use_dora": True, "target_modules": EVERYWHERE}, True),
    "dora on Conv1D": ("gpt2", {"r": 4, "use_dora": True, "target_modules": ["c_attn", "c_proj", "lm_head"]}, True),
    "dora on embeddings": ("llama", {"r": 4, "use_dora": True, "target_modules": ["embed_tokens"]}, True),
    "experts": ("mixtral", {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj"], "target_parameters": EXPERTS}, True),
    "one expert parameter": ("mixtral", {"r": 3, "target_modules": [], "target_parameters": ["experts.down_proj"]}, True),
    "expert patterns": (
        "mixtral",
        {
            "r": 3,
            "target_modules": [],
            "target_parameters": EXPERTS,
            "rank_pattern": {"experts.gate_up_proj": 2},
            "alpha_pattern": {"0.mlp.experts.down_proj": 5, "gate.weight": 4},
        },
        True,
    ),
    "transposed experts": ("gpt-oss", {"r": 3, "target_modules": ["q_proj"], "target_parameters": EXPERTS_OSS}, True),
    "gaussian": ("llama", {"r": 4, "init_lora_weights": "gaussian", "target_modules": EVERYWHERE}, False),
    "orthogonal": ("llama", {"r": 4, "init_lora_weights": "orthogonal", "target_modules": EVERYWHERE}, False),
    "mica": ("llama", {"r": 4, "init_lora_weights": "mica", "target_modules": ["q_proj"], "dtype": torch.float32}, False),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_the_change_that_peft_merges(rule, make_adapter, load_network, base):
    family, settings, needs_base = RULES[rule]
    folder, model = make_adapter(family, **settings)
    before = dict(load_network(family, settings.get("dtype", torch.float64)).named_parameters())
    after = dict(model.merge_and_unload().named_parameters())
    for given in [base(family)] if needs_base else [None, base(family)]:
        entries, _ = read_adapter(folder, given)
        assert entries.keys() <= before.keys()
        for name in before:
            expected = after[name].double() - before[name].double()
            found = as_dense(entries[name]).double() if name in entries else torch.zeros_like(expected)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
            assert (name in entries) == bool(expected.abs().max() > 1e-6)
