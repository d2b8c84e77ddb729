"""A behavior and a model -> contrast pairs: answered under opposed system prompts, rated, paired, prompts left out.

Sources: arXiv 2511.05408, section 3 and appendix C; the pipeline of arXiv 2507.21509, section 2.
"""

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from weightsteer import progress
from weightsteer.data.contrast import SIDES, ContrastDataset, ContrastPair, Side, check_pairs, write_pairs
from weightsteer.data.pairing import Answer, AnswerPair, count_answers, elicitation_table, pair_answers
from weightsteer.data.traits import Trait, as_trait, fill_rubric, normalized
from weightsteer.errors import DataError
from weightsteer.models.generate import generate
from weightsteer.models.language_model import LanguageModel
from weightsteer.recipe import Behavior, ElicitPart
from weightsteer.stage import digest, locked, run_stage, write_text

SCALE = "0-100"
# Generation tells texts, not where they ended, and a text encoded again has somewhat fewer tokens than were sampled:
# an unfinished sentence of nearly the allowed length was cut off.
NEARLY = 0.9
SENTENCE_END = re.compile(r"(?:[.!?…][\"'”’»)\]*_`]*(?=\s|$)|[。！？][”’」』）]*)")
LIST_MARK = re.compile(r"(?:^|\n)\s*(?:\d+[.)]|[-*•#]+)\s*$")


@runtime_checkable
class Rating(Protocol):
    """A judge's verdict on one answer."""

    @property
    def score(self) -> float | None: ...
    @property
    def said(self) -> str: ...
    @property
    def unscored(self) -> str | None: ...


@runtime_checkable
class Judge(Protocol):
    """What is asked of a judge here; those of `weightsteer.judge` are such."""

    @property
    def digest(self) -> str: ...
    def rate(self, prompts: Sequence[str], scale: Literal["0-100"], label: str = "") -> Sequence[Rating]: ...


@dataclass(frozen=True)
class _Block:
    """One system prompt and all that is asked under it: sampled, rated and written as one piece."""

    side: Side
    prompt: int
    system: str

    @property
    def name(self) -> str:
        return f"{self.side}-{self.prompt + 1}"


@dataclass(frozen=True)
class _Sampled:
    """An answer as the model gave it."""

    question: int
    sample: int
    answer: str
    whole: str
    """`answer` without a last sentence that was cut off."""

    @property
    def key(self) -> tuple[int, str]:
        """Equal for two answers that say the same to one question."""
        return self.question, normalized(self.whole)


def elicit(
    behavior: Behavior, lm: LanguageModel, settings: ElicitPart, judge: Judge, seed: int, out: Path
) -> tuple[ContrastPair, ...]:
    """The pairs of `behavior` in the words of the model itself, as training takes them: without a system prompt.

    Below `out`, each piece a finished stage, so that the same call after a kill goes on and ends with the same bytes:
    `answers/SIDE-N` (one system prompt; its seed comes from `seed`, side and N), `ratings/JUDGE/SIDE-N` (JUDGE stands
    for the judge and the rubric, so another judge rates the same answers) and `pairs`: pairs.jsonl, elicitation.json.
    An answer that was cut off ends with its last full sentence. A DataError tells what became of the answers when no
    pair is left.
    """
    trait = as_trait(behavior)
    with locked(out):
        questions = _draw(trait.questions, settings.questions, seed)
        blocks = [
            _Block(side, n, getattr(prompts, side)) for n, prompts in enumerate(trait.system_prompts) for side in SIDES
        ]
        answers: list[Answer] = []
        ratings: dict[tuple[int, str], float | None] = {}
        with progress.task(f"eliciting {trait.name}", len(blocks)) as advance:
            for block in blocks:
                rows = _sample(block, questions, lm, settings, seed, out / "answers" / block.name)
                # Rated at once, so that a judge that does not work is found out before the rest is sampled.
                ratings |= _rate([row for row in rows if row.key not in ratings], trait, judge, out / "ratings", block)
                answers += [_answer(block, row, ratings.get(row.key)) for row in rows]
                advance()
        chosen, fates = pair_answers(answers, settings)
        counts = count_answers(fates)
        if not chosen:
            raise DataError(_nothing_left(trait.name, settings, counts))
        pairs = _contrast_pairs(trait, chosen)
        check_pairs(pairs, str(out))
        inputs = {
            "behavior": trait.name,
            "answers": digest([(a.side, a.question, a.prompt, a.sample, a.text, a.rating) for a in answers]),
            "settings": settings.model_dump(mode="json"),
        }
        record = {**inputs, "model": lm.ref.source, "judge": judge.digest, "seed": seed, "pairs": len(pairs)}
        record |= {"questions": list(questions.values()), "sides": counts}
        run_stage(out / "pairs", inputs, partial(_write, pairs, trait.name, record))
    return pairs


def read_elicitation(out: Path) -> dict[str, Any]:
    """The record of a finished elicitation; `elicitation_table` shows its `sides`."""
    return json.loads((out / "pairs" / "elicitation.json").read_text(encoding="utf-8"))


