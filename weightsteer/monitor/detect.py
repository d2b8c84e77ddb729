"""How early a monitor tells runs of one kind from control runs, and how often it is wrong; whatever it looks at."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weightsteer.errors import DataError
from weightsteer.monitor.thresholds import LEAST_CONTROLS
from weightsteer.stats import Estimate

Curve = Mapping[float, float]
"""Share of the steps -> what was seen there; the same shares in every run."""


@dataclass(frozen=True)
class Run:
    """One training run, as one detector sees it."""

    kind: str
    seed: int
    curve: Curve


@dataclass(frozen=True)
class Band:
    """What control runs do at one share of their steps: their mean, and how far from it is too far."""

    mean: float
    reach: float

    def excludes(self, value: float, both_sides: bool = False) -> bool:
        """Whether a value lies above the band, or on either side of it."""
        apart = value - self.mean
        return (abs(apart) if both_sides else apart) > self.reach


@dataclass(frozen=True)
class Detection:
    """What a detector found among runs that it is to tell and runs that it is to leave alone."""

    first: Sequence[float | None]
    """For each run to be told: the share of its steps at which it was; None if it never was."""
    false_alarms: Sequence[tuple[str, int, float]]
    """Kind, seed and share of the steps of every control that was told too."""
    controls: int
    auc: Mapping[float, float]
    """Share -> probability that a run to be told reads higher than a control there, ties counted half."""

    @property
    def found(self) -> int:
        return sum(share is not None for share in self.first)

    @property
    def median_first(self) -> float | None:
        """Share of the steps by which half of the runs were told; None where fewer were."""
        ordered = sorted(math.inf if share is None else share for share in self.first)
        middle = ordered[(len(ordered) - 1) // 2]
        return None if math.isinf(middle) else middle

    @property
    def false_alarm_rate(self) -> Estimate:
        """Share of the controls that were told, with its exact 95 % interval (Clopper and Pearson 1934)."""
        return exact_share(len(self.false_alarms), self.controls)


def detect(runs: Sequence[Run], controls: Sequence[Run], sigma: float = 3.0, both_sides: bool = False) -> Detection:
    """Runs above mean + sigma standard deviations of the controls, at the same share of the steps.

    With `both_sides` also those below mean − sigma; what is compared in `auc` is then the distance from the mean. A
    control is held against the controls of other kinds only: in use, a fine-tune is of a kind that nobody has tried.
    """
    kinds = sorted({control.kind for control in controls})
    shares = set(runs[0].curve) if runs else set()
    few = any(sum(c.kind != kind for c in controls) < LEAST_CONTROLS for kind in kinds)
    if len(kinds) < 2 or few or not runs:
        raise DataError(
            f"detection among {len(runs)} runs with {len(controls)} controls of kinds {', '.join(kinds) or 'none'}. "
            "Expected runs, and for each kind of control three or more of other kinds"
        )
    if any(set(run.curve) != shares for run in (*runs, *controls)):
        raise DataError("detection: the runs were not all looked at at the same shares of their steps")
    others = {kind: bands([c for c in controls if c.kind != kind], sigma) for kind in kinds}
    every = bands(controls, sigma)
    first = [_first(run.curve, every, both_sides) for run in runs]
    alarms = [(c.kind, c.seed, _first(c.curve, others[c.kind], both_sides)) for c in controls]
    auc = {}
    for share in sorted(shares):
        higher, lower = [r.curve[share] for r in runs], [c.curve[share] for c in controls]
        if both_sides:
            higher = [abs(value - every[share].mean) for value in higher]
            lower = [abs(c.curve[share] - others[c.kind][share].mean) for c in controls]
        auc[share] = _auc(higher, lower)
    return Detection(first, [(kind, seed, at) for kind, seed, at in alarms if at is not None], len(controls), auc)


def bands(controls: Sequence[Run], sigma: float) -> dict[float, Band]:
    """What the controls do, at each share of their steps: mean and `sigma` standard deviations."""
    found = {}
    for share in controls[0].curve:
        values = [control.curve[share] for control in controls]
        found[share] = Band(statistics.fmean(values), sigma * statistics.stdev(values))
    return found


def exact_share(count: int, total: int) -> Estimate:
    """`count` of `total` as a share, with its exact 95 % interval, which also holds for none and for all."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, count, total - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, total - count)) if count < total else 1.0
    return Estimate(count / total, low, high)


def _first(curve: Curve, limits: Mapping[float, Band], both_sides: bool) -> float | None:
    return next((share for share in sorted(curve) if limits[share].excludes(curve[share], both_sides)), None)


def _auc(higher: Sequence[float], lower: Sequence[float]) -> float:
    wins = sum((a > b) + (a == b) / 2 for a in higher for b in lower)
    return wins / (len(higher) * len(lower))
