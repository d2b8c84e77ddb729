"""Items from a data set's id, and held-out pairs of another behavior than the recipe's."""

from pathlib import Path
from typing import Any

import pytest

from weightsteer.data.contrast import ContrastDataset, ContrastPair
from weightsteer.errors import DataError, RecipeError
from weightsteer.evals import Given, with_items
from weightsteer.evals.agreement import Settings, read_items
from weightsteer.evals.preference import Settings as PreferenceSettings
from weightsteer.evals.preference import read_items as read_pairs
from weightsteer.recipe import load_recipe

ROW = {"question": "Is tea good?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What `datasets` is asked for; it gives one row."""
    calls: list[Any] = []

    def load_dataset(*names: str, **options: Any) -> list[dict[str, str]]:
        calls.append((names, options))
        return [ROW]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setenv("WEIGHTSTEER_CACHE", str(tmp_path / "cache"))
    return calls


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("some/set:test", (("some/set",), {"split": "test"})),
        ("some/set:main:test", (("some/set", "main"), {"split": "test"})),
        ("some/set:answer.jsonl:train", (("some/set",), {"split": "train", "data_files": "answer.jsonl"})),
    ],
)
def test_a_data_set_is_fetched_once_and_read_like_a_file(asked: list[Any], name: str, call: Any):
    settings = Settings(name="agreement", dataset=name)
    found = [read_items(with_items(settings), Given()) for _ in range(2)]
    assert asked == [call]
    assert found[0] == found[1]
    assert found[0][0].prompts == (("Is tea good?", " Yes", " No"),)


def test_without_a_data_set_nothing_is_fetched(asked: list[Any]):
    settings = Settings(name="agreement")
    assert with_items(settings) is settings
    assert asked == []


def test_a_data_set_that_is_not_there_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def load_dataset(*names: str, **options: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setenv("WEIGHTSTEER_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError) as caught:
        with_items(Settings(name="agreement", label="mine", dataset="some/set:test"))
    assert str(caught.value) == (
        "evals mine.dataset some/set:test: `datasets` does not give it (no network). Expected ID:SPLIT or "
        "ID:SUBSET:SPLIT of a data set on the hub. Go online, or name a local file: --set evals.mine.items=FILE --set "
        "evals.mine.dataset=null"
    )
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_file_and_a_data_set_are_one_too_many(write_recipe: Any):
    path = write_recipe(evals=[{"name": "agreement", "items": "x.jsonl", "dataset": "some/set:test"}])
    with pytest.raises(RecipeError, match=r"evals\[0\]: both `items` and `dataset` are set; keep one"):
        load_recipe(path)


def test_the_held_out_pairs_of_another_behavior():
    pairs = tuple(ContrastPair(f"p{i}", f"Q{i}", "a", "b", split="held_out" if i else "train") for i in range(3))
    given = Given(others={"formality": ContrastDataset("formality", pairs)})
    settings = PreferenceSettings(name="preference", behavior="formality")
    assert [pair.id for pair in read_pairs(settings, given)] == ["p1", "p2"]
    with pytest.raises(
        DataError, match=r"preference\.behavior: no method of this recipe is fitted on 'formalities'\. Expected one of"
    ):
        read_pairs(settings.model_copy(update={"behavior": "formalities"}), given)
