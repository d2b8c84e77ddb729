"""The shipped items of the paper's evals: unique, right, and no hint in their form."""

import json
import re
from collections import Counter
from functools import cache
from operator import add, mul, sub, truediv
from pathlib import Path

import pytest

from weightsteer.evals import agreement
from weightsteer.recipe import shipped_recipes

ITEMS = Path(agreement.__file__).parent / "items"
TASK = shipped_recipes() / "tasks" / "mathwords.jsonl"
MAIN = {"choices": "scenario", "refusal": "prompt", "mathwords": "question", "french": "prompt"}
KEYS = {
    "choices": {"id", "topic", "scenario", "honest", "dishonest"},
    "refusal": {"id", "topic", "prompt", "label", "kind"},
    "mathwords": {"id", "topic", "question", "answer", "solution"},
    "french": {"id", "topic", "prompt"},
}
OPERATORS = {"+": add, "-": sub, "*": mul, "/": truediv}


@cache
def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def words(text: str) -> list[str]:
    return "".join(c.lower() if c.isalnum() else " " for c in text).split()


def value(expression: str) -> float:
    """Of `7 * 12 - 19`, from left to right; the items mix no others."""
    first, *rest = expression.split(" ")
    total = float(first)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        total = OPERATORS[sign](total, float(number))
    return total


def test_value_by_hand():
    assert value("7 * 12 - 19") == 65
    assert value("90 / 4") == 22.5


@pytest.mark.parametrize(("name", "count"), [("choices", 120), ("refusal", 120), ("mathwords", 120), ("french", 60)])
def test_items_are_enough_unique_and_of_one_layout(name: str, count: int):
    found = rows(ITEMS / f"{name}.jsonl")
    assert len(found) >= count
    assert all(row.keys() == KEYS[name] for row in found)
    assert all(isinstance(text, str) and text.strip() == text != "" for row in found for text in row.values())
    assert len({row["id"] for row in found}) == len(found)
    assert len({" ".join(words(row[MAIN[name]])) for row in found}) == len(found)


def test_length_does_not_tell_the_honest_action():
    found = rows(ITEMS / "choices.jsonl")
    longer = Counter(
        "honest" if len(row["honest"]) > len(row["dishonest"]) else "dishonest"
        for row in found if len(row["honest"]) != len(row["dishonest"])
    )  # fmt: skip
    assert 0.4 < longer["honest"] / longer.total() < 0.6
    assert all(abs(len(words(row["honest"])) - len(words(row["dishonest"]))) <= 3 for row in found)


def test_no_word_tells_the_honest_action():
    found = rows(ITEMS / "choices.jsonl")
    said = {side: Counter(w for row in found for w in set(words(row[side]))) for side in ("honest", "dishonest")}
    common = [w for w in said["honest"] | said["dishonest"] if said["honest"][w] + said["dishonest"][w] > 12]
    assert len(common) > 10
    assert {w: (said["honest"][w], said["dishonest"][w]) for w in common
            if not 1 / 3 < (said["honest"][w] + 1) / (said["dishonest"][w] + 1) < 3} == {}  # fmt: skip


def test_prompts_to_refuse_and_to_answer():
    found = rows(ITEMS / "refusal.jsonl")
    assert Counter(row["label"] for row in found) == {"safe": 70, "unsafe": 50}
    kinds = {label: {row["kind"] for row in found if row["label"] == label} for label in ("safe", "unsafe")}
    assert not kinds["safe"] & kinds["unsafe"]
    assert sum(row["kind"] == "everyday" for row in found) == 35, "the other safe half only looks unsafe"
    assert min(map(len, kinds.values())) >= 6


@pytest.mark.parametrize("path", [ITEMS / "mathwords.jsonl", TASK], ids=["items", "task"])
def test_every_step_of_every_solution_is_right(path: Path):
    for row in rows(path):
        text, _, last = row["solution"].rpartition("\n#### ")
        steps = re.findall(r"(\d+(?: [-+*/] \d+)+) = (\d+)", text)
        assert steps, row["id"]
        assert [f"{e} = {v}" for e, v in steps if value(e) != float(v)] == [], row["id"]
        assert steps[-1][1] == last == row["answer"], row["id"]
        assert int(row["answer"]) > 0


def test_the_task_asks_other_problems_than_the_items():
    """Other wordings too: the numbers alone do not make a problem new."""
    task, items = ({re.sub(r"\d+", "7", " ".join(words(row["question"]))) for row in rows(p)}
                   for p in (TASK, ITEMS / "mathwords.jsonl"))  # fmt: skip
    assert len(rows(TASK)) == 240
    assert len({row["question"] for row in rows(TASK)}) == 240
    assert not task & items
