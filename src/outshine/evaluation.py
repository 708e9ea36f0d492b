"""From a model to logits, metrics, and answers for raw text.

B rows of a forward pass, L tokens of its longest row, C outputs of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outshine.batches import Rows, gather
from outshine.data import TokenTable, encode, tokenize
from outshine.devices import pick_device, pick_precision
from outshine.errors import UserError, did_you_mean
from outshine.forward import Forward, make_forward
from outshine.metrics import compute
from outshine.model import load_model
from outshine.predictions import Predictions
from outshine.readers import is_labelled
from outshine.runs import Run, open_run
from outshine.tasks import Task, kind_of

# WNLI's dev set contradicts its train set by design; GLUE scores leave it out (BAM! section 3).
NOT_IN_SCORE = ("wnli",)
ROWS_PER_CALL = 2048


@torch.no_grad()
def table_logits(
    forward: Forward,
    table: TokenTable,
    rows: np.ndarray | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> np.ndarray:
    """(n, C) float32 logits of the table's task for some rows (default: all), in their order.

    Args:
        forward: The model.
        table: The encoded split.
        rows: (n,) rows of the table.
        on_rows: Told how many rows each forward pass has done.
    """
    rows = np.arange(len(table)) if rows is None else rows
    task = table.task
    was_training = forward.model.training
    forward.model.eval()
    logits = np.empty((len(rows), kind_of(task).num_outputs(task)), np.float32)
    for members in forward.divide(table.lengths_of(rows)):
        pooled = forward.pooled(gather([table], [rows[members]]))
        logits[members] = forward.model.head(task.name)(pooled).cpu().numpy()
        if on_rows:
            on_rows(len(members))
    forward.model.train(was_training)
    return logits


def predict_table(
    forward: Forward,
    table: TokenTable,
    run_id: str,
    rows: np.ndarray | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Predictions:
    """Logits of one table (or some rows of it) with all that identifies them."""
    chosen = np.arange(len(table)) if rows is None else rows
    return Predictions(
        logits=table_logits(forward, table, chosen, on_rows),
        ids=[table.ids[row] for row in chosen.tolist()],
        run=run_id,
        task=table.task.name,
        version=table.task.version,
        labels=table.task.labels,
        data=table.data,
    )


def table_metrics(table: TokenTable, logits: np.ndarray) -> dict[str, float]:
    """The task's metrics on one split, as `metrics.compute` gives them."""
    kind, task = kind_of(table.task), table.task
    gold = kind.gold_values(task, np.asarray(table.gold))
    return compute(task.metrics, gold, kind.decode(task, logits))


def score(tasks: Sequence[Task], metrics: Mapping[str, Mapping[str, float]]) -> float | None:
    """Mean over tasks, without WNLI, of the primary metric, as a fraction; None without tasks."""
    values = [
        metrics[task.name][task.primary_metric]
        for task in tasks
        if task.name in metrics and task.name not in NOT_IN_SCORE
    ]
    return float(np.mean(values)) if values else None


def evaluate(
    run: Run | str | Path,
    split: str = "dev",
    *,
    tasks: Sequence[Task] | None = None,
    precision: str = "fp32",
    device: str = "auto",
) -> dict[str, Any]:
    """Evaluates a finished run on one split and records metrics and logits in its folder.

    Args:
        run: The run or its folder.
        split: `dev`, `train`, ...; tasks without this split are left out.
        tasks: The run's tasks with other files; default: as they were in training.
        precision: `fp32`, `bf16` or `auto`.
        device: `auto`, `cpu`, `cuda`, ...

    Returns:
        {"tasks": {name: {metric: fraction, ..., "n": rows}}, "score": mean of the primaries}.

    Raises:
        UserError: If the run is incomplete or has no weights, or no task has the split.
    """
    run = open_run(run)
    tasks = tuple(tasks or run.tasks())
    with_split = [task for task in tasks if split in task.splits]
    if not with_split or not is_labelled(split):
        known = sorted({name for task in tasks for name in task.splits if is_labelled(name)})
        raise UserError(
            f"cannot evaluate on split {split!r}: no task has labels there, "
            f"expected one of {', '.join(known)}",
            "`outshine predict` answers rows without labels",
        )
    forward, tokenizer = load_forward(run, device, precision)
    max_length = run.config()["settings"]["max_length"]
    results = {}
    for task in with_split:
        table = encode(task, split, tokenizer, max_length)
        predictions = predict_table(forward, table, run.info()["id"])
        results[task.name] = table_metrics(table, predictions.logits)
        if forward.precision == "fp32" and split != "train":
            predictions.save(run.predictions_path(task.name, split))
    run.add_metrics({name: {split: values} for name, values in results.items()})
    return {"tasks": results, "score": score(with_split, results)}


