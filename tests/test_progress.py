"""Progress: nothing unless a display was opened, lines in a log, bars on a terminal."""

import sys

import pytest

from weightsteer import progress


def work(n: int = 10) -> None:
    progress.say("starting")
    with progress.task("training", n) as advance:
        for step in range(n):
            advance(1, note=f"loss {step}")


def test_nothing_is_shown_unless_asked_for(capfd: pytest.CaptureFixture[str]):
    work()
    with progress.display(quiet=True):
        work()
    assert capfd.readouterr() == ("", "")


def test_a_log_gets_a_few_plain_lines_on_stderr(capsys: pytest.CaptureFixture[str]):
    with progress.display():
        work()
    work()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "starting"
    assert lines[-1].startswith("training: 10/10 in 0 s")
    assert lines[-1].endswith("loss 9")
    assert 2 <= len(lines) <= 1 + progress.PLAIN_LINES


def test_a_terminal_gets_bars_that_are_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.display():
        work()
        progress.say("[not] markup")
    out, err = capsys.readouterr()
    assert out == ""
    assert "starting" in err
    assert "[not] markup" in err


def test_a_display_ends_with_its_block_also_after_an_error(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ZeroDivisionError), progress.display():
        _ = 1 / 0
    work()
    assert capsys.readouterr().err == ""
