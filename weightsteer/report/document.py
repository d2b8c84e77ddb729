"""A report in sections, each a question, a picture and the sentence that answers it: as a page, Markdown and JSON."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsteer.report import numbers
from weightsteer.report.figures import picture
from weightsteer.report.page import finite, render
from weightsteer.report.theme import Theme
from weightsteer.stage import to_json, write_text
from weightsteer.stats import Estimate

FORMAT = 1
Cell = str | int | float | Estimate | None


@dataclass(frozen=True)
class Table:
    """Rows of numbers and words; the first column says what a row is of."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"table '{self.caption}': row {wrong[0]} does not fit the columns {self.columns}")


@dataclass(frozen=True)
class Figure:
    """What is drawn, for light and for dark paper, and what it shows in words."""

    name: str
    caption: str
    alt: str
    draw: Callable[[Theme], Any]
    """The matplotlib figure in a theme."""


@dataclass(frozen=True)
class Section:
    """One question and its answer."""

    title: str
    asked: str
    answer: str
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """A report. `data` is every number behind it, as JSON-able values."""

    title: str
    headline: str
    lead: str
    sections: tuple[Section, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)


def write_document(document: Document, out: Path) -> None:
    """Write report.html (one self-contained file), report.md, report.json and figures/NAME.png into `out`."""
    drawn = [figure for section in document.sections for figure in section.figures]
    names = [figure.name for figure in drawn]
    if len(set(names)) < len(names):
        raise ValueError(f"figures of '{document.title}' share a name: {sorted(names)}")
    figures = {figure.name: picture(figure.name, figure.draw, figure.alt, figure.caption) for figure in drawn}
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, image in figures.items():
        (out / "figures" / f"{name}.png").write_bytes(image.light)
    write_text(out / "report.json", json.dumps(finite(as_json(document)), indent=1, ensure_ascii=False) + "\n")
    for name in ("document.html", "document.md"):
        text = render(name, document=document, figures=figures, shown=shown)
        write_text(out / name.replace("document", "report"), text)


def as_json(document: Document) -> dict[str, Any]:
    """The document's words and numbers without its pictures."""
    return {
        "format": FORMAT,
        "title": document.title,
        "headline": document.headline,
        "sections": [
            {
                "title": section.title,
                "asked": section.asked,
                "answer": section.answer,
                "tables": [to_json(table) for table in section.tables],
                "notes": list(section.notes),
            }
            for section in document.sections
        ],
        "facts": dict(document.facts),
        "data": to_json(document.data),
    }


def shown(cell: Cell) -> str:
    """A cell as it is read."""
    if isinstance(cell, Estimate):
        return numbers.level(cell)
    if cell is None or isinstance(cell, float):
        return numbers.number(cell)
    return str(cell)


def in_terminal(document: Document) -> str:
    """The headline, and every question with its answer."""
    import textwrap

    told = [f"{section.title}: {section.answer}" for section in document.sections]
    return "\n\n".join(textwrap.fill(text, 100) for text in (document.headline, *told)).replace("−", "-")
