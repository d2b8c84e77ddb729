"""Merge: base + Σ k·w as a model folder of its own, streamed from file to file and rounded once."""

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

from weightsteer.errors import AdapterError, CheckpointError, report_problems
from weightsteer.merging.arithmetic import Applied
from weightsteer.merging.journal import JOURNAL, Journal
from weightsteer.merging.plan import Addition, Plan, make_plan
from weightsteer.merging.provenance import STEERING, Provenance
from weightsteer.merging.scale import Scale
from weightsteer.merging.shards import write_shards
from weightsteer.merging.side_files import merged_config, side_files
from weightsteer.models.reference import ModelRef
from weightsteer.models.safetensors_file import INDEX
from weightsteer.stage import digest, file_digest, locked, versions
from weightsteer.weights.checkpoint import CONFIG, Checkpoint
from weightsteer.weights.lowrank import LowRank
from weightsteer.weights.vector import WeightVector

LOCK = ".lock"  # of `locked`
# Beyond the shards: headers, configuration, journal.
SPARE_BYTES = 16 << 20


@dataclass(frozen=True)
class MergeResult:
    """A merged checkpoint and what became of the change in it."""

    path: Path
    provenance: Provenance
    skipped: bool
    """The same merge was there already, finished."""
    tensors: int
    changed: int
    """Tensors that a change fell on."""
    size_bytes: int
    seconds: Mapping[str, float]
    """read, compute, hash and disk (waiting for it), each summed over threads, which overlap; total."""


def merge(
    base: Path | str | ModelRef,
    vectors: Sequence[tuple[WeightVector, float]],
    out: Path | str,
    *,
    adapter: WeightVector | None = None,
    scale: Scale | None = None,
    dtype: str | None = None,
    any_base: bool = False,
) -> MergeResult:
    """Write round(W + adapter + Σ k·w) as a model folder `out`, and say how much of the change it holds.

    `base` is a folder of safetensors. `scale` weighs the vectors by depth and module, the task `adapter` never.
    `dtype` (float32, bfloat16, float16) replaces the base's own. `any_base` lets vectors of another base through,
    for a base that is a fine-tune of theirs.

    `out` appears when it is whole; weightsteer.json, written last, and the vectors below steering/ let `verify`
    recompute it. A merge that was killed goes on from its finished shards; one that is finished is not repeated. A
    CheckpointError or AdapterError when anything does not fit, before data is read, or when the disk is full.
    """
    begin, out = perf_counter(), Path(out)
    with _explained(out):
        checkpoint, source = open_base(base)
        _check_out(out, checkpoint.path)
        fingerprint = checkpoint.fingerprint()
        plan = make_plan(checkpoint, _additions(vectors, adapter, fingerprint, any_base), scale, dtype)
        job = _job(plan, fingerprint, scale)
        finished = _finished(out, job)
        if finished:
            return _result(out, plan, finished, {"total": perf_counter() - begin}, skipped=True)
        unfinished = out.with_name(f".{out.name}.partial")
        with locked(unfinished):
            journal = Journal(unfinished, digest(job))
            _sweep(unfinished, journal)
            _check_room(plan, unfinished, journal)
            with ThreadPoolExecutor(1) as beside:
                vectors_written = beside.submit(_write_vectors, plan, unfinished)
                seconds = write_shards(plan, unfinished, journal)
            applied = sum((journal.finished[shard][1] for shard in plan.shards), Applied())
            _check_applied(plan, applied, unfinished)
            recorded = vectors_written.result()
            files, left_out = _write_companions(plan, unfinished)
            provenance = Provenance(
                job=job,
                base={**source, "fingerprint": fingerprint},
                vectors=recorded,
                scale=asdict(scale) if scale else None,
                dtype=dtype,
                any_base=any_base,
                untied=plan.untied,
                applied=applied.summary(),
                shards={shard: journal.finished[shard][0] for shard in plan.shards},
                files=files,
                left_out=left_out,
                versions=versions(),
            )
            provenance.write(unfinished)
            _publish(unfinished, out)
        return _result(out, plan, provenance, {**seconds, "total": perf_counter() - begin}, skipped=False)


def open_base(base: Path | str | ModelRef) -> tuple[Checkpoint, dict[str, str | None]]:
    """The checkpoint behind `base`, and how it was asked for."""
    if isinstance(base, ModelRef):
        return Checkpoint.open(base.path), {"source": base.source, "revision": base.revision}
    return Checkpoint.open(base), {"source": str(base), "revision": None}


def _check_out(out: Path, base: Path) -> None:
    target, source = out.resolve(), base.resolve()
    if target == source or target.is_relative_to(source) or source.is_relative_to(target):
        raise CheckpointError(
            f"{out}: is the base {base}, inside it or around it. Expected a folder apart from it, since the base is "
            "never written to. Choose another --out"
        )
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out}: is a file. Expected a folder that is new or empty. Choose another --out")


