"""Seven prompt types, the split that they need, and what is expected from geometry."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tiny_models import tiny_language_model

from weightsteer.activations.expectation import Row, block_at, fit, load_calibration, sentence, size
from weightsteer.activations.prompt_types import (
    PROMPT_TYPES,
    Question,
    both_prompts,
    last_token_examples,
    split_items,
)
from weightsteer.errors import DataError

ASKED = Question("set-1", "Question: Tea?\n\nAnswer: (", "A", "B", ")")
SHOTS = [Question(f"s{i}", f"Q{i}: (", "A", "B", ")") for i in range(5)]
INSTRUCTIONS = "Be so.", "Be other."


@dataclass
class Item:
    question: str
    match: str


def types() -> dict:
    return {kind.name: kind for kind in PROMPT_TYPES}


def test_the_seven_types_are_all_combinations():
    assert len({(k.prefilled, k.instruction, k.shots) for k in PROMPT_TYPES}) == len(types()) == 7
    assert all(k.prefilled or k.instruction or k.shots for k in PROMPT_TYPES)


def test_texts_of_a_type():
    positive, negative = both_prompts(types()["prefilled"], ASKED, opening="<s>")
    assert positive == ("<s>Question: Tea?\n\nAnswer: (", "A")
    assert negative == ("<s>Question: Tea?\n\nAnswer: (", "B")
    positive, negative = both_prompts(types()["instruction"], ASKED, SHOTS, INSTRUCTIONS)
    assert positive == ("Be so.\n\nQuestion: Tea?\n\nAnswer: (", "")
    assert negative == ("Be other.\n\nQuestion: Tea?\n\nAnswer: (", "")
    positive, negative = both_prompts(types()["all"], ASKED, SHOTS, INSTRUCTIONS, "<s>")
    shots = "".join(f"Q{i}: (A)\n\n" for i in range(5))
    assert positive == (f"<s>Be so.\n\n{shots}Question: Tea?\n\nAnswer: (", "A")
    assert negative == (f"<s>Be other.\n\n{shots.replace('A', 'B')}Question: Tea?\n\nAnswer: (", "B")


def test_a_missing_ingredient():
    with pytest.raises(DataError, match=r"prompt type '5-shot': got 4 examples. Expected 5"):
        both_prompts(types()["5-shot"], ASKED, SHOTS[:4])
    with pytest.raises(DataError, match="prompt type 'instruction': there are no instructions"):
        both_prompts(types()["instruction"], ASKED)


def test_the_parts_of_a_split_share_no_question_and_are_balanced():
    items = [Item(f"question {i}", "A" if i < 150 else "B") for i in range(250)]
    split = split_items(items, 100, 60, 0, "set.jsonl")
    parts = [split.train, split.evaluation, split.shots]
    assert [len(part) for part in parts] == [100, 60, 5]
    assert len({item.question for part in parts for item in part}) == 165
    for part in parts:
        assert abs(sum(item.match == "A" for item in part) - len(part) / 2) <= 1
    assert split == split_items(items, 100, 60, 0, "set.jsonl")
    assert split != split_items(items, 100, 60, 1, "set.jsonl")


def test_repeated_questions_are_left_out_and_counted():
    items = [Item(f"question {i % 20}", "AB"[i % 2]) for i in range(30)]
    assert split_items(items, 8, 6, 0, "set.jsonl").repeated == 10
    with pytest.raises(DataError, match=r"set.jsonl: asks 20 different questions. Expected 21: 5 examples, 6 to eval"):
        split_items(items, 10, 6, 0, "set.jsonl")


def test_texts_are_read_at_their_last_token():
    lm = tiny_language_model()
    positive, negative = last_token_examples(lm, ["a"], [both_prompts(types()["prefilled"], ASKED)])
    assert positive[0].ids[:-1] == negative[0].ids[:-1] == lm.tokens(ASKED.text)
    assert positive[0].reads == (range(len(positive[0].ids) - 1, len(positive[0].ids)),)
    assert lm.tokenizer.decode(positive[0].ids[-1:]) == "A"


def test_answers_without_a_token_of_their_own_and_long_texts_are_named():
    lm = tiny_language_model(max_position_embeddings=64)
    words = replace(ASKED, id="set.jsonl-7", matching=" Yes", other=" No")
    long = replace(ASKED, id="set.jsonl-9", text="x" * 70)
    with pytest.raises(DataError, match=r"set.jsonl-7: the answer token is not found: ' Yes' and ' No'") as error:
        last_token_examples(
            lm, ["set.jsonl-7", "set.jsonl-9"], [both_prompts(types()["prefilled"], q) for q in (words, long)]
        )
    assert "set.jsonl-9: a text of 71 tokens; the context has 64" in str(error.value)


ROWS = [Row(0.1 * i, 0.5 * i, effect=0.3 * i - 0.6, wrong_way=0.6 - 0.1 * i) for i in range(6)]


def test_the_fit_returns_what_it_was_given_where_that_is_monotone():
    found = fit(ROWS, "tiny", 0.4)
    for row in ROWS:
        expected = found.expect(row.agreement, row.d_prime)
        assert expected.effect == pytest.approx(row.effect)
        assert expected.wrong_way == pytest.approx(row.wrong_way)
    assert found.expect(-1, -9).wrong_way == pytest.approx(0.6)  # beyond the sets: as the outermost
    assert found.error < found.error_of_mean


def test_the_fit_is_monotone_where_the_sets_are_not():
    rows = [replace(row, wrong_way=share) for row, share in zip(ROWS, (0.6, 0.2, 0.5, 0.3, 0.4, 0.1), strict=True)]
    found = fit(rows, "tiny", 0.4)
    assert list(found.wrong_way) == sorted(found.wrong_way, reverse=True)
    assert sum(found.wrong_way) == pytest.approx(2.1)


def test_the_sentence_comes_from_the_calibration():
    found = fit(ROWS, "tiny", 0.4)
    assert sentence(ROWS[3].agreement, ROWS[3].d_prime, found) == (
        "agreement 0.30, d′ 1.5: expect a small effect with about 30 % of inputs moving the wrong way"
    )
    assert sentence(-0.1, 0.6, None) == (
        "agreement −0.10, d′ 0.6: uncalibrated, so what to expect of steering is not known"
    )
    assert sentence(0.54, 1.5, found) == (
        "agreement 0.54, d′ 1.5: beyond what the calibration saw (agreement 0 to 0.5), so what to expect of steering "
        "is not known"
    )
    assert "(agreement 0 to 0.5 and d′ 0 to 2.5)" in sentence(-0.1, 4, found)
    useless = replace(found, error=0.2, error_of_mean=0.1)
    assert "no better than their average" in sentence(0.3, 1.5, useless)
    assert [size(e) for e in (1, 0.6, 0.2, 0, -1)] == [
        "a large effect", "a medium effect", "a small effect", "hardly any effect", "an effect in the wrong direction",
    ]  # fmt: skip


def test_a_calibration_is_read_back(tmp_path: Path):
    from dataclasses import asdict

    path = tmp_path / "calibration.json"
    assert load_calibration(path) is None
    found = fit(ROWS, "tiny", 0.4)
    path.write_text(json.dumps({"fit": asdict(found)}), encoding="utf-8")
    assert load_calibration(path) == found
    path.write_text('{"fit": {"agreement": 1}}', encoding="utf-8")
    with pytest.raises(DataError, match=r"calibration.json: not a calibration"):
        load_calibration(path)
    with pytest.raises(DataError, match=r"calibration: 4 sets. Expected at least 5"):
        fit(ROWS[:4], "tiny", 0.4)


def test_the_block_at_a_depth():
    assert [block_at(0.4, n) for n in (30, 32, 2)] == [12, 13, 1]
    assert block_at(0.99, 4) == 3
