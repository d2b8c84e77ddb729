"""Trait: which questions are asked, what the judge sees, and what an answer without a rating counts for."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydantic
import pytest

from weightsteer.data.contrast import ContrastDataset, ContrastPair
from weightsteer.errors import DataError
from weightsteer.evals import Given
from weightsteer.evals.trait import METRICS, Item, Settings, is_fluent, read_items, score
from weightsteer.recipe import Behavior

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data"
BEHAVIOR = Behavior(
    name="kind", description="Is kind.", questions=("Who?", "Why?"), rubric="How kind? Q: {question} A: {answer}"
)
SETTINGS = Settings(name="trait")


class Judge:
    """Rates with what is written down; None has no rating."""

    def __init__(self, *scores: float | None) -> None:
        self.scores = scores
        self.asked: list[Any] = []

    def rate(self, prompts: Sequence[str], scale: str, label: str = "") -> list[Any]:
        assert len(prompts) == len(self.scores)
        self.asked.append((list(prompts), scale))
        return [SimpleNamespace(score=s, unscored="REFUSAL" if s is None else None) for s in self.scores]


def test_questions_that_pairs_were_trained_on_are_left_out():
    pairs = (ContrastPair("1", " who? ", "a", "b"), ContrastPair("2", "Why?", "a", "b", split="held_out"))
    given = Given(pairs=ContrastDataset("kind", pairs), behavior=BEHAVIOR)
    assert read_items(SETTINGS, Given(behavior=BEHAVIOR)) == [Item("question-1", "Who?"), Item("question-2", "Why?")]
    assert read_items(SETTINGS, given) == [Item("question-2", "Why?")]


def test_no_question_is_left():
    pairs = ContrastDataset("kind", tuple(ContrastPair(q, q, "a", "b") for q in BEHAVIOR.questions))
    with pytest.raises(DataError, match=r"the behavior has 2 questions, and pairs for training were made from all"):
        read_items(SETTINGS, Given(pairs=pairs, behavior=BEHAVIOR))
    with pytest.raises(DataError, match=r"the behavior has 0 questions"):
        read_items(SETTINGS, Given())


def test_questions_of_a_file(write_items: Callable[..., Path]):
    path = write_items({"id": "x", "prompt": "P"}, {"question": "Q"})
    assert read_items(Settings(name="trait", items=path), Given()) == [Item("x", "P"), Item("items.jsonl-2", "Q")]
    path = write_items({"text": "P"}, {"question": " "})
    with pytest.raises(
        DataError, match=r"row 1: has the keys \['text'\]. Expected question or .*\n.*row 2: question: fou"
    ):
        read_items(Settings(name="trait", items=path), Given())


def test_a_trait_file_of_persona_vectors_brings_its_rubric(tmp_path: Path, answered: Callable[..., Any]):
    path = tmp_path / "calm.json"
    instruction = [{"pos": "Be calm.", "neg": "Panic."}]
    path.write_text(
        json.dumps({"instruction": instruction, "questions": ["Q?"], "eval_prompt": "Calm? {question} / {answer}"}),
        encoding="utf-8",
    )
    settings = Settings(name="trait", items=path)
    items = read_items(settings, Given(behavior=BEHAVIOR))
    assert items == [Item("calm-1", "Q?")]
    answered("Yes.")
    judge = Judge(10.0)
    score(None, items, settings, Given(behavior=BEHAVIOR, judge=judge))
    assert judge.asked == [(["Calm? Q? / Yes."], "0-100")]


def test_metrics_by_hand(answered: Callable[..., Any]):
    asked = answered("one {question}", "two", "", "four", "five", "six")
    judge = Judge(80.0, 40.0, None, 30.0, None, None)
    settings = Settings(name="trait", samples=2, temperature=0.7, seed=5, max_new_tokens=9)
    items = [Item(name, f"Q{name}") for name in "abc"]
    a, b, c = score(None, items, settings, Given(behavior=BEHAVIOR, judge=judge))
    options = {"temperature": 0.7, "seed": 5, "label": "trait"}
    assert asked == [(["Qa", "Qa", "Qb", "Qb", "Qc", "Qc"], 9, options)]
    assert judge.asked[0][0][0] == "How kind? Q: Qa A: one {question}"
    assert a.values == {"score": 60.0, "fluent": 1.0}
    assert b.values == {"score": 30.0, "fluent": 0.5}
    assert (c.values, c.unscored) == ({"score": None, "fluent": 1.0}, "REFUSAL")
    assert list(a.values) == list(METRICS)
    assert b.detail == {
        "question": "Qb", "answers": ["", "four"], "scores": [None, 30.0], "without_score": ["REFUSAL"]
    }  # fmt: skip


def test_a_rubric_of_ones_own(tmp_path: Path, answered: Callable[..., Any]):
    path = tmp_path / "rubric.txt"
    path.write_text("Mine: {answer}", encoding="utf-8")
    answered("x")
    judge = Judge(1.0)
    settings = Settings(name="trait", rubric=path)
    score(None, [Item("a", "Q")], settings, Given(behavior=BEHAVIOR, judge=judge))
    assert judge.asked[0][0] == ["Mine: x"]


def test_rubrics_that_cannot_be_used(tmp_path: Path):
    path = tmp_path / "rubric.txt"
    settings = Settings(name="trait", rubric=path)
    with pytest.raises(DataError, match=r"rubric.txt: cannot be read \(\[Errno 2\].*Expected a text file"):
        score(None, [], settings, Given())
    path.write_text("no places", encoding="utf-8")
    with pytest.raises(DataError, match=r"rubric.txt: the rubric has no \{answer\}. Expected a text with \{question\}"):
        score(None, [], settings, Given())
    bare = Behavior(name="bare", description="d")
    with pytest.raises(DataError, match=r"trait: behavior bare: the rubric is missing"):
        score(None, [], SETTINGS, Given(behavior=bare))
    with pytest.raises(DataError, match=r"trait: no behavior is given: the rubric is missing"):
        score(None, [], SETTINGS, Given())


def test_without_a_judge():
    with pytest.raises(DataError, match=r"trait: the recipe has no judge. Expected a judge part"):
        score(None, [], SETTINGS, Given(behavior=BEHAVIOR))


def test_samples_that_would_all_be_the_same():
    with pytest.raises(pydantic.ValidationError, match="samples is 3 at temperature 0"):
        Settings(name="trait", samples=3, temperature=0)


@pytest.mark.parametrize(
    ("answer", "fluent"),
    [
        ("I would not say so, since there are good reasons on both sides of it.", True),
        ("Yes.", True),
        ("1. Buy milk and bread. 2. Call the office. 3. Buy eggs and butter. 4. Go home and rest a bit.", True),
        ("", False),
        (" ...!? ", False),
        ("the the the the the the the the the", False),
        ("I think that you are right. I think that you are right. I think that you are right.", False),
        ("Okaaaaaaaaaaaaay", False),
        ("1,000,000,000 people", True),
        ("Haaaappy birthday", True),
    ],
)
def test_fluency(answer: str, fluent: bool):
    assert is_fluent(answer) is fluent


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no public samples at {SAMPLES}")
def test_public_files():
    files = sorted((SAMPLES / "persona_vectors").rglob("*.json"))
    assert len(files) == 10
    for path in files:
        items = read_items(Settings(name="trait", items=path), Given())
        raw = json.loads(path.read_text(encoding="utf-8"))
        assert [item.question for item in items] == raw["questions"]
    files = sorted((SAMPLES / "caa").rglob("test_dataset_open_ended.json"))
    assert len(files) == 6
    for path in files:
        items = read_items(Settings(name="trait", items=path), Given())
        assert [i.question for i in items] == [r["question"] for r in json.loads(path.read_text(encoding="utf-8"))]
