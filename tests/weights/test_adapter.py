import contextlib
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from weightsteer.errors import AdapterError
from weightsteer.weights.adapter import read_adapter
from weightsteer.weights.lowrank import LowRank, as_dense
from weightsteer.weights.peft_layout import matching_key

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
            "rank_pattern": {
                r"layers\.0\..*_proj": 2,
                "q_proj": 3,
                "^model.layers.1.self_attn.k_proj": 5,
                "head": 6,
            },
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
    "lora_bias": (
        "llama-bias",
        {"r": 4, "lora_alpha": 6, "lora_bias": True, "target_modules": EVERYWHERE},
        False,
    ),
    "bias all": ("llama-bias", {"r": 4, "bias": "all", "target_modules": ["q_proj"]}, True),
    "bias lora_only": (
        "llama-bias",
        {"r": 4, "bias": "lora_only", "target_modules": ["q_proj", "down_proj"]},
        True,
    ),
    "fan_in_fan_out": (
        "gpt2",
        {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn", "c_proj", "c_fc"]},
        False,
    ),
    "Conv1D beside Linear": ("gpt2", {"r": 4, "target_modules": ["c_proj", "lm_head"]}, True),
    "embeddings": ("llama", {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "q_proj"]}, False),
    "embeddings and head": ("llama", {"r": 4, "target_modules": ["embed_tokens", "lm_head"]}, True),
    "embeddings of GPT-2": ("gpt2", {"r": 4, "target_modules": ["wte", "wpe", "c_attn"]}, True),
    "modules_to_save": (
        "llama",
        {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["norm", "lm_head"]},
        True,
    ),
    "modules_to_save and bias": (
        "gpt2",
        {"target_modules": ["c_attn"], "bias": "all", "modules_to_save": ["ln_f"]},
        True,
    ),
    "dora": ("llama", {"r": 4, "lora_alpha": 6, "use_dora": True, "target_modules": EVERYWHERE}, True),
    "dora on Conv1D": (
        "gpt2",
        {"r": 4, "use_dora": True, "target_modules": ["c_attn", "c_proj", "lm_head"]},
        True,
    ),
    "dora on embeddings": ("llama", {"r": 4, "use_dora": True, "target_modules": ["embed_tokens"]}, True),
    "experts": (
        "mixtral",
        {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj"], "target_parameters": EXPERTS},
        True,
    ),
    "one expert parameter": (
        "mixtral",
        {"r": 3, "target_modules": [], "target_parameters": ["experts.down_proj"]},
        True,
    ),
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
    # peft turns the experts among all linear layers into target_parameters with patterns of their own
    "all-linear of a mixture of experts": ("mixtral", {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"}, True),
    "transposed experts": (
        "gpt-oss",
        {"r": 3, "target_modules": ["q_proj"], "target_parameters": EXPERTS_OSS},
        True,
    ),
    "gaussian": ("llama", {"r": 4, "init_lora_weights": "gaussian", "target_modules": EVERYWHERE}, False),
    "orthogonal": ("llama", {"r": 4, "init_lora_weights": "orthogonal", "target_modules": EVERYWHERE}, False),
    "mica": (
        "llama",
        {"r": 4, "init_lora_weights": "mica", "target_modules": ["q_proj"], "dtype": torch.float32},
        False,
    ),
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


PATTERNS = (
    "q_proj",
    "layers.1.q_proj",
    r"layers\.0\..*_proj",
    "^model.layers.1.q_proj",
    "x_proj",
    "proj",
    "layers.[01]",
)
TARGETS = (
    "model.layers.0.q_proj",
    "model.layers.1.q_proj",
    "q_proj",
    "model.layers.1.xq_proj",
    "model.layers.0",
)


@pytest.mark.parametrize("target", TARGETS)
def test_patterns_match_as_in_peft(target):
    from peft.utils.other import get_pattern_key

    # several at once: the first match counts
    for patterns in (PATTERNS, PATTERNS[::-1], *([pattern] for pattern in PATTERNS)):
        assert (matching_key(patterns, target) or target) == get_pattern_key(patterns, target)


def test_an_adapter_in_half_precision_is_read_exactly(make_adapter):
    folder, model = make_adapter("llama", r=4, lora_alpha=8, target_modules=["q_proj"], dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}
    save(folder, {key: tensor.bfloat16() for key, tensor in load(folder).items()})
    for name, change in read_adapter(folder)[0].items():
        layer = model.get_submodule(f"base_model.model.{name.removesuffix('.weight')}")
        a, b = layer.lora_A["default"].weight.bfloat16(), layer.lora_B["default"].weight.bfloat16()
        assert torch.equal(change.up, 2 * b.float())
        assert torch.equal(change.down, a.float())


@pytest.mark.filterwarnings("ignore")
def test_pissa_is_read_after_the_conversion_that_its_refusal_names(load_network, tmp_path):
    config = peft.LoraConfig(r=4, init_lora_weights="pissa", target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(load_network("llama"), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "mutating")
    with pytest.raises(AdapterError, match=r"init_lora_weights: 'pissa' changes the base.*path_initial_model"):
        read_adapter(tmp_path / "mutating")
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    before, after = load_network("llama"), model.merge_and_unload()
    for name, change in read_adapter(tmp_path / "plain")[0].items():
        expected = after.get_parameter(name) - before.get_parameter(name)
        torch.testing.assert_close(as_dense(change), expected, atol=1e-5, rtol=1e-5)


def load(folder):
    return load_file(folder / "adapter_model.safetensors")


def save(folder, tensors):
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def plain(make_adapter):
    """A small plain LoRA adapter."""
    return make_adapter("llama", r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"])[0]


@pytest.mark.parametrize("kind", ["ADALORA", "LOHA", "LOKR", "OFT", "IA3", "VERA", "XLORA", "PROMPT_TUNING", None])
def test_other_kinds_of_adapter_are_refused_by_name(kind, plain):
    edit_config(plain, peft_type=kind)
    with pytest.raises(
        AdapterError, match=rf"adapter_config\.json: peft_type is {kind!r}\. Expected 'LORA'\. Merge it"
    ):
        read_adapter(plain)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alora_invocation_tokens", [1, 2]),
        ("arrow_config", {"top_k": 3}),
        ("kasa_config", {"beta": 1}),
        ("layer_replication", [[0, 1]]),
        ("megatron_config", {"a": 1}),
        ("monteclora_config", {"num_samples": 8}),
        ("trainable_token_indices", [1]),
        ("use_bdlora", {"nblocks": 2}),
        ("use_qalora", True),
        ("velora_config", {"scale": 1.0}),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("a_setting_of_next_year", True),
        ("r", 0),
        ("r", 10**400),
        ("lora_alpha", "16"),
        ("lora_alpha", None),
        ("rank_pattern", {"q_proj": 2.5}),
        ("rank_pattern", ["q_proj"]),
        ("alpha_pattern", {"(": 3}),
        ("alpha_pattern", {"a{99999999999}": 3}),
        ("use_rslora", "yes"),
        ("target_parameters", "experts"),
    ],
)
def test_settings_that_cannot_be_read_exactly_are_refused_by_name(key, value, plain):
    edit_config(plain, **{key: value})
    with pytest.raises(AdapterError, match=rf"adapter_config\.json: 1 problem\n  {key}.*: "):
        read_adapter(plain)


def test_all_problems_of_the_settings_are_told_together(plain):
    edit_config(plain, use_qalora=True, r=-1, init_lora_weights="pissa_niter_4")
    with pytest.raises(AdapterError, match="3 problems"):
        read_adapter(plain)


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda t: t.update({"base_model.model.x.lora_C.weight": torch.ones(2)}),
            r"x\.lora_C\.weight \[2\]: unknown",
        ),
        (
            lambda t: t.update({"model.layers.0.q_proj.lora_A.weight": torch.ones(3, 32)}),
            r"q_proj\.lora_A\.weight \[3",
        ),
        (
            lambda t: t.update({A.replace("weight", "default.weight"): torch.ones(3, 32)}),
            r"lora_A\.default\.weight .* unknown",
        ),
        (
            lambda t: t.update({A.replace("A.weight", "magnitude_vector"): torch.ones(32)}),
            r"lora_magnitude_vector \[32\]",
        ),
        (
            lambda t: t.update({A.replace("A.weight", "B.bias"): torch.ones(32)}),
            r"lora_B\.bias \[32\]: unknown",
        ),
        (
            lambda t: t.update({A.replace("lora_A", "base_layer.lora_A"): torch.ones(3, 32)}),
            r"base_layer\.lora_A",
        ),
        (lambda t: t.pop(A), r"q_proj\.lora_B\.weight \[32, 3\]: unknown kind"),
        (lambda t: t.pop(A.replace("_A", "_B")), r"q_proj\.lora_B\.weight: missing; A and B are needed"),
        (
            lambda t: t.update({A: torch.ones(4, 32)}),
            r"lora_A\.weight \[4, 32\].*expected \[3, d_in\].* at rank 3",
        ),
        (lambda t: t.update({A: torch.full((3, 32), torch.nan)}), r"96 of 96 numbers are not finite"),
        (lambda t: t.update({A: torch.ones(3, 32, dtype=torch.int8)}), r"lora_A\.weight has dtype I8"),
        (lambda t: t.update({A: torch.ones(0, 32)}), r"lora_A\.weight: is empty \[0, 32\]"),
    ],
)
def test_every_tensor_is_accounted_for(change, text, plain):
    tensors = load(plain)
    change(tensors)
    save(plain, tensors)
    with pytest.raises(AdapterError, match=text):
        read_adapter(plain)


