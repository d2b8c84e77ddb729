"""How the figures look: colors, markers, light and dark."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from weightsteer.stats import Estimate


class Theme(NamedTuple):
    """Colors of one appearance; `methods` after Okabe and Ito, told apart by every kind of color vision."""

    name: str
    paper: str
    ink: str
    muted: str
    grid: str
    methods: dict[str, str]
    others: tuple[str, ...]
    above: str
    below: str


LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#1c1e21",
    muted="#5f6670",
    grid="#e6e8eb",
    methods={
        "weights": "#0072b2", "activations": "#d55e00", "prompt": "#008a64", "finetuned": "#b0588f",
        "random": "#8a9099",
    },
    others=("#a67c00", "#3d9bd1", "#6b4fa0", "#a8400a", "#1c1e21", "#00705a", "#cf86b4"),
    above="#d55e00",
    below="#0072b2",
)  # fmt: skip
DARK = Theme(
    name="dark",
    paper="#16181c",
    ink="#e8eaed",
    muted="#9aa1ab",
    grid="#2b2f36",
    methods={
        "weights": "#56b4e9", "activations": "#f08c3a", "prompt": "#2fbf95", "finetuned": "#e08fc0",
        "random": "#8a9099",
    },
    others=("#f0e442", "#8cc8f0", "#b39ddb", "#ffb98a", "#e8eaed", "#7fdcc2", "#c06a9d"),
    above="#f08c3a",
    below="#56b4e9",
)  # fmt: skip
MARKERS = {"weights": "o", "activations": "s", "prompt": "^", "finetuned": "D", "random": "X"}
# Counts without a common divisor: color, marker and dashes together repeat after 168 methods only.
OTHER_MARKERS = ("v", "P", "p", "<", "*", ">", "h", "d")
OTHER_DASHES = ((4.5, 1.4), (1.2, 1.2), (6.0, 1.4, 1.2, 1.4))


class Look(NamedTuple):
    """How a method is drawn. Its marker and dashes tell it apart where colors are not seen."""

    color: str
    marker: str
    dashes: tuple[float, ...] | None = None

    @property
    def size(self) -> float:
        """Size of the marker in points: pointed ones look smaller than they are."""
        return {"P": 5.6, "*": 7.0, "p": 5.4, "h": 5.2, "d": 5.4}.get(self.marker, 4.5)

    @property
    def line(self) -> dict[str, Any]:
        """As keyword arguments of a line."""
        return {"color": self.color, "linestyle": (0, self.dashes) if self.dashes else "-", "markersize": self.size}


FONT_PT = 9.0
_LEGEND_PT = FONT_PT - 0.5
# 5.6 inches at 180 dots are 1,008 pixels: sharp at half a page on a dense screen, and under 100 kB.
WIDTH_IN, DPI = 5.6, 180


def method_look(theme: Theme, name: str, methods: Sequence[str]) -> Look:
    """The look of a method: that of its name, else the spare ones in the order of `methods`."""
    if name in theme.methods:
        return Look(theme.methods[name], MARKERS[name])
    place = [other for other in methods if other not in theme.methods].index(name)
    color, marker = theme.others[place % len(theme.others)], OTHER_MARKERS[place % len(OTHER_MARKERS)]
    return Look(color, marker, OTHER_DASHES[place % len(OTHER_DASHES)])


def settings(theme: Theme) -> dict[str, Any]:
    """matplotlib settings; its own font, so that a figure is the same on every machine."""
    return {
        "font.family": "DejaVu Sans",
        "font.size": FONT_PT,
        "axes.titlesize": FONT_PT,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": FONT_PT,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.muted,
        "axes.linewidth": 0.6,
        "axes.facecolor": theme.paper,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": theme.grid,
        "grid.linewidth": 0.6,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelsize": FONT_PT - 1,
        "ytick.labelsize": FONT_PT - 1,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "figure.facecolor": theme.paper,
        "legend.frameon": False,
        "legend.fontsize": _LEGEND_PT,
        "legend.handlelength": 2.1,
        "legend.columnspacing": 1.3,
        "lines.linewidth": 1.4,
        "lines.markersize": 4.5,
    }


def new_figure(
    height_in: float, entries: Sequence[Mapping[str, Any]] = (), shape: tuple[int, int] = (1, 1), **options: Any
) -> tuple[Any, Any]:
    """A figure of the common width, with rows and columns of panels, under a legend of `entries`.

    Each entry is the style of one line, its label included. The legend adds to the height, so that it takes no room
    from the data.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = _legend_columns([entry["label"] for entry in entries])
    rows = math.ceil(len(entries) / columns)
    line_in = 1.65 * _LEGEND_PT / 72
    figure = Figure(figsize=(WIDTH_IN, height_in + max(0, rows - 1) * line_in), dpi=DPI, layout="constrained")
    if entries:
        handles = [Line2D([], [], **entry) for entry in entries]
        figure.legend(handles=handles, loc="outside upper left", ncols=columns)
    return figure, figure.subplots(*shape, **options)


def _legend_columns(labels: Sequence[str]) -> int:
    """As many columns as fit: a column is as wide as its longest label, and is filled before the next."""
    for columns in range(min(5, len(labels)), 1, -1):
        rows, longer = divmod(len(labels), columns)  # matplotlib gives the first columns one entry more
        starts = [column * rows + min(column, longer) for column in range(columns + 1)]
        longest = [max(map(len, labels[start:end])) for start, end in itertools.pairwise(starts)]
        # DejaVu Sans: a letter is 0.6 em wide on average; handle and spaces take 4.2 em.
        if sum(0.6 * letters + 4.2 for letters in longest) * _LEGEND_PT / 72 <= WIDTH_IN:
            return columns
    return 1


def method_entries(theme: Theme, names: Sequence[str], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Legend entries of the methods `names` among all `methods` of a report."""
    looks = [(name, method_look(theme, name, methods)) for name in names]
    return [{**look.line, "marker": look.marker, "label": name} for name, look in looks]


def reach(estimate: Estimate) -> list[list[float]]:
    """An interval as matplotlib takes it, distances below and above the mean; of no width where a bound is missing."""
    distances = (estimate.mean - estimate.low, estimate.high - estimate.mean)
    return [[distance if distance > 0 else 0.0] for distance in distances]
