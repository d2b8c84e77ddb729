"""The figures of a report as PNG, each drawn for light and for dark paper and told in words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from weightsteer.report import numbers
from weightsteer.report.findings import curve, methods, part, primary, strengths
from weightsteer.report.theme import (
    DARK,
    DPI,
    FONT_PT,
    LIGHT,
    Theme,
    add_legend,
    method_entries,
    method_style,
    new_figure,
    settings,
)  # fmt: skip
from weightsteer.report.tradeoff import describe_tradeoff, draw_tradeoff


@dataclass(frozen=True)
class Picture:
    """One figure, ready to be embedded or written."""

    name: str
    alt: str
    caption: str
    light: bytes
    dark: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as the PNG's header has them."""
        return int.from_bytes(self.light[16:20]), int.from_bytes(self.light[20:24])


def draw_figures(report: Mapping[str, Any]) -> dict[str, Picture]:
    """Every figure the report has data for, by name."""
    drawn = {}
    for name, (draw, describe) in _FIGURES.items():
        described = describe(report)
        if described is not None:
            light, dark = (_png(draw, report, theme) for theme in (LIGHT, DARK))
            drawn[name] = Picture(name, *described, light, dark)
    return drawn


def _png(draw: Callable[[Mapping[str, Any], Theme], Any], report: Mapping[str, Any], theme: Theme) -> bytes:
    from matplotlib import style

    with style.context(["default", settings(theme)]):
        image = BytesIO()
        draw(report, theme).savefig(image, format="png", dpi=DPI, metadata={"Software": None})
    return image.getvalue()


def _draw_effects(report: Mapping[str, Any], theme: Theme) -> Any:
    evals = _steered_evals(report)
    figure, panels = new_figure(max(2.6, 0.7 + 1.4 * len(evals)), len(evals), sharex=True, squeeze=False)
    k_chosen = part(report, "choice").get("k")
    for axes, name in zip(panels[:, 0], evals, strict=True):
        metric = primary(report, name)
        for method in reversed(methods(report, name)):
            points = curve(report, metric, method)
            color, marker = method_style(theme, method, methods(report))
            ks, means = [k for k, _ in points], [change.mean for _, change in points]
            low, high = [change.low for _, change in points], [change.high for _, change in points]
            main = method == "weights"
            axes.fill_between(ks, low, high, color=color, alpha=0.22 if main else 0.1, linewidth=0, zorder=2)
            axes.plot(
                ks, means, color=color, marker=marker, markeredgecolor=theme.paper, markeredgewidth=0.4,
                linewidth=1.7 if main else 1.1, zorder=3 + main,
            )  # fmt: skip
        axes.axhline(0, color=theme.muted, linewidth=0.7, zorder=1)
        if k_chosen is not None:
            axes.axvline(k_chosen, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1.5)
        axes.set_title(name if metric.name == name else f"{name}: {metric.name}")
    panels[-1, 0].set_xlabel("k")
    figure.supylabel("change from base", fontsize=FONT_PT)
    add_legend(figure, method_entries(theme, methods(report)))
    return figure


def _steered_evals(report: Mapping[str, Any]) -> list[str]:
    return [name for name in part(report, "evals") if any(strengths(report, name))]


def _describe_effects(report: Mapping[str, Any]) -> tuple[str, str] | None:
    evals = _steered_evals(report)
    if not evals:
        return None
    ends = []
    for name in evals:
        for method in methods(report, name):
            points = curve(report, primary(report, name), method)
            if points:
                (first, low), (last, high) = points[0], points[-1]
                ends.append(
                    f"{name} by {method}: {numbers.difference(low)} at k {numbers.strength(first)} to "
                    f"{numbers.difference(high)} at k {numbers.strength(last)}"
                )
    alt = f"Change from the base against k, one panel per eval. {'; '.join(ends)}."
    caption = (
        "Effect against k: change from the base with 95 % intervals as bands. k counts units of each "
        "method's own vector, so methods are compared by what they cost, not at equal k."
    )
    dashed = " Dashed: the chosen k." if part(report, "choice").get("k") is not None else ""
    return alt, caption + dashed


