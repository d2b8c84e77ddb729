"""What each of several vectors does to each of several metrics: a table with tinted cells, and the same as a figure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from weightsteer.report import numbers
from weightsteer.report.findings import metric, part, read_estimate
from weightsteer.report.theme import FONT_PT, WIDTH_IN, Theme, new_figure
from weightsteer.stats import Estimate


class Cell(NamedTuple):
    """A change, and how strong it is among those of its metric, from -1 to 1."""

    change: Estimate | None
    share: float

    @property
    def text(self) -> str:
        return numbers.difference(self.change)

    @property
    def interval(self) -> str:
        return "" if self.change is None else numbers.interval(self.change)

    @property
    def significant(self) -> bool:
        return numbers.excludes_zero(self.change)


class Matrix(NamedTuple):
    """A row per vector, a column per metric."""

    metrics: list[str]
    rows: list[tuple[str, list[Cell]]]


def matrix(report: Mapping[str, Any]) -> Matrix | None:
    """The matrix of the report; None where there is none."""
    found = part(report, "interference")
    if not found.get("matrix"):
        return None
    changes = [[read_estimate(value) for value in row] for row in found["matrix"]]
    # Metrics have units of their own, so each column has its own scale.
    largest = [max((abs(c.mean) for c in column if c), default=0.0) or 1.0 for column in zip(*changes, strict=True)]
    rows = [
        (label, [Cell(c, c.mean / top if c else 0.0) for c, top in zip(row, largest, strict=True)])
        for label, row in zip(found["vectors"], changes, strict=True)
    ]
    return Matrix([metric(report, key).full for key in found["metrics"]], rows)


def describe(report: Mapping[str, Any]) -> tuple[str, str] | None:
    """Alternative text and caption of the figure; None when there is nothing to draw."""
    if (shown := matrix(report)) is None:
        return None
    told = [
        f"{label}: " + ", ".join(f"{name} {cell.text}" for name, cell in zip(shown.metrics, cells, strict=True))
        for label, cells in shown.rows
    ]
    k = part(report, "interference").get("k")
    at = "" if k is None else f" at k = {numbers.strength(k)}"
    alt = f"Change of each metric from the base under each vector{at}. {'; '.join(told)}."
    return alt, (
        f"What each vector (rows) does{at} to each metric (columns), as a change from the base. Color is "
        "relative to the largest change of a column; bold where the 95 % interval excludes zero."
    )


def draw(report: Mapping[str, Any], theme: Theme) -> Any:
    """The heat map, with its numbers."""
    from matplotlib.colors import LinearSegmentedColormap

    shown = matrix(report)
    assert shown is not None
    figure, axes = new_figure(0.8 + 0.42 * len(shown.rows))
    colors = LinearSegmentedColormap.from_list("change", [theme.below, theme.paper, theme.above])
    shares = [[cell.share for cell in cells] for _, cells in shown.rows]
    # Three quarters of the range leave every color light (or, on dark paper, dark) enough to write on.
    axes.imshow(shares, cmap=colors, vmin=-1 / 0.6, vmax=1 / 0.6, aspect="auto")
    for down, (_, cells) in enumerate(shown.rows):
        for across, cell in enumerate(cells):
            axes.text(
                across, down, cell.text, ha="center", va="center", color=theme.ink, fontsize=FONT_PT,
                fontweight="bold" if cell.significant else "normal",
            )  # fmt: skip
    axes.set_yticks(range(len(shown.rows)), [label for label, _ in shown.rows])
    letters = int(WIDTH_IN * 72 / (0.75 * FONT_PT) / (len(shown.metrics) + 1.5))
    axes.set_xticks(range(len(shown.metrics)), [_wrapped(name, letters) for name in shown.metrics])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure


def _wrapped(name: str, letters: int) -> str:
    """A metric's name on two lines where it is too long for its column."""
    return name if len(name) <= letters else name.replace(".", ".\n", 1)
