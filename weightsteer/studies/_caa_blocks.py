"""Sections of the study `caa` on where in the network its vectors act, and on what they lie along."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from weightsteer.report import numbers
from weightsteer.report.activation_figures import Plane, draw_by_block, draw_cosines, draw_planes
from weightsteer.report.document import Figure, Section, Table
from weightsteer.studies import _caa_published as published
from weightsteer.studies._caa_page import Page, signed

# A direction whose cosine with another falls below this is said to be another one.
HALF = 0.5


def where(page: Page) -> Section:
    """The sweep that the blocks were chosen by."""
    lines = {shown: _means(page.found.blocks["effects"][name]) for name, shown in page.names()}
    chosen = {shown: page.block(name) for name, shown in page.names()}
    depths = [block / page.blocks for block in chosen.values()]
    rows = tuple(
        (shown, b, f"{b / page.blocks:.2f}", numbers.change(page.mean(page.found.blocks["effects"][name][str(b)])))
        for (name, shown), b in zip(page.names(), chosen.values(), strict=True)
    )
    given = "given in the recipe" if page.settings.block is not None else "chosen by the sweep"
    answer = (
        f"The blocks {given} lie between {min(depths):.2f} and {max(depths):.2f} of the depth, of {page.blocks} "
        f"blocks (Llama 2 7B: {published.BLOCK_7B / published.BLOCKS_7B:.2f})."
    )
    caption = "Spread between k = +1 and −1 on held-out questions of the generate file, by block; rings: blocks used."
    return Section(
        "Blocks",
        "Where in the network does the vector act?",
        answer,
        (Table("Spread at the block used", ("behavior", "block", "depth", "+1 less −1"), rows),),
        (Figure("blocks", caption, f"{caption} {_peaks(lines)}",
                lambda theme: draw_by_block(lines, theme, "p(match), +1 less −1", chosen)),),
        ("The block is chosen on these questions, so this spread flatters it; the table of letters is on others.",),
    )  # fmt: skip


def directions(page: Page) -> Section:
    """Cosines between the blocks' vectors."""
    matrices = {shown: page.found.views["cosines"][name] for name, shown in page.names()}
    by_distance = [
        fmean(matrix[b][b + d] for matrix in matrices.values() for b in range(page.blocks - d))
        for d in range(1, page.blocks)
    ]
    apart = next((d for d, cosine in enumerate(by_distance, start=1) if cosine < HALF), None)
    answer = (
        "There is one block only." if not by_distance
        else f"Neighboring blocks have a mean cosine of {by_distance[0]:.2f}; "
        + (f"{apart} blocks apart it is below {HALF:g}, so it is not one direction throughout." if apart
           else f"it stays above {HALF:g} at every distance.")
    )  # fmt: skip
    caption = "Cosine between the vectors of every two blocks."
    return Section(
        "Directions",
        "Is it the same direction in all blocks?",
        answer,
        figures=(Figure("cosines", caption, f"{caption} {answer}",
                        lambda theme: draw_cosines(matrices, range(page.blocks), theme)),),
    )  # fmt: skip


def transfer(page: Page) -> Section:
    """The chosen vector at other blocks."""
    lines = {shown: _means(page.found.views["transfer"][name]) for name, shown in page.names()}
    chosen = {shown: page.block(name) for name, shown in page.names()}
    acting = {shown: line for shown, line in lines.items() if line[chosen[shown]] > 0}
    kept = {
        shown: [b for b in line if b != chosen[shown] and line[b] >= HALF * line[chosen[shown]]]
        for shown, line in acting.items()
    }
    told = [f"{shown} in {len(kept[shown])} of {len(line) - 1}" for shown, line in acting.items()]
    answer = (
        f"At other blocks it keeps at least half of its effect: {numbers.listed(told)} blocks tried." if told
        else "At its own block no vector moves answers towards its behavior, so there is nothing to keep."
    )  # fmt: skip
    caption = "The vector of one block (ring) added at others instead: +1 less −1 on held-out questions."
    return Section(
        "Transfer",
        "Does the vector of one block act from other blocks?",
        answer,
        figures=(Figure("transfer", caption, f"{caption} {_peaks(lines)}",
                        lambda theme: draw_by_block(lines, theme, "p(match), +1 less −1", chosen)),),
    )  # fmt: skip