def test_what_the_settings_promise_must_be_there(make_adapter, base):
    folder, _ = make_adapter("llama", r=2, use_dora=True, target_modules=["q_proj"])
    tensors = load(folder)
    del tensors[A.replace("A.weight", "magnitude_vector")]
    save(folder, tensors)
    with pytest.raises(
        AdapterError, match=r"layers\.0\.self_attn\.q_proj\.lora_magnitude_vector: missing\. Expected 32"
    ):
        read_adapter(folder, base("llama"))


def test_the_base_is_asked_for_where_only_it_tells_the_change(make_adapter):
    rules = {
        "whole parameters.*lm_head.weight.*Pass base=": ("llama", {"modules_to_save": ["lm_head"]}),
        "whole parameters.*v_proj.bias.*Pass base=": ("llama-bias", {"bias": "all"}),
        "is a DoRA adapter.*Pass base=": ("llama", {"use_dora": True}),
        r"target_parameters are \['experts.down_proj'\].*Pass base=": (
            "mixtral",
            {"target_parameters": ["experts.down_proj"]},
        ),
    }
    for text, (family, rule) in rules.items():
        folder, _ = make_adapter(family, target_modules=["q_proj"], **rule)
        with pytest.raises(AdapterError, match=text):
            read_adapter(folder)


