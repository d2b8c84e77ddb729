"""Verify: does a merged checkpoint hold what it says? Recomputed from its base and its vectors, element by element."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from weightsteer import progress
from weightsteer.errors import AdapterError, CheckpointError, ModelError
from weightsteer.merging.arithmetic import Applied, Chunk, bounds, compute
from weightsteer.merging.lanes import Lane, in_order, open_lanes
from weightsteer.merging.merge import open_base
from weightsteer.merging.plan import Addition, Plan, make_plan
from weightsteer.merging.provenance import STEERING, Provenance
from weightsteer.merging.scale import Scale
from weightsteer.merging.side_files import ADAPTER_CONFIG, expected_config, side_files
from weightsteer.models.reference import ModelRef, resolve
from weightsteer.models.safetensors_file import INDEX, WEIGHT_SUFFIXES, TensorInfo
from weightsteer.stage import file_digest
from weightsteer.weights.checkpoint import CONFIG, TORCH_DTYPES, Checkpoint
from weightsteer.weights.vector import WeightVector

Outcome = Literal["ok", "failed", "could not check"]


@dataclass(frozen=True)
class Verification:
    """Whether a checkpoint holds what it says, and what is wrong with it."""

    outcome: Outcome
    problems: tuple[str, ...] = ()
    """What failed, or why it could not be checked."""
    tensors: int = 0
    """Recomputed and compared, those without a change too."""
    elements: int = 0
    """In the tensors with a change."""
    rounded_otherwise: int = 0
    """Elements so near the middle of two values that another processor rounds them the other way."""
    seconds: float = 0.0


@dataclass(frozen=True)
class _Difference:
    """How one chunk in the checkpoint differs from what it should be."""

    applied: Applied
    wrong: int = 0
    furthest: float = 0.0
    rounded_otherwise: int = 0


class _OutOfReach(Exception):
    """Something that the check needs is not at hand."""


def verify(path: Path | str, base: Path | str | ModelRef | None = None) -> Verification:
    """Whether the checkpoint at `path` is base + Σ k·w as its weightsteer.json says, to the last element.

    Without `base` it is looked for where the merge found it. What is wrong with the checkpoint is the outcome, not an
    exception. It could not be checked when provenance, vectors or base are not at hand; then the digests of the
    files still tell a checkpoint that was changed since.
    """
    begin, path = perf_counter(), Path(path)
    try:
        provenance = Provenance.read(path)
    except CheckpointError as error:
        return Verification("could not check", (str(error),))
    try:
        result = _recompute(path, provenance, base)
    except _OutOfReach as error:
        changed = _changed_since(path, {**provenance.shards, **provenance.files})
        result = Verification("failed" if changed else "could not check", (*changed, str(error)))
    except (CheckpointError, AdapterError) as error:
        result = Verification("failed", (str(error),))
    except OSError as error:
        result = Verification("could not check", (f"{error.filename or path}: cannot be read ({error.strerror})",))
    return replace(result, seconds=perf_counter() - begin)


def _recompute(path: Path, provenance: Provenance, base: Path | str | ModelRef | None) -> Verification:
    merged = Checkpoint.open(path)
    additions = _additions(path, provenance)
    scale = Scale(**provenance.scale) if provenance.scale is not None else None
    plan = make_plan(_base(provenance, base), additions, scale, provenance.dtype)
    problems = [*_structure(plan, merged), *_companions(plan, merged, provenance)]
    differences: dict[str, list[_Difference]] = {}
    with open_lanes() as lanes, progress.task("Verifying, MiB", plan.data_bytes >> 20) as advance:
        done = 0
        for (name, chunk, _, _), difference in in_order(_compare, _work(plan, merged), lanes):
            differences.setdefault(name, []).append(difference)
            size = chunk.stop - chunk.start
            advance((done + size >> 20) - (done >> 20))
            done += size
    problems += [_describe(name, found) for name, found in differences.items() if any(d.wrong for d in found)]
    every = [d for found in differences.values() for d in found]
    applied = sum((d.applied for d in every), Applied())
    if not problems:
        problems += _claims(applied, plan.untied, provenance)
    return Verification(
        "failed" if problems else "ok",
        tuple(problems),
        tensors=len(differences),
        elements=sum(math.prod(t.source.shape) for ts in plan.shards.values() for t in ts if t.pieces),
        rounded_otherwise=sum(d.rounded_otherwise for d in every),
    )


def _additions(path: Path, provenance: Provenance) -> list[Addition]:
    """The vectors inside the checkpoint, which must be those of the merge."""
    additions = []
    for number, recorded in enumerate(provenance.vectors):
        folder = path / STEERING / str(number)
        if not folder.is_dir():
            raise _OutOfReach(f"{folder}: missing. Expected the vector that was merged. Fetch the whole checkpoint")
        vector = WeightVector.load(folder)
        if vector.digest != recorded["digest"]:
            raise CheckpointError(
                f"{folder}: is vector {vector.digest[:16]}, the checkpoint was made with {recorded['digest'][:16]}. "
                "Expected the very same. Make the checkpoint again"
            )
        additions.append(Addition(vector, recorded["k"], recorded["role"]))
    return additions


def _base(provenance: Provenance, given: Path | str | ModelRef | None) -> Checkpoint:
    """The base of the merge."""
    recorded = provenance.base
    try:
        if given is None:
            given = resolve(recorded["source"], recorded["revision"])
        checkpoint = open_base(given)[0]
    except (ModelError, CheckpointError) as error:
        raise _OutOfReach(f"the base is not at hand: {error}. Give it as `base`") from None
    fingerprint = checkpoint.fingerprint()
    if fingerprint != recorded["fingerprint"]:
        raise _OutOfReach(
            f"{checkpoint.path}: is base {fingerprint[:16]}, the checkpoint was made from "
            f"{recorded['fingerprint'][:16]} ({recorded['source']}). Expected that one. Give it as `base`"
        )
    return checkpoint


def _structure(plan: Plan, merged: Checkpoint) -> list[str]:
    """Tensors that are missing, too many, of another dtype or shape, or in another file."""
    expected = {
        target.name: (target.dtype, target.source.shape, shard)
        for shard, targets in plan.shards.items()
        for target in targets
    }
    found = {name: (info.dtype, info.shape, info.file.name) for name, info in merged.tensors.items()}
    problems = [f"{name}: missing" for name in expected if name not in found]
    problems += [f"{name}: not in the base; expected no such tensor" for name in found if name not in expected]
    for name in found.keys() & expected.keys():
        if found[name] != expected[name]:
            problems.append(f"{name}: {_words(found[name])}; expected {_words(expected[name])}")
    return problems


def _words(tensor: tuple[str, tuple[int, ...], str]) -> str:
    dtype, shape, file = tensor
    return f"{dtype} {list(shape)} in {file}"


def _companions(plan: Plan, merged: Checkpoint, provenance: Provenance) -> list[str]:
    """Configuration and other small files that differ from the base's, and weights that nobody mentioned."""
    problems = []
    expected = expected_config(plan.base.config, plan.untied, plan.dtype)
    for key in sorted({*expected, *merged.config}):
        if expected.get(key) != merged.config.get(key):
            problems.append(f"{CONFIG}: {key} is {merged.config.get(key)!r}; expected {expected.get(key)!r}")
    of_base = {name: file_digest(source) for name, source in side_files(plan.base)[0].items()}
    recorded = {name: sha for name, sha in provenance.files.items() if name not in (CONFIG, INDEX)}
    problems += _changed_since(merged.path, recorded | of_base)
    for file in sorted(merged.path.iterdir()):
        if file.name == ADAPTER_CONFIG or (file.suffix in WEIGHT_SUFFIXES and file.name not in merged.files):
            problems.append(f"{file.name}: no part of the merge, but transformers may load it")
    return problems


