"""What the tasks read of one input row: its texts, by their columns, and its id."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from outshine.cells import is_nan
from outshine.errors import UserError
from outshine.tasks import Task

Texts = tuple[str, ...]


def row_texts(row: Any, tasks: Sequence[Task], number: int, *, strict: bool) -> dict[str, Texts]:
    """Task -> the texts that it reads of one input row.

    Without `strict`, a column whose cell is empty (a table has cells for all columns) counts as
    one that the row lacks.

    Args:
        row: A text, a pair, or a mapping.
        tasks: The tasks asked for.
        number: Of the row from 1, for messages.
        strict: Whether a task that the row cannot answer is an error.

    Raises:
        UserError: If no task (or, with `strict`, not every task) can answer, or a text is
            empty or no text.
    """
    if isinstance(row, str):
        cells: Mapping[str, Any] = {"text": row}
    elif isinstance(row, Mapping):
        cells = row
    elif isinstance(row, Sequence | np.ndarray) and np.ndim(row) > 0 and len(row) == 2:
        cells = {"text_a": row[0], "text_b": row[1]}
    else:
        raise UserError(
            f"cannot answer row {number}: {type(row).__name__}, expected a text, a pair of texts "
            "or an object",
            'for example {"text": "..."}',
        )
    filled = [name for name, cell in cells.items() if strict or not _is_empty(cell)]
    columns = _columns(filled, tasks)
    if strict or not columns:  # of a row without any text, the message is about what it has
        columns = text_columns(cells.keys(), tasks, f"row {number}", strict=strict)
    for column in {column: None for names in columns.values() for column in names}:
        if (expected := _expected(cells[column])) is not None:
            raise UserError(
                f"cannot answer row {number}: column {column!r} is {shown(cells[column])}, "
                f"expected {expected}",
                "mend or remove the row",
            )
    return {name: tuple(cells[column] for column in names) for name, names in columns.items()}


def _is_empty(cell: Any) -> bool:
    return cell is None or is_nan(cell) or (isinstance(cell, str) and not cell.strip())


def _expected(cell: Any) -> str | None:
    """What a cell should be that no task can read; None for others."""
    if not isinstance(cell, str) or not cell.strip():
        return "a text that is not empty"
    try:
        cell.encode()
    except UnicodeEncodeError:
        return "Unicode, which half a surrogate pair is not"
    return None


def row_id(row: Any, tasks: Sequence[Task]) -> dict[str, Any]:
    """`{"id": ...}` of a row that has one: of its columns in `id_columns`, the first one."""
    if isinstance(row, Mapping):
        for column in id_columns(tasks):
            if column in row:
                return {"id": row[column]}
    return {}


def id_columns(tasks: Sequence[Task]) -> list[str]:
    """Where a row may have its id: in `id`, else where the tasks' own files have it."""
    return ["id", *(task.id for task in tasks if task.id)]


def shown(cell: Any) -> str:
    """A cell for messages; long ones are cut."""
    text = repr(cell)
    return text if len(text) <= 80 else f"{text[:80]}..."


def text_columns(
    found: Collection[str], tasks: Sequence[Task], what: str, *, strict: bool
) -> dict[str, tuple[str, ...]]:
    """Task -> the columns that it reads, of those found: its own, else `text` (`text_a`, `text_b`).

    Args:
        found: Names of the columns of a row or a table.
        tasks: The tasks asked for.
        what: Whose columns they are, for messages.
        strict: Whether a task that they do not fit is an error.

    Raises:
        UserError: If they fit no task (or, with `strict`, not every task).
    """
    columns = _columns(found, tasks)
    names = ", ".join(map(str, found)) or "none"
    lacking = [task for task in tasks if task.name not in columns]
    if strict and lacking:
        task = lacking[0]
        raise UserError(
            f"cannot answer {what} for task {task.name!r}: columns {names}, "
            f"expected {' and '.join(task.text)} or {' and '.join(_generic(task))}",
            "rename the columns, or leave the task out",
        )
    if not columns:
        needs = "; ".join(f"{task.name}: {' + '.join(task.text)}" for task in tasks)
        raise UserError(
            f"cannot answer {what}: columns {names}, expected those of a task "
            f"({needs}), or text, or text_a and text_b",
            "rename the columns",
        )
    return columns


def _columns(found: Collection[str], tasks: Sequence[Task]) -> dict[str, tuple[str, ...]]:
    """The same without those tasks that the columns do not fit."""
    fitting = (
        (task, columns)
        for task in tasks
        for columns in (_generic(task), task.text)  # its own columns win, as the last ones
        if all(column in found for column in columns)
    )
    return {task.name: columns for task, columns in fitting}


def _generic(task: Task) -> tuple[str, ...]:
    return ("text",) if len(task.text) == 1 else ("text_a", "text_b")


def distinct_texts(wanted: Sequence[Mapping[str, Texts]]) -> dict[Texts, dict[str, None]]:
    """Distinct text (or pair) of some rows -> the names of the tasks that read it, in order."""
    heads: dict[Texts, dict[str, None]] = {}
    for row in wanted:
        for name, texts in row.items():
            heads.setdefault(texts, {})[name] = None
    return heads
