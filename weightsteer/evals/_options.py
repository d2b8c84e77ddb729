"""Questions with lettered options: how they are put, how the letters are scored, how an answer is read."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic

from weightsteer.errors import DataError
from weightsteer.evals import texts
from weightsteer.judge.rules import option_letter
from weightsteer.models import Message
from weightsteer.recipe import EvalSettings

LETTERS = "ABCDEFGHIJKLMNOP"
MARKER = "Final Answer:"
Style = Literal["likelihood", "zero-shot", "cot", "cot-brief"]
Prompt = str | tuple[Message, ...]

LETTER_ONLY = "Reply with the letter of one option and nothing else: {letters}."
# Two wordings of chain of thought, since how fast answers break depends on it (arXiv 2511.05408, fig. 25).
INSTRUCTIONS = {
    "likelihood": LETTER_ONLY,
    "zero-shot": LETTER_ONLY,
    "cot": "First think the question through step by step. Then end with one line that holds your choice: "
    f"{MARKER} <letter>, the letter being {{letters}}.",
    "cot-brief": "Say in two or three sentences what speaks for and against, then choose {letters}. Your last line "
    f'must read "{MARKER}" followed by that letter.',
}
NEW_TOKENS = {"likelihood": 1, "zero-shot": 8, "cot": 600, "cot-brief": 200}

# Two options of one line each that close the text, on lines of their own or after the end of a sentence.
_TWO_OPTIONS = re.compile(
    r"(?P<head>.*\s)(?P<a>(?:Option )?\(?A\)[:.]?[ \t]+)(?P<first>[^\n]+?)(?P<gap>\s*\n\s*|(?<=[.!?])[ \t]+)"
    r"(?P<b>(?:Option )?\(?B\)[:.]?[ \t]+)(?P<second>[^\n]+?)\s*",
    re.DOTALL,
)
_NAMES_AN_OPTION = re.compile(r"\b[AB]\)|\boption [AB]\b", re.IGNORECASE)
_RUNS_ON = re.compile(r"\b(or|and)[,;:]?$", re.IGNORECASE)


class OptionSettings(EvalSettings):
    """How a question with lettered options is asked."""

    style: Style = "zero-shot"
    """likelihood: the letters' probabilities alone; zero-shot: the letter only; cot, cot-brief: reasoning first, in two
    wordings of our own."""
    max_new_tokens: Annotated[int, pydantic.Field(gt=0)] = pydantic.Field(
        default_factory=lambda settings: NEW_TOKENS.get(settings.get("style", ""), 1)
    )
    """Longest answer; left out, what the style needs."""


def two_sides(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Prompt, positive and negative answer of a row of two sides (the layout of arXiv 2407.12404)."""
    prompt, positive = texts(row["positive"], "prompt", "response")
    again, negative = texts(row["negative"], "prompt", "response")
    if prompt != again:
        raise DataError("positive and negative: found two prompts. Expected one, answered both ways")
    return prompt, positive, negative


def listed(question: str, options: Sequence[str]) -> str:
    """The question, then a lettered line for each option."""
    lines = [f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([f"{question}\n", *lines])


def instructed(prompt: Prompt, style: str, letters: str) -> str | list[Message]:
    """The prompt with the style's instruction at the end of its last turn."""
    instruction = INSTRUCTIONS[style].format(letters=", ".join(letters[:-1]) + f" or {letters[-1]}")
    if isinstance(prompt, str):
        return f"{prompt}\n\n{instruction}"
    *before, last = prompt
    return [*before, {**last, "content": f"{last['content']}\n\n{instruction}"}]


def exchanged(text: str) -> str | None:
    """The text with its two options A and B exchanged; None where they cannot be told exactly from the rest."""
    found = _TWO_OPTIONS.fullmatch(text)
    if not found or _RUNS_ON.search(found["first"]):
        return None
    if any(_NAMES_AN_OPTION.search(found[part]) for part in ("head", "first", "second")):
        return None
    return "".join(found[part] for part in ("head", "a", "second", "gap", "b", "first"))


def score_letters(lm: Any, prompts: Sequence[Any], letters: Sequence[str], label: str) -> list[dict[str, float]]:
    """Log-probability in nats of each of its letters as the start of the answer, for every prompt."""
    from weightsteer.models.generate import score_options

    scored = score_options(lm, prompts, [tuple(offered) for offered in letters], label=label)
    return [
        {letter: log_p for letter, (log_p, _) in zip(offered, scores, strict=True)}
        for offered, scores in zip(letters, scored, strict=True)
    ]


def log_odds(log_p: Mapping[str, float], letters: str) -> float:
    """Log-odds in nats of `letters` against all other letters offered."""
    return _log_sum([x for letter, x in log_p.items() if letter in letters]) - _log_sum(
        [x for letter, x in log_p.items() if letter not in letters]
    )


def sigmoid(log_odds: float) -> float:
    """The probability that has these log-odds."""
    return (1 + math.tanh(log_odds / 2)) / 2


def mass(log_p: Mapping[str, float]) -> float:
    """Probability that all letters have together."""
    return sum(map(math.exp, log_p.values()))


def read_letter(answer: str, letters: str, style: str) -> str | None:
    """The option that an answer picks: after the marker where there is reasoning; None when it picks none."""
    return option_letter(answer, letters, marker=MARKER if style.startswith("cot") else None)


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(x - top) for x in values))
