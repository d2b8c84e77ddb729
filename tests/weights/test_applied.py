import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from weightsteer.errors import AdapterError
from weightsteer.weights.lowrank import LowRank, as_dense
from weightsteer.weights.vector import WeightVector

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS = {
    "llama": {"target_modules": [*LINEAR, "embed_tokens", "lm_head"]},
    "llama-tied": {"target_modules": [*LINEAR, "embed_tokens"]},
    "llama-bias": {"target_modules": LINEAR, "lora_bias": True},
    "gemma3": {"target_modules": [*LINEAR, "embed_tokens"]},
    "gpt2": {"target_modules": ["c_attn", "c_proj", "c_fc", "wte", "lm_head"]},
    "mixtral": {
        "target_modules": ["q_proj", "o_proj"],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj", "mlp.gate.weight"],
    },
    "gpt-oss": {
        "target_modules": ["q_proj"],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    },
}


def language_model(network: nn.Module, fingerprint: str | None = None) -> Any:
    return SimpleNamespace(network=network, ref=SimpleNamespace(source="a model", fingerprint=fingerprint))


@torch.inference_mode()
def logits(network: nn.Module) -> torch.Tensor:
    tokens = torch.arange(3, 23).reshape(2, 10)
    return network(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


def added(network: nn.Module, vector: WeightVector, k: float) -> nn.Module:
    """A copy of the network with k·w added to the weights that each entry names, tied ones apart."""
    moved = copy.deepcopy(network)
    for name, change in vector.entries.items():
        owner, _, leaf = name.rpartition(".")
        module = moved.get_submodule(owner)
        old = getattr(module, leaf)
        start = torch.zeros(change.shape) if old is None else old
        setattr(module, leaf, nn.Parameter(start + k * as_dense(change)))
    return moved


def bits(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.clone() for name, p in network.named_parameters(remove_duplicate=False)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", TARGETS)
def test_applied_equals_peft_and_dense_addition(family, make_adapter, load_network, base):
    folder, model = make_adapter(family, r=3, lora_alpha=4, dtype=torch.float32, **TARGETS[family])
    vector = WeightVector.load(folder, base(family))
    network = load_network(family)
    lm = language_model(network, vector.base)
    before = bits(network)
    with vector.applied(lm, 1) as steered:
        assert steered is lm
        torch.testing.assert_close(logits(network), logits(model), atol=1e-5, rtol=1e-5)
    for k in (-1.5, 0.25, 2):
        expected = logits(added(network, vector, k))
        with vector.applied(lm, k):
            torch.testing.assert_close(logits(network), expected, atol=1e-5, rtol=1e-5)
        assert all(torch.equal(before[name], p) for name, p in bits(network).items())


@pytest.fixture
def vector(load_network) -> WeightVector:
    """Every way to be applied at once, on the llama family."""
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(*shape, generator=generator)

    entries = {
        "model.embed_tokens.weight": LowRank(noise(64, 2), noise(2, 32), "embedding"),
        "model.layers.0.self_attn.q_proj.weight": LowRank(noise(32, 3), noise(3, 32)),
        "model.layers.0.self_attn.q_proj.bias": noise(32),  # the model has no such bias
        "model.layers.1.mlp.down_proj.weight": noise(32, 32),
        "model.norm.weight": noise(32),
        "lm_head.weight": noise(64, 32),
    }
    return WeightVector(entries, "print", {})


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_dense_entries_missing_biases_and_tied_weights(family, vector, load_network):
    network = load_network(family)
    with vector.applied(language_model(network, "print"), -0.7):
        found = logits(network)
    torch.testing.assert_close(found, logits(added(network, vector, -0.7)), atol=1e-5, rtol=1e-5)


def test_k_0_is_the_base_bit_for_bit_and_registers_nothing(vector, load_network):
    network = load_network("llama")
    before, parameters = logits(network), list(network.parameters())
    with vector.applied(language_model(network), 0):
        assert not any(module._forward_hooks for module in network.modules())
        assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))
        assert torch.equal(logits(network), before)


