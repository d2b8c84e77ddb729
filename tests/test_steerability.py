"""Propensity curves whose slopes, residuals and shares are known."""

import contextlib
import math

import numpy as np
import pytest

from weightsteer.errors import AdapterError, DataError
from weightsteer.steerability import (
    bias,
    effect,
    item_effects,
    lines,
    propensity_curves,
    propensity_distance,
    rank_correlation,
    relative_steerability,
    steerability,
)

GRID = (-1.5, -1, -0.5, 0, 0.5, 1, 1.5)


class Linear:
    """A vector under which the "model" is its strength."""

    @contextlib.contextmanager
    def applied(self, lm, k):
        yield lm + k


def test_a_linear_model_returns_its_slope():
    slopes = np.array([2.0, -0.5, 0.25])
    curves = propensity_curves(0.0, Linear(), GRID, lambda k: list(1 + slopes * k))
    found = lines(curves, GRID)
    assert found.slope == pytest.approx(slopes)
    assert found.residual == pytest.approx(0, abs=1e-12)
    assert found.monotone.tolist() == [True, False, True]
    summary = steerability(curves, GRID)
    assert summary.slope.mean == pytest.approx(slopes.mean())
    assert summary.anti_steerable == pytest.approx(1 / 3)
    assert (summary.items, summary.monotone) == (3, pytest.approx(2 / 3))


def test_what_a_line_misses_is_its_residual():
    curves = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 3.0]])  # λ = −1, 0, 1
    found = lines(curves, (-1, 0, 1))
    assert found.slope == pytest.approx([0, 1.5])
    assert found.residual == pytest.approx([math.sqrt(2 / 9), math.sqrt(0.5)])
    assert not found.monotone.any()  # neither a fall nor standing still is rising
    assert steerability(curves, (-1, 0, 1)).anti_steerable == 0.5  # a slope of 0 is not positive


def test_the_order_of_the_strengths_does_not_matter():
    curves = np.array([[0.0, -1.0, 1.0], [5.0, 4.0, 6.0]])
    assert lines(curves, (0, -1, 1)).monotone.all()
    assert lines(curves, (0, -1, 1)).slope == pytest.approx([1, 1])


def test_effects_of_one_strength():
    curves = np.array([[0.0, 1.0, 3.0], [0.0, 2.0, 1.0], [0.0, 0.0, 1.0], [0.0, 5.0, 6.0]])
    effects = item_effects(curves, (-1, 0, 1), 1)
    assert effects.tolist() == [2, -1, 1, 1]
    found = effect(effects)
    assert found.mean.mean == pytest.approx(0.75)
    assert found.standardized == pytest.approx(0.75 / effects.std())
    assert found.wrong_way == 0.25
    assert effect(item_effects(curves, (-1, 0, 1), -1), -1).wrong_way == 0
    assert effect(np.ones(3)).standardized is None
    with pytest.raises(DataError, match="effect at 2: the strengths are"):
        item_effects(curves, (-1, 0, 1), 2)


@pytest.mark.parametrize("strengths", [(0, math.nan), (0, math.inf, 1), (0, 1, 1), (0,), (-1, 1), (-1, 0)])
def test_strengths_are_finite_and_different_with_zero_among_them(strengths):
    with pytest.raises(AdapterError, match=f"strengths \\[{strengths[0]}"):
        propensity_curves(0.0, Linear(), strengths, lambda k: [k])


def test_items_that_cannot_be_summed_up():
    with pytest.raises(DataError, match="1 items: too few"):
        steerability(np.zeros((1, 3)), (-1, 0, 1))
    with pytest.raises(DataError, match="not finite"):
        steerability(np.full((2, 3), np.nan), (-1, 0, 1))


def test_bias_finds_the_share_that_the_form_explains():
    first = [True, True, False, False]
    items = [{"first": f, "yes": None, "odd": i % 2 == 1, "same": True} for i, f in enumerate(first)]
    # 1 + 2·first + an alternation of 0.5: the first explains 4·1, the second 4·0.0625 of the sum of squares
    found = bias(np.array([3.0, 3.5, 1.0, 1.5]), items)
    assert found.coefficients == {"first": pytest.approx(2), "odd": pytest.approx(0.5)}
    assert found.explained == pytest.approx(1)
    assert found.left_out == ("yes", "same")
    found = bias(np.array([3.0, 3.5, 1.0, 1.5]), [{"first": f} for f in first])
    assert found.explained == pytest.approx(4 / 4.25)
    assert math.isnan(bias(np.ones(4), items).explained)


def test_measures_of_other_conditions():
    assert relative_steerability(1.0, 4.0) == 0.25
    assert math.isnan(relative_steerability(1.0, 0.0))
    assert propensity_distance(np.array([1.0, 3.0]), np.array([-1.0, -2.0, -1.5])) == pytest.approx(3.5)


def test_rank_correlation_over_sets():
    x = list(range(30))
    found = rank_correlation(x, [v**3 for v in x])
    assert (found.mean, found.low, found.high) == (pytest.approx(1),) * 3
    random = rank_correlation(x, np.random.default_rng(0).normal(size=30).tolist())
    assert random.low < random.mean < random.high
    assert random.low < 0 < random.high
    assert math.isnan(rank_correlation(x, [1.0] * 30).mean)
    from scipy.stats import spearmanr

    y = [v % 7 for v in x]
    assert rank_correlation(x, y).mean == pytest.approx(spearmanr(x, y).statistic)
