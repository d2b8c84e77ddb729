"""One file per evaluation: `Settings`, what it measures, its items and their scores.

An eval file has VERSION (raised when scores would change), KIND ("behavior" or "capability"), METRICS (name -> how to
read it, the first one being what the eval is known by), `Settings`, `read_items(settings, pairs)` and
`score(lm, items) -> list[ItemScore]`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsteer.errors import DataError, report_problems


@dataclass(frozen=True)
class ItemScore:
    """What one item gave: a value per metric (None: the item does not count for that metric) and the evidence."""

    id: str
    values: Mapping[str, float | None]
    detail: Mapping[str, Any] = field(default_factory=dict)
    unscored: str | None = None
    """Why the item could not be scored at all; it is then left out of every mean and counted."""


def read_rows(own: Path | None, shipped: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, row) of every row of the user's JSONL or JSON file, or of the `shipped` one."""
    path = own or Path(__file__).parent / "items" / shipped
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else [json.loads(r) for r in text.split("\n") if r.strip()]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as JSON or JSON lines ({error}). Expected one object an item"
        ) from None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: holds no items. Expected one object an item")
    report_problems(
        DataError,
        path,
        [
            f"row {i}: is {type(row).__name__}, not an object"
            for i, row in enumerate(rows, 1)
            if not isinstance(row, dict)
        ][:5],
    )
    for number, row in enumerate(rows, start=1):
        yield f"{path.name}-{number}", row


def unreadable(where: str, row: Mapping[str, Any], expected: str) -> DataError:
    """The error for a row of no known layout."""
    return DataError(f"{where}: has the keys {sorted(row)}. Expected {expected}")


def two_way(scores: Sequence[tuple[float, int]]) -> float:
    """Log-odds in nats of the first of two options (methods of the field: logit difference)."""
    return scores[0][0] - scores[1][0]
