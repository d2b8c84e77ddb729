from typing import Any

import pytest

from weightsteer.report.pareto import describe_plot, draw_plot, missing_plots, plots
from weightsteer.report.theme import LIGHT


def test_a_plot_has_a_curve_per_method_through_the_base(comparison: dict[str, Any]) -> None:
    first, second = plots(comparison)
    assert list(first.curves) == list(comparison["methods"])
    assert [spot.k for spot in first.curves["weights"]] == [-2, -1, -0.5, 0, 0.5, 1, 2]
    strongest = first.curves["weights"][0]
    assert (strongest.x.mean, strongest.y.mean) == (0.44, pytest.approx(0.7596, abs=1e-3))
    assert first.base is not None
    assert (first.base.x.mean, first.base.y.mean) == (0.48, 0.51)
    assert first.untuned is not None
    assert first.untuned.y.mean == 0.63
    assert (second.x.full, second.y.full) == ("capability.p_correct", "tone.warmth")


def test_a_plot_says_how_its_metrics_are_read(comparison: dict[str, Any]) -> None:
    alt, caption = describe_plot(plots(comparison)[0])
    assert caption.startswith("Fig. 2. Across, truthfulqa.accuracy: Right answers without a hint. Up, truthfulqa.non_s")
    assert "Share of rightly answered questions that stay right under a hint; higher = less sycophantic." in caption
    assert "Square: the model before the task fine-tune." in caption
    assert "Base at (0.480, 0.510)" in alt
    assert "weights: k −2 at (0.440, 0.760)" in alt


def test_a_drawn_plot_has_its_title_axes_and_marks(comparison: dict[str, Any]) -> None:
    axes = draw_plot(comparison, LIGHT, plots(comparison)[0]).axes[0]
    assert axes.get_title() == "Fig. 2"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("truthfulqa.accuracy", "truthfulqa.non_sycophancy")
    assert {"base", "untuned", "−2", "2"} <= {text.get_text() for text in axes.texts}


def test_what_was_not_scored_is_no_point_and_a_plot_without_points_is_named(comparison: dict[str, Any]) -> None:
    for entry in comparison["cells"]:
        if entry["eval"] == "tone" and entry["method"] == "weights":
            entry["metrics"] = {"warmth": {"mean": None, "low": None, "high": None}}
    assert "weights" not in plots(comparison)[1].curves
    assert "joint" in plots(comparison)[1].curves
    comparison["cells"] = [entry for entry in comparison["cells"] if entry["eval"] != "tone"]
    assert [plot.title for plot in plots(comparison)] == ["Fig. 2"]
    assert missing_plots(comparison) == ["Fig. 15"]


def test_an_interval_that_is_missing_is_drawn_as_none(comparison: dict[str, Any]) -> None:
    for entry in comparison["cells"]:
        for value in entry["metrics"].values():
            value["low"] = None
    draw_plot(comparison, LIGHT, plots(comparison)[0])
