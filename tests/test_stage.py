"""Stages: whole or not there, never someone else's, resumed after anything that can stop them."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors

from weightsteer.errors import StageError
from weightsteer.stage import (
    MANIFEST,
    command,
    digest,
    discard,
    file_digest,
    is_finished,
    locked,
    read_manifest,
    run_stage,
    to_json,
    versions,
)

INPUTS = {"k": 1.5, "files": ["a"], "nested": {"rank": 8}}


def write_a(path: Path) -> None:
    (path / "a.txt").write_text("a", encoding="utf-8")


def nothing(path: Path) -> None:
    pytest.fail("a finished stage must not be run again")


def test_a_stage_is_renamed_into_place_with_its_manifest_last(tmp_path: Path):
    folder = tmp_path / "weights" / "vector"

    def work(path: Path) -> None:
        assert path != folder
        assert path.parent == folder.parent
        assert not folder.exists()
        (path / "sub").mkdir()
        write_a(path / "sub")
        assert not (path / MANIFEST).exists()

    assert run_stage(folder, INPUTS, work) is True
    assert [p.name for p in folder.parent.iterdir()] == ["vector"]
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest["inputs"] == INPUTS
    assert manifest["inputs_digest"] == digest(INPUTS)
    assert manifest["files"] == {"sub/a.txt": file_digest(folder / "sub" / "a.txt")}
    assert manifest["versions"]["weightsteer"] == versions()["weightsteer"]
    assert {"git_revision", "python", "started", "seconds"} <= manifest.keys()


def test_a_finished_stage_with_the_same_inputs_is_skipped(tmp_path: Path):
    run_stage(tmp_path / "s", INPUTS, write_a)
    assert run_stage(tmp_path / "s", {**INPUTS, "files": ("a",)}, nothing) is False


def test_other_inputs_are_an_error_that_names_the_difference(tmp_path: Path):
    run_stage(tmp_path / "s", INPUTS, write_a)
    with pytest.raises(StageError) as caught:
        run_stage(tmp_path / "s", {"k": 2, "files": ["a"], "nested": {"rank": 16}, "seed": 0}, nothing)
    assert str(caught.value) == (
        f"{tmp_path / 's'}: holds a finished stage with other inputs\n"
        "  k: 1.5 there, 2 asked for\n"
        "  nested.rank: 8 there, 16 asked for\n"
        "  seed: null there, 0 asked for\n"
        "Expected the same inputs. Choose another --out, or delete this folder to make it anew"
    )
    assert (tmp_path / "s" / "a.txt").is_file(), "what is finished stays"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), FileNotFoundError(2, "gone")])
def test_work_that_raises_leaves_nothing(tmp_path: Path, error: BaseException):
    def work(path: Path) -> None:
        write_a(path)
        raise error

    with pytest.raises(type(error)) as caught:
        run_stage(tmp_path / "s", INPUTS, work)
    assert caught.value is error, "an error that is not the disk's keeps its type"
    assert list(tmp_path.iterdir()) == []


NO_SPACE = os.strerror(errno.ENOSPC)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, NO_SPACE),
        PermissionError(errno.EACCES, "Permission denied"),
        safetensors.SafetensorError(f"Error while serializing: I/O error: {NO_SPACE} (os error 28)"),
        Exception(f"{NO_SPACE} (os error 28)"),  # tokenizers
    ],
    ids=["full", "forbidden", "safetensors", "tokenizers"],
)
def test_a_disk_that_takes_no_more(tmp_path: Path, error: Exception):
    def work(path: Path) -> None:
        write_a(path)
        raise error

    with pytest.raises(StageError) as caught:
        run_stage(tmp_path / "s", INPUTS, work)
    said = "Permission denied" if isinstance(error, PermissionError) else NO_SPACE
    assert str(caught.value).startswith(f"{tmp_path / 's'}: could not be written (")
    assert f"{said}). Expected a writable disk with room left. Free some space" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_the_manifest_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, NO_SPACE)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StageError, match="No space left on device"):
        run_stage(tmp_path / "s", INPUTS, write_a)
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_no_folder_can_be(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StageError, match="file/s: could not be written"):
        run_stage(tmp_path / "file" / "s", INPUTS, write_a)
    with pytest.raises(StageError, match="file/out: cannot be written"), locked(tmp_path / "file" / "out"):
        pass


def test_leftovers_of_an_unfinished_stage_are_made_anew(tmp_path: Path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.txt").write_text("half", encoding="utf-8")
    (tmp_path / ".s.partial").mkdir()
    (tmp_path / ".s.partial" / "junk").touch()
    assert run_stage(tmp_path / "s", INPUTS, write_a)
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["a.txt", MANIFEST]
    assert (tmp_path / "s" / "a.txt").read_text(encoding="utf-8") == "a"
    assert not (tmp_path / ".s.partial").exists()


def test_a_folder_of_the_users_own_is_never_removed(tmp_path: Path):
    (tmp_path / "report").mkdir()
    thesis = tmp_path / "report" / "thesis.tex"
    thesis.write_text("years of work", encoding="utf-8")
    discard(tmp_path / "report")
    with pytest.raises(StageError, match=r"report: holds thesis.tex, which this stage does not write. .* Move it away"):
        run_stage(tmp_path / "report", INPUTS, write_a)
    assert thesis.read_text(encoding="utf-8") == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_discarding_a_finished_stage(tmp_path: Path):
    run_stage(tmp_path / "s", INPUTS, write_a)
    discard(tmp_path / "s")
    assert not (tmp_path / "s").exists()
    assert run_stage(tmp_path / "s", {"other": 1}, write_a)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_finished_stage_that_lost_a_file(tmp_path: Path):
    run_stage(tmp_path / "s", INPUTS, write_a)
    (tmp_path / "s" / "a.txt").unlink()
    with pytest.raises(StageError, match=r"s: a.txt missing from a finished stage. Delete the folder to redo it"):
        is_finished(tmp_path / "s", INPUTS)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"inputs": 3, "files": {}}', '{"inputs": {}, "files": []}'])
def test_a_damaged_manifest(tmp_path: Path, text: str):
    (tmp_path / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(StageError, match=r"manifest.json: not a manifest that weightsteer wrote. Delete the folder"):
        read_manifest(tmp_path)


def test_two_runs_in_one_folder(tmp_path: Path):
    with locked(tmp_path / "out"):
        with pytest.raises(StageError) as caught, locked(tmp_path / "out"):
            pytest.fail("both runs hold the folder")
        assert str(caught.value).startswith(
            f"{tmp_path / 'out'}: another run is writing here. Expected one run a folder"
        )
    with locked(tmp_path / "out"):
        pass


def test_the_lock_is_free_again_after_an_error_which_passes_as_it_is(tmp_path: Path):
    with pytest.raises(PermissionError, match="inside"), locked(tmp_path / "out"):
        raise PermissionError("inside")
    with locked(tmp_path / "out"):
        pass


def test_a_killed_stage_leaves_no_manifest_and_is_made_anew(tmp_path: Path):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom weightsteer.stage import locked, run_stage\n"
        "def work(path):\n    (path / 'a.txt').write_text('half')\n    print('working', flush=True)\n"
        "    time.sleep(60)\n"
        "out = Path(sys.argv[1])\nwith locked(out):\n    run_stage(out / 's', {'x': 1}, work)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"working\n"
    with pytest.raises(StageError, match="another run is writing here"), locked(tmp_path):
        pass
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    assert not (tmp_path / "s").exists()
    assert not list(tmp_path.rglob(MANIFEST))
    with locked(tmp_path):  # the lock of a killed process is free
        assert run_stage(tmp_path / "s", {"x": 1}, write_a)
    assert (tmp_path / "s" / "a.txt").read_text(encoding="utf-8") == "a"


def test_seconds_are_those_of_the_work(tmp_path: Path):
    run_stage(tmp_path / "s", INPUTS, lambda path: time.sleep(0.05))
    manifest = json.loads((tmp_path / "s" / MANIFEST).read_text(encoding="utf-8"))
    assert 0.05 <= manifest["seconds"] < 5


def test_digest_does_not_depend_on_the_order_of_keys_or_on_tuples():
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert to_json({1: Path("x"), "y": (None, True)}) == {"1": "x", "y": [None, True]}


def test_inputs_are_compared_as_json(tmp_path: Path):
    run_stage(tmp_path / "s", {"path": tmp_path, "k": (1.0, 2)}, write_a)
    assert is_finished(tmp_path / "s", {"path": str(tmp_path), "k": [1, 2.0]})


def test_a_run_names_its_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/weightsteer", "run", "x.yaml"])
    assert command() == "weightsteer run x.yaml"
    monkeypatch.setattr(sys, "argv", ["/somewhere/pytest"])
    assert command() == "weightsteer.run (from Python)"
