"""Circuit figures draw what they are given, light and dark."""

import pytest
from matplotlib import style

from weightsteer.report.circuit_figures import draw_faithfulness, draw_nodes, draw_overlap
from weightsteer.report.theme import DARK, LIGHT, settings
from weightsteer.stats import Estimate


@pytest.fixture(params=[LIGHT, DARK], ids=["light", "dark"])
def theme(request):
    with style.context(["default", settings(request.param)]):
        yield request.param


def test_faithfulness_has_a_line_for_each_vector(theme):
    points = [(1.0, Estimate(1.0, 0.9, 1.1)), (0.1, Estimate(0.5, 0.4, 0.6))]
    figure = draw_faithfulness({"weights": points, "preference": points[:1]}, theme)
    [axes] = figure.axes
    first, second = axes.lines[:2]
    assert list(first.get_xdata()) == [10, 100]
    assert list(first.get_ydata()) == [0.5, 1.0]
    assert list(second.get_xdata()) == [100]
    assert [text.get_text() for text in figure.legends[0].texts] == ["weights", "preference"]
    figure.canvas.draw()


def test_nodes_are_a_map_with_the_mlp_last(theme):
    figure = draw_nodes([[0.0, -2.0, 1.0], [0.5, 0.0, float("nan")]], theme, first=7, label="effect (logits)")
    axes, bar = figure.axes
    assert axes.images[0].get_clim() == (-2, 2)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "MLP"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["7", "8"]
    assert bar.get_ylabel() == "effect (logits)"
    figure.canvas.draw()


def test_overlap_tells_its_numbers(theme):
    figure = draw_overlap(["a", "b"], [[1.0, 0.25], [0.25, 1.0]], theme)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.00", "0.25", "0.25", "1.00"]
    figure.canvas.draw()
