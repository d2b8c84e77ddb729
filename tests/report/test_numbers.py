import math

import pytest

from weightsteer.report import numbers
from weightsteer.stats import Estimate


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4171, "0.417"),
        (-0.4171, "−0.417"),
        (0.0, "0.000"),
        (23.456, "23.46"),
        (3214.4, "3214"),
        (0.00312, "0.0031"),
        (math.nan, "not scored"),
        (None, "not scored"),
    ],
)
def test_number_has_the_decimals_its_size_deserves(value: float | None, text: str) -> None:
    assert numbers.number(value) == text


def test_change_shows_its_sign_and_shares_decimals_with_its_interval() -> None:
    assert numbers.change(Estimate(0.1034, 0.0551, 0.1462)) == "+0.103 [+0.055, +0.146]"
    assert numbers.change(Estimate(-0.1034, -0.1462, 0.0)) == "−0.103 [−0.146, 0.000]"
    assert numbers.change(Estimate(0.0004, -9.0, 12.0)) == "+0.00 [−9.00, +12.00]"
    assert numbers.level(Estimate(0.417, 0.34, 0.501)) == "0.417 [0.340, 0.501]"


def test_a_bound_just_below_zero_keeps_its_side() -> None:
    moved = Estimate(-0.0148, -0.0282, -0.0001)
    assert numbers.excludes_zero(moved)
    assert numbers.change(moved) == "−0.015 [−0.028, −0.000]"


def test_a_missing_mean_is_not_scored_and_a_missing_bound_is_no_interval() -> None:
    assert numbers.change(None) == "not scored"
    assert numbers.level(None) == "not scored"
    assert numbers.change(Estimate(0.2, math.nan, math.nan)) == "+0.200 (no interval)"
    assert not numbers.excludes_zero(Estimate(0.2, math.nan, math.nan))
    assert not numbers.excludes_zero(None)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.9931, "99.3 %"),
        (1.0, "100 %"),
        (0.99996, "over 99.9 %"),
        (0.0041, "0.41 %"),
        (0.00001, "under 0.01 %"),
        (0.0, "0 %"),
        (None, "not scored"),
    ],
)
def test_percent_is_never_rounded_up_to_all_or_down_to_nothing(share: float | None, text: str) -> None:
    assert numbers.percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.24, "1.2 s"),
        (42.4, "42 s"),
        (59.7, "1 min 0 s"),
        (372.0, "6 min 12 s"),
        (5400.0, "1 h 30 min"),
        (None, "not measured"),
    ],
)
def test_duration_is_in_two_units(seconds: float | None, text: str) -> None:
    assert numbers.duration(seconds) == text


def test_a_sentence_has_a_capital_and_a_full_stop_but_k_stays_k() -> None:
    assert numbers.sentence("largest change") == "Largest change."
    assert numbers.sentence("k = -1 is best.") == "k = -1 is best."
    assert numbers.sentence("") == ""


def test_names_are_listed_in_words() -> None:
    assert [numbers.listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_strength_drops_a_needless_decimal() -> None:
    assert [numbers.strength(k) for k in (-1.0, 0.0, 0.5, None)] == ["−1", "0", "0.5", "none"]
