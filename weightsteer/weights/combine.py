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
    problems = [
        f"{source}: weight is {w}; expected a finite number" for source, w in terms if not math.isfinite(w)
    ]
    report_problems(
        AdapterError, "combine", problems if terms else ["nothing is given; expected SOURCE=WEIGHT"]
    )
    model = None if base is None else Base.of(base)
    folders = [(Path(source), float(w)) for source, w in terms if _is_checkpoint(source)]
    others = [(source, w) for source, w in terms if not _is_checkpoint(source)]
    if out is not None and not others:
        Difference.of(folders).write(Path(out), model.fingerprint if model else None)
        return WeightVector.load(out)
    vectors = [
        w * (source if isinstance(source, WeightVector) else WeightVector.load(source, model))
        for source, w in others
    ]
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


def _is_checkpoint(source: Source) -> bool:
    """Whether a source is the folder of a whole model, not an adapter or a vector."""
    if isinstance(source, WeightVector):
        return False
    folder = Path(source)
    is_change = any((folder / name).exists() for name in ("adapter_config.json", "vector.json"))
    return (folder / "config.json").exists() and not is_change
