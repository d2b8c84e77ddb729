"""Figures of circuits: how much of an effect they carry, which heads and MLPs take part, and how far they agree."""

from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer.report.theme import FONT_PT, Theme, method_entries, method_look, new_figure
from weightsteer.stats import Estimate

# Cells of a matrix of more rows than this are too small for their numbers.
_TOLD_ROWS = 12
_TICKS = 12


def draw_faithfulness(curves: Mapping[str, Sequence[tuple[float, Estimate]]], theme: Theme) -> Any:
    """Faithfulness against the share of edges kept, a line with its 95 % band for each vector.

    `curves` are pairs of a share above 0 and what the circuit of that share carries; shares are drawn on a log scale.
    """
    names = list(curves)
    figure, axes = new_figure(2.7, method_entries(theme, names, names))
    for name, points in curves.items():
        look = method_look(theme, name, names)
        shares = [100 * share for share, _ in sorted(points, key=lambda point: point[0])]
        found = [estimate for _, estimate in sorted(points, key=lambda point: point[0])]
        axes.plot(shares, [e.mean for e in found], **look.line, marker=look.marker, zorder=3)
        axes.fill_between(shares, [e.low for e in found], [e.high for e in found], color=look.color, alpha=0.15, lw=0)
    for level in (0, 1):
        axes.axhline(level, color=theme.muted, linewidth=0.7, zorder=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("share of edges kept (%)")
    axes.set_ylabel("share of the effect carried")
    return figure


def draw_nodes(scores: Sequence[Sequence[float]], theme: Theme, *, first: int = 0, label: str = "effect") -> Any:
    """Scores of heads and MLPs as a map: a row for each block, from block `first` on.

    Each row holds one number for every head, then the MLP's; heads and MLPs share one color scale.
    """
    heads = len(scores[0]) - 1
    figure, axes = new_figure(min(5.5, 1.0 + 0.14 * len(scores)))
    reach = max((abs(value) for row in scores for value in row if value == value), default=0) or 1
    image = axes.imshow(scores, cmap=_diverging(theme), vmin=-reach, vmax=reach, aspect="auto")
    axes.axvline(heads - 0.5, color=theme.muted, linewidth=0.8)
    every = -(-heads // _TICKS)
    columns = list(range(0, heads, every))
    axes.set_xticks([*columns, heads], [*map(str, columns), "MLP"])
    rows = range(0, len(scores), -(-len(scores) // _TICKS))
    axes.set_yticks(list(rows), [str(first + row) for row in rows])
    axes.set_xlabel("head")
    axes.set_ylabel("block")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label=label, shrink=0.9)
    return figure


def draw_overlap(names: Sequence[str], shared: Sequence[Sequence[float]], theme: Theme) -> Any:
    """Intersection over union of every two circuits, from 0 to 1; rows and columns in the order of `names`."""
    from matplotlib.colors import LinearSegmentedColormap

    figure, axes = new_figure(1.2 + 0.42 * len(names))
    colors = LinearSegmentedColormap.from_list("shared", [theme.paper, theme.below])
    # Three quarters of the color leave every cell light (or, on dark paper, dark) enough to write on.
    image = axes.imshow(shared, cmap=colors, vmin=0, vmax=4 / 3)
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    if len(names) <= _TOLD_ROWS:
        for row, line in enumerate(shared):
            for column, value in enumerate(line):
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=theme.ink, fontsize=FONT_PT - 1)
    bar = figure.colorbar(image, ax=axes, label="intersection over union", shrink=0.9)
    bar.ax.set_ylim(0, 1)
    return figure


def _diverging(theme: Theme) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("effect", [theme.below, theme.paper, theme.above])
