"""Methods at the same divergence from the base: a table, a dot plot, and what they say in plain words."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from weightsteer.report import numbers
from weightsteer.report.compared import repeated
from weightsteer.report.findings import Metric, metric, part, read_estimate, target
from weightsteer.report.theme import FONT_PT, Theme, new_figure, reach
from weightsteer.stats import Estimate

SIGNIFICANT = 0.05
_FURTHER = "moved {} further"
# A row whose divergence is further than this from the target was measured, not calibrated.
_NEAR = 0.25


class Difference(NamedTuple):
    """A method against the reference method at the same sign, on one metric."""

    estimate: Estimate | None
    p_adjusted: float | None

    @property
    def significant(self) -> bool:
        return self.p_adjusted is not None and self.p_adjusted < SIGNIFICANT

    @property
    def texts(self) -> tuple[str, str]:
        """The difference with its interval, and its p-value."""
        p = self.p_adjusted
        if p is None:
            return numbers.change(self.estimate), "p not given"
        shown = "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"
        return numbers.change(self.estimate), f"p {shown}"


class Row(NamedTuple):
    """One method at its own k; `changes` and `differences` stand in the order of the table's metrics."""

    method: str
    k: numbers.Real | None
    kl: numbers.Real | None
    note: str
    reference: bool
    changes: list[Estimate | None]
    differences: list[Difference | None]

    @property
    def nats(self) -> str:
        """The divergence it reached."""
        return "not finite" if self.kl is None else numbers.number(self.kl)

    @property
    def cells(self) -> list[tuple[str, Difference | None]]:
        """Per metric: the change from the base, and the difference from the reference method."""
        return list(zip(map(numbers.change, self.changes), self.differences, strict=True))


class Table(NamedTuple):
    """All methods steered one way."""

    sign: int
    title: str
    metrics: list[Metric]
    rows: list[Row]


def tables(report: Mapping[str, Any]) -> list[Table]:
    """One table for k < 0 and one for k > 0, where there are rows."""
    found = part(report, "equal_kl")
    listed = found.get("rows") or []
    named = sorted(dict.fromkeys(key for row in listed for key in row.get("change") or {}), key=_place(report))
    metrics = [metric(report, key) for key in named]
    return [
        Table(
            sign, "k below 0" if sign < 0 else "k above 0", metrics,
            [_row(row, named, found.get("reference")) for row in listed if row["sign"] == sign],
        )
        for sign in sorted({row["sign"] for row in listed})
    ]  # fmt: skip


def _place(report: Mapping[str, Any]) -> Callable[[str], int]:
    """What was to be moved comes first, then what was to be kept, then the rest in the report's order."""

    def place(key: str) -> int:
        one = metric(report, key)
        kept = one.primary and part(report, "evals").get(one.eval, {}).get("kind") == "capability"
        return 0 if one == target(report) else 1 if kept else 2

    return place


def _row(row: Mapping[str, Any], keys: list[str], reference: str | None) -> Row:
    changes, against = part(row, "change"), part(row, "against")
    differences = [
        Difference(read_estimate(against[key]), against[key].get("p_adjusted")) if against.get(key) else None
        for key in keys
    ]
    return Row(
        row["method"], row.get("k"), row.get("kl"), row.get("note") or "", row["method"] == reference,
        [read_estimate(changes.get(key)) for key in keys], differences,
    )  # fmt: skip


def meaning(report: Mapping[str, Any]) -> str:
    """What equal KL means, in one paragraph."""
    found = part(report, "equal_kl")
    return (
        f"Strengths of different methods have no common unit, so here each has the k at which it is equally far from "
        f"the base, each sign for itself: the {found['percentile']:g}th percentile of the per-token KL divergence of "
        f"the steered model from the base is {found['target']:g} nats, along the steered model's own greedy answers to "
        f"{found['prompts']} prompts, up to {found['tokens']} tokens each."
    )


def correction(report: Mapping[str, Any]) -> str:
    """What stands under the differences and their p-values."""
    found = part(report, "equal_kl")
    first = " Methods fitted with several seeds take part with their first." if repeated(report) else ""
    count = found.get("comparisons")
    number = "the number of comparisons" if count is None else f"all {count} comparisons"
    return (
        f"Upper line: change from the base. Below: the difference from {found['reference']} at its own k, over the "
        f"same items, with its 95 % interval, and the p-value of a paired permutation test, adjusted for {number} by "
        f"Holm's method; bold below {SIGNIFICANT:g}." + first
    )


def verdicts(report: Mapping[str, Any]) -> list[str]:
    """Which methods differ from the reference beyond chance, a sentence for each sign."""
    return [_verdict(report, table) for table in tables(report)]


