"""The figures that a recipe asks for: two metrics against each other, a curve per method over k, as a paper has it."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from weightsteer.report import numbers
from weightsteer.report.findings import Metric, cell, cells, chosen_method, estimate, methods, metric, part, strengths
from weightsteer.report.labels import Box, Label, line_boxes, marker_box, place_labels
from weightsteer.report.theme import Theme, method_entries, method_look, new_figure, reach
from weightsteer.stats import Estimate


class Spot(NamedTuple):
    """Where one strength of one method stands on both metrics."""

    k: numbers.Real
    x: Estimate
    y: Estimate


class Plot(NamedTuple):
    """One figure: its title, its two metrics and their readings, and the curves through the base."""

    title: str
    x: Metric
    y: Metric
    reads: tuple[str, str]
    base: Spot | None
    untuned: Spot | None
    curves: dict[str, list[Spot]]


def plots(report: Mapping[str, Any]) -> list[Plot]:
    """The figures of the report that have something to show."""
    found = [_plot(report, asked) for asked in report.get("figures") or []]
    return [plot for plot in found if plot.curves]


def missing_plots(report: Mapping[str, Any]) -> list[str]:
    """Titles of the figures that no steered cell is scored for."""
    found = [_plot(report, asked) for asked in report.get("figures") or []]
    return [plot.title for plot in found if not plot.curves]


def _plot(report: Mapping[str, Any], asked: Mapping[str, Any]) -> Plot:
    x, y = metric(report, asked["x"]), metric(report, asked["y"])
    spots = {
        method: [spot for k in strengths(report, x.eval, method) if (spot := _spot(report, x, y, method, k))]
        for method in methods(report)
    }
    curves = {method: found for method, found in spots.items() if any(spot.k for spot in found)}
    untuned = "untuned" if any(entry["method"] == "untuned" for entry in cells(report)) else None
    return Plot(
        asked["title"], x, y, (_reading(report, x), _reading(report, y)), _spot(report, x, y, "base", 0),
        _standing(report, x, y, untuned) if untuned else None, curves,
    )  # fmt: skip


def _spot(report: Mapping[str, Any], x: Metric, y: Metric, method: str, k: numbers.Real) -> Spot | None:
    across, up = (estimate(cell(report, m.eval, method, k), "metrics", m.name) for m in (x, y))
    return Spot(k, across, up) if across and up else None


def _standing(report: Mapping[str, Any], x: Metric, y: Metric, label: str) -> Spot | None:
    """The spot of a cell that is not a method's, such as the model before the task fine-tune."""
    found = {entry["eval"]: entry for entry in cells(report) if entry["method"] == label}
    across, up = (estimate(found.get(m.eval), "metrics", m.name) for m in (x, y))
    return Spot(0, across, up) if across and up else None


def _reading(report: Mapping[str, Any], metric: Metric) -> str:
    """How a metric is read: by its own words, else by its eval's."""
    described = part(report, "evals").get(metric.eval, {})
    own = (described.get("metrics") or {}).get(metric.name) or ""
    return (described.get("reads") if metric.primary else own) or own or "not described"


def describe_plot(plot: Plot) -> tuple[str, str]:
    """Alternative text and caption."""
    told = [
        f"{method}: "
        + ", ".join(
            f"k {numbers.strength(spot.k)} at ({numbers.number(spot.x.mean)}, {numbers.number(spot.y.mean)})"
            for spot in spots
            if spot.k
        )
        for method, spots in plot.curves.items()
    ]
    base = f" Base at ({numbers.number(plot.base.x.mean)}, {numbers.number(plot.base.y.mean)})." if plot.base else ""
    alt = f"{plot.title}. {plot.x.full} across, {plot.y.full} up, one curve per method.{base} {'; '.join(told)}."
    caption = (
        f"{plot.title}. Across, {plot.x.full}: {numbers.sentence(plot.reads[0])} Up, {plot.y.full}: "
        f"{numbers.sentence(plot.reads[1])} One curve per method over k, with 95 % intervals over items; numbers "
        "beside points are k."
    )
    return alt, caption + (" Square: the model before the task fine-tune." if plot.untuned else "")


def draw_plot(report: Mapping[str, Any], theme: Theme, plot: Plot) -> Any:
    """The figure."""
    order, main = methods(report), chosen_method(report)
    figure, axes = new_figure(4.4, method_entries(theme, list(plot.curves), order))
    for method, spots in reversed(plot.curves.items()):
        look, first = method_look(theme, method, order), method == main
        axes.plot(
            [spot.x.mean for spot in spots], [spot.y.mean for spot in spots], **look.line,
            linewidth=1.7 if first else 1.1, zorder=3 + first,
        )  # fmt: skip
        for spot in spots:
            if spot.k:
                axes.errorbar(
                    spot.x.mean, spot.y.mean, xerr=reach(spot.x), yerr=reach(spot.y), color=look.color,
                    elinewidth=0.7, alpha=0.45, zorder=2,
                )  # fmt: skip
                axes.plot(
                    spot.x.mean, spot.y.mean, look.marker, color=look.color, markersize=look.size,
                    markeredgecolor=theme.paper, markeredgewidth=0.4, zorder=4 + first,
                )  # fmt: skip
    labels = []
    for spot, name, marker in ((plot.base, "base", "o"), (plot.untuned, "untuned", "s")):
        if spot is not None:
            axes.errorbar(spot.x.mean, spot.y.mean, xerr=reach(spot.x), yerr=reach(spot.y), color=theme.ink,
                          elinewidth=0.9, alpha=0.7, zorder=6)  # fmt: skip
            axes.plot(spot.x.mean, spot.y.mean, marker, color=theme.ink, markersize=6, zorder=8)
            labels.append(Label(spot.x.mean, spot.y.mean, name, theme.ink, True))
    axes.set_title(plot.title)
    axes.set_xlabel(plot.x.full)
    axes.set_ylabel(plot.y.full)
    axes.margins(0.06)
    figure.draw_without_rendering()
    for method, spots in plot.curves.items():
        color = method_look(theme, method, order).color
        far_first = sorted(spots, key=lambda spot: -abs(spot.k))
        labels += [Label(s.x.mean, s.y.mean, numbers.strength(s.k), color) for s in far_first if s.k]
    shown = [spot for spots in plot.curves.values() for spot in spots]
    place_labels(axes, labels, _obstacles(axes, plot), [(spot.x.mean, spot.y.mean) for spot in shown])
    return figure


def _obstacles(axes: Any, plot: Plot) -> list[Box]:
    """Markers, curves, and the intervals of the single spots; those of the curves are faint, and may be crossed."""
    boxes = []
    for spots in plot.curves.values():
        ends = [(spot.x.mean, spot.y.mean) for spot in spots]
        boxes += [marker_box(axes, *end, 6.0) for end in ends]
        boxes += [box for pair in pairwise(ends) for box in line_boxes(axes, *pair)]
    for spot in (plot.base, plot.untuned):
        if spot is not None:
            x, y = spot.x.mean, spot.y.mean
            (left,), (right,) = reach(spot.x)
            (down,), (up,) = reach(spot.y)
            boxes.append(marker_box(axes, x, y, 7.0))
            boxes += line_boxes(axes, (x - left, y), (x + right, y)) + line_boxes(axes, (x, y - down), (x, y + up))
    return boxes
