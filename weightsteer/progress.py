"""Progress of long work: bars on a terminal, plain lines otherwise, nothing unless a display was opened."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

Advance = Callable[..., None]

# Lines per task when there is no terminal: enough to see that it moves, few enough for a log.
PLAIN_LINES = 4


class _Silent:
    @contextlib.contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        yield lambda steps=1, note="": None

    def say(self, text: str) -> None:
        pass


class _Plain:
    """Lines for the outermost task only: a log is read by the hour, not by the second."""

    def __init__(self) -> None:
        self.depth = 0

    @contextlib.contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        done, shown, start = 0, 0, time.monotonic()
        self.depth += 1
        depth = self.depth

        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal done, shown
            done += steps
            if depth == 1 and done * PLAIN_LINES // max(total, 1) > shown:
                shown = done * PLAIN_LINES // max(total, 1)
                self.say(f"{label}: {done}/{total} in {time.monotonic() - start:.0f} s {note}".rstrip())

        try:
            yield advance
        finally:
            self.depth -= 1

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Bars:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=Console(stderr=True),
        )

    @contextlib.contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        bar = self.bars.add_task(label, total=total, note="")
        try:
            yield lambda steps=1, note="": self.bars.update(bar, advance=steps, note=note)
        finally:
            self.bars.remove_task(bar)

    def say(self, text: str) -> None:
        self.bars.console.print(text, markup=False, highlight=False)


_SILENT = _Silent()
_display: ContextVar[_Silent | _Plain | _Bars] = ContextVar("display", default=_SILENT)


@contextlib.contextmanager
def display(quiet: bool = False) -> Iterator[None]:
    """Show the progress of everything done inside: bars on a terminal, lines otherwise, nothing when `quiet`."""
    shown = _Silent() if quiet else _Bars() if sys.stderr.isatty() else _Plain()
    token = _display.set(shown)
    try:
        with shown.bars if isinstance(shown, _Bars) else contextlib.nullcontext():
            yield
    finally:
        _display.reset(token)


def task(label: str, total: int) -> contextlib.AbstractContextManager[Advance]:
    """Open a task of `total` steps; what it yields is called as `advance(steps=1, note="")`."""
    return _display.get().task(label, total)


def say(text: str) -> None:
    """One line to whoever watches."""
    _display.get().say(text)