def clusters(page: Page) -> Section:
    """Components of the activations, and what separates in them."""
    by = {
        kind: {shown: {b: row[kind] for b, row in enumerate(page.found.views["separation"][name])}
               for name, shown in page.names()}
        for kind in ("behavior", "answer")
    }  # fmt: skip
    mean = {kind: [fmean(line[b] for line in lines.values()) for b in range(page.blocks)] for kind, lines in by.items()}
    jump, rise = max(((b, after - before) for b, (before, after) in enumerate(pairwise(mean["behavior"]), start=1)),
                     key=lambda found: found[1], default=(0, 0.0))  # fmt: skip
    peak = max(range(page.blocks), key=lambda b: mean["behavior"][b])
    name, shown = page.names()[
        max(range(len(page.sets)), key=lambda i: by["behavior"][page.sets[i].behavior.shown][peak])
    ]
    drawn = page.found.views["planes"][name]
    planes = [
        Plane(f"block {plane['block']}", [(x, y) for x, y in plane["points"]], drawn["labels"]["behavior"],
              drawn["labels"]["answer"])
        for plane in drawn["blocks"]
    ]  # fmt: skip
    answer = (
        f"At block {peak}, where the behavior stands out most, it holds {mean['behavior'][peak]:.2f} of the "
        f"variance in the plane of two components, the letter {mean['answer'][peak]:.2f}; its largest rise from "
        f"one block to the next is {signed(rise)}, at block {jump}."
    )
    separation = "Share of the plane's variance between texts whose letter matches the behavior and the others."
    components = f"Activations at the letter, {shown}: two components of several blocks."
    return Section(
        "Clusters",
        "Do activations at the letter separate by what the letter means, or by which letter it is?",
        answer,
        (Table(
            "Share of the plane's variance between groups, at the block used",
            ("vector of", "block", "matching and other letters", "A and B", "the plane's share of all variance"),
            tuple(
                (shown, page.block(name), *(by[kind][shown][page.block(name)] for kind in by), sum(_plane(page, name)))
                for name, shown in page.names()
            ),
        ),),
        figures=(
            Figure("components", components, f"{components} {answer}", lambda theme: draw_planes(planes, theme)),
            Figure("separation", separation, f"{separation} {_peaks(by['behavior'])}",
                   lambda theme: draw_by_block(by["behavior"], theme, "separation by behavior")),
        ),
        notes=("Letters without meaning would hold 1 / (texts − 1) of the variance on average.",),
    )  # fmt: skip


def shift(page: Page) -> Section:
    """The vector against what a weight vector changes."""
    assert page.found.shift is not None
    lines = {shown: {int(b): c for b, c in page.found.shift[name].items()} for name, shown in page.names()}
    first = min(block for line in lines.values() for block in line)
    own = {shown: lines[shown][page.block(name)] for name, shown in page.names() if page.block(name) in lines[shown]}
    before = [shown for _, shown in page.names() if shown not in own]
    told = []
    if own:
        most = max(own, key=lambda shown: own[shown])
        told.append(
            "at the blocks used, the cosine of the vector with what the weight vector changes is "
            f"{signed(fmean(own.values()))} on average, highest for {most} ({signed(own[most])})"
        )
    if before:
        told.append(f"the weight vector begins behind the block used for {numbers.listed(before)}, in block {first}")
    answer = numbers.sentence("; ".join(told))
    caption = "Cosine of the vector with the mean shift of activations under the weight vector at k = 1, by block."
    return Section(
        "Weight vectors",
        "Does a weight vector, made of fine-tunes on the same letters, move activations the same way?",
        answer,
        figures=(Figure("shift", caption, f"{caption} {_peaks(lines)}",
                        lambda theme: draw_by_block(lines, theme, "cosine")),),
        notes=("Read at the last token before the letter, over the held-out questions; the weight vector is the "
               "positive fine-tune less the negative one.",),
    )  # fmt: skip


def _plane(page: Page, name: str) -> Sequence[float]:
    """Shares of all variance that the two components have at the block used."""
    planes = page.found.views["planes"][name]["blocks"]
    return next(plane["shares"] for plane in planes if plane["block"] == page.block(name))


def _means(effects: Mapping[str, Sequence[float]]) -> dict[int, float]:
    return {int(block): fmean(of) for block, of in effects.items()}


def _peaks(lines: Mapping[str, Mapping[int, float]]) -> str:
    """Each line's highest point, in words."""
    highest = {name: max(line, key=lambda block, line=line: line[block]) for name, line in lines.items()}
    return "; ".join(f"{name} is highest at block {b}, {lines[name][b]:.2f}" for name, b in highest.items()) + "."
