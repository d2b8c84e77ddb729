"""Figures of sparse vectors: every rule's line at its numbers, every pair's overlap with that of chance."""

import pytest

from weightsteer.report.sparsity_figures import draw_curves, draw_overlap
from weightsteer.report.theme import DARK, LIGHT, Theme
from weightsteer.stats import Estimate

CURVES = {
    "attribution": [(1.0, Estimate(1.0, 1.0, 1.0)), (0.01, Estimate(0.8, 0.6, 0.95))],
    "random": [(0.01, Estimate(0.1, -0.1, 0.2)), (1.0, Estimate(1.0, 1.0, 1.0))],
}


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_curves_are_drawn_at_their_numbers(theme: Theme):
    figure = draw_curves(CURVES, theme)
    [axes] = figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2 and list(line.get_xdata()) == [0.01, 1.0]]
    assert [list(line.get_ydata()) for line in lines] == [[0.8, 1.0], [0.1, 1.0]]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["attribution", "random"]
    figure.draw_without_rendering()
    near = {"rank": [(0.5, Estimate(0.7, 0.6, 0.8)), (1.0, Estimate(1.0, 1.0, 1.0))]}
    assert draw_curves(near, theme).axes[0].get_xscale() == "linear"


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_overlaps_stand_beside_those_of_chance(theme: Theme):
    figure = draw_overlap(["DIM", "NTP"], [[1.0, 0.4], [0.4, 1.0]], [[0.1, 0.05], [0.05, 0.1]], theme)
    [axes] = figure.axes
    assert [text.get_text() for text in axes.texts] == ["1.00", "0.40\nchance 0.05", "0.40\nchance 0.05", "1.00"]
    figure.draw_without_rendering()
    with pytest.raises(ValueError, match="overlap of 2 sets: expected two matrices of 2 rows"):
        draw_overlap(["DIM", "NTP"], [[1.0]], [[1.0]], theme)
