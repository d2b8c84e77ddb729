"""Knowledge asked with four lettered options: MMLU, TinyMMLU and questions of that kind."""

import itertools
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic

from weightsteer.errors import DataError, report_problems
from weightsteer.evals import Given, ItemScore, read_rows, texts, unreadable
from weightsteer.evals._options import (
    LETTERS,
    OptionSettings,
    Style,
    instructed,
    listed,
    log_odds,
    mass,
    read_letter,
    score_letters,
    sigmoid,
)
from weightsteer.models import Message

VERSION = 1
KIND = "capability"
METRICS = {
    "accuracy": "share of right answers; one that picks no option is wrong (style likelihood: of questions whose right "
    "letter is the likeliest); higher = better",
    "p_correct": "probability of the right letter among the letters offered; higher = better",
    "valid": "share of answers that pick an option in the form asked for; low means that the format has broken",
    "mass": "probability that the letters have together; low means that the format has broken",
}


class Settings(OptionSettings):
    """How many worked questions go before each."""

    style: Style = "likelihood"
    fewshot: Annotated[int, pydantic.Field(ge=0)] = 0
    """So many questions of the same subject, answered with their letter, as earlier turns of the conversation."""
    examples: Path | None = None
    """Where those come from, in the layout of the items: MMLU's dev questions."""

    @pydantic.model_validator(mode="after")
    def _has_examples(self) -> "Settings":
        if self.fewshot and self.examples is None:
            raise ValueError(f"fewshot is {self.fewshot}, and `examples` names no file. Expected MMLU's dev questions")
        if self.fewshot and self.style.startswith("cot"):
            raise ValueError(f"fewshot is {self.fewshot}, but examples hold no reasoning for '{self.style}'. Use 0")
        return self


@dataclass(frozen=True)
class Question:
    """A question, its options in order, and the letter of the right one."""

    id: str
    subject: str
    question: str
    choices: tuple[str, ...]
    answer: str

    @property
    def letters(self) -> str:
        return LETTERS[: len(self.choices)]


@dataclass(frozen=True)
class Item:
    """A question and the answered ones that go before it."""

    question: Question
    examples: tuple[Question, ...] = ()


def read_items(settings: Settings, given: Given) -> list[Item]:
    """Questions of MMLU (subject, question, choices, answer as a letter or a number from 0), or of our layout
    (question, correct, incorrect), whose right answer stands at A, B, C, D in turn."""
    questions = _questions(settings.items)
    if settings.examples is None:
        return [Item(question) for question in questions]
    examples, problems = defaultdict(list), []
    for example in _questions(settings.examples):
        examples[example.subject].append(example)
    asked = {question.question for question in questions}
    for subject in dict.fromkeys(question.subject for question in questions):
        given_first = examples[subject] = examples[subject][: settings.fewshot]
        if len(given_first) < settings.fewshot:
            problems.append(f"subject '{subject}': has {len(given_first)} questions. Expected {settings.fewshot}")
        problems += [f"'{e.question}': is asked as an item too" for e in given_first if e.question in asked]
    report_problems(DataError, settings.examples, problems)
    return [Item(question, tuple(examples[question.subject])) for question in questions]


def _questions(path: Path | None) -> list[Question]:
    number = itertools.count()
    return read_rows(path, "capability.jsonl", lambda where, row: _question(where, row, next(number)))


def _question(where: str, row: Mapping[str, Any], number: int) -> Question:
    subject = str(row.get("subject", row.get("topic", "")))
    if {"question", "choices", "answer"} <= row.keys():
        choices, answer = row["choices"], row["answer"]
        letter = LETTERS[answer] if isinstance(answer, int) and answer >= 0 else answer
    elif {"question", "correct", "incorrect"} <= row.keys():
        wrong = [row["incorrect"]] if isinstance(row["incorrect"], str) else row["incorrect"]
        place = number % (len(wrong) + 1)
        choices = random.Random(row["question"]).sample(wrong, len(wrong))
        choices.insert(place, row["correct"])
        letter = LETTERS[place]
    else:
        raise unreadable(row, "question, choices and answer")
    named = {"question": row["question"], **{f"choice {i}": text for i, text in enumerate(choices, 1)}}
    question, *checked = texts(named, *named)
    if not 2 <= len(checked) <= len(LETTERS) or letter not in tuple(LETTERS[: len(checked)]):
        found = f"has {len(checked)} choices and the answer {row.get('answer')!r}"
        raise DataError(f"{found}. Expected 2 to {len(LETTERS)} choices, and the letter or number of one")
    return Question(str(row.get("id", where)), subject, question, tuple(checked), letter)


def score(lm: Any, items: Sequence[Item], settings: Settings, given: Given) -> list[ItemScore]:
    """Letters' probabilities in styles likelihood and zero-shot, greedy answers in all but likelihood."""
    from weightsteer.models.generate import generate

    values: list[dict[str, float | None]] = [dict.fromkeys(METRICS) for _ in items]
    details: list[dict[str, Any]] = [{"subject": i.question.subject, "correct": i.question.answer} for i in items]
    prompts = [_prompt(item, settings.style) for item in items]
    if settings.style in ("likelihood", "zero-shot"):
        letters = [item.question.letters for item in items]
        for i, log_p in enumerate(score_letters(lm, prompts, letters, "mmlu: letters")):
            right = items[i].question.answer
            values[i]["accuracy"] = float(all(log_p[right] > x for letter, x in log_p.items() if letter != right))
            values[i]["p_correct"] = sigmoid(log_odds(log_p, right))
            values[i]["mass"] = mass(log_p)
            details[i]["log_p"] = log_p
    if settings.style != "likelihood":
        answers = generate(lm, prompts, settings.max_new_tokens, label=f"mmlu: {settings.style}")
        for i, answer in enumerate(answers):
            letter = read_letter(answer, items[i].question.letters, settings.style)
            values[i]["accuracy"] = float(letter == items[i].question.answer)
            values[i]["valid"] = float(letter is not None)
            details[i].update(prompt=prompts[i], answer=answer, letter=letter)
    return [ItemScore(i.question.id, v, d) for i, v, d in zip(items, values, details, strict=True)]


def _prompt(item: Item, style: Style) -> str | list[Message]:
    turns: list[Message] = []
    for example in item.examples:
        turns += [_turn(example, style), {"role": "assistant", "content": example.answer}]
    asked = _turn(item.question, style)
    return [*turns, asked] if turns else asked["content"]


def _turn(question: Question, style: Style) -> Message:
    content = instructed(listed(question.question, question.choices), style, question.letters)
    return {"role": "user", "content": str(content)}
