"""Picks from a report's dictionary what its pages show: cells, curves, the chosen k, its effect and costs."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from weightsteer.report.numbers import Real
from weightsteer.stats import Estimate

# Where a report does not list its methods: the weight vector first, then what it is compared with, the control last.
METHODS = ("weights", "activations", "prompt", "finetuned", "random")
# What a cell may stand for besides a method; `untuned` is the model before the recipe's task fine-tune.
NO_METHODS = ("base", "untuned", "merged")


class Metric(NamedTuple):
    """One number of one eval: its primary metric or another."""

    eval: str
    name: str
    primary: bool

    @property
    def label(self) -> str:
        return self.eval if self.primary else f"{self.eval}.{self.name}"

    @property
    def full(self) -> str:
        """With the metric's own name, where it says more than the eval's."""
        return self.eval if self.eval == self.name else f"{self.eval}.{self.name}"


class Cost(NamedTuple):
    """What the chosen k did to a metric that was to be kept. `ok` is None where nothing was promised."""

    metric: Metric
    change: Estimate | None
    allowed: Real | None
    ok: bool | None


def part(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of the report, empty when it is null or absent."""
    return report.get(name) or {}


def read_estimate(value: Mapping[str, Any] | None) -> Estimate | None:
    """A stored estimate; None when its mean is missing. A bound that is missing becomes nan."""
    stored = ((value or {}).get(key) for key in ("mean", "low", "high"))
    mean, low, high = (math.nan if number is None else float(number) for number in stored)
    return Estimate(mean, low, high) if math.isfinite(mean) else None


def cells(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every evaluated cell once, those of the merged checkpoint included."""
    listed = [*(report.get("cells") or []), *(part(report, "merged").get("cells") or [])]
    return list({(entry["eval"], entry["method"], entry["k"]): entry for entry in listed}.values())


def cell(report: Mapping[str, Any], eval: str, method: str, k: Real) -> Mapping[str, Any] | None:
    """One cell, or None when it was not run. At k = 0 every method is the base."""
    found = {(entry["method"], entry["k"]): entry for entry in cells(report) if entry["eval"] == eval}
    return found.get(("base", 0)) or found.get((method, 0)) if k == 0 else found.get((method, k))


def estimate(entry: Mapping[str, Any] | None, field: str, metric: str) -> Estimate | None:
    """`field` ("metrics" or "change") of a cell; None when it is missing or was not scored."""
    return read_estimate(((entry or {}).get(field) or {}).get(metric))


def methods(report: Mapping[str, Any], eval: str | None = None) -> list[str]:
    """Labels of the methods with a cell (of `eval`), in the report's order; base and merged are not methods."""
    present = {entry["method"] for entry in cells(report) if eval in (None, entry["eval"])} - set(NO_METHODS)
    known = list(part(report, "methods")) or METHODS
    return [name for name in known if name in present] + sorted(present.difference(known))


def strengths(report: Mapping[str, Any], eval: str, method: str | None = None) -> list[Real]:
    """Strengths evaluated on `eval` (by `method`, the base's 0 among them), ascending."""
    wanted = {method, "base"} if method else set(methods(report, eval)) | {"base"}
    return sorted({entry["k"] for entry in cells(report) if entry["eval"] == eval and entry["method"] in wanted})


def curve(report: Mapping[str, Any], metric: Metric, method: str) -> list[tuple[Real, Estimate]]:
    """(k, change from the base) of a method in order of k, base included; what was not scored is left out.

    A bound that is missing is the mean: a figure then draws no interval.
    """
    points = []
    for k in strengths(report, metric.eval, method):
        entry = cell(report, metric.eval, method, k)
        unmoved = Estimate(0.0, 0.0, 0.0) if estimate(entry, "metrics", metric.name) else None
        if (change := unmoved if k == 0 else estimate(entry, "change", metric.name)) is not None:
            bounds = (change.mean if math.isnan(bound) else bound for bound in (change.low, change.high))
            points.append((k, Estimate(change.mean, *bounds)))
    return points


def primary(report: Mapping[str, Any], eval: str) -> Metric:
    """The metric an eval is read by."""
    return Metric(eval, part(report, "evals")[eval]["metric"], True)


def metric(report: Mapping[str, Any], reference: str) -> Metric:
    """ "capability" is that eval's primary metric, "capability.p_correct" the one named."""
    eval, _, name = reference.partition(".")
    main = part(report, "evals").get(eval, {}).get("metric")
    return Metric(eval, name or main or eval, not name or name == main)


def target(report: Mapping[str, Any]) -> Metric | None:
    """What was to be moved: the choice's metric, else the behavior's own eval, else the first of its kind."""
    choice, evals = part(report, "choice"), part(report, "evals")
    if choice.get("eval"):
        return metric(report, ".".join(filter(None, (choice["eval"], choice.get("metric")))))
    kinds = [name for name, eval in evals.items() if eval.get("kind") == "behavior"]
    named = [name for name in kinds if name == report.get("behavior")]
    return primary(report, (named or kinds)[0]) if kinds else None


def chosen_method(report: Mapping[str, Any]) -> str:
    """The method whose k was chosen: the weight vector, as only that can be merged."""
    return part(report, "choice").get("method", "weights")


def chosen_candidate(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The candidate that was chosen; empty for a fixed k."""
    choice = part(report, "choice")
    matching = (entry for entry in choice.get("candidates") or [] if entry["k"] == choice.get("k"))
    return next(matching, {})


def effect(report: Mapping[str, Any]) -> Estimate | None:
    """Change of the target at the chosen k."""
    return read_estimate(chosen_candidate(report).get("change")) or change_at_choice(report, target(report))


def change_at_choice(report: Mapping[str, Any], metric: Metric | None) -> Estimate | None:
    """Change of any metric at the chosen k, from its cell."""
    k = part(report, "choice").get("k")
    if k is None or metric is None:
        return None
    return estimate(cell(report, metric.eval, chosen_method(report), k), "change", metric.name)


def costs(report: Mapping[str, Any]) -> list[Cost]:
    """What the chosen k cost: of every metric that was to be kept, else of the first capability eval."""
    kept = chosen_candidate(report).get("kept") or []
    if kept:
        return [
            Cost(metric(report, entry["metric"]), read_estimate(entry["change"]), entry["allowed"], entry["ok"])
            for entry in kept
        ]
    return [Cost(metric, change_at_choice(report, metric), allowed, None) for metric, allowed in guards(report)]


def guards(report: Mapping[str, Any]) -> list[tuple[Metric, Real | None]]:
    """The metrics to be kept and the loss allowed; without a promise the first capability eval and None."""
    choice = part(report, "choice")
    kept = next((entry["kept"] for entry in choice.get("candidates") or [] if entry.get("kept")), None)
    if kept:
        return [(metric(report, entry["metric"]), entry["allowed"]) for entry in kept]
    if choice.get("keep"):
        return [(metric(report, name), allowed) for name, allowed in choice["keep"].items()]
    kinds = [name for name, eval in part(report, "evals").items() if eval.get("kind") == "capability"]
    return [(primary(report, name), None) for name in kinds[:1]]
