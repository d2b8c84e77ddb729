"""The main figure: what steering buys against what it costs, one curve per method."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from weightsteer.report import numbers
from weightsteer.report.findings import Metric, chosen_method, curve, guards, methods, part, target
from weightsteer.report.labels import Box, Label, line_boxes, marker_box, place_labels
from weightsteer.report.theme import FONT_PT, Theme, method_entries, method_look, new_figure, reach
from weightsteer.stats import Estimate

# The chosen method's costs take at least this share of the height, however badly another method breaks.
_LEAST_SHARE = 1 / 2


class Point(NamedTuple):
    """One strength of one method: its change of behavior and of capability."""

    k: numbers.Real
    behavior: Estimate
    capability: Estimate


class Tradeoff(NamedTuple):
    """What the figure shows."""

    behavior: Metric
    capability: Metric
    allowed: numbers.Real | None
    methods: list[str]
    curves: dict[str, list[Point]]
    chosen: tuple[str, numbers.Real | None]
    goal: str | None


def pick_tradeoff(report: Mapping[str, Any]) -> Tradeoff | None:
    """The figure's data; None unless a steered cell is scored on a behavior and on a capability eval."""
    behavior, kept, choice = target(report), guards(report), part(report, "choice")
    if behavior is None or not kept:
        return None
    capability, allowed = kept[0]
    curves = {}
    for method in methods(report):
        across, up = dict(curve(report, behavior, method)), dict(curve(report, capability, method))
        points = [Point(k, across[k], up[k]) for k in sorted(across.keys() & up.keys())]
        if any(point.k for point in points):
            curves[method] = points
    if not curves:
        return None
    chosen = (chosen_method(report), choice.get("k"))
    return Tradeoff(behavior, capability, allowed, methods(report), curves, chosen, choice.get("goal"))


def describe_tradeoff(report: Mapping[str, Any]) -> tuple[str, str] | None:
    """Alternative text and caption; None when there is nothing to draw."""
    if (shown := pick_tradeoff(report)) is None:
        return None
    told = [
        f"{method}: "
        + ", ".join(
            f"k {numbers.strength(point.k)} at ({numbers.difference(point.behavior)}, "
            f"{numbers.difference(point.capability)})"
            for point in points
            if point.k
        )
        for method, points in shown.curves.items()
    ]
    alt = (
        f"Change in {shown.behavior.label} across, change in {shown.capability.label} up, one curve per "
        f"method. {'; '.join(told)}."
    )
    caption = (
        f"What steering buys and what it costs: change in {shown.behavior.label} against change in "
        f"{shown.capability.label}, one curve per method through the base. Numbers beside points are k; bars "
        "are 95 % intervals of the paired difference from the base."
    )
    if shown.allowed is not None:
        caption += f" Dashed: the allowed loss of {shown.allowed:g}."
    if _floor(shown) is not None:
        caption += " Arrows at the lower edge: points further down, with their value."
    return alt, caption


def draw_tradeoff(report: Mapping[str, Any], theme: Theme) -> Any:
    """The figure."""
    shown = pick_tradeoff(report)
    assert shown is not None
    figure, axes = new_figure(4.9, method_entries(theme, list(shown.curves), shown.methods))
    _draw_frame(axes, shown, theme)
    # The first method is drawn last, above the others.
    for method, points in reversed(shown.curves.items()):
        _draw_curve(axes, shown, method, points, theme)
    axes.plot(0, 0, "o", color=theme.ink, markersize=6, zorder=8)
    _set_limits(axes, shown)
    figure.draw_without_rendering()
    place_labels(axes, _labels(shown, theme), _obstacles(axes, shown), _markers(shown))
    return figure


def _draw_frame(axes: Any, shown: Tradeoff, theme: Theme) -> None:
    axes.axhline(0, color=theme.muted, linewidth=0.7, zorder=1)
    axes.axvline(0, color=theme.muted, linewidth=0.7, zorder=1)
    wanted = {"decrease": "   (← wanted)", "increase": "   (wanted →)"}.get(shown.goal or "", "")
    axes.set_xlabel(f"change in {shown.behavior.label}{wanted}")
    axes.set_ylabel(f"change in {shown.capability.label}")
    if shown.allowed is not None:
        axes.axhline(-shown.allowed, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"allowed loss {shown.allowed:g}", (0, -shown.allowed), xycoords=axes.get_yaxis_transform(),
            xytext=(3, -2), textcoords="offset points", va="top", fontsize=FONT_PT - 1.5, color=theme.muted,
        )  # fmt: skip


