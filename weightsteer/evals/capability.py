"""What steering must not cost: facts answered without any hint, and the likelihood of ordinary text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsteer.errors import DataError
from weightsteer.evals import ItemScore, read_rows, texts, unreadable
from weightsteer.recipe import EvalSettings

VERSION = 1
KIND = "capability"
METRICS = {
    "p_correct": "probability given to the right one of the offered answers; higher = better",
    "accuracy": "share of questions whose right answer is the likeliest of those offered; higher = better",
    "text": "log-likelihood of ordinary text, nats per token; higher = better",
}
# Small chat models answer in sentences; the bare answer would be judged in a form they do not use.
ANSWER = "The answer is {}."


class Settings(EvalSettings):
    """Where the ordinary texts come from."""

    texts: Path | None = None
    """JSON lines with a `text` each, in place of the shipped passages."""


@dataclass(frozen=True)
class Question:
    """A question with its right answer first."""

    id: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Text:
    """A passage of ordinary text."""

    id: str
    text: str


def read_items(settings: Settings, given: Any) -> list[Question | Text]:
    """Questions of our layout (question, correct, incorrect), MMLU's (question, choices, answer) or TruthfulQA's
    (question, mc1_targets); then the passages."""
    questions = read_rows(settings.items, "capability.jsonl", _question)
    return [*questions, *read_rows(settings.texts, "text.jsonl", _text)]


def _question(where: str, row: Mapping[str, Any]) -> Question:
    if {"question", "correct", "incorrect"} <= row.keys():
        wrong = [row["incorrect"]] if isinstance(row["incorrect"], str) else row["incorrect"]
        answers = [row["correct"], *wrong]
    elif {"question", "choices", "answer"} <= row.keys():
        answer = row["answer"]  # MMLU comes with letters and with numbers from 0
        right = answer if isinstance(answer, int) else "ABCDEFGHIJ".index(answer)
        answers = [row["choices"][right], *(c for i, c in enumerate(row["choices"]) if i != right)]
    elif {"question", "mc1_targets"} <= row.keys():
        targets = row["mc1_targets"]  # answer -> 1 or 0; on the hub two lists
        marks = dict(zip(targets["choices"], targets["labels"], strict=True)) if "labels" in targets else targets
        # The published file of 2025 ends some lists with an empty text.
        answers = sorted((answer for answer in marks if answer), key=lambda answer: -marks[answer])
    else:
        raise unreadable(row, "question, correct and incorrect")
    named = {"question": row["question"], **{f"answer {i}": answer for i, answer in enumerate(answers, 1)}}
    question, *checked = texts(named, *named)
    if len(checked) < 2:
        raise DataError(f"has the answers {checked}. Expected a right one and at least one wrong one")
    return Question(str(row.get("id", where)), question, tuple(checked))


def _text(where: str, row: Mapping[str, Any]) -> Text:
    return Text(str(row.get("id", where)), *texts(row, "text"))


def score(lm: Any, items: Sequence[Question | Text], settings: Any = None, given: Any = None) -> list[ItemScore]:
    """Two-way (or many-way) probability and accuracy for questions, mean token log-likelihood for texts."""
    from weightsteer.models.generate import score_options, score_texts

    questions = [item for item in items if isinstance(item, Question)]
    texts = [item for item in items if isinstance(item, Text)]
    options = [[ANSWER.format(answer) for answer in q.answers] for q in questions]
    scored = score_options(lm, [q.question for q in questions], options, label="capability: facts")
    results = []
    for question, scores in zip(questions, scored, strict=True):
        log_p = [s for s, _ in scores]
        top = max(log_p)
        p_correct = math.exp(log_p[0] - top) / sum(math.exp(x - top) for x in log_p)
        values = {"p_correct": p_correct, "accuracy": float(log_p[0] == top), "text": None}
        results.append(ItemScore(question.id, values, {"log_p": log_p}))
    for item, (log_p, tokens) in zip(
        texts, score_texts(lm, [t.text for t in texts], label="capability: text"), strict=True
    ):
        values = {"p_correct": None, "accuracy": None, "text": log_p / tokens if tokens else None}
        results.append(ItemScore(item.id, values, {"tokens": tokens}, None if tokens else "one token predicts nothing"))
    return results
