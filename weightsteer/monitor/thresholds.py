"""From which cosine on a run is unlike the control runs, at the same share of its steps."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightsteer.errors import DataError, report_problems
from weightsteer.monitor.record import Record, read_record

ACTIONS = ("log", "stop", "snapshot")
# With two controls a standard deviation is one number's distance from another: it says next to nothing.
LEAST_CONTROLS = 3


@dataclass(frozen=True)
class Thresholds:
    """Mean plus `sigma` standard deviations over control runs, for each vector and share of the steps."""

    controls: Sequence[Record]
    sigma: float = 3.0
    action: str = "log"
    """One of ACTIONS: what to do where a cosine crosses its limit, besides saying so."""

    def __post_init__(self) -> None:
        problems = []
        if not math.isfinite(self.sigma) or self.sigma <= 0:
            problems.append(f"sigma is {self.sigma}. Expected a number above 0, such as 3")
        if self.action not in ACTIONS:
            problems.append(f"action is {self.action!r}. Expected {', '.join(ACTIONS)}")
        if len(self.controls) < LEAST_CONTROLS:
            problems.append(
                f"{len(self.controls)} control runs. Expected {LEAST_CONTROLS} or more: their spread is what a run "
                "is held against"
            )
        problems += [f"control {i}: holds no reading" for i, c in enumerate(self.controls, start=1) if not c.points]
        report_problems(DataError, "thresholds", problems)

    @classmethod
    def from_controls(cls, paths: Sequence[Path | str], sigma: float = 3.0, action: str = "log") -> "Thresholds":
        """From the readings (files or folders) of control runs, monitored on the same vectors."""
        return cls([read_record(path) for path in paths], sigma, action)

    def check(self, digests: Mapping[str, str]) -> None:
        """A DataError when the controls were not measured on these very vectors."""
        problems = []
        for number, control in enumerate(self.controls, start=1):
            for label, digest in digests.items():
                found = control.digests.get(label)
                if found != digest:
                    problems.append(
                        f"control {number}: {label} is {'not in it' if found is None else f'another vector, {found}'}. "
                        f"Expected {digest}. Monitor the control runs on the same vectors"
                    )
        report_problems(DataError, "thresholds", problems)

    def limit(self, label: str, share: float) -> float | None:
        """The cosine that a run has to stay below at this share of its steps; None where controls have none."""
        found = [value for control in self.controls if (value := _at(control, label, share)) is not None]
        if len(found) < LEAST_CONTROLS:
            return None
        return statistics.fmean(found) + self.sigma * statistics.stdev(found)

    def hold(self, cosines: Mapping[str, float | None], share: float) -> tuple[dict[str, float], list[str]]:
        """The limits at this share of the steps, and the vectors that the cosines cross them with.

        A change without a direction, whose cosine is None, crosses nothing.
        """
        found = {label: self.limit(label, share) for label in cosines}
        limits = {label: limit for label, limit in found.items() if limit is not None}
        return limits, [name for name, limit in limits.items() if (at := cosines[name]) is not None and at > limit]


def _at(control: Record, label: str, share: float) -> float | None:
    """A control's cosine, on straight lines between its readings; before and after them, that of the nearest."""
    import numpy as np

    curve = sorted((point.share, cosine) for point, cosine in control.curve(label))
    if not curve:
        return None
    return float(np.interp(share, [at for at, _ in curve], [cosine for _, cosine in curve]))
