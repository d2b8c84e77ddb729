"""The saved checkpoints or adapters of a training run, measured after the fact; or one finished model."""

import contextlib
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from weightsteer import progress
from weightsteer.errors import CheckpointError, ModelError, WeightsteerError, report_problems
from weightsteer.merging.lanes import Lane, in_order, open_lanes
from weightsteer.models.reference import locate, resolve
from weightsteer.monitor.measure import Directions, Measurement, Moved, Products
from weightsteer.monitor.record import Point, Record
from weightsteer.weights.base import Base
from weightsteer.weights.checkpoint import TORCH_DTYPES, TensorInfo
from weightsteer.weights.difference import Difference
from weightsteer.weights.lowrank import Change, LowRank
from weightsteer.weights.vector import WeightVector

ADAPTER_FILES = ("adapter_config.json", "vector.json")
MODEL_FILES = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Saved:
    """One state of a run on the disk."""

    path: Path
    step: int
    share: float


@dataclass(frozen=True)
class StoredRows:
    """A parameter that one stored tensor holds, read a few rows at a time into a buffer that is used again."""

    info: TensorInfo
    shape: tuple[int, ...]
    """Of the parameter."""
    lane: Lane
    buffer: str

    def rows(self, start: int, stop: int) -> Tensor:
        """Some rows of the parameter as a matrix, its leading dimensions taken as one, in the buffer."""
        dtype, width = TORCH_DTYPES[self.info.dtype], math.prod(self.shape[-1:])
        begin, end = (self.info.start + row * width * dtype.itemsize for row in (start, stop))
        return self.lane.read(self.info.file, begin, end, self.buffer).view(dtype).reshape(-1, width)


class SavedChange(Mapping[str, Change]):
    """What one saved state changes of the base: read at once where it is an adapter, else one parameter at a time."""

    def __init__(self, path: Path, base: Base | None):
        self.adapter = _is_adapter(path)
        if self.adapter:
            vector = WeightVector.load(path, base)
            self.entries, self.fingerprint = vector.entries, vector.base
            self.shapes = {name: tuple(change.shape) for name, change in vector.entries.items()}
            return
        if base is None:
            raise WeightsteerError(
                f"{path}: is a whole model. Expected also the one it was fine-tuned from. Pass base= (--base MODEL)"
            )
        self.difference = Difference.of([(path, 1.0), (base.path, -1.0)])
        self.shapes, self.fingerprint = dict(self.difference.shapes), base.fingerprint

    def measured(self, directions: Directions) -> Measurement:
        """The change along the vectors; of whole models on threads, a few rows read at a time."""
        if self.adapter:
            factored = {n: c if isinstance(c, LowRank) else Moved(c) for n, c in self.entries.items()}
            return directions.measure(factored.items(), torch.float64)
        directions.prepare()  # once, not on each of the threads

        def look(name: str, lane: Lane) -> Products:
            after, before = (_stored(m, name, lane, b) for (m, _), b in zip(self.difference.models, "ab", strict=True))
            if after is None:  # a bias that only the base has
                assert before is not None
                return directions.products(name, Moved(torch.zeros(self.shapes[name]), before))
            return directions.products(name, Moved(after, before))

        with open_lanes() as lanes, contextlib.closing(in_order(look, self.shapes, lanes)) as products:
            return directions.measurement(products)

    def __getitem__(self, name: str) -> Change:
        if self.adapter:
            return self.entries[name]
        change = self.difference.tensor(name)
        return torch.zeros(self.shapes[name]) if change is None else change

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def saved_states(run: Path | str) -> list[Saved]:
    """The checkpoints of a run in the order of their steps; without any, the one model or adapter that `run` is.

    A CheckpointError when there is neither, or when one was left half written.
    """
    run = Path(run)
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such folder. Expected that of a training run, a model or an adapter")
    left = sorted(path.name for path in run.glob("tmp-checkpoint-*"))
    report_problems(
        CheckpointError, run, [f"{name}: is being written, or was left by a run that was killed" for name in left]
    )
    steps = {int(m[1]): path for path in run.iterdir() if (m := re.fullmatch(r"checkpoint-(\d+)", path.name))}
    if steps:
        last = max(_trainer_state(path).get("max_steps") or 0 for path in steps.values()) or max(steps)
        return [Saved(path, step, step / last) for step, path in sorted(steps.items())]
    shares = {float(m[1]): path for path in run.iterdir() if (m := re.fullmatch(r"at=([\d.]+)", path.name))}
    if not (shares or _is_adapter(run) or any((run / name).exists() for name in MODEL_FILES)):
        raise CheckpointError(
            f"{run}: holds no checkpoint-STEP folders and is no model or adapter itself. Expected the output folder of "
            "a training run"
        )
    total = _read_json(run / "training.json").get("steps") or 1
    states = [Saved(path, max(1, round(share * total)), share) for share, path in sorted(shares.items())]
    if 1.0 not in shares and (_is_adapter(run) or any((run / name).exists() for name in MODEL_FILES)):
        states.append(Saved(run, total, 1.0))
    return states


