"""SteeringMonitor: watches in weight space, from inside a transformers Trainer, where a fine-tune is going."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from weightsteer.errors import StageError, WeightsteerError
from weightsteer.models.reference import locate
from weightsteer.monitor.live import LiveChange, is_sharded, trained_base
from weightsteer.monitor.measure import Directions
from weightsteer.monitor.record import READINGS, Point, Record, append_line, point_line, read_record, write_record
from weightsteer.monitor.thresholds import Thresholds
from weightsteer.weights.base import Base
from weightsteer.weights.vector import WeightVector

FIGURE = "monitor.png"
logger = logging.getLogger("weightsteer.monitor")


class SteeringMonitor(TrainerCallback):
    """Measures every `every` steps how far θ_t − θ_0 points along named vectors. Source: arXiv 2511.05408, section 5.

    Writes `out`/readings.jsonl and, at most every `figure_every_s` seconds, `out`/monitor.png; with `attach` it also
    adds `steering/NAME/cosine` and `/projection` to what the trainer logs. `warn` says when to do what.

    What is wrong from the start is an error before the first step: a vector of another base, no parameter in common,
    a folder in use. After that nothing the monitor does ends the training unless `warn` asks for it: an error is
    logged once, and the monitor stays silent from there on.
    """

    def __init__(
        self,
        vectors: Mapping[str, WeightVector | Path | str],
        out: Path | str,
        *,
        every: int = 10,
        base: Path | str | None = None,
        any_base: bool = False,
        warn: Thresholds | None = None,
        figure_every_s: float = 60.0,
    ):
        """`base` is θ_0 where it is not what the training starts from, and where no copy of it is to be kept."""
        if every < 1:
            raise WeightsteerError(f"every is {every}. Expected a number of steps, 1 or more")
        self.base = None if base is None else Base.of(base)
        loaded = {
            label: v if isinstance(v, WeightVector) else WeightVector.load(v, None if any_base else self.base)
            for label, v in vectors.items()
        }
        self.directions = Directions(loaded)
        self.out, self.every, self.any_base, self.warn = Path(out), every, any_base, warn
        self.figure_every_s = figure_every_s
        self.record = Record(self.directions.digests)
        self._live: LiveChange | None = None
        self._attached = False
        self._failed = False
        """On this process."""
        self._silent = False
        """On every process."""
        self._to_log: dict[str, float] = {}
        self._drawn_at = time.monotonic()

    def attach(self, trainer: Any) -> "SteeringMonitor":
        """Add the monitor to a trainer, ahead of those that report to TensorBoard, W&B or trackio.

        They are called in order, each with the same dictionary, so they see what the monitor has put into it.
        """
        callbacks = trainer.callback_handler.callbacks
        if self in callbacks:
            callbacks.remove(self)
        callbacks.insert(0, self)
        self._attached = True
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Check all that can be checked; the one place where the monitor may end a training with an error."""
        self._silent, self._failed, self._to_log = False, False, {}
        problem: WeightsteerError | None = None
        try:
            self._begin(args, state, model)
        except WeightsteerError as error:
            problem = error
        if _anywhere(args, problem is not None)[0]:  # folders may differ between machines
            self._live = None
            raise problem or StageError("the monitor cannot begin on another process of this training; see its error")

    def _begin(self, args: Any, state: Any, model: Any) -> None:
        if args.report_to and not self._attached:
            raise WeightsteerError(
                f"the trainer reports to {', '.join(args.report_to)}, which were added before the monitor and would "
                "not see its numbers. Expected monitor.attach(trainer) in place of callbacks=[monitor]"
            )
        if state.global_step > 0 and self.base is None and self._trains_whole_parameters(model):
            raise WeightsteerError(
                f"the training goes on from step {state.global_step}, and whole parameters are trained: what they were "
                "before the first step is not in memory. Pass base= (the model that was fine-tuned)"
            )
        self._live = LiveChange(model, self.base, keep=state.is_world_process_zero)
        self.directions.check_fit("monitor", self._live.shapes, self._known_base(model), self.any_base)
        if self.warn is not None:
            self.warn.check(self.directions.digests)
        self.directions.prepare()
        self._sharded = is_sharded(model)
        if state.is_world_process_zero:
            self._open(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = state.global_step % self.every == 0 or state.global_step >= state.max_steps
        if self._silent or self._live is None or not due:
            return
        # Processes fall silent together: one that failed since the last look would not come to where others wait.
        (self._silent,) = _anywhere(args, self._failed)
        if self._silent:
            return
        crossed = self._guarded(lambda: self._look(state), state)
        self._silent, crossed = _anywhere(args, self._failed, bool(crossed))
        control.should_log = control.should_log or not self._silent
        if crossed and self.warn is not None:
            control.should_training_stop = control.should_training_stop or self.warn.action == "stop"
            control.should_save = control.should_save or self.warn.action == "snapshot"

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Put the latest numbers into the trainer's log, and its loss into the readings."""
        if logs is None or self._silent or self._failed or not state.is_world_process_zero:
            return
        logs.update(self._to_log)
        if state.log_history:
            state.log_history[-1].update(self._to_log)
        self._to_log = {}
        if "loss" in logs:
            self._guarded(lambda: self._keep_loss(state.global_step, float(logs["loss"])), state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self._live is not None and not (self._silent or self._failed):
            self._guarded(self._draw, state)
        self._live = None  # and with it the copy of θ_0

    def _guarded(self, work: Callable[[], Any], state: Any) -> Any:
        """The result of `work`; None when it failed, after which the monitor falls silent."""
        try:
            return work()
        except Exception as error:  # whatever it is, it must not cost a training that may have run for days
            self._failed = True
            self.record.error = f"step {state.global_step}: {type(error).__name__}: {error}"
            logger.exception("The monitor stops here, the training goes on. %s", self.record.error)
            try:
                append_line(self.out / READINGS, {"error": self.record.error})
            except (OSError, ValueError):
                logger.error("It could not be written to %s either", self.out / READINGS)
            return None

    def _look(self, state: Any) -> bool:
        """Measure, and write down what was found; whether a limit was crossed for the first time."""
        assert self._live is not None
        start = time.perf_counter()
        live, main = self._live, state.is_world_process_zero
        gathered = live.gathered() if main or self._sharded else iter(())
        try:
            if not main:
                return False
            measured = self.directions.measure((source.name, live.change(source, held)) for source, held in gathered)
        finally:
            for _ in gathered:  # sharded parameters: the other processes wait for this one at each
                pass
        share = state.global_step / max(state.max_steps, 1)
        cosines = {label: reading.whole.cosine for label, reading in measured.readings.items()}
        limits, crossed = self.warn.hold(cosines, share) if self.warn else ({}, [])
        told = measured.to_json()
        taken = time.perf_counter() - start
        point = Point(state.global_step, share, told["norm"], told["vectors"], limits, crossed, "", round(taken, 6))
        before = self.record.crossings()
        self.record.points.append(point)
        append_line(self.out / READINGS, point_line(point))
        self._to_log = _log_entries(point)
        fresh = [label for label in crossed if label not in before]
        for label in fresh:
            logger.warning(
                "Step %d: the cosine with %s is %.4f, above the limit of %.4f that control runs keep",
                point.step, label, cosines[label], limits[label],
            )  # fmt: skip
        if time.monotonic() - self._drawn_at >= self.figure_every_s:
            self._draw()
        return bool(fresh)

    def _keep_loss(self, step: int, loss: float) -> None:
        if loss == loss and abs(loss) != float("inf"):
            self.record.losses.append((step, loss))
            append_line(self.out / READINGS, {"step": step, "loss": loss})

    def _draw(self) -> None:
        from weightsteer.monitor.figures import draw_curves
        from weightsteer.report.figures import png
        from weightsteer.report.theme import LIGHT

        if self.record.points:
            temporary = self.out / f".{FIGURE}.partial"
            temporary.write_bytes(png(lambda theme: draw_curves(self.record, theme), LIGHT))
            os.replace(temporary, self.out / FIGURE)
        self._drawn_at = time.monotonic()

    def _open(self, state: Any) -> None:
        """Begin the file of readings, or go on with that of the training which is resumed."""
        path = self.out / READINGS
        self.record = Record(self.directions.digests, self.directions.base, state.max_steps)
        if path.exists():
            if state.global_step == 0:
                raise StageError(
                    f"{path}: holds the readings of another run. Expected a new folder. Choose one, or delete it"
                )
            earlier = read_record(path, cut=True)
            if dict(earlier.digests) != self.record.digests:
                raise StageError(
                    f"{path}: was measured on {', '.join(earlier.digests)}, not on these vectors. Expected those that "
                    "the training began with. Give them, or choose another folder"
                )
            self.record.points = [point for point in earlier.points if point.step <= state.global_step]
            self.record.losses = [loss for loss in earlier.losses if loss[0] <= state.global_step]
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            write_record(self.record, path)
        except OSError as error:
            raise StageError(f"{self.out}: cannot be written ({error.strerror}). Choose another folder") from None

    def _known_base(self, model: Any) -> str | None:
        """Fingerprint of θ_0, where it is given, or where the network was loaded from a folder that is still there."""
        if self.base is not None:
            return self.base.fingerprint
        source = trained_base(model)
        if source is None or self.directions.base is None or not Path(source).is_dir():
            return None
        folder = locate(source)
        return None if folder is None else Base.of(folder).fingerprint

    @staticmethod
    def _trains_whole_parameters(model: Any) -> bool:
        return any(
            p.requires_grad and "lora_" not in name and "modules_to_save" not in name
            for name, p in model.named_parameters()
        )


def _log_entries(point: Point) -> dict[str, float]:
    entries = {"steering/change": point.norm}
    for label, reading in point.vectors.items():
        entries[f"steering/{label}/cosine"] = reading["cosine"]
        entries[f"steering/{label}/projection"] = reading["projection"]
        entries[f"steering/{label}/limit"] = point.limits.get(label)
        for kind, (cosine, _) in reading["kinds"].items():
            entries[f"steering/{label}/{kind}"] = cosine
    return {key: value for key, value in entries.items() if value is not None}


def _anywhere(args: Any, *flags: bool) -> tuple[bool, ...]:
    """Each flag as it is on any of the processes: they stop, save and fall silent together, or one waits forever."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return flags
    shared = torch.tensor([int(flag) for flag in flags], device=args.device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return tuple(bool(flag) for flag in shared.tolist())
