"""What steering must not cost: facts answered without any hint, and the likelihood of ordinary text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsteer.evals import ItemScore, read_rows, unreadable
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


def read_items(settings: Settings, pairs: Any) -> list[Question | Text]:
    """Questions of our layout (question, correct, incorrect), MMLU's (question, choices, answer) or TruthfulQA's
    (question, mc1_targets); then the passages."""
    items: list[Question | Text] = []
    for where, row in read_rows(settings.items, "capability.jsonl"):
        items.append(Question(str(row.get("id", where)), row.get("question", ""), _answers(where, row)))
    for where, row in read_rows(settings.texts, "text.jsonl"):
        if not isinstance(row.get("text"), str):
            raise unreadable(where, row, "text")
        items.append(Text(str(row.get("id", where)), row["text"]))
    return items


def _answers(where: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    if {"question", "correct", "incorrect"} <= row.keys():
        wrong = row["incorrect"]
        return (row["correct"], *([wrong] if isinstance(wrong, str) else wrong))
    if {"question", "choices", "answer"} <= row.keys():
        right = "ABCDEFGHIJ".index(row["answer"])
        return (row["choices"][right], *(c for i, c in enumerate(row["choices"]) if i != right))
    if {"question", "mc1_targets"} <= row.keys():
        targets = row["mc1_targets"]
        return tuple(sorted(targets, key=lambda answer: -targets[answer]))
    raise unreadable(where, row, "question, correct and incorrect")


def score(lm: Any, items: Sequence[Question | Text]) -> list[ItemScore]:
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
        values = {"p_correct": None, "accuracy": None, "text": log_p / tokens}
        results.append(ItemScore(item.id, values, {"tokens": tokens}))
    return results