def measure_run(run: Path | str, directions: Directions, base: Base | None = None, any_base: bool = False) -> Record:
    """The readings of every saved state of a run; equal to those that SteeringMonitor takes at the same steps.

    `base` is what the run started from; adapters that name a base that is here do without. Every state that cannot be
    read is named in one error.
    """
    states = saved_states(run)
    base = base or _named_base(states[-1].path)
    fingerprint = None if base is None else base.fingerprint
    record = Record(directions.digests, fingerprint, _max_steps(states), losses=_losses(states))
    problems = []
    with progress.task("Measuring checkpoints", len(states)) as advance:
        for state in states:
            start = time.perf_counter()
            try:
                change = SavedChange(state.path, base)
            except WeightsteerError as error:
                problems.append(f"{state.path.name}: {error}")
                continue
            if problems:  # an error is certain: only look for more
                continue
            directions.check_fit(state.path, change.shapes, fingerprint or change.fingerprint, any_base)
            told = change.measured(directions).to_json()
            taken = round(time.perf_counter() - start, 6)
            point = Point(state.step, state.share, told["norm"], told["vectors"], source=str(state.path), seconds=taken)
            record.points.append(point)
            advance()
    report_problems(CheckpointError, f"{run}: states that cannot be read", problems)
    return record


def _stored(model: Base, name: str, lane: Lane, buffer: str) -> Tensor | StoredRows | None:
    """The values of a parameter, to be read as they are looked at where one stored tensor holds them; None for none."""
    if name not in model.parameters:  # a bias that the architecture does not have
        return model.checkpoint.tensor(name) if name in model.checkpoint.names else None
    stored = {at.stored for at in model.placements(name)}
    if len(stored) != 1:
        return model.tensor(name)
    return StoredRows(model.checkpoint.info(stored.pop()), tuple(model.parameters[name].shape), lane, buffer)


def _is_adapter(path: Path) -> bool:
    return any((path / name).exists() for name in ADAPTER_FILES)


def _named_base(path: Path) -> Base | None:
    """The base that an adapter says it was trained on, where that is on this machine."""
    if not (path / "adapter_config.json").exists() or (path / "vector.json").exists():
        return None
    source = _read_json(path / "adapter_config.json").get("base_model_name_or_path")
    try:
        if not isinstance(source, str) or not source or locate(source) is None:
            return None
        return Base.of(resolve(source).path)
    except ModelError:  # it has moved since
        return None


def _max_steps(states: Sequence[Saved]) -> int:
    return round(states[-1].step / states[-1].share)


def _losses(states: Sequence[Saved]) -> list[tuple[int, float]]:
    """Training losses, as the trainer noted them in the newest checkpoint, or weightsteer in training.json."""
    newest = states[-1].path
    history = _trainer_state(newest).get("log_history") or []
    noted = [(row["step"], row["loss"]) for row in history if "loss" in row and "step" in row]
    for folder in (newest, newest.parent):
        noted = noted or [tuple(pair) for pair in _read_json(folder / "training.json").get("train_loss") or []]
    return [(int(step), float(loss)) for step, loss in noted]


def _trainer_state(path: Path) -> dict:
    return _read_json(path / "trainer_state.json")


def _read_json(path: Path) -> dict:
    """What a trainer noted beside the weights; nothing where it did not."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Was the run killed while it wrote?") from None
    return content if isinstance(content, dict) else {}
