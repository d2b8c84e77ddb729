"""What the study `caa` says: a section for each question, its tables, its figures and the sentence that answers it."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean

from weightsteer.report import numbers
from weightsteer.report.activation_figures import draw_strengths
from weightsteer.report.document import Cell, Document, Figure, Section, Table
from weightsteer.stats import Estimate, paired_difference
from weightsteer.studies import _caa_blocks as blocks
from weightsteer.studies import _caa_published as published
from weightsteer.studies._caa_measured import SIDES, SYSTEMS, TABLE_KS, Measured
from weightsteer.studies._caa_page import Page, signed
from weightsteer.studies.caa import BehaviorSet, Settings


def make_document(settings: Settings, sets: Sequence[BehaviorSet], found: Measured) -> Document:
    """The report of a run."""
    page = Page(settings, sets, found)
    sections = [_letters(page), _systems(page)]
    sections += [_tuned(page)] if found.tuned is not None else []
    sections += [blocks.where(page), blocks.directions(page), blocks.transfer(page), blocks.clusters(page)]
    sections += [blocks.shift(page)] if found.shift is not None else []
    sections += [_costs(page)] if found.side_effects is not None else []
    sections += [_written(page)]
    return Document(
        title="Contrastive activation addition",
        headline=_headline(page),
        lead="A vector is the mean difference of activations between two letters of the same question, added while the "
        "model answers. The vector is made and its block chosen on other questions than those of letters, prompts, "
        "fine-tunes and side effects. Published numbers are of another model, Llama 2 Chat.",
        sections=tuple(sections),
        facts={
            "data": f"{settings.source}, files read from a local copy",
            "behaviors": numbers.listed([s.behavior.shown for s in sets]),
            "left out": ", ".join(settings.leave_out) or "none",
            "vector": f"mean difference at the letter; norms made common across behaviors; mode {settings.mode}",
        },
        data={"settings": settings.model_dump(mode="json", exclude={"data"}), **asdict(found)},
    )


def _moved(page: Page) -> str:
    """How many behaviors the vector moves, by intervals that leave out zero."""
    up = sum(change.low > 0 for change in page.changes.values())
    down = sum(change.high < 0 for change in page.changes.values())
    return f"towards the behavior for {up} of {len(page.sets)}" + (f", away from it for {down}" if down else "")


def _headline(page: Page) -> str:
    mean = fmean(change.mean for change in page.changes.values())
    cost = ""
    if page.found.side_effects is not None:
        name, change = _largest_cost(page)
        cost = f" The largest change of a benchmark is {numbers.change(change)} ({name})."
    return (
        f"From k = −1 to +1 the vectors move held-out answers {_moved(page)}; the probability of the matching "
        f"letter changes by {signed(mean)} on average.{cost}"
    )


def _letters(page: Page) -> Section:
    ks = [f"{k:g}" for k in page.settings.strengths]
    rows, curves = [], {}
    for s in page.sets:
        answers = page.found.answers[s.behavior.name]["none"]
        told = [page.mean(answers["p"][k]) for k in ks]
        curves[s.behavior.shown] = list(zip(page.settings.strengths, told, strict=True))
        rows.append((
            s.behavior.shown, page.block(s.behavior.name), len(s.pairs), len(s.test), *told,
            numbers.change(page.changes[s.behavior.name]), min(answers["mass"].values()),
            _triple(published.LETTERS_7B.get(s.behavior.name)),
        ))  # fmt: skip
    columns = (
        "behavior", "block", "pairs", "tested on", *(f"k = {numbers.strength(float(k))}" for k in ks),
        "+1 less −1", "least mass", "Llama 2 7B at −1 / 0 / +1, published",
    )  # fmt: skip
    largest = max(page.changes, key=lambda name: abs(page.changes[name].mean))
    known = [p for name, p in published.LETTERS_7B.items() if name in page.changes]
    beside = f" In Llama 2 7B {sum(p[2] > p[0] for p in known)} of these {len(known)} rise." if known else ""
    alt = "; ".join(
        f"{name}: {', '.join(f'{e.mean:.2f} at k {numbers.strength(k)}' for k, e in curve)}"
        for name, curve in curves.items()
    )
    return Section(
        "Held-out answers",
        "Does adding the vector make the model choose the letter that shows the behavior, on questions that it was "
        "not made from?",
        f"It moves answers {_moved(page)}; most for {dict(page.names())[largest]}, where the probability of the "
        f"matching letter changes by {numbers.change(page.changes[largest])} from k = −1 to +1.{beside}",
        (Table("Probability of the matching letter", columns, tuple(rows)),),
        (Figure("strengths", "Probability of the matching letter on test questions; bars are 95 % intervals.", alt,
                lambda theme: draw_strengths(curves, theme, "p(matching letter)")),),
        ("Mass is the probability of both letters together; a low one says that the answer format has broken.",
         *(f"{shown} in a text, token by token: ../heat/heat-{name}.html" for name, shown in page.names())),
    )  # fmt: skip


def _systems(page: Page) -> Section:
    rows, changes = [], {system: [] for system in SYSTEMS}
    for name, shown in page.names():
        cells: list[Cell] = [shown]
        for system in SYSTEMS:
            p = page.found.answers[name][system]["p"]
            changes[system].append(page.change(p).mean)
            cells.append(_triple([fmean(p[f"{k:g}"]) for k in TABLE_KS]))
        theirs = published.SYSTEM_PROMPTS_13B.get(name)
        rows.append((*cells, *(_triple(theirs[i] if theirs else None) for i in range(len(SYSTEMS)))))
    none, positive, negative = (signed(fmean(changes[system])) for system in SYSTEMS)
    columns = ("no system prompt", "positive prompt", "negative prompt")
    columns = ("behavior", *columns, *(f"Llama 2 13B, {column}, published" for column in columns))
    return Section(
        "System prompts",
        "Is anything left for the vector to do where a system prompt asks for the behavior, or against it?",
        f"From k = −1 to +1 the probability changes by {none} on average without a system prompt, by {positive} "
        f"under the positive one and by {negative} under the negative one.",
        (Table("Probability of the matching letter at k = −1 / 0 / +1", columns, tuple(rows)),),
        notes=("The system prompts are our own.",),
    )


def _tuned(page: Page) -> Section:
    assert page.found.tuned is not None
    rows, adds = [], dict.fromkeys(SIDES, 0)
    for name, shown in page.names():
        of = {"none": page.found.answers[name]["none"]["p"], **page.found.tuned[name]}
        changes = {side: page.change(of[side]) for side in SIDES}
        for side in SIDES:
            adds[side] += changes[side].low > 0
        right = fmean(p > 0.5 for p in of["positive"]["0"]), fmean(p < 0.5 for p in of["negative"]["0"])
        theirs = published.FINE_TUNES.get(name)
        rows.append((
            shown, *(_triple([fmean(p[f"{k:g}"]) for k in TABLE_KS]) for p in of.values()),
            *(numbers.change(changes[side]) for side in SIDES), _shares(right), _shares(theirs),
        ))  # fmt: skip
    columns = (
        "behavior", "no fine-tune", "positive fine-tune", "negative fine-tune", "+1 less −1, positive",
        "+1 less −1, negative", "own letters, held out", "Llama 2, own letters, published",
    )  # fmt: skip
    told = numbers.listed([f"{adds[side]} of {len(rows)} behaviors after the {side} one" for side in SIDES])
    return Section(
        "Fine-tunes",
        "Does the vector add to a fine-tune on the same letters?",
        f"On top of a fine-tune the vector still moves answers towards the behavior for {told}.",
        (Table("Probability of the matching letter at k = −1 / 0 / +1", columns, tuple(rows)),),
        notes=("A LoRA on the very questions that the vector is made from; in the paper the whole model, with SGD.",
               "Own letters: share of test questions on which the positive and the negative fine-tune, without a "
               "vector, prefer the letter that each was trained on."),
    )  # fmt: skip


def _cost_changes(page: Page) -> dict[tuple[str, str, str], Estimate]:
    """(benchmark, behavior, strength) -> change against the unsteered model."""
    assert page.found.side_effects is not None
    return {
        (benchmark, name, k): page.change(by[name], "0", k)
        for benchmark, by in page.found.side_effects.items()
        for name, _ in page.names()
        for k in ("-1", "1")
    }


def _largest_cost(page: Page) -> tuple[str, Estimate]:
    changes = _cost_changes(page)
    benchmark, name, k = max(changes, key=lambda key: abs(changes[key].mean))
    where = f"{benchmark}, {dict(page.names())[name]} at k = {numbers.strength(float(k))}"
    return where, changes[benchmark, name, k]


def _costs(page: Page) -> Section:
    assert page.found.side_effects is not None
    changes, tables = _cost_changes(page), []
    for benchmark, by in page.found.side_effects.items():
        rows = tuple(
            (shown, page.mean(by[name]["0"]), *(numbers.change(changes[benchmark, name, k]) for k in ("-1", "1")))
            for name, shown in page.names()
        )
        columns = ("vector of", "unsteered", "change at k = −1", "change at k = +1")
        tables.append(Table(f"{benchmark}: probability of the right one of two letters", columns, rows))
    where, largest = _largest_cost(page)
    certain = sum(change.high < 0 for change in changes.values())
    return Section(
        "Side effects",
        "What do the vectors cost in knowledge and truthfulness?",
        f"In {certain} of {len(changes)} cases (vector, sign, benchmark) the interval of the change is below zero, "
        f"where chance alone would put about one in 40; the largest change is {numbers.change(largest)} ({where}).",
        tuple(tables),
        notes=(f"Llama 2, published, MMLU: {published.MMLU_13B}.", f"TruthfulQA: {published.TRUTHFULQA_13B}."),
    )


def _written(page: Page) -> Section:
    rows, changes = [], {}
    for name, shown in page.names():
        ratings = (page.found.open_ended or {}).get(name) or {}
        told: list[Cell] = [_rating(page, ratings.get(f"{k:g}")) for k in TABLE_KS]
        both = [(a, b) for a, b in zip(ratings.get("1", []), ratings.get("-1", []), strict=True) if None not in (a, b)]
        if len(both) > 1:
            changes[name] = paired_difference(*zip(*both, strict=True), seed=page.settings.seed)
        rows.append((shown, *told, _triple(published.OPEN_ENDED_7B.get(name))))
    answer = "Not judged: the recipe names no judge." if page.found.open_ended is None else (
        f"Of {len(changes)} behaviors with ratings, those of open answers rise from k = −1 to +1 for "
        f"{sum(change.low > 0 for change in changes.values())}."
    )  # fmt: skip
    columns = ("behavior", "k = −1", "k = 0", "k = +1", "Llama 2 7B at −1 / 0 / +1, published")
    return Section(
        "Open answers",
        "Does the behavior show in answers that the model writes itself?",
        answer,
        (Table("How much open answers show the behavior, 0 to 10", columns, tuple(rows)),),
        notes=("Published ratings are by GPT-4.",),
    )


def _rating(page: Page, scores: Sequence[float | None] | None) -> Cell:
    given = [score for score in scores or () if score is not None]
    return page.mean(given) if len(given) > 1 else "not judged"


def _triple(values: Sequence[float] | None) -> str:
    """Levels at −1, 0 and +1 in the form of the paper's tables."""
    return "none" if values is None else " / ".join(f"{value:.2f}" for value in values)


def _shares(values: Sequence[float] | None) -> str:
    return "none" if values is None else " / ".join(numbers.percent(value) for value in values)
