"""Preference: held-out pairs, compared token by token."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightsteer.data.contrast import ContrastDataset, ContrastPair
from weightsteer.errors import DataError
from weightsteer.evals import Given
from weightsteer.evals.preference import Settings, read_items, score

PAIRS = [
    ContrastPair("p1", "Q1", "good", "bad", split="held_out"),
    ContrastPair("p2", "Q2", "good", "bad", split="train"),
]


def test_the_held_out_pairs_are_the_items():
    assert read_items(Settings(name="preference"), Given(ContrastDataset("b", tuple(PAIRS)))) == PAIRS[:1]


def test_a_pairs_file_in_their_place(write_items: Callable[..., Path]):
    path = write_items({"prompt": "Q", "positive": "a", "negative": "b"})
    [pair] = read_items(Settings(name="preference", items=path), None)
    assert (pair.prompt, pair.positive, pair.negative) == ("Q", "a", "b")


@pytest.mark.parametrize("pairs", [None, ContrastDataset("b", tuple(PAIRS[1:]))])
def test_without_held_out_pairs(pairs: ContrastDataset | None):
    with pytest.raises(
        DataError, match=r"preference: there are no held-out pairs. Raise pairs.held_out, or name a pairs"
    ):
        read_items(Settings(name="preference"), Given(pairs))


def test_log_odds_are_per_token(scripted: Callable[..., Any]):
    # The longer answer is less likely as a whole, and likelier per token.
    scripted(lambda prompt, option: (-8.0, 8) if option == "good" else (-6.0, 2))
    [result] = score(None, PAIRS[:1])
    assert result.values == {"log_odds": pytest.approx(-1 + 3), "share": 1.0}
