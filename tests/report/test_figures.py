from collections.abc import Callable
from typing import Any

import pytest
from matplotlib import style

from weightsteer.report import figures
from weightsteer.report.figures import draw_figures
from weightsteer.report.labels import Box, Label, place_labels
from weightsteer.report.theme import DARK, LIGHT, method_look, new_figure, settings
from weightsteer.report.tradeoff import draw_tradeoff, pick_tradeoff

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def drawn_names(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], set[str]]:
    """Names of the figures of a report, without the cost of drawing them."""
    monkeypatch.setattr(figures, "png", lambda draw, theme: b"")
    return lambda report: set(draw_figures(report))


def test_every_figure_is_a_png_of_sane_size_with_words_for_who_cannot_see_it(report: dict[str, Any]) -> None:
    drawn = draw_figures(report)
    assert set(drawn) == {"tradeoff", "effects", "vector-norms", "training", "activation-block"}
    for picture in drawn.values():
        width, height = picture.size
        assert width == 1008
        assert 300 < height < 1400
        for image in (picture.light, picture.dark):
            assert image.startswith(PNG)
            assert 10_000 < len(image) < 200_000
        assert picture.light != picture.dark
    assert "weights: k −4 at (−0.249, −0.059)" in drawn["tradeoff"].alt
    assert "sycophancy by weights: −0.249 at k −4 to +0.249 at k 4" in drawn["effects"].alt
    assert "negative validation loss" in drawn["training"].alt


def test_figures_are_drawn_only_from_what_is_there(report: dict[str, Any], drawn_names: Any) -> None:
    assert len(drawn_names(report)) == 5
    report["vector"]["norm_by_block"] = []
    report["training"] = report["activation"] = None
    assert drawn_names(report) == {"tradeoff", "effects"}
    del report["evals"]["capability"]
    report["choice"] = None
    assert drawn_names(report) == {"effects"}, "without a capability eval there is no cost to draw"
    report["cells"] = [entry for entry in report["cells"] if entry["k"] == 0]
    report["merged"] = None
    assert drawn_names(report) == set()


def test_a_comparison_has_a_figure_for_each_of_its_parts(comparison: dict[str, Any], drawn_names: Any) -> None:
    assert drawn_names(comparison) == {
        "tradeoff", "effects", "plot-1", "plot-2", "equal-kl", "interference", "vector-norms", "training",
        "task-training", "activation-block",
    }  # fmt: skip
    comparison |= {"figures": [], "equal_kl": None, "interference": None, "task": None}
    assert drawn_names(comparison) == {"tradeoff", "effects", "vector-norms", "training", "activation-block"}


def test_strengths_in_very_different_units_stand_on_one_axis(
    comparison: dict[str, Any], report: dict[str, Any]
) -> None:
    assert figures._draw_effects(comparison, LIGHT).axes[0].get_xscale() == "symlog"
    assert figures._draw_effects(report, LIGHT).axes[0].get_xscale() == "linear"
    words = figures._describe_effects(comparison)
    assert words is not None
    assert "95 % intervals of weights as bands" in words[1]
    assert "The axis of k doubles at every mark beyond ±0.5." in words[1]


def test_one_method_has_one_look_in_all_figures(comparison: dict[str, Any]) -> None:
    """Also where a method before it is missing."""
    for entry in comparison["cells"]:
        if entry["method"] == "bias-only" and entry["eval"] == "capability":
            entry["change"] = None

    def color(figure: Any, label: str) -> Any:
        return next(h.get_color() for h in figure.legends[0].legend_handles if h.get_label() == label)

    tradeoff, effects = draw_tradeoff(comparison, LIGHT), figures._draw_effects(comparison, LIGHT)
    assert [t.get_text() for t in tradeoff.legends[0].get_texts()].count("bias-only") == 0
    assert color(tradeoff, "joint") == color(effects, "joint")