def test_the_base_must_have_what_is_changed(make_adapter, base, plain):
    with pytest.raises(
        AdapterError, match=r"q_proj\.lora_A\.weight: the base .* has no model\.layers\.0\.self_attn\.q_proj"
    ):
        read_adapter(plain, base("gpt2"))
    folder, _ = make_adapter("llama", target_modules=["q_proj"], modules_to_save=["lm_head"])
    tensors = load(folder)
    tensors["base_model.model.lm_head.weight"] = torch.ones(70, 32)
    tensors[A] = torch.ones(8, 31)
    save(folder, tensors)
    with pytest.raises(AdapterError) as caught:
        read_adapter(folder, base("llama"))
    assert "lm_head.weight [70, 32]: the base" in str(caught.value)
    assert f"{A}: changes [32, 31], the base has [32, 32]" in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_a_copy_of_an_adapted_embedding_is_taken_for_the_base_and_checked_against_it(make_adapter, base):
    folder, _ = make_adapter("llama", target_modules=["embed_tokens"], dtype=torch.float32)
    entries, info = read_adapter(folder)
    assert isinstance(entries["model.embed_tokens.weight"], LowRank)
    assert info["notes"] == ["taken for unchanged copies of the base, which was not given: model.embed_tokens.weight"]
    tensors = load(folder)
    tensors["base_model.model.model.embed_tokens.base_layer.weight"] += 1
    save(folder, tensors)
    moved = read_adapter(folder, base("llama"))[0]["model.embed_tokens.weight"]
    expected = entries["model.embed_tokens.weight"].dense() + 1
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_modules_to_save_on_a_tied_model_are_subtracted_from_the_one_that_is_stored(make_adapter, base):
    rule = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    folder, _ = make_adapter("llama-tied", **rule)
    entries, _ = read_adapter(folder, base("llama-tied"))
    saved = load(folder)["base_model.model.lm_head.weight"].float()
    assert "lm_head.weight" not in base("llama-tied").checkpoint.names
    stored = base("llama-tied").checkpoint.tensor("model.embed_tokens.weight")
    torch.testing.assert_close(entries["lm_head.weight"], saved - stored)
    torch.testing.assert_close(entries["lm_head.weight"], entries["model.embed_tokens.weight"])


