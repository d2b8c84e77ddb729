"""A folder of named vectors with their cards."""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from weightsteer.errors import AdapterError, report_problems

WEIGHTS = ("vector.json", "adapter_config.json")
ACTIVATIONS = "activation_vector.safetensors"
CARD = "README.md"


@dataclass(frozen=True)
class Entry:
    """One vector of a library, as its own files describe it; its weights are not read."""

    name: str
    path: Path
    kind: Literal["weights", "activations"]
    base: str | None
    """Fingerprint of the base, where it is recorded."""
    info: Mapping[str, Any]
    card: Path | None

    @property
    def behavior(self) -> str | None:
        return self.info.get("behavior")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for `show`."""
        facts = {"kind": self.kind, "behavior": self.behavior, "base": self.base, "path": str(self.path)}
        return {**facts, "card": None if self.card is None else str(self.card), "notes": self.info.get("notes") or []}


class Library(Mapping[str, Entry]):
    """Every vector in a folder, by the name of its own folder."""

    def __init__(self, folder: Path | str):
        """An AdapterError names the vectors whose description is damaged."""
        self.folder = Path(folder)
        self.entries: dict[str, Entry] = {}
        if not self.folder.is_dir():
            raise AdapterError(f"{folder}: no such folder. Expected one that holds a folder for each vector")
        problems = []
        for path in sorted(path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            try:
                entry = _entry(path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                problems.append(f"{path.name}: its description cannot be read ({error}). Make the vector again")
            else:
                if entry is not None:
                    self.entries[path.name] = entry
        report_problems(AdapterError, folder, problems)
        if not self.entries:
            raise AdapterError(f"{folder}: holds no vector. Expected a folder for each, as WeightVector.save writes it")

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def find(self, name: str) -> Entry:
        """The vector of that name; an AdapterError with those that there are."""
        if name not in self.entries:
            near = difflib.get_close_matches(name, self.entries, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise AdapterError(
                f"{self.folder}: has no vector '{name}'{hint}. Expected one of {', '.join(self.entries)}"
            )
        return self.entries[name]


def is_library(folder: Path | str) -> bool:
    """Whether a folder holds vectors and is none itself."""
    folder = Path(folder)
    if not folder.is_dir() or _marks(folder):
        return False
    return any(_marks(path) for path in folder.iterdir() if path.is_dir())


def _marks(path: Path) -> bool:
    return any((path / name).is_file() for name in (*WEIGHTS, ACTIVATIONS))


def _entry(path: Path) -> Entry | None:
    card = path / CARD if (path / CARD).is_file() else None
    if (path / ACTIVATIONS).is_file():
        said = _safetensors_metadata(path / ACTIVATIONS)
        return Entry(path.name, path, "activations", said["base"] or None, json.loads(said["info"]), card)
    for name in WEIGHTS:
        if (path / name).is_file():
            content = json.loads((path / name).read_text(encoding="utf-8"))
            info = content["info"] if name == "vector.json" else {"notes": ["a plain adapter: one task's change"]}
            return Entry(path.name, path, "weights", content.get("base"), dict(info), card)
    return None


def _safetensors_metadata(path: Path) -> Mapping[str, str]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(min(length, 1 << 20)))["__metadata__"]
