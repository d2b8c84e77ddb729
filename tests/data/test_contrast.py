"""Contrast pairs: every layout in, every defect named, no question on two sides."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_language_model

from weightsteer.data.contrast import (
    ContrastDataset,
    ContrastPair,
    check_pairs,
    check_tokens,
    encode_example,
    load_pairs,
    read_pairs,
    split_pairs,
    write_pairs,
)
from weightsteer.errors import DataError
from weightsteer.recipe import PairsPart, load_recipe

USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "Q?"), ("assistant", "Yes."), ("assistant", "No.")))
SYSTEM = {"role": "system", "content": "Be brief."}


def write(path: Path, *rows: Any) -> str:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    return str(path)


def pair_of(tmp_path: Path, row: Any) -> ContrastPair:
    [pair] = read_pairs(write(tmp_path / "p.jsonl", row))
    return pair


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Q?", "positive": "Yes.", "negative": "No."}, "Q?"),
        ({"prompt": "Q?", "chosen": "Yes.", "rejected": "No."}, "Q?"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, (USER,)),
        ({"prompt": [SYSTEM, USER], "positive": [GOOD], "negative": [BAD]}, (SYSTEM, USER)),
        ({"prompt": [USER], "positive": "Yes.", "negative": "No."}, (USER,)),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, (USER,)),
        ({"prompt": None, "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, (SYSTEM, USER)),
    ],
)
def test_every_layout_is_the_same_pair(tmp_path: Path, row: dict, prompt: Any):
    assert pair_of(tmp_path, row) == ContrastPair("row-1", prompt, "Yes.", "No.")


def test_id_and_topic_are_kept_as_texts(tmp_path: Path):
    pair = pair_of(tmp_path, {"id": 0, "topic": 7, "prompt": "Q", "positive": "a", "negative": "b", "more": []})
    assert (pair.id, pair.topic) == ("0", "7")


ROWS = [
    {"prompt": 'He said "hi",\nthen left.', "positive": "one\u2028two\x85three", "negative": "plain"},
    {"prompt": "Zürich?", "positive": "a,b", "negative": "c\r\nd"},
]


def test_json_lines_json_and_csv_hold_the_same_pairs(tmp_path: Path):
    lines = read_pairs(write(tmp_path / "p.jsonl", *ROWS))
    (tmp_path / "p.json").write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    with (tmp_path / "p.csv").open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, ["prompt", "positive", "negative"])
        table.writeheader()
        table.writerows(ROWS)
    assert lines[0].prompt == ROWS[0]["prompt"]
    assert lines[0].positive == "one\u2028two\x85three"
    assert read_pairs(str(tmp_path / "p.json")) == lines
    [first, second] = read_pairs(str(tmp_path / "p.csv"))
    assert first == lines[0]
    assert (second.prompt, second.positive, second.negative.split()) == ("Zürich?", "a,b", ["c", "d"])


def test_written_pairs_are_read_back(tmp_path: Path):
    pairs = (*read_pairs(write(tmp_path / "p.jsonl", *ROWS)), ContrastPair("m", (SYSTEM, USER), "a", "b", "t"))
    write_pairs(ContrastDataset("b", pairs), tmp_path / "again.jsonl")
    assert read_pairs(str(tmp_path / "again.jsonl")) == pairs


def test_a_dataset_of_the_hub_is_named_by_its_id(monkeypatch: pytest.MonkeyPatch):
    import datasets

    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return datasets.Dataset.from_list([{"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    [pair] = read_pairs("org/set", PairsPart(source="org/set", subset="en", split="test"))
    assert asked == [(("org/set", "en"), {"split": "test"})]
    assert pair == ContrastPair("row-1", (USER,), "Yes.", "No.")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (7, "is int, not an object with prompt, positive and negative"),
        ({"prompt": "Q", "good": "a"}, "has ['good', 'prompt']. Expected prompt, positive, negative or"),
        ({"prompt": 7, "positive": "a", "negative": "b"}, "prompt: found 7. Expected a text or a list of messages"),
        ({"prompt": [{"role": "user"}], "positive": "a", "negative": "b"}, "prompt: found [{'role': 'user'}]"),
        ({"prompt": [], "positive": "a", "negative": "b"}, "prompt: found []. Expected a text or a list of messages"),
        ({"prompt": "Q", "positive": None, "negative": "b"}, "positive: found None. Expected a text or one assistant"),
        ({"prompt": "Q", "chosen": "a", "rejected": [USER]}, "rejected: found [{'role': 'user', 'content': 'Q?'}]"),
        ({"prompt": "Q", "chosen": [GOOD, GOOD], "rejected": "b"}, "chosen: found [{'role': 'assistant'"),
        ({"prompt": "Q", "positive": "half \ud83d", "negative": "b"}, "positive: found 'half \\ud83d'"),
        ({"chosen": "a", "rejected": "b"}, "has no prompt, and its two sides do not share all messages but the last"),
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, BAD]}, "has no prompt, and its two sides do not share all mess"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_pair(tmp_path: Path, row: Any, problem: str):
    good = {"prompt": "Q", "positive": "a", "negative": "b"}
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_pairs(str(tmp_path / "p.jsonl"))
    assert str(caught.value).startswith(f"{tmp_path / 'p.jsonl'}: 1 problem\n  row 2: {problem}")


def test_all_rows_that_are_no_pairs_are_reported_together(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        read_pairs(write(tmp_path / "p.jsonl", *range(9)))
    lines = str(caught.value).split("\n  ")
    assert [line.split(":")[0] for line in lines[1:-1]] == ["row 1", "row 2", "row 3", "row 4", "row 5"]
    assert lines[-1] == "... and 4 more of the kind"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", "", "holds no pairs. Expected rows of prompt, positive, negative"),
        ("p.csv", "prompt,positive,negative\n", "holds no pairs. Expected rows"),
        ("p.csv", "prompt,positive,negative\nQ,a\n", "1 problem\n  row 1: negative: found None. Expected a text"),
        ("p.csv", "prompt;positive;negative\nQ;a;b\n", "1 problem\n  row 1: has ['prompt;positive;negative']"),
        ("p.json", '{"prompt": "Q"}', "holds dict. Expected a JSON list of rows"),
        ("p.json", "[", "cannot be read as .json (Expecting value"),
        ("p.jsonl", '{"prompt": "Q", "positive": "a", "negative": "b"}\n{"prompt', "cannot be read as .jsonl (line 2"),
        ("p.parquet", "PAR1\x00", "cannot be read as .parquet (line 1: Expecting value"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_pairs(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_pairs(str(tmp_path / name))
    assert str(caught.value).startswith(f"{tmp_path / name}: {message}")


def test_bytes_that_are_no_utf8(tmp_path: Path):
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(DataError, match=r"p.jsonl: cannot be read as .jsonl \('utf-8' codec"):
        read_pairs(str(tmp_path / "p.jsonl"))


def test_a_missing_file_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **o: pytest.fail("a file name was taken for an id"))
    with pytest.raises(
        DataError, match=r"nope.csv: no such file. Expected a .jsonl, .json, .csv file or the id of a data"
    ):
        read_pairs(str(tmp_path / "nope.csv"))


def test_a_dataset_that_the_hub_does_not_give():
    with pytest.raises(DataError, match=r"org/nope: no such file, and `datasets` does not give it \(.+\)\. E"):
        read_pairs("org/nope")


def good_pairs(n: int = 20) -> list[ContrastPair]:
    return [ContrastPair(f"p{i}", f"Question {i}?", f"Yes to {i}.", f"No to {i}.") for i in range(n)]


def test_good_pairs_have_no_defects():
    check_pairs(good_pairs(), "x")


def test_all_defects_are_reported_together():
    pairs = [
        ContrastPair("empty", "One?", " \n", "No, I do not think so at all."),
        ContrastPair("empty-too", "Two?", "Yes.", ""),
        ContrastPair("mute", "  ", "Yes.", "No, never."),
        ContrastPair("same", "Three?", "It depends.", "It depends. "),
        ContrastPair("twin", "Four?", "Yes.", "No, by no means."),
        ContrastPair("twin", "Five?", "Yes.", "No, by no means."),
        ContrastPair("once", "Six  times?", "Yes.", "No, by no means."),
        ContrastPair("again", "six times?", "Yes. ", "No, by no means."),
    ]
    with pytest.raises(DataError) as caught:
        check_pairs(pairs, "mine.jsonl")
    head, *problems = str(caught.value).split("\n  ")
    assert head == "mine.jsonl: 7 problems"
    assert problems[:5] == [
        "empty: the positive answer is empty",
        "empty-too: the negative answer is empty",
        "mute: the prompt is empty",
        "same: both answers are the same: It depends.",
        "id 'twin' is used 2 times",
    ]
    assert problems[5] == "the pair is there 2 times: six times?"
    assert problems[6].startswith("positive answers have 0.29 times the words")


@pytest.mark.parametrize(("words", "defect"), [(4, None), (5, None), (6, "1.50"), (3, "0.75")])
def test_length_imbalance(words: int, defect: str | None):
    pairs = [ContrastPair(str(i), f"Q{i}", "yes " * words, "no " * 4) for i in range(3)]
    if defect is None:
        check_pairs(pairs, "x")
        return
    with pytest.raises(
        DataError, match=f"positive answers have {defect} times the words of negative ones; within 25 %"
    ):
        check_pairs(pairs, "x")


def test_questions_never_stand_in_two_splits():
    # Three wordings of each question in case and spacing, as texts and as messages.
    asked = [f"Is it {i} ?" for i in range(40)]
    pairs = [
        ContrastPair(f"{form}-{i}", prompt, f"yes {form}", f"no {form}")
        for i, question in enumerate(asked)
        for form, prompt in enumerate(
            (question, question.upper().replace(" ", "  "), ({"role": "user", "content": question},))
        )
    ]
    for seed in range(5):
        split = split_pairs(pairs, PairsPart(), seed)
        assert len(split) == len(pairs)
        of_question: dict[str, set[str]] = {}
        for pair in split:
            of_question.setdefault(pair.question, set()).add(pair.split)
        assert len(of_question) == 40
        assert all(len(splits) == 1 for splits in of_question.values())
        counts = {name: sum(p.split == name for p in split) for name in ("train", "validation", "held_out")}
        assert counts == {"train": 28 * 3, "validation": 6 * 3, "held_out": 6 * 3}


def test_the_split_follows_the_seed_and_not_the_order_of_the_file():
    pairs = good_pairs(40)
    first = {p.id: p.split for p in split_pairs(pairs, PairsPart(), 0)}
    assert {p.id: p.split for p in split_pairs(pairs[::-1], PairsPart(), 0)} == first
    assert {p.id: p.split for p in split_pairs(pairs, PairsPart(), 1)} != first


def test_a_limit_draws_questions():
    split = split_pairs(good_pairs(40), PairsPart(limit=20), 0)
    assert len(split) == 20
    assert {p.split for p in split} == {"train", "validation", "held_out"}


@pytest.mark.parametrize(
    ("n", "part", "counts"),
    [
        (1, {}, "1 questions are too few to split into 1 train, 0 validation and 0 held-out"),
        (3, {}, "3 questions are too few to split into 3 train, 0 validation and 0 held-out"),
        (
            10,
            {"validation": 0.5, "held_out": 0.5},
            "10 questions are too few to split into 0 train, 5 validation and 5",
        ),
        (10, {"held_out": 0.01}, "10 questions are too few to split into 8 train, 2 validation and 0 held-out"),
    ],
)
def test_too_few_pairs_to_split(n: int, part: dict[str, float], counts: str):
    with pytest.raises(DataError) as caught:
        split_pairs(good_pairs(n), PairsPart(**part), 0)
    assert str(caught.value).startswith(f"pairs: {counts}")
    assert "Expected at least 2 to train on and 1 in each other part. Add pairs, or change" in str(caught.value)


def test_a_part_that_is_not_wanted_may_be_empty():
    assert {p.split for p in split_pairs(good_pairs(2), PairsPart(validation=0, held_out=0), 0)} == {"train"}


def test_the_digest_is_of_texts_and_split():
    pairs = split_pairs(good_pairs(), PairsPart(), 0)
    assert ContrastDataset("a", pairs, "x").digest == ContrastDataset("b", pairs, "y").digest
    assert ContrastDataset("a", split_pairs(good_pairs(), PairsPart(), 1)).digest != ContrastDataset("a", pairs).digest
    assert ContrastDataset("a", pairs[1:]).digest != ContrastDataset("a", pairs).digest


def test_sides_and_parts():
    dataset = ContrastDataset("b", split_pairs(good_pairs(), PairsPart(), 0))
    assert len(dataset) == sum(len(dataset.part(name)) for name in ("train", "validation", "held_out")) == 20
    assert dataset.side("negative")[0] == (dataset.pairs[0].prompt, dataset.pairs[0].negative)


def test_pairs_of_a_recipe(write_recipe: Callable[..., Path]):
    pairs = load_pairs(load_recipe(write_recipe()))
    assert (pairs.behavior, pairs.source, len(pairs)) == ("sycophancy", "pairs.jsonl", 20)
    shipped = load_pairs(load_recipe(write_recipe(pairs={"source": None})))
    assert (shipped.source, len(shipped) > 150) == ("sycophancy.pairs.jsonl", True)


def test_a_behavior_without_pairs(write_recipe: Callable[..., Path]):
    path = write_recipe(behavior="mine.yaml", pairs={})
    (path.parent / "mine.yaml").write_text("{name: mine, description: d}", encoding="utf-8")
    with pytest.raises(DataError, match=r"behavior mine.yaml: ships no pairs. Name a file of yours as pairs.source"):
        load_pairs(load_recipe(path))


# What the byte tokenizer's template writes: <|user|>Q<|end|><|assistant|>A<|end|>, a token a byte.


def test_an_example_is_the_conversation_and_the_answer_with_its_end():
    lm = tiny_language_model()
    prompt, answer = encode_example(lm, "Q?", " Yes. \n")
    assert lm.tokenizer.decode(prompt) == "<|user|>Q?<|end|><|assistant|>"
    assert lm.tokenizer.decode(answer) == "Yes.<|end|>"
    steered = lm.with_system("S")
    assert lm.tokenizer.decode(encode_example(steered, "Q?", "Yes.")[0]) == (
        "<|system|>S<|end|><|user|>Q?<|end|><|assistant|>"
    )
    assert encode_example(steered, "Q?", "Yes.")[1] == answer


def test_an_answer_that_the_template_repeats_in_its_text():
    lm = tiny_language_model()
    assert lm.tokenizer.decode(encode_example(lm, "<|end|>", "a<|end|>b")[1]) == "a<|end|>b<|end|>"


def test_all_examples_that_cannot_be_trained_on_are_reported_together():
    lm = tiny_language_model()
    pairs = [
        ContrastPair("fits", "Q?", "Yes.", "No."),
        ContrastPair("long", "Q?", "Yes.", "No, " * 20),
        ContrastPair("odd", ({"role": "critic", "content": "x"},), "Yes.", "No."),
    ]
    lm.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'critic' %}{{ raise_exception('no critics') }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    with pytest.raises(DataError) as caught:
        check_tokens(ContrastDataset("b", tuple(pairs), "mine.jsonl"), lm, 20)
    assert str(caught.value).split("\n  ") == [
        "mine.jsonl: 3 problems",
        "long negative: 85 tokens; at most 20 are trained on. Shorten it, or raise max_tokens of the method",
        "odd positive: the chat template cannot render it (no critics)",
        "odd negative: the chat template cannot render it (no critics)",
    ]


def test_a_template_that_leaves_answers_out():
    lm = tiny_language_model()
    lm.tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}<|user|>{{ m.content }}{% endfor %}"
    pairs = ContrastDataset("b", (ContrastPair("p", "Q?", "Yes.", "No."),), "mine.jsonl")
    with pytest.raises(DataError, match=r"p positive: the chat template cannot render it \(it leaves the assistant's"):
        check_tokens(pairs, lm, 100)
