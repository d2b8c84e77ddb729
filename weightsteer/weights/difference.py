"""The weighted sum of whole checkpoints, a change when the weights sum to 0; one parameter at a time."""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsteer import progress
from weightsteer.errors import AdapterError, report_problems
from weightsteer.weights.adapter_writer import new_folder
from weightsteer.weights.base import Base
from weightsteer.weights.checkpoint import FLOATS
from weightsteer.weights.lowrank import BLOCK_ELEMENTS
from weightsteer.weights.tensor_files import write_float32
from weightsteer.weights.vector_files import DENSE, write_description


@dataclass(frozen=True)
class Difference:
    """Checkpoints of one architecture with weights that sum to 0, found to fit from their headers."""

    models: Sequence[tuple[Base, float]]
    shapes: Mapping[str, tuple[int, ...]]
    """Of every parameter, tied ones under each of their names."""
    absent: Sequence[str]
    """Biases that one of the checkpoints does not have and that count as zero there."""

    @classmethod
    def of(cls, folders: Sequence[tuple[Path, float]]) -> "Difference":
        """Plan the sum from headers; an AdapterError with all that does not fit."""
        total = math.fsum(weight for _, weight in folders)
        if abs(total) > 1e-9:
            raise AdapterError(
                f"the weights of {', '.join(str(folder) for folder, _ in folders)} sum to {total:g}. "
                "Expected 0, such as FINETUNED=1 BASE=-1: otherwise a multiple of the whole model is left"
            )
        models = [(Base.of(folder), weight) for folder, weight in folders]
        shapes: dict[str, tuple[int, ...]] = {}
        problems = []
        for model, _ in models:
            for name, shape in _shapes(model).items():
                if shapes.setdefault(name, shape) != shape:
                    problems.append(f"{name}: {list(shape)} in {model.path}, {list(shapes[name])} elsewhere")
                elif quantised := [d for d in _dtypes(model, name) if d not in FLOATS]:
                    problems.append(f"{name}: stored as {quantised[0]} in {model.path}; expected {', '.join(FLOATS)}")
        absent = []
        for model, _ in models:
            missing = [name for name in shapes if not _is_stored(model, name)]
            absent += [name for name in missing if name.endswith(".bias")]
            problems += [f"{name}: not in {model.path}" for name in missing if not name.endswith(".bias")]
        problems += _unused_that_differ([model for model, _ in models], shapes)
        report_problems(AdapterError, "the checkpoints cannot be subtracted", problems)
        return cls(models, shapes, absent)

    def tensor(self, name: str) -> Tensor | None:
        """The change of one parameter, summed in float64; None when it is zero."""
        parts = [(weight, _values(model, name)) for model, weight in self.models]
        change = torch.empty(math.prod(self.shapes[name]))
        for start in range(0, len(change), BLOCK_ELEMENTS):
            block = slice(start, start + BLOCK_ELEMENTS)
            change[block] = sum(w * values.flatten()[block].double() for w, values in parts if values is not None)
        return change.reshape(self.shapes[name]) if change.any() else None

    def entries(self) -> dict[str, Tensor]:
        """The changes that are not zero, all in memory."""
        with self._progress() as tensor:
            entries = {name: change for name in self.shapes if (change := tensor(name)) is not None}
        self._check_not_empty(entries)
        return entries

    def write(self, folder: Path, base: str | None) -> None:
        """Write them as a vector folder (see `write_vector`), one parameter in memory at a time."""
        with new_folder(folder) as temporary, self._progress() as tensor:
            written = write_float32(temporary / f"{DENSE}.safetensors", self.shapes, tensor)
            self._check_not_empty(written)
            described = {name: torch.empty(self.shapes[name], device="meta") for name in written}
            write_description(temporary, described, set(), base, self.info)

    @property
    def info(self) -> dict[str, Any]:
        """Provenance, as WeightVector keeps it."""
        terms = [{"weight": w, "checkpoint": str(m.path), "fingerprint": m.fingerprint} for m, w in self.models]
        notes = [f"counted as zero where a checkpoint has none: {', '.join(self.absent)}"] if self.absent else []
        return {"terms": terms, "notes": notes}

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Callable[[str], Tensor | None]]:
        with progress.task("Subtracting checkpoints", len(self.shapes)) as advance:

            def tensor(name: str) -> Tensor | None:
                change = self.tensor(name)
                advance()
                return change

            yield tensor

    def _check_not_empty(self, changed: Collection[str]) -> None:
        if not changed:
            folders = ", ".join(str(model.path) for model, _ in self.models)
            raise AdapterError(f"{folders}: their weighted sum is zero. Expected checkpoints that differ")


def _shapes(model: Base) -> dict[str, tuple[int, ...]]:
    """Of all parameters, and of biases that bias-only training added to layers of the architecture."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.parameters.items()}
    added = [name for name in _unplaced(model) if name.endswith(".bias") and f"{name[:-5]}.weight" in shapes]
    return shapes | {name: model.checkpoint.info(name).shape for name in added}


def _unplaced(model: Base) -> set[str]:
    """Stored tensors that the network does not load."""
    return set(model.checkpoint.names) - {at.stored for name in model.parameters for at in model.placements(name)}


def _unused_that_differ(models: Sequence[Base], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Tensors that are no parameters, as old checkpoints store masks; they are passed over when equal."""
    problems = []
    for name in sorted(set().union(*(_unplaced(model) for model in models)) - shapes.keys()):
        found = [model.checkpoint.tensor(name) for model in models if name in model.checkpoint.names]
        if len(found) < len(models) or not all(torch.equal(found[0], other) for other in found[1:]):
            problems.append(f"{name}: is no parameter of {type(models[0].network).__name__} and differs")
    return problems


def _is_stored(model: Base, name: str) -> bool:
    return bool(model.placements(name)) if name in model.parameters else name in model.checkpoint.names


def _values(model: Base, name: str) -> Tensor | None:
    if name in model.parameters:
        return model.tensor(name)
    return model.checkpoint.tensor(name) if name in model.checkpoint.names else None


def _dtypes(model: Base, name: str) -> set[str]:
    stored = [at.stored for at in model.placements(name)] if name in model.parameters else [name]
    return {model.checkpoint.info(one).dtype for one in stored}
