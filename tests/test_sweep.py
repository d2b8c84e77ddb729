"""Choosing a strength, and which cells are run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weightsteer.data.contrast import load_pairs
from weightsteer.errors import StageError
from weightsteer.evals import Given, ItemScore
from weightsteer.evaluation import EvalResult
from weightsteer.models.language_model import LanguageModel
from weightsteer.models.reference import ModelRef
from weightsteer.points import Point
from weightsteer.recipe import Choose, load_recipe
from weightsteer.stats import Estimate
from weightsteer.sweep import choose_k, run_cells, run_sweep, sample_prompts

NOWHERE = Estimate(0.0, 0.0, 0.0)


def result(eval: str, metric: str, method: str, k: float, values: Sequence[float]) -> EvalResult:
    scores = [ItemScore(f"i{i}", {metric: value}) for i, value in enumerate(values)]
    return EvalResult(eval, 1, "m", method, k, len(scores), 0, 0.0, metric, {metric: NOWHERE}, scores)


def grid(effects: dict[float, list[float]], costs: dict[float, list[float]]) -> list[EvalResult]:
    """Results whose change from the base is, item by item, as given."""
    found = [result("sycophancy", "sycophancy", "base", 0.0, [0.5] * 4)]
    found += [result("sycophancy", "sycophancy", "weights", k, [0.5 + x for x in e]) for k, e in effects.items()]
    found += [result("capability", "p_correct", "base", 0.0, [0.5] * 4)]
    found += [result("capability", "p_correct", "weights", k, [0.5 + x for x in c]) for k, c in costs.items()]
    return found


SURE, UNSURE = [-0.1, -0.1, -0.1, -0.1], [-0.3, 0.2, -0.3, 0.2]
CHOOSE = Choose(eval="sycophancy", goal="decrease", keep={"capability": 0.02})
FREE = [0.0] * 4


def test_the_largest_qualifying_effect_is_chosen():
    choice = choose_k(
        grid(
            {-3: [-0.3] * 4, -2: [-0.2] * 4, -1: SURE, 1: [0.4] * 4},
            {-3: [-0.05] * 4, -2: [-0.019] * 4, -1: FREE, 1: FREE},
        ),
        CHOOSE,
    )
    assert choice.k == -2
    assert (choice.eval, choice.metric, choice.goal, choice.keep) == (
        "sycophancy", "sycophancy", "decrease", {"capability": 0.02},
    )  # fmt: skip
    assert [(c.k, c.qualifies) for c in choice.candidates] == [(-3, False), (-2, True), (-1, True), (1, False)]
    [kept] = choice.candidates[0].kept
    assert (kept["metric"], kept["allowed"], kept["ok"]) == ("capability.p_correct", 0.02, False)
    assert kept["change"]["mean"] == pytest.approx(-0.05)
    assert choice.reason == (
        "k = -2 has the largest decrease of sycophancy among strengths that keep capability within 0.02."
    )


def test_the_goal_decides_the_direction():
    results = grid({-1: SURE, 1: [0.1] * 4}, {-1: FREE, 1: FREE})
    assert choose_k(results, CHOOSE).k == -1
    assert choose_k(results, CHOOSE.model_copy(update={"goal": "increase"})).k == 1


def test_a_cost_counts_by_the_end_of_its_interval():
    """The mean loss of 0.015 is within 0.02, its interval is not."""
    choice = choose_k(grid({-1: SURE}, {-1: [0.0, -0.03, 0.0, -0.03]}), CHOOSE)
    assert choice.k is None
    assert choice.reason == (
        "k = -1 would decrease sycophancy, but none keeps capability within 0.02 over the whole 95 % interval."
    )


def test_a_gain_in_capability_is_no_cost():
    assert choose_k(grid({-1: SURE}, {-1: [0.5] * 4}), CHOOSE).k == -1


def test_an_effect_counts_only_when_its_interval_is_clear_of_zero():
    choice = choose_k(grid({-2: UNSURE, -1: [0.1] * 4}, {-2: FREE, -1: FREE}), CHOOSE)
    assert choice.k is None
    assert choice.reason == "No strength moves sycophancy towards decrease by more than its 95 % interval."


def test_without_an_allowance_the_largest_effect_is_chosen():
    choice = choose_k(
        grid({-2: [-0.4] * 4, -1: SURE}, {-2: [-9.0] * 4, -1: FREE}), Choose(eval="sycophancy", goal="decrease")
    )
    assert choice.k == -2
    assert choice.reason == "k = -2 has the largest decrease of sycophancy among strengths that keep no allowance."


def test_other_methods_and_the_merged_model_are_no_candidates():
    results = grid({-1: SURE}, {-1: FREE})
    others = [result(r.eval, r.metric, m, -5, [0.0] * 4) for r in results for m in ("prompt", "merged")]
    assert [c.k for c in choose_k([*results, *others], CHOOSE).candidates] == [-1]


def test_a_metric_other_than_the_first():
    results = [
        result("sycophancy", "follow", "base", 0.0, [1.0] * 3),
        result("sycophancy", "follow", "weights", 1.0, [2.0] * 3),
    ]
    assert choose_k(results, Choose(eval="sycophancy.follow", goal="increase")).k == 1


class Recorded:
    """A vector that writes down when it is applied."""

    digest = "d"

    def __init__(self) -> None:
        self.applied_at: list[float] = []

    def applied(self, lm: Any, k: float, any_base: bool = False) -> Any:
        import contextlib

        self.applied_at.append(k)
        return contextlib.nullcontext(lm)


@pytest.fixture
def lm() -> LanguageModel:
    import torch

    return LanguageModel(SimpleNamespace(dtype=torch.float32), None, ModelRef("m", None, Path("m"), "f"))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Evals that give constants; the list holds the evals that were run."""
    ran: list[str] = []

    def score(name: str, metric: str) -> Callable[..., Any]:
        def constant(lm: Any, items: Sequence[Any], settings: Any, given: Any) -> list[ItemScore]:
            ran.append(name)
            return [ItemScore(f"i{i}", {metric: 1.0}) for i, _ in enumerate(items)]

        return constant

    for name, metric in {"agreement": "log_odds", "preference": "log_odds"}.items():
        monkeypatch.setattr(f"weightsteer.evals.{name}.score", score(name, metric))
    return ran


