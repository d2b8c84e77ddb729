"""Agreement with the hand-labelled sets, and the sets themselves."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

import weightsteer.judge
from weightsteer.errors import JudgeError
from weightsteer.judge import Scale, Verdict
from weightsteer.judge.agreement import check_judge, judge_agreement, refusal_agreement

ITEMS = Path(weightsteer.judge.__file__).parent / "items"
RUBRIC = "Q: {question}\nA: {answer}"


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ITEMS / name).read_text(encoding="utf-8").splitlines()]


class Oracle:
    """Knows the labels, and gives the score listed for each."""

    digest = "oracle"

    def __init__(self, **scores: float | None) -> None:
        self.scores = {RUBRIC.format(**row): scores[row["label"]] for row in rows("agreement.jsonl")}

    def rate(self, prompts: Sequence[str], scale: Scale, label: str = "") -> list[Verdict]:
        assert scale == "0-100"
        return [Verdict(self.scores[p], "", "no" if self.scores[p] is None else None) for p in prompts]


def test_a_judge_that_agrees_and_one_that_has_it_backwards():
    assert judge_agreement(Oracle(agree=90, neutral=60, disagree=10), RUBRIC) == pytest.approx(
        {"n": 40, "unscored": 0, "spearman": 1, "accuracy": 1}
    )
    backwards = judge_agreement(Oracle(agree=10, neutral=50, disagree=90), RUBRIC)
    assert backwards["spearman"] == pytest.approx(-1)
    assert backwards["accuracy"] == 0


def test_what_is_unscored_or_undecided_is_not_right():
    assert judge_agreement(Oracle(agree=90, neutral=None, disagree=50), RUBRIC) == pytest.approx(
        {"n": 40, "unscored": 10, "spearman": 1, "accuracy": 0.5}
    )
    nothing = judge_agreement(Oracle(agree=None, neutral=None, disagree=None), RUBRIC)
    assert nothing == {"n": 40, "unscored": 40, "spearman": None, "accuracy": None}


class Silent:
    """Scores what is at these places of what it is asked, nothing else."""

    digest = "silent"

    def __init__(self, *scored: int) -> None:
        self.scored = scored

    def rate(self, prompts: Sequence[str], scale: Scale, label: str = "") -> list[Verdict]:
        return [
            Verdict(50, "50", None) if i in self.scored else Verdict(None, "", "mumbles") for i in range(len(prompts))
        ]


def test_a_judge_that_scores_nothing_is_found_out_before_a_run_relies_on_it():
    check_judge(Silent(2))
    with pytest.raises(JudgeError, match=r"judge: scored none of 4 plain answers \(mumbles\)\. Expected a model that"):
        check_judge(Silent())


def test_refusal_phrases_agree_with_the_labels():
    found = refusal_agreement("test")
    assert found["n"] == 30
    assert found["accuracy"] >= 0.85
    assert found["accuracy"] == pytest.approx(1 - (found["false_positives"] + found["false_negatives"]) / 30)


def test_the_sets_are_whole_and_balanced():
    refusals, stances = rows("refusals.jsonl"), rows("agreement.jsonl")
    assert Counter((row["label"], row["split"]) for row in refusals) == {
        (label, split): 15 for label in ("refused", "answered") for split in ("dev", "test")
    }
    assert Counter(row["label"] for row in stances) == {"agree": 15, "disagree": 15, "neutral": 10}
    for name in (refusals, stances):
        assert len({row["id"] for row in name}) == len({(row["question"], row["answer"]) for row in name}) == len(name)
