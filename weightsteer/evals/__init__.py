"""One file per evaluation: `Settings`, what it measures, its items and their scores.

An eval file has VERSION (raised when scores would change), KIND ("behavior" or "capability"), METRICS (name -> how to
read it, the first one being what the eval is known by), `Settings`, `read_items(settings, given)` and
`score(lm, items, settings, given) -> list[ItemScore]`; `JUDGED = True` says that it needs `given.judge`, `PAIRS = True`
that its items are among `given.pairs`.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from weightsteer.errors import DataError, report_problems

SHOWN_PROBLEMS = 5
Item = TypeVar("Item")


@dataclass(frozen=True)
class Given:
    """What a run gives its evals."""

    pairs: Any = None
    """The contrast pairs of the run."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Behavior -> its pairs, of the methods that are fitted on another behavior than the run's."""
    behavior: Any = None
    """The behavior that is steered."""
    judge: Any = None
    """Who rates answers that no rule can rate."""


@dataclass(frozen=True)
class ItemScore:
    """What one item gave: a value per metric (None: the item does not count for that metric) and the evidence."""

    id: str
    values: Mapping[str, float | None]
    detail: Mapping[str, Any] = field(default_factory=dict)
    unscored: str | None = None
    """Why the item could not be scored at all; it is then left out of every mean and counted."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """Metric -> how much the item counts, where not 1: a mean over seeds, in some of which it had no value."""


def needs_judge(settings: Any) -> bool:
    """Whether an eval with these settings rates answers by a judge."""
    from weightsteer.recipe import find_plugin

    return getattr(find_plugin("evals", settings.name), "JUDGED", False) or getattr(settings, "judge", None) == "judge"


def with_items(settings: Any) -> Any:
    """The settings with `items` naming a local copy of what their `dataset` names, made when first asked for.

    `ID:SPLIT`, `ID:SUBSET:SPLIT`, or `ID:FILE.jsonl:SPLIT` of a repository whose files are data sets of their own.
    """
    if settings.dataset is None:
        return settings
    from weightsteer.models.reference import cache_folder
    from weightsteer.stage import digest, write_text

    copy = cache_folder() / "items" / f"{digest(settings.dataset)[:32]}.jsonl"
    if not copy.is_file():
        rows = _dataset_rows(settings.dataset, settings.label)
        copy.parent.mkdir(parents=True, exist_ok=True)
        unfinished = copy.with_suffix(f".{os.getpid()}.partial")
        write_text(unfinished, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))
        unfinished.replace(copy)
    return settings.model_copy(update={"items": copy})


def _dataset_rows(name: str, label: str) -> list[Any]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    source, *subset, split = name.split(":")
    files = {"data_files": subset.pop()} if subset and subset[0].endswith((".jsonl", ".json", ".csv")) else {}
    try:
        return list(load_dataset(source, *subset, split=split, **files))
    except (DatasetNotFoundError, OSError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"evals {label}.dataset {name}: `datasets` does not give it ({reason}). Expected ID:SPLIT or "
            "ID:SUBSET:SPLIT of a data set on the hub. Go online, or name a local file: "
            f"--set evals.{label}.items=FILE --set evals.{label}.dataset=null"
        ) from None


def read_rows(own: Path | None, shipped: str, parse: Callable[[str, Mapping[str, Any]], Item]) -> list[Item]:
    """What `parse(where, row)` makes of every row of the user's JSONL or JSON file, or of the `shipped` one.

    A DataError names all rows that it cannot read.
    """
    path = own or Path(__file__).parent / "items" / shipped
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if path.suffix == ".json" else [json.loads(r) for r in text.split("\n") if r.strip()]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as JSON or JSON lines ({error}). Expected one object an item"
        ) from None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: holds no items. Expected one object an item")
    items, problems = [], []
    for number, row in enumerate(rows, start=1):
        try:
            if not isinstance(row, dict):
                raise DataError(f"is {type(row).__name__}, not an object")
            items.append(parse(f"{path.name}-{number}", row))
        except DataError as error:
            problems.append(f"row {number}: {error}")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            problems.append(f"row {number}: not of a known layout ({type(error).__name__}: {error})")
    more = [f"... and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
    report_problems(DataError, path, [*problems[:SHOWN_PROBLEMS], *more])
    return items


def texts(row: Mapping[str, Any], *keys: str) -> list[str]:
    """The values of `keys`; a DataError when one is no text or is empty."""
    for key in keys:
        if not isinstance(row[key], str) or not row[key].strip():
            raise DataError(f"{key}: found {row[key]!r}. Expected a text")
    return [row[key] for key in keys]


def unreadable(row: Mapping[str, Any], expected: str) -> DataError:
    """The error for a row of no known layout."""
    return DataError(f"has the keys {sorted(row)}. Expected {expected}")


def two_way(scores: Sequence[tuple[float, int]]) -> float:
    """Log-odds in nats of the first of two options (methods of the field: logit difference)."""
    return scores[0][0] - scores[1][0]
