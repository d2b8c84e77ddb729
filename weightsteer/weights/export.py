"""A weight vector as an adapter for others to serve: k folded in, one rank for all modules."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from weightsteer.errors import AdapterError, report_problems
from weightsteer.stage import to_json, write_text
from weightsteer.weights.adapter_writer import adapter_biases, base_model_of, new_folder, write_adapter
from weightsteer.weights.base import Base
from weightsteer.weights.lowrank import LowRank
from weightsteer.weights.peft_layout import PREFIX
from weightsteer.weights.vector import WeightVector

# What vLLM accepts as max_lora_rank (vllm/config/lora.py).
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class Exported:
    """An adapter that was written."""

    path: Path
    rank: int
    retained: float
    """Share of the vector's squared norm that is in it; 1 when nothing was compressed away."""


def export(
    vector: WeightVector, k: float | int, out: Path | str, rank: int | None = None, base: Any = None
) -> Exported:
    """Write k times the vector as a plain adapter of one rank, padded with zeros to one that vLLM accepts.

    A `rank` below the vector's compresses it first. Dense entries that PEFT cannot hold as changes become
    whole modules (modules_to_save) and whole biases, for which `base` (its checkpoint or folder) is needed;
    PEFT loads them, vLLM does not. Writes export.json beside the adapter. An AdapterError for what cannot be
    expressed.
    """
    out = Path(out)
    if not math.isfinite(k):
        raise AdapterError(f"k is {k}. Expected a finite number")
    rank = _served_rank(vector, rank)
    smaller, retained = vector.compress(rank=rank)
    scaled = smaller * k
    model = None if base is None else Base.of(base)
    if model is not None:
        vector.on(model)
    changes = {name: _padded(c, rank) for name, c in scaled.entries.items() if isinstance(c, LowRank)}
    dense = {name: c for name, c in scaled.entries.items() if not isinstance(c, LowRank)}
    biases = adapter_biases(changes, dense)
    remaining = {name: values for name, values in dense.items() if name not in biases}
    whole, modules = _whole_modules(remaining, changes, model) if remaining else ({}, ())
    with new_folder(out) as temporary:
        write_adapter(temporary, changes, biases, base_model_of(vector.info), whole, modules)
        record = {
            "k": k,
            "rank": rank,
            "retained": retained,
            "base": vector.base,
            "info": to_json(vector.info),
        }
        write_text(temporary / "export.json", json.dumps(record, indent=1, ensure_ascii=False))
    return Exported(out, rank, retained)


def _served_rank(vector: WeightVector, rank: int | None) -> int:
    if vector.rank == 0:
        raise AdapterError(f"{vector.name}: has no low-rank entries, so it is no adapter. Merge it into its base")
    if rank is None:
        rank = next((r for r in SERVED_RANKS if r >= vector.rank), None)
        if rank is None:
            raise AdapterError(
                f"{vector.name}: has rank {vector.rank}, more than the {SERVED_RANKS[-1]} that vLLM accepts. "
                "Pass a rank to compress it to"
            )
    if rank not in SERVED_RANKS:
        raise AdapterError(f"rank is {rank}. Expected one that vLLM accepts: {', '.join(map(str, SERVED_RANKS))}")
    return rank


def _padded(change: LowRank, rank: int) -> LowRank:
    missing = rank - change.rank
    return replace(change, up=F.pad(change.up, (0, missing)), down=F.pad(change.down, (0, 0, 0, missing)))


def _whole_modules(
    dense: Mapping[str, Tensor], changes: Mapping[str, LowRank], model: Base | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Full values of what PEFT can only store whole, by key in the file, and the modules to save."""
    if model is None:
        raise AdapterError(
            f"PEFT holds these only as whole parameters, which need the base: {', '.join(dense)}. Pass "
            "base=, or merge the vector instead"
        )
    whole, modules, problems = {}, [], []
    adapted = {name.rpartition(".")[0] for name, c in changes.items()}
    for name, change in dense.items():
        module, _, leaf = name.rpartition(".")
        values = model.tensor(name)
        if values is None or values.shape != change.shape:
            problems.append(f"{name} {list(change.shape)}: {model.path} has no such parameter")
        elif module in adapted and leaf == "bias":
            whole[f"{PREFIX}{module}.base_layer.bias"] = values.float() + change
        elif any(f"{other}.".startswith(f"{module}.") for other in adapted):
            problems.append(f"{name}: its module is adapted too, and PEFT does one or the other")
        elif module not in modules:
            modules.append(module)
            for other in (f"{module}.{rest}" for rest, _ in model.network.get_submodule(module).named_parameters()):
                stored = model.tensor(other)
                if stored is None:
                    problems.append(f"{other}: not in {model.path}, so {module} cannot be stored whole")
                else:
                    whole[PREFIX + other] = stored.float() + dense.get(other, 0)
    report_problems(AdapterError, "export", problems)
    return whole, tuple(modules)
