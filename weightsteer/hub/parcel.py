"""What is published of a folder: which files, and without any trace of the machine in those that weightsteer wrote."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import yaml

from weightsteer.errors import HubError, report_problems
from weightsteer.models.safetensors_file import WEIGHT_SUFFIXES, check_inside, load_json
from weightsteer.stage import MANIFEST, file_digest

Kind = Literal["checkpoint", "vector", "adapter"]

CARD, RECIPE, FIGURES = "README.md", "recipe.yaml", "figures"
# The file that makes a folder of a kind, the most telling first.
MARKS: dict[str, Kind] = {
    "weightsteer.json": "checkpoint",
    "vector.json": "vector",
    "export.json": "adapter",
    "adapter_config.json": "adapter",
}
# Written by weightsteer or PEFT, and read as data: paths in them become file names.
SCRUBBED = (*MARKS, "diagnostics.json", "training.json")
# Keys whose value is a path whenever it starts like one; elsewhere "/no_think" is a text.
PATH_KEYS = {
    "adapter", "base_model_name_or_path", "base_source", "behavior", "chat_template", "checkpoint", "file", "folder",
    "items", "path", "source",
}  # fmt: skip

_ABSOLUTE = re.compile(r"(?:~|\.{1,2}[/\\]|[/\\]|[A-Za-z]:[/\\]|file:)")
_IN_TEXT = re.compile(r"(?<![\w/:.<\\])(?:~|[A-Za-z]:)?(?:[/\\][\w.@+~-]+){2,}")
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
_TEXT_BYTES = 16 << 20  # no text that travels with a model is larger, except for vocabularies


@dataclass(frozen=True)
class Parcel:
    """The files to publish, by their path in the repository: a file as it is, or other content in its place."""

    kind: Kind
    files: Mapping[str, Path | bytes]
    left_out: tuple[str, ...]

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            path: len(content) if isinstance(content, bytes) else content.stat().st_size
            for path, content in self.files.items()
        }


def kind_of(folder: Path) -> Kind:
    """What `folder` holds; a HubError when it is nothing that a card can vouch for."""
    for mark, kind in MARKS.items():
        if (folder / mark).is_file():
            return kind
    found = "no such folder" if not folder.is_dir() else f"holds none of {', '.join(MARKS)}"
    inside = [name for name in ("merged", "weights/vector") if (folder / name).is_dir()]
    hint = f" Push {' or '.join(str(folder / name) for name in inside)} of this run" if inside else ""
    raise HubError(
        f"{folder}: {found}. Expected a checkpoint that weightsteer merged, a vector or an adapter."
        + (hint or " Merge or combine first, then push what was written")
    )


def pack(folder: Path) -> Parcel:
    """Every file of `folder` to publish; paths inside those that weightsteer wrote are reduced to file names.

    Left out: hidden files, weights that are not safetensors, the folder's own README.md (the card takes its place);
    of a vector or an adapter also its stage's manifest and everything below subfolders. A CheckpointError when a
    link leads out of the folder.
    """
    kind = kind_of(folder)
    files: dict[str, Path | bytes] = {}
    left_out = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name == CARD:
            continue
        hidden = any(part.startswith(".") for part in name.split("/"))
        pickle = path.suffix in WEIGHT_SUFFIXES - {".safetensors"}
        if hidden or pickle or (kind != "checkpoint" and ("/" in name or name == MANIFEST)):
            left_out.append(name)
            continue
        check_inside(path, folder)
        files[name] = _published(path)
    return Parcel(kind, files, tuple(left_out))


def _published(path: Path) -> Path | bytes:
    """The file, or what takes its place without paths."""
    if path.name in SCRUBBED:
        content = load_json(path)
        clean = scrub(content)
        return path if clean == content else json.dumps(clean, indent=1, ensure_ascii=False).encode() + b"\n"
    if path.name == RECIPE:
        return recipe_text(yaml.safe_load(path.read_text(encoding="utf-8"))).encode()
    return path


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """A resolved recipe as YAML, its paths reduced to file names."""
    return yaml.safe_dump(scrub(recipe), sort_keys=False, allow_unicode=True, width=100)


def scrub(value: Any, key: str = "") -> Any:
    """`value` with every path of a machine in it, however deep, reduced to its last part.

    Absolute paths, those of a home folder and those that climb; also inside of longer texts. A text with a single
    slash in front ("/no_think") is one only under a key that holds paths.
    """
    if isinstance(value, Mapping):
        return {name: scrub(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(item, key) for item in value]
    return _scrub_text(value, key) if isinstance(value, str) else value


def _scrub_text(text: str, key: str) -> str:
    if key in PATH_KEYS and _ABSOLUTE.match(text):
        return _last_part(text)
    return _IN_TEXT.sub(lambda found: _last_part(found[0]), text)


def _last_part(path: str) -> str:
    path = path.removeprefix("file:")
    return (PureWindowsPath(path) if "\\" in path else PurePosixPath(path)).name


def check_private(parcel: Parcel, token: str | None, folder: Path) -> None:
    """A HubError when a file to publish holds an access token or a path of this machine; names files, no token.

    What came from the base byte for byte is its makers' word and may mention any path; config.json is looked at all
    the same, where libraries note where a model came from.
    """
    problems = []
    paths = {f"{path}/".encode() for path in (Path.home(), Path.cwd(), folder.resolve().parent) if path.parts[1:]}
    for name, content in _texts(parcel):
        if _TOKEN.search(content) or (token and token.encode() in content):
            problems.append(f"{name}: holds an access token; take it out, and revoke it if anyone has seen it")
        if name.split("/")[-1] in (*SCRUBBED, CARD, RECIPE, "config.json"):
            problems += [
                f"{name}: holds a path of this machine, {path.decode()}; expected none. Take it out of the file"
                for path in sorted(paths)
                if path in content
            ]
    report_problems(HubError, folder, problems)


def _texts(parcel: Parcel) -> Iterator[tuple[str, bytes]]:
    for name, content in parcel.files.items():
        if isinstance(content, bytes):
            yield name, content
        elif content.suffix != ".safetensors" and content.stat().st_size < _TEXT_BYTES:
            yield name, content.read_bytes()


class Digests:
    """What of a parcel a hub lacks; each local file is digested once, and only if one of its size is there."""

    def __init__(self, parcel: Parcel) -> None:
        self.parcel, self.sizes = parcel, parcel.sizes()
        self.known: dict[tuple[str, bool], str] = {}

    def missing(self, present: Mapping[str, Any]) -> list[str]:
        """Files of the parcel that are not, or not as they are here, among the entries of the hub's listing."""
        return [name for name in self.parcel.files if not self._equal(name, present.get(name))]

    def _equal(self, name: str, there: Any) -> bool:
        if there is None or there.size != self.sizes[name]:
            return False
        large = there.lfs is not None
        if (name, large) not in self.known:
            content = self.parcel.files[name]
            self.known[name, large] = _sha256(content) if large else _git_oid(content)
        return self.known[name, large] == (there.lfs.sha256 if large else there.blob_id)


def _sha256(content: Path | bytes) -> str:
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else file_digest(content)


def _git_oid(content: Path | bytes) -> str:
    data = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
