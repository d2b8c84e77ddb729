"""A report's cells arranged as tables: strengths down, methods beside one another, every entry a text."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from weightsteer.report import numbers
from weightsteer.report.findings import (
    NO_METHODS,
    Metric,
    cell,
    cells,
    chosen_method,
    estimate,
    methods,
    part,
    primary,
    read_estimate,
    strengths,
)

# Columns of methods that fit on a page without scrolling sideways.
ABREAST = 5


class Entry(NamedTuple):
    """One cell of a table: where the model stands, how far it moved, and what is to be known about it."""

    level: str
    change: str = ""
    significant: bool = False
    chosen: bool = False
    note: str = ""
    seeds: str = ""


class Row(NamedTuple):
    """One strength of an eval's table; None where a method was not run at it; the base has no entries."""

    k: str
    entries: list[Entry | None]


class Group(NamedTuple):
    """Some methods of an eval's table and the strengths they were run at."""

    methods: list[str]
    rows: list[Row]


class DetailTable(NamedTuple):
    """Every metric of every cell of one eval."""

    metrics: list[tuple[str, str]]
    rows: list[tuple[list[str], list[Entry]]]


class EvalTable(NamedTuple):
    """One eval over all strengths, methods beside one another."""

    name: str
    metric: str
    reads: str
    items: str
    methods: list[str]
    base: Entry | None
    untuned: Entry | None
    rows: list[Row]
    details: DetailTable

    @property
    def groups(self) -> list[Group]:
        """The table as it is where its methods fit abreast, else several: methods of like strengths together."""
        if len(self.methods) <= ABREAST:
            return [Group(self.methods, self.rows)]
        ran = [{row.k for row in self.rows if row.entries and row.entries[c]} for c in range(len(self.methods))]
        alike = dict.fromkeys(frozenset(ks) for ks in ran)
        chunks = [[c for c, own in enumerate(ran) if own == ks] for ks in alike]
        groups: list[list[int]] = []
        for columns in (chunk[i : i + ABREAST] for chunk in chunks for i in range(0, len(chunk), ABREAST)):
            room = (g for g in groups if len(g) + len(columns) <= ABREAST and ran[columns[0]] <= ran[g[0]])
            if (group := next(room, None)) is not None:
                group += columns
            else:
                groups.append(columns)
        return [self._group(columns) for columns in groups]

    def _group(self, columns: list[int]) -> Group:
        rows = [Row(row.k, [row.entries[c] for c in columns] if row.entries else []) for row in self.rows]
        return Group([self.methods[c] for c in columns], [row for row in rows if not row.entries or any(row.entries)])


def eval_tables(report: Mapping[str, Any]) -> list[EvalTable]:
    """One table per eval that was run."""
    return [_eval_table(report, name) for name in part(report, "evals") if strengths(report, name)]


def missing_evals(report: Mapping[str, Any]) -> list[str]:
    """Evals that are described but have no cell."""
    return [name for name in part(report, "evals") if not strengths(report, name)]


def _eval_table(report: Mapping[str, Any], name: str) -> EvalTable:
    metric, description = primary(report, name), part(report, "evals")[name]
    columns = methods(report, name)
    base = cell(report, name, "base", 0)
    rows = [
        Row(numbers.strength(k), [_entry(report, metric, cell(report, name, method, k)) for method in columns])
        for k in strengths(report, name)
        if k != 0
    ]
    if base is not None:
        rows.insert(sum(k < 0 for k in strengths(report, name)), Row("0", []))
    counts = sorted({entry["n"] for entry in cells(report) if entry["eval"] == name})
    items = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    return EvalTable(
        name, metric.name, numbers.sentence(description.get("reads") or ""), items, columns,
        _entry(report, metric, base), _entry(report, metric, _untuned(report, name)), rows, _details(report, name),
    )  # fmt: skip


def _entry(report: Mapping[str, Any], metric: Metric, entry: Mapping[str, Any] | None) -> Entry | None:
    if entry is None:
        return None
    level, moved = estimate(entry, "metrics", metric.name), estimate(entry, "change", metric.name)
    unscored = entry.get("n_unscored") or 0
    note = f"{unscored} unscored" if unscored else ""
    chosen = (entry["method"], entry["k"]) == (chosen_method(report), part(report, "choice").get("k"))
    seeds = _seeds(entry, metric)
    if entry.get("change") is None:
        return Entry(numbers.level(level), chosen=chosen, note=note, seeds=seeds)
    if level is None:
        return Entry(numbers.NOT_SCORED, chosen=chosen, note=note)
    return Entry(numbers.number(level.mean), numbers.change(moved), numbers.excludes_zero(moved), chosen, note, seeds)


