"""The readings of one run in a file of JSON lines: a header, then a line for each measurement and each loss."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsteer.errors import DataError
from weightsteer.stage import write_text

READINGS = "readings.jsonl"
FORMAT = 1


@dataclass(frozen=True)
class Point:
    """One measurement in the course of a run."""

    step: int
    share: float
    """Of all steps of the run."""
    norm: float | None
    """‖θ_t − θ_0‖."""
    vectors: Mapping[str, Mapping[str, Any]]
    """Label -> cosine, projection, and pairs of both for `without_embeddings`, `blocks` and `kinds`."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Label -> the cosine above which the run is unlike the controls."""
    crossed: Sequence[str] = ()
    """Vectors whose limit was crossed here."""
    source: str = ""
    """The checkpoint or adapter that was measured; empty in training."""
    seconds: float | None = None
    """What the measurement took."""

    def cosine(self, label: str) -> float | None:
        return self.vectors[label]["cosine"]


@dataclass
class Record:
    """What is known of a run so far."""

    digests: Mapping[str, str]
    """Label -> digest of the vector."""
    base: str | None = None
    max_steps: int | None = None
    points: list[Point] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    error: str | None = None
    """Why the monitor fell silent, when it did."""

    @property
    def labels(self) -> list[str]:
        return list(self.digests)

    def curve(self, label: str, what: str = "cosine") -> list[tuple[Point, float]]:
        """The points at which there is a number, with it."""
        return [(p, p.vectors[label][what]) for p in self.points if p.vectors[label][what] is not None]

    def crossings(self) -> dict[str, Point]:
        """Label -> where its limit was first crossed."""
        first: dict[str, Point] = {}
        for point in self.points:
            for label in point.crossed:
                first.setdefault(label, point)
        return first

    def lines(self) -> list[dict[str, Any]]:
        """The record as the lines of its file."""
        header = {"format": FORMAT, "vectors": dict(self.digests), "base": self.base, "max_steps": self.max_steps}
        rows = [(p.step, point_line(p)) for p in self.points]
        rows += [(step, {"step": step, "loss": loss}) for step, loss in self.losses]
        rows.sort(key=lambda row: row[0])
        return [header, *(line for _, line in rows), *([{"error": self.error}] if self.error else [])]


def point_line(point: Point) -> dict[str, Any]:
    """A measurement as a line of the file."""
    line = {"step": point.step, "share": point.share, "norm": point.norm, "vectors": point.vectors}
    optional = {"limits": dict(point.limits), "crossed": list(point.crossed), "source": point.source}
    return {**line, **{k: v for k, v in optional.items() if v}, "seconds": point.seconds}


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line; a number that JSON does not have is an error, not a line that nobody can read."""
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def write_record(record: Record, path: Path) -> None:
    """Write the whole file."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in record.lines()))


def read_record(path: Path | str, cut: bool = False) -> Record:
    """The readings in a file, or in the folder of a monitored run; a DataError when they are damaged.

    `cut` passes over a last line that was not written to its end, as a run that was killed leaves it.
    """
    path = Path(path)
    path = path / READINGS if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Expected the {READINGS} of a monitored run") from None
    if cut:
        text = text[: text.rfind("\n") + 1]
    record: Record | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            record = _take(record, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: line {number} is not one that a monitor wrote ({type(error).__name__}: {error}). Expected "
                f"JSON lines of format {FORMAT}. Cut it off where the run was killed, or monitor the run again"
            ) from None
    if record is None:
        raise DataError(f"{path}: is empty. Expected the {READINGS} of a monitored run. Monitor the run again")
    return record


def _take(record: Record | None, line: dict[str, Any]) -> Record:
    if record is None:
        if line["format"] != FORMAT:
            raise ValueError(f"format {line['format']!r}")
        return Record(dict(line["vectors"]), line["base"], line["max_steps"])
    if "vectors" in line:
        vectors = {label: dict(line["vectors"][label]) for label in record.digests}
        record.points.append(Point(**{**line, "vectors": vectors}))
    elif "loss" in line:
        record.losses.append((line["step"], line["loss"]))
    else:
        record.error = line["error"]
    return record
