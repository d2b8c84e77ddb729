from typing import Any

import pytest

from weightsteer.report import compared


def test_methods_say_what_they_are_and_their_seeds(comparison: dict[str, Any]) -> None:
    rows = compared.method_rows(comparison)
    assert rows[0] == ("weights", "θ + k(τ⁺ − τ⁻), all linear layers", "2 seeds: 0, 1")
    assert rows[5] == ("joint", "task and contrast data trained together", "")
    comparison["methods"]["joint"]["about"] = ""
    assert compared.method_rows(comparison)[5][1] == "joint"


def test_seeds_are_told_for_every_method(comparison: dict[str, Any]) -> None:
    told = compared.seeds_told(comparison)
    assert told is not None
    assert told.startswith("weights, bias-only, positive side, negative side, finetuned and random: mean over training")
    assert "joint: a single seed, so how far another training run would land is not known." in told
    assert told.endswith("prompt, activations and activations, all blocks: fitted once, as no training seed enters.")


def test_a_single_seed_is_told(comparison: dict[str, Any]) -> None:
    for method in comparison["methods"].values():
        method["seeds"] = method["seeds"][:1]
    told = compared.seeds_told(comparison)
    assert told is not None
    assert told.startswith("Every method was fitted once, with a single seed")


def test_a_report_without_methods_tells_nothing_of_them(report: dict[str, Any]) -> None:
    assert compared.seeds_told(report) is None
    assert compared.method_rows(report) == []


def test_answers_without_a_score_are_counted(comparison: dict[str, Any], report: dict[str, Any]) -> None:
    assert compared.unscored_told(comparison) == (
        "423 of 22560 answers could not be scored; they are left out of the means and counted in the tables."
    )
    for entry in report["cells"]:
        entry["n_unscored"] = 0
    assert compared.unscored_told(report) is None


@pytest.mark.parametrize(
    ("judge", "line"),
    [
        (None, None),
        ({"kind": "rules", "model": None, "agreement": None},
         "Judge: rules. Its agreement with answers labelled by hand was not measured."),
        ({"kind": "server", "model": "big", "agreement": {"n": 40, "unscored": 3, "accuracy": 0.85, "spearman": 0.7}},
         "Judge: a model behind a server, big. On 40 answers labelled by hand, 3 of them unscored: accuracy 85 % and "
         "rank correlation 0.700."),
        ({"kind": "local", "model": "tiny", "agreement": {"n": 40, "unscored": 40, "accuracy": None}},
         "Judge: a local model, tiny. On 40 answers labelled by hand, 40 of them unscored: no measure is defined."),
    ],
)  # fmt: skip
def test_the_judge_is_named_with_its_agreement(report: dict[str, Any], judge: Any, line: str | None) -> None:
    report["judge"] = judge
    assert compared.judge_line(report) == line


def test_a_task_without_a_recorded_training_still_has_its_source(comparison: dict[str, Any]) -> None:
    assert compared.task_facts(comparison)[:2] == [
        ("source", "gcd: 800 questions, 800 right solutions"), ("steps", "60"),
    ]  # fmt: skip
    comparison["task"]["training"] = None
    assert compared.task_facts(comparison) == [("source", "gcd: 800 questions, 800 right solutions")]
