"""The GCD texts: right where they are right, wrong where they are wrong, and split by pair."""

import hashlib
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise, product

import pytest

from weightsteer.data import gcd as gcd_data
from weightsteer.data.gcd import FORMS, MISTAKES, Step, euclid, gcd_items, gcd_training, split_of
from weightsteer.data.gcd_phrases import STYLES, Style, expand
from weightsteer.errors import DataError
from weightsteer.evals._gcd_answers import claimed_gcd
from weightsteer.recipe import GcdPart

CUES = ("instruction", "help", "reasoning", "verification")
ITEMS = gcd_items(GcdPart(test=1500), 0)


@dataclass(frozen=True)
class Read:
    """What stands in a solution."""

    a: int
    b: int
    steps: tuple[Step, ...]
    result: int


def pattern(phrase: str) -> str:
    """A phrase as a regular expression, its numbers as groups."""
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(phrase))


def read(solution: str, style: Style) -> Read:
    """The numbers of a solution, which must be in the words of `style` alone."""
    for opening, conclusion in product(expand(style.opening), expand(style.conclusion)):
        whole = re.fullmatch(rf"{pattern(opening)} (?P<divisions>.*)\. {pattern(conclusion)}", solution)
        if whole:
            found = [re.fullmatch(pattern(style.step), division) for division in whole["divisions"].split("; ")]
            steps = tuple(Step(**{name: int(text) for name, text in m.groupdict().items()}) for m in found)
            return Read(int(whole["a"]), int(whole["b"]), steps, int(whole["gcd"]))
    raise AssertionError(f"not in the words of this style: {solution}")


def solution_of(prompt: str, style: Style) -> str:
    """The solution in a homework, between two cues of `style`."""
    _, worked, checked = prompt.split("\n")
    assert checked in expand(style.verification)
    [cue] = [cue for cue in expand(style.reasoning) if worked.startswith(cue + " ")]
    return worked.removeprefix(cue + " ")


def holds(step: Step) -> bool:
    return step.dividend == step.quotient * step.divisor + step.remainder and 0 <= step.remainder < step.divisor


def is_chain(steps: tuple[Step, ...]) -> bool:
    return all(
        (second.dividend, second.divisor) == (first.divisor, first.remainder) for first, second in pairwise(steps)
    )


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("cue", CUES)
def test_twenty_phrasings_of_every_cue_in_every_style(style: str, cue: str):
    phrasings = expand(getattr(STYLES[style], cue))
    assert len(set(phrasings)) == len(phrasings) >= 20
    numbers = {"{a}", "{b}"} if cue in ("instruction", "help") else set()
    for phrasing in phrasings:
        assert sorted(re.findall(r"\{\w*\}", phrasing)) == sorted(numbers)
        assert not re.search(r"[\[\]|]|  |\s[.,:;?!]|^\s|\s$|\n", phrasing), phrasing


def test_alternatives_are_written_out():
    assert expand(("[A|B] c[ d|].",)) == ("A c d.", "A c.", "B c d.", "B c.")


def test_no_phrasing_belongs_to_two_styles():
    owners = Counter(phrasing for s in STYLES.values() for cue in CUES for phrasing in expand(getattr(s, cue)))
    assert sum(owners.values()) == 7 * 4 * 20
    assert owners.most_common(1)[0][1] == 1


def test_items_use_their_own_style_and_all_styles_alike():
    assert max(Counter(item.style for item in ITEMS).values()) <= math.ceil(len(ITEMS) / len(STYLES))
    for item in ITEMS:
        style = STYLES[item.style]
        assert item.prompts["query-only"] in [p.format(a=item.a, b=item.b) for p in expand(style.instruction)]
        for form in FORMS[1:]:
            assert item.prompts[form].split("\n")[0] in [p.format(a=item.a, b=item.b) for p in expand(style.help)]
            solution_of(item.prompts[form], style)


def test_solutions_are_right_to_the_last_digit():
    for item in ITEMS:
        style = STYLES[item.style]
        for text in (item.answers["query-only"], solution_of(item.prompts["correct-solution"], style)):
            found = read(text, style)
            first = found.steps[0]
            assert (found.a, found.b) == (item.a, item.b)
            assert (first.dividend, first.divisor) == (max(item.a, item.b), min(item.a, item.b))
            assert all(map(holds, found.steps)), text
            assert is_chain(found.steps), text
            assert found.steps[-1].remainder == 0
            assert found.result == found.steps[-1].divisor == item.gcd == math.gcd(item.a, item.b), text


def test_a_right_solution_is_confirmed_and_restated():
    for item in ITEMS:
        style, answer = STYLES[item.style], item.answers["correct-solution"]
        divisions = "; ".join(style.step.format(**vars(step)) for step in euclid(item.a, item.b))
        confirmation, restatement = answer.split(f" {divisions}. ")
        assert confirmation in expand(style.confirmation)
        assert restatement in [r.format(a=item.a, b=item.b, gcd=item.gcd) for r in expand(style.restatement)]
        assert "incorrect-solution" not in item.answers


