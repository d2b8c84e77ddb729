"""Two processes that train together, whole or sharded: what is measured is the whole, and they act as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainings import load, random_vector

from weightsteer.errors import AdapterError
from weightsteer.monitor.live import LiveChange
from weightsteer.monitor.record import read_record
from weightsteer.weights.lowrank import as_dense

HERE = Path(__file__).parent


def train_together(model: Path, out: Path, sharding: str, what: str, case: str = "plain") -> list[dict]:
    """What each of the two processes says at the end."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    paths = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1])])
    done = subprocess.run(
        [*command, HERE / "distributed.py", model, out, sharding, what, case],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True, text=True, timeout=600,  # a busy machine starts two processes slowly
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"process-{rank}.json").read_text()) for rank in (0, 1)]


def final_cosine(model: Path, out: Path, what: str) -> float:
    """By the definition, from the final tensors as torch put them together."""
    network, held = load(model), torch.load(out / "final.pt")
    vector, before = random_vector(network), dict(network.named_parameters())
    changes = {}
    if what == "lora":
        for key, a in held.items():
            if key.endswith("lora_A.default.weight"):
                name = key.removeprefix("base_model.model.").replace(".lora_A.default", "")
                changes[name] = 2 * held[key.replace("lora_A", "lora_B")] @ a
    else:
        changes = {name: held[name] - before[name].detach() for name in held if name in before}
    assert len(changes) > 10
    inner = sum((as_dense(v) * changes[name]).sum().item() for name, v in vector.entries.items() if name in changes)
    norms = [sum(as_dense(c).square().sum().item() for c in side.values()) for side in (changes, vector.entries)]
    return inner / (norms[0] * norms[1]) ** 0.5


@pytest.mark.parametrize(("sharding", "what"), [("ddp", "lora"), ("fsdp", "lora"), ("fsdp", "full")])
def test_two_processes_measure_the_whole(sharding, what, model_folder, tmp_path):
    told = train_together(model_folder, tmp_path / "out", sharding, what)
    assert [process["steps"] for process in told] == [6, 6]
    assert [process["points"] for process in told] == [3, 0], "one of them measures"
    record = read_record(tmp_path / "out" / "m")
    assert record.error is None
    assert record.points[-1].cosine("v") == pytest.approx(final_cosine(model_folder, tmp_path / "out", what), abs=1e-5)
    assert record.points[-1].norm > 0.01


def test_two_processes_stop_together(model_folder, tmp_path):
    told = train_together(model_folder, tmp_path / "out", "ddp", "lora", "stop")
    assert [process["steps"] for process in told] == [2, 2]


def test_two_processes_fall_silent_together(model_folder, tmp_path):
    told = train_together(model_folder, tmp_path / "out", "fsdp", "full", "fail")
    assert told == [{"steps": 6, "silent": True, "points": 0}] * 2
    assert read_record(tmp_path / "out" / "m").error == "step 2: ZeroDivisionError: a bug on one process"


def test_what_fails_between_two_looks_leaves_nobody_waiting(model_folder, tmp_path):
    told = train_together(model_folder, tmp_path / "out", "ddp", "lora", "fail between")
    assert [process["steps"] for process in told] == [6, 6]
    assert [process["silent"] for process in told] == [True, True]
    assert read_record(tmp_path / "out" / "m").error == "step 2: ZeroDivisionError: a bug between two looks"


def test_flattened_parameters_are_refused(network, tmp_path):
    from torch.distributed.fsdp import FullyShardedDataParallel

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        flat = FullyShardedDataParallel(network, device_id=torch.device("cpu"), use_orig_params=True)
        with pytest.raises(AdapterError, match="FSDP of version 1"):
            LiveChange(flat)
    finally:
        torch.distributed.destroy_process_group()
