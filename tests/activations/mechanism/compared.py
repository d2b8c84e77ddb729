"""Tiny models beside themselves under an activation vector or a change of weights."""

from typing import Any

import torch
from tiny_models import tiny_language_model

from weightsteer.activations.mechanism.patching import Comparison, compare, forced_examples
from weightsteer.activations.vector import ActivationVector
from weightsteer.weights.lowrank import LowRank
from weightsteer.weights.vector import WeightVector

PROMPTS = ("Why?", "Is it good?", "Tell me more.", "x y z")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_attn", "c_proj", "c_fc")


def small_model(family: str, blocks: int = 2) -> Any:
    config = {"n_layer": blocks, "n_head": 4, "n_embd": 32} if family == "gpt2" else {"num_hidden_layers": blocks}
    return tiny_language_model(family, **config)


def activation_vector(*blocks: int, mode: Any = "all", **fields: Any) -> ActivationVector:
    rng = torch.Generator().manual_seed(0)
    return ActivationVector({block: torch.randn(32, generator=rng) for block in blocks}, mode=mode, **fields)


def weight_vector(lm: Any, scale: float = 0.2, dense: tuple[str, ...] = (), **fields: Any) -> WeightVector:
    """Rank 4 on every linear layer of the blocks, and whole changes of the parameters named."""
    rng = torch.Generator().manual_seed(1)
    layout = "conv1d" if lm.ref.source == "gpt2" else "linear"
    entries: dict[str, Any] = {}
    for name, parameter in lm.network.named_parameters():
        if name in dense:
            entries[name] = scale * torch.randn(parameter.shape, generator=rng)
        elif name.endswith(".weight") and name.split(".")[-2] in LINEAR:
            up, down = (torch.randn(n, 4, generator=rng) for n in parameter.shape)
            entries[name] = LowRank(scale * up, scale * down.T, layout)
    return WeightVector(entries, **fields)


def comparison_of(family: str, kind: str, blocks: int = 2, k: float = 0.4) -> Comparison:
    """`kind` is "activations", added at block 0, or "weights"."""
    lm = small_model(family, blocks)
    vector = activation_vector(0) if kind == "activations" else weight_vector(lm)
    return compared(lm, vector, k)


def compared(lm: Any, vector: Any, k: float) -> Comparison:
    prompts = [lm.tokens(lm.chat(prompt)) for prompt in PROMPTS]
    return compare(lm, vector, k, forced_examples(lm, vector, k, prompts, 6))


def carried_by_one_head() -> tuple[Any, ActivationVector, int]:
    """A vector along one dimension that head 2 of block 1 alone reads, and that the output head does not see.

    That head turns it into the logit of one token, which is returned. What else the vector does is to lengthen the
    stream, which norms take back out.
    """
    lm, dimension, token = small_model("llama"), 5, 65
    network = lm.network
    block = network.model.layers[1]
    with torch.no_grad():
        network.lm_head.weight[:, dimension] = 0
        for module in (block.self_attn.q_proj, block.self_attn.k_proj, block.mlp.gate_proj, block.mlp.up_proj):
            module.weight[:, dimension] = 0
        values, out = block.self_attn.v_proj.weight, block.self_attn.o_proj.weight
        values[:, dimension] = 0
        values[8:16, dimension] = 1.0  # the second group: heads 2 and 3
        out[:, 24:] = 0  # of which head 3 says nothing
        out[:, 16:24] += network.lm_head.weight[token][:, None]
    direction = torch.zeros(32)
    direction[dimension] = 1.0
    return lm, ActivationVector({0: direction}, mode="all"), token
