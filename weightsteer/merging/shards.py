"""The shards of a merge, several at once: a thread for each reads, adds, hashes and hands the bytes to the disk."""

import math
from collections import Counter
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Lock
from time import perf_counter

import torch

from weightsteer import progress
from weightsteer.merging.arithmetic import Applied, compute
from weightsteer.merging.journal import Journal
from weightsteer.merging.lanes import CPU, in_order, open_lanes, share_out, single_threads
from weightsteer.merging.plan import Plan
from weightsteer.merging.shard_file import Disk, ShardFile, open_disk

# Multiply-adds from which moving the weights over the bus and starting CUDA pays: some ten seconds of two cores.
CUDA_WORTHWHILE = 1e12


def write_shards(plan: Plan, folder: Path, journal: Journal) -> dict[str, float]:
    """Write the shards that are not finished yet, and say where the time went, in seconds summed over threads."""
    left = [shard for shard in plan.shards if shard not in journal.finished]
    at_once, helpers = share_out(len(left))
    with (
        progress.task("Merging, MiB", plan.data_bytes >> 20) as advance,
        open_disk(at_once) as disk,
        single_threads(at_once) as threads,
    ):
        work = _Work(plan, folder, journal, disk, advance, _device(plan), helpers)
        writing = []
        try:
            for shard in left:
                writing.append(threads.submit(work.write, shard))
            for shard in as_completed(writing):
                shard.result()
        except BaseException:  # Ctrl-C too: the others end with the chunk that they are at
            work.stopped.set()
            raise
        begin = perf_counter()
        disk.finish()
        work.seconds["disk"] += perf_counter() - begin
    return dict(work.seconds)


@dataclass
class _Work:
    """What the threads share."""

    plan: Plan
    folder: Path
    journal: Journal
    disk: Disk
    advance: progress.Advance
    device: torch.device
    helpers: int
    """Threads that compute for the one which writes a shard."""
    stopped: Event = field(default_factory=Event)
    seconds: Counter[str] = field(default_factory=lambda: Counter(read=0.0, compute=0.0, hash=0.0, disk=0.0))
    done: int = 0
    """Bytes."""
    _one_at_a_time: Lock = field(default_factory=Lock)

    def write(self, shard: str) -> None:
        """Write one shard whole, unless another one has failed."""
        try:
            if not self.stopped.is_set():
                self._write(shard)
        except BaseException:
            self.stopped.set()  # at once, by whoever fails: the buffer of a file that is given up does not come back
            raise

    def _write(self, shard: str) -> None:
        with open_lanes(self.device, self.helpers) as lanes:
            file, applied = ShardFile(self.folder / shard, self.disk), Applied()
            file.write(self.plan.header(shard))
            chunks = (chunk for target in self.plan.shards[shard] for chunk in self.plan.chunks(target))
            for _, (data, part) in in_order(compute, chunks, lanes):
                if self.stopped.is_set():
                    return
                file.write(data.numpy())
                applied += part
                self._count(len(data))
            file.seal(partial(self.journal.add, shard, applied))
        with self._one_at_a_time:
            self.seconds.update(read=sum(lane.read_s for lane in lanes), compute=sum(lane.compute_s for lane in lanes))
            self.seconds.update(hash=file.hash_s, disk=file.waited_s)

    def _count(self, size: int) -> None:
        with self._one_at_a_time:
            self.advance((self.done + size >> 20) - (self.done >> 20))
            self.done += size


def _device(plan: Plan) -> torch.device:
    if not torch.cuda.is_available():
        return CPU
    targets = [t for targets in plan.shards.values() for t in targets if t.pieces]
    ranks = [sum(getattr(e, "rank", 1) for _, e in plan.terms(t.pieces[0][1])) for t in targets]
    work = sum(math.prod(t.source.shape) * rank for t, rank in zip(targets, ranks, strict=True))
    return torch.device("cuda") if work > CUDA_WORTHWHILE else CPU