def _draw_norms(report: Mapping[str, Any], theme: Theme) -> Any:
    by_block = part(report, "vector")["norm_by_block"]
    figure, axes = new_figure(2.3)
    axes.bar(
        [block for block, _ in by_block],
        [norm for _, norm in by_block],
        width=0.75,
        color=theme.methods["weights"],
    )
    axes.grid(axis="x", visible=False)
    axes.margins(x=0.01)
    axes.set_xlabel("decoder block")
    axes.set_ylabel("norm of the change")
    return figure


def _describe_norms(report: Mapping[str, Any]) -> tuple[str, str] | None:
    by_block = part(report, "vector").get("norm_by_block")
    if not by_block:
        return None
    block, norm = max(by_block, key=lambda pair: pair[1])
    most = f"largest {numbers.number(norm)} in block {block}"
    alt = f"Norm of the weight vector in each of {len(by_block)} decoder blocks; {most}."
    return alt, "Where the vector acts: its norm in each decoder block, at k = 1."


def _draw_training(report: Mapping[str, Any], theme: Theme) -> Any:
    figure, axes = new_figure(2.7)
    sides = {"positive": (theme.others[0], "o"), "negative": (theme.others[2], "s")}
    for side, training in part(report, "training").items():
        color, marker = sides.get(side, (theme.ink, "^"))
        train, validation = training.get("train_loss") or [], training.get("validation_loss") or []
        axes.plot([step for step, _ in train], [loss for _, loss in train], color=color, linewidth=1, alpha=0.55)
        axes.plot(
            [step for step, _ in validation],
            [loss for _, loss in validation],
            color=color,
            marker=marker,
            linewidth=1.7,
        )
        kept = [point for point in validation if point[0] == training.get("kept_step")]
        for step, loss in kept:
            axes.plot(step, loss, "o", markersize=11, mfc="none", mec=theme.ink, mew=1.3)
    shown = [(side, *style) for side, style in sides.items() if side in part(report, "training")]
    entries = [{"color": color, "marker": marker, "label": side} for side, color, marker in shown]
    lines = [{"color": theme.muted, "linewidth": 1.7, "label": "validation"},
             {"color": theme.muted, "linewidth": 0.9, "alpha": 0.6, "label": "training"}]  # fmt: skip
    add_legend(figure, [*entries, *lines])
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss, nats per token")
    return figure


def _describe_training(report: Mapping[str, Any]) -> tuple[str, str] | None:
    sides = part(report, "training")
    if not any(side.get("train_loss") or side.get("validation_loss") for side in sides.values()):
        return None
    told = []
    for name, side in sides.items():
        validation = side.get("validation_loss") or []
        if validation:
            (_, first), (_, last) = validation[0], validation[-1]
            told.append(f"{name} validation loss {numbers.number(first)} to {numbers.number(last)}")
    known = "; ".join(told) or "No validation loss was recorded"
    alt = f"Training and validation loss of the two fine-tunes. {known}."
    return alt, "The two fine-tunes. Ring: the step that was kept."


def _draw_block(report: Mapping[str, Any], theme: Theme) -> Any:
    activation = part(report, "activation")
    figure, axes = new_figure(2.1)
    color = theme.methods["activations"]
    blocks, scores = zip(*activation["validation"], strict=True)
    axes.plot(blocks, scores, color=color, marker="s", markersize=3.5)
    axes.axvline(activation["block"], color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_xlabel("decoder block")
    axes.set_ylabel("validation score")
    return figure


def _describe_block(report: Mapping[str, Any]) -> tuple[str, str] | None:
    activation = part(report, "activation")
    if not activation.get("validation"):
        return None
    block = activation.get("block")
    count = len(activation["validation"])
    alt = f"Validation score of the activation vector in each of {count} blocks; block {block} was taken."
    return (
        alt,
        f"The activation baseline was given the block that does best on validation pairs: {block} (dashed).",
    )


_FIGURES = {
    "tradeoff": (draw_tradeoff, describe_tradeoff),
    "effects": (_draw_effects, _describe_effects),
    "vector-norms": (_draw_norms, _describe_norms),
    "training": (_draw_training, _describe_training),
    "activation-block": (_draw_block, _describe_block),
}
