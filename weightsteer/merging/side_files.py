"""What travels with the weights of a checkpoint: configuration, tokenizer, licence and every other small file."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightsteer.errors import CheckpointError
from weightsteer.merging.provenance import PROVENANCE, STEERING
from weightsteer.models.safetensors_file import INDEX, WEIGHT_SUFFIXES, check_inside
from weightsteer.stage import MANIFEST
from weightsteer.weights.checkpoint import CONFIG, Checkpoint

ADAPTER_CONFIG = "adapter_config.json"
CARD, BASE_CARD = "README.md", "BASE_README.md"
# What weightsteer itself wrote into a base: a checkpoint merged before, or a model converted from GGUF.
OWN = (PROVENANCE, STEERING, BASE_CARD, MANIFEST, "recipe.yaml", "figures")


def side_files(base: Checkpoint) -> tuple[dict[str, Path], list[str]]:
    """What is copied byte for byte, by its name in the merged checkpoint, and the names of what is left out.

    Left out: weights of every format that are not shards of the model (and indices of such), hidden files, and what
    weightsteer wrote into a base that is itself a merge. The model card becomes BASE_README.md. config.json and the
    index are not in either list: a merge may have to change them.
    """
    copied, left_out = {}, []
    for path in sorted(_walk(base.path)):
        name = path.relative_to(base.path).as_posix()
        if name in base.files or name in (CONFIG, INDEX):
            continue
        first = name.split("/", 1)[0]
        hidden = any(part.startswith(".") for part in name.split("/"))
        weights = path.suffix in WEIGHT_SUFFIXES or name.endswith(".index.json")
        if hidden or weights or first in OWN or not path.is_file():
            left_out.append(name)
            continue
        check_inside(path, base.path)
        copied[BASE_CARD if name == CARD else name] = path
    return copied, left_out


def merged_config(base: Checkpoint, untie: bool, dtype: str | None) -> bytes:
    """config.json of the merge: the base's bytes, unless the head was untied or the dtype changed."""
    path = base.path / CONFIG
    if not path.exists():
        raise CheckpointError(f"{path}: missing. Expected the configuration of the model. Fetch it again")
    if not untie and dtype is None:
        return path.read_bytes()
    return (json.dumps(expected_config(base.config, untie, dtype), indent=2, ensure_ascii=False) + "\n").encode()


def expected_config(config: Mapping[str, Any], untie: bool, dtype: str | None) -> dict[str, Any]:
    """`config` with the head untied, or another dtype, on every level that speaks of the language model."""
    edited = dict(config)
    nested = edited.get("text_config")
    if isinstance(nested, dict):
        edited["text_config"] = expected_config(
            nested, untie, dtype if {"dtype", "torch_dtype"} & set(nested) else None
        )
    if untie:
        edited["tie_word_embeddings"] = False
    if dtype is not None:
        # "torch_dtype" is what transformers before 5 reads and what it wrote.
        for key in {"dtype", "torch_dtype"} & set(edited) or {"dtype"}:
            edited[key] = dtype
    return edited


def _walk(folder: Path) -> list[Path]:
    """Every file below `folder`, links to folders not followed but listed."""
    found = []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        found += [Path(root) / name for name in [*files, *links]]
    return found
