"""Means, intervals and correlations against known answers."""

import math

import numpy as np
import pytest

from weightsteer.stats import Estimate, holm, paired_difference, paired_test, spearman, weighted_mean


def test_the_interval_is_that_of_the_textbook():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    estimate = weighted_mean(values.tolist())
    half = 1.96 * values.std() / math.sqrt(400)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_it_agrees_with_scipy():
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).exponential(size=60)
    wide = bootstrap([values], np.mean, method="percentile", n_resamples=2000, rng=3).confidence_interval
    estimate = weighted_mean(values.tolist())
    assert (estimate.low, estimate.high) == pytest.approx((wide.low, wide.high), abs=0.03)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        estimate = weighted_mean(rng.normal(size=50).tolist())
        covered += estimate.low <= 0 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(3).normal(size=30).tolist()
    assert weighted_mean(values, seed=5) == weighted_mean(values, seed=5)
    assert weighted_mean(values, seed=5) != weighted_mean(values, seed=6)


def test_equal_values_have_an_interval_of_no_width():
    assert weighted_mean([0.5] * 10) == Estimate(0.5, 0.5, 0.5)
    assert paired_difference([2.0] * 10, [0.5] * 10) == Estimate(1.5, 1.5, 1.5)


def test_an_item_of_weight_zero_does_not_count():
    rng = np.random.default_rng(4)
    values = rng.normal(size=40)
    weights = (rng.random(40) < 0.5).astype(float)
    noisy = np.where(weights == 0, 1e6, values)
    assert weighted_mean(noisy.tolist(), weights.tolist()) == weighted_mean(values.tolist(), weights.tolist())
    assert weighted_mean(noisy.tolist(), weights.tolist()).mean == pytest.approx(values[weights == 1].mean())


def test_an_interval_over_few_counted_items_is_a_number():
    """Many resamples hold none of the two items that count."""
    estimate = weighted_mean([1.0, 0.0] + [0.0] * 98, [1.0, 1.0] + [0.0] * 98)
    assert estimate == Estimate(0.5, 0.0, 1.0)


def test_pairing_takes_away_what_items_share():
    difficulty = np.random.default_rng(5).normal(0, 10, size=100)
    estimate = paired_difference((difficulty + 0.1).tolist(), difficulty.tolist())
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((0.1, 0.1, 0.1))


def test_a_paired_difference_is_that_of_two_ratios_when_items_count_on_one_side_only():
    # Steered: items 0-2 count, two of them 1. Base: items 2-4 count, one of them 1.
    treated, w_treated = [1.0, 1.0, 0.0, 9.0, 9.0], [1.0, 1.0, 1.0, 0.0, 0.0]
    control, w_control = [9.0, 9.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0, 1.0]
    estimate = paired_difference(treated, control, (w_treated, w_control))
    assert estimate.mean == pytest.approx(2 / 3 - 1 / 3)
    assert -1 <= estimate.low < estimate.mean < estimate.high <= 1


def test_a_paired_difference_changes_sign_with_its_sides():
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=30).tolist(), rng.normal(size=30).tolist()
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low))


@pytest.mark.parametrize(("values", "weights"), [([], []), ([1.0], [1.0]), ([1.0, 2.0, 3.0], [0, 1.0, 0])])
def test_fewer_than_two_items_have_no_mean(values: list, weights: list):
    with pytest.raises(ValueError, match="fewer than two scored items"):
        weighted_mean(values, weights)


def test_a_side_that_nothing_counts_for_has_no_difference():
    with pytest.raises(ValueError, match="fewer than two scored items"):
        paired_difference([1.0, 2.0], [1.0, 2.0], ([1.0, 1.0], [0.0, 0.0]))


def test_a_paired_difference_is_over_the_same_items():
    with pytest.raises(ValueError, match="paired difference of 2 and 3 items; they must be the same items"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])


