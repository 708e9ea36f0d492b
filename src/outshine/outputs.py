"""Answers of `outshine predict` on their way out: JSONL, csv or Parquet, each resumable in a file.

What is written to a file appears whole. Until then it stands beside it, complete up to the end of
a chunk of rows, with a small file that says which rows, and what makes their answers what they
are. JSONL and csv grow in `OUT.part`; Parquet is a folder of part files of so many rows each.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from outshine.cells import cell_text
from outshine.errors import UserError
from outshine.files import read_json, remove_temporaries, replacing, world_errors, write_json

FORMATS = ("jsonl", "csv", "parquet")
_BY_ENDING = {f".{name}": name for name in FORMATS}
ROWS_PER_PART = 65_536
_MANIFEST = "_manifest.json"

Answers = Sequence[dict[str, Any]]


@dataclass
class Counts:
    """What has become of the rows read so far.

    Attributes:
        rows: How many were read.
        skipped: Of them, how many were left out as bad.
        truncated: Of them, how many had a text that was cut.
        unanswered: Task -> how many it did not answer, for lack of its columns.
        problems: Why the first bad rows were left out.
    """

    rows: int = 0
    skipped: int = 0
    truncated: int = 0
    unanswered: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Counts:
        """From what `vars` gave and JSON kept."""
        return cls(**dict(content) | {"unanswered": Counter(content["unanswered"])})


class Output(Protocol):
    """Where answers go. `counts` tells which rows an earlier process has done."""

    counts: Counts

    def write(self, answers: Answers) -> None:
        """Takes the answers of the rows up to `counts.rows`."""


def format_of(path: Path | None, format: str | None) -> str:
    """The format asked for, else that of the ending; on standard output, and without one, jsonl.

    Raises:
        UserError: If the ending is that of none.
    """
    ending = path.suffix.lower() if path else ""
    if format or not ending:
        return format or "jsonl"
    if ending not in _BY_ENDING:
        raise UserError(
            f"cannot write {path}: ending {ending!r}, expected .jsonl, .csv or .parquet",
            "rename it, or name its format with --output-format",
        )
    return _BY_ENDING[ending]


def check_apart(source: Path, path: Path) -> None:
    """Refuses an output that would be written over the rows that it answers.

    Raises:
        UserError: If the output, or what it grows in, is the file of the rows.
    """
    if path.is_dir():  # which `check_output` judges; `.` and `/` have no name to grow beside
        return
    for written in (path, *_unfinished(path)):
        if source.is_file() and written.exists() and written.samefile(source):
            raise UserError(
                f"cannot write {path}: {written} is the file that the rows are read from, "
                "expected another one",
                "choose another --output",
            )


def check_output(path: Path | None, format: str, identity: Mapping[str, Any]) -> Counts:
    """What an earlier call has done of an output; writes nothing.

    Args:
        path, format, identity: As for `open_output`.

    Raises:
        UserError: If it cannot be of this format, is complete already (Parquet), holds other
            files, or was begun with another identity.
    """
    if format == "parquet":
        if path is None or (path.exists() and not path.is_dir()):
            found = "a file" if path else "no folder given"
            raise UserError(
                f"cannot write {path or 'Parquet'}: {found}, expected a folder for part files",
                "name one that is new, such as `--output answers.parquet`",
            )
        if path.is_dir() and not (path / _MANIFEST).exists() and any(path.iterdir()):
            raise UserError(
                f"cannot write {path}: the folder holds other files, expected a new one",
                "remove it, or choose another --output",
            )
        return _counts_of(path, identity)
    if path and path.is_dir():
        raise UserError(f"cannot write {path}: a folder, expected a file", "name a file in it")
    if path is None or not _unfinished(path)[0].is_file():
        return Counts()
    return Counts.of(_begun(_unfinished(path)[1], identity, "bytes")["counts"])


@contextmanager
def open_output(
    path: Path | None, format: str, columns: Mapping[str, type], identity: Mapping[str, Any]
) -> Iterator[Output]:
    """Opens what takes the answers; a file is whole when the block ends without error.

    Args:
        path: The file (Parquet: folder); None is standard output. A device or a pipe, such as
            /dev/null, is written as it is.
        format: One of FORMATS.
        columns: Of a table, name -> str, float or bool.
        identity: What makes the answers what they are. An unfinished output with the same one
            is continued, unless its `input` is None, which cannot be read again.

    Raises:
        UserError: As `check_output`, and if the output is being written.
    """
    check_output(path, format, identity)
    if path and format == "parquet":
        with _folder(path, columns, identity) as output:
            yield output
        return
    encode = _JsonLines() if format == "jsonl" else _Table(columns)
    if path is None:
        yield _Stream(sys.stdout.buffer, encode)
        sys.stdout.buffer.flush()
    elif path.exists() and not path.is_file():
        with world_errors(path), path.open("wb") as file:
            yield _Stream(file, encode)
    else:
        with _part_file(path, encode, identity) as output:
            yield output


# --- what the bytes are -----------------------------------------------------------------------


class _Encoder(Protocol):
    def header(self) -> bytes: ...

    def rows(self, answers: Answers) -> bytes: ...


class _JsonLines:
    def header(self) -> bytes:
        return b""

    def rows(self, answers: Answers) -> bytes:
        lines = (json.dumps(x, ensure_ascii=False, allow_nan=False) for x in answers)
        return "".join(f"{line}\n" for line in lines).encode()


class _Table:
    def __init__(self, columns: Mapping[str, type]) -> None:
        self.columns = columns

    def header(self) -> bytes:
        return self._csv([list(self.columns)])

    def rows(self, answers: Answers) -> bytes:
        flat = map(table_row, answers)
        return self._csv([[cell_text(row.get(name)) for name in self.columns] for row in flat])

    def _csv(self, rows: Sequence[Sequence[str]]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()


def table_row(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer as one row of a table: nested names are joined by dots, the id is text."""
    row = {"id": None, "truncated": False} | dict(answer)
    given = row.pop("id")
    if isinstance(given, dict | list):
        given = json.dumps(given, ensure_ascii=False)
    return {"id": None if given is None else cell_text(given)} | _flat(row, "")


def _flat(nested: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            row |= _flat(value, f"{prefix}{name}.")
        else:
            row[prefix + name] = value
    return row


# --- where they go ----------------------------------------------------------------------------


class _Stream:
    """Standard output, a device or a pipe."""

    def __init__(self, file: BinaryIO, encode: _Encoder) -> None:
        self.counts = Counts()
        self.file, self.encode = file, encode
        file.write(encode.header())

    def write(self, answers: Answers) -> None:
        self.file.write(self.encode.rows(answers))
        self.file.flush()


class _PartFile:
    """`OUT.part`, and `OUT.part.json` that says how many bytes of it are complete."""

    def __init__(
        self, file: BinaryIO, state: Path, encode: _Encoder, identity: Mapping[str, Any]
    ) -> None:
        self.file, self.state, self.encode, self.identity = file, state, encode, identity
        begun = _begun(state, identity, "bytes")
        self.counts, size = Counts.of(begun["counts"]), begun["bytes"]
        file.seek(0, os.SEEK_END)
        if file.tell() < size:
            raise UserError(
                f"cannot go on with {file.name}: {file.tell()} bytes, expected {size} ({state})",
                f"remove {state} to begin anew",
            )
        file.truncate(size)
        if not size:
            file.write(encode.header())

    def write(self, answers: Answers) -> None:
        self.file.write(self.encode.rows(answers))
        self.file.flush()
        os.fsync(self.file.fileno())
        if self.identity["input"] is not None:
            content = {"counts": vars(self.counts), "bytes": self.file.tell()}
            write_json(self.state, {"identity": self.identity} | content)


def _unfinished(path: Path) -> tuple[Path, Path]:
    """What a file grows in, and what says how far that is complete."""
    return path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")


@contextmanager
def _part_file(path: Path, encode: _Encoder, identity: Mapping[str, Any]) -> Iterator[Output]:
    part, state = _unfinished(path)
    with world_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not part.exists():  # killed when the file had its name already
            state.unlink(missing_ok=True)
        with part.open("a+b") as file, _locked(file.fileno(), path):
            output = _PartFile(file, state, encode, identity)
            try:
                yield output
            except BaseException:
                if not state.exists():
                    part.unlink()
                raise
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, path)
            state.unlink(missing_ok=True)


