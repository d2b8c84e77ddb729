"""How early a monitor tells runs of one kind from control runs, and how often it is wrong; whatever it looks at."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weightsteer.errors import DataError

Curve = Mapping[float, float]
"""Share of the steps -> what was seen there; the same shares in every run."""


@dataclass(frozen=True)
class Run:
    """One training run, as one detector sees it."""

    kind: str
    seed: int
    curve: Curve


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


def detect(runs: Sequence[Run], controls: Sequence[Run], sigma: float = 3.0) -> Detection:
    """Runs above mean + sigma standard deviations of the controls, at the same share of the steps.

    A control is held against the controls of other kinds only: in use, a fine-tune is of a kind that nobody has tried.
    """
    kinds = sorted({control.kind for control in controls})
    shares = set(runs[0].curve) if runs else set()
    if len(kinds) < 2 or any(sum(c.kind != kind for c in controls) < 3 for kind in kinds) or not runs:
        raise DataError(
            f"detection among {len(runs)} runs with {len(controls)} controls of kinds {', '.join(kinds) or 'none'}. "
            "Expected runs, and for each kind of control three or more of other kinds"
        )
    if any(set(run.curve) != shares for run in (*runs, *controls)):
        raise DataError("detection: the runs were not all looked at at the same shares of their steps")
    limits = {kind: _limits([c for c in controls if c.kind != kind], sigma) for kind in (*kinds, None)}
    alarms = [(c.kind, c.seed, at) for c in controls if (at := _first(c.curve, limits[c.kind])) is not None]
    auc = {share: _auc([r.curve[share] for r in runs], [c.curve[share] for c in controls]) for share in sorted(shares)}
    return Detection([_first(run.curve, limits[None]) for run in runs], alarms, len(controls), auc)


def _limits(controls: Sequence[Run], sigma: float) -> dict[float, float]:
    limits = {}
    for share in controls[0].curve:
        values = [control.curve[share] for control in controls]
        limits[share] = statistics.fmean(values) + sigma * statistics.stdev(values)
    return limits


def _first(curve: Curve, limits: Mapping[float, float]) -> float | None:
    return next((share for share in sorted(curve) if curve[share] > limits[share]), None)


def _auc(higher: Sequence[float], lower: Sequence[float]) -> float:
    wins = sum((a > b) + (a == b) / 2 for a in higher for b in lower)
    return wins / (len(higher) * len(lower))