def _untuned(report: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The cell of the model before the task fine-tune."""
    return next((c for c in cells(report) if (c["eval"], c["method"]) == (name, "untuned")), None)


def _seeds(entry: Mapping[str, Any], metric: Metric) -> str:
    """The lowest and the highest mean over training seeds, where there are several."""
    means = [mean for seed in entry.get("seeds") or [] if (mean := seed["metrics"].get(metric.name)) is not None]
    return f"seeds {numbers.number(min(means))} to {numbers.number(max(means))}" if len(means) > 1 else ""


def _details(report: Mapping[str, Any], name: str) -> DetailTable:
    described = part(report, "evals")[name].get("metrics") or {}
    found = [entry for entry in cells(report) if entry["eval"] == name]
    present = dict.fromkeys(metric for entry in found for metric in entry.get("metrics") or {})
    rows = []
    for method in ("untuned", "base", *methods(report, name), "merged"):
        for entry in sorted((entry for entry in found if entry["method"] == method), key=lambda entry: entry["k"]):
            head = [
                method, numbers.strength(entry["k"]), str(entry["n"]), str(entry.get("n_unscored") or 0),
                numbers.duration(entry.get("seconds")),
            ]  # fmt: skip
            values = [_entry(report, Metric(name, metric, False), entry) for metric in present]
            rows.append((head, [value for value in values if value is not None]))
    return DetailTable([(metric, described.get(metric, "")) for metric in present], rows)


def candidates(report: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Labels of the metrics kept, and per candidate its k, effect, losses and whether it qualified."""
    choice = part(report, "choice")
    kept, rows = [], []
    for candidate in choice.get("candidates") or []:
        losses = candidate.get("kept") or []
        kept = [f"{loss['metric']} (loss up to {loss['allowed']:g})" for loss in losses] or kept
        moved = read_estimate(candidate.get("change"))
        rows.append(
            {
                "k": numbers.strength(candidate["k"]),
                "effect": numbers.change(moved),
                "losses": [(numbers.change(read_estimate(loss["change"])), loss["ok"]) for loss in losses],
                "qualifies": candidate.get("qualifies", False),
                "chosen": candidate["k"] == choice.get("k"),
            }
        )
    return kept, rows


def merged_rows(report: Mapping[str, Any]) -> list[tuple[str, list[Entry | None]]]:
    """Per eval: the base, the model steered in memory to the chosen k, the released checkpoint."""
    k = part(report, "choice").get("k")
    released = {entry["eval"]: entry for entry in cells(report) if entry["method"] == "merged"}
    rows = []
    for name, entry in released.items():
        metric, at = primary(report, name), entry["k"] if k is None else k
        trio = (cell(report, name, "base", 0), cell(report, name, chosen_method(report), at), entry)
        rows.append((metric.label, [_entry(report, metric, one) for one in trio]))
    return rows


def sample_columns(report: Mapping[str, Any]) -> list[tuple[str, numbers.Real]]:
    """(method, k) of every answer, the weight vector's first and the base at its place among them."""
    known = methods(report)
    found = {(a["method"], a["k"]) for sample in report.get("samples") or [] for a in sample["answers"]}

    def order(column: tuple[str, numbers.Real]) -> tuple[int, str, float]:
        method = chosen_method(report) if column[0] in NO_METHODS else column[0]
        return (known.index(method) if method in known else len(known), method, column[1])

    return sorted(found, key=order)


def sample_rows(report: Mapping[str, Any]) -> list[tuple[str, list[str | None]]]:
    """Each prompt and its answers in the order of `sample_columns`; None where there is none."""
    columns = sample_columns(report)
    rows = []
    for sample in report.get("samples") or []:
        texts = {(answer["method"], answer["k"]): answer["text"] for answer in sample["answers"]}
        rows.append((sample["prompt"], [texts.get(column) for column in columns]))
    return rows
