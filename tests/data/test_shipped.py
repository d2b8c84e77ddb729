"""The texts that are shipped: enough of them, balanced, and held apart from what they are tested on."""

import json
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from weightsteer.data.contrast import check_pairs, read_pairs
from weightsteer.evals import agreement, capability, sycophancy
from weightsteer.recipe import shipped_recipes

ITEMS = Path(agreement.__file__).parent / "items"
PAIRS = shipped_recipes() / "behaviors" / "sycophancy.pairs.jsonl"


@cache
def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def words(text: str) -> list[str]:
    return "".join(c.lower() if c.isalnum() else " " for c in text).split()


def twice(values: Iterable[Any]) -> list[Any]:
    return [value for value, n in Counter(values).items() if n > 1]


def test_pairs_are_many_and_varied():
    pairs = read_pairs(str(PAIRS))
    check_pairs(pairs, "shipped")
    assert len({pair.question for pair in pairs}) >= 150
    assert len({pair.topic for pair in pairs}) >= 40
    answers = [a for pair in pairs for a in (pair.positive, pair.negative)]
    assert twice(answers) == []
    for length in (2, 3):
        openings = Counter(" ".join(words(answer)[:length]) for answer in answers)
        assert openings.most_common(1)[0][1] <= 0.05 * len(answers), "a vector must learn the stance, not a phrase"


def test_sides_are_matched_in_length():
    pairs = read_pairs(str(PAIRS))
    positive, negative = ([len(words(getattr(p, side))) for p in pairs] for side in ("positive", "negative"))
    assert 0.97 < sum(positive) / sum(negative) < 1.03
    assert max(max(a, b) / min(a, b) for a, b in zip(positive, negative, strict=True)) < 1.5
    longer = sum(a > b for a, b in zip(positive, negative, strict=True)) / len(pairs)
    assert 0.35 < longer < 0.65


def test_no_word_tells_the_sides_apart():
    pairs = read_pairs(str(PAIRS))
    said = {side: Counter(w for p in pairs for w in set(words(getattr(p, side)))) for side in ("positive", "negative")}
    common = [
        w for w in said["positive"] | said["negative"] if said["positive"][w] + said["negative"][w] > 0.15 * len(pairs)
    ]
    lopsided = {w: (said["positive"][w], said["negative"][w]) for w in common
                if not 1 / 4 < (said["positive"][w] + 1) / (said["negative"][w] + 1) < 4}  # fmt: skip
    assert lopsided == {}


@pytest.mark.parametrize("name", ["agreement", "capability", "sycophancy", "text"])
def test_items_are_unique(name: str):
    found = rows(ITEMS / f"{name}.jsonl")
    assert twice(row["id"] for row in found) == []
    main = {"agreement": "prompt", "text": "text"}.get(name, "question")
    assert twice(" ".join(words(row[main])) for row in found) == []


def test_items_are_enough():
    assert len(agreement.read_items(agreement.Settings(name="agreement"), None)) >= 50
    assert len(sycophancy.read_items(sycophancy.Settings(name="sycophancy"), None)) >= 100
    assert len(capability.read_items(capability.Settings(name="capability"), None)) >= 120


def test_pairs_and_opinions_share_no_topic():
    trained = {row["topic"] for row in rows(PAIRS)}
    asked = {row["topic"] for row in rows(ITEMS / "agreement.jsonl")}
    assert trained & asked == set()
    assert not {row["prompt"] for row in rows(PAIRS)} & {
        row[key] for row in rows(ITEMS / "agreement.jsonl") for key in ("prompt", "reverse_prompt")
    }


def test_facts_of_sycophancy_and_capability_are_disjoint():
    """Else the capability guard would see what the behavior eval already paid for."""
    first, second = rows(ITEMS / "sycophancy.jsonl"), rows(ITEMS / "capability.jsonl")
    assert not {" ".join(words(r["question"])) for r in first} & {" ".join(words(r["question"])) for r in second}
    for row in first:
        for other in second:
            same_answer = row["correct"].lower() == other["correct"].lower()
            shared = set(words(row["question"])) & set(words(other["question"]))
            close = len(shared) > 0.8 * min(len(set(words(row["question"]))), len(set(words(other["question"]))))
            assert not (same_answer and close), (row["id"], other["id"])


def test_no_pair_tells_a_fact_that_is_asked():
    told = [set(words(f"{r['prompt']} {r['positive']} {r['negative']}")) for r in rows(PAIRS)]
    for name in ("sycophancy", "capability"):
        for row in rows(ITEMS / f"{name}.jsonl"):
            needed = {w for w in words(f"{row['question']} {row['correct']}") if len(w) > 3}
            assert not any(needed and needed <= pair for pair in told), row["id"]


def test_a_wrong_answer_is_not_the_right_one():
    for name in ("sycophancy", "capability"):
        for row in rows(ITEMS / f"{name}.jsonl"):
            wrong = [row["incorrect"]] if isinstance(row["incorrect"], str) else row["incorrect"]
            right = {row["correct"].lower(), *(alias.lower() for alias in row.get("aliases", []))}
            assert not right & {answer.lower() for answer in wrong}, row["id"]
            assert len(set(wrong)) == len(wrong)
