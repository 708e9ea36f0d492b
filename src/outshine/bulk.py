"""A whole file of rows through a model: in bounded memory, in order, resumable."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from outshine import outputs, predicting
from outshine.console import progress, say
from outshine.devices import trim_memory
from outshine.errors import MAX_PROBLEMS_SHOWN, UserError
from outshine.inputs import Input, NumberedRow, fingerprint, open_input
from outshine.outputs import (
    Counts,
    check_apart,
    check_output,
    format_of,
    open_output,
    table_row,
)
from outshine.predicting import Predictor
from outshine.tasks import Task, kind_of
from outshine.texts import Texts, id_columns, row_id, row_texts, text_columns


def predict_file(
    predictor: Predictor,
    source: Path | None,
    output: Path | None,
    *,
    tasks: Sequence[str] | None = None,
    input_format: str | None = None,
    output_format: str | None = None,
    skip_bad_rows: bool = False,
    run_id: str = "",
    dry_run: bool = False,
) -> Counts:
    """Answers every row of a file, and writes the answers in the same order.

    Where both are files, a call that ended early is continued by the next one with the same
    arguments, at the next chunk of rows (Parquet: the next part), to the same bytes.

    Args:
        predictor: The model.
        source: The rows; None is standard input.
        output: The answers' file (Parquet: folder); None is standard output.
        tasks: Names of the tasks to answer; default: all that a row has the columns for.
        input_format: One of `inputs.FORMATS`; default: by ending or content.
        output_format: One of `outputs.FORMATS`; default: by ending, else jsonl.
        skip_bad_rows: Whether rows that cannot be answered are counted instead of refused.
        run_id: Of the run that the model is from, for telling whether to continue.
        dry_run: Whether to check the input, its first rows and the output, and to write nothing.

    Returns:
        What became of the rows; with `dry_run`, of those that an earlier call has answered.

    Raises:
        UserError: For a bad row with its line, for a table that lacks the columns, and for an
            output that cannot be written or continued, or is the input.
    """
    chosen = predictor.choose(tasks)
    strict = tasks is not None
    wanted = {column for task in chosen for column in (*task.text, "text", "text_a", "text_b")}
    format = format_of(output, output_format)
    if source and output:
        check_apart(source, output)
    with open_input(source, input_format, wanted, id_columns(chosen)) as opened:
        if opened.columns is not None:
            _check_columns(opened, chosen, strict=strict)
        identity = {
            "run": run_id,
            "input": fingerprint(source),
            "input_format": opened.format,
            "output_format": format,
            "tasks": [task.name for task in chosen] if strict else None,
            "precision": predictor.forward.precision,
            "device": predictor.forward.device.type,
            "temperatures": dict(predictor.temperatures),
            "rows": [predicting.ROWS_PER_CHUNK, outputs.ROWS_PER_PART],
        }
        if dry_run:
            first = list(islice(opened.rows, predicting.ROWS_PER_CHUNK))
            _good_rows(first, opened.place, chosen, strict, skip_bad_rows, Counts())
            return check_output(output, format, identity)
        with open_output(output, format, table_columns(chosen), identity) as sink:
            counts = sink.counts
            num_before = counts.rows
            if num_before:
                say(f"going on with {output} behind row {num_before:,}")
            deque(islice(opened.rows, num_before), maxlen=0)  # answered by an earlier call
            start, position = time.monotonic(), opened.position()
            with progress("predicting", opened.size, position) as bar:
                while chunk := list(islice(opened.rows, predicting.ROWS_PER_CHUNK)):
                    good = _good_rows(chunk, opened.place, chosen, strict, skip_bad_rows, counts)
                    answers = predictor.answer([row.texts for row in good])
                    for row, answer in zip(good, answers, strict=True):
                        left_out = (task.name for task in chosen if task.name not in row.texts)
                        counts.unanswered.update(left_out)
                        counts.truncated += "truncated" in answer
                    counts.rows += len(chunk)
                    sink.write([row.given | x for row, x in zip(good, answers, strict=True)])
                    trim_memory()
                    speed = (counts.rows - num_before) / (time.monotonic() - start)
                    bar.note(f"{counts.rows:,} rows, {speed:,.0f} rows/s")
                    bar.advance(opened.position() - position)
                    position = opened.position()
        return counts


def _check_columns(opened: Input, tasks: Sequence[Task], *, strict: bool) -> None:
    """Refuses a table that lacks what its rows need, before the first of them."""
    try:
        text_columns(opened.columns or (), tasks, opened.place, strict=strict)
    except UserError as error:
        raise UserError(f"{error.message} ({opened.place}:1)", error.hint) from None


class _Row(NamedTuple):
    given: dict[str, Any]  # its id, if it has one
    texts: dict[str, Texts]


def _good_rows(
    chunk: Sequence[NumberedRow],
    place: str,
    tasks: Sequence[Task],
    strict: bool,
    skip_bad_rows: bool,
    counts: Counts,
) -> list[_Row]:
    """The rows that can be answered; the others are counted, or the first of them is raised."""
    good = []
    for number, (line, row) in enumerate(chunk, start=counts.rows + 1):
        try:
            good.append(_read(row, tasks, number, line, place, strict=strict))
        except UserError as error:
            if not skip_bad_rows:
                hint = f"{error.hint}, or leave such rows out with `--on-error skip`"
                raise UserError(error.message, hint) from None
            counts.skipped += 1
            if len(counts.problems) < MAX_PROBLEMS_SHOWN:
                counts.problems.append(error.message)
    return good


def _read(
    row: Any, tasks: Sequence[Task], number: int, line: int, place: str, *, strict: bool
) -> _Row:
    if isinstance(row, UserError):
        raise row
    try:
        texts = row_texts(row, tasks, number, strict=strict)
    except UserError as error:
        raise UserError(f"{error.message} ({place}:{line})", error.hint) from None
    # nothing else tells what a plain line's answer belongs to where lines are skipped
    return _Row({"id": line} if isinstance(row, str) else row_id(row, tasks), texts)


def table_columns(tasks: Sequence[Task]) -> dict[str, type]:
    """Columns of a table of answers: id, those of each task (its answer's keys), truncated."""
    blank = {
        task.name: kind.answer(task, np.zeros(kind.num_outputs(task), np.float32))
        for task in tasks
        for kind in (kind_of(task),)
    }
    names = {name: type(value) for name, value in table_row(blank).items()}
    names.pop("truncated")
    return names | {"id": str, "truncated": bool}
