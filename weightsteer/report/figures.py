"""The figures of a report as PNG, each drawn for light and for dark paper and told in words."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

from weightsteer.report import equal_kl, interference, numbers, pareto
from weightsteer.report.findings import chosen_method, curve, methods, part, primary, strengths
from weightsteer.report.theme import (
    DARK,
    DPI,
    FONT_PT,
    LIGHT,
    Look,
    Theme,
    method_entries,
    method_look,
    new_figure,
    settings,
)  # fmt: skip
from weightsteer.report.tradeoff import describe_tradeoff, draw_tradeoff

Draw = Callable[[Mapping[str, Any], Theme], Any]

# Intervals of more methods than these would lie on top of one another; the tables have them.
_FEW = 5
_CRUSHED = 6


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
    for name, draw, words in _figures(report):
        if words is not None:
            drawn[name] = picture(name, partial(draw, report), *words)
    return drawn


def picture(name: str, draw: Callable[[Theme], Any], alt: str, caption: str) -> Picture:
    """A figure drawn for both kinds of paper."""
    return Picture(name, alt, caption, png(draw, LIGHT), png(draw, DARK))


def png(draw: Callable[[Theme], Any], theme: Theme) -> bytes:
    """A figure as a PNG."""
    from matplotlib import style

    with style.context(["default", settings(theme)]):
        image = BytesIO()
        draw(theme).savefig(image, format="png", dpi=DPI, metadata={"Software": None})
    return image.getvalue()


def _draw_effects(report: Mapping[str, Any], theme: Theme) -> Any:
    evals, drawn = _steered_evals(report), methods(report)
    figure, panels = new_figure(
        max(2.6, 0.7 + 1.4 * len(evals)), method_entries(theme, drawn, drawn), (len(evals), 1), sharex=True,
        squeeze=False,
    )  # fmt: skip
    k_chosen = part(report, "choice").get("k")
    for axes, name in zip(panels[:, 0], evals, strict=True):
        metric = primary(report, name)
        for method in reversed(methods(report, name)):
            points, main = curve(report, metric, method), method == chosen_method(report)
            look = method_look(theme, method, drawn)
            ks, means = [k for k, _ in points], [change.mean for _, change in points]
            low, high = [change.low for _, change in points], [change.high for _, change in points]
            if main or len(drawn) <= _FEW:
                axes.fill_between(ks, low, high, color=look.color, alpha=0.22 if main else 0.1, linewidth=0, zorder=2)
            axes.plot(
                ks, means, **look.line, marker=look.marker, markeredgecolor=theme.paper, markeredgewidth=0.4,
                linewidth=1.7 if main else 1.1, zorder=3 + main,
            )  # fmt: skip
        axes.axhline(0, color=theme.muted, linewidth=0.7, zorder=1)
        if k_chosen is not None:
            axes.axvline(k_chosen, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1.5)
        axes.set_title(name if metric.name == name else f"{name}: {metric.name}")
    if (linear := _linear_reach(report)) is not None:
        panels[-1, 0].set_xscale("symlog", base=2, linthresh=linear)
        panels[-1, 0].xaxis.set_major_formatter(lambda k, _: numbers.strength(k))
    panels[-1, 0].set_xlabel("k")
    figure.supylabel("change from base", fontsize=FONT_PT)
    return figure


def _linear_reach(report: Mapping[str, Any]) -> numbers.Real | None:
    """Up to which k the axis is linear; None for an axis that is linear throughout.

    Strengths of different methods are in different units: where one method's largest is many times another's, a linear
    axis would crush the other into a line.
    """
    reach = [max(map(abs, ks)) for method in methods(report) if (ks := _ks(report, method))]
    if max(reach) <= _CRUSHED * min(reach):
        return None
    return min(abs(k) for method in methods(report) for k in _ks(report, method))


def _ks(report: Mapping[str, Any], method: str) -> set[numbers.Real]:
    return {k for name in part(report, "evals") for k in strengths(report, name, method)} - {0}


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
    banded = "" if len(methods(report)) <= _FEW else f" of {chosen_method(report)}"
    caption = (
        f"Effect against k: change from the base with 95 % intervals{banded} as bands. k counts units of each "
        "method's own vector, so methods are compared by what they cost, not at equal k."
    )
    dashed = " Dashed: the chosen k." if part(report, "choice").get("k") is not None else ""
    linear = _linear_reach(report)
    scale = "" if linear is None else f" The axis of k doubles at every mark beyond ±{linear:g}."
    return alt, caption + scale + dashed


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
    looks = {"positive": Look(theme.others[0], "o"), "negative": Look(theme.others[2], "s")}
    return _draw_losses(part(report, "training"), looks, theme)


def _draw_task(report: Mapping[str, Any], theme: Theme) -> Any:
    return _draw_losses({"task": part(part(report, "task"), "training")}, {}, theme)


def _draw_losses(runs: Mapping[str, Any], looks: Mapping[str, Look], theme: Theme) -> Any:
    """Loss against step of some fine-tunes, in training and in validation."""
    spare = Look(theme.ink, "^")
    entries = [{"color": look.color, "marker": look.marker, "label": name} for name, look in looks.items()]
    lines = [{"color": theme.muted, "linewidth": 1.7, "label": "validation"},
             {"color": theme.muted, "linewidth": 0.9, "alpha": 0.6, "label": "training"}]  # fmt: skip
    figure, axes = new_figure(2.7, [*(entry for entry in entries if entry["label"] in runs), *lines])
    for name, run in runs.items():
        color, marker, _ = looks.get(name, spare)
        train, validation = run.get("train_loss") or [], run.get("validation_loss") or []
        axes.plot([step for step, _ in train], [loss for _, loss in train], color=color, linewidth=1, alpha=0.55)
        axes.plot([step for step, _ in validation], [loss for _, loss in validation], color=color, marker=marker,
                  linewidth=1.7)  # fmt: skip
        kept = [point for point in validation if point[0] == run.get("kept_step")]
        for step, loss in kept:
            axes.plot(step, loss, "o", markersize=11, mfc="none", mec=theme.ink, mew=1.3)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss, nats per token")
    return figure


def _describe_training(report: Mapping[str, Any]) -> tuple[str, str] | None:
    told = _losses_told(part(report, "training"))
    if told is None:
        return None
    return f"Training and validation loss of the two fine-tunes. {told}.", "The two fine-tunes. Ring: the kept step."


def _describe_task(report: Mapping[str, Any]) -> tuple[str, str] | None:
    told = _losses_told({"task": part(part(report, "task"), "training")})
    if told is None:
        return None
    return f"Training and validation loss of the task fine-tune. {told}.", "The task fine-tune. Ring: the kept step."


def _losses_told(runs: Mapping[str, Any]) -> str | None:
    """First and last validation loss of each run; None where no loss was recorded at all."""
    if not any(run.get("train_loss") or run.get("validation_loss") for run in runs.values()):
        return None
    told = []
    for name, run in runs.items():
        if validation := run.get("validation_loss") or []:
            (_, first), (_, last) = validation[0], validation[-1]
            told.append(f"{name} validation loss {numbers.number(first)} to {numbers.number(last)}")
    return "; ".join(told) or "No validation loss was recorded"


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


def _figures(report: Mapping[str, Any]) -> Iterator[tuple[str, Draw, tuple[str, str] | None]]:
    """Name of every figure, how it is drawn, and its words, which are none where it has no data."""
    yield "tradeoff", draw_tradeoff, describe_tradeoff(report)
    yield "effects", _draw_effects, _describe_effects(report)
    for number, plot in enumerate(pareto.plots(report), start=1):
        yield f"plot-{number}", partial(pareto.draw_plot, plot=plot), pareto.describe_plot(plot)
    yield "equal-kl", equal_kl.draw, equal_kl.describe(report)
    yield "interference", interference.draw, interference.describe(report)
    yield "vector-norms", _draw_norms, _describe_norms(report)
    yield "training", _draw_training, _describe_training(report)
    yield "task-training", _draw_task, _describe_task(report)
    yield "activation-block", _draw_block, _describe_block(report)
