"""The result as one sentence and as three words."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from weightsteer.report import numbers
from weightsteer.report.findings import (
    Cost,
    cell,
    cells,
    chosen_method,
    costs,
    effect,
    estimate,
    part,
    target,
)


class Status(NamedTuple):
    """The result in a few words; `tone` is "good", "bad", or "open" for anything between."""

    tone: str
    text: str


def headline(report: Mapping[str, Any]) -> str:
    """One sentence: the chosen k, its effect and its cost with 95 % intervals, or that there is none."""
    if (unanswered := _no_result(report)) is not None:
        return unanswered
    choice = part(report, "choice")
    if not choice:
        ks = sorted({entry["k"] for entry in cells(report)})
        first, last = numbers.strength(ks[0]), numbers.strength(ks[-1])
        return f"No strength was chosen; k from {first} to {last} was evaluated."
    if choice.get("k") is None:
        reason = numbers.sentence(choice.get("reason") or "No reason was recorded")
        return f"No strength qualified, so nothing was merged. {reason}"
    subject = f"{'The fixed ' if choice.get('fixed') else ''}k = {numbers.strength(choice['k'])}"
    return f"{subject} {_effect_phrase(report)}; {_cost_phrase(costs(report))}."


def status(report: Mapping[str, Any]) -> Status:
    """Whether the chosen k did what was asked, judged by its intervals."""
    choice, moved = part(report, "choice"), effect(report)
    verified = part(report, "merged").get("verified")
    spent = costs(report)
    rules = (
        (_no_result(report) is not None, Status("open", "Nothing to compare")),
        (not choice, Status("open", "No strength chosen")),
        (choice.get("k") is None, Status("bad", "No strength qualified")),
        (verified not in (None, "ok"), Status("bad", f"Checkpoint not verified: {verified}")),
        (moved is None, Status("open", "Effect not scored")),
        (not numbers.excludes_zero(moved), Status("open", "No measurable effect")),
        (
            moved is not None and _against(choice.get("goal"), moved.mean),
            Status("bad", "Moved the wrong way"),
        ),
        (any(cost.ok is False for cost in spent), Status("bad", "Moved, at more than the cost allowed")),
        (not spent or any(cost.change is None for cost in spent), Status("open", "Moved, cost unknown")),
        (any(cost.ok is None and _lost(cost) for cost in spent), Status("open", "Moved, at a cost")),
    )
    return next((verdict for applies, verdict in rules if applies), Status("good", "Steered as asked"))


def _no_result(report: Mapping[str, Any]) -> str | None:
    if not cells(report):
        return "Nothing was evaluated, so there is no result to report."
    if all(entry["k"] == 0 for entry in cells(report)):
        return "Only the unsteered model was evaluated (k = 0), so there is no effect to report."
    return None


def _effect_phrase(report: Mapping[str, Any]) -> str:
    metric, moved = target(report), effect(report)
    if metric is None:
        return "was set, but no behavior eval was run"
    if moved is None:
        return f"was chosen, but its effect on {metric.label} was not scored"
    if not numbers.excludes_zero(moved):
        return f"does not measurably move {metric.label} ({numbers.change(moved)})"
    verb = "lowers" if moved.mean < 0 else "raises"
    before, after = (
        estimate(cell(report, metric.eval, chosen_method(report), k), "metrics", metric.name)
        for k in (0, part(report, "choice")["k"])
    )
    levels = f" from {numbers.number(before.mean)} to {numbers.number(after.mean)}" if before and after else ""
    return f"{verb} {metric.label}{levels} ({numbers.change(moved)})"


def _cost_phrase(spent: list[Cost]) -> str:
    if not spent:
        return "no capability eval was run, so its cost is unknown"
    return ", ".join(
        f"{cost.metric.label} changes by {numbers.change(cost.change)}" + _promise(cost)
        if cost.change
        else f"{cost.metric.label} was not scored"
        for cost in spent
    )


def _promise(cost: Cost) -> str:
    if cost.allowed is None or cost.ok is None:
        return ""
    return f", {'within' if cost.ok else 'beyond'} the allowed loss of {cost.allowed:g}"


def _against(goal: str | None, moved: float) -> bool:
    return (goal == "decrease" and moved > 0) or (goal == "increase" and moved < 0)


def _lost(cost: Cost) -> bool:
    return cost.change is not None and cost.change.high < 0
