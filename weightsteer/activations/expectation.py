"""What the geometry of pairs lets expect of steering with them, by sets on which both were measured.

A set's rank among the calibration sets, averaged over directional agreement and d′ (both left out), is mapped to effect
and share of inputs that move the wrong way by isotonic regression: monotone, and nothing else is assumed.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weightsteer.errors import DataError

SHIPPED = Path(__file__).parent / "calibration.json"
# Fewer sets than these have no ranks to speak of.
LEAST_SETS = 5
# Standardized effects from which an effect is called small, medium and large (Cohen 1988).
# Where the source reads and steers Llama-2-7B: block 13 of 32.
DEPTH = 0.4
SIZES = ((0.8, "a large effect"), (0.5, "a medium effect"), (0.2, "a small effect"), (-0.2, "hardly any effect"))


@dataclass(frozen=True)
class Row:
    """One calibration set: what was known before steering, and what steering did."""

    agreement: float
    d_prime: float
    effect: float
    """Standardized."""
    wrong_way: float


@dataclass(frozen=True)
class Expectation:
    """What steering is expected to do."""

    effect: float
    """Standardized."""
    wrong_way: float


@dataclass(frozen=True)
class Calibration:
    """Knots of the fit, and how well it does on a set that it has not seen."""

    agreement: tuple[float, ...]
    """Of the sets, ascending."""
    d_prime: tuple[float, ...]
    score: tuple[float, ...]
    """Mean rank (0 to 1) of the sets, ascending, with what the fit gives there."""
    effect: tuple[float, ...]
    wrong_way: tuple[float, ...]
    error: float
    """Mean absolute error of the share on sets left out."""
    error_of_mean: float
    """The same when every set is given the mean of the others."""
    model: str
    depth: float
    """Where agreement and d′ were read and the vectors applied: block number by number of blocks."""

    def expect(self, agreement: float, d_prime: float) -> Expectation:
        """What the fit says of pairs; beyond the calibration sets it stays at the outermost one."""
        for value in (agreement, d_prime):
            if math.isnan(value):
                raise DataError(f"agreement {agreement:g}, d′ {d_prime:g}: expected numbers. Check the pairs")
        score = _score(agreement, d_prime, self.agreement, self.d_prime)
        return Expectation(
            float(np.interp(score, self.score, self.effect)), float(np.interp(score, self.score, self.wrong_way))
        )


def fit(rows: Sequence[Row], model: str, depth: float) -> Calibration:
    """The monotone fit over calibration sets; a DataError for fewer than five."""
    if len(rows) < LEAST_SETS:
        raise DataError(f"calibration: {len(rows)} sets. Expected at least {LEAST_SETS}. Add sets")
    errors, of_mean = [], []
    for i, row in enumerate(rows):
        others = [*rows[:i], *rows[i + 1 :]]
        errors.append(abs(_fit(others, model, depth).expect(row.agreement, row.d_prime).wrong_way - row.wrong_way))
        of_mean.append(abs(sum(other.wrong_way for other in others) / len(others) - row.wrong_way))
    return _fit(rows, model, depth, sum(errors) / len(rows), sum(of_mean) / len(rows))


def load_calibration(path: Path = SHIPPED) -> Calibration | None:
    """The shipped calibration, or that of a file; None where there is none. A DataError when it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["fit"]
        return Calibration(**{key: tuple(v) if isinstance(v, list) else v for key, v in content.items()})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not a calibration ({type(error).__name__}: {error}). Expected calibration.json of the study "
            "`reliability`. Run recipes/reliability.yaml to make it anew"
        ) from None


def sentence(agreement: float, d_prime: float, calibration: Calibration | None) -> str:
    """What to expect, in words; without a calibration, or beyond what it saw, that it is not known."""
    measured = f"agreement {agreement:.2f}, d′ {d_prime:.1f}".replace("-", "−")
    if calibration is None:
        return f"{measured}: uncalibrated, so what to expect of steering is not known"
    expected = calibration.expect(agreement, d_prime)
    seen = [
        f"{name} {known[0]:.2g} to {known[-1]:.2g}".replace("-", "−")
        for name, value, known in (
            ("agreement", agreement, calibration.agreement),
            ("d′", d_prime, calibration.d_prime),
        )
        if not known[0] <= value <= known[-1]
    ]
    if seen:  # a fit that stays flat there would sound as sure as one that knows
        beyond = f"beyond what the calibration saw ({' and '.join(seen)})"
        return f"{measured}: {beyond}, so what to expect of steering is not known"
    share = f"about {100 * expected.wrong_way:.0f} % of inputs moving the wrong way"
    said = f"{measured}: expect {size(expected.effect)} with {share}"
    if calibration.error >= calibration.error_of_mean:
        return f"{said}, though on sets left out of the calibration this did no better than their average"
    return said


def size(effect: float) -> str:
    """A standardized effect in words."""
    return next((words for least, words in SIZES if effect >= least), "an effect in the wrong direction")


def about(calibration: Calibration | None) -> str:
    """Where the expectation comes from."""
    if calibration is None:
        return "No calibration is there: run recipes/reliability.yaml to make one."
    return (
        f"Calibrated on {len(calibration.agreement)} sets with {calibration.model}: on a set left out the share of "
        f"inputs that move the wrong way is off by {100 * calibration.error:.0f} points on average, and by "
        f"{100 * calibration.error_of_mean:.0f} when every set is given the mean of the others."
    )


def block_at(depth: float, blocks: int) -> int:
    """The block (0-based) at a share of the depth of a model."""
    return min(blocks - 1, round(depth * blocks))


def _fit(
    rows: Sequence[Row], model: str, depth: float, error: float = math.nan, error_of_mean: float = math.nan
) -> Calibration:
    from scipy.optimize import isotonic_regression

    agreement, d_prime = sorted(row.agreement for row in rows), sorted(row.d_prime for row in rows)
    scored: dict[float, list[Row]] = {}
    for row in rows:  # sets of one score share a knot
        scored.setdefault(_score(row.agreement, row.d_prime, agreement, d_prime), []).append(row)
    score = sorted(scored)

    def monotone(outcome: str, increasing: bool) -> tuple[float, ...]:
        means = [sum(getattr(row, outcome) for row in scored[s]) / len(scored[s]) for s in score]
        weights = [float(len(scored[s])) for s in score]
        return tuple(isotonic_regression(means, weights=weights, increasing=increasing).x.tolist())

    return Calibration(
        tuple(agreement), tuple(d_prime), tuple(score), monotone("effect", True), monotone("wrong_way", False), error,
        error_of_mean, model, depth,
    )  # fmt: skip


def _score(agreement: float, d_prime: float, agreements: Sequence[float], d_primes: Sequence[float]) -> float:
    """Mean rank among the calibration sets, from 0 (below all) to 1 (above all)."""
    ranks = [
        (np.searchsorted(known, value, "left") + np.searchsorted(known, value, "right")) / (2 * len(known))
        for value, known in ((agreement, agreements), (d_prime, d_primes))
    ]
    return float(sum(ranks) / 2)
