"""The report of the study `reliability`: what was known before steering beside what steering did, over many sets."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer.report import numbers
from weightsteer.report.document import Cell, Document, Figure, Section, Table
from weightsteer.report.theme import Theme, new_figure
from weightsteer.stats import Estimate, spearman
from weightsteer.steerability import rank_correlation

# What is correlated over sets: before steering, after it, and the value of arXiv 2505.22637 (Llama-2-7B-chat, 36 sets).
CORRELATIONS: dict[str, tuple[str, str, float | None]] = {
    "agreement and effect": ("agreement", "effect", 0.76),
    "agreement and share of the wrong way": ("agreement", "wrong_way", -0.78),
    "d′ and effect": ("d_prime", "effect", 0.71),
    "agreement left out and effect": ("agreement_left_out", "effect", None),
    "agreement left out and share of the wrong way": ("agreement_left_out", "wrong_way", None),
    "d′ left out and effect": ("d_prime_left_out", "effect", None),
    "overlap and effect": ("overlap", "effect", None),
    "AUC and effect": ("auc", "effect", None),
    "split-half and effect": ("split_half", "effect", None),
}
PANELS = tuple(CORRELATIONS)[:3]
LABELS = {
    "agreement": "agreement",
    "d_prime": "d′",
    "effect": "mean effect (nats)",
    "wrong_way": "share of the wrong way",
}


def document(data: Mapping[str, Any]) -> Document:
    """The report of all sets; `data` as the study measured it."""
    rows = data["sets"]
    sections = [_foretold(data), _expected(data), _form(rows)]
    if typed := [row for row in rows if "types" in row]:
        sections.append(_types(typed))
    if shifted := [row for row in rows if "shifts" in row]:
        sections.append(_shifts(shifted))
    return Document(
        title="Can steering be foretold?",
        headline=sections[0].answer,
        lead=f"{len(rows)} sets of two-choice questions, from {data['source']}. Of each, the mean difference of its "
        f"prefilled pairs at block {rows[0]['block']} is added at every token of questions that are in no pair.",
        sections=tuple(sections),
        data=data,
    )


def _foretold(data: Mapping[str, Any]) -> Section:
    rows, found = data["sets"], {key: _known(Estimate(**value)) for key, value in data["correlations"].items()}
    table = tuple(
        (key, found[key], "none" if published is None else _two(published))
        for key, (_, _, published) in CORRELATIONS.items()
    )
    said = "; ".join(
        f"{key} {numbers.level(found[key])}, published {_two(CORRELATIONS[key][2] or 0)}" for key in PANELS
    )
    agreeing = [key for key in PANELS if _has_sign(found[key], CORRELATIONS[key][2])]
    return Section(
        "Before and after",
        "Do agreement and separation of pairs, known before steering, tell which sets steer well?",
        f"{_extent(len(agreeing), len(PANELS))} rank correlations over {len(rows)} sets have the published sign beyond "
        f"chance: {said}.",
        (Table("Spearman's rank correlation over sets, with its 95 % interval", ("of", "here", "published"), table),),
        (
            Figure(
                "correlations",
                "Each point is a set: what was known before steering, and what steering did.",
                "Three scatter plots: effect over agreement, share of the wrong way over agreement, effect over d′.",
                lambda theme: _draw(rows, found, theme),
            ),
        ),
        (
            "Effect: mean change of the log-odds of the matching answer (nats) when the mean difference is added once; "
            "wrong way: share of questions in which they fall. The published values are of Llama-2-7B-chat (arXiv "
            "2505.22637), as cited by others.",
        ),
    )


def _draw(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Estimate | None], theme: Theme) -> Any:
    figure, panels = new_figure(2.5, shape=(1, len(PANELS)))
    for axes, key in zip(panels, PANELS, strict=True):
        x, y, _ = CORRELATIONS[key]
        axes.plot(
            [row["before"][x] for row in rows], [row["after"][y] for row in rows], "o", markersize=3.4,
            color=theme.methods["activations"], alpha=0.8,
        )  # fmt: skip
        if y == "effect":
            axes.axhline(0, color=theme.muted, linewidth=0.8)
        axes.set_xlabel(LABELS[x])
        axes.set_ylabel(LABELS[y])
        correlation = found[key]
        axes.set_title("" if correlation is None else f"ρ = {_two(correlation.mean)}")
    return figure


def _expected(data: Mapping[str, Any]) -> Section:
    fitted = data["fit"]
    rows = sorted(data["sets"], key=lambda row: -row["before"]["agreement_left_out"])
    if fitted is None:
        answer = f"{len(rows)} sets are too few to say."
    else:
        better = fitted["error"] < fitted["error_of_mean"]
        answer = (
            f"On a set left out, the share of questions that move the wrong way is foretold to "
            f"{100 * fitted['error']:.1f} points on average; giving every set the mean of the others is off by "
            f"{100 * fitted['error_of_mean']:.1f}, so {'it helps' if better else 'it does not help'}."
        )
    columns = (
        "set", "agreement", "left out", "d′", "left out ", "split-half", "effect", "standardized", "wrong way", "slope",
        "anti-steerable",
    )  # fmt: skip
    return Section(
        "What to expect",
        "How exactly can the share of inputs that move the wrong way be foretold?",
        answer,
        (Table("The sets, by agreement", columns, tuple(_set_row(row) for row in rows)),),
        notes=("The fit is monotone in the mean rank of agreement and d′, both left out, and nothing else.",),
    )


def _set_row(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    before, after = row["before"], row["after"]
    keys = ("agreement", "agreement_left_out", "d_prime", "d_prime_left_out", "split_half")
    return (
        row["name"], *(before[key] for key in keys), Estimate(after["effect"], *after["effect_interval"]),
        after["standardized"], numbers.percent(after["wrong_way"]), after["slope"],
        numbers.percent(after["anti_steerable"]),
    )  # fmt: skip


def _form(rows: Sequence[Mapping[str, Any]]) -> Section:
    explained = [row["after"]["bias"]["explained"] for row in rows]
    known = [share for share in explained if share is not None]
    table = [
        (row["name"], numbers.percent(share), _coefficients(row["after"]["bias"]["coefficients"]))
        for row, share in zip(rows, explained, strict=True)
    ]
    answer = "No set has slopes that vary."
    if known:
        answer = (
            f"Position and word of the matching answer explain {numbers.percent(statistics.median(known))} of the "
            f"variance of the slopes in the median set and {numbers.percent(max(known))} at most."
        )
    return Section(
        "Form of the answer",
        "Does a vector steer the behavior, or the letter and the word that the matching answer happens to have?",
        answer,
        (Table("Least squares of the slopes on the form", ("set", "explained", "slope more by"), tuple(table)),),
    )


def _coefficients(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')}: {numbers.number(value)}" for name, value in found.items()) or "none"


def _types(rows: Sequence[Mapping[str, Any]]) -> Section:
    kinds = list(rows[0]["types"]["effects"])
    pooled = {kind: [e for row in rows for e in row["types"]["effects"][kind]] for kind in kinds}
    wrong = {kind: sum(e < 0 for e in effects) / len(effects) for kind, effects in pooled.items()}
    table = []
    for i, kind in enumerate(kinds):
        others = [row["types"]["cosines"][i][j] for row in rows for j in range(len(kinds)) if j != i]
        mean = sum(pooled[kind]) / len(pooled[kind])
        table.append((kind, mean, numbers.percent(wrong[kind]), sum(others) / len(others), min(others), max(others)))
    apart = [c for row in rows for i, line in enumerate(row["types"]["cosines"]) for c in line[:i]]
    best, worst = min(kinds, key=wrong.__getitem__), max(kinds, key=wrong.__getitem__)
    return Section(
        "Seven prompt types",
        "Does it matter how the pairs are written?",
        f"Vectors of two types have cosines from {numbers.number(min(apart))} to {numbers.number(max(apart))} "
        f"(published 0.07 to 0.86). Fewest questions move the wrong way with '{best}' ({numbers.percent(wrong[best])}),"
        f" most with '{worst}' ({numbers.percent(wrong[worst])}); published 29 to 43 %.",
        (
            Table(
                f"Questions of {len(rows)} sets together",
                ("type", "effect", "wrong way", "mean cosine to the others", "least", "largest"),
                tuple(table),
            ),
        ),
        notes=(f"Sets: {numbers.listed([row['name'] for row in rows])}.",),
    )


def _shifts(rows: Sequence[Mapping[str, Any]]) -> Section:
    table, all_cells = [], [cell for row in rows for cell in row["shifts"]]
    for made, applied in dict.fromkeys((cell["made"], cell["applied"]) for cell in all_cells):
        cells = [cell for cell in all_cells if (cell["made"], cell["applied"]) == (made, applied)]
        within, across = [c["within"] for c in cells], [c["across"] for c in cells]
        relative = [c["relative"] for c in cells if c["relative"] is not None]
        table.append(
            (
                f"{made} → {applied}", sum(within) / len(within), sum(across) / len(across),
                statistics.median(relative) if relative else None, spearman(within, across),
                sum(c["distance"] for c in cells) / len(cells),
            )
        )  # fmt: skip
    moved = _known(rank_correlation([c["within"] for c in all_cells], [c["across"] for c in all_cells]))
    compared = [c for c in all_cells if c["relative"] is not None]
    far = _known(rank_correlation([c["distance"] for c in compared], [c["relative"] for c in compared]))
    return Section(
        "Other conditions",
        "Does a vector that was made under one instruction still steer under another?",
        f"Over sets and shifts, steerability where the vector was made and elsewhere correlate by "
        f"{numbers.level(moved)} (published 0.89 over 40 sets); relative steerability and the distance between the "
        f"two conditions by {numbers.level(far)} (published −0.26).",
        (
            Table(
                f"Mean slopes of {len(rows)} sets, nats per unit of strength",
                ("made → applied", "where made", "where applied", "relative (median)", "ρ over sets", "distance"),
                tuple(table),
            ),
        ),
        notes=(
            "Relative: slope of the vector over that of one made where it is applied. Distance: difference of the "
            "unsteered log-odds, nats. Questions stand in the chat template here; instructions stand in the system "
            "prompt or before the question.",
        ),
    )


def _two(value: float) -> str:
    """Two decimals, as correlations are published."""
    return f"{value:.2f}".replace("-", "−")


def _known(correlation: Estimate) -> Estimate | None:
    """The correlation, or None where one side does not vary."""
    return None if math.isnan(correlation.mean) else correlation


def _has_sign(correlation: Estimate | None, published: float | None) -> bool:
    if correlation is None or published is None:
        return False
    return numbers.excludes_zero(correlation) and correlation.mean * published > 0


def _extent(count: int, of: int) -> str:
    return f"All {of}" if count == of else f"{count} of {of}" if count else f"None of {of}"
