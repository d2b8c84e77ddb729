"""A merge that is killed anywhere leaves nothing that looks finished, and goes on when it is run again."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small_checkpoints import llama_tensors, random_vector, write_checkpoint

from weightsteer.errors import StageError
from weightsteer.merging import merge as merge_module
from weightsteer.merging.merge import merge
from weightsteer.merging.verify import verify
from weightsteer.stage import locked
from weightsteer.weights.vector import WeightVector

KILLS = 20
# Slowed down, so that a kill falls into every phase; what is written, and in which order, is the same.
# It forks for each merge, so that none has to wait for imports, and kills its own child.
CHILD = """
import os, signal, sys, time
from weightsteer.merging import lanes, merge as module, shards
from weightsteer.weights.vector import WeightVector

def slowed(function, seconds):
    def call(*arguments):
        time.sleep(seconds)
        return function(*arguments)
    return call

lanes._workers = lambda: 3  # so many shards are half done when it is killed
shards.ShardFile.write = slowed(shards.ShardFile.write, 0.0005)
module.os.fsync = slowed(os.fsync, 0.002)
vector = WeightVector.load(sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        module.merge(sys.argv[1], [(vector, 1.5)], sys.argv[3])
        os._exit(0)
    if float(line) >= 0:
        time.sleep(float(line))
        os.kill(pid, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    tensors = {**llama_tensors(), **{f"model.extra.{i}.weight": torch.randn(40, 32).bfloat16() for i in range(40)}}
    vector = random_vector(tensors)
    write_checkpoint(tmp_path / "base", tensors, shards=10)
    vector.save(tmp_path / "vector")
    merge(tmp_path / "base", [(vector, 1.5)], tmp_path / "expected")
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_merge_killed_at_twenty_points_ends_with_the_same_files(inputs):
    """SIGKILL after a random time, again and again on one output until it is done; some resume, some start over."""
    out, partial, expected = inputs / "out", inputs / ".out.partial", content(inputs / "expected")
    generator = random.Random(0)
    kills = resumed = 0
    with merging(inputs, out) as run:
        begin = time.monotonic()
        assert run(-1) == 0
        took = time.monotonic() - begin
        assert content(out) == expected
        while kills < KILLS:
            shutil.rmtree(out)
            while not out.exists():
                journal = partial / "journal.jsonl"
                resumed += journal.exists() and len(journal.read_text().splitlines()) > 1
                exit_code = run(generator.uniform(0, took))
                assert exit_code in (0, -signal.SIGKILL)
                kills += exit_code != 0
            assert content(out) == expected  # whether it got through or was killed after the rename
            assert not partial.exists()
    assert resumed >= 3
    assert verify(out).outcome == "ok"


def test_a_torn_journal_counts_up_to_the_tear(inputs, monkeypatch):
    out, partial = inputs / "out", inputs / ".out.partial"
    vector = WeightVector.load(inputs / "vector")
    monkeypatch.setattr(merge_module, "_write_companions", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merge(inputs / "base", [(vector, 1.5)], out)
    journal = partial / "journal.jsonl"
    lines = journal.read_text().splitlines()
    assert len(lines) == 11
    journal.write_text("\n".join([*lines[:4], lines[4][:30]]))
    kept = [json.loads(line)["shard"] for line in lines[1:4]]
    stamps = {name: (partial / name).stat().st_mtime_ns for name in kept}
    monkeypatch.undo()
    merge(inputs / "base", [(vector, 1.5)], out)
    assert content(out) == content(inputs / "expected")
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == stamps


def test_two_merges_into_one_folder_do_not_meet(inputs):
    vector = WeightVector.load(inputs / "vector")
    with locked(inputs / ".out.partial"), pytest.raises(StageError, match="another run is writing here"):
        merge(inputs / "base", [(vector, 1.5)], inputs / "out")


@contextlib.contextmanager
def merging(inputs: Path, out: Path) -> Iterator[Callable[[float], int]]:
    """What it yields runs one merge, killed after so many seconds (never when negative): its exit code."""
    command = [sys.executable, "-c", CHILD, inputs / "base", inputs / "vector", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # until the fork there is one thread
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "ready\n"

        def run(kill_after_s: float) -> int:
            process.stdin.write(f"{kill_after_s}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield run
        process.stdin.close()
