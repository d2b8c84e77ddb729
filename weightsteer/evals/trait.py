"""How much do open answers show the behavior? Rated 0 to 100 by a judge with the behavior's rubric.

With the sycophancy rubric this is the tone score of arXiv 2511.05408, fig. 15; the ratings are those of persona vectors
(arXiv 2507.21509, section 2).
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic

from weightsteer.data.traits import PERSONA_KEYS, fill_rubric, normalized, read_behavior
from weightsteer.errors import DataError
from weightsteer.evals import ItemScore, read_rows, texts, unreadable
from weightsteer.recipe import AnsweredSettings

VERSION = 1
KIND = "behavior"
JUDGED = True
PAIRS = True  # whose questions are left out
METRICS = {
    "score": "the judge's rating of how much the answers show the behavior, 0 to 100; higher = more of it",
    "fluent": "share of the answers that are neither empty nor stuck in a repetition; low means that the model breaks",
}
# Running text repeats few of its 4-grams; a list of like entries may repeat one in five.
REPEATED_SHARE = 0.3
RUN = re.compile(r"(\w)\1{9}")


class Settings(AnsweredSettings):
    """How answers are drawn and what they are rated by."""

    rubric: Path | None = None
    """A text with {question} and {answer}, in place of the behavior's own."""
    samples: Annotated[int, pydantic.Field(gt=0)] = 1
    """Answers to each question."""
    max_new_tokens: Annotated[int, pydantic.Field(gt=0)] = 200
    temperature: Annotated[float, pydantic.Field(ge=0)] = 1.0

    @pydantic.model_validator(mode="after")
    def _distinct_samples(self) -> "Settings":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples is {self.samples} at temperature 0, where all are the same; raise temperature")
        return self


@dataclass(frozen=True)
class Item:
    """One question."""

    id: str
    question: str


def read_items(settings: Settings, given: Any) -> list[Item]:
    """The behavior's questions that no pair was made from; or those of a file: rows with a prompt or a question (CAA's
    open-ended layout), or a trait file of persona vectors."""
    if settings.items is not None:
        if _is_trait_file(settings.items):
            questions = read_behavior(settings.items).questions
            return [Item(f"{settings.items.stem}-{n}", question) for n, question in enumerate(questions, start=1)]
        return read_rows(settings.items, "", _item)
    questions = given.behavior.questions if given.behavior else ()
    pairs = given.pairs.pairs if given.pairs else ()
    trained = {pair.question for pair in pairs if pair.split != "held_out"}
    items = [Item(f"question-{n}", q) for n, q in enumerate(questions, start=1) if normalized(q) not in trained]
    if not items:
        raise DataError(
            f"trait: the behavior has {len(questions)} questions, and pairs for training were made from all of them. "
            "Expected some that are new. Name a file of questions as items"
        )
    return items


def _is_trait_file(path: Path) -> bool:
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig")) if path.suffix == ".json" else None
    except (OSError, ValueError):
        return False  # read_rows says what is wrong with it
    return isinstance(raw, dict) and bool(PERSONA_KEYS & raw.keys())


def _item(where: str, row: Mapping[str, Any]) -> Item:
    key = next((key for key in ("question", "prompt") if key in row), None)
    if key is None:
        raise unreadable(row, "question or prompt")
    return Item(str(row.get("id", where)), *texts(row, key))


def score(lm: Any, items: Sequence[Item], settings: Settings, given: Any) -> list[ItemScore]:
    """Means over an item's answers; an item none of whose answers the judge could rate is unscored."""
    from weightsteer.models.generate import generate

    rubric = _rubric(settings, given)
    if given.judge is None:
        raise DataError("trait: the recipe has no judge. Expected a judge part, which rates the answers. Add one")
    asked = [item for item in items for _ in range(settings.samples)]
    drawing = {"temperature": settings.temperature, "seed": settings.seed}
    answers = generate(lm, [item.question for item in asked], settings.max_new_tokens, **drawing, label="trait")
    rated = [fill_rubric(rubric, item.question, answer) for item, answer in zip(asked, answers, strict=True)]
    verdicts = given.judge.rate(rated, "0-100", label="trait: rating")
    results = []
    for n, item in enumerate(items):
        own = slice(n * settings.samples, (n + 1) * settings.samples)
        results.append(_item_score(item, answers[own], verdicts[own]))
    return results


def _item_score(item: Item, answers: Sequence[str], verdicts: Sequence[Any]) -> ItemScore:
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    values = {
        "score": sum(scores) / len(scores) if scores else None,
        "fluent": sum(map(is_fluent, answers)) / len(answers),
    }
    detail = {
        "question": item.question,
        "answers": list(answers),
        "scores": [verdict.score for verdict in verdicts],
        "without_score": [verdict.unscored for verdict in verdicts if verdict.score is None],
    }
    return ItemScore(item.id, values, detail, None if scores else verdicts[0].unscored)


def _rubric(settings: Settings, given: Any) -> str:
    """The rubric of the settings, else that of the trait file, else the behavior's."""
    if settings.rubric is not None:
        source = f"rubric {settings.rubric}"
        try:
            rubric = settings.rubric.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(f"trait: {source}: cannot be read ({error}). Expected a text file") from None
    elif settings.items is not None and _is_trait_file(settings.items):
        source, rubric = str(settings.items), str(read_behavior(settings.items).rubric)
    elif given.behavior is not None:
        source, rubric = f"behavior {given.behavior.name}", str(given.behavior.rubric or "")
    else:
        source, rubric = "no behavior is given", ""
    if "{answer}" not in rubric:
        raise DataError(
            f"trait: {source}: the rubric {'has no {answer}' if rubric else 'is missing'}. Expected a text with "
            "{question} and {answer} where the judge is to see them. Add one to the behavior, or name a file as rubric"
        )
    return rubric


def is_fluent(answer: str) -> bool:
    """Whether an answer has words and does not go round in circles: few 4-grams repeated, no letter ten times over."""
    words = re.findall(r"\w+", answer.lower())
    if not words or RUN.search(answer):
        return False
    grams = Counter(zip(*(words[i:] for i in range(4)), strict=False))
    return sum(grams.values()) - len(grams) <= REPEATED_SHARE * sum(grams.values())
