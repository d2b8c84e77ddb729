"""Files written from front to back: digested on the way, and past the page cache where the disk allows it.

What is written is not read again soon. In the page cache it would cost as much processor time as the arithmetic, and
would push out what other programs keep there.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from queue import Queue
from time import perf_counter

import numpy as np
from jaxtyping import UInt8

# Where O_DIRECT wants addresses, offsets and lengths to begin and end; no disk asks for more.
ALIGNED = 4096
# What goes to the disk at once; so large that one write after another keeps it busy.
BUFFER_BYTES = 8 << 20
# Beside the one that each file fills: one on its way to the disk, one that is next.
BUFFERS = 2
O_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux has it

Buffer = UInt8[np.ndarray, " n"]


class Disk:
    """Two threads that write what is handed to them, and the buffers in which they get it. For files on any thread."""

    def __init__(self, files: int) -> None:
        self._threads = ThreadPoolExecutor(2)
        self._free: Queue[Buffer] = Queue()
        for _ in range(files + BUFFERS):
            self._free.put(_aligned(BUFFER_BYTES))
        self._failure: OSError | None = None
        self._sealed: list[Future[None]] = []
        self._open: set[int] = set()

    def create(self, path: Path) -> int:
        """Descriptor of a new file, which is closed with the disk at the latest."""
        descriptor = _create(path)
        self._open.add(descriptor)
        return descriptor

    def release(self, descriptor: int) -> None:
        """Close a file."""
        self._open.remove(descriptor)
        os.close(descriptor)

    def buffer(self) -> Buffer:
        """Room for the next bytes, once there is some; an OSError where earlier ones could not be written."""
        buffer = self._free.get()
        if self._failure is not None:
            self._free.put(buffer)
            raise self._failure
        return buffer

    def put(self, buffer: Buffer, write: Callable[[Buffer], None]) -> Future[None]:
        """Have `write` bring the buffer to the disk, after which it is free again."""
        return self._threads.submit(self._write, buffer, write)

    def _write(self, buffer: Buffer, write: Callable[[Buffer], None]) -> None:
        try:
            write(buffer)
        except OSError as error:
            self._failure = error
            raise
        finally:
            self._free.put(buffer)

    def after(self, work: Callable[[], None]) -> None:
        """Do this when everything put so far has been begun."""
        self._sealed.append(self._threads.submit(work))

    def finish(self) -> None:
        """Wait until all is done; an OSError where something could not be."""
        for future in self._sealed:
            future.result()

    def close(self) -> None:
        """End the threads, and whatever a failure left open; who still waits for a buffer gets an OSError."""
        self._failure = self._failure or OSError(errno.ECANCELED, "Writing was given up")
        self._threads.shutdown(cancel_futures=True)
        self._free.put(_aligned(0))  # wakes one of them, who puts it back for the next
        for descriptor in list(self._open):
            self.release(descriptor)


@contextlib.contextmanager
def open_disk(files: int = 1) -> Iterator[Disk]:
    """A disk for so many files at once, whose threads end with the block."""
    disk = Disk(files)
    try:
        yield disk
    finally:
        disk.close()


class ShardFile:
    """A new file that takes bytes in their order."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._disk = disk
        self._descriptor = disk.create(path)
        self._digest, self._size = sha256(), 0
        self._buffer, self._filled = disk.buffer(), 0
        self._writes: list[Future[None]] = []
        self.hash_s = 0.0
        self.waited_s = 0.0
        """Time in which there was no buffer to fill."""

    def write(self, data: bytes | Buffer) -> None:
        """Add bytes to the end; they may be overwritten as soon as this returns."""
        begin = perf_counter()
        self._digest.update(data)
        self.hash_s += perf_counter() - begin
        rest = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
        while len(rest):
            room = min(len(rest), BUFFER_BYTES - self._filled)
            self._buffer[self._filled : self._filled + room] = rest[:room]
            self._filled, rest = self._filled + room, rest[room:]
            if self._filled == BUFFER_BYTES:
                self._flush(BUFFER_BYTES)
                begin = perf_counter()
                self._buffer = self._disk.buffer()
                self.waited_s += perf_counter() - begin

    def seal(self, then: Callable[[str], None]) -> None:
        """Bring the end to the disk; `then` gets the sha256 once all of it is there. Does not wait."""
        length = self._filled
        self._buffer[length : _up(length)] = 0  # written too, then cut off: O_DIRECT knows whole blocks only
        self._flush(length)
        writes, size, sha = list(self._writes), self._size, self._digest.hexdigest()

        def end() -> None:
            for write in writes:
                write.result()
            os.ftruncate(self._descriptor, size)
            os.fsync(self._descriptor)
            self._disk.release(self._descriptor)
            then(sha)

        self._disk.after(end)

    def _flush(self, length: int) -> None:
        at, self._size, self._filled = self._size, self._size + length, 0
        self._writes.append(
            self._disk.put(self._buffer, lambda buffer: _write(self._descriptor, buffer[: _up(length)], at))
        )


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags | O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666)  # a file system in memory, for one


def _write(descriptor: int, data: Buffer, at: int) -> None:
    view, done, direct = data.data, 0, True
    while done < len(view):
        try:
            done += os.pwrite(descriptor, view[done:], at + done)
        except OSError as error:
            if error.errno != errno.EINVAL or not direct:
                raise
            # Opened with O_DIRECT, which the writing refuses; the other thread may have found that out already.
            fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~O_DIRECT)
            direct = False


def _aligned(size: int) -> Buffer:
    memory = np.empty(size + ALIGNED, np.uint8)
    start = -memory.ctypes.data % ALIGNED
    return memory[start : start + size]


def _up(length: int) -> int:
    return -(-length // ALIGNED) * ALIGNED
