"""Contrast pairs: one question answered both ways; read, checked, split by question, written."""

import csv
import io
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from weightsteer.errors import DataError, report_problems
from weightsteer.models import Message
from weightsteer.recipe import Behavior, PairsPart, Recipe, load_behavior
from weightsteer.stage import digest

PairsSplit = Literal["train", "validation", "held_out"]
SIDES = ("positive", "negative")
Side = Literal["positive", "negative"]
# Names of the three columns: ours, and trl's preference format.
LAYOUTS = (("prompt", "positive", "negative"), ("prompt", "chosen", "rejected"))
# Over the whole set one side may be longer by this much before length itself becomes what is learned.
LENGTH_IMBALANCE = 0.25
FILES = (".jsonl", ".json", ".csv")
SHOWN = 5


@dataclass(frozen=True)
class ContrastPair:
    """One question answered both ways; `positive` shows the behavior."""

    id: str
    prompt: str | tuple[Message, ...]
    positive: str
    negative: str
    topic: str | None = None
    split: PairsSplit = "train"

    @property
    def question(self) -> str:
        """What decides whether two pairs ask the same: the conversation without case and spacing."""
        text = self.prompt if isinstance(self.prompt, str) else "\n".join(m["content"] for m in self.prompt)
        return " ".join(text.lower().split())


@dataclass(frozen=True)
class ContrastDataset:
    """The pairs of one behavior."""

    behavior: str
    pairs: tuple[ContrastPair, ...]
    source: str = ""

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def digest(self) -> str:
        """sha256 of every text and its split."""
        return digest([asdict(pair) for pair in self.pairs])

    def part(self, split: PairsSplit) -> "ContrastDataset":
        """The pairs of one split."""
        return replace(self, pairs=tuple(pair for pair in self.pairs if pair.split == split))

    def side(self, side: Side) -> list[tuple[str | tuple[Message, ...], str]]:
        """(prompt, answer) of every pair, for training one side."""
        return [(pair.prompt, getattr(pair, side)) for pair in self.pairs]


def load_pairs(
    recipe: Recipe, part: PairsPart | None = None, behavior: Behavior | None = None, name: str | None = None
) -> ContrastDataset:
    """The recipe's pairs, split by question with its seed; a DataError names every defect of the texts at once.

    `part`, `behavior` and `name` stand for another behavior's than the recipe's own.
    """
    part, behavior = part or recipe.pairs, behavior or load_behavior(recipe)
    name = name or recipe.behavior
    source = part.source or behavior.pairs
    if source is None:
        raise DataError(f"behavior {name}: ships no pairs. Name a file of yours as pairs.source in the recipe")
    pairs = read_pairs(str(source), part)
    check_pairs(pairs, str(source))
    said = Path(source).name if Path(source).exists() else str(source)
    return ContrastDataset(name, split_pairs(pairs, part, recipe.seed), said)


def read_pairs(source: str, part: PairsPart | None = None) -> tuple[ContrastPair, ...]:
    """Pairs of a JSONL, JSON or CSV file or a `datasets` id, as `prompt, positive, negative` or trl's
    `prompt, chosen, rejected` (texts or chat messages; the prompt may stand inside both conversations)."""
    pairs, problems = [], []
    part = part or PairsPart()
    for number, row in enumerate(read_rows(source, part.subset, part.split), start=1):
        try:
            pairs.append(_pair(row, number))
        except DataError as error:
            problems.append(f"row {number}: {error}")
    report_problems(DataError, source, _shortened(problems))
    if not pairs:
        raise DataError(f"{source}: holds no pairs. Expected rows of prompt, positive, negative")
    return tuple(pairs)


def write_pairs(dataset: ContrastDataset, path: Path) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for pair in dataset.pairs:
            file.write(json.dumps(asdict(pair), ensure_ascii=False) + "\n")


