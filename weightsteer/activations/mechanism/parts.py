"""Parts of a weight vector: what it changes in queries and keys, in values and outputs, in the MLPs, in some blocks."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from weightsteer.activations.mechanism.anatomy import BlockAnatomy, Part, check_blocks, resolve
from weightsteer.errors import AdapterError
from weightsteer.models.language_model import LanguageModel
from weightsteer.weights.base import weight_layout
from weightsteer.weights.lowrank import Change, LowRank
from weightsteer.weights.vector import WeightVector, block_of

# Parameters of an attention that shape its probabilities besides the projections: norms of queries and keys, and
# learned logits that draw attention off.
QK_BESIDES = ("q_norm", "k_norm", "sinks")


def part(vector: WeightVector, lm: LanguageModel, *parts: Part) -> WeightVector:
    """What the vector changes in these parts alone: q and k (qk), v and the output projection (ov), the MLP (mlp).

    Of a layer that computes queries, keys and values together its own rows are kept, the others are zero.
    Source: G.7's question, applied to arXiv 2604.08524. An AdapterError names an entry that is shared by heads of which
    only some are asked for.
    """
    return _split(vector, lm, parts)[0]


def without(vector: WeightVector, lm: LanguageModel, *parts: Part) -> WeightVector:
    """What the vector changes elsewhere: part(...) + without(...) is the vector."""
    return _split(vector, lm, parts)[1]


def in_blocks(vector: WeightVector, lm: LanguageModel, blocks: Sequence[int]) -> WeightVector:
    """What the vector changes in these decoder blocks (0-based), norms included; embeddings and head are in none."""
    chosen = check_blocks(lm.network, blocks)
    entries = {name: change for name, change in vector.entries.items() if block_of(name) in chosen}
    return _named(vector, entries, f"only blocks {', '.join(map(str, chosen))}")


# Along which axis of the parameter, and which places on it.
Places = tuple[int, set[int]]


def _split(vector: WeightVector, lm: LanguageModel, parts: Sequence[Part]) -> tuple[WeightVector, WeightVector]:
    """The changes inside and outside of some parts."""
    chosen: dict[str, Places] = {}
    for one in parts:
        blocks: dict[int | None, BlockAnatomy] = {block.number: block for block in resolve(lm.network, one)}
        for name, change in vector.entries.items():
            block = blocks.get(block_of(name))
            claimed = None if block is None else _claimed(name, change, lm.network, block, one)
            if claimed is not None:
                axis, places = claimed
                chosen[name] = axis, places | chosen.get(name, (axis, set()))[1]
    inside, outside = {}, {}
    for name, change in vector.entries.items():
        axis, places = chosen.get(name, (0, set()))
        others = set(range(change.shape[axis])) - places
        if places:
            inside[name] = _only(change, axis, places) if others else change
        if others:
            outside[name] = _only(change, axis, others) if places else change
    told = ", ".join(_told(one) for one in parts)
    return _named(vector, inside, f"only {told}"), _named(vector, outside, f"all but {told}")


def _claimed(name: str, change: Change, network: Any, block: BlockAnatomy, one: Part) -> Places | None:
    """Which places of a parameter belong to a part; None when none does."""
    stem, _, leaf = name.rpartition(".")
    outputs = block.outputs(one.what, one.heads)
    everything = 0, set(range(change.shape[0]))
    if one.what == "mlp":
        return everything if name.startswith(f"{block.mlp}.") else None
    if stem in outputs:
        return _axis(network, stem, change, 0), set(outputs[stem] or ())
    if one.what == "ov" and stem == block.o.name:
        if leaf == "weight":
            return _axis(network, stem, change, 1), set(block.inputs_of_o(one.heads))
        return _shared(name, one, everything)
    last = stem.rpartition(".")[2] if leaf in ("weight", "bias") else leaf
    if name.startswith(f"{block.attention}.") and last in QK_BESIDES:
        return _shared(name, one, everything) if one.what == "qk" else None
    return None


def _shared(name: str, one: Part, everything: Places) -> Places:
    if one.heads is not None:
        raise AdapterError(
            f"{name}: is changed by the vector and shared by all heads, heads {list(one.heads)} are asked for. "
            "Expected a change that heads do not share. Leave heads out"
        )
    return everything


def _axis(network: Any, stem: str, change: Change, side: int) -> int:
    """The axis of a layer's outputs (side 0) or inputs (side 1) in its parameter."""
    if len(change.shape) == 1:
        return 0
    return 1 - side if weight_layout(network.get_submodule(stem))[0] == "conv1d" else side


def _only(change: Change, axis: int, places: Iterable[int]) -> Change:
    """The change with all but some rows or columns zero."""
    keep = torch.zeros(change.shape[axis])
    keep[sorted(places)] = 1
    if isinstance(change, LowRank):
        if axis == 0:
            return replace(change, up=change.up * keep[:, None])
        return replace(change, down=change.down * keep)
    return change * (keep[:, None] if axis == 0 and change.ndim > 1 else keep)


def _told(one: Part) -> str:
    blocks = "" if one.blocks is None else f" of blocks {', '.join(map(str, one.blocks))}"
    heads = "" if one.heads is None else f", heads {', '.join(map(str, one.heads))}"
    return f"{one.what}{blocks}{heads}"


def _named(vector: WeightVector, entries: dict[str, Change], note: str) -> WeightVector:
    info = {**vector.info, "notes": [*vector.info.get("notes", []), note]}
    return WeightVector(entries, vector.base, info)