def _changed_since(path: Path, digests: dict[str, str]) -> list[str]:
    problems = []
    for name, sha256 in digests.items():
        file = path / name
        if not file.is_file():
            problems.append(f"{name}: missing")
        elif file_digest(file) != sha256:
            problems.append(f"{name}: its content is not the one that was written")
    return problems


def _work(plan: Plan, merged: Checkpoint) -> Iterator[tuple[str, Chunk, TensorInfo, int]]:
    """Every chunk of the merge with the tensor in the checkpoint, and the byte of it, where it should be."""
    for targets in plan.shards.values():
        for target in targets:
            stored = merged.tensors.get(target.name)
            if stored is None or (stored.dtype, stored.shape) != (target.dtype, target.source.shape):
                continue
            at = 0
            for chunk in plan.chunks(target):
                yield target.name, chunk, stored, at
                at += chunk.size_bytes


def _compare(work: tuple[str, Chunk, TensorInfo, int], lane: Lane) -> _Difference:
    _, chunk, stored, at = work
    expected, applied = compute(chunk, lane)
    found = lane.read(stored.file, stored.start + at, stored.start + at + len(expected), "stored")
    if _same_bytes(found, expected):
        return _Difference(applied)
    dtype = TORCH_DTYPES.get(stored.dtype, torch.uint8)
    wrong = (found.view(-1, dtype.itemsize) != expected.view(-1, dtype.itemsize)).any(dim=1)
    found, expected = found.view(dtype), expected.view(dtype)
    otherwise = torch.zeros_like(wrong)
    if chunk.sum:
        low, high = bounds(chunk, lane)
        otherwise = wrong & (low <= found) & (found <= high)
        wrong &= ~otherwise
    distance = (found.double() - expected.double()).abs()[wrong]
    return _Difference(applied, len(distance), max(distance.tolist(), default=0.0), int(otherwise.sum()))


def _same_bytes(left: UInt8[Tensor, " n"], right: UInt8[Tensor, " n"]) -> bool:
    whole = len(left) // 8 * 8  # eight at a time is four times as fast
    words = (left[:whole].view(torch.int64), right[:whole].view(torch.int64))
    return torch.equal(*words) and torch.equal(left[whole:], right[whole:])


def _describe(name: str, differences: list[_Difference]) -> str:
    wrong = sum(d.wrong for d in differences)
    furthest = max(d.furthest for d in differences)
    return f"{name}: {wrong} element{'s differ' if wrong > 1 else ' differs'}, by up to {furthest:.3g}"


def _claims(applied: Applied, untied: bool, provenance: Provenance) -> list[str]:
    """What the provenance says came out, against what did."""
    problems = []
    if applied.asked and not applied.moved:
        problems.append("equals its base, although the change asked for is not zero")
    # Another version may take them from other elements of the same change.
    near = 1e-4 if provenance.applied.get("measured") == applied.elements else 0.02
    found = {key: value for key, value in applied.summary().items() if key != "measured"}
    for key, value in {**found, "untied": untied}.items():
        said = provenance.untied if key == "untied" else provenance.applied.get(key)
        alike = isinstance(said, float | int) and value is not None and math.isclose(said, value, rel_tol=near)
        if said != value and not alike:
            problems.append(f"weightsteer.json: {key} is {said}; recomputed {value}")
    return problems
