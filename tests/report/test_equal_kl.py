from typing import Any

import pytest

from weightsteer.report import equal_kl
from weightsteer.report.theme import LIGHT


def row_of(report: dict[str, Any], method: str, sign: int) -> dict[str, Any]:
    return next(r for r in report["equal_kl"]["rows"] if (r["method"], r["sign"]) == (method, sign))


def differ(report: dict[str, Any], method: str, key: str, change: float, p: float) -> None:
    """Give a method at k < 0 this change from the base, and this p-value against the reference."""
    own, row = row_of(report, "weights", -1)["change"][key]["mean"], row_of(report, method, -1)
    row["change"][key] = {"mean": change, "low": change - 0.1, "high": change + 0.1}
    apart = change - own
    row["against"][key] = {"mean": apart, "low": apart - 0.1, "high": apart + 0.1, "p": p / 20, "p_adjusted": p}


@pytest.fixture
def level(comparison: dict[str, Any]) -> dict[str, Any]:
    """Nothing differs beyond chance."""
    for row in comparison["equal_kl"]["rows"]:
        for value in row["against"].values():
            value["p_adjusted"] = 0.6
    return comparison


def test_each_sign_has_a_table_with_what_was_to_be_moved_first(comparison: dict[str, Any]) -> None:
    below, above = equal_kl.tables(comparison)
    assert (below.title, above.title) == ("k below 0", "k above 0")
    assert [metric.eval for metric in below.metrics] == ["truthfulqa", "capability", "tone"]
    assert [row.method for row in below.rows] == list(comparison["methods"])
    reference, bias = below.rows[:2]
    assert (reference.reference, reference.k, reference.differences) == (True, -0.86, [None] * 3)
    change, apart = bias.cells[0]
    assert change == "+0.082 [+0.032, +0.137]"
    assert apart is not None
    assert apart.texts == ("−0.077 [−0.127, −0.022]", "p = 0.93")


def test_a_method_that_did_not_reach_the_divergence_stands_there_with_its_reason(comparison: dict[str, Any]) -> None:
    row = next(row for row in equal_kl.tables(comparison)[1].rows if row.method == "activations, all blocks")
    assert row.k is None
    assert row.note.startswith("0.5 nats are out of reach")
    assert row.cells == [("not scored", None)] * 3
    row_of(comparison, "activations, all blocks", 1)["kl"] = None
    assert next(row for row in equal_kl.tables(comparison)[1].rows if row.k is None).nats == "not finite"


@pytest.mark.parametrize(("p", "text"), [(0.0004, "p < 0.001"), (0.0123, "p = 0.012"), (0.5, "p = 0.50")])
def test_a_p_value_has_the_digits_it_deserves(level: dict[str, Any], p: float, text: str) -> None:
    differ(level, "prompt", "tone.warmth", 3.0, p)
    row = next(row for row in equal_kl.tables(level)[0].rows if row.method == "prompt")
    assert row.differences[2] is not None
    assert row.differences[2].texts[1] == text


def test_meaning_and_correction_name_their_numbers(comparison: dict[str, Any]) -> None:
    meaning = equal_kl.meaning(comparison)
    for words in ("95th percentile", "is 0.5 nats", "24 prompts", "48 tokens", "each sign for itself"):
        assert words in meaning
    correction = equal_kl.correction(comparison)
    for words in ("the difference from weights", "all 51 comparisons by Holm", "take part with their first"):
        assert words in correction
    for method in comparison["methods"].values():
        method["seeds"] = []
    assert "with their first" not in equal_kl.correction(comparison)


def test_nothing_beyond_chance_is_said(level: dict[str, Any]) -> None:
    assert equal_kl.verdicts(level) == [
        "At k below 0, no method differs from weights beyond chance.",
        "At k above 0, no method differs from weights beyond chance.",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (0.4, "prompt moved truthfulqa further"),
        (0.02, "no method moved truthfulqa further beyond chance; prompt moved truthfulqa less far"),
        (-0.2, "no method moved truthfulqa further beyond chance; prompt moved truthfulqa the other way"),
    ],
)
def test_who_moved_the_target_further_is_said(level: dict[str, Any], change: float, said: str) -> None:
    differ(level, "prompt", "truthfulqa.non_sycophancy", change, 0.01)
    assert equal_kl.verdicts(level)[0] == f"At k below 0, against weights: {said}. Nothing else differs beyond chance."


def test_further_means_further_whichever_way_the_metric_counts(level: dict[str, Any]) -> None:
    """The reference lowers the metric here; who lowers it more is ahead."""
    row_of(level, "weights", -1)["change"]["truthfulqa.non_sycophancy"]["mean"] = -0.1
    differ(level, "prompt", "truthfulqa.non_sycophancy", -0.3, 0.01)
    assert "prompt moved truthfulqa further" in equal_kl.verdicts(level)[0]


def test_capability_is_kept_and_other_metrics_are_higher_or_lower(level: dict[str, Any]) -> None:
    differ(level, "joint", "capability.p_correct", -0.2, 0.001)
    differ(level, "prompt", "capability.p_correct", -0.2, 0.002)
    differ(level, "random", "capability.p_correct", 0.1, 0.02)
    differ(level, "random", "tone.warmth", 5.0, 0.03)
    told = equal_kl.verdicts(level)[0]
    assert (
        "joint and prompt kept less of capability; random kept more of capability; random ended higher in tone" in told
    )


def test_a_p_value_of_five_percent_is_not_below_it(level: dict[str, Any]) -> None:
    differ(level, "prompt", "truthfulqa.non_sycophancy", 0.4, 0.05)
    assert "no method differs" in equal_kl.verdicts(level)[0]


def test_without_a_reference_nothing_is_compared(comparison: dict[str, Any]) -> None:
    row_of(comparison, "weights", -1)["k"] = None
    assert equal_kl.verdicts(comparison)[0] == (
        "At k below 0, weights did not reach the divergence, so nothing is compared with it."
    )


def test_the_dot_plot_has_a_row_per_method_and_hollow_marks_off_the_target(comparison: dict[str, Any]) -> None:
    figure = equal_kl.draw(comparison, LIGHT)
    assert [axes.get_title() for axes in figure.axes] == ["truthfulqa", "capability", "tone"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(comparison["methods"])
    marks = [bar.lines[0] for bar in figure.axes[0].containers]
    hollow = [mark for mark in marks if mark.get_markerfacecolor() == LIGHT.paper]
    assert (len(marks), len(hollow)) == (19, 6), "prompt, finetuned and joint were measured, not calibrated"


def test_no_row_at_the_divergence_is_no_figure(comparison: dict[str, Any]) -> None:
    for row in comparison["equal_kl"]["rows"]:
        row |= {"k": None, "change": {}, "against": {}}
    assert equal_kl.describe(comparison) is None
    assert equal_kl.tables({"format": 2}) == []