def test_every_mistake_ends_wrong_and_is_of_its_kind():
    assert set(Counter(item.mistake for item in ITEMS)) == set(MISTAKES)
    for item in ITEMS:
        solution = solution_of(item.prompts["incorrect-solution"], STYLES[item.style])
        found, right = read(solution, STYLES[item.style]), euclid(item.a, item.b)
        assert found.result == claimed_gcd(solution) == item.wrong
        assert item.wrong != item.gcd == math.gcd(item.a, item.b)
        assert item.wrong > 0
        assert found.steps[-1].remainder == 0
        slips = sum(not holds(step) for step in found.steps)
        seen = ((found.a, found.b) == (item.a, item.b), slips, is_chain(found.steps), found.steps == right)
        assert (
            seen
            == {
                "misread": (False, 0, True, False),
                "subtraction": (True, 1, True, False),
                "carrying": (True, 0, False, False),
                "too-early": (True, 0, True, True),
                "last-quotient": (True, 0, True, True),
                "nothing-shared": (True, 0, True, True),
            }[item.mistake]
        ), item


def test_every_pair_of_a_range_can_be_mistaken():
    part = GcdPart(high=30, train=1, test=1)
    train, test = (len(gcd_data._pairs(1, 30, None)[split]) for split in ("train", "test"))
    assert train + test == 30 * 29 // 2
    items = gcd_data._items(part.model_copy(update={"train": train}), "train", 0)
    items += gcd_items(part.model_copy(update={"test": test}), 0)
    assert len({frozenset((item.a, item.b)) for item in items}) == 30 * 29 // 2
    assert all(0 < item.wrong != math.gcd(item.a, item.b) for item in items)


def test_no_pair_is_trained_on_and_tested_for_any_seed_or_range():
    small, large = GcdPart(low=10, high=60, train=300, test=150), GcdPart(test=150)
    trained = {pair for seed in (0, 1) for pair in trained_pairs(small, seed)}
    asked = {frozenset((i.a, i.b)) for part in (small, large) for seed in (0, 1) for i in gcd_items(part, seed)}
    assert len(trained) > 400
    assert len([pair for pair in asked if max(pair) <= 60 and min(pair) >= 10]) > 180
    assert trained & asked == set()
    assert all(split_of(a, b) == split_of(b, a) for a in range(1, 15) for b in range(1, a))


def trained_pairs(part: GcdPart, seed: int) -> set[frozenset[int]]:
    """The pairs that stand in the prompts, the first two numbers of each."""
    return {frozenset(map(int, re.findall(r"\d+", prompt)[:2])) for prompt, _ in gcd_training(part, seed)}


def test_training_rows_are_both_forms_of_as_many_pairs_shuffled():
    rows = gcd_training(GcdPart(train=400), 0)
    homework = ["\n" in prompt for prompt, _ in rows]
    assert (len(rows), sum(homework), len(trained_pairs(GcdPart(train=400), 0))) == (800, 400, 400)
    assert len(set(rows)) == 800
    assert 150 < sum(a != b for a, b in pairwise(homework)) < 650
    assert all(math.gcd(*map(int, re.findall(r"\d+", prompt)[:2])) == claimed_gcd(answer) for prompt, answer in rows)


def test_numbers_and_steps_stay_within_the_part():
    for item in gcd_items(GcdPart(low=20, high=80, test=150, steps=3), 1):
        assert 20 <= min(item.a, item.b) < max(item.a, item.b) <= 80
        assert len(euclid(item.a, item.b)) <= 3


def digest(part: GcdPart, seed: int) -> str:
    return hashlib.sha256(repr((gcd_training(part, seed), gcd_items(part, seed))).encode()).hexdigest()


def test_the_same_seed_gives_the_same_bytes_in_another_process():
    part = GcdPart(high=40, train=50, test=50)
    program = (
        "import hashlib; from weightsteer.recipe import GcdPart; from weightsteer.data.gcd import *\n"
        "part = GcdPart(high=40, train=50, test=50)\n"
        "print(hashlib.sha256(repr((gcd_training(part, 7), gcd_items(part, 7))).encode()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest(part, 7) != digest(part, 8)


def test_fewer_items_are_the_first_of_more():
    assert gcd_items(GcdPart(test=30), 0) == ITEMS[:30]


def test_a_range_that_is_too_small():
    pairs = [(a, b) for a in range(5, 21) for b in range(a + 1, 21) if len(euclid(a, b)) <= 2]
    train = sum(split_of(*pair) == "train" for pair in pairs)
    with pytest.raises(DataError) as caught:
        gcd_training(GcdPart(low=5, high=20, train=100, steps=2), 0)
    assert str(caught.value) == (
        f"gcd: the numbers from 5 to 20 hold {train} train pairs that Euclid's algorithm solves in at most 2 steps. "
        "Expected 100, which `train` asks for. Lower `train`, raise `high` or lower `low` or raise `steps`"
    )
    assert len(gcd_training(GcdPart(low=5, high=20, train=train, steps=2), 0)) == 2 * train
    with pytest.raises(DataError, match=r"from 1 to 3 hold \d test pairs\. Expected 9, which `test` asks for"):
        gcd_items(GcdPart(high=3, test=9), 0)


def test_a_range_that_is_upside_down_or_too_large():
    with pytest.raises(DataError, match="the numbers from 9 to 3 hold 0 test pairs"):
        gcd_items(GcdPart(low=9, high=3, test=1), 0)
    with pytest.raises(DataError, match=r"the numbers from 1 to 3000 make 4498500 pairs. Expected at most 2000000"):
        gcd_items(GcdPart(high=3000, test=1), 0)
