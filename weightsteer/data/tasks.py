"""Rows of a task to fine-tune on: prompt and answer, from a file, a data set or a generator."""

import random
from collections.abc import Iterator, Mapping
from typing import Any

from weightsteer.data.contrast import SHOWN, read_rows
from weightsteer.errors import DataError, report_problems
from weightsteer.recipe import TaskPart

# Layouts: the key of the prompt, and those of the answer, of which the first that a row has counts.
LAYOUTS = (
    ("prompt", ("answer", "completion", "response", "target")),
    ("question", ("solution", "answer")),
    ("instruction", ("output", "response")),
)


def load_examples(part: TaskPart, seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(prompt, answer) rows for training and for validation, shuffled with `seed`; a DataError names every bad row."""
    if part.gcd is not None:
        from weightsteer.data.gcd import gcd_training

        rows = list(gcd_training(part.gcd, seed))
    else:
        rows = list(_read(part))
    random.Random(seed).shuffle(rows)
    rows = rows[: part.limit]
    held = round(part.validation * len(rows))
    if len(rows) - held < 2:
        raise DataError(
            f"task: {len(rows)} rows are too few to train on with {held} for validation. Expected at least 2. Use more "
            "rows, or change task.validation"
        )
    return rows[held:], rows[:held]


def _read(part: TaskPart) -> Iterator[tuple[str, str]]:
    assert part.source is not None
    rows, problems = [], []
    for number, row in enumerate(read_rows(part.source, part.subset, part.split), start=1):
        try:
            rows.append(_example(row))
        except DataError as error:
            problems.append(f"row {number}: {error}")
    more = [f"... and {len(problems) - SHOWN} more of the kind"] if len(problems) > SHOWN else []
    report_problems(DataError, part.source, [*problems[:SHOWN], *more])
    yield from rows


def _example(row: Any) -> tuple[str, str]:
    if not isinstance(row, Mapping):
        raise DataError(f"is {type(row).__name__}, not an object with a prompt and an answer")
    for prompt_key, answer_keys in LAYOUTS:
        answer_key = next((key for key in answer_keys if row.get(key)), None)
        if prompt_key in row and answer_key:
            prompt, answer = row[prompt_key], row[answer_key]
            if isinstance(prompt, str) and isinstance(answer, str) and prompt.strip() and answer.strip():
                return "\n".join(text for text in (prompt, row.get("input") or "") if text), answer
    raise DataError(
        f"has {sorted(map(str, row))}. Expected texts under prompt and answer (or question and answer, instruction and "
        "output)"
    )
