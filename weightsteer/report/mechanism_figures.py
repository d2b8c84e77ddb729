"""The figures of how steering works: what is left of an effect when parts are frozen, and what each head writes."""

from collections.abc import Sequence
from typing import Any

from weightsteer.report import numbers
from weightsteer.report.theme import FONT_PT, Theme, new_figure, reach
from weightsteer.stats import Estimate


def draw_shares(bars: Sequence[tuple[str, Estimate | None]], label: str, theme: Theme) -> Any:
    """A bar a case with its 95 % interval, such as the share of an effect that is lost when a part is frozen.

    `label` says what is shared; 1 is all of the effect. A case without a share is said to be without.
    """
    figure, axes = new_figure(0.7 + 0.42 * len(bars))
    for place, (_, share) in enumerate(bars):
        if share is None:
            axes.annotate(
                numbers.NOT_SCORED, (0, place), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=FONT_PT - 1, color=theme.muted,
            )  # fmt: skip
            continue
        axes.barh(place, share.mean, height=0.6, color=theme.methods["weights"], zorder=2)
        axes.errorbar(share.mean, place, xerr=reach(share), color=theme.ink, linewidth=1.1, capsize=2.5, zorder=3)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.axvline(0, color=theme.ink, linewidth=0.8, zorder=4)
    axes.axvline(1, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %".replace("-", "−"))
    axes.set_xlabel(label)
    return figure


def describe_shares(bars: Sequence[tuple[str, Estimate | None]], label: str) -> str:
    """Alternative text of `draw_shares`."""
    told = [f"{name} {numbers.percent(share.mean) if share else numbers.NOT_SCORED}" for name, share in bars]
    return f"{numbers.sentence(label)} {'; '.join(told)}."


def draw_heads(values: Sequence[Sequence[float]], blocks: Sequence[int], label: str, theme: Theme) -> Any:
    """A grid with a row for each of `blocks` and a column for each head, from nothing to the largest value.

    `values` are not negative. `label` says what they are.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(min(5.0, 1.1 + 0.24 * len(blocks)))
    colors = LinearSegmentedColormap.from_list("heads", [theme.paper, theme.methods["weights"]])
    image = axes.imshow(values, cmap=colors, vmin=0, aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    # As many labels as the height holds.
    step = -(-len(blocks) // 16)
    axes.set_yticks(range(0, len(blocks), step), [str(block) for block in blocks[::step]])
    axes.set_xlabel("head")
    axes.set_ylabel("decoder block")
    figure.colorbar(image, ax=axes, label=label)
    return figure


def describe_heads(values: Sequence[Sequence[float]], blocks: Sequence[int], label: str) -> str:
    """Alternative text of `draw_heads`."""
    value, block, head = max(
        (value, block, head) for block, row in zip(blocks, values, strict=True) for head, value in enumerate(row)
    )
    return f"{numbers.sentence(label)} Largest: {numbers.number(value)} in head {head} of block {block}."