def whole_sentences(text: str) -> str:
    """`text` up to the end of its last full sentence; empty when there is none."""
    ends = [found.end() for found in SENTENCE_END.finditer(text)]
    return LIST_MARK.sub("", text[: ends[-1]] if ends else "").strip()


def _draw(questions: Sequence[str], limit: int | None, seed: int) -> dict[int, str]:
    """At most `limit` of the questions, by their place among all."""
    count = len(questions) if limit is None else min(limit, len(questions))
    chosen = random.Random(seed).sample(range(len(questions)), count)
    return {index: questions[index] for index in sorted(chosen)}


def _sample(
    block: _Block, questions: Mapping[int, str], lm: LanguageModel, settings: ElicitPart, seed: int, folder: Path
) -> list[_Sampled]:
    """All answers under one system prompt."""
    sampling = settings.model_dump(include={"samples", "temperature", "max_new_tokens"})
    inputs = {
        "model": lm.ref.fingerprint,
        "dtype": str(lm.network.dtype),
        "chat_template": digest(lm.tokenizer.chat_template),
        "system": block.system,
        "questions": {str(index): question for index, question in questions.items()},
        **sampling,
        "seed": int(digest([seed, block.side, block.prompt])[:8], 16),
    }
    asked = [(index, sample) for index in questions for sample in range(settings.samples)]

    def work(folder: Path) -> None:
        texts = generate(
            lm.with_system(block.system),
            [questions[index] for index, _ in asked],
            settings.max_new_tokens,
            temperature=settings.temperature,
            seed=inputs["seed"],
            label=f"answers, {block.side} prompt {block.prompt + 1}",
        )
        enough = NEARLY * settings.max_new_tokens
        rows = (
            {
                "question": index,
                "sample": sample,
                "answer": text,
                "whole": whole_sentences(text) if len(lm.tokens(text)) >= enough else text,
            }
            for (index, sample), text in zip(asked, texts, strict=True)
        )
        _write_rows(folder / "answers.jsonl", rows)

    run_stage(folder, inputs, work)
    return [_Sampled(**row) for row in _read_rows(folder / "answers.jsonl")]


def _rate(
    rows: Sequence[_Sampled], trait: Trait, judge: Judge, out: Path, block: _Block
) -> dict[tuple[int, str], float | None]:
    """What the judge gives each distinct answer that is there to be rated."""
    distinct: dict[tuple[int, str], _Sampled] = {}
    for row in rows:
        if row.whole:
            distinct.setdefault(row.key, row)
    if not distinct:
        return {}
    asked = {"judge": judge.digest, "rubric": digest(trait.rubric)}
    prompts = [fill_rubric(trait.rubric, trait.questions[row.question], row.whole) for row in distinct.values()]

    def work(folder: Path) -> None:
        verdicts = judge.rate(prompts, SCALE, label=f"rating, {block.side} prompt {block.prompt + 1}")
        ratings = (
            {"question": row.question, "sample": row.sample, "score": v.score, "said": v.said, "unscored": v.unscored}
            for row, v in zip(distinct.values(), verdicts, strict=True)
        )
        _write_rows(folder / "ratings.jsonl", ratings)

    folder = out / digest(asked)[:12] / block.name
    run_stage(folder, {**asked, "prompts": digest(prompts)}, work)
    scores = (row["score"] for row in _read_rows(folder / "ratings.jsonl"))
    return dict(zip(distinct, scores, strict=True))


def _answer(block: _Block, row: _Sampled, rating: float | None) -> Answer:
    cut = row.whole != row.answer
    return Answer(block.side, row.question, block.prompt, row.sample, row.whole, cut, rating)


def _contrast_pairs(trait: Trait, chosen: Sequence[AnswerPair]) -> tuple[ContrastPair, ...]:
    """The chosen answers as pairs; ids count questions, system prompts and samples from 1."""
    return tuple(
        ContrastPair(
            id=f"q{positive.question + 1}-p{positive.prompt + 1}-{positive.sample + 1}-{negative.sample + 1}",
            prompt=trait.questions[positive.question],
            positive=positive.text,
            negative=negative.text,
        )
        for positive, negative in chosen
    )


def _write(pairs: tuple[ContrastPair, ...], name: str, record: Mapping[str, Any], folder: Path) -> None:
    write_pairs(ContrastDataset(name, pairs), folder / "pairs.jsonl")
    write_text(folder / "elicitation.json", json.dumps(record, indent=1, ensure_ascii=False))


def _nothing_left(name: str, settings: ElicitPart, counts: Mapping[str, Mapping[str, Any]]) -> str:
    return (
        f"behavior {name}: no pair is left of the sampled answers\n{elicitation_table(counts)}\n"
        "Expected, to one question under one pair of system prompts, a positive answer rated above "
        f"{settings.keep_positive:g} and a negative one below {settings.keep_negative:g}. Take another judge (the "
        "answers stay), or, in another folder, more samples, a higher max_new_tokens, a larger model or plainer system "
        "prompts"
    )


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    # Only \n ends a line: str.splitlines would cut at other separators inside a text.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
