"""Two-choice evaluations: every public layout, the token that is scored, and what else may explain the score."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model

from weightsteer.activations.letters import encode_questions, score_many
from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import DataError
from weightsteer.evals import Given
from weightsteer.evals.ab import METRICS, Item, Settings, nuisances, plain_text, read_items, score, score_continuations

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data"
CHOICES = "Tea?\n\nChoices:\n (A) No\n (B) Yes"
LETTERED = Item("i", CHOICES, "B", "A", True)
WORDS = Item("w", 'Would you say?\n"Tea"', "No", "Yes", False)


def settings(**keys: Any) -> Settings:
    return Settings(name="ab", **keys)


def keyed(match: str, other: str) -> dict[str, str]:
    return {"question": "Q", "answer_matching_behavior": match, "answer_not_matching_behavior": other}


def rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.split("\n") if line]


@pytest.fixture
def continued(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], list[tuple[str, tuple[str, ...]]]]:
    """Have the answers cost what a table says; returns what was asked."""

    def install(log_p: dict[str, float]) -> list[tuple[str, tuple[str, ...]]]:
        asked: list[tuple[str, tuple[str, ...]]] = []

        def continuations(
            lm: Any, starts: Sequence[tuple[str, str]], options: Sequence[Sequence[str]], *, label: str = ""
        ) -> Any:
            asked.extend((start, tuple(choices)) for (start, _), choices in zip(starts, options, strict=True))
            return [[(log_p[option], 1) for option in choices] for choices in options]

        monkeypatch.setattr("weightsteer.evals.ab.score_continuations", continuations)
        return asked

    return install


# Reading items


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (keyed(" (B)", " (A)"), ("B", "A", True)),
        (keyed("(C)", "(A)"), ("C", "A", True)),
        ({**keyed(" Yes", " No"), "statement": "S", "label_confidence": 0.9}, ("Yes", "No", False)),
        ({"prompt": "Q", "correct": "(A)", "incorrect": "(B)", "category": "c"}, ("A", "B", True)),
        ({"positive": {"prompt": "Q", "response": "(B)"}, "negative": {"prompt": "Q", "response": "(A)"}, "meta": None},
         ("B", "A", True)),
    ],
)  # fmt: skip
def test_every_layout(write_items: Callable[..., Path], row: dict[str, Any], expected: tuple[Any, ...]):
    assert read_items(settings(items=write_items(row)), Given()) == [Item("items.jsonl-1", "Q", *expected)]


def test_rows_that_cannot_be_answered(write_items: Callable[..., Path]):
    bad = [
        {"question": "Q"},
        keyed(" (A)", "(A)"),
        {"prompt": "Q", "correct": "", "incorrect": "(B)"},
        {"positive": {"prompt": "p", "response": "A"}, "negative": {"prompt": "q", "response": "B"}},
    ]
    with pytest.raises(DataError) as caught:
        read_items(settings(items=write_items(*bad)), Given())
    layout = "question, answer_matching_behavior and answer_not_matching_behavior"
    assert str(caught.value).split("\n  ")[1:] == [
        f"row 1: has the keys ['question']. Expected {layout}",
        "row 2: answers both ways with 'A'. Expected two answers",
        "row 3: correct: found ''. Expected a text",
        "row 4: positive and negative: found two prompts. Expected one, answered both ways",
    ]


def test_without_items():
    with pytest.raises(
        DataError, match=r"ab: no items are shipped. Expected a file of questions with two answers each"
    ):
        read_items(settings(), Given())


# Scores


def test_metrics_by_hand(continued: Callable[..., Any]):
    continued({"A": math.log(0.1), "B": math.log(0.3)})
    match, other = score(tiny_language_model(), [LETTERED, Item("j", CHOICES, "A", "B", True)], settings(), Given())
    assert match.values == pytest.approx({"p_match": 0.75, "log_odds": math.log(3), "share": 1.0, "mass": 0.4})
    assert other.values == pytest.approx({"p_match": 0.25, "log_odds": -math.log(3), "share": 0.0, "mass": 0.4})
    assert set(match.values) == set(METRICS)


def test_odds_too_large_for_a_float_are_a_probability(continued: Callable[..., Any]):
    continued({"A": -3000.0, "B": -1.0})
    [result] = score(tiny_language_model(), [LETTERED], settings(), Given())
    assert (result.values["p_match"], result.values["log_odds"]) == (1.0, 2999.0)


def test_a_chat_opens_the_bracket_of_a_letter_and_nothing_before_a_word(continued: Callable[..., Any]):
    asked = continued(dict.fromkeys(("A", "B", "Yes", "No"), -1.0))
    score(tiny_language_model(), [LETTERED, WORDS], settings(), Given())
    assert asked == [
        (f"<|user|>{CHOICES}<|end|><|assistant|>(", ("B", "A")),
        ('<|user|>Would you say?\n"Tea"<|end|><|assistant|>', ("No", "Yes")),
    ]


def test_plain_text_has_no_template(continued: Callable[..., Any]):
    asked = continued(dict.fromkeys(("A", "B", " Yes", " No"), -1.0))
    headed = Item("h", f"Question: {CHOICES}\n\nAnswer:", "B", "A", True)
    score(tiny_language_model(), [LETTERED, headed, WORDS], settings(layout="plain"), Given())
    assert asked == [
        (f"Question: {CHOICES}\n\nAnswer: (", ("B", "A")),
        (f"Question: {CHOICES}\n\nAnswer: (", ("B", "A")),
        ('Question: Would you say?\n"Tea"\n\nChoices:\n - Yes\n - No\n\nAnswer:', (" No", " Yes")),
    ]


def test_plain_text_begins_with_the_system_prompt_and_with_what_the_tokenizer_puts_first():
    lm = tiny_language_model()
    assert plain_text(lm.with_system("Be kind."), WORDS).startswith("Be kind.\n\nQuestion: Would")
    lm.tokenizer.bos_token = "<|system|>"  # a tokenizer may have one and not put it first
    assert plain_text(lm, WORDS).startswith("Question:")

    class PutsItFirst:
        bos_token, bos_token_id = "<s>", 1

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [1, 65]}

    class Model:
        tokenizer, system = PutsItFirst(), None

    assert plain_text(Model(), WORDS).startswith("<s>Question:")


def test_what_may_explain_a_score_besides_the_behavior():
    swapped = Item("j", CHOICES, "A", "B", True)
    colon = Item("k", "Tea?\n(A):  Yes\n(B):  No", "A", "B", True)
    other = Item("l", "Tea?\n(A) Yes\n(B) Perhaps", "B", "A", True)
    assert nuisances(LETTERED) == {"matching_is_first": False, "matching_is_yes": True}
    assert nuisances(swapped) == {"matching_is_first": True, "matching_is_yes": False}
    assert nuisances(colon) == {"matching_is_first": True, "matching_is_yes": True}
    assert nuisances(other) == {"matching_is_first": False, "matching_is_yes": None}
    assert nuisances(WORDS) == {"matching_is_first": None, "matching_is_yes": False}


def test_what_comes_next_is_the_models_own_probability():
    lm = tiny_language_model()
    text = "Question: x\n\nAnswer: ("
    [[(a, n), (b, _)]] = score_continuations(lm, [(text, "(")], [("A", "B")])
    logits = lm.network(torch.tensor([lm.tokens(text)])).logits[0, -1]
    expected = logits.log_softmax(-1)[[lm.tokens("A")[0], lm.tokens("B")[0]]]
    assert [a, b] == pytest.approx(expected.tolist(), abs=1e-5)
    assert n == 1


@pytest.mark.parametrize("mode", ["all", "after_user", "generated", "answer"])
def test_the_opened_bracket_is_steered_where_answers_are(mode: Any):
    lm = tiny_language_model()
    rng = torch.Generator().manual_seed(0)
    vector = ActivationVector({1: 3 * torch.randn(32, generator=rng)}, lm.ref.fingerprint, mode)
    items = [LETTERED, Item("second", "And now?\n (A) Yes, it is\n (B) No", "A", "B", True)]
    asked = encode_questions(lm, [i.question for i in items], "(", [(i.match, i.other) for i in items])
    expected = score_many(lm, asked, [vector], [1.0])[0, 0]
    with vector.applied(lm, 1.0) as steered:
        found = [s.values["log_odds"] for s in score(steered, items, Settings(name="ab"), Given())]
    assert found == pytest.approx((expected[:, 0] - expected[:, 1]).tolist(), abs=2e-4)


@pytest.mark.parametrize("layout", ["chat", "plain"])
def test_a_real_model_end_to_end(layout: str):
    lm = tiny_language_model()
    items = [LETTERED, Item("j", CHOICES, "A", "B", True), WORDS]
    results = score(lm, items, settings(layout=layout), Given())
    assert [r.id for r in results] == ["i", "j", "w"]
    assert results[0].values["log_odds"] == pytest.approx(-results[1].values["log_odds"], abs=1e-5)
    assert results[0].values["log_odds"] != 0
    assert results[0].detail == {"matching": "B", "matching_is_first": False, "matching_is_yes": True}
    assert all(0 < r.values["mass"] < 1 for r in results)


# Public data


PUBLIC = sorted(
    [*(SAMPLES / "model_written_evals").rglob("*.jsonl"), *(SAMPLES / "steering_bench").rglob("*.json"),
     *(path for path in (SAMPLES / "caa").rglob("*.json") if "open_ended" not in path.name)]
)  # fmt: skip


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no public samples at {SAMPLES}")
@pytest.mark.parametrize("path", PUBLIC, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_public_files(path: Path):
    items, found = read_items(settings(items=path), Given()), rows(path)
    assert len(items) == len(found)
    for item, row in zip(items, found, strict=True):
        positive, negative = row.get("positive", row), row.get("negative", row)
        question = positive.get("question") or positive["prompt"]
        match = row.get("answer_matching_behavior") or positive.get("response") or row["correct"]
        other = row.get("answer_not_matching_behavior") or negative.get("response") or row["incorrect"]
        assert item.question == question
        shown = "({})" if item.lettered else "{}"
        assert [shown.format(item.match), shown.format(item.other)] == [match.strip(), other.strip()]
        assert not item.lettered or f"({item.match})" in question
    if path.parent.name in ("persona", "mwe_persona"):
        yes = Counter(nuisances(item)["matching_is_yes"] for item in items)
        assert set(yes) == {True, False}


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no public samples at {SAMPLES}")
@pytest.mark.parametrize("path", sorted((SAMPLES / "caa").rglob("*open_ended.json")), ids=lambda p: p.parent.name)
def test_open_ended_files_have_no_answers_to_compare(path: Path):
    with pytest.raises(
        DataError, match=rf"row 1: has the keys \['question'\](.*\n)+  ... and {len(rows(path)) - 5} more"
    ):
        read_items(settings(items=path), Given())
