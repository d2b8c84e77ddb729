"""Where the parts of a block lie, in every family; what cannot be taken apart is refused by name."""

from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model, tiny_network

from weightsteer.activations.mechanism.anatomy import Part, anatomy, matrix, resolve, through_norm
from weightsteer.activations.mechanism.eager import attention_probabilities, eager
from weightsteer.errors import ModelError
from weightsteer.models.blocks import decoder_blocks

FAMILIES = ["llama", "qwen2", "gemma3_text", "gpt2", "phi3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_by_hand_from_the_parts_found(family: str):
    """Output of an attention that only sees itself is W_O·W_V·x: one token alone."""
    network = tiny_network(family)
    block = anatomy(network, 1)
    kv_heads = 4 if family == "gpt2" else 2
    assert (block.heads, block.kv_heads, block.head_dim, block.group) == (4, kv_heads, 8, 4 // kv_heads)
    seen: dict[str, Any] = {}
    norm, attention = block.input_norm, network.get_submodule(block.attention)
    hooks = [
        norm.register_forward_hook(lambda _m, given, out: seen.update(into=given[0], normed=out)),
        attention.register_forward_hook(lambda _m, _i, out: seen.update(out=out[0])),
    ]
    network(torch.tensor([[65]]))
    for hook in hooks:
        hook.remove()
    read, w_v = seen["normed"][0, 0], matrix(block.v.module)[list(block.v.outputs)]
    bias = getattr(block.v.module, "bias", None)
    values = w_v @ read + (0 if bias is None else bias[list(block.v.outputs)])
    heads = values.unflatten(0, (kv_heads, 8)).repeat_interleave(block.group, 0).flatten()
    o_bias = getattr(block.o.module, "bias", None)
    expected = matrix(block.o.module) @ heads + (0 if o_bias is None else o_bias)
    torch.testing.assert_close(seen["out"][0, 0], expected)
    into = seen["into"][0, 0]
    scale = (into - into.mean() if family == "gpt2" else into).square().mean().sqrt()
    bias = getattr(norm, "bias", None)
    torch.testing.assert_close(
        through_norm(norm, into) / scale + (0 if bias is None else bias), read, rtol=1e-3, atol=1e-3
    )


def test_gains_are_measured():
    gemma, llama = (anatomy(tiny_network(family), 0) for family in ("gemma3_text", "llama"))
    ones = torch.ones(32)
    gemma.input_norm.weight.data = torch.linspace(-0.5, 2, 32)
    llama.input_norm.weight.data = torch.linspace(-0.5, 2, 32)
    torch.testing.assert_close(through_norm(gemma.input_norm, ones), 1 + torch.linspace(-0.5, 2, 32))
    torch.testing.assert_close(through_norm(llama.input_norm, ones), torch.linspace(-0.5, 2, 32))
    assert gemma.attention_norm is not None
    assert llama.attention_norm is None, "Llama's post_attention_layernorm is the MLP's"
    cohere = anatomy(tiny_network("cohere"), 0)
    assert through_norm(cohere.input_norm, ones).abs().max() < 1e-6, "its mean is taken off"


def test_outputs_of_fused_layers_and_of_heads():
    phi, gpt2, llama = (anatomy(tiny_network(family), 0) for family in ("phi3", "gpt2", "llama"))
    assert phi.outputs("qk") == {"model.layers.0.self_attn.qkv_proj": list(range(48))}
    assert phi.outputs("ov") == {"model.layers.0.self_attn.qkv_proj": list(range(48, 64))}
    assert phi.outputs("qk", [2, 3]) == {"model.layers.0.self_attn.qkv_proj": [*range(16, 32), *range(40, 48)]}
    assert gpt2.outputs("ov", [1]) == {"transformer.h.0.attn.c_attn": list(range(72, 80))}
    assert llama.outputs("mlp") == {"model.layers.0.mlp": None}
    assert llama.inputs_of_o([2, 3]) == list(range(16, 32))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part("qk", (0, 7)), r"block 7: does not exist in LlamaForCausalLM. Expected one from 0 to 1"),
        (Part("ov", (0,), (4, 5)), r"head 4 of block 0: does not exist. Expected a query head from 0 to 3"),
        (Part("ov", (0,), (2,)), r"heads \[2\] of block 0: share keys and values with \[3\]"),
        (Part("mlp", (0,), (2,)), r"part mlp: heads \[2\] are given. Expected none"),
    ],
)
def test_parts_that_do_not_exist(part: Part, message: str):
    with pytest.raises(ModelError, match=message):
        resolve(tiny_network(), part)


def test_a_circuit_that_is_not_known():
    wrong = Part("qk")
    object.__setattr__(wrong, "what", "vo")  # as from JSON
    with pytest.raises(ModelError, match=r"part 'vo': is not known. Expected one of qk, ov, mlp"):
        resolve(tiny_network(), wrong)


def test_architectures_that_are_not_known_are_named():
    with pytest.raises(
        ModelError, match=r"GPTNeoXForCausalLM: block 0 has an attention of \['query_key_value', 'dense"
    ):
        anatomy(tiny_network("gpt_neox"), 0)
    with pytest.raises(ModelError, match=r"Olmo2ForCausalLM norms the queries of all heads together"):
        resolve(tiny_network("olmo2"), Part("qk", (0,), (0, 1)))
    network = tiny_network()
    attention = decoder_blocks(network)[1].self_attn
    attention.q_proj = torch.nn.Linear(32, 64)  # as architectures do that gate their outputs
    with pytest.raises(
        ModelError, match=r"block 1 has an attention of 64 queries, 16 keys and 16 values in heads of 8"
    ):
        anatomy(network, 1)


def test_probabilities_switch_to_eager_openly_and_back(monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr("weightsteer.progress.say", said.append)
    lm = tiny_language_model()
    assert lm.network.config._attn_implementation == "sdpa"
    found = attention_probabilities(lm, [65, 66, 67])
    assert found.shape == (2, 4, 3, 3)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 4, 3))
    assert said == ["attention: switched from sdpa, which hides its probabilities, to eager"]
    with eager(lm) as shown:
        assert shown.network.config._attn_implementation == "eager"
    assert lm.network.config._attn_implementation == "sdpa"
    monkeypatch.setattr(lm.network, "set_attn_implementation", lambda _name: None)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: its attention stays sdpa, which hides"), eager(lm):
        pass
