"""When a run is told from controls, and how often a control is."""

import pytest

from weightsteer.errors import DataError
from weightsteer.monitor.detect import Run, detect, exact_share


def run(kind: str, seed: int, *values: float) -> Run:
    return Run(kind, seed, {(i + 1) / len(values): value for i, value in enumerate(values)})


CALM = [run(kind, seed, 0.0 + 0.01 * seed, 0.01 * seed) for kind in ("a", "b") for seed in (0, 1, 2)]


def test_a_run_is_told_at_the_first_share_above_the_limit():
    found = detect([run("x", 0, 0.02, 0.5), run("x", 1, 0.5, 0.5), run("x", 2, 0.0, 0.01)], CALM)
    assert list(found.first) == [1.0, 0.5, None]
    assert (found.found, found.median_first, found.controls) == (2, 1.0, 6)
    assert found.false_alarms == []
    assert found.auc[0.5] == pytest.approx((5 + 6 + 1) / 18)  # 0.02: above four, level with two
    assert found.auc[1.0] == pytest.approx((6 + 6 + 3) / 18)


def test_fewer_than_half_are_not_the_half():
    assert detect([run("x", 0, 0.5, 0.5), run("x", 1, 0.0, 0.0), run("x", 2, 0.0, 0.0)], CALM).median_first is None


def test_a_control_is_held_against_other_kinds():
    loud = [run("loud", seed, 0.0, 0.5 + 0.01 * seed) for seed in (0, 1, 2)]
    found = detect([run("x", 0, 0.0, 0.5)], [*CALM, *loud])
    assert found.false_alarms == [("loud", seed, 1.0) for seed in (0, 1, 2)], "its own seeds do not excuse it"
    assert list(found.first) == [None], "the limit that runs are held against knows all controls"


def test_sigma_widens_the_limit():
    runs = [run("x", 0, 0.045, 0.045)]
    assert detect(runs, CALM, sigma=3).found == 1
    assert detect(runs, CALM, sigma=10).found == 0


def test_what_cannot_be_judged_is_told():
    with pytest.raises(DataError, match=r"controls of kinds a\. Expected runs, and for each kind of control three"):
        detect([run("x", 0, 1.0)], [run("a", 0, 0.0)] * 5)
    with pytest.raises(DataError, match="among 0 runs"):
        detect([], CALM)
    with pytest.raises(DataError, match="not all looked at at the same shares"):
        detect([run("x", 0, 1.0, 2.0, 3.0)], CALM)


def test_a_loss_may_be_unlike_on_either_side():
    low = run("x", 0, -0.5, -0.5)
    assert detect([low], CALM).found == 0
    both = detect([low], CALM, both_sides=True)
    assert list(both.first) == [0.5]
    assert both.auc == {0.5: 1.0, 1.0: 1.0}, "what counts is the distance"
    quiet = [run("quiet", seed, -0.5, -0.5 - 0.01 * seed) for seed in (0, 1, 2)]
    found = detect([low], [*CALM, *quiet], both_sides=True)
    assert found.false_alarms == [("quiet", seed, 0.5) for seed in (0, 1, 2)]


def test_the_rate_of_false_alarms_has_an_exact_interval():
    none = detect([run("x", 0, 0.5, 0.5)], CALM).false_alarm_rate
    assert (none.mean, none.low) == (0, 0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 6)), "none of six may still be nearly half"
    half = exact_share(2, 4)
    assert (half.mean, half.low, half.high) == pytest.approx((0.5, 0.0676, 0.9324), abs=1e-4)
    assert exact_share(4, 4).high == 1