def test_tradeoff_passes_through_the_base_and_leaves_out_what_was_not_scored(report: dict[str, Any]) -> None:
    shown = pick_tradeoff(report)
    assert shown is not None
    assert [point.k for point in shown.curves["weights"]] == [-4, -2, -1, -0.5, 0, 0.5, 1, 2, 4]
    assert [point.k for point in shown.curves["activations"]] == [-2, -1, -0.5, 0, 0.5, 1, 2, 4]
    base = shown.curves["weights"][4]
    assert (base.behavior.mean, base.capability.mean) == (0, 0)
    assert (shown.capability.label, shown.allowed, shown.chosen) == ("capability", 0.02, ("weights", -1.0))


def texts(figure: Any) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_tradeoff_labels_the_base_the_chosen_k_and_what_is_off_the_scale(report: dict[str, Any]) -> None:
    labels = texts(draw_tradeoff(report, LIGHT))
    assert {"base", "k = −1 chosen", "4 at −0.336", "allowed loss 0.02"} <= set(labels)
    for k in ("−4", "−2", "2", "4"):
        assert k in labels


def test_nothing_is_off_the_scale_when_no_method_breaks(report: dict[str, Any]) -> None:
    report["cells"] = [entry for entry in report["cells"] if entry["method"] in ("base", "weights")]
    figure = draw_tradeoff(report, LIGHT)
    assert not [text for text in texts(figure) if " at " in text]
    assert figure.axes[0].get_ylim()[0] < -0.08, "the lowest interval is inside"


def test_an_estimate_without_bounds_is_drawn_as_a_point(report: dict[str, Any]) -> None:
    for entry in report["cells"]:
        if entry["method"] == "weights":
            entry["change"] = {
                name: {"mean": value["mean"], "low": None, "high": None} for name, value in entry["change"].items()
            }
    point = pick_tradeoff(report).curves["weights"][0]
    assert point.behavior.low == point.behavior.mean == point.behavior.high
    draw_tradeoff(report, LIGHT)


def test_unknown_methods_have_a_look_of_their_own() -> None:
    names = ["weights", "lines", "ties"]
    looks = {method_look(LIGHT, name, names) for name in names}
    assert len(looks) == 3
    assert len({look.color for look in looks}) == len({look.marker for look in looks}) == 3


def test_sixteen_methods_are_told_apart_without_color_too() -> None:
    names = ["weights", "activations", "prompt", "finetuned", "random", *(f"other {i}" for i in range(11))]
    for theme in (LIGHT, DARK):
        looks = [method_look(theme, name, names) for name in names]
        assert len({(look.marker, look.dashes) for look in looks}) == 16
        assert len({(look.color, look.marker) for look in looks}) == 16


@pytest.mark.parametrize("count", [1, 4, 10, 23])
def test_a_legend_stands_within_the_figure_and_beside_the_data(count: int) -> None:
    labels = [f"method {'x' * (i % 9)}" for i in range(count)]
    with style.context(["default", settings(LIGHT)]):
        figure, axes = new_figure(2.5, [{"color": "black", "label": label} for label in labels])
        figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert legend.x1 <= figure.bbox.x1
    assert legend.y0 >= axes.get_window_extent().y1
    assert axes.get_window_extent().height > 1.5 * figure.dpi, "the legend takes no room from the data"


def test_labels_keep_clear_of_one_another_and_drop_where_there_is_no_room() -> None:
    figure, axes = new_figure(3.0)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    figure.draw_without_rendering()
    at = [(0.5, 0.5), (0.52, 0.5)]
    place_labels(axes, [Label(*at[0], "first", "black"), Label(*at[1], "second", "black")], [], at)
    one, other = (text.get_window_extent() for text in axes.texts)
    assert not one.overlaps(other)
    place_labels(
        axes,
        [Label(0.2, 0.2, "hidden", "black"), Label(0.2, 0.2, "kept", "black", True)],
        [Box(0, 0, 2000, 2000)],
        at,
    )
    assert [text.get_text() for text in axes.texts] == ["first", "second", "kept"]
