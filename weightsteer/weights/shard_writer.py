"""Shards on their way to the disk, and the journal of those that arrived."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

from weightsteer.weights.arithmetic import Applied

JOURNAL = "journal.jsonl"
SYNC_BYTES = 128 << 20  # written back while the next bytes are computed, instead of all at the end


class Journal:
    """Which shards of a job are whole: one line each, written once the shard is on the disk."""

    def __init__(self, folder: Path, job: str) -> None:
        self.path = folder / JOURNAL
        self.finished: dict[str, tuple[str, Applied]] = {}
        """sha256 and what rounding left, by shard."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        if lines[:1] == [job]:
            self.finished = dict(_records(lines[1:]))
        whole = [job, *(_record(shard, *found) for shard, found in self.finished.items())]
        self.path.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")

    def add(self, shard: str, applied: Applied, sha256: str) -> None:
        """Note that `shard` is on the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_record(shard, sha256, applied) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.finished[shard] = (sha256, applied)


class ShardWriter:
    """One shard, written and hashed in order, and brought to the disk by a thread of `disk` while more is computed."""

    def __init__(self, path: Path, disk: ThreadPoolExecutor) -> None:
        self.file = path.open("wb")
        self.write_s = 0.0
        self._disk = disk
        self._digest = hashlib.sha256()
        self._unsynced = 0
        self._syncs: list[Future[None]] = []
        self._sealed = False

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._sealed:
            self.file.close()

    def write(self, data: memoryview) -> None:
        """Append `data`."""
        begin = perf_counter()
        self._digest.update(data)
        self.file.write(data)
        self._unsynced += len(data)
        if self._unsynced > SYNC_BYTES and all(sync.done() for sync in self._syncs):
            self._syncs.append(self._disk.submit(os.fsync, self.file.fileno()))
            self._unsynced = 0
        self.write_s += perf_counter() - begin

    def seal(self, arrived: Callable[[str], None]) -> Future[None]:
        """Bring the shard to the disk, close it and call `arrived` with its sha256, in the background."""
        self._sealed = True
        return self._disk.submit(self._close, arrived)

    def _close(self, arrived: Callable[[str], None]) -> None:
        with self.file:
            for sync in self._syncs:
                sync.result()
            self.file.flush()
            os.fsync(self.file.fileno())
        arrived(self._digest.hexdigest())


def _record(shard: str, sha256: str, applied: Applied) -> str:
    return json.dumps({"shard": shard, "sha256": sha256, "applied": vars(applied)})


def _records(lines: list[str]) -> Iterator[tuple[str, tuple[str, Applied]]]:
    """The records up to the first line that a crash cut short."""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            return
        yield record["shard"], (record["sha256"], Applied(**record["applied"]))