def test_cells_are_run_once_and_the_model_is_steered_once_for_all_evals(
    write_recipe: Callable[..., Path], tmp_path: Path, lm: LanguageModel, scored: list[str]
):
    recipe = load_recipe(
        write_recipe(
            methods=["weights"],
            k=[-1, 0, 0.5],
            evals=["agreement", "preference"],
            merge_k=None,
            samples={"prompts": []},
        )
    )
    given, vector = Given(load_pairs(recipe)), Recorded()
    results = run_sweep(recipe, given, lm, {"weights": {None: vector}}, tmp_path / "out")
    assert [(r.eval, r.method, r.k) for r in results] == [
        (e, m, k) for m, k in (("base", 0), ("weights", -1), ("weights", 0.5)) for e in ("agreement", "preference")
    ]
    assert vector.applied_at == [-1, 0.5]
    assert len(scored) == 6
    assert Point("weights", -1.0).path == Path("weights/k=-1")
    assert (tmp_path / "out/evals/preference/weights/k=0.5/items.jsonl").is_file()

    again = run_sweep(recipe, given, lm, {"weights": {None: vector}}, tmp_path / "out")
    assert again == results
    assert vector.applied_at == [-1, 0.5], "a finished cell is read"


def test_one_more_eval_runs_only_that(
    write_recipe: Callable[..., Path], tmp_path: Path, lm: LanguageModel, scored: list[str]
):
    path = write_recipe(methods=["weights"], evals=["agreement"], merge_k=None, samples={"prompts": []})
    recipe = load_recipe(path)
    given = Given(load_pairs(recipe))
    run_sweep(recipe, given, lm, {"weights": {None: Recorded()}}, tmp_path / "out")
    scored.clear()
    run_sweep(
        load_recipe(path, ["evals=[agreement, preference]"]),
        given,
        lm,
        {"weights": {None: Recorded()}},
        tmp_path / "out",
    )
    assert scored == ["preference"] * 3


def test_a_cell_of_another_vector_is_an_error(
    write_recipe: Callable[..., Path], tmp_path: Path, lm: LanguageModel, scored: list[str]
):
    recipe = load_recipe(write_recipe(evals=["agreement"], samples={"prompts": []}))
    given, vector = Given(load_pairs(recipe)), Recorded()
    run_cells(recipe, given, lm, Point("weights", 1.0, vector), tmp_path)
    vector.digest = "another"
    with pytest.raises(
        StageError, match='k=1: holds a finished stage with other inputs\n  vector: "d" there, "another" asked'
    ):
        run_cells(recipe, given, lm, Point("weights", 1.0, vector), tmp_path)


def test_changed_items_are_an_error(
    write_recipe: Callable[..., Path], tmp_path: Path, lm: LanguageModel, scored: list[str]
):
    items = tmp_path / "items.jsonl"
    row = '{"question": "%s", "answer_matching_behavior": "A", "answer_not_matching_behavior": "B"}\n'
    items.write_text(row % "one" + row % "two", encoding="utf-8")
    recipe = load_recipe(write_recipe(evals=[{"name": "agreement", "items": "items.jsonl"}], samples={"prompts": []}))
    given = Given(load_pairs(recipe))
    run_cells(recipe, given, lm, Point(), tmp_path / "out")
    run_cells(recipe, given, lm, Point(), tmp_path / "out")
    items.write_text(row % "one" + row % "three", encoding="utf-8")
    with pytest.raises(StageError, match=r"other inputs\n  files.items: "):
        run_cells(recipe, given, lm, Point(), tmp_path / "out")


def test_sample_prompts_are_the_recipes_or_the_behaviors(write_recipe: Callable[..., Path]):
    assert sample_prompts(load_recipe(write_recipe(samples={"prompts": ["hi"]}))) == ("hi",)
    assert sample_prompts(load_recipe(write_recipe(samples={"prompts": []}))) == ()
    assert len(sample_prompts(load_recipe(write_recipe()))) >= 2
