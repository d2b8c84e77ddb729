"""One of two processes that train together; test_distributed starts it. Arguments: model, out, sharding, what, case."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from trainings import collate, load, new_trainer, random_vector, rows, with_lora
from transformers import TrainerCallback, TrainerControl, TrainerState

from weightsteer.models.blocks import decoder_blocks
from weightsteer.monitor.callback import SteeringMonitor
from weightsteer.monitor.live import is_sharded
from weightsteer.monitor.record import Point, Record
from weightsteer.monitor.thresholds import Thresholds


class KeepFinal(TrainerCallback):
    """Save what was trained, put together by torch's own means."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        held = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if state.is_world_process_zero:
            torch.save(held, self.path)


def fail(changes: Any) -> None:
    next(iter(changes))
    raise ZeroDivisionError("a bug on one process")


def fail_between(step: int, loss: float) -> None:
    raise ZeroDivisionError("a bug between two looks")


def train_sharded(network: Any, monitor: SteeringMonitor, keep: KeepFinal) -> int:
    """Six steps under fully_shard, the monitor called as the trainer calls it: accelerate shards on GPUs only."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for block in decoder_blocks(network.get_base_model() if hasattr(network, "get_base_model") else network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    assert is_sharded(network)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    args = SimpleNamespace(report_to=[], device=torch.device("cpu"))
    main = torch.distributed.get_rank() == 0
    state, control = TrainerState(max_steps=6, is_world_process_zero=main), TrainerControl()
    monitor.on_train_begin(args, state, control, model=network)
    batch = collate(rows()[:2])
    while state.global_step < state.max_steps and not control.should_training_stop:
        network(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state.global_step += 1
        monitor.on_step_end(args, state, control)
    keep.on_train_end(args, state, control, model=network)
    monitor.on_train_end(args, state, control)
    return state.global_step


def train_side_by_side(network: Any, monitor: SteeringMonitor, keep: KeepFinal, out: Path) -> int:
    """Six steps of a transformers trainer, each process with the whole model."""
    trainer = new_trainer(network, out, [monitor, keep], ddp_backend="gloo", save_strategy="no")
    trainer.train()
    return trainer.state.global_step


def main(model: Path, out: Path, sharding: str, what: str, case: str) -> None:
    rank, network = int(os.environ["RANK"]), load(model)
    vector, warn = random_vector(network), None
    if case == "stop":
        reading = {"cosine": -1.0, "projection": 0.0, "without_embeddings": [0, 0], "blocks": {}, "kinds": {}}
        control = Record({"v": vector.digest}, points=[Point(1, 0.5, 1.0, {"v": reading})])
        warn = Thresholds([control] * 3, action="stop")
    monitor = SteeringMonitor({"v": vector}, out / "m", every=2, warn=warn)
    if case == "fail" and rank == 0:
        monitor.directions.measure = fail  # pyright: ignore
    if case == "fail between" and rank == 0:
        monitor._keep_loss = fail_between  # pyright: ignore
    wrapped, keep = with_lora(network) if what == "lora" else network, KeepFinal(out / "final.pt")
    if sharding == "fsdp":
        steps = train_sharded(wrapped, monitor, keep)
    else:
        steps = train_side_by_side(wrapped, monitor, keep, out / "run")
    told = {"steps": steps, "silent": monitor._silent, "points": len(monitor.record.points)}
    (out / f"process-{rank}.json").write_text(json.dumps(told))
    torch.distributed.barrier()
    # Gloo's own end can wait for the interpreter's lock while it holds it (torch 2.13): leave without it.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
