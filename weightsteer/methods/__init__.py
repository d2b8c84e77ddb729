"""One file per row of a comparison.

A method file has `ABOUT` (a line for tables), `Settings` and `fit(settings, fit) -> vector`. A vector has `digest` and
`applied(lm, k, any_base=False)`; what `fit` writes goes below `fit.folder(settings)`. A file may have `SEEDED = True`
(fitted anew for each of the recipe's training seeds), `WRITES` (the stage folders that it leaves there), `DIALLED =
False` (its k has only a sign) and `check(settings, recipe, pairs)`, which raises before anything runs what `fit` would
find wrong only after earlier stages.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Fit:
    """What a method is fitted from."""

    recipe: Any
    pairs: Any
    lm: Any
    """The base model."""
    out: Path
    """The run's folder of this seed."""
    seed: int
    task: Any = None
    """The task fine-tune's change of the base, where the recipe has a task that it trains."""
    examples: tuple[tuple[str, str], ...] = ()
    """The (prompt, answer) rows of that task."""
    vectors: Mapping[str, Any] = field(default_factory=dict)
    """Label -> vector, of the methods listed before."""

    def folder(self, settings: Any) -> Path:
        """Where the method called `settings.label` writes."""
        return self.out / settings.label
