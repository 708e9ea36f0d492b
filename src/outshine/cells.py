"""Cells of csv, tsv, jsonl and parquet files, with their places.

A reader gives every problem of a file its line, and collects them so that a user sees all at once.
"""

from __future__ import annotations

import csv
import json
import math
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outshine.errors import MAX_PROBLEMS_SHOWN, UserError, did_you_mean, raise_problems
from outshine.files import read_errors
from outshine.tasks import FILE_ENDINGS

# One cell may hold a whole document, but not all that stands behind an open quote.
csv.field_size_limit(1 << 24)


@dataclass
class Tally:
    """What a reader left out, filled while the rows are read."""

    skipped: int = 0
    unlabelled: int = 0
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0

    def problem(self, text: str) -> None:
        self.num_problems += 1
        if len(self.problems) <= MAX_PROBLEMS_SHOWN:
            self.problems.append(text)


def cell_text(cell: Any) -> str:
    """A cell as text: labels and ids are compared as text."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return "" if is_nan(cell) else str(cell)


def is_nan(cell: Any) -> bool:
    """Whether a cell is the number NaN."""
    return isinstance(cell, float) and math.isnan(cell)


def existing_file(path: Path) -> Path:
    """Returns `path`, or raises a UserError if it is no file."""
    if path.is_file():
        return path
    found = "a folder" if path.is_dir() else "no such file"
    raise UserError(f"cannot read {path}: {found}, expected a data file", "check the path")


def check_columns(found: Iterable[str], wanted: Iterable[str], place: str) -> None:
    """Refuses columns that lack one that is wanted, or have it twice."""
    names = list(found)
    if not names:
        raise UserError(
            f"cannot read {place}: the file is empty, expected the columns {', '.join(wanted)}",
            "give the file its header and rows",
        )
    raise_problems(
        f"cannot read {place}",
        [
            f"column {column!r} missing{did_you_mean(column, names)}, "
            f"expected one of {', '.join(names)} ({place}:1)"
            for column in wanted
            if column not in names
        ]
        + [
            f"column {column!r} stands {names.count(column)} times, expected once ({place}:1)"
            for column in dict.fromkeys(wanted)
            if names.count(column) > 1
        ],
        "name columns that the file has (in a task file: `text`, `label` and `id`)",
    )


Cells = tuple[int, dict[str, Any]]


@dataclass(frozen=True)
class FileFormat:
    """How to read one file: the columns wanted, and what is peculiar to it.

    Attributes:
        columns: Columns to return.
        optional: Those of them that a JSON object may lack.
        header: Names of all columns of a csv or tsv file without a header line.
        quoting: Whether csv and tsv cells may be quoted.
        skip_bad_rows: Whether ragged rows are counted instead of refused.
    """

    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    quoting: bool = True
    skip_bad_rows: bool = False


def file_cells(path: Path, how: FileFormat, tally: Tally) -> Iterator[Cells]:
    """Yields (line, {column: cell}) of a csv, tsv, jsonl or parquet file.

    Raises:
        UserError: If the file or a column is missing, or the file cannot be decoded.
    """
    readers = {
        ".csv": _separated_cells,
        ".tsv": _separated_cells,
        ".jsonl": _json_cells,
        ".parquet": _parquet_cells,
    }
    ending = existing_file(path).suffix.lower()
    if ending not in readers:
        raise UserError(
            f"cannot read {path}: ending {path.suffix!r}, expected one of "
            f"{', '.join(FILE_ENDINGS)}",
            "rename the file, or convert it",
        )
    try:
        with read_errors(path):
            yield from plain_cells(readers[ending](path, how, tally), str(path), tally)
    except UnicodeDecodeError:
        raise UserError(
            f"cannot read {path}: invalid UTF-8, expected UTF-8 ({path}:{_bad_line(path)})",
            "save the file as UTF-8",
        ) from None


def plain_cells(rows: Iterable[Cells], place: str, tally: Tally) -> Iterator[Cells]:
    """Yields the rows whose cells are texts or numbers; the others are problems."""
    for line, cells in rows:
        problems = [
            f"column {column!r}: {reprlib.repr(cell)}, expected a text or a number ({place}:{line})"
            for column, cell in cells.items()
            if isinstance(cell, bytes | list | dict)
        ]
        for problem in problems:
            tally.problem(problem)
        if not problems:
            yield line, cells


def unicode_json(text: str, **how: Any) -> Any:
    """Reads JSON whose texts are Unicode; `how` is as for `json.loads`.

    Raises:
        ValueError: If it is none, or is nested too deeply.
    """
    try:
        content = json.loads(text, **how)
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return content


def _bad_line(path: Path) -> int:
    """Number of the first line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


def _separated_cells(path: Path, how: FileFormat, tally: Tally) -> Iterator[Cells]:
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(
            file,
            delimiter=separator,
            quoting=csv.QUOTE_MINIMAL if how.quoting else csv.QUOTE_NONE,
            strict=how.quoting,
        )
        header = how.header or tuple(next(reader, ()))
        check_columns(header, how.columns, str(path))
        places = [(column, header.index(column)) for column in how.columns]
        while True:
            line = reader.line_num + 1  # a row may have several
            try:
                row = next(reader, None)
            except csv.Error as error:
                tally.problem(f"{error}, expected a row ({path}:{line})")
                return
            if row is None:
                return
            if len(row) == len(header):
                yield line, {column: row[place] for column, place in places}
            elif how.skip_bad_rows:
                tally.skipped += 1
            else:
                found = {0: "an empty line", 1: "1 cell"}.get(len(row), f"{len(row)} cells")
                tally.problem(f"{found}, expected {len(header)} cells ({path}:{line})")


def _json_cells(path: Path, how: FileFormat, tally: Tally) -> Iterator[Cells]:
    names: set[str] = set()
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                tally.problem(f"an empty line, expected a JSON object ({path}:{line})")
                continue
            try:
                cells = unicode_json(text)
                if not isinstance(cells, dict):
                    raise ValueError("no JSON object")
            except ValueError as error:
                tally.problem(f"{error}, expected one JSON object a line ({path}:{line})")
                continue
            names.update(cells)
            problems = [
                f"column {column!r} missing{did_you_mean(column, cells)}, "
                f"expected one of {', '.join(cells)}"
                for column in how.columns
                if column not in cells and column not in how.optional
            ]
            for problem in problems:
                tally.problem(f"{problem} ({path}:{line})")
            if not problems:
                yield line, {column: cells.get(column) for column in how.columns}
    for column in how.columns:
        if names and column in how.optional and column not in names:
            tally.problem(
                f"column {column!r} missing{did_you_mean(column, names)}, "
                f"expected one of {', '.join(sorted(names))} ({path})"
            )


def _parquet_cells(path: Path, how: FileFormat, tally: Tally) -> Iterator[Cells]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            check_columns(file.schema_arrow.names, how.columns, str(path))
            for batch in file.iter_batches(batch_size=4096, columns=list(how.columns)):
                for cells in batch.to_pylist():
                    row += 1
                    yield row, cells
    except (pyarrow.ArrowException, OSError) as error:
        first_line = str(error).split("\n")[0]
        raise UserError(
            f"cannot read {path}: {first_line}, expected Parquet ({path}:{row + 1})",
            "the file is truncated or damaged: make it again",
        ) from None
