"""The report of `diagnose`: what pairs let expect, what vectors did, and how far weight vectors agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightsteer.activations.expectation import DEPTH, Calibration, about, block_at, sentence
from weightsteer.report import numbers
from weightsteer.report.document import Cell, Document, Figure, Section, Table
from weightsteer.report.theme import Theme, new_figure
from weightsteer.steerability import Steerability

COLUMNS = (
    "block",
    "agreement",
    "left out",
    "d′",
    "d′ left out",
    "κ spread",
    "overlap",
    "AUC",
    "split-half",
    "stability",
)
READING = (
    "Agreement: mean cosine of a pair's difference with the mean difference; left out: with that of the other pairs, "
    "which is about 0 where pairs share nothing. d′: distance of the two sides along the mean difference, in standard "
    "deviations; κ puts the two means at 1 and −1. Split-half and stability: cosines of mean differences of half of "
    "the pairs, and of 25 of them."
)


@dataclass(frozen=True)
class Before:
    """What is known of pairs before anything is steered."""

    name: str
    blocks: Sequence[Any]
    """Geometry at the output of every block."""
    read_at: str
    written: bool
    """Whether the answers are written texts, unlike those of the calibration sets."""
    calibration: Calibration | None

    @property
    def block(self) -> int:
        """The block at the depth that the calibration was made at."""
        return block_at(DEPTH if self.calibration is None else self.calibration.depth, len(self.blocks))

    @property
    def best(self) -> int:
        """The block whose pairs agree most, each with the others."""
        return max(range(len(self.blocks)), key=lambda b: self.blocks[b].agreement_left_out)

    @property
    def sentence(self) -> str:
        """What to expect."""
        there = self.blocks[self.block]
        return sentence(there.agreement_left_out, there.d_prime_left_out, self.calibration)


def document(
    before: Before,
    steered: Mapping[str, Mapping[str, Any]],
    agreement: Mapping[str, Any] | None,
    parts: Mapping[str, Mapping[str, Steerability]],
    facts: Mapping[str, str],
) -> Document:
    """The report, with every number in its data."""
    sections = [_before(before)]
    if steered:
        sections.append(_after(steered))
    if agreement is not None:
        sections.append(_agreement(agreement))
    if parts:
        sections.append(_parts(parts))
    pairs = before.blocks[0].pairs
    return Document(
        title=f"Can {before.name} be steered?",
        headline=numbers.sentence(before.sentence),
        lead=f"{pairs} pairs, read at {before.read_at}, at the output of every block.",
        sections=tuple(sections),
        facts=facts,
        data={
            "expectation": before.sentence,
            "block": before.block,
            "best_block": before.best,
            "blocks": list(before.blocks),
            "vectors": {name: dict(found) for name, found in steered.items()},
            "vector_agreement": agreement,
            "parts": {name: dict(found) for name, found in parts.items()},
        },
    )


def _before(before: Before) -> Section:
    best = before.blocks[before.best]
    rows = [
        (
            f"{b}{' (expected from)' if b == before.block else ''}{' (best)' if b == before.best else ''}",
            g.agreement, g.agreement_left_out, g.d_prime, g.d_prime_left_out, g.kappa_spread, g.overlap, g.auc,
            g.split_half, g.stability,
        )
        for b, g in enumerate(before.blocks)
    ]  # fmt: skip
    notes = [READING, about(before.calibration)]
    if before.written and before.calibration is not None:
        notes.append("The calibration sets are questions with two short answers; to written answers it is stretched.")
    return Section(
        "Before steering",
        "Do the pairs differ in one direction, so that adding it moves most inputs the same way?",
        f"Block {before.block}: {before.sentence}. Pairs agree most at block {before.best}: "
        f"{numbers.number(best.agreement_left_out)} left out, d′ {numbers.number(best.d_prime_left_out)}.",
        (Table("By block, 0-based", COLUMNS, tuple(rows)),),
        (
            Figure(
                "geometry",
                "Agreement and d′, left out, at the output of every block.",
                f"Two curves over {len(before.blocks)} blocks; agreement peaks at block {before.best}.",
                lambda theme: _draw(before, theme),
            ),
        ),
        tuple(notes),
    )


def _draw(before: Before, theme: Theme) -> Any:
    figure, (above, below) = new_figure(3.2, shape=(2, 1), sharex=True)
    for axes, label, read in (
        (above, "agreement", lambda g: g.agreement_left_out),
        (below, "d′", lambda g: g.d_prime_left_out),
    ):
        axes.plot([read(g) for g in before.blocks], color=theme.methods["activations"], marker="s", markersize=3)
        axes.axhline(0, color=theme.muted, linewidth=0.8)
        axes.axvline(before.block, color=theme.muted, linewidth=0.8, linestyle=":")
        axes.set_ylabel(label)
    below.set_xlabel("block (dotted: expected from)")
    return figure


def _after(steered: Mapping[str, Mapping[str, Any]]) -> Section:
    rows, said = [], []
    for name, found in steered.items():
        s, e, explained = found["steerability"], found["effect"], found["bias"]
        rows.append(
            (
                name, s.items, s.slope, numbers.percent(s.anti_steerable), numbers.change(e.mean), e.standardized,
                numbers.percent(e.wrong_way), s.residual, numbers.percent(s.monotone),
                None if explained is None else numbers.percent(explained.explained),
            )
        )  # fmt: skip
        said.append(
            f"{name}: slope {numbers.level(s.slope)} nats per unit of strength; {numbers.percent(s.anti_steerable)} of "
            "the items do not rise with it"
        )
    columns = (
        "vector", "items", "slope", "anti-steerable", "effect at the largest k", "standardized", "wrong way",
        "residual", "monotone", "explained by form",
    )  # fmt: skip
    return Section(
        "After steering",
        "How does each vector move items that are in no pair read above, and how many move the wrong way?",
        numbers.sentence("; ".join(said)),
        (Table("Log-odds of the matching answer over the strengths", columns, tuple(rows)),),
        notes=(
            "Slope: least-squares line of an item's log-odds (nats) over the strengths; anti-steerable: not positive. "
            "Explained by form: how much of the slopes' variance the position and the word of the matching answer "
            "account for; not scored where answers are written.",
        ),
    )


def _agreement(found: Mapping[str, Any]) -> Section:
    parts: list[tuple[Cell, ...]] = [(kind, cosine) for kind, cosine in found["by_kind"].items()]
    parts += [(f"block {block}", cosine) for block, cosine in found["by_block"].items()]
    return Section(
        "Agreement of the weight vectors",
        "Do the weight vectors, made from other seeds or other halves of the data, point the same way?",
        f"Their mean cosine is {numbers.number(found['whole'])} over all parameters.",
        (
            Table("Cosine of two vectors", ("vectors", "cosine"), tuple(found["pairs"].items())),
            Table("Mean cosine by part", ("part", "cosine"), tuple(parts)),
        ),
    )


def _parts(parts: Mapping[str, Mapping[str, Steerability]]) -> Section:
    rows = [
        (name, part, s.slope, numbers.percent(s.anti_steerable))
        for name, found in parts.items()
        for part, s in found.items()
    ]
    best = max(rows, key=lambda row: row[2].mean)
    return Section(
        "Parts of the weight vectors",
        "Which part of a weight vector steers, when it is applied alone?",
        f"The steepest is {best[1]} of {best[0]}: {numbers.level(best[2])} nats per unit of strength.",
        (Table("Each part alone", ("vector", "part", "slope", "anti-steerable"), tuple(rows)),),
    )
