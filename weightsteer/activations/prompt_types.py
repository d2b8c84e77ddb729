"""Seven ways of writing a positive and a negative prompt of one question, and the split that they need.

Two prompts differ in a prefilled answer, an instruction, five answered examples, or several of these. Source: arXiv
2505.22637 and its code.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from weightsteer.errors import DataError, report_problems

SHOTS = 5
SHOWN = 5
Item = TypeVar("Item")
Start = tuple[str, str]
"""A text up to its answer, and the answer; empty where none is prefilled."""


@dataclass(frozen=True)
class PromptType:
    """What a positive and a negative prompt differ in."""

    name: str
    prefilled: bool = False
    instruction: bool = False
    shots: bool = False


PREFILLED = PromptType("prefilled", prefilled=True)
PROMPT_TYPES = (
    PREFILLED,
    PromptType("instruction", instruction=True),
    PromptType("5-shot", shots=True),
    PromptType("prefilled + instruction", prefilled=True, instruction=True),
    PromptType("prefilled + 5-shot", prefilled=True, shots=True),
    PromptType("instruction + 5-shot", instruction=True, shots=True),
    PromptType("all", prefilled=True, instruction=True, shots=True),
)


@dataclass(frozen=True)
class Question:
    """A question up to its answer, and both answers as they go on from there."""

    id: str
    text: str
    matching: str
    other: str
    closing: str = ""
    """What follows an answer in an example, such as the bracket after a letter."""


@dataclass(frozen=True)
class Split(Generic[Item]):
    """Items for the vector, for evaluation and for the examples: no question is in two of them."""

    train: tuple[Item, ...]
    evaluation: tuple[Item, ...]
    shots: tuple[Item, ...]
    repeated: int
    """Items left out because an earlier one asks the same."""


def split_items(items: Sequence[Any], train: int, evaluation: int, seed: int, source: object) -> Split[Any]:
    """Draw five examples, then the evaluation items, then those to train on; a DataError where there are too few.

    Items have a `question` and the answer that is its `match`. Answers take turns in every part, so that a vector does
    not learn the answer that matches more often.
    """
    first = list({item.question: item for item in reversed(items)}.values())[::-1]
    needed = SHOTS + evaluation + train
    if len(first) < needed:
        raise DataError(
            f"{source}: asks {len(first)} different questions. Expected {needed}: {SHOTS} examples, {evaluation} to "
            f"evaluate and {train} to train on. Ask for fewer, or add items"
        )
    random.Random(seed).shuffle(first)
    seen: dict[str, int] = {}
    turns = []
    for item in first:
        turns.append(seen.setdefault(item.match, 0))
        seen[item.match] += 1
    drawn = [first[i] for i in sorted(range(len(first)), key=lambda i: turns[i])]
    shots, rest = drawn[:SHOTS], drawn[SHOTS:]
    return Split(
        tuple(rest[evaluation : evaluation + train]), tuple(rest[:evaluation]), tuple(shots), len(items) - len(first)
    )


def both_prompts(
    kind: PromptType,
    question: Question,
    shots: Sequence[Question] = (),
    instructions: tuple[str, str] | None = None,
    opening: str = "",
) -> tuple[Start, Start]:
    """The positive and the negative prompt of a question: instruction, examples, question, prefilled answer.

    `opening` stands before all of it, such as the token that begins a text. A DataError where an ingredient is missing.
    """
    if kind.shots and len(shots) != SHOTS:
        raise DataError(f"prompt type '{kind.name}': got {len(shots)} examples. Expected {SHOTS}, of no other part")
    if kind.instruction and instructions is None:
        raise DataError(f"prompt type '{kind.name}': there are no instructions. Expected a positive and a negative one")
    positive, negative = (
        (_text(kind, question, shots, None if instructions is None else instructions[side], side, opening))
        for side in (0, 1)
    )
    answers = (question.matching, question.other) if kind.prefilled else ("", "")
    return (positive, answers[0]), (negative, answers[1])


def last_token_examples(
    lm: Any, ids: Sequence[str], prompts: Sequence[tuple[Start, Start]]
) -> tuple[list[Any], list[Any]]:
    """Positive and negative Examples, read at their last token, which is the answer where one is prefilled.

    One DataError names every item whose answer is no single token at the end, and every text beyond the context.
    """
    from weightsteer.activations.capture import Example

    context = getattr(lm.network.config.get_text_config(), "max_position_embeddings", None)
    sides: tuple[list[Any], list[Any]] = ([], [])
    problems = []
    for id, both in zip(ids, prompts, strict=True):
        answers = [answer for _, answer in both]
        for side, (start, answer) in zip(sides, both, strict=True):
            tokens = lm.tokens(start + answer)
            if context is not None and len(tokens) > context:
                problems.append(f"{id}: a text of {len(tokens)} tokens; the context has {context}. Take it out")
            elif answer and not _is_last_token(*(lm.tokens(start + either) for either in answers)):
                problems.append(
                    f"{id}: the answer token is not found: {answers[0]!r} and {answers[1]!r} do not differ in one "
                    "token at the end. Expected answers such as (A) and (B)"
                )
            else:
                side.append(Example(tokens, (range(len(tokens) - 1, len(tokens)),)))
                continue
            break
    more = [f"... and {len(problems) - SHOWN} more of the kind"] if len(problems) > SHOWN else []
    report_problems(DataError, f"texts for {lm.ref.source}", [*problems[:SHOWN], *more])
    return sides


def _text(
    kind: PromptType, question: Question, shots: Sequence[Question], instruction: str | None, side: int, opening: str
) -> str:
    parts = [opening]
    if kind.instruction:
        parts.append(f"{instruction}\n\n")
    if kind.shots:
        parts += [f"{shot.text}{(shot.matching, shot.other)[side]}{shot.closing}\n\n" for shot in shots]
    return "".join([*parts, question.text])


def _is_last_token(tokens: list[int], others: list[int]) -> bool:
    """Whether two texts that differ in their answer differ in their last token alone."""
    return len(tokens) == len(others) and tokens[:-1] == others[:-1] and tokens[-1] != others[-1]
