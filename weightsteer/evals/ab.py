"""Is the answer that matches a behavior the likelier of two?

The two-choice evaluation of contrastive activation addition (arXiv 2312.06681, section 4), of model-written
evaluations, and of steering reliability (2407.12404, 2505.22637).
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from weightsteer.errors import DataError
from weightsteer.evals import Given, ItemScore, read_rows, texts, unreadable
from weightsteer.evals._options import sigmoid, two_sides
from weightsteer.recipe import EvalSettings

VERSION = 1
KIND = "behavior"
METRICS = {
    "p_match": "probability of the matching answer among the two; higher = more of the behavior",
    "log_odds": "logit difference (nats) of the matching and the other answer; higher = more of the behavior",
    "share": "share of the questions whose matching answer is the likelier one",
    "mass": "probability that the two answers have together; low means that the format has broken",
}


class Settings(EvalSettings):
    """How the question is put."""

    layout: Literal["chat", "plain"] = "chat"
    """chat: the chat template, the answer opened with a bracket where it is a letter; plain: text without a template
    (2505.22637)."""


@dataclass(frozen=True)
class Item:
    """A question with the answer that matches the behavior and the one that does not, bare of brackets."""

    id: str
    question: str
    match: str
    other: str
    lettered: bool

    @property
    def opening(self) -> str:
        """What stands before the answer, so that the next token is the letter."""
        return "(" if self.lettered else ""


def read_items(settings: Settings, given: Given) -> list[Item]:
    """Questions of model-written evaluations (question, answer_matching_behavior, answer_not_matching_behavior), of
    CAA's benchmarks (prompt, correct, incorrect), or rows of a positive and a negative side (prompt, response each)."""
    if settings.items is None:
        raise DataError("ab: no items are shipped. Expected a file of questions with two answers each. Set `items`")
    return read_rows(settings.items, "", _item)


def _item(where: str, row: Mapping[str, Any]) -> Item:
    if {"question", "answer_matching_behavior", "answer_not_matching_behavior"} <= row.keys():
        question, match, other = texts(row, "question", "answer_matching_behavior", "answer_not_matching_behavior")
    elif {"prompt", "correct", "incorrect"} <= row.keys():
        question, match, other = texts(row, "prompt", "correct", "incorrect")
    elif {"positive", "negative"} <= row.keys():
        question, match, other = two_sides(row)
    else:
        raise unreadable(row, "question, answer_matching_behavior and answer_not_matching_behavior")
    match, other = match.strip(), other.strip()
    lettered = all(re.fullmatch(r"\(?[A-Z]\)?", answer) for answer in (match, other))
    if lettered:
        match, other = match.strip("()"), other.strip("()")
    if match == other:
        raise DataError(f"answers both ways with {match!r}. Expected two answers")
    return Item(str(row.get("id", where)), question, match, other, lettered)


def score(lm: Any, items: Sequence[Item], settings: Settings, given: Given) -> list[ItemScore]:
    """Logit difference of the two answer tokens, and what may explain it besides the behavior (2407.12404, bias)."""
    put = chat_text if settings.layout == "chat" else plain_text
    # After plain text a word begins with a space; a letter has its bracket before it.
    space = " " if settings.layout == "plain" else ""
    options = [(i.match, i.other) if i.lettered else (space + i.match, space + i.other) for i in items]
    starts = [(put(lm, item), item.opening) for item in items]
    scored = score_continuations(lm, starts, options, label="ab")
    results = []
    for item, ((match, _), (other, _)) in zip(items, scored, strict=True):
        log_odds = match - other
        values = {
            "p_match": sigmoid(log_odds),
            "log_odds": log_odds,
            "share": float(log_odds > 0),
            "mass": math.exp(match) + math.exp(other),
        }
        results.append(ItemScore(item.id, values, {"matching": item.match, **nuisances(item)}))
    return results


def nuisances(item: Item) -> dict[str, bool | None]:
    """Whether the matching answer is the first letter, and whether it says Yes (the other one No); None: neither."""
    return {"matching_is_first": item.match < item.other if item.lettered else None, "matching_is_yes": _is_yes(item)}


def _is_yes(item: Item) -> bool | None:
    said = (item.match, item.other)
    if item.lettered:
        found = [re.search(rf"\({letter}\):?\s*(Yes|No)\b", item.question) for letter in said]
        said = tuple(f[1] if f else "" for f in found)
    return said == ("Yes", "No") if set(said) == {"Yes", "No"} else None


def chat_text(lm: Any, item: Item) -> str:
    """The conversation up to the answer."""
    return lm.chat(item.question) + item.opening


def plain_text(lm: Any, item: Item) -> str:
    """The question as 2505.22637 puts it, after the system prompt where there is one."""
    tokenizer = lm.tokenizer
    begins = tokenizer("A")["input_ids"][0] == tokenizer.bos_token_id
    question = item.question.strip().removeprefix("Question:").removesuffix("Answer:").strip()
    # Both words in an order that does not depend on which one matches: Yes, No.
    words = "".join(f"\n - {word}" for word in sorted((item.match, item.other), reverse=True))
    return "".join(
        [
            tokenizer.bos_token if begins else "",
            f"{lm.system}\n\n" if lm.system else "",
            f"Question: {question}\n\n",
            "" if item.lettered else f"Choices:{words}\n\n",
            f"Answer: {item.opening}" if item.lettered else "Answer:",
        ]
    )


def score_continuations(
    lm: Any, starts: Sequence[tuple[str, str]], options: Sequence[Sequence[str]], *, label: str = ""
) -> list[list[tuple[float, int]]]:
    """For every option of every text, which already holds its template: log-probability in nats as what comes next,
    and its token count.

    A start is a text and what of its end is the answer's already, such as "(", which is steered where answers are.
    """
    from weightsteer.models.generate import _score, _split

    rows, opened = [], []
    for (start, opening), choices in zip(starts, options, strict=True):
        prompt, told = _split(lm.tokens(start), [lm.tokens(start + option) for option in choices])
        asked = lm.tokens(start.removesuffix(opening))
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, asked, strict=False)))
        rows.append((prompt, told))
        opened.append(len(prompt) - shared)
    scored: dict[int, list[tuple[float, int]]] = {}
    for number in sorted(set(opened)):
        places = [i for i, n in enumerate(opened) if n == number]
        scored.update(zip(places, _score(lm, [rows[i] for i in places], label, number), strict=True))
    return [scored[i] for i in range(len(rows))]
