"""Rows for `outshine predict`: JSONL or plain lines in, JSONL out, in bounded memory."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from outshine.console import say
from outshine.errors import UserError
from outshine.files import replacing, world_errors

STANDARD_INPUT = "standard input"
_TABLES = (".csv", ".tsv", ".parquet")


def read_lines(path: Path | None) -> Iterator[str | dict[str, Any]]:
    """Yields one row per line of a file.

    A file whose first line begins with `{` is JSONL and gives dictionaries; any other holds one
    text per line and gives strings, and that is said on stderr.

    Args:
        path: The file; None is standard input.

    Raises:
        UserError: If the file is missing or a table, a line is empty, no UTF-8, or (in JSONL)
            no JSON object; with its line number.
    """
    place = str(path) if path else STANDARD_INPUT
    with _opened(path) as file:
        is_json = False
        for number, raw in enumerate(file, start=1):
            line = _decoded(raw, place, number)
            if number == 1:
                is_json = line.lstrip().startswith("{")
                if not is_json:
                    say(f"note: reading {place} as one text per line (JSONL begins with {{)")
            yield _json_object(line, place, number) if is_json else line


def _opened(path: Path | None) -> Any:
    """The file in binary, whose lines can be told apart before they are decoded."""
    if path is None:
        return nullcontext(sys.stdin.buffer)
    if path.suffix in _TABLES:
        raise UserError(
            f"cannot read {path}: ending {path.suffix!r}, expected JSONL or one text per line",
            "convert it to JSONL: one JSON object a line",
        )
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}, expected JSONL or one text per line",
            "check the path",
        ) from None


def _decoded(raw: bytes, place: str, number: int) -> str:
    try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(
            f"cannot read {place}: invalid UTF-8, expected UTF-8 ({place}:{number})",
            "save the file as UTF-8",
        ) from None
    if not line.strip():
        raise UserError(
            f"cannot read {place}: an empty line, expected a text or a JSON object "
            f"({place}:{number})",
            "remove the line",
        )
    return line


def _json_object(line: str, place: str, number: int) -> dict[str, Any]:
    try:
        row = parse_json(line)
        if not isinstance(row, dict):
            raise ValueError("no JSON object")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read {place}: {error}, expected one JSON object a line ({place}:{number})",
            'for example {"id": 1, "text": "..."}',
        ) from None
    return row


def parse_json(text: str) -> Any:
    """Reads JSON whose numbers are finite and whose texts are Unicode.

    Raises:
        ValueError: If it is none.
        RecursionError: If it is nested too deeply.
    """
    content = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    if "\\u" in text:
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits:.20} is too large")
    return value


@contextmanager
def line_writer(path: Path | None) -> Iterator[BinaryIO]:
    """Opens a file that appears, whole, when the block ends without error; None is stdout.

    A device or pipe, such as /dev/null, is written as it is.
    """
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif path.is_dir():
        raise UserError(f"cannot write {path}: a folder, expected a file", "name a file in it")
    elif path.exists() and not path.is_file():
        with world_errors(path), path.open("wb") as file:
            yield file
    else:
        with replacing(path) as file:
            yield file


def write_line(file: BinaryIO, content: dict[str, Any]) -> None:
    """Writes one JSON object as one line."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    file.write(text.encode() + b"\n")
