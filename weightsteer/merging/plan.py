"""What a merge will write: decided and checked from headers alone, before a byte of data is read."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from weightsteer.errors import AdapterError, CheckpointError, report_problems
from weightsteer.merging.arithmetic import Chunk, copies, split
from weightsteer.merging.scale import Scale
from weightsteer.merging.side_files import ADAPTER_CONFIG
from weightsteer.models.safetensors_file import DTYPE_BITS, INDEX, TensorInfo, encode_header, load_json
from weightsteer.weights.checkpoint import FLOATS, Checkpoint
from weightsteer.weights.lowrank import Change, LowRank
from weightsteer.weights.placement import HEAD, Placement, find, is_embedding, place
from weightsteer.weights.vector import WeightVector

# What `dtype` may be, and how safetensors names it.
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class Addition:
    """A vector that is added k times; a task adapter is one with k = 1 that no scale touches."""

    vector: WeightVector
    k: float
    role: Literal["vector", "adapter"]


@dataclass(frozen=True)
class Target:
    """One tensor of the merged checkpoint: where its base values lie, and which changes fall on it."""

    name: str
    dtype: str
    source: TensorInfo
    pieces: tuple[tuple[Placement, str], ...]
    """Rows of the tensor with the parameter, as named in memory, whose change they take. None: copied."""

    @property
    def size_bytes(self) -> int:
        return math.prod(self.source.shape) * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True)
class Plan:
    """Every tensor of every shard of the merged checkpoint, in order."""

    base: Checkpoint
    additions: tuple[Addition, ...]
    factors: Mapping[str, float]
    """What the scale leaves of the change of each parameter."""
    shards: Mapping[str, tuple[Target, ...]]
    untied: bool
    """The head gets weights of its own, and config.json says so."""
    dtype: str | None

    def terms(self, name: str) -> list[tuple[float, Change]]:
        """Weight and entry of every vector that changes the parameter `name`."""
        return _terms(self.additions, self.factors, name)

    def chunks(self, target: Target) -> Iterator[Chunk]:
        """The work on one tensor, in the order of its bytes."""
        if not target.pieces:
            yield from copies(target.source, target.dtype)
        for at, name in target.pieces:
            yield from split(target.source, target.dtype, self.terms(name), at)

    def header(self, shard: str) -> bytes:
        """The first bytes of a shard; those of the base when nothing in them changes."""
        file, targets = self.base.files[shard], self.shards[shard]
        if [(t.name, t.dtype) for t in targets] == [(t.name, t.dtype) for t in file.tensors.values()]:
            return file.header
        return encode_header(((t.name, t.dtype, t.source.shape) for t in targets), file.metadata)

    def index(self) -> bytes | None:
        """The index of the merged checkpoint; None when it has one file and no index."""
        path = self.base.path / INDEX
        if not path.exists():
            return None
        if not self.untied and self.dtype is None:
            return path.read_bytes()
        index = load_json(path)
        index["weight_map"] = {t.name: shard for shard, targets in self.shards.items() for t in targets}
        index["metadata"] = {**(index.get("metadata") or {}), "total_size": self.data_bytes}
        return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()

    @property
    def data_bytes(self) -> int:
        return sum(target.size_bytes for targets in self.shards.values() for target in targets)


def make_plan(
    base: Checkpoint, additions: Sequence[Addition], scale: Scale | None = None, dtype: str | None = None
) -> Plan:
    """Decide every tensor of the merge; an error that lists all that does not fit.

    A CheckpointError when the base cannot take an exact change, an AdapterError when a vector does not fit it.
    """
    _check_base(base, dtype)
    names = dict.fromkeys(name for a in additions for name in a.vector.entries)
    factors = dict.fromkeys(names, 1.0)
    if scale is not None:
        factors |= scale.factors(
            [n for a in additions if a.role == "vector" for n in a.vector.entries], base.text_config
        )
    embedding, head_stored = _embedding(base), bool(find(HEAD, base.tensors))
    shared = embedding if not head_stored and _tie_flag(base) is not False else None
    # A head that shares the embedding's tensor is placed on it, under its own name.
    tensors = {**base.tensors, HEAD: base.tensors[shared]} if shared else base.tensors
    placed = _place_all(names, additions, tensors, base)
    terms = {name: found for name in names if (found := _terms(additions, factors, name))}
    on_embedding = next((terms[n] for n in terms if n != HEAD and placed[n][0].stored == embedding), [])
    differ = not _are_equal(on_embedding, terms.get(HEAD, []))
    untied = differ and (shared is not None or (head_stored and _config_ties(base)))
    if shared and not untied:
        terms.pop(HEAD, None)  # the embedding takes the one change for both

    pieces: dict[str, list[tuple[Placement, str]]] = {}
    for name in terms:
        for at in placed[name]:
            pieces.setdefault(HEAD if shared and name == HEAD else at.stored, []).append((at, name))
    _check_pieces(base, pieces)
    shards = {}
    for shard, file in base.files.items():
        wanted = []
        for info in file.tensors.values():
            wanted.append((info.name, info))
            if untied and info.name == shared:
                wanted.append((HEAD, info))  # next to the embedding, whose alignment suits it
        shards[shard] = tuple(
            Target(name, _result(info, dtype), info, tuple(pieces.get(name, ()))) for name, info in wanted
        )
    return Plan(base, tuple(additions), factors, shards, untied, dtype)


def _terms(additions: Sequence[Addition], factors: Mapping[str, float], name: str) -> list[tuple[float, Change]]:
    weighted = [
        (a.k if a.role == "adapter" else a.k * factors[name], a.vector.entries[name])
        for a in additions
        if name in a.vector.entries
    ]
    return [(weight, entry) for weight, entry in weighted if weight]


def _place_all(
    names: Iterable[str], additions: Sequence[Addition], tensors: Mapping[str, TensorInfo], base: Checkpoint
) -> dict[str, list[Placement]]:
    """Where every parameter lies; an AdapterError that lists those without a place."""
    placed, problems = {}, []
    for name in names:
        for shape in {tuple(a.vector.entries[name].shape) for a in additions if name in a.vector.entries}:
            found = place(name, shape, tensors, base.text_config.get("model_type", ""))
            if isinstance(found, str):
                problems.append(found)
            else:
                placed[name] = found
    source = f"{base.path}: the vectors do not fit this base"
    report_problems(AdapterError, source, problems)
    return placed


def _check_base(base: Checkpoint, dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"dtype: {dtype!r}. Expected {', '.join(DTYPES)}, or none for the base's own")
    if not base.config:
        raise CheckpointError(f"{base.path}: has no config.json. Expected a whole model folder. Fetch it again")
    quantised = base.config.get("quantization_config") or base.text_config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "an unnamed method") if isinstance(quantised, dict) else quantised
        raise CheckpointError(
            f"{base.path}: is quantised ({method}), so that no change can be added exactly. Expected float weights. "
            "Merge into the unquantised model, then quantise the result"
        )
    if (base.path / ADAPTER_CONFIG).exists():
        raise CheckpointError(
            f"{base.path}: holds an adapter beside the model, which transformers would load along. Expected the "
            "model alone. Move the adapter elsewhere, and merge it as `adapter` if it is meant"
        )


def _check_pieces(base: Checkpoint, pieces: Mapping[str, Sequence[tuple[Placement, str]]]) -> None:
    problems = []
    for stored, placed in pieces.items():
        names = sorted({name for _, name in placed})
        if len(names) > 1:
            problems.append(f"{stored}: changed as {' and as '.join(names)}; expected one change of it")
        dtype = base.tensors[placed[0][0].stored].dtype
        if dtype not in FLOATS:
            problems.append(f"{stored}: is stored as {dtype}; expected {', '.join(FLOATS)}: use the unquantised model")
    report_problems(CheckpointError, base.path, problems)


def _embedding(base: Checkpoint) -> str | None:
    """The stored tensor of the input embedding; None where there is none under a known name."""
    found = [name for name in base.tensors if is_embedding(name)]
    of_text = [name for name in found if not re.search("vision|visual|audio|speech|encoder", name)]
    if len(of_text) > 1:
        raise CheckpointError(
            f"{base.path}: has the embeddings {', '.join(of_text)}. Expected one, which the head may share. A model "
            "with several is not supported"
        )
    return of_text[0] if of_text else None


def _tie_flag(base: Checkpoint) -> bool | None:
    return base.config.get("tie_word_embeddings", base.text_config.get("tie_word_embeddings"))


def _config_ties(base: Checkpoint) -> bool:
    """Whether transformers is told to tie the head, by config.json or by the default of the architecture."""
    flag = _tie_flag(base)
    if flag is None:
        from transformers import AutoConfig

        try:
            flag = AutoConfig.for_model(base.config["model_type"]).get_text_config().tie_word_embeddings
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{base.path}: config.json does not say whether the head is tied ({error}). Expected "
                "tie_word_embeddings, or a model_type that transformers knows. Add tie_word_embeddings to it"
            ) from None
    return flag


def _are_equal(left: Sequence[tuple[float, Change]], right: Sequence[tuple[float, Change]]) -> bool:
    return len(left) == len(right) and all(
        wl == wr and _same_entry(el, er) for (wl, el), (wr, er) in zip(left, right, strict=True)
    )


def _same_entry(left: Change, right: Change) -> bool:
    if isinstance(left, LowRank) and isinstance(right, LowRank):
        return torch.equal(left.up, right.up) and torch.equal(left.down, right.down)
    return isinstance(left, Tensor) and isinstance(right, Tensor) and torch.equal(left, right)


def _result(info: TensorInfo, dtype: str | None) -> str:
    return DTYPES[dtype] if dtype is not None and info.dtype in FLOATS else info.dtype
