"""Rated answers to pairs: like with like, every answer accounted for, lengths in balance."""

from itertools import product

import pytest

from weightsteer.data.contrast import SIDES, ContrastPair, check_pairs
from weightsteer.data.pairing import FATES, Answer, count_answers, elicitation_table, pair_answers
from weightsteer.recipe import ElicitPart

SETTINGS = ElicitPart(keep_positive=60, keep_negative=40)


def answer(
    side: str, text: str, *, question: int = 0, prompt: int = 0, sample: int = 0, rating: float | None = -1
) -> Answer:
    default = 90.0 if side == "positive" else 10.0
    return Answer(side, question, prompt, sample, text, False, default if rating == -1 else rating)


def words(side: str, *counts: int, question: int = 0, prompt: int = 0) -> list[Answer]:
    """One answer of so many words each, all of them different."""
    texts = (" ".join([f"{side}{prompt}-{i}", *["word"] * (n - 1)]) for i, n in enumerate(counts))
    return [answer(side, text, question=question, prompt=prompt, sample=i) for i, text in enumerate(texts)]


def lengths(answers: list[Answer], settings: ElicitPart = SETTINGS) -> list[tuple[int, int]]:
    pairs, _ = pair_answers(answers, settings)
    return [(positive.words, negative.words) for positive, negative in pairs]


def test_every_answer_falls_for_its_own_reason():
    answers = [
        answer("positive", "Yes, at once.", sample=0),
        answer("positive", "yes,  at ONCE.", sample=1),
        answer("positive", "", sample=2, rating=None),
        Answer("positive", 0, 0, 3, "", True, None),
        answer("positive", "Well, who knows.", sample=4, rating=60),
        answer("positive", "In a way.", sample=5, rating=None),
        answer("positive", "Yes, at once, and gladly.", sample=6),
        answer("negative", "No, not now.", sample=0),
        answer("negative", "Let me not.", sample=1, rating=40),
    ]
    pairs, fates = pair_answers(answers, SETTINGS)
    assert list(fates) == answers
    assert list(fates.values()) == [
        "kept", "duplicate", "empty", "cut_off", "wrong_side", "unscored", "unpaired", "kept", "wrong_side",
    ]  # fmt: skip
    assert pairs == [(answers[0], answers[7])]


def test_the_same_words_to_another_question_or_on_the_other_side_are_no_repetition():
    answers = [
        answer(side, "Indeed so.", question=question, rating=90 if side == "positive" else 10)
        for question, side in product((0, 1), SIDES)
    ]
    assert "duplicate" not in pair_answers(answers, SETTINGS)[1].values()


def test_answers_of_like_length_go_together_within_question_and_prompt():
    answers = words("positive", 10, 4, 20) + words("negative", 5, 21, 11)
    assert lengths(answers) == [(20, 21), (10, 11), (4, 5)]
    apart = words("positive", 10) + words("negative", 10, prompt=1) + words("negative", 10, question=1)
    pairs, fates = pair_answers(apart, SETTINGS)
    assert (pairs, set(fates.values())) == ([], {"unpaired"})


def test_pairs_of_one_question_are_limited_in_turn_from_its_prompts():
    first = words("positive", 10, 20, 30) + words("negative", 10, 20, 30)
    second = words("positive", 10, 12, prompt=1) + words("negative", 11, 12, prompt=1)
    pairs, fates = pair_answers(first + second, SETTINGS.model_copy(update={"per_question": 3}))
    assert [(p.prompt, p.words, n.words) for p, n in pairs] == [(0, 10, 10), (0, 20, 20), (1, 12, 12)]
    assert list(fates.values()).count("over_limit") == 4


@pytest.mark.parametrize("longer", SIDES)
def test_the_most_unequal_pairs_are_left_out_until_the_sides_are_in_balance(longer: str):
    shorter = SIDES[1 - SIDES.index(longer)]
    answers = [
        one
        for question, (long, short) in enumerate([(10, 10), (30, 10), (12, 10), (60, 10)])
        for one in words(longer, long, question=question) + words(shorter, short, question=question)
    ]
    pairs, fates = pair_answers(answers, SETTINGS)
    assert [positive.question for positive, _ in pairs] == [0, 2]
    assert {a.question for a, fate in fates.items() if fate == "unbalanced"} == {1, 3}
    check_pairs([ContrastPair(str(i), f"{i}", p.text, n.text) for i, (p, n) in enumerate(pairs)], "these")


def test_balance_is_not_overshot():
    """Without the one long positive the negative side is too long: nothing of it can stay."""
    answers = words("positive", 1000) + words("negative", 10)
    answers += words("positive", 10, question=1) + words("negative", 100, question=1)
    assert lengths(answers) == []
    assert lengths([*answers, *words("positive", 50, question=2), *words("negative", 50, question=2)]) == [(50, 50)]


def test_just_in_balance_stays_whole():
    assert lengths(words("positive", 5) + words("negative", 4)) == [(5, 4)]
    assert lengths(words("positive", 6) + words("negative", 4)) == []


def test_counts_add_up_and_means_are_those_of_the_answers():
    answers = [
        answer("positive", "One two.", sample=0, rating=80),
        answer("positive", "One two three.", sample=1, rating=100),
        Answer("positive", 0, 0, 2, "Short.", True, 30),
        answer("negative", "Four five.", sample=0, rating=0),
    ]
    counts = count_answers(pair_answers(answers, SETTINGS)[1])
    positive = counts["positive"]
    assert sum(positive[fate] for fate in FATES) == positive["sampled"] == 3
    assert (positive["kept"], positive["unpaired"], positive["wrong_side"], positive["shortened"]) == (1, 1, 1, 1)
    assert (positive["rating"], positive["kept_rating"], positive["kept_words"]) == (70, 80, 2)
    assert (counts["negative"]["sampled"], counts["negative"]["rating"]) == (1, 0)


def test_the_table_shows_both_sides_and_no_mean_of_nothing():
    table = elicitation_table(count_answers(pair_answers(words("positive", 4), SETTINGS)[1])).split("\n")
    assert table[0].split() == list(SIDES)
    assert [line.split()[-2:] for line in table[1:]] == [
        ["1", "0"],
        *[["0", "0"]] * 5,
        ["1", "0"],
        *[["0", "0"]] * 4,
        ["90.0", "-"],
        ["-", "-"],
        ["-", "-"],
    ]
    assert len({len(line) for line in table}) == 1
