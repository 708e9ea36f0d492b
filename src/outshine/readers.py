"""Rows of text and gold of a task's splits, from files and from the hub."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outshine.cells import (
    Cells,
    FileFormat,
    Tally,
    cell_text,
    check_columns,
    existing_file,
    file_cells,
    is_nan,
    plain_cells,
)
from outshine.errors import UserError, raise_problems
from outshine.files import digest, digest_file
from outshine.hub import data_set_split
from outshine.tasks import Task, kind_of

LABEL_UNKNOWN = math.nan


@dataclass(frozen=True)
class Row:
    """One example: its id, one or two texts, gold as a float (NaN: no label), its line."""

    id: str
    texts: tuple[str, ...]
    gold: float
    line: int


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
    reader = _source_rows(task, source, tally)
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
            text = "nan" if is_nan(cell) else cell_text(cell)
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
    num_rows = sum(1 for _ in _source_rows(task, "train", Tally()))
    if task.holdout >= num_rows:
        raise UserError(
            f"cannot hold out {task.holdout} rows of {num_rows}: expected fewer "
            f"({task.files['train']})",
            "lower `holdout`, or name a dev file",
        )
    return frozenset(np.random.default_rng(0).permutation(num_rows)[: task.holdout].tolist())


def _wanted(task: Task, source: str) -> list[str]:
    columns = [*task.text, *([task.id] if task.id else [])]
    return columns + ([task.label] if is_labelled(source) else [])


def _source_rows(task: Task, source: str, tally: Tally) -> Iterator[Cells]:
    if task.hub:
        return plain_cells(_hub_rows(task, source), f"{task.hub}:{task.files[source]}", tally)
    return _file_rows(task, source, tally)


def _file_rows(task: Task, source: str, tally: Tally) -> Iterator[Cells]:
    how = FileFormat(
        columns=tuple(_wanted(task, source)),
        optional=(task.label,),
        header=task.columns.get(source, ()),
        quoting=task.quoting,
        skip_bad_rows=task.skip_bad_rows,
    )
    return file_cells(Path(task.files[source]), how, tally)


def _hub_rows(task: Task, source: str) -> Iterator[Cells]:
    """Yields rows of a data set on the hub; class numbers become the data set's class names."""
    rows = _hub_split(task, source)
    from datasets import ClassLabel

    wanted = _wanted(task, source)
    check_columns(rows.column_names, wanted, f"{task.hub}:{task.files[source]}")
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