def _draw_curve(axes: Any, shown: Tradeoff, method: str, points: list[Point], theme: Theme) -> None:
    look = method_look(theme, method, shown.methods)
    main, floor = method == shown.chosen[0], _floor(shown)
    axes.plot(
        [point.behavior.mean for point in points], [_height(point, floor) for point in points],
        **look.line, linewidth=1.8 if main else 1.1, alpha=1 if main else 0.75, zorder=3 + main,
    )  # fmt: skip
    for point in points:
        if point.k == 0:
            continue
        if _below(point, floor):
            axes.plot(point.behavior.mean, floor, "v", color=look.color, markersize=6, clip_on=False, zorder=6)
            continue
        at = (point.behavior.mean, point.capability.mean)
        axes.errorbar(
            *at, xerr=reach(point.behavior), yerr=reach(point.capability), color=look.color, marker=look.marker,
            ms=look.size, elinewidth=0.8, markeredgecolor=theme.paper, markeredgewidth=0.5, alpha=1 if main else 0.8,
            zorder=4 + main,
        )  # fmt: skip
        if (method, point.k) == shown.chosen:
            axes.plot(*at, "o", markersize=12, mfc="none", mec=theme.ink, mew=1.4, zorder=8)


def _floor(shown: Tradeoff) -> float | None:
    """The lowest capability shown; None where everything fits without crushing the chosen method's curve."""
    own = [point.capability.low for point in shown.curves.get(shown.chosen[0], [])]
    lowest_own = min([*own, -(shown.allowed or 0)])
    lowest = min(point.capability.mean for points in shown.curves.values() for point in points)
    floor = lowest_own / _LEAST_SHARE
    return floor if own and lowest < floor < 0 else None


def _below(point: Point, floor: float | None) -> bool:
    return floor is not None and point.capability.mean < floor


def _height(point: Point, floor: float | None) -> float:
    """Where a point stands, at the edge when it is off the scale."""
    return point.capability.mean if floor is None else max(point.capability.mean, floor)


def _set_limits(axes: Any, shown: Tradeoff) -> None:
    axes.margins(0.07)
    axes.autoscale_view()
    if (floor := _floor(shown)) is not None:
        top = max(point.capability.high for points in shown.curves.values() for point in points)
        axes.set_ylim(floor, top + 0.05 * (top - floor))


def _labels(shown: Tradeoff, theme: Theme) -> list[Label]:
    """The base and the chosen k, then what is off the scale, then each method's k from the ends inwards."""
    first, rest = [Label(0.0, 0.0, "base", theme.ink, True)], []
    floor = _floor(shown)
    for method, points in shown.curves.items():
        color = method_look(theme, method, shown.methods).color
        for point in sorted(points, key=lambda point: -abs(point.k)):
            at, k = (point.behavior.mean, point.capability.mean), numbers.strength(point.k)
            if _below(point, floor):
                first.append(
                    Label(
                        at[0],
                        _height(point, floor),
                        f"{k} at {numbers.difference(point.capability)}",
                        color,
                        True,
                    )
                )
            elif (method, point.k) == shown.chosen:
                first.insert(1, Label(*at, f"k = {k} chosen", theme.ink, True))
            elif point.k:
                rest.append(Label(*at, k, color))
    return first + rest


def _markers(shown: Tradeoff) -> list[tuple[float, float]]:
    floor = _floor(shown)
    return [(point.behavior.mean, _height(point, floor)) for points in shown.curves.values() for point in points]


def _obstacles(axes: Any, shown: Tradeoff) -> list[Box]:
    """Markers, interval bars and curves."""
    boxes = [marker_box(axes, 0.0, 0.0, 7.0)]
    if shown.allowed is not None:
        left, right = axes.get_xlim()
        boxes += line_boxes(axes, (left, -shown.allowed), (right, -shown.allowed))
    for points in shown.curves.values():
        ends = [(point.behavior.mean, _height(point, _floor(shown))) for point in points]
        boxes += [box for pair in pairwise(ends) for box in line_boxes(axes, *pair)]
        for point, (x, y) in zip(points, ends, strict=True):
            boxes.append(marker_box(axes, x, y, 6.0))
            boxes += line_boxes(axes, (point.behavior.low, y), (point.behavior.high, y))
            boxes += line_boxes(axes, (x, point.capability.low), (x, point.capability.high))
    return boxes
