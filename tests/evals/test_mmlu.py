"""MMLU: layouts, balanced letters, worked questions before the one that is asked."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pydantic
import pytest
from tiny_models import tiny_language_model

from weightsteer.errors import DataError
from weightsteer.evals import Given
from weightsteer.evals.mmlu import METRICS, Item, Question, Settings, read_items, score

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "mmlu"
ROW = {"subject": "s", "question": "Q?", "choices": ["w", "x", "y", "z"], "answer": "B"}
QUESTION = Question("q", "s", "Q?", ("w", "x", "y", "z"), "B")
ASKED = "Q?\n\nA) w\nB) x\nC) y\nD) z\n\nReply with the letter of one option and nothing else: A, B, C or D."


def settings(**keys: Any) -> Settings:
    return Settings(name="mmlu", **keys)


# Reading items


@pytest.mark.parametrize("answer", ["B", 1])
def test_the_answer_is_a_letter_or_a_number(write_items: Callable[..., Path], answer: Any):
    [item] = read_items(settings(items=write_items({**ROW, "answer": answer, "id": "q"})), Given())
    assert item == Item(QUESTION)


def test_shipped_questions_have_the_right_answer_under_each_letter_equally_often():
    items = [item.question for item in read_items(settings(), Given())]
    assert len(items) >= 100
    assert Counter(q.answer for q in items) == dict.fromkeys("ABCD", len(items) / 4)
    assert items == [item.question for item in read_items(settings(), Given())]
    path = Path(__file__).parents[2] / "weightsteer/evals/items/capability.jsonl"
    for question, row in zip(items, map(json.loads, path.read_text(encoding="utf-8").splitlines()), strict=True):
        assert question.choices["ABCD".index(question.answer)] == row["correct"]
        assert sorted(question.choices) == sorted([row["correct"], *row["incorrect"]])
        assert question.subject == row["topic"]


def test_rows_that_cannot_be_read(write_items: Callable[..., Path]):
    rows = [
        {**ROW, "answer": "E"},
        {**ROW, "answer": 4},
        {**ROW, "answer": "AB"},
        {**ROW, "choices": ["w"], "answer": 0},
        {**ROW, "choices": ["w", ""]},
        {"question": "Q?", "answer": "A"},
    ]
    with pytest.raises(DataError) as caught:
        read_items(settings(items=write_items(*rows)), Given())
    expected = "Expected 2 to 16 choices, and the letter or number of one"
    assert str(caught.value).split("\n  ")[1:] == [
        f"row 1: has 4 choices and the answer 'E'. {expected}",
        f"row 2: has 4 choices and the answer 4. {expected}",
        f"row 3: has 4 choices and the answer 'AB'. {expected}",
        f"row 4: has 1 choices and the answer 0. {expected}",
        "row 5: choice 2: found ''. Expected a text",
        "... and 1 more",
    ]


def test_examples_are_the_first_of_the_same_subject(write_items: Callable[..., Path]):
    examples = [{**ROW, "question": f"{subject}{n}", "subject": subject} for subject in "ts" for n in range(3)]
    asked = write_items(ROW, {**ROW, "subject": "t"})
    items = read_items(settings(items=asked, examples=write_items(*examples, name="dev.jsonl"), fewshot=2), Given())
    assert [[e.question for e in item.examples] for item in items] == [["s0", "s1"], ["t0", "t1"]]


def test_examples_that_are_missing_or_asked(write_items: Callable[..., Path]):
    dev = write_items(ROW, {**ROW, "question": "other"}, name="dev.jsonl")
    asked = write_items(ROW, {**ROW, "subject": "t", "question": "Q2?"})
    with pytest.raises(DataError) as caught:
        read_items(settings(items=asked, examples=dev, fewshot=2), Given())
    assert str(caught.value).split("\n  ") == [
        f"{dev}: 2 problems",
        "'Q?': is asked as an item too",
        "subject 't': has 0 questions. Expected 2",
    ]


def test_settings_that_do_not_go_together():
    with pytest.raises(
        pydantic.ValidationError, match=r"fewshot is 5, and `examples` names no file. Expected MMLU's dev"
    ):
        settings(fewshot=5)
    with pytest.raises(
        pydantic.ValidationError, match=r"fewshot is 5, but examples hold no reasoning for 'cot'. Use 0"
    ):
        settings(fewshot=5, examples="dev.jsonl", style="cot")


# Scores


def test_letters_by_hand(scripted: Callable[..., Any]):
    p = {"A": 0.1, "B": 0.4, "C": 0.2, "D": 0.1}
    asked = scripted(lambda prompt, option: math.log(p[option]))
    [right, wrong] = score(None, [Item(QUESTION), Item(Question("r", "s", "Q?", ("w", "x"), "A"))], settings(), Given())
    assert asked[:4] == [(ASKED, letter) for letter in "ABCD"]
    assert right.values == {
        "accuracy": 1.0, "p_correct": pytest.approx(0.5), "valid": None, "mass": pytest.approx(0.8)
    }  # fmt: skip
    assert wrong.values["accuracy"] == 0.0
    assert wrong.values["p_correct"] == pytest.approx(0.2)
    assert (right.detail["subject"], right.detail["correct"]) == ("s", "B")
    assert set(right.values) == set(METRICS)


def test_a_tie_is_not_right(scripted: Callable[..., Any]):
    scripted(lambda prompt, option: -2000.0)
    [result] = score(None, [Item(QUESTION)], settings(), Given())
    assert result.values["accuracy"] == 0.0
    assert result.values["p_correct"] == pytest.approx(0.25)


@pytest.mark.parametrize(("style", "said"), [("zero-shot", "{}"), ("cot", "A, or C?\nFinal Answer: {}")])
def test_answers_by_hand(scripted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, style: str, said: str):
    scripted(lambda prompt, option: -1.0)
    answers = [said.format("B"), said.format("A"), "no idea"]
    lengths = []

    def generate(lm: Any, prompts: Sequence[Any], max_new_tokens: int, *, label: str = "") -> list[str]:
        lengths.append(max_new_tokens)
        return answers

    monkeypatch.setattr("weightsteer.models.generate.generate", generate)
    results = score(None, [Item(QUESTION)] * 3, settings(style=style, max_new_tokens=77), Given())
    assert [(r.values["accuracy"], r.values["valid"]) for r in results] == [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)]
    assert [r.detail["letter"] for r in results] == ["B", "A", None]
    assert [r.detail["answer"] for r in results] == answers
    assert lengths == [77]
    assert results[0].values["mass"] == (pytest.approx(4 * math.exp(-1)) if style == "zero-shot" else None)


def test_examples_are_turns_answered_with_their_letter(scripted: Callable[..., Any]):
    asked = scripted(lambda prompt, option: -1.0)
    example = Question("e", "s", "E?", ("l", "r"), "A")
    score(None, [Item(QUESTION, (example,))], settings(), Given())
    turns = asked[0][0]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[0]["content"].startswith("E?\n\nA) l\nB) r\n\n")
    assert (turns[1]["content"], turns[2]["content"]) == ("A", ASKED)


@pytest.mark.parametrize("style", ["likelihood", "zero-shot", "cot"])
def test_a_real_model_end_to_end(style: str):
    items = read_items(settings(), Given())[:4]
    results = score(tiny_language_model(), items, settings(style=style, max_new_tokens=4), Given())
    assert [r.id for r in results] == [i.question.id for i in items]
    assert all((r.values["p_correct"] is None) == (style == "cot") for r in results)
    assert all((r.values["valid"] is None) == (style == "likelihood") for r in results)
    if style != "cot":
        for r in results:
            p = {letter: math.exp(x) for letter, x in r.detail["log_p"].items()}
            assert r.values["p_correct"] == pytest.approx(p[r.detail["correct"]] / sum(p.values()))


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no public samples at {SAMPLES}")
def test_published_questions_with_their_dev_examples():
    given = settings(items=SAMPLES / "test.jsonl", examples=SAMPLES / "dev.jsonl", fewshot=5)
    items = read_items(given, Given())
    rows = [json.loads(line) for line in (SAMPLES / "test.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert len(items) == len(rows) == 570
    for item, row in zip(items, rows, strict=True):
        assert (item.question.question, list(item.question.choices)) == (row["question"], row["choices"])
        assert (item.question.answer, item.question.subject) == (row["answer"], row["subject"])
        assert len(item.examples) == 5
        assert {e.subject for e in item.examples} == {row["subject"]}
