"""The tensors of an adapter or a vector, from and to safetensors files; pickles are never opened."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsteer.errors import AdapterError, CheckpointError, report_problems
from weightsteer.models.safetensors_file import (
    PICKLES,
    SafetensorsFile,
    check_inside,
    encode_header,
    load_json,
    read_header,
)
from weightsteer.weights.checkpoint import FLOATS, Checkpoint


def read_tensors(folder: Path, stem: str) -> dict[str, Tensor]:
    """All tensors of `stem`.safetensors, or of the shards that `stem`.safetensors.index.json lists.

    An AdapterError when a file is missing, damaged, a pickle, or holds anything but finite numbers.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if not single.exists() and not index.exists():
        pickle = next((p.name for suffix in PICKLES if (p := folder / f"{stem}{suffix}").exists()), None)
        raise AdapterError(
            f"{folder}: has no {single.name}"
            + (f", only {pickle}, a pickle, which could run code and is never loaded" if pickle else "")
            + ". Expected an adapter folder as peft's save_pretrained writes it"
            + (". Where you trust its origin, load it with peft and save it again" if pickle else "")
        )
    with _as_adapter_error():
        if single.exists():
            check_inside(single, folder)
            files = {single.name: read_header(single)}
        else:
            check_inside(index, folder)
            files = _shards(index)
        held = Checkpoint(folder, files, {})
        strange = [f"{n} has dtype {t.dtype}" for n, t in held.tensors.items() if t.dtype not in FLOATS]
        report_problems(AdapterError, f"{folder}: expected {', '.join(FLOATS)}", strange)
        tensors = {name: held.tensor(name) for name in held.names}
    broken = [f"{n}: {problem}" for n, t in tensors.items() if (problem := _unusable(t))]
    report_problems(AdapterError, folder, broken)
    return tensors


def map_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file as views of it: the system reads what is used, and only while it is used."""
    with _as_adapter_error():
        check_inside(path, path.parent)
        header = read_header(path)
    strange = [f"{name} is {info.dtype}" for name, info in header.tensors.items() if info.dtype != "F32"]
    report_problems(AdapterError, f"{path}: expected F32", strange)
    data = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
    return {
        name: data[info.start : info.stop].view(torch.float32).reshape(info.shape)
        for name, info in header.tensors.items()
    }


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an AdapterError when there is none."""
    with _as_adapter_error():
        check_inside(path, path.parent)
        return load_json(path)


def write_float32(
    path: Path, shapes: Mapping[str, tuple[int, ...]], tensor: Callable[[str], Tensor | None]
) -> list[str]:
    """Write `tensor(name)` for each name, one in memory at a time; return the names written.

    A tensor that turns out to be None is left out: room for the whole header is kept and padded with spaces,
    as the format allows. The file honours the umask and is on the disk when this returns.
    """
    room = len(encode_header([(name, "F32", shape) for name, shape in shapes.items()], {"format": "pt"}))
    written = []
    with path.open("wb") as file:
        file.seek(room)
        for name, shape in shapes.items():
            values = tensor(name)
            if values is not None:
                file.write(values.detach().to("cpu", torch.float32).reshape(shape).contiguous().numpy().data)
                written.append((name, "F32", shape))
        file.seek(0)
        header = encode_header(written, {"format": "pt"})[8:].ljust(room - 8)
        file.write(len(header).to_bytes(8, "little") + header)
        file.flush()
        os.fsync(file.fileno())
    return [name for name, _, _ in written]


def _shards(index: Path) -> dict[str, SafetensorsFile]:
    listed = load_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise AdapterError(f"{index}: has no weight_map. Expected tensor names with the shard that holds each")
    bad = sorted({repr(s) for s in listed.values() if not isinstance(s, str) or "/" in s or "\\" in s})
    report_problems(AdapterError, index, [f"shard {s} is not the name of a file in this folder" for s in bad])
    files = {}
    for shard in sorted(set(listed.values())):
        check_inside(index.parent / shard, index.parent)
        files[shard] = read_header(index.parent / shard)
    held = {(name, shard) for shard, file in files.items() for name in file.tensors}
    problems = [f"{shard} lacks {name}" for name, shard in sorted(set(listed.items()) - held)]
    problems += [f"{shard} holds {name}, not listed there" for name, shard in sorted(held - set(listed.items()))]
    report_problems(AdapterError, index, problems)
    return files


def _unusable(tensor: Tensor) -> str | None:
    if tensor.numel() == 0:
        return f"is empty {list(tensor.shape)}; it was saved before its shards were gathered"
    if not torch.isfinite(tensor).all():
        count = int((~torch.isfinite(tensor)).sum())
        return f"{count} of {tensor.numel()} numbers are not finite; training diverged or the file is damaged"
    return None


@contextlib.contextmanager
def _as_adapter_error() -> Iterator[None]:
    """An adapter's files are read like a checkpoint's, but what is wrong is wrong with the adapter."""
    try:
        yield
    except CheckpointError as error:
        raise AdapterError(str(error)) from None
