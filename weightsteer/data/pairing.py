"""Rated answers of both sides -> pairs of like length, and a table of why the other answers fell."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import itemgetter
from statistics import fmean
from typing import Any

from weightsteer.data.contrast import LENGTH_IMBALANCE, SIDES, Side
from weightsteer.data.traits import normalized
from weightsteer.recipe import ElicitPart

# Every sampled answer has exactly one fate.
FATES = {
    "empty": "empty",
    "cut_off": "cut off before its first sentence ended",
    "duplicate": "said before to the same question",
    "unscored": "without a rating",
    "wrong_side": "rated otherwise than asked for",
    "unpaired": "without a partner on the other side",
    "over_limit": "more than wanted of one question",
    "unbalanced": "left out to balance the lengths",
    "kept": "kept",
}
MEASURES = {
    "shortened": "shortened to their last full sentence",
    "rating": "mean rating of all that have one",
    "kept_rating": "mean rating of those kept",
    "kept_words": "mean words of those kept",
}


@dataclass(frozen=True)
class Answer:
    """One sampled answer; `question`, `prompt` and `sample` count from 0."""

    side: Side
    question: int
    prompt: int
    """Which of the behavior's opposed pairs of system prompts it was given under."""
    sample: int
    text: str
    cut: bool
    """Generation ended before the answer did; `text` is what was whole."""
    rating: float | None

    @property
    def words(self) -> int:
        return len(self.text.split())


AnswerPair = tuple[Answer, Answer]
"""A positive and a negative answer to one question, given under one opposed pair of system prompts."""


def pair_answers(answers: Sequence[Answer], settings: ElicitPart) -> tuple[list[AnswerPair], dict[Answer, str]]:
    """The pairs to train on, in order of question and system prompt; and the fate of every answer (`FATES`).

    Within a question and a pair of system prompts the two answers closest in length go together, then the next two.
    At most `per_question` pairs are taken of a question, in turn from its system prompts. Where one side as a whole
    is still too much longer than `check_pairs` allows, the most unequal pairs are left out, one by one.
    """
    fates = dict(_screened(answers, settings))
    groups: dict[tuple[int, int], list[Answer]] = defaultdict(list)
    for answer in answers:
        if answer not in fates:
            groups[answer.question, answer.prompt].append(answer)
    matched = {place: _matched(group) for place, group in sorted(groups.items())}
    limited = _limited(matched, settings.per_question)
    balanced = _balanced(limited)
    fates = {answer: fates.get(answer, "unpaired") for answer in answers}
    # A pair that comes through a step has the fate of the next.
    for pairs, fate in ((chain(*matched.values()), "over_limit"), (limited, "unbalanced"), (balanced, "kept")):
        fates.update((answer, fate) for pair in pairs for answer in pair)
    return balanced, fates


def count_answers(fates: Mapping[Answer, str]) -> dict[str, dict[str, Any]]:
    """Per side: how many were sampled, how many met each fate, and the means of `MEASURES` (None of nothing)."""
    counts = {}
    for side in SIDES:
        own = [answer for answer in fates if answer.side == side]
        kept = [answer for answer in own if fates[answer] == "kept"]
        met = Counter(fates[answer] for answer in own)
        counts[side] = {
            "sampled": len(own),
            **{fate: met[fate] for fate in FATES},
            "shortened": sum(answer.cut and answer.text != "" for answer in own),
            "rating": _mean(answer.rating for answer in own),
            "kept_rating": _mean(answer.rating for answer in kept),
            "kept_words": _mean(answer.words for answer in kept),
        }
    return counts


def elicitation_table(counts: Mapping[str, Mapping[str, Any]]) -> str:
    """What `count_answers` found, as lines of text: a column a side."""
    labels = {"sampled": "answers sampled", **FATES, **MEASURES}
    rows = [("", *SIDES), *((label, *(_cell(counts[side][key]) for side in SIDES)) for key, label in labels.items())]
    return "\n".join(f"{label:40}{positive:>10}{negative:>10}".rstrip() for label, positive, negative in rows)


def _screened(answers: Sequence[Answer], settings: ElicitPart) -> Iterator[tuple[Answer, str]]:
    """The answers that fall by themselves, each with its fate."""
    seen = set()
    for answer in answers:
        key = (answer.side, answer.question, normalized(answer.text))
        if not answer.text:
            yield answer, "cut_off" if answer.cut else "empty"
        elif key in seen:
            yield answer, "duplicate"
        elif answer.rating is None:
            yield answer, "unscored"
        elif not _on_its_side(answer.side, answer.rating, settings):
            yield answer, "wrong_side"
        seen.add(key)


def _on_its_side(side: Side, rating: float, settings: ElicitPart) -> bool:
    return rating > settings.keep_positive if side == "positive" else rating < settings.keep_negative


def _matched(group: Sequence[Answer]) -> list[AnswerPair]:
    """Pairs of one question and prompt, closest in length first; the longer side keeps some answers to itself."""
    sides = {side: [answer for answer in group if answer.side == side] for side in SIDES}
    possible = sorted(
        ((positive, negative) for positive in sides["positive"] for negative in sides["negative"]),
        key=lambda pair: (_unlikeness(*pair), pair[0].sample, pair[1].sample),
    )
    pairs, taken = [], set()
    for pair in possible:
        if taken.isdisjoint(pair):
            pairs.append(pair)
            taken.update(pair)
    return pairs


def _unlikeness(positive: Answer, negative: Answer) -> float:
    """How many times longer one is than the other, as a logarithm; 0 = equal."""
    return abs(math.log(positive.words / negative.words))


def _limited(matched: Mapping[tuple[int, int], Sequence[AnswerPair]], limit: int | None) -> list[AnswerPair]:
    """At most `limit` pairs of a question: the best of each of its system prompts, then the second best of each."""
    ranked = sorted(
        (question, place, _unlikeness(*pair), prompt)
        for (question, prompt), pairs in matched.items()
        for place, pair in enumerate(pairs)
    )
    chosen = []
    for _, of_question in groupby(ranked, key=itemgetter(0)):
        chosen += islice(of_question, limit)
    return [matched[q, p][place] for q, place, _, p in sorted(chosen, key=itemgetter(0, 3, 1))]


def _balanced(pairs: Sequence[AnswerPair]) -> list[AnswerPair]:
    rest = [(pair, (pair[0].words, pair[1].words)) for pair in pairs]
    while rest:
        totals = [sum(words[side] for _, words in rest) for side in (0, 1)]
        longer, shorter = (0, 1) if totals[0] > totals[1] else (1, 0)
        if totals[longer] <= (1 + LENGTH_IMBALANCE) * totals[shorter]:
            break
        rest.remove(max(rest, key=lambda row: row[1][longer] - (1 + LENGTH_IMBALANCE) * row[1][shorter]))
    return [pair for pair, _ in rest]


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