def shard(folder):
    """Spread the adapter over two files with an index."""
    tensors = load(folder)
    (folder / "adapter_model.safetensors").unlink()
    half = len(tensors) // 2
    parts = {"a.safetensors": sorted(tensors)[:half], "b.safetensors": sorted(tensors)[half:]}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    write_index(folder, {name: file for file, names in parts.items() for name in names})
    return {name: file for file, names in parts.items() for name in names}


def write_index(folder, weight_map):
    path = folder / "adapter_model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_an_adapter_of_several_shards_is_the_same_adapter(plain):
    before, _ = read_adapter(plain)
    shard(plain)
    after, _ = read_adapter(plain)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].up, after[name].up) for name in before)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda m: m.update({A: "../a.safetensors"}),
            r"shard '\.\./a\.safetensors' is not the name of a file in this folder",
        ),
        (lambda m: m.update({A: "/etc/passwd"}), r"shard '/etc/passwd' is not"),
        (lambda m: m.update({A: 3}), r"shard 3 is not"),
        (lambda m: m.update({A: "c.safetensors"}), r"c\.safetensors: cannot be read"),
        (lambda m: m.update({A.replace("A", "C"): "a.safetensors"}), r"a\.safetensors lacks .*lora_C"),
        (lambda m: m.pop(A), rf"a\.safetensors holds {A}, not listed there"),
        (lambda m: m.clear(), r"has no weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(change, text, plain):
    weight_map = shard(plain)
    change(weight_map)
    write_index(plain, weight_map)
    with pytest.raises(AdapterError, match=text):
        read_adapter(plain)


def test_a_pickle_is_never_opened(plain):
    (plain / "adapter_model.safetensors").unlink()
    (plain / "adapter_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(AdapterError, match=r"has no adapter_model\.safetensors, only adapter_model\.bin, a pickle"):
        read_adapter(plain)
    (plain / "adapter_model.bin").unlink()
    with pytest.raises(AdapterError, match=r"has no adapter_model\.safetensors\. Expected an adapter folder"):
        read_adapter(plain)


def test_a_link_out_of_the_folder_is_refused(plain, tmp_path):
    (plain / "adapter_model.safetensors").rename(tmp_path / "elsewhere")
    (plain / "adapter_model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdapterError, match=r"links to .*elsewhere, outside the folder"):
        read_adapter(plain)


def test_damage_of_any_kind_is_an_error_of_ours(plain, damaged):
    for file, head in (("adapter_config.json", 2000), ("adapter_model.safetensors", 900)):
        path = plain / file
        whole = path.read_bytes()
        for content in damaged(whole, head, 250):
            path.write_bytes(content)
            with contextlib.suppress(AdapterError):  # or a change that can be used
                entries, _ = read_adapter(plain)
                assert all(torch.isfinite(as_dense(change)).all() for change in entries.values())
        path.write_bytes(whole)
    read_adapter(plain)
