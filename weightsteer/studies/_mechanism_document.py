"""What the study `mechanism` says: a section for each question; here parts of the model and values as tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from weightsteer.report import numbers
from weightsteer.report.document import Cell, Document, Figure, Section, Table
from weightsteer.report.mechanism_figures import describe_heads, describe_shares, draw_heads, draw_shares
from weightsteer.studies import _mechanism_needed as needed
from weightsteer.studies import _mechanism_paths as paths
from weightsteer.studies._mechanism_measured import Measured
from weightsteer.studies._mechanism_words import (
    LABELS,
    PUBLISHED_MODELS,
    SOURCE,
    effect_note,
    lost,
    nothing,
    sentences,
    strengths_note,
    told,
)
from weightsteer.studies.mechanism import Settings

# Vectors that the headline tells of.
HEADLINE = ("means", "weights")
PUBLISHED_QK = (
    f"Published for refusal ({SOURCE}; {PUBLISHED_MODELS}, answers counted by a judge): freezing all attention "
    "probabilities costs 8.75 % of the effect, values far more."
)


def make_document(settings: Settings, found: Measured) -> Document:
    """The report of a run."""
    sections = (
        _frozen(settings, found), _parts(settings, found), _values(settings, found), paths.nodes(settings, found),
        paths.circuits(settings, found), needed.dimensions(settings, found), needed.weights(settings, found),
    )  # fmt: skip
    acting = [name for name in HEADLINE if numbers.excludes_zero(found.frozen[name]["whole"])]
    return Document(
        title=f"What steering acts through: {settings.behavior}",
        headline=_taken(found, acting) or sections[0].answer,
        lead="Four vectors steer the same model towards the same behavior: the mean difference of its activations "
        "between two kinds of answers, activation vectors that are trained on the next token of such answers and on "
        "preferences between them, and a difference of fine-tuned weights. Each is made from one part of the questions "
        "and measured on the others. Published numbers are of other models and other measures.",
        sections=sections,
        facts={"behavior": settings.behavior},
        data=asdict(found),
    )


def _frozen(settings: Settings, found: Measured) -> Section:
    whole = {name: one["whole"] for name, one in found.frozen.items()}
    acting = [name for name in whole if numbers.excludes_zero(whole[name])]
    cases = {name: one["cases"] for name, one in found.frozen.items()}
    rows: list[tuple[Cell, ...]] = [
        (LABELS[name], numbers.change(whole[name]), *(told(lost(kept["share"])) for kept in cases[name].values()))
        for name in whole
    ]
    bars = [(f"{LABELS[name]}: {case}", lost(kept["share"])) for name in acting for case, kept in cases[name].items()]
    label = "share of the effect that is lost"
    return Section(
        "What it acts through",
        "Does steering change where attention looks, what attention moves from there, or what the MLPs write?",
        sentences(_taken(found, acting), nothing([LABELS[name] for name in whole if name not in acting])),
        (Table("Effect, and the share of it that is lost with parts frozen in all blocks",
               ("vector", "effect", *(f"without change of {case}" for case in next(iter(cases.values())))),
               tuple(rows)),),
        (Figure("frozen", "Share of the effect that is lost when a part is held at what it is without steering.",
                describe_shares(bars, label), partial(draw_shares, bars, label)),) if bars else (),
        (
            effect_note(settings),
            strengths_note(settings, found.lengths),
            "Frozen: in every block the part takes the values that it has without steering; what comes after it sees "
            "all else steered. Parts depend on each other, so that shares do not add up to all of the effect.",
            PUBLISHED_QK,
        ),
    )  # fmt: skip


def _taken(found: Measured, names: Sequence[str]) -> str:
    """A sentence for each part that is frozen; empty where no vector acts."""
    said = []
    for case in found.frozen[names[0]]["cases"] if names else ():
        shares = [f"{told(lost(found.frozen[name]['cases'][case]['share']))} ({LABELS[name]})" for name in names]
        said.append(f"Freezing {case} takes {numbers.listed(shares)} of the effect.")
    return " ".join(said)


def _parts(settings: Settings, found: Measured) -> Section:
    cases: Mapping[str, Any] = found.parts["cases"]
    rows = tuple(
        (name, numbers.percent(found.parts["squares"][name]), numbers.change(kept["change"]), told(kept["share"]))
        for name, kept in cases.items()
    )
    bars = [(name, kept["share"]) for name, kept in cases.items()]
    if numbers.excludes_zero(found.parts["whole"]):
        order = sorted(cases, key=lambda name: -cases[name]["share"].mean)
        listed = [f"{name} {told(cases[name]['share'])}" for name in order]
        answer = f"Alone, each without all the others, they have of the whole vector's effect: {'; '.join(listed)}."
    else:
        bars, answer = [], nothing([LABELS["weights"]])
    label = "share of the effect that the part has alone"
    return Section(
        "Which weights",
        "Which part of the weight vector carries its effect?",
        answer,
        (Table("Parts of the weight vector, each applied alone",
               ("part", "share of the squared norm", "effect", "share of the whole effect"), rows),),
        (Figure("parts", "What parts of the weight vector do alone.", describe_shares(bars, label),
                partial(draw_shares, bars, label)),) if bars else (),
        (f"The whole vector's effect: {numbers.change(found.parts['whole'])}.",),
    )  # fmt: skip


def _values(settings: Settings, found: Measured) -> Section:
    tables, figures, said = [], [], []
    for name, values in found.values.items():
        tables.append(_heads_table(name, values))
        said.append(_leaning(settings, name, values))
        blocks = [row["block"] for row in values["blocks"]]
        gains = [[gain / max(row["gains"]) for gain in row["gains"]] for row in values["blocks"]]
        label = "gain by the block's largest"
        figures.append(
            Figure(
                f"values-{name}", f"{numbers.sentence(LABELS[name])} How much each head makes of what it reads.",
                describe_heads(gains, blocks, label), partial(draw_heads, gains, blocks, label),
            )
        )  # fmt: skip
    return Section(
        "What heads write of it",
        "What do attention heads turn a vector into, read as words?",
        " ".join(said),
        tuple(tables),
        tuple(figures),
        (
            "A head turns a direction s of the stream into W_O W_V (γ·s), whatever the text; how much of it arrives "
            "depends on where the head looks. Of the weight vector, a block reads the mean shift that it has made by "
            "then, at the last token of held-out questions.",
            f"Lean: how much more the tokens of answers that show {settings.behavior} are raised than those of the "
            "other answers, in standard deviations over the vocabulary. Gains compare heads of one block; the table "
            "has the largest of each.",
        ),
    )


def _heads_table(name: str, values: Mapping[str, Any]) -> Table:
    itself = values["itself"]
    rows: list[tuple[Cell, ...]] = [
        ("as the last block reads it", "", "", numbers.change(itself["lean"]), *_tokens(itself))
    ]
    rows += [
        (f"{row['block']}.{row['head']}", row["gain"], row["cosine"], numbers.change(row["lean"]), *_tokens(row))
        for row in values["blocks"]
    ]
    columns = ("block and head", "gain", "cosine with what is read", "lean", "raises", "lowers")
    return Table(f"{numbers.sentence(LABELS[name])} The head of the largest gain in each block.", columns, tuple(rows))


def _leaning(settings: Settings, name: str, values: Mapping[str, Any]) -> str:
    heads, itself = values["blocks"], values["itself"]["lean"]
    known = [row for row in heads if row["lean"] is not None]  # a head that writes nothing leans nowhere
    positive = [row for row in known if row["lean"].low > 0]
    said = (
        f"Of {LABELS[name]}: in {len(positive)} of {len(heads)} blocks the head of the largest gain raises words of "
        f"answers that show {settings.behavior} over words of the others beyond chance; what the last block reads "
        f"leans by {numbers.change(itself)}."
    )
    if not known:
        return said
    best = max(known, key=lambda row: row["lean"].mean)
    return f"{said} Most does head {best['block']}.{best['head']}, by {numbers.change(best['lean'])}."


def _tokens(row: Mapping[str, Any]) -> tuple[str, str]:
    raised, lowered = (" ".join(repr(text) for text, _ in row[key]) for key in ("top", "bottom"))
    return raised, lowered
