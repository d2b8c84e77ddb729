"""One of two processes that train together; test_distributed starts it. Arguments: model, out, sharding, what, case."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from trainings import load, new_trainer, random_vector, with_lora
from transformers import TrainerCallback

from weightsteer.monitor.callback import SteeringMonitor
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
    settings: dict[str, Any] = {"ddp_backend": "gloo", "save_strategy": "no"}
    if sharding == "fsdp":
        settings |= {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": "LlamaDecoderLayer", "version": 2}}
    wrapped = with_lora(network) if what == "lora" else network
    trainer = new_trainer(wrapped, out / "run", [monitor, KeepFinal(out / "final.pt")], **settings)
    try:
        trainer.train()
    finally:
        told = {"steps": trainer.state.global_step, "silent": monitor._silent, "points": len(monitor.record.points)}
        (out / f"process-{rank}.json").write_text(json.dumps(told))
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
