"""Capability: facts and ordinary text, each in its own unit."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightsteer.errors import DataError
from weightsteer.evals.capability import Question, Settings, Text, read_items, score

TEXT = {"id": "t", "text": "A text."}


def items_of(write_items: Callable[..., Path], *rows: Any, texts: tuple[Any, ...] = (TEXT,)) -> list[Any]:
    settings = Settings(name="capability", items=write_items(*rows), texts=write_items(*texts, name="texts.jsonl"))
    return read_items(settings, None)


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"question": "Q?", "correct": "x", "incorrect": "y"}, ("x", "y")),
        ({"question": "Q?", "correct": "x", "incorrect": ["y", "z"]}, ("x", "y", "z")),
        ({"question": "Q?", "choices": ["w", "x", "y", "z"], "answer": "B", "subject": "s"}, ("x", "w", "y", "z")),
        ({"question": "Q?", "choices": ["w", "x", "y", "z"], "answer": 3}, ("z", "w", "x", "y")),
        ({"question": "Q?", "mc1_targets": {"w": 0, "x": 1, "y": 0}, "mc2_targets": {}}, ("x", "w", "y")),
        ({"question": "Q?", "mc1_targets": {"choices": ["w", "x"], "labels": [0, 1]}}, ("x", "w")),
    ],
)
def test_the_right_answer_comes_first_in_every_layout(write_items: Callable[..., Path], row: dict, answers: tuple):
    assert items_of(write_items, row) == [Question("items.jsonl-1", "Q?", answers), Text("t", "A text.")]


def test_rows_that_cannot_be_read(write_items: Callable[..., Path]):
    rows = [
        {"question": "Q?", "choices": ["w", "x"], "answer": "Z"},
        {"question": "Q?", "choices": ["w", "x"], "answer": 7},
        {"question": "Q?", "correct": 5, "incorrect": "y"},
        {"question": "Q?", "correct": "x", "incorrect": []},
        {"question": "", "correct": "x", "incorrect": "y"},
    ]
    with pytest.raises(DataError) as caught:
        items_of(write_items, *rows)
    assert str(caught.value).split("\n  ")[1:] == [
        "row 1: not of a known layout (ValueError: substring not found)",
        "row 2: not of a known layout (IndexError: list index out of range)",
        "row 3: answer 1: found 5. Expected a text",
        "row 4: has the answers ['x']. Expected a right one and at least one wrong one",
        "row 5: question: found ''. Expected a text",
    ]


def test_texts_that_cannot_be_read(write_items: Callable[..., Path]):
    row = {"question": "Q?", "correct": "x", "incorrect": "y"}
    with pytest.raises(
        DataError, match=r"texts.jsonl: 2 problems\n  row 1: text: found ' '.*\n  row 2: .*KeyError: 'text'"
    ):
        items_of(write_items, row, texts=({"text": " "}, {"txt": "x"}))


def test_metrics_by_hand(scripted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    log_p = {"The answer is x.": math.log(0.06), "The answer is y.": math.log(0.03), "The answer is z.": math.log(0.01)}
    asked = scripted(lambda prompt, option: log_p[option])
    monkeypatch.setattr("weightsteer.models.generate.score_texts", lambda lm, texts, label="": [(-12.0, 4), (0.0, 0)])
    items = [
        Question("q1", "Q?", ("x", "y", "z")),
        Text("t1", "four"),
        Question("q2", "Q?", ("y", "x")),
        Text("t2", "A"),
    ]
    q1, q2, t1, t2 = score(None, items)
    assert asked[0] == ("Q?", "The answer is x.")
    assert q1.values == {"p_correct": pytest.approx(0.6), "accuracy": 1.0, "text": None}
    assert q2.values == {"p_correct": pytest.approx(1 / 3), "accuracy": 0.0, "text": None}
    assert (t1.id, t1.values) == ("t1", {"p_correct": None, "accuracy": None, "text": -3.0})
    assert (t2.unscored, t2.values["text"]) == ("one token predicts nothing", None)


def test_probabilities_too_small_for_a_float_still_compare(
    scripted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    scripted(lambda prompt, option: -2000.0 if "x" in option else -2001.0)
    monkeypatch.setattr("weightsteer.models.generate.score_texts", lambda lm, texts, label="": [])
    [result] = score(None, [Question("q", "Q?", ("x", "y"))])
    assert result.values["p_correct"] == pytest.approx(1 / (1 + math.exp(-1)))
