"""Tiny random models of several families, and adapters on them that peft itself made."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from weightsteer.weights.base import Base

FAMILIES = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-bias": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "gpt2": ("GPT2Config", {"n_inner": 32, "tie_word_embeddings": False}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": ("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,  # square weights: a wrong orientation shows in the numbers, not in the shape
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2_SIZES = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_network(family: str, seed: int = 0) -> Any:
    import transformers

    config_class, extra = FAMILIES[family]
    sizes = GPT2_SIZES if family == "gpt2" else SIZES
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**sizes, **extra)
    network = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in network.parameters():  # biases and norms too, which start as zeros and ones
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval().requires_grad_(False)


@pytest.fixture
def new_network() -> Callable[..., Any]:
    """(family, seed) -> a network with random weights; seed 0 is the one in `model_folder`."""
    return random_network


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Callable[[str], Path]:
    """A folder of safetensors of a family's model, made once."""
    folders: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            random_network(family).save_pretrained(folders[family])
        return folders[family]

    return folder


@pytest.fixture
def load_network(model_folder) -> Callable[..., Any]:
    def load(family: str, dtype: torch.dtype = torch.float32) -> Any:
        import transformers

        network = transformers.AutoModelForCausalLM.from_pretrained(model_folder(family), dtype=dtype)
        return network.eval().requires_grad_(False)

    return load


@pytest.fixture
def base(model_folder) -> Callable[[str], Base]:
    return lambda family: Base.of(model_folder(family))


def randomise(peft_model: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * noise.to(parameter.dtype))


@pytest.fixture
def make_adapter(load_network, tmp_path) -> Callable[..., tuple[Path, Any]]:
    """(family, LoraConfig settings) -> a random adapter's folder, the peft model that wrote it."""

    def make(family: str, seed: int = 1, dtype: torch.dtype = torch.float64, **settings: Any) -> tuple[Path, Any]:
        import peft

        config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
        model = peft.get_peft_model(load_network(family, dtype), config)
        randomise(model, seed)
        folder = tmp_path / f"adapter-{family}-{seed}"
        model.save_pretrained(folder)
        return folder, model.eval()

    return make


TOKENS = (b"null", b"true", b"-1", b"0", b"1e999", b"99999999999999999999", b"[]", b"{}", b'"x"', b"1.5")


@pytest.fixture
def damaged() -> Callable[..., Iterator[bytes]]:
    """(content, where to damage it at most, count) -> the content with a few bytes or tokens of JSON changed."""

    def damage(content: bytes, head: int, count: int) -> Iterator[bytes]:
        rng = random.Random(0)
        tokens = list(re.finditer(rb'"[^"]*"|-?\d+|null|true|false', content[:head]))
        for _ in range(count):
            result = bytearray(content)
            at = rng.randrange(min(head, len(content)))
            match rng.randrange(5):
                case 0:
                    result[at] = rng.randrange(256)
                case 1:
                    del result[at : at + rng.randint(1, 9)]
                case 2:
                    result[at:at] = bytes(rng.choices(b'0"},]:truenlAB', k=rng.randint(1, 4)))
                case 3:
                    del result[at:]
                case _:
                    token = rng.choice(tokens)
                    result[token.start() : token.end()] = rng.choice(TOKENS)
            yield bytes(result)

    return damage
