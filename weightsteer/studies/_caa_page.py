"""What the sections of the study `caa` share: a run's numbers under the names that the report gives them."""

from collections.abc import Mapping, Sequence

from weightsteer.report import numbers
from weightsteer.stats import Estimate, paired_difference, weighted_mean
from weightsteer.studies._caa_measured import Measured
from weightsteer.studies.caa import BehaviorSet, Settings


class Page:
    """The numbers of one run."""

    def __init__(self, settings: Settings, sets: Sequence[BehaviorSet], found: Measured) -> None:
        self.settings, self.sets, self.found = settings, sets, found
        self.blocks: int = found.blocks["of"]
        self.changes = {s.behavior.name: self.change(found.answers[s.behavior.name]["none"]["p"]) for s in sets}

    def change(self, p: Mapping[str, Sequence[float]], low: str = "-1", high: str = "1") -> Estimate:
        """Mean over questions of the probability at `high` less that at `low`."""
        return paired_difference(p[high], p[low], seed=self.settings.seed)

    def mean(self, values: Sequence[float]) -> Estimate:
        return weighted_mean(values, seed=self.settings.seed)

    def names(self) -> list[tuple[str, str]]:
        """Every behavior's name in the data and in the report."""
        return [(s.behavior.name, s.behavior.shown) for s in self.sets]

    def block(self, name: str) -> int:
        return self.found.blocks["chosen"][name]


def signed(value: float) -> str:
    """A change, rounded, its sign shown."""
    return numbers.difference(Estimate(value, value, value))
