"""evaluate and change: a number, its interval, and every item behind it."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weightsteer.data.contrast import ContrastDataset, ContrastPair
from weightsteer.errors import DataError, RecipeError
from weightsteer.evals import Given, ItemScore
from weightsteer.evals.preference import Settings
from weightsteer.evaluation import EvalResult, change, columns, draw, evaluate, pooled
from weightsteer.models.language_model import LanguageModel
from weightsteer.models.reference import ModelRef
from weightsteer.stats import Estimate

LM = LanguageModel(SimpleNamespace(), None, ModelRef("some/model", None, Path("x"), "f"))
PAIRS = ContrastDataset("b", tuple(ContrastPair(f"p{i}", f"Q{i}", "good", "bad", split="held_out") for i in range(10)))


@pytest.fixture
def gives(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[ItemScore]], None]:
    """Have the preference eval find these scores, whatever the items."""

    def install(scores: Sequence[ItemScore]) -> None:
        monkeypatch.setattr("weightsteer.evals.preference.score", lambda *given: list(scores))

    return install


def scores_of(*log_odds: float | None) -> list[ItemScore]:
    return [
        ItemScore(f"p{i}", {"log_odds": x, "share": None if x is None else float(x > 0)}, {"evidence": [x]})
        for i, x in enumerate(log_odds)
    ]


def result_of(scores: Sequence[ItemScore], **fields: Any) -> EvalResult:
    whole = {
        "eval": "preference",
        "version": 1,
        "model": "m",
        "method": "base",
        "k": 0.0,
        "n": len(scores),
        "n_unscored": 0,
        "seconds": 0.5,
        "metric": "log_odds",
        "metrics": {"log_odds": Estimate(1.0, 0.5, 2.0)},
        "scores": scores,
    }
    return EvalResult(**{**whole, **fields})


def test_a_result_has_the_mean_its_interval_and_all_items(gives: Callable[..., None]):
    gives(scores_of(1.0, 2.0, -3.0, 4.0))
    result = evaluate(LM, "preference", given=Given(PAIRS), method="weights", k=-1.5)
    assert (result.eval, result.version, result.model, result.method, result.k) == (
        "preference", 1, "some/model", "weights", -1.5,
    )  # fmt: skip
    assert (result.n, result.n_unscored, result.metric, result.mean) == (4, 0, "log_odds", 1.0)
    assert result.low < 1.0 < result.high
    assert result.metrics["share"].mean == 0.75
    assert [item.id for item in result.scores] == ["p0", "p1", "p2", "p3"]
    assert str(result) == f"preference log_odds 1.000 [{result.low:.3f}, {result.high:.3f}] n=4"


def test_an_item_that_cannot_be_scored_is_counted_and_left_out_of_the_mean(gives: Callable[..., None]):
    gives([*scores_of(1.0, 3.0), ItemScore("p2", {}, unscored="the judge said nothing")])
    result = evaluate(LM, "preference", given=Given(PAIRS))
    assert (result.n, result.n_unscored, result.mean) == (3, 1, 2.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_probability_that_is_no_number_is_unscored(gives: Callable[..., None], bad: float):
    """A network that overflows gives nan; nan > 0 is False, and would count as an answer."""
    derived_from_it = ItemScore("p3", {"log_odds": 0.0, "share": 0.0}, {"log_odds": {"a": bad, "b": 1.0}})
    gives([*scores_of(1.0, 3.0, bad), derived_from_it])
    result = evaluate(LM, "preference", given=Given(PAIRS))
    assert (result.n, result.n_unscored, result.mean) == (4, 2, 2.0)
    assert result.scores[2].unscored == "the model's probabilities are not numbers"


def test_nothing_scored_is_an_error_that_names_the_point_and_the_reason(gives: Callable[..., None]):
    gives(scores_of(math.nan, math.nan, 1.0))
    with pytest.raises(DataError) as caught:
        evaluate(LM, "preference", given=Given(PAIRS), method="weights", k=8)
    assert str(caught.value) == (
        "preference, weights at k = 8: fewer than two of 3 items count for any metric (the model's probabilities are "
        "not numbers). "
        "Expected at least two. Use more items, or strengths that the model survives"
    )


def test_a_later_metric_with_too_few_items_is_left_out(gives: Callable[..., None]):
    scores = [replace(s, values={**s.values, "share": None}) for s in scores_of(1.0, 2.0, 3.0)]
    gives([*scores, *scores_of(1.0)])
    assert list(evaluate(LM, "preference", given=Given(PAIRS)).metrics) == ["log_odds"]


def test_a_first_metric_that_nothing_counts_for_is_missing_and_asking_for_it_an_error(gives: Callable[..., None]):
    gives([replace(s, values={**s.values, "log_odds": None}) for s in scores_of(1.0, 2.0, 3.0)])
    result = evaluate(LM, "preference", given=Given(PAIRS), method="weights", k=8)
    assert list(result.metrics) == ["share"]
    with pytest.raises(DataError, match="at k = 8: fewer than two of 3 items count for log_odds"):
        print(result.mean)


def test_seeds_are_pooled_item_by_item():
    """The third item counts at one seed of two, the fourth at none."""
    first, second = scores_of(1.0, 3.0, 5.0, None), scores_of(2.0, 5.0, None, None)
    result = pooled([result_of(first, seed=0), result_of(second, seed=1)])
    assert [item.values["log_odds"] for item in result.scores] == [1.5, 4.0, 5.0, None]
    assert result.scores[2].counts == {"log_odds": 0.5, "share": 0.5}
    assert result.mean == pytest.approx((1.5 + 4.0 + 0.5 * 5.0) / 2.5)
    assert (result.seed, result.seconds, result.n) == (None, 1.0, 4)


def test_an_item_unscored_at_one_seed_keeps_the_other():
    lost = replace(scores_of(1.0)[0], values={}, unscored="garbled")
    pair = [result_of([lost, *scores_of(4.0, 2.0)]), result_of(scores_of(3.0, 4.0, 2.0))]
    assert [item.values["log_odds"] for item in pooled(pair).scores] == [3.0, 4.0, 2.0]


def test_limit_draws_with_the_seed_and_the_argument_comes_before_the_settings(monkeypatch: pytest.MonkeyPatch):
    asked: list[list[str]] = []

    def score(lm: Any, items: Sequence[Any], settings: Any, given: Any) -> list[ItemScore]:
        asked.append([item.id for item in items])
        return scores_of(*range(len(items)))

    monkeypatch.setattr("weightsteer.evals.preference.score", score)
    settings = Settings(name="preference", limit=6)
    for arguments in ({}, {}, {"seed": 1}, {"limit": 3}):
        evaluate(LM, settings, given=Given(PAIRS), **arguments)
    assert [len(ids) for ids in asked] == [6, 6, 6, 3]
    assert asked[0] == asked[1] != asked[2]


def test_drawn_items_keep_their_order():
    assert draw(range(5), None, 0) == draw(range(5), 5, 0) == draw(range(5), 9, 0) == [0, 1, 2, 3, 4]
    drawn = draw(range(100), 10, 0)
    assert drawn == sorted(drawn)
    assert len(set(drawn)) == 10


def test_an_unknown_eval():
    with pytest.raises(RecipeError, match=r"evals: no 'preferences' \(did you mean 'preference'\?\)"):
        evaluate(LM, "preferences")


def test_a_result_on_disk_is_the_same_result(tmp_path: Path):
    scores = [
        ItemScore("ä\u2028", {"log_odds": 0.1, "share": None}, {"log_odds": [0.1, -2.0]}),
        ItemScore("p1", {}, unscored="no"),
    ]
    result = result_of(scores, n_unscored=1)
    result.save(tmp_path)
    assert EvalResult.load(tmp_path) == result
    assert len((tmp_path / "items.jsonl").read_bytes().splitlines()) == 2
    assert "scores" not in json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))


def test_change_is_paired(gives: Callable[..., None]):
    base, steered = result_of(scores_of(5.0, -20.0, 7.0)), result_of(scores_of(6.0, -19.0, 8.0), k=1.0)
    moved = change(steered, base, "log_odds")
    assert (moved.mean, moved.low, moved.high) == pytest.approx((1.0, 1.0, 1.0))
    assert change(steered, base, "share") == Estimate(0.0, 0.0, 0.0)


def test_change_leaves_out_what_either_side_could_not_score():
    lost = ItemScore("p2", {}, unscored="no")
    base, steered = scores_of(1.0, 1.0, 100.0, 1.0), scores_of(3.0, 3.0, 0.0, 3.0)
    assert change(result_of([*steered[:2], lost, steered[3]]), result_of(base), "log_odds").mean == 2.0
    assert change(result_of(steered), result_of([*base[:2], lost, base[3]]), "log_odds").mean == 2.0


def test_change_of_items_that_count_on_one_side_only():
    base, steered = scores_of(1.0, 2.0, None), scores_of(None, 4.0, 6.0)
    assert change(result_of(steered), result_of(base), "log_odds").mean == pytest.approx(5.0 - 1.5)


def test_change_of_different_items():
    with pytest.raises(DataError, match="preference: two results to compare are over different items"):
        change(result_of(scores_of(1.0, 2.0)), result_of(scores_of(1.0)), "log_odds")


def test_change_of_nothing():
    with pytest.raises(DataError) as caught:
        change(result_of(scores_of(None, 2.0), method="weights", k=4.0), result_of(scores_of(1.0, 2.0)), "log_odds")
    assert str(caught.value).startswith(
        "preference.log_odds, weights at k = 4 against base: fewer than two scored items"
    )


def test_columns_of_a_metric_that_is_not_there():
    assert columns(scores_of(1.0, None), "log_odds") == ([1.0, 0.0], [1.0, 0.0])
    assert columns(scores_of(1.0), "nope") == ([0.0], [0.0])
