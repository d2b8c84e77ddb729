"""Figures of activation vectors: effects by strength and by block, components, cosines between blocks."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

from weightsteer.report import numbers
from weightsteer.report.theme import FONT_PT, Look, Theme, method_look, new_figure
from weightsteer.stats import Estimate

# Panels side by side; blocks named along an axis at most.
_COLUMNS = 4
_TICKS = 6


class Plane(NamedTuple):
    """Points of one block's plane, each with its side (first or second of the two named) and its letter."""

    title: str
    points: Sequence[tuple[float, float]]
    sides: Sequence[str]
    letters: Sequence[str]


def draw_strengths(curves: Mapping[str, Sequence[tuple[float, Estimate]]], theme: Theme, y: str) -> Any:
    """A curve for each name over the strength k, with its intervals as bars."""
    looks = _looks(curves, theme)
    figure, axes = new_figure(3.2, _entries(looks))
    for shift, (name, curve) in enumerate(curves.items()):
        # Intervals that stand on one another cannot be read: each curve is moved by a few points of its own.
        offset = _spacing(curves) * (shift - (len(curves) - 1) / 2)
        ks, means = [k + offset for k, _ in curve], [estimate.mean for _, estimate in curve]
        axes.plot(ks, means, **looks[name].line, marker=looks[name].marker, zorder=3)
        low, high = [estimate.low for _, estimate in curve], [estimate.high for _, estimate in curve]
        axes.vlines(ks, low, high, color=looks[name].color, linewidth=0.8, zorder=2)
    ticks = sorted({k for curve in curves.values() for k, _ in curve})
    axes.set_xticks(ticks, [numbers.strength(k) for k in ticks])
    axes.set_xlabel("k")
    axes.set_ylabel(y)
    return figure


def draw_by_block(
    lines: Mapping[str, Mapping[int, float]],
    theme: Theme,
    y: str,
    ringed: Mapping[str, int] = MappingProxyType({}),
) -> Any:
    """A line for each name over the decoder blocks; a ring stands at the block that `ringed` names for it."""
    looks = _looks(lines, theme)
    figure, axes = new_figure(3.0, _entries(looks))
    for name, line in lines.items():
        axes.plot(list(line), list(line.values()), **looks[name].line, marker=looks[name].marker, zorder=3)
        if ringed.get(name) in line:
            axes.plot(
                ringed[name], line[ringed[name]], "o", markersize=11, mfc="none", mec=theme.ink, mew=1.2, zorder=4
            )
    axes.axhline(0, color=theme.muted, linewidth=0.7, zorder=1)
    blocks = sorted({block for line in lines.values() for block in line})
    shown = blocks[:: max(1, math.ceil(len(blocks) / (2 * _TICKS)))]
    axes.set_xticks(shown, [str(block) for block in shown])
    axes.set_xlabel("decoder block")
    axes.set_ylabel(y)
    return figure


def draw_planes(planes: Sequence[Plane], theme: Theme) -> Any:
    """The first two components of several blocks: color tells the side of a point, its marker the letter."""
    sides = list(dict.fromkeys(side for plane in planes for side in plane.sides))
    letters = sorted({letter for plane in planes for letter in plane.letters})
    colors = dict(zip(sides, (theme.above, theme.below, theme.muted, *theme.others), strict=False))
    markers = dict(zip(letters, ("o", "^", "s", "D", "v", "P"), strict=False))
    if len(colors) < len(sides) or len(markers) < len(letters):
        raise ValueError(f"{len(sides)} sides and {len(letters)} letters: more than there are colors and markers")
    entries = [{"color": colors[side], "marker": "o", "linestyle": "", "label": side} for side in sides]
    entries += [{"color": theme.ink, "marker": markers[x], "linestyle": "", "mfc": "none", "label": x} for x in letters]
    figure, panels = _grid(len(planes), 1.55, entries)
    for axes, plane in zip(panels, planes, strict=False):
        for side in sides:
            for letter in letters:
                own = [
                    point
                    for point, s, x in zip(plane.points, plane.sides, plane.letters, strict=True)
                    if (s, x) == (side, letter)
                ]
                if own:
                    axes.scatter(*zip(*own, strict=True), s=11, color=colors[side], marker=markers[letter], alpha=0.7,
                                 linewidths=0, zorder=3)  # fmt: skip
        axes.set_title(plane.title)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def draw_cosines(matrices: Mapping[str, Sequence[Sequence[float]]], blocks: Sequence[int], theme: Theme) -> Any:
    """A map of the cosines between the directions of all blocks, for each name, all on one color scale."""
    from matplotlib.colors import LinearSegmentedColormap

    diverging = LinearSegmentedColormap.from_list("diverging", [theme.below, theme.paper, theme.above])
    figure, panels = _grid(len(matrices), 1.3, ())
    image = None
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=False):
        image = axes.imshow(matrix, origin="lower", cmap=diverging, vmin=-1, vmax=1, interpolation="nearest")
        axes.grid(visible=False)
        axes.set_title(name, fontsize=FONT_PT - 1.5)
        every = max(1, math.ceil(len(blocks) / 4))
        places = list(range(0, len(blocks), every))
        axes.set_xticks(places, [str(blocks[place]) for place in places])
        axes.set_yticks(places, [str(blocks[place]) for place in places])
    figure.colorbar(image, ax=list(panels), label="cosine", shrink=0.8)
    figure.supxlabel("decoder block", fontsize=FONT_PT)
    return figure


def _grid(count: int, height_in: float, entries: Sequence[Mapping[str, Any]]) -> tuple[Any, list[Any]]:
    """A figure with `count` square panels in rows; those left over in the last row are empty."""
    columns = min(count, _COLUMNS)
    rows = math.ceil(count / columns)
    figure, panels = new_figure(0.4 + height_in * rows, entries, (rows, columns), squeeze=False)
    panels = list(panels.flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _looks(names: Mapping[str, Any], theme: Theme) -> dict[str, Look]:
    return {name: method_look(theme, name, list(names)) for name in names}


def _entries(looks: Mapping[str, Look]) -> list[dict[str, Any]]:
    return [{**look.line, "marker": look.marker, "label": name} for name, look in looks.items()]


def _spacing(curves: Mapping[str, Sequence[tuple[float, Estimate]]]) -> float:
    """What the curves are moved by: together a sixth of the smallest distance between two strengths."""
    ks = sorted({k for curve in curves.values() for k, _ in curve})
    return min((b - a for a, b in pairwise(ks)), default=0.0) / 6 / len(curves)
