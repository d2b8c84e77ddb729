"""Where the parts of a decoder block lie: queries, keys, values, the output projection, the MLP, norms and heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsteer.activations.steering import residual_writers
from weightsteer.errors import ModelError
from weightsteer.models.blocks import decoder_blocks

# qk: where a head looks; ov: what it moves from there; mlp: what the MLP writes.
What = Literal["qk", "ov", "mlp"]

SEPARATE = ("q_proj", "k_proj", "v_proj")
# Architectures whose one layer puts out queries, then keys, then values. Others interleave them head by head, which the
# name of the layer does not tell.
FUSED = {"phi3": "qkv_proj", "gpt2": "c_attn"}
OUTPUTS = ("o_proj", "c_proj")
INPUT_NORMS = ("input_layernorm", "ln_1")
FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")
# Large, so that the norm's epsilon is lost in rounding.
PROBE = 1024.0


@dataclass(frozen=True)
class Part:
    """Some circuits of a model: of these blocks (all when None), of these query heads (all when None)."""

    what: What
    blocks: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Projection:
    """Consecutive outputs of a linear layer: all of them, or what a fused layer has of one kind."""

    name: str
    """Path of the layer in the network."""
    module: Any
    outputs: range


@dataclass(frozen=True, eq=False)
class BlockAnatomy:
    """The parts of one decoder block; `o` reads the heads one after another."""

    number: int
    attention: str
    """Path of the attention in the network."""
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    mlp: str
    """Path of the MLP in the network."""
    head_dim: int
    input_norm: Any | None
    """What attention's input goes through; None where it reads the residual stream as it is (OLMo 2)."""
    attention_norm: Any | None
    """What attention's output goes through before it is added to the residual stream; None but for Gemma's kind."""

    @property
    def heads(self) -> int:
        return len(self.q.outputs) // self.head_dim

    @property
    def kv_heads(self) -> int:
        return len(self.k.outputs) // self.head_dim

    @property
    def group(self) -> int:
        """How many query heads share a head of keys and values."""
        return self.heads // self.kv_heads

    def outputs(self, what: What, heads: Sequence[int] | None = None) -> dict[str, list[int] | None]:
        """Layers and those of their outputs that carry a circuit; None for all outputs, a fused layer named once."""
        if what == "mlp":
            return {self.mlp: None}
        heads = range(self.heads) if heads is None else heads
        shared = sorted({head // self.group for head in heads})
        parts = [(self.v, shared)] if what == "ov" else [(self.q, heads), (self.k, shared)]
        found: dict[str, list[int] | None] = {}
        for projection, numbers in parts:
            found[projection.name] = [*(found.get(projection.name) or []), *self._of_heads(projection.outputs, numbers)]
        return found

    def inputs_of_o(self, heads: Sequence[int] | None = None) -> list[int]:
        """The inputs of the output projection that come from these heads."""
        return self._of_heads(range(len(self.q.outputs)), range(self.heads) if heads is None else heads)

    def _of_heads(self, outputs: range, heads: Sequence[int]) -> list[int]:
        return [place for head in heads for place in outputs[head * self.head_dim : (head + 1) * self.head_dim]]


def anatomy(network: Any, number: int) -> BlockAnatomy:
    """The parts of decoder block `number` (0-based).

    A ModelError when there is no such block, or when the architecture, which is named, is built in a way not known.
    """
    [number] = check_blocks(network, [number])
    block = decoder_blocks(network)[number]
    attention, mlp = residual_writers(block, number)
    names = {id(module): name for name, module in network.named_modules()}
    head_dim = _head_dim(network, attention)
    q, k, v = _projections(network, number, attention, names, head_dim)
    o = next((getattr(attention, name) for name in OUTPUTS if hasattr(attention, name)), None)
    width = None if o is None else matrix_shape(o)[1]
    whole = all(len(p.outputs) % head_dim == 0 for p in (q, k, v))
    if width != len(q.outputs) or not whole or len(k.outputs) != len(v.outputs) or len(q.outputs) % len(k.outputs):
        raise _unknown(
            network, number, f"an attention of {len(q.outputs)} queries, {len(k.outputs)} keys and {len(v.outputs)} "
            f"values in heads of {head_dim}, and an output projection of {width} inputs"
        )  # fmt: skip
    return BlockAnatomy(
        number, names[id(attention)], q, k, v, Projection(names[id(o)], o, range(matrix_shape(o)[0])),
        names[id(mlp)], head_dim, *_norms(network, number, block),
    )  # fmt: skip


def resolve(network: Any, part: Part) -> list[BlockAnatomy]:
    """The blocks of a part; a ModelError when a block or a head that it names does not exist or cannot stand alone."""
    if part.what not in get_args(What):
        raise ModelError(f"part {part.what!r}: is not known. Expected one of {', '.join(get_args(What))}")
    if part.heads is not None and part.what == "mlp":
        raise ModelError(f"part mlp: heads {list(part.heads)} are given. Expected none: an MLP has no heads")
    blocks = range(len(decoder_blocks(network))) if part.blocks is None else check_blocks(network, part.blocks)
    found = [anatomy(network, number) for number in blocks]
    for block in found if part.heads is not None else ():
        _check_heads(network, block, part)
    return found


def check_blocks(network: Any, blocks: Sequence[int]) -> list[int]:
    """The numbers, each once and in order; a ModelError when one of them is not a block of the network."""
    count = len(decoder_blocks(network))
    for number in blocks:
        if not 0 <= number < count:
            raise ModelError(
                f"block {number}: does not exist in {type(network).__name__}. Expected one from 0 to {count - 1}"
            )
    return sorted(set(blocks))


def check_head(block: BlockAnatomy, head: int) -> int:
    """The number; a ModelError when the block has no such query head."""
    if not 0 <= head < block.heads:
        raise ModelError(
            f"head {head} of block {block.number}: does not exist. Expected a query head from 0 to {block.heads - 1}"
        )
    return head


def final_norm(network: Any) -> Any:
    """The norm between the last block and the output head; a ModelError names an architecture that hides it."""
    decoder = network.get_decoder()
    for name in FINAL_NORMS:
        if hasattr(decoder, name):
            return getattr(decoder, name)
    raise ModelError(
        f"{type(network).__name__}: has no norm called {', '.join(FINAL_NORMS)} after its blocks. Expected one. Please "
        "report the architecture"
    )


def matrix(module: Any) -> Float[Tensor, "d_out d_in"]:
    """The weight of a linear layer as float32, outputs first; a ModelError where it is quantised."""
    weight = module.weight
    if not weight.is_floating_point() or weight.ndim != 2:
        raise ModelError(
            f"a layer {type(module).__name__} of {weight.dtype} {list(weight.shape)}: its weight cannot be read. "
            "Expected one in floating point. Load the model unquantised"
        )
    return weight.detach().float() if _outputs_first(module) else weight.detach().float().T


def matrix_shape(module: Any) -> tuple[int, int]:
    """Outputs and inputs of a linear layer, also where its weight is quantised."""
    if _outputs_first(module):
        return module.out_features, module.in_features
    return module.nf, module.nx


def through_norm(norm: Any | None, vectors: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
    """What a norm does to a direction but for the scale of its token: γ·s, of which a LayerNorm takes the mean first.

    The gain is measured, not read: some norms multiply with their weight, Gemma's with 1 + weight, some with nothing.
    """
    if norm is None:
        return vectors
    if isinstance(norm, nn.LayerNorm):
        centered = vectors - vectors.mean(-1, keepdim=True)
        return centered if norm.weight is None else centered * norm.weight.detach().float().to(vectors.device)
    # Of root mean square 1 and mean 0 after scaling, whatever the norm takes off: what comes out is the gain.
    device = next(norm.parameters(), torch.empty(0, device=vectors.device)).device
    signs = torch.ones(vectors.shape[-1], device=device)
    signs[1::2] = -1
    with torch.no_grad():
        gain = (norm(PROBE * signs).float() * signs).to(vectors.device)
        takes_mean = norm(PROBE * signs.abs()).abs().max() < 0.5 * gain.abs().max()
    return (vectors - vectors.mean(-1, keepdim=True) if takes_mean else vectors) * gain


def _outputs_first(module: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return not isinstance(module, Conv1D)


def _projections(
    network: Any, number: int, attention: Any, names: dict[int, str], head_dim: int
) -> tuple[Projection, Projection, Projection]:
    """Where an attention computes queries, keys and values."""
    found = [getattr(attention, name, None) for name in SEPARATE]
    if all(module is not None for module in found):
        q, k, v = (Projection(names[id(module)], module, range(matrix_shape(module)[0])) for module in found)
        return q, k, v
    config = network.config.get_text_config()
    fused = getattr(attention, FUSED.get(config.model_type, ""), None)
    if fused is None:
        raise _unknown(network, number, f"an attention of {[name for name, _ in attention.named_children()]}")
    width, queries = matrix_shape(fused)[0], config.num_attention_heads * head_dim
    rest = (width - queries) // 2
    bounds = (0, queries, queries + rest, width)
    q, k, v = (Projection(names[id(fused)], fused, range(*bounds[i : i + 2])) for i in range(3))
    return q, k, v


def _norms(network: Any, number: int, block: Any) -> tuple[Any | None, Any | None]:
    """The norm of attention's input, and that of its output; in Llama's naming the latter's name is another norm's."""
    before = next((getattr(block, name) for name in INPUT_NORMS if hasattr(block, name)), None)
    after = getattr(block, "post_self_attn_layernorm", None)
    if after is None and hasattr(block, "post_feedforward_layernorm"):
        after = block.post_attention_layernorm
    if before is None and after is None:
        raise _unknown(network, number, f"no norm among {[name for name, _ in block.named_children()]}")
    return before, after


def _head_dim(network: Any, attention: Any) -> int:
    config = network.config.get_text_config()
    found = getattr(attention, "head_dim", None) or getattr(config, "head_dim", None)
    return found or config.hidden_size // config.num_attention_heads


def _check_heads(network: Any, block: BlockAnatomy, part: Part) -> None:
    assert part.heads is not None
    chosen = {check_head(block, head) for head in part.heads}
    groups = {head // block.group for head in chosen}
    whole = {head for group in groups for head in range(group * block.group, (group + 1) * block.group)}
    if whole != chosen:
        raise ModelError(
            f"heads {sorted(chosen)} of block {block.number}: share keys and values with {sorted(whole - chosen)}. "
            "Expected heads that share them together"
        )
    attention = network.get_submodule(block.attention)
    norm = getattr(attention, "q_norm", None)
    if part.what == "qk" and norm is not None and getattr(norm, "weight", torch.empty(0)).numel() > block.head_dim:
        raise ModelError(
            f"heads {sorted(chosen)} of block {block.number}: {type(network).__name__} norms the queries of all heads "
            "together. Expected heads that can be told apart. Leave heads out"
        )


def _unknown(network: Any, number: int, found: str) -> ModelError:
    return ModelError(
        f"{type(network).__name__}: block {number} has {found}. Expected {', '.join(SEPARATE)} (or one layer for all "
        f"three in {', '.join(FUSED)}), {' or '.join(OUTPUTS)}, and a norm before or after. Please report the "
        "architecture"
    )
