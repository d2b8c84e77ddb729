"""Provenance: what a merged checkpoint says about itself, in weightsteer.json, written last."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from weightsteer.errors import CheckpointError
from weightsteer.models.safetensors_file import load_json
from weightsteer.stage import to_json, write_text

PROVENANCE = "weightsteer.json"
STEERING = "steering"
FORMAT = 1


@dataclass(frozen=True)
class Provenance:
    """Everything that determines the merged weights, and what came out."""

    job: Mapping[str, Any]
    """Digests of all inputs: two merges with equal jobs write equal shards."""
    base: Mapping[str, Any]
    """source, revision and fingerprint."""
    vectors: Sequence[Mapping[str, Any]]
    """In the order of the sum: folder inside the checkpoint, role, k, digest, base, info."""
    scale: Mapping[str, Any] | None
    dtype: str | None
    """None: that of the base, tensor by tensor."""
    any_base: bool
    untied: bool
    applied: Mapping[str, Any]
    shards: Mapping[str, str]
    """sha256 of each."""
    files: Mapping[str, str]
    """sha256 of every other file that came from the base."""
    left_out: Sequence[str]
    versions: Mapping[str, str]
    format: int = FORMAT
    kind: str = "checkpoint"

    def write(self, folder: Path) -> None:
        """Write weightsteer.json; it is on the disk when this returns."""
        # What a vector's info says may be nan, which JSON cannot: it becomes text.
        content = json.loads(json.dumps(to_json(self)), parse_constant=str)
        write_text(folder / PROVENANCE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Provenance":
        """What the checkpoint in `folder` says about itself; a CheckpointError when it says nothing readable."""
        path = folder / PROVENANCE
        content = load_json(path)
        expected = {f.name: f.type for f in fields(cls)}
        if content.get("kind") != "checkpoint" or content.get("format") != FORMAT:
            found = f"kind {content.get('kind')!r} of format {content.get('format')!r}"
            raise CheckpointError(
                f"{path}: {found}. Expected kind 'checkpoint' of format {FORMAT}. Use the version that wrote it"
            )
        different = sorted(set(expected) ^ set(content))
        if different or not _is_sound(content):
            what = f"lacks or adds {', '.join(different)}" if different else "holds values of the wrong kind"
            raise CheckpointError(f"{path}: {what}. Expected what weightsteer wrote. Make the checkpoint again")
        return cls(**content)


def _is_sound(content: Mapping[str, Any]) -> bool:
    """Whether what verification relies on is of the kind that it needs."""
    scale, numbers = content["scale"], (int, float)
    return (
        all(isinstance(content[key], dict) for key in ("job", "base", "shards", "files", "applied"))
        and isinstance(content["base"].get("fingerprint"), str)
        and isinstance(content["base"].get("source"), str)
        and isinstance(content["base"].get("revision"), str | None)
        and isinstance(content["dtype"], str | None)
        and all(isinstance(v, str) for key in ("shards", "files") for v in content[key].values())
        and isinstance(content["vectors"], list)
        and all(_is_vector(vector) for vector in content["vectors"])
        and (scale is None or (isinstance(scale, dict) and set(scale) == {"alpha", "beta", "divisor", "modules"}))
        and (scale is None or all(isinstance(v, numbers) for v in (scale["alpha"], scale["beta"])))
        and (scale is None or isinstance(scale["modules"], dict))
        and (scale is None or all(isinstance(v, numbers) for v in scale["modules"].values()))
    )


def _is_vector(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in ("vector", "adapter")
        and isinstance(value.get("k"), int | float)
        and isinstance(value.get("digest"), str)
    )
