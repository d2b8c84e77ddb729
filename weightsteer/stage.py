"""Run one stage into a folder of its own: temporary sibling, rename, manifest last."""

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from weightsteer.errors import StageError, WeightsteerError

MANIFEST = "manifest.json"
# What a disk answers that takes no more, or takes nothing from this user at this place.
DISK_ERRORS = {
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "ENOTDIR", "EEXIST")
}
LIBRARIES = ("weightsteer", "torch", "transformers", "peft", "trl", "safetensors", "datasets", "numpy")


def run_stage(folder: Path, inputs: Mapping[str, Any], work: Callable[[Path], None]) -> bool:
    """Have `work(temporary)` fill `folder`; return False when a finished stage with equal inputs is already there.

    `inputs` is everything that determines the result, as JSON-able values. The folder appears under its name only when
    it is whole, its manifest written last; a folder made from other inputs is a StageError that names the difference.
    """
    inputs = to_json(inputs)
    if is_finished(folder, inputs):
        return False
    temporary = _temporary(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    started, start = datetime.now(UTC), time.monotonic()
    try:
        with writing(folder):
            temporary.mkdir(parents=True)
            work(temporary)
            write_manifest(temporary, inputs, started, time.monotonic() - start)
            _give_way(folder, temporary)
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Explain a disk that is full or may not be written to as a StageError; every other error passes as it is."""
    try:
        yield
    except BaseException as error:
        trouble = None if isinstance(error, WeightsteerError) else _disk_trouble(error)
        if trouble is None:
            raise
        raise StageError(
            f"{folder}: could not be written ({trouble}). Expected a writable disk with room left. Free some space or "
            "choose another --out; what is finished is kept, so the same command goes on from here"
        ) from error


def discard(folder: Path) -> None:
    """Take a finished stage away in one step, so that it can be made anew; anything else is left alone."""
    if read_manifest(folder) is not None:
        shutil.rmtree(_temporary(folder), ignore_errors=True)
        folder.rename(_temporary(folder))


def is_finished(folder: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether `folder` holds this very stage, finished; a StageError when it was made from other inputs."""
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    differences = _differences(manifest["inputs"], to_json(inputs))
    if differences:
        raise StageError(
            "\n  ".join([f"{folder}: holds a finished stage with other inputs", *differences])
            + "\nExpected the same inputs. Choose another --out, or delete this folder to make it anew"
        )
    missing = [name for name in manifest["files"] if not (folder / name).is_file()]
    if missing:
        raise StageError(f"{folder}: {', '.join(missing)} missing from a finished stage. Delete the folder to redo it")
    return True


def stage_digests(out: Path) -> dict[str, str]:
    """Every finished stage folder below `out` but the report, with the digest of what it was made from."""
    found = {}
    for path in sorted(out.rglob(MANIFEST)):
        name = str(path.parent.relative_to(out))
        if name != "report" and not any(part.startswith(".") for part in path.relative_to(out).parts):
            manifest = read_manifest(path.parent)
            found[name] = manifest["inputs_digest"] if manifest else ""
    provenance = out / "merged" / "weightsteer.json"
    if provenance.is_file():
        found["merged"] = digest(json.loads(provenance.read_text(encoding="utf-8")))
    return found


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage; None when there is none. A damaged one is a StageError."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if isinstance(manifest["inputs"], dict) and isinstance(manifest["files"], dict):
            return manifest
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        pass
    raise StageError(f"{folder / MANIFEST}: not a manifest that weightsteer wrote. Delete the folder to make it anew")


def write_manifest(folder: Path, inputs: Mapping[str, Any], started: datetime, seconds: float) -> None:
    """Describe every file below `folder` and what it was made from, as the last file written."""
    files = {str(path.relative_to(folder)): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = {
        "inputs": inputs,
        "inputs_digest": digest(inputs),
        "files": files,
        "versions": versions(),
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for one run; a second run gets a StageError at once."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise StageError(
            f"{folder}: another run is writing here. Expected one run a folder. Wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise StageError(f"{folder}: cannot be written ({error.strerror}). Choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of `value`."""
    canonical = json.dumps(to_json(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file that is on the disk, whole, when this returns."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def to_json(value: Any) -> Any:
    """`value` as plain JSON types, dataclasses and tuples included."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


@cache
def versions() -> dict[str, str]:
    """Installed versions of the libraries that can affect a number."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def command() -> str:
    """The command line of this run, without the path of the program; from Python, a word that says so."""
    program = Path(sys.argv[0]).name
    return " ".join(["weightsteer", *sys.argv[1:]]) if program == "weightsteer" else "weightsteer.run (from Python)"


def machine() -> dict[str, Any]:
    """The machine and the libraries, without anything that identifies its user."""
    return {
        "machine": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "versions": versions(),
        "git_revision": git_revision(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def git_revision() -> str | None:
    """Commit of the checkout this package runs from, `+` when it has uncommitted changes; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _give_way(folder: Path, finished: Path) -> None:
    """Remove what an unfinished stage left at `folder`; a StageError when there is anything else."""
    if not folder.exists():
        return
    foreign = [p for p in folder.rglob("*") if p.is_file() and not (finished / p.relative_to(folder)).is_file()]
    if foreign:
        raise StageError(
            f"{folder}: holds {foreign[0].relative_to(folder)}, which this stage does not write. Expected nothing "
            "there, or what an earlier run left. Move it away, or choose another --out"
        )
    shutil.rmtree(folder)


def _disk_trouble(error: BaseException) -> str | None:
    """What the disk said, or None when the error is of another kind."""
    if isinstance(error, OSError):
        return str(error) if error.errno in DISK_ERRORS else None
    # safetensors, tokenizers and torch raise types of their own with the words of the system.
    words = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
    return next((said for said in words if said in str(error)), None)


def _differences(stored: Any, wanted: Any, key: str = "") -> list[str]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = sorted({*stored, *wanted})
        return [d for k in keys for d in _differences(stored.get(k), wanted.get(k), f"{key}.{k}" if key else k)]
    return [] if stored == wanted else [f"{key}: {_short(stored)} there, {_short(wanted)} asked for"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