def test_a_paired_test_counts_the_flips_that_differ_by_as_much():
    # Differences 1, 2, 3: of 8 sums of ±1 ±2 ±3, only 6 and -6 are as far from 0 as 6.
    assert paired_test([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == 2 / 8
    # Differences 1, 2, -3 sum to 0: every sum is as far.
    assert paired_test([2.0, 4.0, 0.0], [1.0, 2.0, 3.0]) == 1.0
    # 1, 2, -1: as far as 2 are the sums ±2, ±4 of ±1 ±2 ±1, which are all but 0 and 0.
    assert paired_test([2.0, 4.0, 0.0], [1.0, 2.0, 1.0]) == 6 / 8


def test_items_alike_on_both_sides_tell_nothing():
    assert paired_test([1.0] * 30, [1.0] * 30) == 1.0
    # Five of 300 differ, all the same way: 2 of 32 flips, exactly, as in McNemar's test.
    assert paired_test([1.0] * 300, [0.0] * 5 + [1.0] * 295) == 2 / 32


def test_a_paired_test_agrees_with_scipy():
    from scipy.stats import binomtest, permutation_test

    rng = np.random.default_rng(7)
    for n in (6, 11, 60):
        a = rng.normal(0.25, 1, size=n)
        b = a + rng.normal(0.3, 1, size=n)
        theirs = permutation_test(
            (a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", vectorized=True, n_resamples=9999
        )
        assert paired_test(a.tolist(), b.tolist()) == pytest.approx(theirs.pvalue, abs=1e-9 if n < 13 else 0.02)
    right, wrong = [1.0] * 21 + [0.0] * 9, [0.0] * 21 + [1.0] * 9
    assert paired_test(right, wrong) == pytest.approx(binomtest(9, 30).pvalue, abs=0.01)


def test_an_item_that_counts_on_one_side_is_swapped_with_its_weight():
    # Treated: items 0 and 1 count, with 1 and 1. Control: items 1 and 2 count, with 0 and 0.
    treated, w_treated = [1.0, 1.0, 9.0], [1.0, 1.0, 0.0]
    control, w_control = [9.0, 0.0, 0.0], [0.0, 1.0, 1.0]
    # (swapped items) -> treated mean - control mean
    by_hand = {
        (): 2 / 2 - 0 / 2, (0,): 1 / 1 - 1 / 3, (1,): 1 / 2 - 1 / 2, (2,): 2 / 3 - 0 / 1,
        (0, 1): 0 / 1 - 2 / 3, (0, 2): 1 / 2 - 1 / 2, (1, 2): 1 / 3 - 1 / 1, (0, 1, 2): 0 / 2 - 2 / 2,
    }  # fmt: skip
    expected = sum(abs(apart) >= 1 for apart in by_hand.values()) / 8
    assert paired_test(treated, control, (w_treated, w_control)) == expected == 2 / 8
    # With item 1 turned round the sides are 1/2 and 1/2: nothing apart, everything is as far.
    assert paired_test([1.0, 0.0, 9.0], [9.0, 1.0, 0.0], (w_treated, w_control)) == 1.0


def test_a_swap_that_empties_a_side_takes_no_part():
    # Two items count on either side, four in all; 16 swaps, of which the two with all four on one side have no mean.
    treated, w_treated = [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]
    control, w_control = [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]
    assert paired_test(treated, control, (w_treated, w_control)) == 2 / 14


def test_a_false_alarm_is_as_rare_as_the_p_value_says():
    rng = np.random.default_rng(8)
    alarms = sum(paired_test(rng.normal(size=12).tolist(), rng.normal(size=12).tolist()) < 0.05 for _ in range(300))
    assert 4 <= alarms <= 29, "15 are expected"


def test_a_p_value_is_seeded_and_never_zero():
    a, b = np.random.default_rng(9).normal(size=(2, 40)).tolist()
    assert paired_test(a, b, seed=3) == paired_test(a, b, seed=3) != paired_test(a, b, seed=4)
    assert paired_test([1.0] * 40, [0.0] * 40) == 1 / 10_000


@pytest.mark.parametrize(
    ("weights", "said"),
    [(([1.0, 0.0], [1.0, 1.0]), "fewer than two scored items"), (([1.0, 1.0], [0.0, 0.0]), "fewer than two")],
)
def test_a_side_that_nothing_counts_for_cannot_be_tested(weights: tuple, said: str):
    with pytest.raises(ValueError, match=said):
        paired_test([1.0, 2.0], [1.0, 2.0], weights)


def test_a_paired_test_is_over_the_same_items():
    with pytest.raises(ValueError, match="paired test of 2 and 3 items; they must be the same items"):
        paired_test([1.0, 2.0], [1.0, 2.0, 3.0])


def test_holm_multiplies_the_smallest_by_their_number():
    # In order 0.005·4, 0.01·3, 0.03·2, then 0.04·1, which may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.4]) == [0.8, 0.8]
    assert holm([0.9, 0.8, 0.7]) == [1.0, 1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_what_is_no_probability_is_refused(p: float):
    with pytest.raises(ValueError, match="expected numbers from 0 to 1"):
        holm([0.2, p])


def test_spearman_is_of_ranks():
    assert spearman([-2, -1, 0, 1], [1, 10, 100, 1000]) == pytest.approx(1)
    assert spearman([-2, -1, 0, 1], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)
    assert math.isnan(spearman([1, 2, 3], [5, 5, 5]))
    assert math.isnan(spearman([1], [1]))
