"""The journal of an unfinished merge: which of its shards are on the disk."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

from weightsteer.merging.arithmetic import Applied

JOURNAL = "journal.jsonl"


class Journal:
    """Which shards of a job are whole: one line each, written once the shard is on the disk."""

    def __init__(self, folder: Path, job: str) -> None:
        self.path = folder / JOURNAL
        self._one_at_a_time = Lock()
        self.finished: dict[str, tuple[str, Applied]] = {}
        """sha256 and what rounding left, by shard."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        if lines[:1] == [job]:
            self.finished = dict(_records(lines[1:]))
        whole = [job, *(_record(shard, *found) for shard, found in self.finished.items())]
        self.path.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")

    def add(self, shard: str, applied: Applied, sha256: str) -> None:
        """Note that `shard` is on the disk. From any thread."""
        with self._one_at_a_time, self.path.open("a", encoding="utf-8") as file:
            file.write(_record(shard, sha256, applied) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.finished[shard] = (sha256, applied)


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
