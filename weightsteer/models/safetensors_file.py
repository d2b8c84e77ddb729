"""What safetensors files hold, from their headers alone; every length, offset and name is checked before use.

The format: 8 bytes with the length of the header, the header as JSON (name: dtype, shape, offsets), the data.
https://github.com/huggingface/safetensors#format
"""

import json
import math
import re
import stat
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsteer.errors import CheckpointError, report_problems

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
WEIGHT_SUFFIXES = {*PICKLES, ".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".npz"}

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_ELEMENTS = 2**63 - 1  # torch counts elements in int64
SHOWN_PROBLEMS = 20  # a header of 100,000 tensors can be wrong 100,000 times


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: bytes `start` to `stop` of `file`."""

    name: str
    dtype: str
    """As safetensors names it: "BF16"."""
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start

    @property
    def rows(self) -> int:
        """Of the tensor seen as a matrix: every dimension but the last together."""
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1


@dataclass(frozen=True)
class SafetensorsFile:
    """One file: its header as it stands there, and its tensors in the order of their data."""

    path: Path
    header: bytes
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]


def read_header(path: Path) -> SafetensorsFile:
    """What the file at `path` holds; a CheckpointError when it is not whole and regular in every respect."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path}: not a regular file. Expected a safetensors file. Fetch it again")
        size = path.stat().st_size
        with path.open("rb") as file:
            length_bytes = file.read(8)
            length = int.from_bytes(length_bytes, "little")
            if len(length_bytes) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise _damaged(path, f"{size} bytes with a header of {length} bytes announced")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}). Expected a safetensors file. Check path and permissions"
        ) from error
    if len(text) < length:
        raise _damaged(path, f"the file ends {length - len(text)} bytes before its header does")
    entries = _parse(path, text)
    metadata = entries.pop("__metadata__", None)
    problems: list[str] = []
    if metadata is not None and not _is_text_map(metadata):
        problems.append(f"__metadata__: {_short(metadata)}; expected text keys with text values")
    tensors = [_tensor(path, name, entry, 8 + length, problems) for name, entry in entries.items()]
    in_order = sorted((t for t in tensors if t is not None), key=lambda t: (t.start, t.stop))
    if not problems:
        problems += _gaps(in_order, 8 + length, size)
    _report(path, problems)
    return SafetensorsFile(path, length_bytes + text, metadata or {}, {t.name: t for t in in_order})


def read_folder(folder: Path) -> dict[str, SafetensorsFile]:
    """The safetensors files that make up the model in `folder`, by file name, in the order of their names.

    Without an index this is model.safetensors; with one, index and headers must agree on every tensor.
    """
    names, weight_map = _shard_names(folder)
    files = {}
    for name in names:
        check_inside(folder / name, folder)
        files[name] = read_header(folder / name)
    held = {(tensor, name) for name, file in files.items() for tensor in file.tensors}
    listed = set(weight_map.items()) if weight_map else held
    problems = [f"{tensor}: not in {name}, where the index has it" for tensor, name in sorted(listed - held)]
    problems += [f"{tensor}: in {name}, where the index has none" for tensor, name in sorted(held - listed)]
    _report(folder / INDEX, problems)
    return files


