"""Means, intervals and correlations against known answers."""

import math

import numpy as np
import pytest

from weightsteer.stats import Estimate, paired_difference, spearman, weighted_mean


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


def test_spearman_is_of_ranks():
    assert spearman([-2, -1, 0, 1], [1, 10, 100, 1000]) == pytest.approx(1)
    assert spearman([-2, -1, 0, 1], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)
    assert math.isnan(spearman([1, 2, 3], [5, 5, 5]))
    assert math.isnan(spearman([1], [1]))