def check_pairs(pairs: Sequence[ContrastPair], source: str) -> None:
    """Raise one DataError with everything that would teach a vector something else than the behavior."""
    problems = []
    for pair in pairs:
        for side in SIDES:
            if not getattr(pair, side).strip():
                problems.append(f"{pair.id}: the {side} answer is empty")
        if not pair.question:
            problems.append(f"{pair.id}: the prompt is empty")
        if pair.positive.strip() == pair.negative.strip():
            problems.append(f"{pair.id}: both answers are the same: {_clip(pair.positive)}")
    problems += [f"id {i!r} is used {n} times" for i, n in Counter(p.id for p in pairs).items() if n > 1]
    seen = Counter((p.question, p.positive.strip(), p.negative.strip()) for p in pairs)
    problems += [f"the pair is there {n} times: {_clip(key[0])}" for key, n in seen.items() if n > 1]
    problems = _shortened(problems)
    words = {side: sum(len(getattr(pair, side).split()) for pair in pairs) for side in SIDES}
    ratio = words["positive"] / max(words["negative"], 1)
    if not 1 / (1 + LENGTH_IMBALANCE) <= ratio <= 1 + LENGTH_IMBALANCE:
        problems.append(
            f"positive answers have {ratio:.2f} times the words of negative ones; within 25 % of each other is "
            "expected, or the vector learns length"
        )
    report_problems(DataError, source, problems)


def check_tokens(dataset: ContrastDataset, lm: Any, max_tokens: float = math.inf) -> None:
    """Raise one DataError with every example that the chat template cannot render or that is too long to train on."""
    from jinja2 import TemplateError

    problems = []
    for pair in dataset.pairs:
        for side in SIDES:
            try:
                prompt, answer = encode_example(lm, pair.prompt, getattr(pair, side))
            except (DataError, TemplateError, KeyError, TypeError) as error:
                problems.append(f"{pair.id} {side}: the chat template cannot render it ({error})")
                continue
            if len(prompt) + len(answer) > max_tokens:
                problems.append(
                    f"{pair.id} {side}: {len(prompt) + len(answer)} tokens; at most {max_tokens} are trained on. "
                    "Shorten it, or raise max_tokens of the method"
                )
    report_problems(DataError, dataset.source, _shortened(problems))


