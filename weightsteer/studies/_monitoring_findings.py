"""What the study `monitoring` found: cosines of vectors and runs, and what three detectors make of the runs."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from weightsteer.monitor.detect import Curve, Detection, Run, detect
from weightsteer.monitor.matrix import CosineMatrix
from weightsteer.studies.monitoring import Settings, Watched

COSINE, BEHAVIOR, LOSS = "cosine with the vector", "behavior eval", "training loss"
# Which runs a vector is to tell: those of its own domain, or those of the others.
OWN, OTHER = "own domain", "other domains"


@dataclass(frozen=True)
class Findings:
    """All that the sections tell."""

    settings: Settings
    domains: Sequence[str]
    looked: Sequence[Watched]
    matrix: CosineMatrix
    """Of all vectors ("w money") and all runs ("τ careless money, seed 0")."""
    detections: Mapping[tuple[str, str, str], Detection]
    """(OWN or OTHER, domain, detector)."""

    @property
    def steps(self) -> int:
        return self.settings.looks[-1]

    def pooled(self, runs: str, detector: str) -> Detection:
        """The detections with the vectors of all domains together."""
        found = [self.detections[runs, domain, detector] for domain in self.domains]
        auc = {share: statistics.fmean(one.auc[share] for one in found) for share in found[0].auc}
        first = [at for one in found for at in one.first]
        alarms = [alarm for one in found for alarm in one.false_alarms]
        return Detection(first, alarms, sum(one.controls for one in found), auc)

    def step(self, share: float | None) -> str:
        """The optimizer step at a share of the steps."""
        return "–" if share is None else str(round(share * self.steps))


def detections_of(domain: str, looked: Sequence[Watched], own: bool, sigma: float) -> dict[str, Detection]:
    """What the three detectors of one domain make of careless runs in that domain, or in the others."""
    careless = [w for w in looked if w.is_careless and (w.kind == f"careless {domain}") == own]
    controls = [w for w in looked if not w.is_careless]
    seen: dict[str, Callable[[Watched], Curve]] = {
        COSINE: partial(cosine_curve, domain=domain), BEHAVIOR: lambda w: w.behavior[domain], LOSS: loss_curve,
    }  # fmt: skip
    return {
        # a fine-tune may be unlike others by a loss that falls faster, or slower
        name: detect(as_runs(careless, curve), as_runs(controls, curve), sigma, both_sides=name == LOSS)
        for name, curve in seen.items()
    }


def cosine_curve(watched: Watched, domain: str) -> Curve:
    """The cosine with the vector of a domain at every look; 0 of a change of zero, which has no direction."""
    return {point.share: point.cosine(domain) or 0.0 for point in watched.record.points}


def loss_curve(watched: Watched) -> Curve:
    """Mean training loss since the last look, as a share of the first step's loss."""
    losses = watched.record.losses
    first = min(losses)[1]
    curve, before = {}, 0
    for point in watched.record.points:
        curve[point.share] = statistics.fmean(v for step, v in losses if before < step <= point.step) / first
        before = point.step
    return curve


def as_runs(watched: Sequence[Watched], curve: Callable[[Watched], Curve]) -> list[Run]:
    """Runs as a detector that looks at `curve` sees them."""
    return [Run(w.kind, w.seed, curve(w)) for w in watched]


def task_name(kind: str, seed: int) -> str:
    """What the change that a run made is called in the matrix."""
    return f"τ {kind}, seed {seed}"


def mean(values: Sequence[float]) -> float:
    """Of nothing: no number."""
    return statistics.fmean(values) if values else math.nan


def signed(value: float) -> str:
    """A cosine as it is written."""
    return f"{value:+.3f}".replace("-", "−")
