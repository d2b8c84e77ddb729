"""The result as a plain-text table for a terminal, at most 100 columns wide."""

import textwrap
from collections.abc import Mapping
from typing import Any

from weightsteer.report import numbers
from weightsteer.report.findings import cells, chosen_method, estimate, methods, part, primary
from weightsteer.report.verdict import headline

WIDTH = 100


def summary_table(report: Mapping[str, Any]) -> str:
    """The headline, then a line per method and k: the base's means first, then every change from the base.

    Minus signs are ASCII, so that no terminal garbles them.
    """
    text = [textwrap.fill(headline(report), WIDTH, break_on_hyphens=False)]
    if cells(report):
        text += [*_blocks(report), textwrap.fill(_legend(report), WIDTH)]
    return "\n\n".join(text).replace("−", "-")


def _blocks(report: Mapping[str, Any]) -> list[str]:
    """One table, or several below one another where the evals do not fit abreast."""
    found = {(entry["method"], entry["k"], entry["eval"]): entry for entry in cells(report)}
    order = ["untuned", "base", *methods(report), "merged"]
    rows = sorted({(method, k) for method, k, _ in found}, key=lambda row: (order.index(row[0]), row[1]))
    chosen = (chosen_method(report), part(report, "choice").get("k"))
    methods_column = ["method", *(f"{'> ' if row == chosen else '  '}{row[0]}" for row in rows)]
    fixed = [_aligned(methods_column), _aligned(["k", *(f"{k:g}" for _, k in rows)], right=True)]
    columns = [
        _aligned([textwrap.shorten(name, 30), *(_entry(report, found.get((*row, name)), name) for row in rows)])
        for name in part(report, "evals")
    ]
    blocks = [[*fixed]]
    for column in columns:
        if sum(len(one[0]) + 2 for one in [*blocks[-1], column]) - 2 > WIDTH and len(blocks[-1]) > len(fixed):
            blocks.append([*fixed])
        blocks[-1].append(column)
    return [_joined(block) for block in blocks]


def _entry(report: Mapping[str, Any], entry: Mapping[str, Any] | None, eval: str) -> str:
    if entry is None:
        return ""
    name = primary(report, eval).name
    if entry.get("change") is None:
        return numbers.level(estimate(entry, "metrics", name))
    moved = estimate(entry, "change", name)
    return numbers.change(moved) + ("*" if numbers.excludes_zero(moved) else "")


def _aligned(column: list[str], right: bool = False) -> list[str]:
    width = max(map(len, column))
    return [text.rjust(width) if right else text.ljust(width) for text in column]


def _joined(columns: list[list[str]]) -> str:
    lines = ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _legend(report: Mapping[str, Any]) -> str:
    unscored = sum(entry.get("n_unscored") or 0 for entry in cells(report))
    counted = f"{unscored} answers could not be scored and are left out" if unscored else "every answer was scored"
    marked = " > chosen." if part(report, "choice").get("k") is not None else ""
    return f"base: mean; others: change from base; [95 % interval], * excludes zero; {counted}.{marked}"
