"""Which weights these are, told from a bounded sample of every tensor."""

import hashlib
import json
from pathlib import Path

from weightsteer.models.safetensors_file import TensorInfo, read_folder

SAMPLE_BYTES = 4096


def fingerprint(path: Path | str) -> str:
    """sha256 over names, dtypes, shapes and a sample of every tensor of a safetensors folder.

    Equal weights have equal fingerprints however they are spread over shards. At most 4 KiB are read from the
    middle of each tensor, so a base and its fine-tune differ, while a change confined to a few rows of a large
    tensor goes unseen.
    """
    tensors = [t for file in read_folder(Path(path)).values() for t in file.tensors.values()]
    return fingerprint_of(tensors)


def fingerprint_of(tensors: list[TensorInfo]) -> str:
    """The fingerprint of the model that consists of `tensors`."""
    digest = hashlib.sha256()
    for tensor in sorted(tensors, key=lambda t: t.name):
        digest.update(json.dumps([tensor.name, tensor.dtype, tensor.shape]).encode())
        count = min(tensor.size_bytes, SAMPLE_BYTES)
        with tensor.file.open("rb", buffering=0) as file:
            file.seek(tensor.start + (tensor.size_bytes - count) // 2)
            digest.update(file.read(count))
    return digest.hexdigest()
