"""The figures of the study `monitoring`: all cosines, the course of every run, and how well they are told apart."""

from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

from weightsteer.monitor.detect import bands
from weightsteer.monitor.figures import draw_matrix
from weightsteer.report.document import Figure
from weightsteer.report.theme import MARKERS, Theme, new_figure
from weightsteer.studies._monitoring_findings import (
    BEHAVIOR,
    COSINE,
    LOSS,
    OTHER,
    OWN,
    Findings,
    as_runs,
    cosine_curve,
    mean,
    signed,
    task_name,
)
from weightsteer.studies.monitoring import Watched

# Color and marker of a method of the other reports; dashes, as lines at 1 lie on one another.
LOOKS = {COSINE: ("weights", "-"), BEHAVIOR: ("activations", "--"), LOSS: ("prompt", ":")}


def matrix_figure(found: Findings) -> Figure:
    """The cosines of all vectors, and of the first run of each kind, with one another."""
    vectors = [name for name in found.matrix.names if name.startswith("w ")]
    matrix = found.matrix.among([*vectors, *(task_name(w.kind, w.seed) for w in found.looked if w.seed == 0)])
    shown = replace(matrix, names=[name.removesuffix(", seed 0") for name in matrix.names])
    pairs = [(shown.cosine(a, b), a, b) for a, b in combinations(shown.names, 2)]
    nearest, farthest = max(pairs), min(pairs)
    alt = (
        f"Cosines of {len(shown.names)} vectors and fine-tunes with one another. Nearest: {nearest[1]} and "
        f"{nearest[2]}, {signed(nearest[0])}; least alike: {farthest[1]} and {farthest[2]}, {signed(farthest[0])}."
    )
    caption = "Cosines of the vectors (w) and of the first fine-tune of each kind (τ), over all parameters."
    return Figure("matrix", caption, alt, partial(draw_matrix, shown))


CURVES = (
    "Cosine of every run with each vector. Dotted: what the controls keep below. Solid: careless advice in the "
    "vector's own domain; dashed: in another."
)


def curves_alt(found: Findings) -> str:
    """Where the curves end, in words."""
    ends = []
    for domain in found.domains:
        of = {own: [_end(w, domain) for w in found.looked if w.is_careless and (w.kind.endswith(f" {domain}") == own)]
              for own in (True, False)}  # fmt: skip
        calm = [_end(w, domain) for w in found.looked if not w.is_careless]
        ends.append(
            f"{domain}: own domain {signed(mean(of[True]))}, other domains {signed(mean(of[False]))}, controls "
            f"{signed(mean(calm))}"
        )
    return f"Mean cosine at the end with each vector. {'; '.join(ends)}."


def _end(watched: Watched, domain: str) -> float:
    return list(cosine_curve(watched, domain).values())[-1]


def draw_curves(found: Findings, theme: Theme) -> Any:
    """A panel for each vector, a line for each run."""
    styles = {
        "careless, own domain": {"color": theme.above},
        "careless, another domain": {"color": theme.above, "linestyle": (0, (4.5, 1.4))},
        "good advice": {"color": theme.below},
        "other controls": {"color": theme.muted},
    }
    entries = [{**style, "label": label} for label, style in styles.items()]
    entries.append({"color": theme.ink, "linestyle": ":", "label": "limit of the controls"})
    figure, panels = new_figure(
        0.5 + 1.6 * len(found.domains), entries, (len(found.domains), 1), sharex=True, squeeze=False
    )
    for axes, domain in zip(panels[:, 0], found.domains, strict=True):
        for watched in found.looked:
            curve = cosine_curve(watched, domain)
            style = styles[_style(watched, domain)]
            axes.plot([share * found.steps for share in curve], list(curve.values()), linewidth=1.1, **style)
        controls = [w for w in found.looked if not w.is_careless]
        limits = bands(as_runs(controls, partial(cosine_curve, domain=domain)), found.settings.sigma)
        axes.plot(
            [share * found.steps for share in limits], [band.mean + band.reach for band in limits.values()],
            color=theme.ink, linestyle=":", linewidth=1.3,
        )  # fmt: skip
        axes.axhline(0, color=theme.muted, linewidth=0.7, zorder=1)
        axes.set_title(f"w {domain}")
        axes.set_ylabel("cosine")
    _at_steps(panels[-1, 0])
    return figure


def _style(watched: Watched, domain: str) -> str:
    if watched.is_careless:
        return "careless, own domain" if watched.kind == f"careless {domain}" else "careless, another domain"
    return "good advice" if watched.kind.startswith("good ") else "other controls"


def draw_auc(found: Findings, theme: Theme) -> Any:
    """A panel for runs in the vector's domain and one for the others, a line for each detector."""
    looks = {
        name: {"color": theme.methods[look], "marker": MARKERS[look], "linestyle": dashes}
        for name, (look, dashes) in LOOKS.items()
    }
    figure, panels = new_figure(
        2.6, [{**look, "label": name} for name, look in looks.items()], (1, 2), sharey=True, squeeze=False
    )
    for axes, runs in zip(panels[0], (OWN, OTHER), strict=True):
        for name, look in looks.items():
            auc = found.pooled(runs, name).auc
            axes.plot([share * found.steps for share in auc], list(auc.values()), **look)
        axes.axhline(0.5, color=theme.muted, linewidth=0.7, zorder=1)
        axes.set_title(f"runs in {'the vector’s own domain' if runs == OWN else 'other domains'}")
        _at_steps(axes)
    panels[0, 0].set_ylabel("careless above control")
    return figure


def _at_steps(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("optimizer step")
