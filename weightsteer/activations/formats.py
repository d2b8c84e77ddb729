"""Activation vectors in the layouts of others: their layer numbers, llama.cpp's GGUF, and a bias of the checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer.activations.steering import Mode, residual_writers
from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError, report_problems
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.language_model import LanguageModel

ARCHITECTURE = "controlvector"
# The last linear layer of an MLP, by the naming of the transformers architectures.
MLP_OUTPUTS = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "fc_out", "w2")
# A bias that is not simply added to the block's output misses its direction by its own length.
NEAR = 0.05


def from_hidden_states(
    rows: Float[Tensor, "rows d_model"], mode: Mode = "generated", base: str | None = None, **info: Any
) -> ActivationVector:
    """Vector of a tensor [blocks + 1, d_model] as persona vectors store it: row l is hidden state l.

    Row 0 belongs to the embeddings, which no block puts out, and is left out; row l is the output of block l − 1. Their
    "layer 20" is block 19. Source: the code of arXiv 2507.21509.
    """
    return _imported(dict(enumerate(rows[1:])), mode, base, {"layout": "hidden states", **info})


def from_layers(
    directions: Mapping[int, Float[Tensor, " d_model"]], mode: Mode = "after_user", base: str | None = None, **info: Any
) -> ActivationVector:
    """Vector of directions by CAA's layer number, which is the 0-based block whose output was read.

    Source: the code of arXiv 2312.06681; repeng and steering-vectors count alike.
    """
    return _imported(directions, mode, base, {"layout": "block outputs", **info})


def from_block_inputs(
    directions: Mapping[int, Float[Tensor, " d_model"]], mode: Mode = "all", base: str | None = None, **info: Any
) -> ActivationVector:
    """Vector of directions read at inputs of 0-based blocks, as refusal directions are: the output of the block before.

    An AdapterError for the input of block 0, which no block puts out. Source: the code of arXiv 2406.11717.
    """
    if 0 in directions:
        raise AdapterError(
            "direction at the input of block 0: is one of embeddings, which no block puts out. Expected inputs of "
            "block 1 or later. Leave it out"
        )
    return _imported({b - 1: v for b, v in directions.items()}, mode, base, {"layout": "block inputs", **info})


def write_gguf(vector: ActivationVector, path: str | Path, model_type: str) -> None:
    """Write `vector` as a llama.cpp control vector; `--control-vector-scaled FILE:K` then adds k times of it.

    `model_type` is llama.cpp's name of the architecture, such as "llama" or "gemma2".
    """
    gguf = _gguf()
    problems = []
    if vector.operation != "add":
        problems.append(f"the vector's operation is {vector.operation}; llama.cpp adds")
    if vector.mode != "all":
        problems.append(
            f"the vector's mode is {vector.mode}; llama.cpp steers every token. Use dataclasses.replace(vector, "
            'mode="all") if that is meant'
        )
    if 0 in vector.directions:
        problems.append("block 0 is steered; llama.cpp never does that. Choose others with vector.at(...)")
    report_problems(AdapterError, path, problems)
    # Layout, as llama.cpp reads it (common_control_vector_load_one in common/common.cpp, llama_adapter_cvec::apply in
    # src/llama-adapter.cpp): one-dimensional F32 tensors direction.N, N ≥ 1, added to the output of 0-based block N.
    # repeng's export_gguf writes the same names and keys. llama.cpp's own cvector-generator names what it reads after
    # block N direction.N+1; llama.cpp then adds it one block later, and so do we.
    writer = gguf.GGUFWriter(str(path), ARCHITECTURE)
    writer.add_string(f"{ARCHITECTURE}.model_hint", model_type)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vector.directions))
    writer.add_string("weightsteer.base", vector.base or "")
    writer.add_string("weightsteer.info", json.dumps(dict(vector.info)))
    for block, direction in sorted(vector.directions.items()):
        writer.add_tensor(f"direction.{block}", direction.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: str | Path) -> ActivationVector:
    """The vector that a llama.cpp control-vector file adds to every token; an AdapterError for any other file."""
    gguf = _gguf()
    try:
        reader = gguf.GGUFReader(str(path))
    except (OSError, ValueError, IndexError) as error:
        raise AdapterError(f"{path}: not a GGUF file ({error}). Expected a llama.cpp control vector") from None
    said = {name: field.contents() for name, field in reader.fields.items()}
    problems = []
    if said.get("general.architecture") != ARCHITECTURE:
        problems.append(f"general.architecture is {said.get('general.architecture')!r}; expected {ARCHITECTURE!r}")
    directions: dict[int, Tensor] = {}
    for tensor in reader.tensors:
        number = tensor.name.removeprefix("direction.")
        is_plain = tensor.tensor_type == gguf.GGMLQuantizationType.F32 and len(tensor.shape) == 1
        if not tensor.name.startswith("direction.") or not number.isdecimal() or int(number) == 0 or not is_plain:
            problems.append(
                f"tensor {tensor.name}, {tensor.tensor_type.name} of shape {tensor.shape.tolist()}; expected "
                "one-dimensional F32 tensors direction.1, direction.2 and so on"
            )
            continue
        directions[int(number)] = torch.from_numpy(tensor.data.copy())
    if not directions and not problems:
        problems.append("it holds no tensor; expected direction.1, direction.2 and so on")
    report_problems(AdapterError, path, problems)
    info = json.loads(said.get("weightsteer.info") or "{}")
    hint = {"model_hint": said.get(f"{ARCHITECTURE}.model_hint")}
    return _imported(directions, "all", said.get("weightsteer.base") or None, {**info, "layout": "llama.cpp", **hint})


def as_bias(lm: LanguageModel, vector: ActivationVector) -> dict[str, Float[Tensor, " d_model"]]:
    """The change of one bias, by parameter name, that adds the vector of one block to its output at every token.

    As entries of a WeightVector it merges into a checkpoint at any k. An AdapterError where the architecture has no
    such bias, or where what the MLP puts out is not simply added.
    """
    if vector.operation != "add" or vector.mode != "all" or len(vector.directions) != 1:
        raise AdapterError(
            f"activation vector: operation {vector.operation}, mode {vector.mode}, blocks {sorted(vector.directions)}. "
            "A bias adds one block's direction to every token; expected operation add, mode all and one block. Choose "
            "it with at(block), and steer in memory for anything else"
        )
    with vector.applied(lm, 0):  # it belongs to this model
        [(number, direction)] = vector.directions.items()
    block = decoder_blocks(lm.network)[number]
    mlp = residual_writers(block, number)[1]
    ends = [m for name, m in mlp.named_modules() if name in MLP_OUTPUTS] or [mlp]
    names = {id(parameter): name for name, parameter in lm.network.named_parameters()}
    bias = getattr(ends[0], "bias", None)
    if len(ends) != 1 or not isinstance(bias, Tensor) or bias.shape != direction.shape:
        raise AdapterError(
            f"{lm.ref.source}: the MLP of block {number} ends in no one linear layer with a bias "
            f"({type(mlp).__name__}). Expected one named {', '.join(MLP_OUTPUTS)}, as GPT-2 and OPT have it. Steer in "
            "memory instead"
        )
    if not _reaches_output(lm, block, ends[0], direction):
        raise AdapterError(
            f"{lm.ref.source}: {names[id(bias)]} is not simply added to the output of block {number}; a norm or a "
            "factor stands between. Expected an architecture without one. Steer in memory instead"
        )
    return {names[id(bias)]: direction.float()}


@torch.inference_mode()
def _reaches_output(lm: LanguageModel, block: Any, end: Any, direction: Float[Tensor, " d_model"]) -> bool:
    """Whether what is added to the output of `end` moves the output of `block` by just that, tried on three tokens."""
    outputs: list[Tensor] = []
    step = torch.zeros((), device=lm.device)
    hooks = [
        end.register_forward_hook(lambda _m, _i, out: out + step.to(out.dtype)),
        block.register_forward_hook(lambda _m, _i, out: outputs.append(out[0] if isinstance(out, tuple) else out)),
    ]
    ids = torch.tensor([[1, 2, 3]], device=lm.device)
    try:
        lm.network.get_decoder()(input_ids=ids, use_cache=False)
        # As long as the activations, so that it does not drown in their rounding.
        step = (direction / direction.norm()).to(lm.device) * outputs[0].float().norm(dim=-1).mean()
        lm.network.get_decoder()(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    moved = outputs[1].float() - outputs[0].float()
    return bool(((moved - step).norm(dim=-1) < NEAR * step.norm()).all())


def _imported(
    directions: Mapping[int, Tensor], mode: Mode, base: str | None, info: Mapping[str, Any]
) -> ActivationVector:
    widths = {v.numel() for v in directions.values()}
    if len(widths) != 1 or not all(v.isfinite().all() for v in directions.values()):
        raise AdapterError(
            f"directions of blocks {sorted(directions)}: widths {sorted(widths)}, not all finite or of one width. "
            "Expected one finite direction for each block, all of the model's width"
        )
    return ActivationVector({b: v.float() for b, v in directions.items()}, base, mode, info)


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise AdapterError(
            "control vectors of llama.cpp: need the package gguf. Install it with: pip install 'weightsteer[gguf]'"
        ) from None
    return gguf
