"""Figures of sparse vectors: the effect that is left as less is kept, and how far methods keep the same dimensions."""

from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer.report.theme import FONT_PT, Theme, method_entries, method_look, new_figure
from weightsteer.stats import Estimate

# Share kept, and the effect as a share of the whole vector's.
Curve = Sequence[tuple[float, Estimate]]


def draw_curves(curves: Mapping[str, Curve], theme: Theme, kept: str = "share of the vector kept") -> Any:
    """A line for each rule, with 95 % intervals; the whole vector's effect is 1, at the right."""
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

    rules = list(curves)
    figure, axes = new_figure(2.7, method_entries(theme, rules, rules))
    for level in (0, 1):
        axes.axhline(level, color=theme.muted, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    for rule, curve in curves.items():
        look, points = method_look(theme, rule, rules), sorted(curve, key=lambda point: point[0])
        shares = [share for share, _ in points]
        axes.fill_between(
            shares, [e.low for _, e in points], [e.high for _, e in points], color=look.color, alpha=0.15, linewidth=0
        )
        axes.plot(shares, [e.mean for _, e in points], marker=look.marker, **{**look.line, "markersize": look.size})
    if min(share for curve in curves.values() for share, _ in curve) < 0.1:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlabel=kept, ylabel="effect left")
    return figure


def draw_overlap(
    names: Sequence[str], iou: Sequence[Sequence[float]], expected: Sequence[Sequence[float]], theme: Theme
) -> Any:
    """Intersection over union of every two kept sets, from 0 to 1; below it, in small, what random sets would have.

    Both matrices have a row and a column a name, in order.
    """
    from matplotlib.colors import LinearSegmentedColormap

    size = len(names)
    if [len(row) for rows in (iou, expected) for row in rows] != [size] * 2 * size:
        raise ValueError(f"overlap of {size} sets: expected two matrices of {size} rows and columns")
    figure, axes = new_figure(0.8 + 0.5 * size)
    colors = LinearSegmentedColormap.from_list("overlap", [theme.paper, theme.below])
    # Beyond 1 the scale goes on, so that every color can be written on.
    axes.imshow(iou, cmap=colors, vmin=0, vmax=1 / 0.6, aspect="auto")
    for down in range(size):
        for across in range(size):
            small = "" if down == across else f"\nchance {expected[down][across]:.2f}"
            axes.text(
                across, down, f"{iou[down][across]:.2f}{small}", ha="center", va="center", color=theme.ink,
                fontsize=FONT_PT - 1, linespacing=1.3,
            )  # fmt: skip
    axes.set_yticks(range(size), names)
    axes.set_xticks(range(size), names)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure
