"""The page of a monitored run: monitor.html (one self-contained file), monitor.json, readings.jsonl and figures."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from weightsteer.errors import StageError
from weightsteer.monitor.activations import ABOUT, Projections
from weightsteer.monitor.figures import matrix_picture, run_pictures
from weightsteer.monitor.matrix import CosineMatrix
from weightsteer.monitor.record import READINGS, Point, Record, write_record
from weightsteer.monitor.thresholds import Thresholds
from weightsteer.report import numbers
from weightsteer.stage import to_json, write_text

PAGE, DATA = "monitor.html", "monitor.json"
FORMAT = 1
# Rows of the table of readings; the rest is in readings.jsonl.
_SHOWN_POINTS = 24
_PERCENT = 95


@dataclass(frozen=True)
class Monitored:
    """A run, what was found in it, and what that was held against."""

    run: str
    record: Record
    vectors: Mapping[str, Mapping[str, Any]]
    """Label -> path, norm, behavior, base."""
    thresholds: Thresholds | None = None
    matrix: CosineMatrix | None = None
    projections: Mapping[str, Sequence[Projections]] = field(default_factory=dict)
    """Label of an activation vector -> what was projected on it."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: everything that the page shows."""
        limits = None
        if self.thresholds is not None:
            limits = {"sigma": self.thresholds.sigma, "controls": len(self.thresholds.controls)}
        return {
            "format": FORMAT,
            "run": self.run,
            "headline": headline(self),
            "vectors": to_json(self.vectors),
            "thresholds": limits,
            "crossings": {label: point.step for label, point in self.record.crossings().items()},
            "readings": self.record.lines(),
            "matrix": None if self.matrix is None else self.matrix.to_json(),
            "projections": {label: [p.to_json() for p in found] for label, found in self.projections.items()},
        }


class Row(NamedTuple):
    """A vector's line in the table at the top of the page."""

    label: str
    cosine: str
    projection: str
    without_embeddings: str
    kinds: Sequence[str]
    limit: str
    crossed: str


def write_page(monitored: Monitored, out: Path) -> None:
    """Write monitor.html, monitor.json, readings.jsonl and figures/*.png into `out`."""
    figures = run_pictures(monitored.record) if monitored.record.labels else {}
    if monitored.matrix is not None:
        figures["matrix"] = matrix_picture(monitored.matrix)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for name, picture in figures.items():
            (out / "figures" / f"{name}.png").write_bytes(picture.light)
        write_record(monitored.record, out / READINGS)
        write_text(out / DATA, json.dumps(monitored.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        write_text(out / PAGE, _render(monitored, figures))
    except OSError as error:
        raise StageError(f"{out}: cannot be written ({error.strerror}). Choose another --out") from error


def headline(monitored: Monitored) -> str:
    """One sentence: which vectors the run came near, and when."""
    record = monitored.record
    if not record.points:
        return "No weight vector was monitored."
    crossings = record.crossings()
    if crossings:
        told = [f"{label} from step {point.step} on" for label, point in crossings.items()]
        return f"The run moves along {numbers.listed(told)} more than the control runs do."
    ends = {label: curve[-1][1] for label in record.labels if (curve := record.curve(label))}
    if not ends:
        return "The weights have not moved, or are not finite."
    label = max(ends, key=lambda name: abs(ends[name]))
    most = f"the largest cosine at the end is {_signed(ends[label])}, with {label}"
    if monitored.thresholds is not None:
        return f"The run stays within what the control runs do: {most}."
    return numbers.sentence(f"{most}; no control runs were given to hold it against")


def summary_rows(monitored: Monitored) -> tuple[list[str], list[Row]]:
    """Kinds of modules that are columns, and a row for each vector with its last reading."""
    record = monitored.record
    if not record.points:
        return [], []
    last = record.points[-1]
    kinds = [
        k for k in next(iter(last.vectors.values()))["kinds"] if any(k in r["kinds"] for r in last.vectors.values())
    ]
    crossings = record.crossings()
    rows = []
    for label, reading in last.vectors.items():
        crossed = f"step {crossings[label].step}" if label in crossings else "no" if label in last.limits else "–"
        rows.append(
            Row(
                label,
                _signed(reading["cosine"]),
                _signed(reading["projection"]),
                _signed(reading["without_embeddings"][0]),
                [_signed(reading["kinds"].get(kind, (None, None))[0]) for kind in kinds],
                _signed(last.limits.get(label)),
                crossed,
            )
        )
    return kinds, rows


def point_rows(record: Record) -> list[tuple[str, str, list[str]]]:
    """Step, norm of the change and cosine with each vector, at readings spread over the run."""
    return [
        (str(p.step), numbers.number(p.norm), [_signed(p.cosine(label)) for label in record.labels])
        for p in _spread(record.points)
    ]


def projection_rows(monitored: Monitored) -> list[tuple[str, str, str, str, str, str, str]]:
    """Vector, what was projected, block, rows, mean with interval, 95th percentile, and the largest row's number."""
    rows = []
    for label, found in monitored.projections.items():
        for projections in found:
            for block, values in projections.blocks.items():
                largest = max(range(len(values)), key=lambda i: values[i])
                rows.append((
                    label, projections.kind, str(block), str(len(values)), numbers.change(projections.estimate(block)),
                    _signed(projections.percentile(block, _PERCENT)), f"{_signed(values[largest])} (row {largest + 1})",
                ))  # fmt: skip
    return rows


def _render(monitored: Monitored, figures: Mapping[str, Any]) -> str:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loaders = [PackageLoader("weightsteer.monitor"), PackageLoader("weightsteer.report")]  # report.css is the report's
    environment = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters["data_uri"] = lambda image: "data:image/png;base64," + base64.b64encode(image).decode("ascii")
    return environment.get_template(f"{PAGE}.j2").render(
        monitored=monitored,
        record=monitored.record,
        headline=headline(monitored),
        tone="open" if monitored.record.crossings() else "good" if monitored.thresholds else "open",
        status=_status(monitored),
        summary=summary_rows(monitored),
        points=point_rows(monitored.record),
        projected=projection_rows(monitored),
        about=ABOUT,
        matrix_names=[] if monitored.matrix is None else [monitored.matrix.names[i] for i in monitored.matrix.order],
        signed=_signed,
        number=numbers.number,
        figures=figures,
    )


def _status(monitored: Monitored) -> str:
    if monitored.record.crossings():
        return "A limit was crossed"
    return "Within the controls" if monitored.thresholds else "No controls"


def _signed(value: float | None) -> str:
    if value is None:
        return "–"
    return ("−" if value < 0 else "+" if value > 0 else "") + numbers.number(abs(value))


def _spread(points: Sequence[Point]) -> list[Point]:
    if len(points) <= _SHOWN_POINTS:
        return list(points)
    chosen = {round(i * (len(points) - 1) / (_SHOWN_POINTS - 1)) for i in range(_SHOWN_POINTS)}
    return [points[i] for i in sorted(chosen)]