class _Folder:
    """Part files of ROWS_PER_PART rows read, the last one shorter, and `_manifest.json`.

    What reads a folder of Parquet files passes over names that begin with `_`.
    """

    def __init__(
        self, path: Path, columns: Mapping[str, type], identity: Mapping[str, Any]
    ) -> None:
        import pyarrow

        types = {str: pyarrow.string(), float: pyarrow.float64(), bool: pyarrow.bool_()}
        self.schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
        self.path, self.identity = path, identity
        self.manifest = path / _MANIFEST
        self.counts = _counts_of(path, identity)
        self.waiting: list[Any] = []
        self.next_part = self.counts.rows // ROWS_PER_PART

    def write(self, answers: Answers) -> None:
        import pyarrow

        rows = [table_row(answer) for answer in answers]
        self.waiting.append(pyarrow.Table.from_pylist(rows, self.schema))
        if self.counts.rows >= (self.next_part + 1) * ROWS_PER_PART:
            self.write_part(complete=False)

    def write_part(self, *, complete: bool) -> None:
        import pyarrow
        import pyarrow.parquet

        if self.waiting:
            with replacing(self.path / f"part-{self.next_part:05d}.parquet") as file:
                pyarrow.parquet.write_table(pyarrow.concat_tables(self.waiting), file)
            self.next_part += 1
            self.waiting = []
        if complete or self.identity["input"] is not None:
            content = {"complete": complete, "counts": vars(self.counts)}
            write_json(self.manifest, {"identity": self.identity} | content)


@contextmanager
def _folder(
    path: Path, columns: Mapping[str, type], identity: Mapping[str, Any]
) -> Iterator[Output]:
    with world_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
        try:
            with _locked(handle, path):
                output = _Folder(path, columns, identity)
                remove_temporaries(path)
                try:
                    if not output.counts.rows:
                        output.write_part(complete=False)  # it says whose folder this is
                    yield output
                    if not output.waiting and not output.next_part:
                        output.write([])  # no row: one empty part has the columns
                    output.write_part(complete=True)
                except BaseException:
                    if not output.next_part or identity["input"] is None:
                        shutil.rmtree(path)
                    raise
        finally:
            os.close(handle)


def _counts_of(path: Path, identity: Mapping[str, Any]) -> Counts:
    """What is done of a folder that is not complete."""
    begun = _begun(path / _MANIFEST, identity, "complete")
    if begun["complete"]:
        raise UserError(
            f"cannot write {path}: it is already complete, expected a new folder",
            "remove it, or choose another --output",
        )
    return Counts.of(begun["counts"])


def _begun(state: Path, identity: Mapping[str, Any], progress: str) -> dict[str, Any]:
    """What an earlier process has written down, if it answered the same rows in the same way."""
    if not state.exists():
        return {"counts": vars(Counts()), progress: 0}
    begun = read_json(state, "identity", "counts", progress)
    for key, wanted in json.loads(json.dumps(identity)).items():
        found = begun["identity"].get(key)
        if found != wanted:
            raise UserError(
                f"cannot go on with {state}: {key} {_short(found)}, expected {_short(wanted)}",
                "another command, or one with other input, has begun it: remove it, or choose "
                "another --output",
            )
    return begun


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."


@contextmanager
def _locked(handle: int, path: Path) -> Iterator[None]:
    """Holds an open file or folder for one process; the lock goes with it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"cannot write {path}: another process is writing it",
            "wait for it, or choose another --output",
        ) from None
    yield
