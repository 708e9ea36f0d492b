"""What people see: text and tables on stderr, a progress bar, or plain lines without a terminal.

Data goes to stdout; nothing here does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from outshine.processes import process_number

PLAIN_LINE_EVERY_S = 10.0

Watcher = Callable[[str, int, int, str], None]

_state: dict[str, Any] = {"quiet": False, "watcher": None}


def set_quiet(quiet: bool) -> None:
    """Whether notes, tables and progress are left out (errors are not)."""
    _state["quiet"] = quiet


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Hands all progress to a function, and leaves out notes and tables.

    Args:
        watcher: Is told what is being done, the units done, those in all, and a short state.
    """
    before = dict(_state)
    _state.update(quiet=True, watcher=watcher)
    try:
        yield
    finally:
        _state.update(before)


def console() -> Console:
    """The console on stderr; wide enough for tables when there is no terminal."""
    quiet = _state["quiet"] or process_number() > 0
    plain = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
    if plain.is_terminal:
        return plain
    return Console(stderr=True, highlight=False, soft_wrap=True, width=120, quiet=quiet)


def say(text: str) -> None:
    """One note for people."""
    console().print(text, markup=False)


def table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], num_text: int = 1
) -> Table:
    """A table whose first `num_text` columns are text and whose other columns are numbers."""
    from rich import box

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        made.add_column(name, justify="left" if i < num_text else "right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    return made


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table on stderr."""
    console().print(table(title, header, rows))


class Bar(Protocol):
    """What a piece of work reports to."""

    def advance(self, count: int) -> None:
        """So many more units are done."""

    def note(self, text: str) -> None:
        """A short state, such as loss and speed."""


class _Plain:
    """Plain lines, at most one every ten seconds, and one at the end of work that was slower."""

    def __init__(self, what: str, total: int, done: int) -> None:
        self.what, self.total, self.done, self.first = what, total, done, done
        self.text = self.said = ""
        self.start = self.last = time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last >= PLAIN_LINE_EVERY_S and self.done != self.total:
            self.last = now
            left = (now - self.start) * (self.total - self.done) / max(1, self.done - self.first)
            self._say(f"{clock(left)} left")

    def end(self) -> None:
        """Says what was done, unless the work was so quick that nothing was said of it."""
        seconds = time.monotonic() - self.start
        if seconds >= PLAIN_LINE_EVERY_S:
            self._say(f"took {clock(seconds)}")

    def _say(self, when: str) -> None:
        share = f": {self.done / self.total:.0%}, {when}" if self.total else ""
        line = f"{self.what}{share}{self.text}"
        if line != self.said:
            say(line)
        self.said = line

    def note(self, text: str) -> None:
        self.text = f", {text}"


class _Watched:
    def __init__(self, watcher: Watcher, what: str, total: int, done: int) -> None:
        self.watcher, self.what, self.total, self.done = watcher, what, total, done
        self.text = ""
        watcher(what, done, total, "")

    def advance(self, count: int) -> None:
        self.done += count
        self.watcher(self.what, self.done, self.total, self.text)

    def note(self, text: str) -> None:
        self.text = text


class _Rich:
    def __init__(self, bars: Progress, what: str, total: int, done: int) -> None:
        self.bars = bars
        self.task = bars.add_task(what, total=total or None, completed=done, note="")

    def advance(self, count: int) -> None:
        self.bars.advance(self.task, count)

    def note(self, text: str) -> None:
        self.bars.update(self.task, note=text)


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A progress bar with ETA on a terminal, plain lines elsewhere.

    Args:
        what: What is being done.
        total: Units of work; 0 where nobody knows, and then there is no ETA.
        done: Units done before, when work is resumed.
    """
    if _state["watcher"] is not None:
        yield _Watched(_state["watcher"], what, total, done)
        return
    screen = console()
    if not screen.is_terminal:
        plain = _Plain(what, total, done)
        yield plain
        plain.end()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=screen, transient=True) as bars:
        yield _Rich(bars, what, total, done)


def clock(seconds: float) -> str:
    """Seconds as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
