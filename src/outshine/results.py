"""The rows of a study: one JSON line per finished run, appended under a lock.

Several processes may append to one file. A process that is killed while it writes leaves half a
line at the end, which readers pass over and the next writer removes.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from outshine.console import say
from outshine.degenerate import DIVERGED
from outshine.errors import UserError, WorldError
from outshine.files import read_errors, world_errors

FORMAT = 1
ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Row:
    """What is kept of one run of a study, for good.

    Attributes:
        run: The run's identity (`graph.Node.id`).
        folder: Where the run is, below the study's folder.
        stage: `single`, `multi` or `finetune`.
        chain: The stages up to this one.
        tasks: Names of its tasks.
        seed: Its seed.
        metrics: Task -> split -> metric -> fraction, with the rows `n`; the first metric of a
            task is its primary one.
        degenerate: Task -> why its result is none (`degenerate.reasons`); {} for a sound run.
        settings: Complete settings.
        teachers: Task -> identities of the runs that taught it.
        steps: Optimizer steps; `rows` and `tokens` likewise are those seen in training.
        train_s: Seconds of training, without evaluation.
        seconds: Seconds from start to row, on the machine that trained it.
        curve: At most 60 of (step, loss, gold_weight, lr).
        mixture: Task -> `rows`, `probability`, `passes`, `weight`.
        versions, git_commit, device, precision, num_threads, peak_memory_bytes, data: As in
            `run.json`.
        home: The study's folder in which the row stands; not part of the line.
    """

    run: str
    folder: str
    stage: str
    chain: str
    tasks: tuple[str, ...]
    seed: int
    metrics: dict[str, dict[str, dict[str, float]]]
    degenerate: dict[str, str]
    settings: dict[str, Any]
    teachers: dict[str, list[str]]
    steps: int
    rows: int
    tokens: int
    train_s: float
    seconds: float
    curve: list[list[float]]
    mixture: dict[str, dict[str, float]]
    versions: dict[str, str]
    git_commit: str | None
    device: str
    precision: str
    num_threads: int
    peak_memory_bytes: int
    data: dict[str, dict[str, str]]
    format: int = FORMAT
    home: Path = field(default=Path(), compare=False)

    @property
    def diverged(self) -> bool:
        """Whether training ended in a number that is not finite."""
        return any(reason.startswith(DIVERGED) for reason in self.degenerate.values())

    def primary(self, task: str) -> float:
        """The task's primary dev metric, as a fraction."""
        return next(iter(self.metrics[task]["dev"].values()))


_KEYS = tuple(f.name for f in fields(Row) if f.name != "home")


def append_row(folder: Path, row: Row) -> None:
    """Adds one line to a study's rows, whole or not at all, and flushes it to the disk."""
    content = {key: value for key, value in asdict(row).items() if key != "home"}
    ordered = {"format": FORMAT} | content
    line = json.dumps(ordered, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    path = folder / ROWS
    with world_errors(path), path.open("a+b") as file, _locked(file.fileno(), fcntl.LOCK_EX):
        _remove_torn_line(path, file)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_rows(folders: Sequence[Path]) -> dict[str, Row]:
    """The rows of several folders of one study, by run; of two for one run the first counts.

    Raises:
        UserError: If a line is damaged or of another format, with its number.
    """
    found: dict[str, Row] = {}
    for folder in folders:
        path = folder / ROWS
        if not path.exists():
            continue
        with read_errors(path), path.open("rb") as file, _locked(file.fileno(), fcntl.LOCK_SH):
            content = file.read()
        if path not in _known or _known[path][0] != content:
            _known[path] = content, _all_rows(content, folder, path)
        for run, row in _known[path][1].items():
            found.setdefault(run, row)
    return found


# Path -> content of the file when it was last read, and its rows: workers that wait ask for them
# all the time.
_known: dict[Path, tuple[bytes, dict[str, Row]]] = {}


def _all_rows(content: bytes, folder: Path, path: Path) -> dict[str, Row]:
    """Run -> row of one file."""
    whole, _, torn = content.rpartition(b"\n")
    if torn:
        say(f"note: the last line of {path} was cut off when its process died; passed over")
    found: dict[str, Row] = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        row = _parsed(line, folder, f"{path}:{number}")
        found.setdefault(row.run, row)
    return found


def _parsed(line: bytes, folder: Path, place: str) -> Row:
    try:
        content = json.loads(line)
        if content["format"] != FORMAT:
            raise UserError(
                f"cannot read the rows: format {content['format']}, expected {FORMAT} ({place})",
                "they were made by another version of outshine: update outshine, or start anew",
            )
        row = Row(**{key: content[key] for key in _KEYS})
        for name in row.tasks:
            float(row.metrics[name]["dev"]["n"] + row.primary(name))
        return replace(row, tasks=tuple(row.tasks), home=folder)
    except (ValueError, KeyError, TypeError, StopIteration):
        raise UserError(
            f"cannot read the rows: a damaged line, expected one run's JSON ({place})",
            "remove the line: its run is then made again",
        ) from None


def _remove_torn_line(path: Path, file: Any) -> None:
    """Cuts off what follows the last line's end, if anything does."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    kept = file.read().rfind(b"\n") + 1
    file.truncate(kept)
    say(f"note: the last line of {path} was cut off when its process died; removed")


@contextmanager
def _locked(handle: int, kind: int) -> Iterator[None]:
    fcntl.flock(handle, kind)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)


class Claims:
    """Who makes which run: locks on single bytes of one file, which go with their process.

    One object per process: a process that closes the file gives up all its claims.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".claims"
        with world_errors(self.path):
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)

    def take(self, run: str) -> bool:
        """Claims a run; False if another process has it.

        Raises:
            WorldError: If the file system has no locks.
        """
        try:
            fcntl.lockf(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(run))
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise WorldError(
                f"cannot claim a run: {error.strerror}, expected a file system with locks "
                f"({self.path})",
                "choose a folder on a local disk, or on NFS 4",
            ) from error
        return True

    def release(self, run: str) -> None:
        """Gives a run up."""
        fcntl.lockf(self.handle, fcntl.LOCK_UN, 1, _place(run))

    def close(self) -> None:
        """Gives all runs up."""
        os.close(self.handle)


def _place(run: str) -> int:
    """The byte that stands for a run; file offsets have 63 bits."""
    return int(run, 16) >> 1