def encode_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The header, its length in front, of a file with `tensors` (name, dtype, shape) one after the other."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape in tensors:
        stop = offset + math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8, as the format recommends
    return struct.pack("<Q", len(text)) + text


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`, without duplicate keys or numbers that JSON does not have."""
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}). Expected a JSON file. Check path and permissions"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid ({error}). Expected a JSON object. Fetch or save it again") from error


def parse_json(text: bytes) -> dict[str, Any]:
    """The JSON object `text`; a ValueError for anything else, however it is broken."""
    try:
        value = json.loads(
            text.decode(),
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
            parse_int=_parse_int,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}, not an object")
    return value


def check_inside(file: Path, folder: Path) -> None:
    """Refuse a link that leads out of `folder`; a hub cache's own links into its blobs are fine."""
    if not file.is_symlink():
        return
    home, target = folder.resolve(), file.resolve()
    blobs = home.parent.parent / "blobs"
    in_hub_cache = home.parent.name == "snapshots" and target.parent == blobs
    if not (target.is_relative_to(home) or in_hub_cache):
        raise CheckpointError(
            f"{file}: links to {target}, outside the folder. Expected files of the checkpoint itself. "
            "Put the file in place of the link"
        )


def _shard_names(folder: Path) -> tuple[list[str], dict[str, str]]:
    """File names, and tensor name -> file name where an index says so."""
    index, single = folder / INDEX, folder / SINGLE
    if not index.exists():
        if not single.exists():
            raise CheckpointError(_no_weights(folder))
        return [SINGLE], {}
    check_inside(index, folder)
    weight_map = load_json(index).get("weight_map")
    if not _is_text_map(weight_map) or not weight_map:
        raise CheckpointError(
            f"{index}: weight_map is {_short(weight_map)}. Expected a file name for every tensor. Fetch it again"
        )
    names = sorted(set(weight_map.values()))
    problems = [
        f"{name!r}: expected the name of a .safetensors file in this folder, without a path"
        for name in names
        if not re.fullmatch(r"[^/\\\0]+\.safetensors", name)
    ]
    if not problems:
        missing = [name for name in names if not _exists(folder / name)]
        problems = [f"{name}: missing; expected every shard of the index. Fetch it again" for name in missing]
    if single.exists() and SINGLE not in names:
        problems.append(f"{SINGLE} lies beside the index, which has other files; delete what is not meant")
    _report(index, problems)
    return names, weight_map


def _no_weights(folder: Path) -> str:
    advice = "Give a model folder as transformers saves it"
    if not folder.exists():
        return f"{folder}: no such folder. Expected a folder of safetensors. {advice}"
    if folder.suffix == ".gguf" or (folder.is_dir() and list(folder.glob("*.gguf"))):
        advice = "A GGUF file has to be dequantised first: give its path as the model, which does that once"
    if not folder.is_dir():
        return f"{folder}: a file. Expected a folder of safetensors. {advice}"
    found = sorted(p.name for p in folder.iterdir() if p.suffix in WEIGHT_SUFFIXES)
    if any(name.endswith(PICKLES) for name in found):
        advice = (
            "Pickles can run code, so they are never loaded: where you trust their origin, load the model "
            "with transformers and save it with save_pretrained, which writes safetensors"
        )
    if "adapter_model.safetensors" in found:
        advice = "This is an adapter: give the folder of its base model, and the adapter as a vector"
    holds = ", ".join(found) or "no weights"
    return f"{folder}: holds no {SINGLE} and no {INDEX} (but {holds}). Expected safetensors. {advice}"


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise _damaged(path, f"its header starts with {text[:8]!r}, not with '{{'")
    try:
        return parse_json(text)
    except ValueError as error:
        raise _damaged(path, f"its header is not valid JSON ({error})") from error


def _tensor(path: Path, name: str, entry: Any, data_start: int, problems: list[str]) -> TensorInfo | None:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        problems.append(f"{name!r}: {_short(entry)}; expected dtype, shape and data_offsets")
        return None
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        problems.append(f"{name!r}: dtype is {_short(dtype)}; expected one of {', '.join(DTYPE_BITS)}")
    elif not _is_naturals(shape) or math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        problems.append(f"{name!r}: shape is {_short(shape)}; expected counts whose product fits 63 bits")
    elif not _is_naturals(offsets) or len(offsets) != 2:
        problems.append(f"{name!r}: data_offsets are {_short(offsets)}; expected begin and end")
    elif 8 * (offsets[1] - offsets[0]) != (bits := math.prod(shape) * DTYPE_BITS[dtype]):
        problems.append(f"{name!r}: {dtype} {_short(shape)} in bytes {offsets}; expected {bits} bits")
    else:
        return TensorInfo(name, dtype, tuple(shape), path, data_start + offsets[0], data_start + offsets[1])
    return None


def _gaps(tensors: list[TensorInfo], data_start: int, size: int) -> list[str]:
    """Overlaps, holes and a wrong end: the format has none of them."""
    problems, expected = [], data_start
    for tensor in tensors:
        if tensor.start != expected:
            what = "overlaps the tensor before it" if tensor.start < expected else "leaves a hole before it"
            problems.append(f"{tensor.name!r}: starts at byte {tensor.start}, expected {expected}: it {what}")
        expected = tensor.stop
    if expected != size:
        problems.append(f"the data ends at byte {expected}, the file at {size}; expected both at one place")
    return problems


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} stands there twice")
    for key, value in pairs:
        _check_text(key)
        _check_text(value)
    return result


def _check_text(value: Any) -> None:
    """JSON can spell a lone surrogate, which is no text: UnicodeEncodeError is a ValueError."""
    if isinstance(value, str):
        value.encode()


def _parse_int(digits: str) -> int:
    if digits.startswith("-0"):
        raise ValueError("the number -0")  # JSON's -0 is a float, which no count may be
    return int(digits)


def _no_constant(name: str) -> None:
    raise ValueError(f"the number {name}, which JSON does not have")


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_ELEMENTS for item in value)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: {what}. Expected a whole safetensors file. Fetch or save it again")


def _report(path: Path, problems: list[str]) -> None:
    if len(problems) > SHOWN_PROBLEMS:
        problems = [*problems[:SHOWN_PROBLEMS], f"and {len(problems) - SHOWN_PROBLEMS} more"]
    report_problems(CheckpointError, path, problems)
