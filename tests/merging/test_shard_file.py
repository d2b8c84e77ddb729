"""What is written to a shard is what lies on the disk, whatever kind of disk it is."""

import errno
import itertools
import os
import threading
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from weightsteer.merging import shard_file
from weightsteer.merging.shard_file import ALIGNED, ShardFile, open_disk

BUFFER = 2 * ALIGNED


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "BUFFER_BYTES", BUFFER)


def write(path: Path, pieces: list[bytes]) -> str:
    """Write the pieces through one buffer that is used again and again; the digest that was told."""
    told: list[str] = []
    with open_disk() as disk:
        file = ShardFile(path, disk)
        for piece in pieces:
            array = np.frombuffer(piece, np.uint8).copy()
            file.write(array)
            array[:] = 0
        file.seal(told.append)
        disk.finish()
    return told[0]


def pieces_of(size: int) -> list[bytes]:
    content = np.random.default_rng(size).bytes(size)
    cuts = [0, *sorted(np.random.default_rng(0).integers(0, size + 1, 5).tolist()), size]
    return [content[a:b] for a, b in itertools.pairwise(cuts)]


@pytest.mark.parametrize("size", [0, 1, ALIGNED, BUFFER - 1, BUFFER, BUFFER + 1, 11 * BUFFER + 77])
def test_what_is_written_lies_there(tmp_path: Path, size: int):
    pieces = pieces_of(size)
    assert write(tmp_path / "a", pieces) == sha256(b"".join(pieces)).hexdigest()
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask()


def test_several_files_share_the_buffers(tmp_path: Path):
    told: dict[str, str] = {}
    with open_disk() as disk:
        for name in "abcdefgh":
            file = ShardFile(tmp_path / name, disk)
            file.write(name.encode() * 3 * BUFFER)
            file.seal(lambda sha, name=name: told.update({name: sha}))
        disk.finish()
    for name in "abcdefgh":
        assert (tmp_path / name).read_bytes() == name.encode() * 3 * BUFFER
        assert told[name] == sha256(name.encode() * 3 * BUFFER).hexdigest()


@pytest.mark.parametrize("refuses", ["opening", "writing"])
def test_where_the_page_cache_cannot_be_passed_by_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str
):
    if not shard_file.O_DIRECT:
        pytest.skip("this system has no O_DIRECT")
    import fcntl

    refused, create, pwrite = [], os.open, os.pwrite

    def opening(path, flags, *mode):
        if flags & shard_file.O_DIRECT:
            refused.append(path)
            raise OSError(errno.EINVAL, "Invalid argument")
        return create(path, flags, *mode)

    def writing(descriptor, data, at):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & shard_file.O_DIRECT:
            refused.append(at)
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite(descriptor, data, at)

    monkeypatch.setattr(os, "open", opening) if refuses == "opening" else monkeypatch.setattr(os, "pwrite", writing)
    pieces = pieces_of(5 * BUFFER + 3)
    assert write(tmp_path / "a", pieces) == sha256(b"".join(pieces)).hexdigest()
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)
    assert refused


def test_two_threads_find_out_at_once_that_the_page_cache_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pwrite, both = os.pwrite, threading.Barrier(2, timeout=10)

    def writing(descriptor, data, at):
        if at < 2 * BUFFER and at not in seen:
            seen.add(at)
            both.wait()
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite(descriptor, data, at)

    seen: set[int] = set()
    monkeypatch.setattr(os, "pwrite", writing)
    pieces = pieces_of(5 * BUFFER)
    assert write(tmp_path / "a", pieces) == sha256(b"".join(pieces)).hexdigest()
    assert seen == {0, BUFFER}


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: pwrite(descriptor, data[:ALIGNED], at))
    pieces = pieces_of(7 * BUFFER + 5)
    assert write(tmp_path / "a", pieces) == sha256(b"".join(pieces)).hexdigest()
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)


@pytest.mark.parametrize("files", [1, 2])
def test_a_disk_that_fails_is_an_error_and_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
):
    def fails(descriptor, data, at):
        raise OSError(errno.EIO, "Input/output error")

    before, told = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0, []
    monkeypatch.setattr(os, "pwrite", fails)

    def write_all() -> None:
        with open_disk() as disk:
            for name in range(files):
                file = ShardFile(tmp_path / str(name), disk)
                file.write(b"x" * 9)
                file.seal(told.append)
            disk.finish()

    with pytest.raises(OSError, match="Input/output error"):
        write_all()
    assert not told
    assert not before or len(os.listdir("/proc/self/fd")) == before


def test_who_waits_for_a_buffer_is_told_that_there_will_be_none(tmp_path: Path):
    told: list[OSError] = []

    def wait(disk: shard_file.Disk) -> None:
        try:
            disk.buffer()
        except OSError as error:
            told.append(error)

    with open_disk() as disk:
        for _ in range(1 + shard_file.BUFFERS):
            disk.buffer()
        waiting = [threading.Thread(target=wait, args=(disk,), daemon=True) for _ in range(3)]
        for thread in waiting:
            thread.start()
    for thread in waiting:
        thread.join(10)
    assert len(told) == 3


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
