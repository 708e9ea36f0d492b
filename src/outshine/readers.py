"""Rows of text and gold from csv, tsv, jsonl, parquet and hub data sets, with their places.

A reader gives every problem of a file its line, and collects them so that a user sees all at once.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from outshine.errors import MAX_PROBLEMS_SHOWN, UserError, did_you_mean, raise_problems
from outshine.files import digest, digest_file, read_errors
from outshine.hub import data_set_split
from outshine.tasks import FILE_ENDINGS, Task, kind_of

# One cell may hold a whole document.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))

LABEL_UNKNOWN = math.nan


@dataclass(frozen=True)
class Row:
    """One example: its id, one or two texts, gold as a float (NaN: no label), its line."""

    id: str
    texts: tuple[str, ...]
    gold: float
    line: int


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


def read_rows(task: Task, split: str, tally: Tally | None = None) -> Iterator[Row]:
    """Yields the rows of one split.

    Rows without a label are left out and counted, except in splits named `test...` or `ax`,
    which need none. In the GLUE files ragged and empty rows are skipped and counted.

    Args:
        task: The task.
        split: One of `task.splits`.
        tally: Receives the counts.

    Raises:
        UserError: After the last row, with all problems of the file; or at once for a missing
            file, a missing column or a file that cannot be decoded.
        WorldError: If the hub does not answer.
    """
    tally = tally if tally is not None else Tally()
    source = source_split(task, split)
    place = f"{task.hub}:{task.files[source]}" if task.hub else task.files[source]
    needs_label = is_labelled(split)
    reader = _hub_rows(task, source) if task.hub else _file_rows(task, source, tally)
    held_out = _held_out_rows(task)
    seen: set[str] = set()
    kind = kind_of(task)
    num_rows = 0
    for number, (line, cells) in enumerate(reader):
        where = f"({place}:{line})"
        if held_out is not None and source == "train" and (number in held_out) != (split == "dev"):
            continue
        texts = tuple(cell_text(cells[column]) for column in task.text)
        if not all(text.strip() for text in texts):
            if task.skip_bad_rows:
                tally.skipped += 1
            else:
                column = next(c for c, t in zip(task.text, texts, strict=True) if not t.strip())
                tally.problem(f"column {column!r}: empty, expected text {where}")
            continue
        example_id = cell_text(cells[task.id]) if task.id else str(number)
        if task.id:
            if example_id in seen:
                tally.problem(
                    f"column {task.id!r}: id {example_id!r} again, expected unique {where}"
                )
                continue
            seen.add(example_id)
        gold = LABEL_UNKNOWN
        if needs_label:
            cell = cells[task.label]
            # NaN is a wrong number, not a label that was left empty
            text = "nan" if _is_nan(cell) else cell_text(cell)
            if not text.strip():
                tally.unlabelled += 1
                continue
            try:
                gold = kind.parse_gold(task, task.label_values.get(text, text))
            except ValueError as error:
                tally.problem(f"column {task.label!r}: {error} {where}")
                continue
        num_rows += 1
        yield Row(example_id, texts, gold, line)
    if not num_rows and not tally.problems:
        left_out = f" ({tally.unlabelled} without a label)" if tally.unlabelled else ""
        tally.problem(f"no row{left_out}, expected at least one ({place})")
    extra = tally.num_problems - len(tally.problems)
    raise_problems(
        f"cannot read {place}",
        tally.problems + ["..."] * extra,
        "mend these rows, or the task file that describes them",
    )


def source_split(task: Task, split: str) -> str:
    """The entry of `task.files` that holds a split (`train` for a held-out `dev`)."""
    source = "train" if split == "dev" and task.holdout and "dev" not in task.files else split
    if source not in task.files:
        raise UserError(
            f"cannot read split {split!r} of task {task.name!r}: not given, "
            f"expected one of {', '.join(task.splits) or 'none'}",
            f"add `{split} = ...` under [files] of the task",
        )
    return source


def is_labelled(split: str) -> bool:
    """Whether rows of a split must have labels."""
    return not (split.startswith("test") or split == "ax")


def scored_splits(task: Task) -> list[str]:
    """The splits that a finished run is scored on: `dev`, and others `dev_...` that are there."""
    return [s for s in task.dev_splits if s == "dev" or Path(task.files.get(s, "")).exists()]


def data_fingerprint(task: Task, split: str) -> str:
    """sha256 of all that decides which rows and gold a split has: its bytes and how it is read."""
    source = source_split(task, split)
    how = task.without("files", "metrics", "symmetric")
    if task.hub:
        content = _hub_split(task, source)._fingerprint
    else:
        content = digest_file(existing_file(Path(task.files[source])))
    return digest({"content": content, "read": how, "split": split})


def _held_out_rows(task: Task) -> frozenset[int] | None:
    """Numbers of the train rows that serve as dev, drawn once and for all; None for none."""
    if not task.holdout or "dev" in task.files:
        return None
    reader = _hub_rows(task, "train") if task.hub else _file_rows(task, "train", Tally())
    num_rows = sum(1 for _ in reader)
    if task.holdout >= num_rows:
        raise UserError(
            f"cannot hold out {task.holdout} rows of {num_rows}: expected fewer "
            f"({task.files['train']})",
            "lower `holdout`, or name a dev file",
        )
    return frozenset(np.random.default_rng(0).permutation(num_rows)[: task.holdout].tolist())


def cell_text(cell: Any) -> str:
    """A cell as text: labels and ids are compared as text."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return "" if _is_nan(cell) else str(cell)


