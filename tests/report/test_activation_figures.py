"""The drawings hold the numbers that they are given."""

from typing import Any

import numpy as np
import pytest
from matplotlib import style

from weightsteer.report.activation_figures import Plane, draw_by_block, draw_cosines, draw_planes, draw_strengths
from weightsteer.report.figures import picture
from weightsteer.report.theme import DARK, LIGHT, Theme, settings
from weightsteer.stats import Estimate

CURVES = {
    name: [(k, Estimate(level + k / 10, level + k / 10 - 0.05, level + k / 10 + 0.05)) for k in (-1.0, 0.0, 1.0)]
    for name, level in (("refusal", 0.4), ("myopia", 0.6))
}
LINES = {"refusal": {0: 0.0, 2: 0.3, 4: 0.1}, "myopia": {0: -0.1, 2: 0.1, 4: 0.2}}
PLANE = Plane("block 3", [(0, 1), (1, 0), (2, 2), (3, 3)], ["shown", "shown", "not shown", "not shown"], list("ABAB"))
MATRICES = {"refusal": [[1, 0.2], [0.2, 1]], **{str(i): [[1, 0], [0, 1]] for i in range(6)}}
DRAWN = {
    "strengths": lambda theme: draw_strengths(CURVES, theme, "p(matching letter)"),
    "blocks": lambda theme: draw_by_block(LINES, theme, "spread", {"refusal": 2}),
    "planes": lambda theme: draw_planes([PLANE] * 5, theme),
    "cosines": lambda theme: draw_cosines(MATRICES, [0, 3], theme),
}


def drawn(name: str, theme: Theme = LIGHT) -> Any:
    with style.context(["default", settings(theme)]):
        return DRAWN[name](theme)


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_a_png_for_both_papers(name: str):
    made = picture(name, DRAWN[name], "alt", "caption")
    width, height = made.size
    assert width == 1008
    assert 350 < height < 1400
    assert made.light != made.dark
    assert all(8_000 < len(image) < 200_000 for image in (made.light, made.dark))


def test_curves_over_strengths():
    [axes] = drawn("strengths").axes
    first, second = (line for line in axes.lines if len(line.get_xdata()) == 3)
    assert list(first.get_ydata()) == pytest.approx([0.3, 0.4, 0.5])
    assert list(second.get_ydata()) == pytest.approx([0.5, 0.6, 0.7])
    assert max(abs(np.array(first.get_xdata()) - [-1, 0, 1])) < 0.1, "moved by too little to be misread"
    assert first.get_xdata()[0] < second.get_xdata()[0], "and apart"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["−1", "0", "1"]
    bars = axes.collections[0].get_segments()
    assert [bar[:, 1].tolist() for bar in bars] == [pytest.approx([m - 0.05, m + 0.05]) for m in (0.3, 0.4, 0.5)]


def test_lines_over_blocks_and_the_ring():
    figure = drawn("blocks")
    [axes] = figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert [list(line.get_ydata()) for line in lines] == [[0.0, 0.3, 0.1], [-0.1, 0.1, 0.2]]
    [ring] = [line for line in axes.lines if line.get_markersize() == 11]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([2], [0.3])
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts()] == ["refusal", "myopia"]


def test_planes_color_sides_and_mark_letters():
    figure = drawn("planes", DARK)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 5
    points = {tuple(c.get_offsets()[0]): c for c in shown[0].collections}
    assert len(points) == 4, "each side and letter is a group of its own"
    colors = {tuple(points[at].get_facecolor()[0][:3]) for at in ((0.0, 1.0), (1.0, 0.0))}
    other = {tuple(points[at].get_facecolor()[0][:3]) for at in ((2.0, 2.0), (3.0, 3.0))}
    assert len(colors) == len(other) == 1
    assert colors != other
    paths = [points[at].get_paths()[0].vertices.shape for at in ((0.0, 1.0), (2.0, 2.0), (1.0, 0.0))]
    assert paths[0] == paths[1] != paths[2]
    too_many = Plane("t", [(0, 0)] * 7, ["s"] * 7, list("ABCDEFG"))
    with pytest.raises(ValueError, match="1 sides and 7 letters: more than"):
        draw_planes([too_many], LIGHT)


def test_cosines_share_one_scale():
    figure = drawn("cosines")
    maps = [axes for axes in figure.axes if axes.images]
    assert len(maps) == 7
    assert np.asarray(maps[0].images[0].get_array()).tolist() == [[1, 0.2], [0.2, 1]]
    assert {axes.images[0].get_clim() for axes in maps} == {(-1.0, 1.0)}
    assert [tick.get_text() for tick in maps[0].get_xticklabels()] == ["0", "3"]