def _additions(
    vectors: Sequence[tuple[WeightVector, float]], adapter: WeightVector | None, base: str, any_base: bool
) -> list[Addition]:
    """What is added, in the order of the sum. Strengths of equal vectors are summed first, so that they cancel."""
    given = [("adapter", adapter, 1.0)] if adapter is not None else []
    given += [("vector", vector, float(k)) for vector, k in vectors]
    problems = []
    if not given:
        problems.append("nothing to merge; expected at least one vector with its k, or a task adapter")
    summed: dict[tuple[str, str], Addition] = {}
    for number, (role, vector, k) in enumerate(given):
        name = f"{role} {number} ({vector.name})"
        if not math.isfinite(k):
            problems.append(f"{name}: k is {k}; expected a finite number")
        if vector.base not in (None, base) and not any_base:
            problems.append(
                f"{name}: made on the base {vector.base[:16]}, this one is {base[:16]}; use its own base, or allow "
                "any base if this one is a fine-tune of it"
            )
        key = (role, vector.digest)
        before = summed[key].k if key in summed else 0.0
        summed[key] = Addition(vector, before + k, role)
    report_problems(AdapterError, "merge", problems)
    return list(summed.values())


def _job(plan: Plan, base: str, scale: Scale | None) -> dict[str, Any]:
    files = {name: file_digest(path) for name, path in side_files(plan.base)[0].items()}
    files[CONFIG] = file_digest(plan.base.path / CONFIG)
    return {
        "base": base,
        "layout": digest({name: sha256(file.header).hexdigest() for name, file in plan.base.files.items()}),
        "files": digest(files),
        "vectors": [{"role": a.role, "digest": a.vector.digest, "k": a.k} for a in plan.additions],
        "scale": asdict(scale) if scale else None,
        "dtype": plan.dtype,
    }


def _finished(out: Path, job: Mapping[str, Any]) -> Provenance | None:
    """The provenance of the same merge, done before; a CheckpointError when `out` holds anything else."""
    if not out.exists() or not any(out.iterdir()):
        return None
    try:
        provenance = Provenance.read(out)
    except CheckpointError as error:
        raise CheckpointError(
            f"{out}: is not empty and no merge that weightsteer finished ({error}). Expected a folder that is new or "
            "empty. Choose another --out, or delete it"
        ) from None
    differences = [
        f"{key}: {provenance.job.get(key)} there, {job[key]} asked for"
        for key in job
        if provenance.job.get(key) != job[key]
    ]
    if differences:
        raise CheckpointError(
            "\n  ".join([f"{out}: holds another merge", *differences])
            + "\nExpected the same one. Choose another --out, or delete it"
        )
    return provenance


def _sweep(folder: Path, journal: Journal) -> None:
    """Remove what an earlier run left behind, except its finished shards."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (JOURNAL, LOCK, *journal.finished):
            path.unlink()


def _check_room(plan: Plan, folder: Path, journal: Journal) -> None:
    shards = sum(t.size_bytes for s, targets in plan.shards.items() if s not in journal.finished for t in targets)
    entries = [e for a in plan.additions for e in a.vector.entries.values()]
    vectors = sum(4 * (e.up.numel() + e.down.numel() if isinstance(e, LowRank) else e.numel()) for e in entries)
    needed, free = shards + vectors + SPARE_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"{folder.parent}: {free / 1e9:.2f} GB are free, the merge needs {needed / 1e9:.2f} GB. Expected room "
            "for all of it. Free some space, or choose --out on another disk"
        )


def _check_applied(plan: Plan, applied: Applied, folder: Path) -> None:
    if applied.asked and not applied.moved:
        shutil.rmtree(folder)
        raise CheckpointError(
            f"{plan.base.path}: not one of {applied.elements} elements moved: the change, of norm "
            f"{math.sqrt(applied.asked):.3g}, is lost in rounding. Expected a steered checkpoint. Choose a larger k, "
            "or dtype float32"
        )


def _write_vectors(plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """Write what was added; what the provenance says of it."""
    vectors = []
    for number, addition in enumerate(plan.additions):
        place = f"{STEERING}/{number}"
        addition.vector.save(folder / place)
        vectors.append(
            {
                "folder": place,
                "role": addition.role,
                "k": addition.k,
                "digest": addition.vector.digest,
                "base": addition.vector.base,
                "info": dict(addition.vector.info),
            }
        )
    return vectors


def _write_companions(plan: Plan, folder: Path) -> tuple[dict[str, str], list[str]]:
    """Write everything small: digests of the files, and what was left out."""
    copied, left_out = side_files(plan.base)
    files = list(copied)
    for name, path in copied.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    edited = {INDEX: plan.index(), CONFIG: merged_config(plan.base, plan.untied, plan.dtype)}
    for name, content in edited.items():
        if content is not None:
            (folder / name).write_bytes(content)
            files.append(name)
    for name in files:
        _sync(folder / name)
    return {name: file_digest(folder / name) for name in files}, left_out


def _publish(folder: Path, out: Path) -> None:
    """Let the finished folder appear under its name."""
    for name in (JOURNAL, LOCK):
        (folder / name).unlink(missing_ok=True)
    for root, _, _ in os.walk(folder):
        _sync(Path(root))
    folder.rename(out)
    _sync(out.parent)


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _result(out: Path, plan: Plan, provenance: Provenance, seconds: Mapping[str, float], skipped: bool) -> MergeResult:
    targets = [target for targets in plan.shards.values() for target in targets]
    changed = sum(bool(target.pieces) for target in targets)
    return MergeResult(out, provenance, skipped, len(targets), changed, plan.data_bytes, seconds)


@contextlib.contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Turn what a disk may raise into one CheckpointError that says what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename or out
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"{where}: the disk is full. Expected room for the whole checkpoint. Free some space and run the same "
                "merge again: it goes on from the finished shards"
            ) from error
        raise CheckpointError(
            f"{where}: cannot be read or written ({error.strerror or error}). Expected a disk that works and allows "
            "it. Put that right and run the same merge again"
        ) from error
