"""Checkpoint: a lazy view of a safetensors folder; nothing but headers is read until a tensor is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsteer.errors import CheckpointError
from weightsteer.models.fingerprint import fingerprint_of
from weightsteer.models.safetensors_file import (
    SafetensorsFile,
    TensorInfo,
    check_inside,
    load_json,
    read_folder,
)

CONFIG = "config.json"

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
FLOATS = {name: dtype for name, dtype in TORCH_DTYPES.items() if dtype.is_floating_point}


@dataclass(frozen=True)
class Checkpoint:
    """The tensors and the configuration of one model folder."""

    path: Path
    files: Mapping[str, SafetensorsFile]
    config: Mapping[str, Any]
    """config.json; empty where there is none."""

    @classmethod
    def open(cls, path: Path | str) -> "Checkpoint":
        """The model folder at `path`, its headers checked; a CheckpointError for pickles or damage of any kind."""
        folder = Path(path)
        files = read_folder(folder)
        config = folder / CONFIG
        check_inside(config, folder)
        return cls(folder, files, load_json(config) if config.exists() else {})

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Where every tensor lies, shard by shard, in the order of the data."""
        return {name: info for file in self.files.values() for name, info in file.tensors.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape, file and byte range of one tensor."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: holds no tensor {name}. Expected one of its {len(self.names)} names")
        return self.tensors[name]

    def tensor(self, name: str) -> Tensor:
        """One tensor, read from the disk."""
        info = self.info(name)
        if info.dtype not in TORCH_DTYPES:
            known = ", ".join(TORCH_DTYPES)
            raise CheckpointError(f"{info.file}: {name} has dtype {info.dtype}. Expected one of {known}")
        data = bytearray(info.size_bytes)
        with info.file.open("rb") as file:
            file.seek(info.start)
            if file.readinto(data) != len(data):
                raise CheckpointError(f"{info.file}: was cut short after it was opened. Fetch it again")
        if not data:
            return torch.empty(info.shape, dtype=TORCH_DTYPES[info.dtype])
        return torch.frombuffer(data, dtype=TORCH_DTYPES[info.dtype]).reshape(info.shape)

    def fingerprint(self) -> str:
        """Which weights these are: see `weightsteer.models.fingerprint`."""
        return fingerprint_of(list(self.tensors.values()))

    @cached_property
    def text_config(self) -> Mapping[str, Any]:
        """The part of the configuration that describes the language model; nested in multimodal models."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config
