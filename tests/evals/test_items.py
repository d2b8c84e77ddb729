"""Reading item files: what all evals share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightsteer.errors import DataError
from weightsteer.evals import read_rows, texts, unreadable
from weightsteer.evals.agreement import Settings, read_items

ROW = {"question": "Q?", "answer_matching_behavior": " (A)", "answer_not_matching_behavior": " (B)"}


def same(where: str, row: Any) -> Any:
    return where, row


def test_rows_of_json_lines_and_of_json(write_items: Callable[..., Path], tmp_path: Path):
    lines = write_items({"a": "one\u2028line\x85still"}, {"a": 2})
    assert read_rows(lines, "", same) == [
        ("items.jsonl-1", {"a": "one\u2028line\x85still"}),
        ("items.jsonl-2", {"a": 2}),
    ]
    whole = tmp_path / "items.json"
    whole.write_text("\ufeff" + json.dumps([{"a": 1}], indent=2), encoding="utf-8")
    assert read_rows(whole, "", same) == [("items.json-1", {"a": 1})]


def test_the_shipped_file_is_read_when_there_is_no_other():
    assert len(read_rows(None, "agreement.jsonl", same)) >= 50


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no items. Expected one object an item"),
        ("[]", "holds no items. Expected one object an item"),
        ('{"a": 1}', "holds no items. Expected one object an item"),
        ("[1", r"cannot be read as JSON or JSON lines \(Expecting"),
    ],
)
def test_a_file_without_items(tmp_path: Path, text: str, message: str):
    path = tmp_path / ("items.json" if text else "items.jsonl")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"{path}: {message}"):
        read_rows(path, "", same)


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(DataError, match=r"nope.jsonl: cannot be read as JSON or JSON lines \(\[Errno 2\] No such file"):
        read_rows(tmp_path / "nope.jsonl", "", same)


def test_all_rows_that_cannot_be_read_are_named(write_items: Callable[..., Path]):
    path = write_items(ROW, {"question": "Q?"}, 7, {**ROW, "question": 3}, {**ROW, "answer_matching_behavior": " "})
    with pytest.raises(DataError) as caught:
        read_items(Settings(name="agreement", items=path), None)
    head, *problems = str(caught.value).split("\n  ")
    assert head == f"{path}: 4 problems"
    assert problems[0] == "row 2: has the keys ['question']. Expected prompt, reverse_prompt, agree and disagree"
    assert problems[1] == "row 3: is int, not an object"
    assert problems[2] == "row 4: question: found 3. Expected a text"
    assert problems[3] == "row 5: answer_matching_behavior: found ' '. Expected a text"


def test_texts_are_returned_in_the_order_asked_for():
    assert texts({"b": "2", "a": "1"}, "a", "b") == ["1", "2"]
    assert str(unreadable({"z": 1, "a": 2}, "x")) == "has the keys ['a', 'z']. Expected x"
