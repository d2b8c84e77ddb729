"""Weighted sums of adapters, vectors and whole checkpoints, as one vector."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightsteer.errors import AdapterError, report_problems
from weightsteer.weights.base import Base
from weightsteer.weights.difference import Difference
from weightsteer.weights.vector import WeightVector

Source = WeightVector | Path | str


def combine(
    terms: Sequence[tuple[Source, float | int]], base: Any = None, out: Path | str | None = None
) -> WeightVector:
    """The sum of weight·change over adapters, vectors and model folders, exact in float32.

    Adapters and vectors stay factored. The weights of whole checkpoints must sum to 0, so that no multiple of
    the model is left; their difference is dense, and when there is nothing else and `out` is given, only one
    parameter of it is in memory at a time. `base` (a Checkpoint or folder) is the model that the sum is a
    change of; some adapters cannot be read without it. Writes the vector to `out`.
    """
    problems = [f"{source}: weight is {w}; expected a finite number" for source, w in terms if not math.isfinite(w)]
    report_problems(AdapterError, "combine", problems if terms else ["nothing is given; expected SOURCE=WEIGHT"])
    model = None if base is None else Base.of(base)
    folders = [(Path(s), float(w)) for s, w in terms if not isinstance(s, WeightVector) and _is_checkpoint(s)]
    others = [(s, w) for s, w in terms if isinstance(s, WeightVector) or not _is_checkpoint(s)]
    if out is not None and not others:
        Difference.of(folders).write(Path(out), model.fingerprint if model else None)
        return WeightVector.load(out)
    vectors = [w * (s if isinstance(s, WeightVector) else WeightVector.load(s, model)) for s, w in others]
    if folders:
        difference = Difference.of(folders)
        vectors.append(WeightVector(difference.entries(), None, difference.info))
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    if model is not None:
        total = total.on(model)
    if out is not None:
        total.save(out)
    return total


def _is_checkpoint(path: Path | str) -> bool:
    """Whether a folder holds a whole model, not an adapter or a vector."""
    folder = Path(path)
    is_change = any((folder / name).exists() for name in ("adapter_config.json", "vector.json"))
    return (folder / "config.json").exists() and not is_change
