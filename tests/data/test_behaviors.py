"""The shipped behaviors: complete, matched side by side, and held apart from what they are tested on."""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import yaml

from weightsteer.data.contrast import ContrastPair, check_pairs, read_pairs
from weightsteer.evals import agreement
from weightsteer.judge.rules import is_refusal
from weightsteer.recipe import Behavior, shipped_recipes

FOLDER = shipped_recipes() / "behaviors"
ITEMS = Path(agreement.__file__).parent / "items"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# So many words in a row are a copied question; six are "What is a good way to".
COPIED = 8


@cache
def behavior(name: str) -> Behavior:
    return Behavior.model_validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


@cache
def pairs(name: str) -> tuple[ContrastPair, ...]:
    return read_pairs(str(FOLDER / str(behavior(name).pairs)))


def words(text: str) -> list[str]:
    return "".join(c.lower() if c.isalnum() else " " for c in text).split()


def runs(text: str) -> set[tuple[str, ...]]:
    said = words(text)
    return {tuple(said[i : i + COPIED]) for i in range(len(said) - COPIED + 1)} or {tuple(said)}


def asked(name: str) -> list[str]:
    """What the behavior's own evals and samples ask."""
    return [*behavior(name).questions, *behavior(name).samples]


def test_the_behaviors_of_the_paper_and_two_controls_are_there():
    assert {"sycophancy", "dishonest-choices", "refusal", "hallucination", "formality", "language"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_behavior_is_complete(name: str):
    found = behavior(name)
    assert found.name == name
    assert found.pairs == Path(f"{name}.pairs.jsonl")
    assert len(found.system_prompts) == 5
    assert len({text for prompts in found.system_prompts for text in (prompts.positive, prompts.negative)}) == 10
    assert len(set(found.questions)) == 40
    assert len(set(found.samples)) == 4
    assert found.rubric is not None
    assert sorted(set(found.rubric.format(question="<Q>", answer="<A>").split()) & {"<Q>", "<A>"}) == ["<A>", "<Q>"]
    assert "0 to 100" in found.rubric


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_many_varied_and_pass_the_check(name: str):
    found = pairs(name)
    check_pairs(found, name)
    assert len({pair.question for pair in found}) == len(found) >= 95
    assert len({pair.topic for pair in found}) >= 10
    answers = [answer for pair in found for answer in (pair.positive, pair.negative)]
    assert len(set(answers)) == len(answers)
    openings = Counter(" ".join(words(answer)[:2]) for answer in answers)
    assert openings.most_common(1)[0][1] <= 0.1 * len(answers)


@pytest.mark.parametrize("name", NAMES)
def test_sides_are_matched_in_length(name: str):
    lengths = [(len(pair.positive.split()), len(pair.negative.split())) for pair in pairs(name)]
    assert 0.9 < sum(a for a, _ in lengths) / sum(b for _, b in lengths) < 1.1
    assert max(max(both) / min(both) for both in lengths) < 2


@pytest.mark.parametrize("name", [name for name in NAMES if name != "language"])
def test_the_first_word_does_not_tell_the_side(name: str):
    first = {side: [words(getattr(p, side))[0] for p in pairs(name)] for side in ("positive", "negative")}
    counts = {side: Counter(first[side]) for side in first}
    right = 0.0
    for side, other in (("positive", "negative"), ("negative", "positive")):
        for word in first[side]:  # guessed from all other answers
            here, there = counts[side][word] - 1, counts[other][word]
            right += 1 if here > there else 0.5 if here == there else 0
    assert right / (2 * len(pairs(name))) < 0.75


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_not_what_is_asked_later(name: str):
    """Neither by a behavior's own questions and samples, nor by the items of any eval."""
    lines = [line for path in ITEMS.glob("*.jsonl") for line in path.read_text(encoding="utf-8").split("\n")]
    items = [json.loads(line) for line in lines if line]
    tested = [row[key] for row in items for key in ("prompt", "question", "scenario") if key in row]
    later = set().union(*map(runs, [*asked(name), *tested]))
    assert [pair.id for pair in pairs(name) if runs(str(pair.prompt)) & later] == []


def test_the_language_pairs_say_it_in_french_and_in_english():
    accented = [sum(any(c in "àâçéèêëîïôùûœ" for c in getattr(p, side)) for p in pairs("language"))
                for side in ("positive", "negative")]  # fmt: skip
    assert accented[0] > 0.8 * len(pairs("language"))
    assert accented[1] == 0


def test_refusing_sides_refuse_in_common_words_and_no_other_side_does():
    found = pairs("refusal")
    assert [pair.id for pair in found if is_refusal(pair.negative)] == []
    assert sum(is_refusal(pair.positive) for pair in found) > 0.7 * len(found)
