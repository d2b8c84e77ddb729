"""Word problems: the right number, the wrong ones made from it, and what counts as solved."""

import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from weightsteer.errors import DataError
from weightsteer.evals import Given
from weightsteer.evals.gsm8k import METRICS, Item, Settings, distractors, read_items, score

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data"
SETTINGS = Settings(name="gsm8k")
ITEM = Item("m", "How many?", Decimal(14))


@pytest.mark.parametrize(
    ("number", "wrong"),
    [
        ("14", "41 15 13"),
        ("100", "101 99 110"),  # 010 is no number
        ("1120", "1210 1121 1119"),
        ("7", "8 6 17"),
        ("0", "1 10 2"),
        ("1", "2 0 11"),
        ("10", "11 9 20"),
        ("2.5", "3.5 1.5 12.5"),
        ("10.25", "10.52 11.25 9.25"),
        ("0.05", "0.50 1.05 10.05"),
        ("-3", "-4 -2 -13"),
        ("-1", "-2 0 -11"),
        ("333", "334 332 343"),
    ],
)
def test_distractors(number: str, wrong: str):
    assert distractors(Decimal(number)) == [Decimal(n) for n in wrong.split()]


def test_metrics_by_hand(answered: Callable[..., Any], scripted: Callable[..., Any]):
    asked = answered("2 * 7 = 14 apples", "#### 15", "no idea", "It is $14.00.")
    log_p = {"The answer is 14.": 0.3, "The answer is 41.": 0.1, "The answer is 15.": 0.06, "The answer is 13.": 0.04}
    options = scripted(lambda prompt, option: math.log(log_p[option]))
    settings = Settings(name="gsm8k", max_new_tokens=6, temperature=0.1, seed=9)
    results = score(None, [ITEM] * 4, settings, Given())
    drawing = {"temperature": 0.1, "seed": 9, "label": "gsm8k"}
    assert asked == [(["How many?"] * 4, 6, drawing)]
    assert [option for _, option in options[:4]] == list(log_p)
    assert [r.values["accuracy"] for r in results] == [1.0, 0.0, 0.0, 1.0]
    assert results[0].values == pytest.approx({"accuracy": 1.0, "log_odds": math.log(0.3 / 0.2), "p_correct": 0.6})
    assert list(results[0].values) == list(METRICS)
    assert results[1].detail == {
        "prompt": "How many?", "answer": "#### 15", "found": 15.0, "numbers": ["14", "41", "15", "13"]
    }  # fmt: skip


def test_likelihood_alone_with_an_instruction(answered: Callable[..., Any], scripted: Callable[..., Any]):
    asked = answered()
    options = scripted(lambda prompt, option: -2000.0 if "14" in option else -10.0)
    settings = Settings(name="gsm8k", generate=False, instruction="Think.")
    [result] = score(None, [ITEM], settings, Given())
    assert asked == []
    assert options[0][0] == "How many?\nThink."
    assert result.values == {"accuracy": None, "log_odds": pytest.approx(-1990 - math.log(3)), "p_correct": 0.0}


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("14", "14"),
        (14, "14"),
        (2.5, "2.5"),
        ("So 5 + 9 = <<5+9=14>>14.\n#### 14", "14"),
        ("#### 1,234", "1234"),
        ("#### $20", "20"),
        ("#### -3", "-3"),
        ("3.50", "3.5"),
    ],
)
def test_answers_in_every_layout(write_items: Callable[..., Path], answer: Any, number: str):
    path = write_items({"id": "x", "question": "Q?", "answer": answer, "solution": "s"})
    assert read_items(Settings(name="gsm8k", items=path), Given()) == [Item("x", "Q?", Decimal(number))]


def test_rows_that_cannot_be_read(write_items: Callable[..., Path]):
    rows = [{"question": "Q?"}, {"question": "Q?", "answer": "many"}, {"question": "", "answer": "1"},
            {"question": "Q?", "answer": "#### inf"}]  # fmt: skip
    with pytest.raises(DataError) as caught:
        read_items(Settings(name="gsm8k", items=write_items(*rows)), Given())
    assert str(caught.value).split("\n  ")[1:] == [
        "row 1: has the keys ['question']. Expected question and answer",
        "row 2: answer: found 'many'. Expected a number, or a solution with one after ####",
        "row 3: question: found ''. Expected a text",
        "row 4: answer: found 'inf'. Expected a number, or a solution with one after ####",
    ]


def test_every_shipped_solution_is_marked_right(answered: Callable[..., Any], scripted: Callable[..., Any]):
    items = read_items(SETTINGS, Given())
    path = Path(__file__).parents[2] / "weightsteer/evals/items/mathwords.jsonl"
    answered(*(json.loads(row)["solution"] for row in path.read_text(encoding="utf-8").split("\n") if row))
    scripted(lambda prompt, option: -1.0)
    results = score(None, items, SETTINGS, Given())
    assert len(results) >= 20
    assert [r.id for r in results if r.values["accuracy"] != 1.0] == []
    assert all(len(set(r.detail["numbers"])) == 4 for r in results)


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no public samples at {SAMPLES}")
@pytest.mark.parametrize(("name", "count"), [("train", 1000), ("test", 400)])
def test_public_files(answered: Callable[..., Any], scripted: Callable[..., Any], name: str, count: int):
    path = SAMPLES / "gsm8k" / f"{name}.jsonl"
    items = read_items(Settings(name="gsm8k", items=path), Given())
    assert len(items) == count
    answered(*(json.loads(row)["answer"] for row in path.read_text(encoding="utf-8").split("\n") if row))
    scripted(lambda prompt, option: -1.0)
    results = score(None, items, SETTINGS, Given())
    assert [r.detail for r in results if r.values["accuracy"] != 1.0] == []
    assert all(len(set(r.detail["numbers"])) == 4 for r in results)
