"""Small model folders without a model: random tensors under the names of a Llama, and vectors that change them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from weightsteer.weights.lowrank import LowRank
from weightsteer.weights.vector import WeightVector

HIDDEN, WIDE, VOCABULARY, BLOCKS = 32, 48, 64, 2
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
SIDE_FILES = {
    "generation_config.json": '{"do_sample": true}\n',
    "tokenizer.json": '{"made": "up"}',
    "tokenizer_config.json": '{"é": 1}\n\n',
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "LICENSE": "as it comes\r\n",
    "NOTICE": "made by nobody",
}


def llama_tensors(dtype: torch.dtype = torch.bfloat16, tied: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a two-block Llama."""
    generator = torch.Generator().manual_seed(seed)
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for block in range(BLOCKS):
        stem = f"model.layers.{block}"
        sizes |= {f"{stem}.self_attn.{p}_proj.weight": (HIDDEN, HIDDEN) for p in "qkvo"}
        sizes |= {f"{stem}.mlp.{p}_proj.weight": (WIDE, HIDDEN) for p in ("gate", "up")}
        sizes |= {f"{stem}.mlp.down_proj.weight": (HIDDEN, WIDE), f"{stem}.input_layernorm.weight": (HIDDEN,)}
        sizes |= {f"{stem}.post_attention_layernorm.weight": (HIDDEN,)}
    sizes["model.norm.weight"] = (HIDDEN,)
    if not tied:
        sizes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return {name: (torch.randn(size, generator=generator) * 0.1).to(dtype) for name, size in sizes.items()}


def write_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], shards: int = 1, side_files: bool = True, **config: Any
) -> Path:
    """A model folder with `tensors` dealt to so many shards; keyword arguments replace keys of the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
    else:
        files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        weight_map = {name: files[i * shards // len(names)] for i, name in enumerate(names)}
        for file in files:
            held = {name: tensors[name] for name in names if weight_map[name] == file}
            save_file(held, folder / file, {"format": "pt"})
        size = sum(t.nbytes for t in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    settings = {key: value for key, value in {**CONFIG, **config}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    for name, text in SIDE_FILES.items() if side_files else ():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def random_vector(
    tensors: Mapping[str, Tensor], rank: int = 3, size: float = 0.1, seed: int = 1, base: str | None = None
) -> WeightVector:
    """Factors on every linear layer, dense entries on the norms, nothing on embedding and head."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * size

    entries: dict[str, LowRank | Tensor] = {}
    for name, tensor in tensors.items():
        if "_proj" in name:
            entries[name] = LowRank(draw(tensor.shape[0], rank), draw(rank, tensor.shape[1]))
        elif "norm" in name:
            entries[name] = draw(*tensor.shape) * size
    return WeightVector(entries, base, {"terms": [{"weight": 1.0, "adapter": f"seed {seed}"}]})


def head_vector(embedding: Tensor | None, head: Tensor | None) -> WeightVector:
    """A vector that changes the embedding, the head or both."""
    entries = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    return WeightVector({name: change for name, change in entries.items() if change is not None})


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors below `folder`, read by the safetensors library."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    return tensors


def exact_sum(base: Tensor, terms: list[tuple[float, LowRank | Tensor]]) -> Tensor:
    """base + Σ weight·change in float64."""
    total = base.double()
    for weight, change in terms:
        dense = change.up.double() @ change.down.double() if isinstance(change, LowRank) else change.double()
        total = total + weight * dense
    return total


def rounded_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 correctly rounded to `dtype`. torch goes over float32, which rounds twice: what float32 cannot hold
    leaves its trace in the last bit (round to odd), so that the second rounding is right."""
    if dtype == torch.float32:
        return values.float()
    near = values.float()
    bits = near.view(torch.int32).clone()
    bits -= (near.double().abs() > values.abs()).int()
    bits |= (bits.view(torch.float32).double() != values).int()
    return bits.view(torch.float32).to(dtype)


def equal_bytes(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are the same in dtype, shape and every bit."""
    same_kind = left.dtype == right.dtype and left.shape == right.shape
    return same_kind and torch.equal(left.flatten().view(torch.uint8), right.flatten().view(torch.uint8))
