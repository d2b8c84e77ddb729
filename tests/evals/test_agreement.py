"""Agreement: both keyings, and what a liking for Yes does to them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightsteer.evals.agreement import METRICS, Item, Settings, read_items, score

ROW = {"id": "a1", "prompt": "I like it.", "reverse_prompt": "I dislike it.", "agree": "Yes", "disagree": "No"}
ITEM = Item("a1", (("I like it.", "Yes", "No"), ("I dislike it.", "No", "Yes")))


def score_of(scripted: Callable[..., Any], table: dict[tuple[str, str], float], item: Item = ITEM) -> Any:
    scripted(lambda prompt, option: table[prompt, option])
    [result] = score(None, [item])
    return result


def test_items_are_keyed_both_ways(write_items: Callable[..., Path]):
    assert read_items(Settings(name="agreement", items=write_items(ROW)), None) == [ITEM]


def test_model_written_evaluations_are_keyed_one_way(write_items: Callable[..., Path]):
    row = {"question": "Q?", "answer_matching_behavior": " (B)", "answer_not_matching_behavior": " (A)"}
    assert read_items(Settings(name="agreement", items=write_items(row)), None) == [
        Item("items.jsonl-1", (("Q?", " (B)", " (A)"),))
    ]


def test_a_model_that_agrees_has_log_odds_and_no_yes_bias(scripted: Callable[..., Any]):
    result = score_of(
        scripted,
        {("I like it.", "Yes"): -1.0, ("I like it.", "No"): -3.0,
         ("I dislike it.", "No"): -1.0, ("I dislike it.", "Yes"): -3.0},
    )  # fmt: skip
    mass = math.exp(-1) + math.exp(-3)
    assert result.values == pytest.approx({"log_odds": 2.0, "share": 1.0, "yes_bias": 0.0, "mass": mass})
    assert result.detail == {"log_odds": [2.0, 2.0]}


def test_a_model_that_only_says_yes_has_a_yes_bias_and_no_log_odds(scripted: Callable[..., Any]):
    result = score_of(
        scripted,
        {("I like it.", "Yes"): -1.0, ("I like it.", "No"): -4.0,
         ("I dislike it.", "No"): -4.0, ("I dislike it.", "Yes"): -1.0},
    )  # fmt: skip
    assert result.values["log_odds"] == pytest.approx(0)
    assert result.values["share"] == 0.5
    assert result.values["yes_bias"] == pytest.approx(3)


def test_mass_is_the_probability_of_both_answers_together(scripted: Callable[..., Any]):
    result = score_of(
        scripted,
        {("I like it.", "Yes"): math.log(0.5), ("I like it.", "No"): math.log(0.4),
         ("I dislike it.", "No"): math.log(0.1), ("I dislike it.", "Yes"): math.log(0.2)},
    )  # fmt: skip
    assert result.values["mass"] == pytest.approx((0.9 + 0.3) / 2)
    assert result.values["log_odds"] == pytest.approx((math.log(0.5 / 0.4) + math.log(0.1 / 0.2)) / 2)


def test_one_keying_has_no_yes_bias(scripted: Callable[..., Any]):
    result = score_of(scripted, {("Q", "A"): -1.0, ("Q", "B"): -2.0}, Item("x", (("Q", "A", "B"),)))
    assert result.values["yes_bias"] is None
    assert (result.values["log_odds"], result.values["share"]) == (1.0, 1.0)
    assert set(result.values) == set(METRICS)


def test_the_answers_of_one_opinion_are_not_given_to_another(scripted: Callable[..., Any]):
    items = [Item(f"i{n}", ((f"p{n}", "Yes", "No"), (f"r{n}", "No", "Yes"))) for n in range(3)]
    asked = scripted(lambda prompt, option: -int(prompt[1]) if option == "Yes" else 0.0)
    results = score(None, items)
    assert asked == [(p, o) for n in range(3) for p, o in
                     ((f"p{n}", "Yes"), (f"p{n}", "No"), (f"r{n}", "No"), (f"r{n}", "Yes"))]  # fmt: skip
    assert [r.detail["log_odds"] for r in results] == [[-0.0, 0.0], [-1.0, 1.0], [-2.0, 2.0]]


def test_shipped_opinions_differ_in_the_users_view_alone():
    path = Path(__file__).parents[2] / "weightsteer/evals/items/agreement.jsonl"
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        assert row["prompt"] != row["reverse_prompt"]
        assert row["prompt"].endswith("?") is row["reverse_prompt"].endswith("?")
        assert {row["agree"], row["disagree"]} == {"Yes", "No"}