def _verdict(report: Mapping[str, Any], table: Table) -> str:
    reference = part(report, "equal_kl")["reference"]
    own = next((row for row in table.rows if row.reference), None)
    if own is None or own.k is None:
        return f"At {table.title}, {reference} did not reach the divergence, so nothing is compared with it."
    told = []
    for index, measured in enumerate(table.metrics):
        by_phrase: dict[str, list[str]] = {}
        for row in table.rows:
            phrase = _phrase(report, measured, own.changes[index], row.changes[index], row.differences[index])
            by_phrase.setdefault(phrase, []).append(row.method)
        further = _FURTHER.format(measured.label)
        if measured == target(report) and further not in by_phrase:
            told.append(f"no method {further} beyond chance")
        told += [f"{numbers.listed(names)} {phrase}" for phrase, names in by_phrase.items() if phrase]
    if not any(d and d.significant for row in table.rows for d in row.differences):
        return f"At {table.title}, no method differs from {reference} beyond chance."
    return f"At {table.title}, against {reference}: {'; '.join(told)}. Nothing else differs beyond chance."


def _phrase(
    report: Mapping[str, Any], measured: Metric, own: Estimate | None, other: Estimate | None, apart: Difference | None
) -> str:
    """What a significant difference from the reference method's `own` change means; nothing for another.

    The target is moved further or less far, whichever way it counts; of a capability more or less is kept; of any
    other metric nobody said which way is better.
    """
    if apart is None or not apart.significant or apart.estimate is None or own is None or other is None:
        return ""
    up = apart.estimate.mean > 0
    if measured == target(report):
        if own.mean * other.mean < 0:
            return f"moved {measured.label} the other way"
        return (_FURTHER if abs(other.mean) > abs(own.mean) else "moved {} less far").format(measured.label)
    if measured.primary and part(report, "evals").get(measured.eval, {}).get("kind") == "capability":
        return f"kept {'more' if up else 'less'} of {measured.label}"
    return f"ended {'higher' if up else 'lower'} in {measured.label}"


def describe(report: Mapping[str, Any]) -> tuple[str, str] | None:
    """Alternative text and caption of the dot plot; None when no method reached the divergence."""
    shown = [(table, row) for table in tables(report) for row in table.rows if row.k is not None]
    if not shown:
        return None
    told = [
        f"{row.method} at k {numbers.strength(row.k)}: "
        + ", ".join(f"{m.full} {numbers.difference(c)}" for m, c in zip(table.metrics, row.changes, strict=True))
        for table, row in shown
    ]
    nats = part(report, "equal_kl")["target"]
    alt = f"Change from the base at a KL of {nats:g} nats, a row per method. {'; '.join(told)}."
    return alt, (
        f"Change from the base at equal KL ({nats:g} nats) with 95 % intervals. Triangles up: k above 0; triangles "
        "down: k below 0; hollow: not calibrated, its KL is in the table."
    )


def draw(report: Mapping[str, Any], theme: Theme) -> Any:
    """The dot plot: methods down, a panel for each of the first metrics."""
    found = tables(report)
    metrics = found[0].metrics[:3]
    names = list(dict.fromkeys(row.method for table in found for row in table.rows if row.k is not None))
    nats = part(report, "equal_kl")["target"]
    entries = [{"color": theme.above, "marker": "^", "linestyle": "", "label": "k above 0"},
               {"color": theme.below, "marker": "v", "linestyle": "", "label": "k below 0"}]  # fmt: skip
    figure, panels = new_figure(0.75 + 0.32 * len(names), entries, (1, len(metrics)), sharey=True, squeeze=False)
    for index, (axes, measured) in enumerate(zip(panels[0], metrics, strict=True)):
        axes.axvline(0, color=theme.muted, linewidth=0.7, zorder=1)
        for table in found:
            color, marker = (theme.above, "^") if table.sign > 0 else (theme.below, "v")
            for row in table.rows:
                change = row.changes[index]
                if row.k is None or change is None:
                    continue
                at = names.index(row.method) - 0.16 * table.sign
                far = row.kl is None or abs(row.kl / nats - 1) > _NEAR
                axes.errorbar(
                    change.mean, at, xerr=reach(change), color=color, marker=marker, elinewidth=0.9,
                    mfc=theme.paper if far else color, zorder=3,
                )  # fmt: skip
        axes.set_title(measured.label.replace(".", "\n", 1), fontsize=FONT_PT - 0.5)
        axes.grid(axis="y", visible=False)
        axes.locator_params(axis="x", nbins=4)
    panels[0, 0].set_yticks(range(len(names)), names)
    panels[0, 0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel("change from base", fontsize=FONT_PT)
    return figure
