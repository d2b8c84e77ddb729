"""Are word problems still solved? GSM8K (arXiv 2110.14168) and problems of our own, written out and by likelihood."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import pydantic

from weightsteer.errors import DataError
from weightsteer.evals import ItemScore, read_rows, texts, unreadable
from weightsteer.judge.rules import final_number
from weightsteer.recipe import AnsweredSettings

VERSION = 1
KIND = "capability"
METRICS = {
    "accuracy": "share of the written answers that end with the right number; higher = better",
    "log_odds": "log-odds (nats) of the right number against wrong ones made from it; higher = better, and tells small "
    "models apart whose answers are all wrong",
    "p_correct": "probability given to the right one among those numbers; higher = better",
}
# The number stands in a sentence, which is how chat models answer.
ANSWER = "The answer is {}."
MARK = "####"  # GSM8K puts the final number after it
DISTRACTORS = 3
WRITTEN = re.compile(r"(0|[1-9]\d*)(\.\d+)?")


class Settings(AnsweredSettings):
    """How problems are put and answers drawn."""

    generate: bool = True
    """Write answers; false leaves the likelihoods alone."""
    instruction: str = ""
    """Put after every problem, on a line of its own; a model tuned on bare problems wants none."""
    max_new_tokens: Annotated[int, pydantic.Field(gt=0)] = 256


@dataclass(frozen=True)
class Item:
    """One word problem and its number."""

    id: str
    question: str
    answer: Decimal


def read_items(settings: Settings, given: Any) -> list[Item]:
    """Problems with their number as `answer` (our layout), or with a solution that gives it after #### (GSM8K)."""
    return read_rows(settings.items, "mathwords.jsonl", _item)


def _item(where: str, row: Mapping[str, Any]) -> Item:
    if not {"question", "answer"} <= row.keys():
        raise unreadable(row, "question and answer")
    filled = {**row, "answer": str(row["answer"]) if isinstance(row["answer"], int | float) else row["answer"]}
    question, answer = texts(filled, "question", "answer")
    written = answer.rpartition(MARK)[2].strip()
    try:
        number = Decimal(written.replace(",", "").removeprefix("$"))
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise DataError(f"answer: found {written[-40:]!r}. Expected a number, or a solution with one after {MARK}")
    return Item(str(row.get("id", where)), question, number)


def score(lm: Any, items: Sequence[Item], settings: Settings, given: Any) -> list[ItemScore]:
    """Exact match of the final number; log-odds are log p - log(1 - p), p being the right one's share."""
    from weightsteer.models.generate import generate, score_options

    prompts = [f"{item.question}\n{settings.instruction}" if settings.instruction else item.question for item in items]
    offered = [[item.answer, *distractors(item.answer)] for item in items]
    options = [[ANSWER.format(_plain(number)) for number in numbers] for numbers in offered]
    scored = score_options(lm, prompts, options, label="gsm8k: numbers")
    answers: Sequence[str | None] = [None] * len(items)
    if settings.generate:
        drawing = {"temperature": settings.temperature, "seed": settings.seed}
        answers = generate(lm, prompts, settings.max_new_tokens, **drawing, label="gsm8k")
    results = []
    for item, prompt, numbers, scores, answer in zip(items, prompts, offered, scored, answers, strict=True):
        right, *wrong = [log_p for log_p, _ in scores]
        top = max(wrong)
        log_odds = right - top - math.log(sum(math.exp(x - top) for x in wrong))
        found = None if answer is None else final_number(answer)
        values = {
            "accuracy": None if answer is None else float(found == float(item.answer)),
            "log_odds": log_odds,
            "p_correct": 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0,  # exp overflows beyond 709
        }
        detail = {"prompt": prompt, "answer": answer, "found": found, "numbers": [_plain(n) for n in numbers]}
        results.append(ItemScore(item.id, values, detail))
    return results


def distractors(number: Decimal) -> list[Decimal]:
    """Three wrong numbers near the right one, of its sign: two unlike neighbors among its digits exchanged, one more,
    one less; where that gives no three, ten more, double and so on."""
    size = abs(number)
    candidates = [*_exchanged(size), size + 1, size - 1, size + 10, size * 2, size + 2]
    wrong = dict.fromkeys(candidate for candidate in candidates if candidate >= 0 and candidate != size)
    return [candidate.copy_sign(number) if candidate else candidate for candidate in wrong][:DISTRACTORS]


def _exchanged(size: Decimal) -> list[Decimal]:
    """12 -> 21; none where no two neighbors differ, or only such that a zero would come first."""
    digits = _plain(size)
    exchanged = [
        digits[:i] + b + a + digits[i + 2 :]
        for i, (a, b) in enumerate(itertools.pairwise(digits))
        if a != b and (a + b).isdigit()
    ]
    return [Decimal(written) for written in exchanged if WRITTEN.fullmatch(written)][:1]


def _plain(number: Decimal) -> str:
    """18 and 2.5, without separators, exponents and trailing zeros."""
    return f"{number.to_integral_value() if number == number.to_integral_value() else number.normalize():f}"
