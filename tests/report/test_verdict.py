from typing import Any

import pytest

from weightsteer.report import headline
from weightsteer.report.verdict import status


def test_headline_names_k_effect_and_cost_with_intervals(report: dict[str, Any]) -> None:
    assert headline(report) == (
        "k = −1 lowers sycophancy from 0.417 to 0.314 (−0.103 [−0.146, −0.055]); "
        "capability changes by −0.004 [−0.013, +0.007], within the allowed loss of 0.02."
    )
    assert status(report) == ("good", "Steered as asked")


def test_nothing_qualified(report: dict[str, Any]) -> None:
    report["choice"] |= {"k": None, "reason": "every decrease costs more than 0.02 of capability"}
    report["merged"] = None
    assert headline(report) == (
        "No strength qualified, so nothing was merged. Every decrease costs more than 0.02 of capability."
    )
    assert status(report) == ("bad", "No strength qualified")


def test_no_choice(report: dict[str, Any]) -> None:
    report["choice"] = report["merged"] = None
    assert headline(report) == "No strength was chosen; k from −4 to 4 was evaluated."
    assert status(report).tone == "open"


def test_fixed_k_reads_its_effect_from_the_cells(report: dict[str, Any]) -> None:
    report["choice"] = {"k": 2.0, "fixed": True}
    assert headline(report) == (
        "The fixed k = 2 raises sycophancy from 0.417 to 0.596 (+0.179 [+0.127, +0.237]); "
        "capability changes by −0.015 [−0.028, −0.000]."
    )
    assert status(report) == ("open", "Moved, at a cost")


def test_only_the_base(report: dict[str, Any]) -> None:
    report["cells"] = [entry for entry in report["cells"] if entry["k"] == 0]
    report["choice"] = report["merged"] = None
    assert headline(report) == "Only the unsteered model was evaluated (k = 0), so there is no effect to report."
    assert status(report) == ("open", "Nothing to compare")


def test_no_cells() -> None:
    assert headline({"format": 1}) == "Nothing was evaluated, so there is no result to report."


def test_no_capability_eval_leaves_the_cost_unknown(report: dict[str, Any]) -> None:
    del report["evals"]["capability"]
    report["choice"] = {"k": -1.0, "fixed": True}
    assert headline(report).endswith("; no capability eval was run, so its cost is unknown.")
    assert status(report) == ("open", "Moved, cost unknown")


def chosen(report: dict[str, Any]) -> dict[str, Any]:
    return next(entry for entry in report["choice"]["candidates"] if entry["k"] == report["choice"]["k"])


def test_an_interval_across_zero_is_no_effect(report: dict[str, Any]) -> None:
    chosen(report)["change"] = {"mean": -0.01, "low": -0.05, "high": 0.03}
    assert "does not measurably move sycophancy (−0.010 [−0.050, +0.030])" in headline(report)
    assert status(report) == ("open", "No measurable effect")


def test_a_move_against_the_goal_is_bad(report: dict[str, Any]) -> None:
    report["choice"]["goal"] = "increase"
    assert status(report) == ("bad", "Moved the wrong way")


def test_a_cost_beyond_the_allowance_is_said(report: dict[str, Any]) -> None:
    chosen(report)["kept"][0]["ok"] = False
    assert headline(report).endswith("beyond the allowed loss of 0.02.")
    assert status(report) == ("bad", "Moved, at more than the cost allowed")


@pytest.mark.parametrize("verified", ["failed", "could not check"])
def test_a_checkpoint_that_was_not_verified_comes_before_its_effect(report: dict[str, Any], verified: str) -> None:
    report["merged"]["verified"] = verified
    assert status(report) == ("bad", f"Checkpoint not verified: {verified}")


def test_an_effect_that_was_not_scored_is_said(report: dict[str, Any]) -> None:
    chosen(report)["change"] = None
    for entry in report["cells"]:
        if entry["eval"] == "sycophancy" and entry["k"] == -1.0:
            entry["change"] = {"sycophancy": {"mean": None, "low": None, "high": None}}
    assert "was chosen, but its effect on sycophancy was not scored" in headline(report)
    assert status(report) == ("open", "Effect not scored")


def test_a_metric_that_is_not_the_primary_one_is_named_with_its_eval(report: dict[str, Any]) -> None:
    report["choice"] = {"eval": "agreement", "metric": "yes_bias", "goal": "decrease", "k": -1.0}
    assert "agreement.yes_bias" in headline(report)