def _is_nan(cell: Any) -> bool:
    return isinstance(cell, float) and math.isnan(cell)


def existing_file(path: Path) -> Path:
    """Returns `path`, or raises a UserError if it is no file."""
    if path.is_file():
        return path
    found = "a folder" if path.is_dir() else "no such file"
    raise UserError(f"cannot read {path}: {found}, expected a data file", "check the path")


def _wanted(task: Task, source: str) -> list[str]:
    columns = [*task.text, *([task.id] if task.id else [])]
    return columns + ([task.label] if is_labelled(source) else [])


def _check_columns(found: Iterable[str], wanted: Iterable[str], place: str) -> None:
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
    if existing_file(path).suffix not in readers:
        raise UserError(
            f"cannot read {path}: ending {path.suffix!r}, expected one of "
            f"{', '.join(FILE_ENDINGS)}",
            "rename the file, or convert it",
        )
    try:
        with read_errors(path):
            yield from readers[path.suffix](path, how, tally)
    except UnicodeDecodeError:
        raise UserError(
            f"cannot read {path}: invalid UTF-8, expected UTF-8 ({path}:{_bad_line(path)})",
            "save the file as UTF-8",
        ) from None


def _file_rows(task: Task, source: str, tally: Tally) -> Iterator[Cells]:
    how = FileFormat(
        columns=tuple(_wanted(task, source)),
        optional=(task.label,),
        header=task.columns.get(source, ()),
        quoting=task.quoting,
        skip_bad_rows=task.skip_bad_rows,
    )
    return file_cells(Path(task.files[source]), how, tally)


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
    separator = "\t" if path.suffix == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(
            file,
            delimiter=separator,
            quoting=csv.QUOTE_MINIMAL if how.quoting else csv.QUOTE_NONE,
            strict=how.quoting,
        )
        header = how.header or tuple(next(reader, ()))
        _check_columns(header, how.columns, str(path))
        places = [(column, header.index(column)) for column in how.columns]
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                tally.problem(f"{error}, expected a row ({path}:{reader.line_num})")
                return
            if row is None:
                return
            if len(row) == len(header):
                yield reader.line_num, {column: row[place] for column, place in places}
            elif how.skip_bad_rows:
                tally.skipped += 1
            else:
                found = {0: "an empty line", 1: "1 cell"}.get(len(row), f"{len(row)} cells")
                tally.problem(f"{found}, expected {len(header)} cells ({path}:{reader.line_num})")


def _json_cells(path: Path, how: FileFormat, tally: Tally) -> Iterator[Cells]:
    names: set[str] = set()
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                tally.problem(f"an empty line, expected a JSON object ({path}:{line})")
                continue
            try:
                cells = json.loads(text)
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
            ] + [
                f"column {column!r}: {cells[column]!r}, expected a text or a number"
                for column in how.columns
                if isinstance(cells.get(column), list | dict)
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
            _check_columns(file.schema_arrow.names, how.columns, str(path))
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


def _hub_rows(task: Task, source: str) -> Iterator[Cells]:
    """Yields rows of a data set on the hub; class numbers become the data set's class names."""
    rows = _hub_split(task, source)
    from datasets import ClassLabel

    wanted = _wanted(task, source)
    _check_columns(rows.column_names, wanted, f"{task.hub}:{task.files[source]}")
    feature = rows.features.get(task.label)
    names = feature.names if isinstance(feature, ClassLabel) else None
    for line, cells in enumerate(rows.select_columns(wanted), start=1):
        if names is not None and is_labelled(source):
            number = cells[task.label]
            # -1 is the hub's mark for "no label"
            cells = cells | {task.label: None if number in (None, -1) else names[number]}
        yield line, cells


def _hub_split(task: Task, source: str) -> Any:
    config, _, split = task.files[source].rpartition(":")
    return data_set_split(task.hub, config or task.hub_config, split)
