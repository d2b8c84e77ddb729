"""Work on a few threads whose results arrive in order: reading and computing overlap in bounded memory."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from weightsteer.errors import CheckpointError

CPU = torch.device("cpu")
OPEN_FILES = 2  # the shard that is read, and the one that is compared with it
AHEAD_BYTES = 16 << 20  # of a file, which the disk fetches while what comes before them is worked on
MAX_WORKERS = 8  # beyond this they wait for one another, and for the disk

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Lane:
    """What one piece of work in flight needs: buffers and an open file that are used again, and the time spent."""

    device: torch.device = CPU
    read_s: float = 0.0
    compute_s: float = 0.0
    _buffers: dict[Hashable, Tensor] = field(default_factory=dict)
    _files: dict[Path, FileIO] = field(default_factory=dict)

    def read(self, file: Path, start: int, stop: int, buffer: str = "in") -> UInt8[Tensor, " n"]:
        """Bytes `start` to `stop` of `file`, in one of this lane's buffers."""
        begin = perf_counter()
        data = self.buffer(buffer, stop - start, torch.uint8, CPU)
        view, done = data.numpy().data, 0
        handle = self._open(file, start)
        with contextlib.suppress(AttributeError, OSError):  # a hint, which not every system takes
            os.posix_fadvise(handle.fileno(), stop, AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
        while done < len(view):
            count = handle.readinto(view[done:])
            if not count:
                raise CheckpointError(f"{file}: was cut short while it was read. Expected it to stay as it is")
            done += count
        self.read_s += perf_counter() - begin
        return data

    def buffer(self, name: Hashable, elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for `elements`, its content left over from the last use."""
        held = self._buffers.get(name)
        if held is None or len(held) < elements or held.dtype != dtype:
            self._buffers[name] = held = torch.empty(elements, dtype=dtype, device=device)
        return held[:elements]

    def _open(self, file: Path, at: int) -> FileIO:
        if file not in self._files:
            if len(self._files) == OPEN_FILES:
                self.close()
            self._files[file] = FileIO(file)
        self._files[file].seek(at)
        return self._files[file]

    def close(self) -> None:
        """Close the files; the lane can be used again."""
        for file in self._files.values():
            file.close()
        self._files.clear()


@contextlib.contextmanager
def open_lanes(device: torch.device = CPU, threads: int | None = None) -> Iterator[list[Lane]]:
    """Two lanes for each of `threads`: one under work, one whose result waits for its turn; all by default.

    A single lane for none, where the work is done by whoever takes the results.
    """
    lanes = [Lane(device) for _ in range(max(1, 2 * (_workers() if threads is None else threads)))]
    try:
        yield lanes
    finally:
        for lane in lanes:
            lane.close()


def in_order(
    work: Callable[[Item, Lane], Result], items: Iterable[Item], lanes: list[Lane]
) -> Generator[tuple[Item, Result], None, None]:
    """`work(item, lane)` for every item, on a thread for every two lanes; results in the order of the items.

    A result may lie in its lane's buffers: it is valid until the next one is asked for.
    """
    if len(lanes) == 1:
        yield from ((item, work(item, lanes[0])) for item in items)
        return
    free, running = deque(lanes), deque()
    with single_threads(len(lanes) // 2) as threads:
        try:
            for item in items:
                if not free:
                    first, lane, future = running.popleft()
                    yield first, future.result()
                    free.append(lane)
                lane = free.popleft()
                running.append((item, lane, threads.submit(work, item, lane)))
            for first, _, future in running:
                yield first, future.result()
        finally:
            for _, _, future in running:
                future.cancel()


@contextlib.contextmanager
def single_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """So many threads, on each of which torch computes by itself: it keeps its number of threads per thread."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            yield threads
    finally:
        torch.set_num_threads(before)  # the setting of one is also that of threads that are still to come


def share_out(pieces: int) -> tuple[int, int]:
    """How many pieces of work go on at once, each on a thread of its own, and how many more threads each may have."""
    at_once = max(1, min(pieces, _workers()))
    return at_once, _workers() // at_once - 1


def _workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, cores, torch.get_num_threads()))