def test_everything_comes_back_bit_for_bit_after_an_exception(vector, load_network):
    network = load_network("llama-tied")
    parameters, before = dict(network.named_parameters(remove_duplicate=False)), bits(network)

    def interrupted() -> None:
        with vector.applied(language_model(network), 3):
            assert network.model.norm.weight is not parameters["model.norm.weight"]
            assert network.lm_head.weight is not network.model.embed_tokens.weight
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    after = dict(network.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameters[name] for name in parameters)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert network.model.layers[0].self_attn.q_proj.bias is None
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert not any(module._forward_hooks for module in network.modules())


def test_nested_vectors_add_up(vector, load_network):
    network = load_network("llama")
    lm, other = language_model(network), vector.sparsify(0.5)
    with vector.applied(lm, 0.5):
        inner = logits(network)
        with other.applied(lm, -1):
            both = logits(network)
        assert torch.equal(logits(network), inner)
    with (0.5 * vector - other).applied(lm, 1):
        torch.testing.assert_close(logits(network), both, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_a_swapped_parameter_is_rounded_once(dtype, vector, load_network):
    network = load_network("llama", dtype)
    name = "model.layers.1.mlp.down_proj.weight"
    weight = network.get_parameter(name).double()
    with vector.applied(language_model(network), 0.3):
        expected = (weight + 0.3 * vector.entries[name].double()).to(dtype)
        exact = (network.get_parameter(name) == expected).float().mean()
        steered = logits(network)
    assert exact > 0.999  # float32 in between can fall on the other side of a tie
    expected = logits(added(load_network("llama"), vector, 0.3))
    assert torch.nn.functional.cosine_similarity(steered.float().flatten(), expected.flatten(), dim=0) > 0.999


def test_factors_are_cast_once_whatever_k(vector, load_network):
    lm = language_model(load_network("llama", torch.bfloat16))
    with vector.applied(lm, 1):
        first = dict(vector._factors)
    with vector.applied(lm, -2):
        assert {key: id(pair) for key, pair in first.items()} == {k: id(v) for k, v in vector._factors.items()}
    assert len(first) == 2


def test_it_works_with_gradients_after_inference_mode(vector, load_network):
    network = load_network("llama")
    with torch.inference_mode(), vector.applied(language_model(network), 1):
        pass
    inputs = torch.randn(1, 4, 32, requires_grad=True)
    with vector.applied(language_model(network), 1):
        network(inputs_embeds=inputs).logits.sum().backward()
    moved = added(network, vector, 1)
    again = inputs.detach().requires_grad_()
    moved(inputs_embeds=again).logits.sum().backward()
    torch.testing.assert_close(inputs.grad, again.grad, atol=1e-4, rtol=1e-4)


class Quantised(nn.Module):
    """What a quantised layer looks like from outside: no weight of floats, but its sizes and its product."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("qweight", (linear.weight * 64).round().to(torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.qweight.to(x.dtype) / 64).T


def test_factors_can_be_added_to_quantised_layers_and_nothing_else_can(vector, load_network):
    network = load_network("llama")
    attention = network.model.layers[0].self_attn
    attention.q_proj = Quantised(attention.q_proj)
    name = "model.layers.0.self_attn.q_proj.weight"
    only = dataclasses.replace(vector, entries={name: vector.entries[name]})
    with only.applied(language_model(network), 2):
        found = logits(network)
    plain = copy.deepcopy(network)
    plain.model.layers[0].self_attn.q_proj = nn.Linear(32, 32, bias=False)
    plain.model.layers[0].self_attn.q_proj.weight.data = attention.q_proj.qweight / 64
    torch.testing.assert_close(found, logits(added(plain, only, 2)), atol=1e-5, rtol=1e-5)
    dense = dataclasses.replace(vector, entries={name: as_dense(vector.entries[name])})
    with (
        pytest.raises(AdapterError, match=r"q_proj.weight \[32, 32\]: is quantised"),
        dense.applied(language_model(network), 1),
    ):
        pass


def biases(name: str) -> WeightVector:
    generator = torch.Generator().manual_seed(5)
    return WeightVector({f"model.layers.{b}.{name}.bias": torch.randn(32, generator=generator) for b in range(2)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bias_that_a_layer_lacks_is_added_to_its_output(dtype, load_network):
    network = load_network("llama", dtype)
    vector, lm = biases("mlp.down_proj"), language_model(network)
    before = logits(network)
    reference = load_network("llama", torch.float64)
    for block, bias in enumerate(vector.entries.values()):
        reference.model.layers[block].mlp.register_forward_hook(lambda _m, _i, out, b=bias: out - 1.5 * b.double())
    with vector.applied(lm, -1.5):
        assert network.model.layers[0].mlp.down_proj.bias is None
        tolerance = 1e-12 if dtype is torch.float64 else 1e-5
        torch.testing.assert_close(logits(network).double(), logits(reference), atol=tolerance, rtol=tolerance)
        with vector.applied(lm, 1.5):
            torch.testing.assert_close(logits(network), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(network), before)
    assert not any(module._forward_hooks for module in network.modules())
    with vector.applied(lm, 0):
        assert torch.equal(logits(network), before)


def test_in_half_precision_such_a_bias_is_rounded_once_with_the_output(load_network):
    network = load_network("llama", torch.bfloat16)
    layer = network.model.layers[0].mlp.down_proj
    inputs = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    vector = biases("mlp.down_proj")
    before = layer(inputs)
    with vector.applied(language_model(network), 0.37):
        found = layer(inputs)
    exact = (before.double() + 0.37 * vector.entries["model.layers.0.mlp.down_proj.bias"].double()).bfloat16()
    assert (found == exact).float().mean() > 0.98  # float32 in between can fall on the other side of a tie


def test_a_bias_is_added_to_a_quantised_layer_too(load_network):
    network = load_network("llama")
    mlp = network.model.layers[0].mlp
    mlp.down_proj = Quantised(mlp.down_proj)
    vector = biases("mlp.down_proj")
    inputs = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    before = mlp.down_proj(inputs)
    with vector.applied(language_model(network), 2):
        torch.testing.assert_close(
            mlp.down_proj(inputs), before + 2 * vector.entries["model.layers.0.mlp.down_proj.bias"]
        )
    assert torch.equal(mlp.down_proj(inputs), before)


def test_what_does_not_fit_is_refused_all_at_once(load_network):
    wrong = WeightVector(
        {
            "model.layers.7.mlp.up_proj.weight": torch.ones(2, 2),
            "model.layers.0.mlp.up_proj.wait": torch.ones(2, 2),
            "model.layers.0.mlp.up_proj.weight": torch.ones(2, 3),
            "model.layers.1.mlp.up_proj.weight": LowRank(torch.ones(32, 1), torch.ones(1, 32), "conv1d"),
        }
    )
    with pytest.raises(AdapterError) as caught, wrong.applied(language_model(load_network("llama")), 0):
        pass
    assert str(caught.value).splitlines() == [
        "LlamaForCausalLM cannot take the vector: 4 problems",
        "  model.layers.7.mlp.up_proj.weight [2, 2]: the network has no model.layers.7.mlp.up_proj",
        "  model.layers.0.mlp.up_proj.wait [2, 2]: the network has no such parameter",
        "  model.layers.0.mlp.up_proj.weight [2, 3]: the network has [32, 32]",
        "  model.layers.1.mlp.up_proj.weight [32, 32]: was read as the weight of a conv1d, "
        "here it is that of a linear; load it with base=",
    ]


@pytest.mark.parametrize("k", [float("nan"), float("inf")])
def test_k_must_be_finite(k, vector, load_network):
    with (
        pytest.raises(AdapterError, match=f"k is {k}"),
        vector.applied(language_model(load_network("llama")), k),
    ):
        pass


def test_another_base_is_refused_by_name_unless_asked_for(vector, load_network):
    lm = language_model(load_network("llama"), "another print")
    with (
        pytest.raises(AdapterError, match="base print, the model a model is another print"),
        vector.applied(lm, 1),
    ):
        pass
    with vector.applied(lm, 1, any_base=True):
        pass
    with dataclasses.replace(vector, base=None).applied(lm, 1):
        pass