def load_forward(run: Run, device: str, precision: str) -> tuple[Forward, Any]:
    """Loads a run's model onto a device; returns it with its tokenizer.

    Raises:
        UserError: If the run kept no weights.
    """
    if not (run.model_dir / "tasks.json").exists():
        raise UserError(
            f"cannot load the run {run.path}: no weights, expected {run.model_dir}",
            'it was trained with keep = "predictions" or "metrics": train again with keep = "all"',
        )
    model, tokenizer, _ = load_model(run.model_dir)
    place = pick_device(device)
    return make_forward(model, tokenizer, place, pick_precision(precision, place)), tokenizer


# --- raw text ---------------------------------------------------------------------------------

Texts = tuple[str, ...]


@dataclass(frozen=True)
class Predictor:
    """A model with its tokenizer and tasks, ready for raw text."""

    forward: Forward
    tokenizer: Any
    tasks: tuple[Task, ...]
    max_length: int

    @cached_property
    def _by_name(self) -> dict[str, Task]:
        return {task.name: task for task in self.tasks}

    def choose(self, names: Sequence[str] | None) -> tuple[Task, ...]:
        """The tasks of these names, or all.

        Raises:
            UserError: If the model lacks one.
        """
        if names is None:
            return self.tasks
        for name in names:
            if name not in self._by_name:
                raise UserError(
                    f"unknown task {name!r}{did_you_mean(name, self._by_name)}, "
                    f"expected some of {', '.join(self._by_name)}",
                    "these are the tasks that the model was trained on",
                )
        return tuple(self._by_name[name] for name in names)

    def predict(
        self,
        rows: Iterable[str | Sequence[str] | Mapping[str, Any]],
        tasks: Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Answers rows with all tasks that they have the columns for, from one encoder pass.

        Args:
            rows: A text, a pair of texts, or a mapping with the tasks' text columns by name or
                `text` / `text_a`, `text_b`; `id` is handed through.
            tasks: Names of the tasks to answer; default: all that a row has the columns for.

        Returns:
            Per row a dictionary: task -> {"label", "probs"} or {"value"}.

        Raises:
            UserError: If a named task is unknown or cannot be answered, a row fits no task, or
                a text is empty.
        """
        return [answer for answer, _ in self.stream(rows, tasks)]

    def stream(
        self, rows: Iterable[Any], tasks: Sequence[str] | None = None
    ) -> Iterator[tuple[dict[str, Any], frozenset[str]]]:
        """Yields (answer, names of tasks not answered) for each row, in bounded memory."""
        chosen = self.choose(tasks)
        iterator = iter(rows)
        first = 1
        while batch := list(islice(iterator, ROWS_PER_CALL)):
            wanted = [
                row_texts(row, chosen, first + i, strict=tasks is not None)
                for i, row in enumerate(batch)
            ]
            answers = self._answer(wanted)
            for row, texts, answer in zip(batch, wanted, answers, strict=True):
                given = {"id": row["id"]} if isinstance(row, Mapping) and "id" in row else {}
                yield given | answer, frozenset(t.name for t in chosen) - texts.keys()
            first += len(batch)

    def _answer(self, wanted: Sequence[Mapping[str, Texts]]) -> list[dict[str, Any]]:
        return [
            {
                name: kind_of(self._by_name[name]).answer(self._by_name[name], values)
                for name, values in row.items()
            }
            for row in self.logits(wanted)
        ]

    @torch.no_grad()
    def logits(self, wanted: Sequence[Mapping[str, Texts]]) -> list[dict[str, np.ndarray]]:
        """Runs each distinct text (or pair) through the encoder once, and its tasks' heads.

        Args:
            wanted: Per row, task -> the text or texts that it reads.

        Returns:
            Per row, task -> (C,) float32 logits.
        """
        distinct = {
            texts: i
            for i, texts in enumerate(
                dict.fromkeys(texts for row in wanted for texts in row.values())
            )
        }
        heads_of: list[set[str]] = [set() for _ in distinct]
        for row in wanted:
            for name, texts in row.items():
                heads_of[distinct[texts]].add(name)
        encoded = list(tokenize(self.tokenizer, list(distinct), self.max_length))
        lengths = np.array([len(ids) for ids, _, _ in encoded], np.int64)
        logits: list[dict[str, np.ndarray]] = [{} for _ in distinct]
        for members in self.forward.divide(lengths):
            chosen = [encoded[i] for i in members]
            pooled = self.forward.pooled(
                Rows(
                    np.concatenate([np.array(ids, np.int64) for ids, _, _ in chosen]),
                    np.concatenate([np.array(types, np.int64) for _, types, _ in chosen]),
                    lengths[members],
                )
            )
            for name in sorted(set().union(*(heads_of[i] for i in members))):
                rows = [place for place, i in enumerate(members) if name in heads_of[i]]
                values = self.forward.model.head(name)(pooled[rows]).cpu().numpy()
                for place, value in zip(rows, values, strict=True):
                    logits[members[place]][name] = value
        return [
            {name: logits[distinct[texts]][name] for name, texts in row.items()} for row in wanted
        ]


def load(run: Run | str | Path, *, device: str = "auto", precision: str = "fp32") -> Predictor:
    """Loads a finished run for prediction.

    Args:
        run: The run or its folder.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `fp32` (default), `bf16` or `auto`. With bf16 the answers depend a little on
            which rows are computed together.

    Raises:
        UserError: If the run is incomplete, damaged, or kept no weights.
    """
    run = open_run(run)
    forward, tokenizer = load_forward(run, device, precision)
    max_length = int(run.config()["settings"]["max_length"])
    return Predictor(forward, tokenizer, run.tasks(), max_length)


def row_texts(row: Any, tasks: Sequence[Task], number: int, *, strict: bool) -> dict[str, Texts]:
    """Task -> the texts that it reads of one input row.

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
    elif isinstance(row, Sequence) and len(row) == 2:
        cells = {"text_a": row[0], "text_b": row[1]}
    else:
        raise UserError(
            f"cannot answer row {number}: {type(row).__name__}, expected a text, a pair of texts "
            "or an object",
            'for example {"text": "..."}',
        )
    found = {}
    for task in tasks:
        generic = ("text",) if len(task.text) == 1 else ("text_a", "text_b")
        columns = next((c for c in (task.text, generic) if all(n in cells for n in c)), None)
        if columns is None:
            if strict:
                raise UserError(
                    f"cannot answer row {number} for task {task.name!r}: columns "
                    f"{', '.join(cells)}, expected {' and '.join(task.text)} or "
                    f"{' and '.join(generic)}",
                    "rename the columns, or leave the task out",
                )
            continue
        for column in columns:
            if not isinstance(cells[column], str) or not cells[column].strip():
                raise UserError(
                    f"cannot answer row {number}: column {column!r} is {cells[column]!r}, "
                    "expected a text that is not empty",
                    "mend or remove the row",
                )
        found[task.name] = tuple(cells[column] for column in columns)
    if not found:
        needs = "; ".join(f"{task.name}: {' + '.join(task.text)}" for task in tasks)
        raise UserError(
            f"cannot answer row {number}: columns {', '.join(cells)}, expected those of a task "
            f"({needs}), or text, or text_a and text_b",
            "rename the columns",
        )
    return found
