"""Rows for `outshine predict`: JSONL, csv, tsv, Parquet or plain lines, in bounded memory.

A row that cannot be read is handed on as its error, so that one place decides whether to stop.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from outshine.cells import cell_text, existing_file, unicode_json
from outshine.console import say
from outshine.errors import UserError

STANDARD_INPUT = "standard input"
FORMATS = ("jsonl", "csv", "tsv", "parquet", "lines")
_BY_ENDING = {f".{name}": name for name in FORMATS[:4]}
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_FINGERPRINT_BYTES = 65536

# (line, or row of a Parquet file, from 1; what it holds, or why that cannot be read)
NumberedRow = tuple[int, "str | dict[str, Any] | UserError"]


@dataclass(frozen=True)
class Input:
    """Opened rows.

    Attributes:
        place: The file's name, for messages.
        format: One of FORMATS.
        columns: Of a table; None where each row has its own, or is a text.
        rows: The rows, to be read once.
        size: How much there is to read, in bytes (Parquet: rows); 0 where nobody knows.
        position: () -> how much of it is read.
    """

    place: str
    format: str
    columns: tuple[str, ...] | None
    rows: Iterator[NumberedRow]
    size: int
    position: Callable[[], int]


@contextmanager
def open_input(
    path: Path | None,
    format: str | None,
    wanted: Collection[str] = (),
    ids: Collection[str] = ("id",),
) -> Iterator[Input]:
    """Opens a file of rows.

    Without a format the ending decides (.jsonl, .csv, .tsv, .parquet); else, and for standard
    input, what begins with `{` is JSONL, and anything else has one text per line, which is said.

    Args:
        path: The file; None is standard input.
        format: One of FORMATS, or None.
        wanted: Columns to read of a Parquet file, where it has them.
        ids: Columns with ids, which are read, too.

    Raises:
        UserError: If the file is missing or is not of its format from the start on.
    """
    place = str(path) if path else STANDARD_INPUT
    format = format or (_BY_ENDING.get(path.suffix.lower()) if path else None)
    with _opened(path) as file:
        if format == "parquet":
            yield _parquet(file, place, wanted, ids)
            return
        lines = _Lines(file, place)
        if format is None:
            format = "jsonl" if lines.peek().removeprefix(b"\xef\xbb\xbf")[:1] == b"{" else "lines"
            if format == "lines":
                say(f"note: reading {place} as one text per line (JSONL begins with {{)")
        columns, read = _READERS[format](lines, _SEPARATORS.get(format, ""))
        yield Input(place, format, columns, _numbered(read, lines), _size(file), lines.position)


def fingerprint(path: Path | None) -> dict[str, Any] | None:
    """What tells one content of a file from another; None for what cannot be read again."""
    if path is None or not path.is_file():
        return None
    status = path.stat()
    with path.open("rb") as file:
        start = hashlib.sha256(file.read(_FINGERPRINT_BYTES)).hexdigest()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "first_bytes": start}


@contextmanager
def _opened(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdin.buffer
        return
    if not path.exists() or path.is_dir():
        existing_file(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}", "check the path and its permissions"
        ) from None
    with file:
        yield file


def _size(file: BinaryIO) -> int:
    """Bytes of a regular file, 0 for pipes and the like."""
    try:
        status = os.fstat(file.fileno())
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


class _Lines:
    """Lines of text with their numbers; goes on behind a line that is no UTF-8."""

    def __init__(self, file: BinaryIO, place: str) -> None:
        self.lines: Iterator[bytes] = iter(file)
        self.place = place
        self.number = 0
        self.num_bytes = 0

    def peek(self) -> bytes:
        first = next(self.lines, b"")
        self.lines = chain([first] if first else [], self.lines)
        return first.lstrip()

    def position(self) -> int:
        return self.num_bytes

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = next(self.lines)
        self.number += 1
        self.num_bytes += len(raw)
        try:
            return raw.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise self.error("invalid UTF-8, expected UTF-8", "save the file as UTF-8") from None

    def error(self, what: str, hint: str, line: int = 0) -> UserError:
        place = f"{self.place}:{line or self.number}"
        return UserError(f"cannot read {self.place}: {what} ({place})", hint)


def _numbered(read: Callable[[], str | dict[str, Any]], lines: _Lines) -> Iterator[NumberedRow]:
    while True:
        row: str | dict[str, Any] | UserError
        start = lines.number + 1
        try:
            row = read()
        except StopIteration:
            return
        except UserError as error:
            if lines.number > start:  # an open quote swallows good rows, which nobody may skip
                raise
            row = error
        yield start, row


Opened = tuple[tuple[str, ...] | None, Callable[[], "str | dict[str, Any]"]]


def _plain(lines: _Lines, _: str) -> Opened:
    def read() -> str:
        line = next(lines).rstrip("\r\n")
        if not line.strip():
            raise lines.error("an empty line, expected a text", "remove the line")
        return line

    return None, read


def _objects(lines: _Lines, _: str) -> Opened:
    def read() -> dict[str, Any]:
        line = next(lines)
        if not line.strip():
            raise lines.error("an empty line, expected a JSON object", "remove the line")
        try:
            row = parse_json(line)
            if not isinstance(row, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            raise lines.error(
                f"{error}, expected one JSON object a line", 'for example {"id": 1, "text": "..."}'
            ) from None
        return row

    return None, read


def parse_json(text: str) -> Any:
    """Reads JSON whose numbers are finite and whose texts are Unicode.

    Raises:
        ValueError: If it is none, or is nested too deeply.
    """
    return unicode_json(text, parse_constant=_refuse_constant, parse_float=_finite)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value


def _table(lines: _Lines, separator: str) -> Opened:
    reader = csv.reader(lines, delimiter=separator, strict=True)
    start = 1

    def cells() -> list[str]:
        nonlocal start
        start = lines.number + 1
        try:
            return next(reader)
        except csv.Error as error:
            raise bad_row(str(error), "a row", "mend the quotes of the row") from None

    def bad_row(found: str, expected: str, hint: str) -> UserError:
        count = lines.number + 1 - start
        span = f" in a row of {count:,} lines" if count > 1 else ""
        return lines.error(f"{found}{span}, expected {expected}", hint, start)

    try:
        header = cells()
    except StopIteration:
        header = []
    if not header:
        raise UserError(
            f"cannot read {lines.place}: the file is empty, expected a header ({lines.place}:1)",
            "give the file its header and rows",
        )
    _check_header(header, lines.place)

    def read() -> dict[str, Any]:
        row = cells()
        if len(row) != len(header):
            found = _cells(len(row)) if row else "an empty line"
            raise bad_row(
                found,
                _cells(len(header)),
                f"mend the row: quote cells that hold {separator!r} or a line break",
            )
        return dict(zip(header, row, strict=True))

    return tuple(header), read


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _check_header(header: Iterable[str], place: str) -> None:
    names = list(header)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"cannot read {place}: column {twice[0]!r} twice, expected distinct names ({place}:1)",
            "rename one of them",
        )


_READERS: dict[str, Callable[[_Lines, str], Opened]] = {
    "jsonl": _objects,
    "csv": _table,
    "tsv": _table,
    "lines": _plain,
}


def _parquet(file: BinaryIO, place: str, wanted: Collection[str], ids: Collection[str]) -> Input:
    import pyarrow
    import pyarrow.parquet

    if not file.seekable():
        raise UserError(
            f"cannot read {place}: a pipe, expected a file, for Parquet is read from its end",
            "give the file as --input",
        )
    try:
        # without these a whole row group is held, which may be the whole file
        opened = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        header = tuple(opened.schema_arrow.names)
        _check_header(header, place)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(place, error, 1) from None
    read = 0

    def rows() -> Iterator[NumberedRow]:
        nonlocal read
        columns = [name for name in header if name in ids or name in wanted]
        texts = [name for name in columns if name in ids and name not in wanted]
        try:
            for batch in opened.iter_batches(batch_size=1024, columns=columns):
                for cells in batch.to_pylist():
                    read += 1
                    for name in texts:
                        if not isinstance(cells[name], str | int | None):
                            cells[name] = cell_text(cells[name])  # dates and the like
                    yield read, cells
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged(place, error, read + 1) from None

    return Input(place, "parquet", header, rows(), opened.metadata.num_rows, lambda: read)


def _damaged(place: str, error: Exception, row: int) -> UserError:
    first_line = str(error).split("\n")[0]
    return UserError(
        f"cannot read {place}: {first_line}, expected Parquet ({place}:{row})",
        "the file is truncated or damaged: make it again",
    )
