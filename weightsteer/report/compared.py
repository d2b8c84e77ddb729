"""What was compared, in words: the methods and their seeds, the judge, the task fine-tune, answers without a score."""

from collections.abc import Mapping
from typing import Any

from weightsteer.report import numbers
from weightsteer.report.facts import history_row
from weightsteer.report.findings import cells, methods, part


def method_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Label, what it is, and the training seeds it was fitted with."""
    described = part(report, "methods")
    return [
        (label, described[label].get("about") or described[label].get("method") or "", _seeds(described[label]))
        for label in methods(report)
        if label in described
    ]


def _seeds(method: Mapping[str, Any]) -> str:
    seeds = method.get("seeds") or []
    return f"{len(seeds)} seeds: {', '.join(map(str, seeds))}" if len(seeds) > 1 else ""


def repeated(report: Mapping[str, Any]) -> list[str]:
    """Labels of the methods that were fitted with several training seeds."""
    return [label for label, _, seeds in method_rows(report) if seeds]


def seeds_told(report: Mapping[str, Any]) -> str | None:
    """What the intervals know of run-to-run spread; None for a report that does not list its methods."""
    rows = method_rows(report)
    if not rows:
        return None
    several = repeated(report)
    if not several:
        return (
            "Every method was fitted once, with a single seed: intervals are over items, and how far another training "
            "run would land is not known."
        )
    told = (
        f"{numbers.listed(several)}: mean over training seeds, the lowest and the highest seed beside it; intervals "
        "are over items of that mean."
    )
    counts = {label: len(part(report, "methods")[label].get("seeds") or []) for label, _, _ in rows}
    if once := [label for label, count in counts.items() if count == 1]:
        told += f" {numbers.listed(once)}: a single seed, so how far another training run would land is not known."
    if never := [label for label, count in counts.items() if count == 0]:
        told += f" {numbers.listed(never)}: fitted once, as no training seed enters."
    return told


def unscored_told(report: Mapping[str, Any]) -> str | None:
    """How many answers have no score; None where all have one."""
    asked = sum(entry["n"] for entry in cells(report))
    unscored = sum(entry.get("n_unscored") or 0 for entry in cells(report))
    if not unscored:
        return None
    return (
        f"{unscored} of {asked} answers could not be scored; they are left out of the means and counted in the tables."
    )


def judge_line(report: Mapping[str, Any]) -> str | None:
    """Which judge rated, and how well it fits answers labelled by hand; None where no judge took part."""
    judge = part(report, "judge")
    if not judge:
        return None
    who = {"rules": "rules", "local": "a local model", "server": "a model behind a server"}.get(
        judge["kind"], judge["kind"]
    )
    name = f"{who}, {judge['model']}" if judge.get("model") else who
    agreement = part(judge, "agreement")
    if not agreement:
        return f"Judge: {name}. Its agreement with answers labelled by hand was not measured."
    measures = (
        ("accuracy", "accuracy {}", numbers.percent),
        ("spearman", "rank correlation {}", numbers.number),
    )
    told = [text.format(write(agreement[key])) for key, text, write in measures if agreement.get(key) is not None]
    unscored = f", {agreement['unscored']} of them unscored" if agreement.get("unscored") else ""
    fit = numbers.listed(told) if told else "no measure is defined"
    return f"Judge: {name}. On {agreement['n']} answers labelled by hand{unscored}: {fit}."


def task_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The fine-tune that every method steers."""
    task = part(report, "task")
    training = part(task, "training")
    shown = [("source", str(task["source"]))] if task.get("source") else []
    if training:
        heads = ("steps", "epochs", "learning rate", "kept step", "time")
        shown += list(zip(heads, history_row(training), strict=True))
    return shown
