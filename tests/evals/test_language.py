"""Language: which answers are French, and what French and English answers are worth to the model."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightsteer.data.contrast import ContrastDataset, ContrastPair
from weightsteer.errors import DataError
from weightsteer.evals import Given
from weightsteer.evals.language import (
    ENGLISH,
    FRENCH,
    METRICS,
    Answers,
    Question,
    Settings,
    french_log_odds,
    read_items,
    score,
)

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data"
SETTINGS = Settings(name="language")
GIVEN = Given()
BONJOUR = "Le chat dort dans la cuisine."
HELLO = "The cat is sleeping in the kitchen."


@pytest.mark.parametrize(
    "text",
    [
        BONJOUR,
        "C'est une bonne idée de boire de l'eau.",
        "Oui, je suis d'accord avec vous.",
        "Paris, bien sûr ! Vous y trouverez des musées.",
        "On a mangé à midi.",
        "J’aime les pommes.",
    ],
)
def test_french(text: str):
    assert french_log_odds(text) > 0


@pytest.mark.parametrize(
    "text",
    [
        HELLO,
        "I'd say that it's a good idea to drink some water.",
        "You could visit the café in Paris, which is a nice place.",
        "Don't worry, the dogs' owners are here.",
        "He ate a la carte and they did too.",
    ],
)
def test_english(text: str):
    assert french_log_odds(text) < 0


def test_every_word_counts_once_and_too_few_words_are_nothing():
    assert french_log_odds("Le chat est là") == pytest.approx(3 * math.log(20))
    assert french_log_odds("the le xyz") == 0
    assert french_log_odds("Bonjour madame") is None
    assert french_log_odds("1 2 3 4 5") is None
    assert not FRENCH & ENGLISH


def test_metrics_by_hand(answered: Callable[..., Any], scripted: Callable[..., Any]):
    asked = answered(BONJOUR, HELLO, "Oui.", "Xyz abc def.")
    scripted(lambda prompt, option: (-8.0, 4) if option == "oui" else (-3.0, 1))
    items = [*(Question(str(n), f"Q{n}") for n in range(2)), Answers("p", "Q", "oui", "yes"), Question("2", "Q2"),
             Question("3", "Q3")]  # fmt: skip
    settings = Settings(name="language", max_new_tokens=5, temperature=0.3, seed=2)
    french, english, short, other, pair = score(None, items, settings, GIVEN)
    options = {"temperature": 0.3, "seed": 2, "label": "language"}
    assert asked == [(["Q0", "Q1", "Q2", "Q3"], 5, options)]
    assert french.values == {"share": 1.0, "log_odds": None}
    assert english.values == {"share": 0.0, "log_odds": None}
    assert (short.values, short.unscored) == ({}, "the answer has fewer than 3 words")
    assert (other.values, other.unscored) == ({}, "the answer looks neither French nor English")
    assert pair.values == {"share": None, "log_odds": -2.0 + 3.0}
    assert french.detail["answer"] == BONJOUR
    assert list(pair.values) == list(METRICS)


def test_questions_and_answers_in_two_languages(write_items: Callable[..., Path]):
    targets = {"choices": ["wrong", "right"], "labels": [0, 1]}
    french = {"choices": ["faux", "juste"], "labels": [0, 1]}
    rows = [
        {"id": "f1", "topic": "tea", "prompt": "P?"},
        {"question_en": "Q?", "question_fr": "Q ?", "mc1_targets_en": targets, "mc1_targets_fr": french},
    ]
    assert read_items(Settings(name="language", items=write_items(*rows)), GIVEN) == [
        Question("f1", "P?"),
        Question("items.jsonl-2", "Q?"),
        Answers("items.jsonl-2-answers", "Q?", "juste", "right"),
    ]


def test_shipped_questions_are_english():
    items = read_items(SETTINGS, GIVEN)
    assert len({item.prompt for item in items}) == len(items) >= 20
    assert [item.prompt for item in items if (french_log_odds(item.prompt) or 0) > 0] == []


def test_rows_of_another_kind(write_items: Callable[..., Path]):
    path = write_items({"text": "x"}, {"prompt": ""})
    with pytest.raises(
        DataError, match=r"row 1: has the keys \['text'\]. Expected prompt, question or .*\n.*row 2: prompt: found"
    ):
        read_items(Settings(name="language", items=path), GIVEN)


def test_pairs_of_both_languages(write_items: Callable[..., Path]):
    items = write_items({"prompt": "P?"})
    pairs = write_items({"id": "1", "prompt": "A?", "positive": BONJOUR, "negative": HELLO}, name="pairs.jsonl")
    own = ContrastPair("h", "B?", BONJOUR, HELLO, split="held_out")
    given = Given(pairs=ContrastDataset("french", (own, ContrastPair("t", "C?", BONJOUR, HELLO))))
    settings = Settings(name="language", items=items, pairs=pairs, held_out=True)
    assert read_items(settings, given)[1:] == [
        Answers("pair-1", "A?", BONJOUR, HELLO),
        Answers("pair-h", "B?", BONJOUR, HELLO),
    ]
    assert len(read_items(Settings(name="language", items=items), given)) == 1


def test_pairs_that_are_not_there_or_the_wrong_way_round(write_items: Callable[..., Path]):
    items = write_items({"prompt": "P?"})
    with pytest.raises(DataError, match=r"held_out is set, and there are no held-out pairs. Raise pairs.held_out"):
        read_items(Settings(name="language", items=items, held_out=True), GIVEN)
    pairs = write_items({"id": "1", "prompt": "A?", "positive": HELLO, "negative": BONJOUR}, name="pairs.jsonl")
    with pytest.raises(DataError, match=r"in 1 of 1 pairs \(pair-1, ...\) the positive answer is less French"):
        read_items(Settings(name="language", items=items, pairs=pairs), GIVEN)


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no public samples at {SAMPLES}")
def test_public_files():
    for name, count in {"sycophancy_opinions": 500, "truthfulqa": 567}.items():
        path = SAMPLES / "en_fr" / f"{name}.jsonl"
        items = read_items(Settings(name="language", items=path), GIVEN)
        assert sum(isinstance(item, Question) for item in items) == count
        assert sum(isinstance(item, Answers) for item in items) == (567 if name == "truthfulqa" else 0)


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no public samples at {SAMPLES}")
def test_the_detector_tells_public_sentences_apart():
    path = SAMPLES / "en_fr" / "sentiment_sentences.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert sum((french_log_odds(row["fr"]) or 0) > 0 for row in rows) / len(rows) > 0.98
    assert sum((french_log_odds(row["en"]) or 0) < 0 for row in rows) / len(rows) > 0.98
    wrong = sum((french_log_odds(r["fr"]) or 0) < 0 or (french_log_odds(r["en"]) or 0) > 0 for r in rows)
    assert wrong / (2 * len(rows)) < 0.005
