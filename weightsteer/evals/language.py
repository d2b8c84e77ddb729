"""In which language does the model answer English questions? The control behavior of arXiv 2511.05408, appendix B.1."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from weightsteer.errors import DataError
from weightsteer.evals import ItemScore, read_rows, texts, unreadable
from weightsteer.recipe import AnsweredSettings

VERSION = 1
KIND = "behavior"
PAIRS = True
METRICS = {
    "share": "share of the answers to English questions that are in French",
    "log_odds": "log-likelihood per token of a French less that of an English answer to the same question, nats",
}
# Function words that the other language does not have. One of them is held to be about so much more frequent in its
# own language than in the other, where it stands in names and quotations.
RATIO = 20.0
FRENCH_WORDS = """
au aux avec avez avons bien ce ces cette chez comme dans de depuis des donc du elle elles en encore est et eux il ils je
jusque la le les leur leurs lui mais mes moi mon ne nos notre nous ont ou parce pas pendant peu peut peux plusieurs
pourquoi puis quand que quel quelle quelque qui sa sans ses si sommes sont sous souvent sur ta te tes toi toujours tous
toute toutes trop tu un une vers voici vos votre vous"""
ENGLISH_WORDS = """
about after all also and any are at be because been before but by can could did do does for from had has have he her
here him his how i if in into is it its just like many may more most much must my no not of often one only other our out
over she should so some such than that the their them then there these they this those to too up was we were what when
where which while who why will with would yes you your"""
FRENCH, ENGLISH = frozenset(FRENCH_WORDS.split()), frozenset(ENGLISH_WORDS.split())
ACCENTED = re.compile(r"[àâçèéêëîïôùûœ]")
ELIDED = re.compile(r"\b(?:l|j|qu|d|n|s|c|m|t)['’](?=[aeiouyhàâéèêîœ])")
WORD = re.compile(r"[^\W\d_]+")
FEWEST_WORDS = 3


class Settings(AnsweredSettings):
    """The language looked for, and how answers are drawn."""

    language: Literal["french"] = "french"
    pairs: Path | None = None
    """Pairs of a French (positive) and an English (negative) answer, for `log_odds`."""
    held_out: bool = False
    """The run's own pairs are such pairs: use their held-out part for `log_odds`."""
    max_new_tokens: Annotated[int, pydantic.Field(gt=0)] = 48


@dataclass(frozen=True)
class Question:
    """An English question to be answered."""

    id: str
    prompt: str


@dataclass(frozen=True)
class Answers:
    """A question with an answer in each language."""

    id: str
    prompt: Any
    french: str
    english: str


def read_items(settings: Settings, given: Any) -> list[Question | Answers]:
    """Questions (prompt), questions in two languages (question_en, with TruthfulQA's answers in both where they are
    there), then the pairs that the settings name."""
    from weightsteer.data.contrast import read_pairs

    rows = read_rows(settings.items, "french.jsonl", _items)
    pairs = read_pairs(str(settings.pairs)) if settings.pairs else ()
    if settings.held_out:
        held_out = given.pairs.part("held_out").pairs if given.pairs else ()
        if not held_out:
            raise DataError("language: held_out is set, and there are no held-out pairs. Raise pairs.held_out")
        pairs = [*pairs, *held_out]
    answers = [Answers(f"pair-{pair.id}", pair.prompt, pair.positive, pair.negative) for pair in pairs]
    _check_languages(answers)
    return [*(item for items in rows for item in items), *answers]


def _items(where: str, row: Mapping[str, Any]) -> list[Question | Answers]:
    name = str(row.get("id", where))
    key = next((key for key in ("prompt", "question", "question_en") if key in row), None)
    if key is None:
        raise unreadable(row, "prompt, question or question_en")
    [prompt] = texts(row, key)
    items: list[Question | Answers] = [Question(name, prompt)]
    if {"mc1_targets_en", "mc1_targets_fr"} <= row.keys():
        english, french = (_right(row[f"mc1_targets_{language}"]) for language in ("en", "fr"))
        items.append(Answers(f"{name}-answers", prompt, french, english))
    return items


def _right(targets: Mapping[str, Any]) -> str:
    return targets["choices"][targets["labels"].index(1)]


def _check_languages(answers: Sequence[Answers]) -> None:
    """Pairs the wrong way round, or of something else, would turn the sign of `log_odds` or its meaning."""
    wrong = [a.id for a in answers if (french_log_odds(a.french) or 0) < (french_log_odds(a.english) or 0)]
    if len(wrong) * 2 > len(answers):
        raise DataError(
            f"language: in {len(wrong)} of {len(answers)} pairs ({', '.join(wrong[:3])}, ...) the positive answer is "
            "less French than the negative one. Expected French positive and English negative answers"
        )


def score(lm: Any, items: Sequence[Question | Answers], settings: Settings, given: Any) -> list[ItemScore]:
    """Language of each written answer, and log-odds of the given ones; per token, so that no side gains by length."""
    from weightsteer.models.generate import generate, score_options

    questions = [item for item in items if isinstance(item, Question)]
    pairs = [item for item in items if isinstance(item, Answers)]
    drawing = {"temperature": settings.temperature, "seed": settings.seed}
    answers = generate(lm, [q.prompt for q in questions], settings.max_new_tokens, **drawing, label="language")
    results = [_detected(question, answer) for question, answer in zip(questions, answers, strict=True)]
    options = [(pair.french, pair.english) for pair in pairs]
    scored = score_options(lm, [pair.prompt for pair in pairs], options, label="language: answers")
    for pair, ((french, n_french), (english, n_english)) in zip(pairs, scored, strict=True):
        values = {"share": None, "log_odds": french / n_french - english / n_english}
        results.append(ItemScore(pair.id, values, {"prompt": pair.prompt, "answers": [pair.french, pair.english]}))
    return results


def _detected(question: Question, answer: str) -> ItemScore:
    odds = french_log_odds(answer)
    detail = {"prompt": question.prompt, "answer": answer, "french_log_odds": odds}
    if odds is None:
        return ItemScore(question.id, {}, detail, f"the answer has fewer than {FEWEST_WORDS} words")
    if odds == 0:
        return ItemScore(question.id, {}, detail, "the answer looks neither French nor English")
    return ItemScore(question.id, {"share": float(odds > 0), "log_odds": None}, detail)


def french_log_odds(text: str) -> float | None:
    """Log-odds in nats of French against English by function words, accents and elisions; None for too few words."""
    lower = text.lower()
    words = WORD.findall(lower)
    if len(words) < FEWEST_WORDS:
        return None
    french = sum(word in FRENCH or ACCENTED.search(word) is not None for word in words) + len(ELIDED.findall(lower))
    return math.log(RATIO) * (french - sum(word in ENGLISH for word in words))
