"""What the study `mechanism` says of heads, MLPs and circuits."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from weightsteer.report import numbers
from weightsteer.report.circuit_figures import draw_faithfulness, draw_nodes
from weightsteer.report.document import Cell, Figure, Section, Table
from weightsteer.report.sparsity_figures import draw_overlap
from weightsteer.studies._mechanism_circuits import LEAST_EXAMPLES, as_node, can_carry
from weightsteer.studies._mechanism_measured import Measured
from weightsteer.studies._mechanism_words import LABELS, PUBLISHED_MODELS, SOURCE, labels, sentences, told
from weightsteer.studies.mechanism import Settings

TOP = 6
PUBLISHED = (
    f"Published ({SOURCE}, {PUBLISHED_MODELS}, as cited by others): 10 to 11 % of the edges recover 85 % of the "
    "effect; circuits of activation vectors made in three ways overlap by 90 % or more, while cosines of the vectors "
    "are .30 to .42."
)
TOKENS_NOTE = (
    "Measured on greedy answers of both models, at the tokens where they part: logit of the steered model's choice "
    "less that of the unsteered model's."
)


def silent(names: list[str]) -> str:
    """Says of which vectors hardly any token tells that they act; empty where there are none."""
    if not names:
        return ""
    return (
        f"With {labels(names)} fewer than {LEAST_EXAMPLES} of the answers have a token at which the model chooses "
        "otherwise than without, so there is nothing to explain."
    )


def counted(known: Mapping[str, Any]) -> str:
    """What is measured, and on how many answers, over which intervals are."""
    if not known:
        return TOKENS_NOTE
    answers = [f"{LABELS[name]} {one['examples']}" for name, one in known.items()]
    return f"{TOKENS_NOTE} Answers with such tokens: {numbers.listed(answers)}."


def nodes(settings: Settings, found: Measured) -> Section:
    """Heads and MLPs one by one, exactly and by gradients."""
    known = {name: one for name, one in found.patched.items() if one is not None}
    said, tables, figures = [], [], []
    for name, one in known.items():
        ranked = _ranked(one)
        node, exact, _ = ranked[0]
        said.append(
            f"Of {LABELS[name]}, {node} does most by itself: {_share(exact, one)} of the steered model's change. "
            f"Estimates by gradients rank {len(ranked)} heads and MLPs as patching does with ρ = "
            f"{numbers.level(one['agreement'])}."
        )
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (str(node), exact, _share(exact, one), estimated) for node, exact, estimated in ranked[:TOP]
        )
        columns = ("steered alone", "change", "share of the whole change", "estimated change")
        tables.append(Table(f"{numbers.sentence(LABELS[name])} The heads and MLPs that do most.", columns, rows))
        grid, first = _grid(one)
        figures.append(
            Figure(
                f"nodes-{name}", f"{numbers.sentence(LABELS[name])} Change of the logits when one head or MLP alone "
                "has its steered value.",
                f"A row for each block, a column for each head and the MLP. Most: {node}, {numbers.number(exact)}.",
                partial(_draw_nodes, grid, first),
            )
        )  # fmt: skip
    return Section(
        "Which heads and MLPs",
        "Which heads and MLPs carry a vector's effect, and are fast estimates of that to be trusted?",
        sentences(*said, silent([name for name in found.patched if name not in known])),
        tuple(tables),
        tuple(figures),
        (
            counted(known),
            f"Estimates: integrated gradients in {settings.steps} steps. ρ: Spearman's rank correlation over heads and "
            "MLPs, its interval by resampling these.",
        ),
    )


def _draw_nodes(grid: list[list[float]], first: int, theme: Any) -> Any:
    return draw_nodes(grid, theme, first=first, label="change of logits")


def _ranked(one: Mapping[str, Any]) -> list[tuple[Any, float, float]]:
    rows = zip(map(as_node, one["nodes"]), one["exact"], one["estimated"], strict=True)
    return sorted(rows, key=lambda row: -abs(row[1]))


def _share(exact: float, one: Mapping[str, Any]) -> str:
    return f"{100 * exact / one['change']:.0f} %".replace("-", "−")


def _grid(one: Mapping[str, Any]) -> tuple[list[list[float]], int]:
    """Exact effects, a row for each block with its heads and then its MLP; and the first block."""
    rows: dict[int, list[float]] = {}
    for node, value in zip(one["nodes"], one["exact"], strict=True):
        rows.setdefault(node["block"], []).append(value)
    return list(rows.values()), min(rows)


def circuits(settings: Settings, found: Measured) -> Section:
    """How few edges carry the effect, and whether vectors share them."""
    known = {name: one for name, one in found.circuits.items() if one is not None}
    curves = {
        LABELS[name]: [(row["share"], row["logit"]) for row in one["circuits"] if row["share"] > 0]
        for name, one in known.items()
    }
    curves = {label: curve for label, curve in curves.items() if curve}
    figures = []
    if curves:
        alt = "; ".join(
            f"{label}: {told(curve[-1][1])} at {numbers.percent(curve[-1][0])}" for label, curve in curves.items()
        )
        figures.append(
            Figure("circuits", "What a circuit carries of the effect alone, by its share of the edges.", f"{alt}.",
                   partial(draw_faithfulness, curves))
        )  # fmt: skip
    names, overlaps = found.shared["names"], found.shared["overlaps"]
    if overlaps:
        iou, chance = matrices(names, overlaps)
        figures.append(
            Figure("shared", f"Overlap of circuits of {numbers.percent(settings.circuit_share)} of the edges: edges "
                   "in both by edges in either.", numbers.sentence("; ".join(overlap_words(one) for one in overlaps)),
                   partial(draw_overlap, [LABELS[name] for name in names], iou, chance))
        )  # fmt: skip
    return Section(
        "Circuits",
        "How few connections between heads and MLPs carry the effect, and are they the same for every vector?",
        sentences(_carried(settings, known), _agreement(found), silent([n for n in found.circuits if n not in known])),
        tuple(_circuit_tables(settings, found, known)),
        tuple(figures),
        (
            counted(known),
            "A circuit is a share of the edges, those of the largest estimated effect, less what is on no path from "
            "the vector to the output. Alone: all that is not in it takes its values without steering. Every head "
            "and MLP of changed weights is a source of its own, so the weight vector has more edges to choose from.",
            "Overlap is counted over edges that both vectors can act along. A circuit of the weight vector has no edge "
            "from the place where an activation vector is added, so it cannot carry that one's effect.",
            PUBLISHED,
        ),
    )


def _at(settings: Settings, one: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(row for row in one["circuits"] if row["asked"] == settings.circuit_share)


def _carried(settings: Settings, known: Mapping[str, Any]) -> str:
    if not known:
        return ""
    said = [
        f"{told(_at(settings, one)['logit'])} of the change by {LABELS[name]} "
        f"({numbers.percent(_at(settings, one)['share'])} of the edges are left on complete paths)"
        for name, one in known.items()
    ]
    return (
        f"The {numbers.percent(settings.circuit_share)} of edges with the largest scores carry {numbers.listed(said)}."
    )


def _agreement(found: Measured) -> str:
    overlaps = found.shared["overlaps"]
    if not overlaps:
        return ""
    certain = sum(one["p_value"] < 0.05 / len(overlaps) for one in overlaps)
    weights = [one["iou"] for one in overlaps if "weights" in (one["one"], one["other"])]
    others = [one["iou"] for one in overlaps if "weights" not in (one["one"], one["other"])]
    kinds = (("of two activation vectors", others), ("of an activation vector and the weight vector", weights))
    said = [f"circuits {of} share {_range(values)} of their edges" for of, values in kinds if values]
    cosines = f", while cosines of the activation vectors are {_range(list(found.cosines.values()))}"
    return (
        numbers.sentence("; ".join(said) + cosines)
        + f" {certain} of {len(overlaps)} overlaps exceed chance (p < 0.05, corrected for their number)."
    )


def _range(values: list[float]) -> str:
    low, high = (f"{value:.2f}".replace("-", "−") for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def overlap_words(one: Mapping[str, Any]) -> str:
    """The overlap of two sets, and that of random ones."""
    return f"{LABELS[one['one']]} and {LABELS[one['other']]} {one['iou']:.2f}, by chance {one['expected_iou']:.2f}"


def chance_of(one: Mapping[str, Any]) -> Cell:
    """The p-value of an overlap; a very small one is not said in figures that nothing bears out."""
    return one["p_value"] if one["p_value"] >= 0.001 else "under 0.001"


def matrices(names: list[str], overlaps: list[Mapping[str, Any]]) -> tuple[list[list[float]], list[list[float]]]:
    """Intersection over union of every two, and by chance, as symmetric matrices."""
    by = {frozenset((one["one"], one["other"])): one for one in overlaps}

    def matrix(key: str) -> list[list[float]]:
        return [[1.0 if a == b else by[frozenset((a, b))][key] for b in names] for a in names]

    return matrix("iou"), matrix("expected_iou")


def _circuit_tables(settings: Settings, found: Measured, known: Mapping[str, Any]) -> list[Table]:
    rows: list[tuple[Cell, ...]] = [
        (
            LABELS[name],
            row["asked"],
            numbers.percent(row["share"]),
            told(row["logit"]),
            told(row["kl"]),
            told(row["match"]),
        )
        for name, one in known.items()
        for row in one["circuits"]
    ]
    columns = ("vector", "share asked for", "edges left", "of the change of logits", "of the divergence", "same tokens")
    tables = [Table("What circuits carry alone", columns, tuple(rows))]
    pairs: list[tuple[Cell, ...]] = [
        (
            f"{LABELS[one['one']]} and {LABELS[one['other']]}", one["iou"], one["expected_iou"], chance_of(one),
            found.cosines.get(f"{one['one']} and {one['other']}", "none"),
        )
        for one in found.shared["overlaps"]
    ]  # fmt: skip
    columns = ("of", "in both by in either", "by chance", "p", "cosine of the vectors")
    tables.append(Table("Overlap of circuits", columns, tuple(pairs)))
    names = found.shared["names"]
    carried = found.shared["carried"]
    crossed = tuple(
        (LABELS[of], *(told(carried[name][of]["logit"]) if can_carry(of, name) else "none" for name in names))
        for of in names
    )
    tables.append(
        Table("What the circuit of one vector (row) carries of the effect of another (column)",
              ("circuit of", *(LABELS[name] for name in names)), crossed)
    )  # fmt: skip
    return tables