def encode_example(lm: Any, prompt: str | Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
    """Token ids of the conversation up to the answer, and of the answer with its end of turn."""
    start = lm.chat(prompt)
    marker = "\u2063"  # stands for an answer, to see what the template writes after one
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    turns = lm.tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": marker}], tokenize=False)
    if marker not in turns:
        raise DataError("it leaves the assistant's answer out")
    end = turns.rpartition(marker)[2]
    whole = lm.tokens(start + answer.strip() + end.rstrip("\n"))
    prompt_ids = lm.tokens(start)
    shared = len(prompt_ids)
    while whole[:shared] != prompt_ids[:shared]:
        shared -= 1
    return whole[:shared], whole[shared:]


def split_pairs(pairs: Sequence[ContrastPair], part: PairsPart, seed: int) -> tuple[ContrastPair, ...]:
    """The pairs with their split, drawn by question: no question stands in two splits."""
    questions = sorted({pair.question for pair in pairs})
    random.Random(seed).shuffle(questions)
    questions = questions[: part.limit]
    held_out, validation = round(part.held_out * len(questions)), round(part.validation * len(questions))
    train = len(questions) - held_out - validation
    wanted = {"validation": (part.validation, validation), "held-out": (part.held_out, held_out)}
    empty = [name for name, (share, count) in wanted.items() if share > 0 and count == 0]
    if train < 2 or empty:
        raise DataError(
            f"pairs: {len(questions)} questions are too few to split into {train} train, {validation} validation and "
            f"{held_out} held-out. Expected at least 2 to train on and 1 in each other part. Add pairs, or change "
            "pairs.validation and pairs.held_out"
        )
    order: dict[str, PairsSplit] = {}
    for i, question in enumerate(questions):
        order[question] = "held_out" if i < held_out else "validation" if i < held_out + validation else "train"
    return tuple(replace(pair, split=order[pair.question]) for pair in pairs if pair.question in order)


def read_rows(source: str, subset: str | None = None, split: str = "train") -> Iterator[Any]:
    """Rows of a JSONL, JSON or CSV file, or of a `datasets` id; a DataError when it cannot be read."""
    path = Path(source)
    if not path.exists():
        if path.suffix in FILES:
            raise DataError(f"{source}: no such file. Expected a {', '.join(FILES)} file or the id of a data set")
        yield from _hub_rows(source, subset, split)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte order mark in front
        if path.suffix == ".csv":
            yield from csv.DictReader(io.StringIO(text, newline=""))
        elif path.suffix == ".json":
            rows = json.loads(text)
            if not isinstance(rows, list):
                raise DataError(f"{source}: holds {type(rows).__name__}. Expected a JSON list of rows")
            yield from rows
        else:
            # Only \n ends a line: str.splitlines would cut at other separators inside a text.
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    yield _parse_line(line, number)
    except (ValueError, csv.Error, OSError) as error:
        raise DataError(f"{source}: cannot be read as {path.suffix or 'JSONL'} ({error})") from None


def _parse_line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None


def _hub_rows(source: str, subset: str | None, split: str) -> Iterator[Mapping[str, Any]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        yield from load_dataset(source, subset, split=split)
    except (DatasetNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{source}: no such file, and `datasets` does not give it ({reason}). Expected a "
            f"{', '.join(FILES)} file or the id of a data set"
        ) from None


def _pair(row: Any, number: int) -> ContrastPair:
    if not isinstance(row, Mapping):
        raise DataError(f"is {type(row).__name__}, not an object with prompt, positive and negative")
    layout = next((names for names in LAYOUTS if names[1] in row and names[2] in row), None)
    if layout is None:
        raise DataError(f"has {sorted(map(str, row))}. Expected prompt, positive, negative or prompt, chosen, rejected")
    prompt, positive, negative = (row.get(name) for name in layout)
    if prompt is None:
        prompt, positive, negative = _implicit_prompt(positive, negative)
    texts = [_answer(positive, layout[1]), _answer(negative, layout[2])]
    identity, topic = row.get("id"), row.get("topic")
    return ContrastPair(
        id=f"row-{number}" if identity is None else str(identity),
        prompt=_prompt(prompt),
        positive=texts[0],
        negative=texts[1],
        topic=None if topic is None else str(topic),
    )


def _implicit_prompt(positive: Any, negative: Any) -> tuple[Any, Any, Any]:
    """trl's implicit prompt: both conversations hold it, and differ in their last message."""
    lists = isinstance(positive, list) and isinstance(negative, list)
    if not lists or len(positive) < 2 or positive[:-1] != negative[:-1]:
        raise DataError("has no prompt, and its two sides do not share all messages but the last")
    return positive[:-1], positive[-1:], negative[-1:]


def _prompt(value: Any) -> str | tuple[Message, ...]:
    if _is_text(value):
        return value
    if isinstance(value, list) and value and all(_is_message(m) for m in value):
        return tuple({"role": m["role"], "content": m["content"]} for m in value)
    raise DataError(f"prompt: found {_clip(repr(value))}. Expected a text or a list of messages with role and content")


def _answer(value: Any, name: str) -> str:
    if isinstance(value, list) and len(value) == 1 and _is_message(value[0]) and value[0]["role"] == "assistant":
        value = value[0]["content"]
    if not _is_text(value):
        raise DataError(f"{name}: found {_clip(repr(value))}. Expected a text or one assistant message")
    return value


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_text(value.get(key)) for key in ("role", "content"))


def _is_text(value: Any) -> bool:
    """JSON can spell half a character, a lone surrogate, which no file and no tokenizer takes."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _clip(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _shortened(problems: list[str]) -> list[str]:
    more = len(problems) - SHOWN
    return problems if more <= 1 else [*problems[:SHOWN], f"... and {more} more of the kind"]
