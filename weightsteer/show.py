"""What a recipe, vector, adapter, checkpoint or result is, as plain facts."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from weightsteer.errors import WeightsteerError
from weightsteer.recipe import load_recipe
from weightsteer.stage import read_manifest
from weightsteer.weights.library import Entry, Library, is_library


def describe(path: str | Path, other: str | Path | None = None) -> dict[str, Any]:
    """Shapes, norms, provenance of whatever lies at `path`; with a second vector also their cosine.

    Of a folder of vectors each with its norm, base, behavior and card.
    """
    path = Path(path)
    if path.suffix in (".yaml", ".yml"):
        return {"recipe": str(path), **load_recipe(path).dump()}
    if (path / "vector.json").is_file() or (path / "adapter_config.json").is_file():
        return _vector(path, other)
    if other is not None:
        raise WeightsteerError(f"{path}: is no vector or adapter, so there is no cosine with {other}. Give two vectors")
    if (path / "activation_vector.safetensors").is_file():
        return _activation_vector(path)
    if (path / "result.json").is_file():
        return {"result": str(path), **json.loads((path / "result.json").read_text(encoding="utf-8"))}
    if (path / "config.json").is_file():
        return _checkpoint(path)
    if (path / "recipe.yaml").is_file():
        return _run(path)
    if is_library(path):
        return {"library": str(path), "vectors": {name: _listed(entry) for name, entry in Library(path).items()}}
    raise WeightsteerError(
        f"{path}: nothing that weightsteer knows. Expected a recipe file, or the folder of a vector, an adapter, a "
        "library of vectors, a checkpoint, a result or a run"
    )


def _vector(path: Path, other: str | Path | None) -> dict[str, Any]:
    from weightsteer.weights.lowrank import LowRank
    from weightsteer.weights.vector import WeightVector

    vector = WeightVector.load(path)
    low_rank = {name: change for name, change in vector.entries.items() if isinstance(change, LowRank)}
    facts: dict[str, Any] = {
        "vector": str(path),
        "base": vector.base or "not recorded",
        "parameters": len(vector.entries),
        "low-rank": len(low_rank),
        "dense": len(vector.entries) - len(low_rank),
        "ranks": dict(Counter(str(change.rank) for change in low_rank.values())),
        "norm": vector.norm(),
        "share of squared norm": vector.shares_by_kind(),
        "norm by block": {str(block): norm for block, norm in sorted(vector.norm_by_block().items())},
        "info": dict(vector.info),
    }
    if other is not None:
        facts["cosine"] = vector.cosine(WeightVector.load(other))
        facts["with"] = str(other)
    return facts


def _listed(entry: Entry) -> dict[str, Any]:
    """One vector of a library; where it cannot be read, why, so that the others are listed all the same."""
    from weightsteer.activations.vector import ActivationVector
    from weightsteer.weights.vector import WeightVector

    kind = WeightVector if entry.kind == "weights" else ActivationVector
    try:
        norm: float | str = kind.load(entry.path).norm()
    except WeightsteerError as error:
        norm = f"not known: {error}"
    return {**entry.to_json(), "norm": norm}


def _activation_vector(path: Path) -> dict[str, Any]:
    from weightsteer.activations.vector import ActivationVector

    vector = ActivationVector.load(path)
    norms = {str(block): direction.norm().item() for block, direction in sorted(vector.directions.items())}
    facts = {"base": vector.base, "mode": vector.mode, "norm by block": norms, "info": dict(vector.info)}
    return {"activation vector": str(path), **facts}


def _checkpoint(path: Path) -> dict[str, Any]:
    from weightsteer.merging.provenance import PROVENANCE, Provenance
    from weightsteer.weights.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(path)
    tensors = checkpoint.tensors.values()
    facts: dict[str, Any] = {
        "checkpoint": str(path),
        "architecture": checkpoint.config.get("model_type", "not recorded"),
        "fingerprint": checkpoint.fingerprint(),
        "tensors": len(tensors),
        "dtypes": dict(Counter(info.dtype for info in tensors)),
        "size (MB)": sum(info.size_bytes for info in tensors) / 1e6,
        "shards": len(checkpoint.files),
    }
    if (path / PROVENANCE).is_file():
        said = Provenance.read(path)
        facts["steered from"] = dict(said.base)
        facts["vectors"] = [{"k": v["k"], "digest": v["digest"], "info": v["info"]} for v in said.vectors]
        facts["applied"] = dict(said.applied)
    return facts


def _run(path: Path) -> dict[str, Any]:
    stages = {}
    for manifest in sorted(path.rglob("manifest.json")):
        content = read_manifest(manifest.parent)
        if content is not None:
            stages[str(manifest.parent.relative_to(path))] = f"{content['seconds']} s, {content['started']}"
    return {"run": str(path), "finished stages": stages}
