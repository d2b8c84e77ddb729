"""Where a change of a parameter in memory lies on disk: transformers renames, and fuses experts, while it loads."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from weightsteer.models.safetensors_file import TensorInfo

HEAD = "lm_head.weight"
EMBEDDINGS = tuple(
    f"{module}.weight"
    for module in ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "embeddings", "shared")
)

# Prefixes in memory and where older or differently wrapped checkpoints have them (transformers/conversion_mapping.py).
PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.language_model.", "language_model."),
    ("model.", "model.language_model."),
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("lm_head.", "embed_out."),
)
# Fused expert parameters are [experts, rows, columns] in memory; on disk each expert has these matrices, whose rows
# follow one another in the fused one.
EXPERT_PARTS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3"), ("fc1", "fc3")),
    "down_proj": (("down_proj",), ("w2",), ("fc2",)),
    "up_proj": (("up_proj",),),
}
# These store fused experts transposed under the very name that they have in memory.
TRANSPOSED_EXPERTS = ("qwen3_vl_moe", "qwen3_vl_moe_text")


def is_embedding(name: str) -> bool:
    """Whether a parameter of this name is an input embedding."""
    return ".".join(name.rsplit(".", 2)[-2:]) in EMBEDDINGS


@dataclass(frozen=True)
class Placement:
    """Rows `first` to `first + rows` of one expert's matrix are the rows of tensor `stored` from `at` on.

    A parameter without experts counts as one expert; a vector as a matrix of one row.
    """

    stored: str
    at: int
    expert: int
    first: int
    rows: int


def place(
    name: str, shape: tuple[int, ...], tensors: Mapping[str, TensorInfo], model_type: str = ""
) -> list[Placement] | str:
    """Where the parameter `name` of `shape` lies among the stored `tensors`; a sentence when it has no place."""
    found = find(name, tensors)
    if len(found) > 1:
        return f"{name}: could be {' or '.join(found)}; expected one stored tensor"
    if found:
        return _place_whole(name, shape, tensors[found[0]], model_type)
    stem, _, kind = name.rpartition(".")
    for spelled in (stem, *_spellings(stem)):
        for parts in EXPERT_PARTS.get(kind, ()):
            if f"{spelled}.0.{parts[0]}.weight" in tensors and len(shape) == 3:
                return _place_experts(name, shape, tensors, spelled, parts)
    if name.endswith(".bias") and find(name.removesuffix("bias") + "weight", tensors):
        return (
            f"{name}: the layer has no bias in this architecture, so no checkpoint of it can hold one. Expected "
            "changes of parameters that it has. Steer with this vector in memory instead"
        )
    return f"{name}: no such tensor in the checkpoint"


def find(name: str, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """The stored names that the parameter `name` may have; its own alone where that is one of them."""
    return [name] if name in tensors else list(dict.fromkeys(s for s in _spellings(name) if s in tensors))


def _spellings(name: str) -> Iterator[str]:
    for spelled in _prefixed(name):
        if spelled != name:
            yield spelled
        if ".mlp." in spelled:
            yield spelled.replace(".mlp.", ".block_sparse_moe.", 1)


def _prefixed(name: str) -> Iterator[str]:
    yield name
    _, _, rest = name.partition(".")
    if "." in rest:  # a base model saved without its head has no prefix: "model.norm.weight" is "norm.weight"
        yield rest
    for memory, stored in PREFIXES:
        if name.startswith(memory):
            yield stored + name.removeprefix(memory)


def _place_whole(name: str, shape: tuple[int, ...], info: TensorInfo, model_type: str) -> list[Placement] | str:
    if tuple(shape) != info.shape:
        return f"{name}: changes {list(shape)}, the checkpoint holds {list(info.shape)}"
    if model_type in TRANSPOSED_EXPERTS and len(shape) == 3:
        return f"{name}: {model_type} stores experts transposed, which is not supported"
    experts = math.prod(shape[:-2])
    rows = info.rows // experts if experts else 0
    return [Placement(info.name, e * rows, e, 0, rows) for e in range(experts)]


def _place_experts(
    name: str, shape: tuple[int, ...], tensors: Mapping[str, TensorInfo], stem: str, parts: tuple[str, ...]
) -> list[Placement] | str:
    experts, rows, columns = shape
    if f"{stem}.{experts}.{parts[0]}.weight" in tensors:
        return f"{name}: changes {experts} experts, the checkpoint holds more"
    placements = []
    for expert in range(experts):
        first = 0
        for part in parts:
            info = tensors.get(f"{stem}.{expert}.{part}.weight")
            if info is None or len(info.shape) != 2 or info.shape[1] != columns:
                held = "nothing" if info is None else str(list(info.shape))
                return f"{name}: expected {stem}.{expert}.{part}.weight with {columns} columns, found {held}"
            placements.append(Placement(info.name, 0, expert, first, info.shape[0]))
            first += info.shape[0]
        if first != rows:
            return f"{name}: changes {rows} rows an expert, the checkpoint holds {first} ({' and '.join(parts)})"
    return placements
