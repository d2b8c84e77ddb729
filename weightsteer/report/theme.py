"""How the figures look: colors, markers, light and dark."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Theme(NamedTuple):
    """Colors of one appearance; `methods` after Okabe and Ito, told apart by every kind of color vision."""

    name: str
    paper: str
    ink: str
    muted: str
    grid: str
    methods: dict[str, str]
    others: tuple[str, ...]


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
    others=("#a67c00", "#3d9bd1", "#6b4fa0"),
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
    others=("#f0e442", "#8cc8f0", "#b39ddb"),
)  # fmt: skip
MARKERS = {"weights": "o", "activations": "s", "prompt": "^", "finetuned": "D", "random": "X"}
OTHER_MARKERS = ("v", "P", "p")

FONT_PT = 9.0
# 5.6 inches at 180 dots are 1,008 pixels: sharp at half a page on a dense screen, and under 100 kB.
WIDTH_IN, DPI = 5.6, 180


def method_style(theme: Theme, name: str, methods: Sequence[str]) -> tuple[str, str]:
    """Color and marker of a method; unknown ones take the spare styles in their order."""
    if name in theme.methods:
        return theme.methods[name], MARKERS[name]
    place = [other for other in methods if other not in theme.methods].index(name) % len(OTHER_MARKERS)
    return theme.others[place], OTHER_MARKERS[place]


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
        "legend.fontsize": FONT_PT - 0.5,
        "legend.handlelength": 1.6,
        "legend.columnspacing": 1.3,
        "lines.linewidth": 1.4,
        "lines.markersize": 4.5,
    }


def new_figure(height_in: float, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure of the common width and its panels, one below the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, 1, **options)


def add_legend(figure: Any, entries: Sequence[Mapping[str, Any]]) -> None:
    """A legend above the panels; each entry is the style of one line, its label included."""
    from matplotlib.lines import Line2D

    figure.legend(handles=[Line2D([], [], **entry) for entry in entries], loc="outside upper left", ncols=5)


def method_entries(theme: Theme, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Legend entries of methods."""
    styles = [(name, *method_style(theme, name, methods)) for name in methods]
    return [{"color": color, "marker": marker, "label": name} for name, color, marker in styles]
