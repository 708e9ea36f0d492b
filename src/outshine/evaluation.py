"""From a model and the rows of a task to logits, metrics and scores. C outputs of a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outshine.batches import gather
from outshine.console import progress, say
from outshine.data import TokenTable, encode
from outshine.errors import DivergedError, UserError, WorldError
from outshine.forward import Forward, load_forward
from outshine.metrics import NOT_IN_SCORE, compute
from outshine.predictions import Predictions
from outshine.readers import is_labelled
from outshine.runs import Run, open_run
from outshine.tasks import Task, kind_of


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
    passes = forward.passes(table.lengths_of(rows), lambda part: gather([table], [rows[part]]))
    for members, pooled in passes:
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


def evaluate_tables(
    forward: Forward,
    tables: Mapping[tuple[str, str], TokenTable],
    run: Run,
    run_id: str,
    *,
    keep_logits: bool = True,
) -> dict[str, dict[str, dict[str, float]]]:
    """Evaluates a new run's weights, and writes the logits into its folder.

    Args:
        forward: The weights.
        tables: (task, split) -> encoded rows.
        run: Whose folder.
        run_id: Its id.
        keep_logits: Whether logits are written.

    Returns:
        Content of `metrics.json`.

    Raises:
        DivergedError: If a logit is not finite.
    """
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    with progress("evaluating", sum(map(len, tables.values()))) as bar:
        for (name, split), table in tables.items():
            predictions = predict_table(forward, table, run_id, None, bar.advance)
            if not np.isfinite(predictions.logits).all():
                raise DivergedError(
                    f"evaluation stopped: a logit of {name} is not finite",
                    'nothing was saved; try a lower lr, or precision = "fp32"',
                )
            metrics.setdefault(name, {})[split] = table_metrics(table, predictions.logits)
            if keep_logits:
                predictions.save(run.predictions_path(name, split))
    return metrics


def table_metrics(table: TokenTable, logits: np.ndarray) -> dict[str, float]:
    """The task's metrics on one split, as `metrics.compute` gives them."""
    kind, task = kind_of(table.task), table.task
    gold = kind.gold_values(task, np.asarray(table.gold))
    return compute(task.metrics, gold, kind.decode(task, logits))


def halves(num_rows: int) -> list[np.ndarray]:
    """The rows of the two halves of a dev set, the same ones always.

    What is fitted on one half is judged by the other, and then the halves are swapped.
    """
    order = np.random.default_rng(0).permutation(num_rows)
    return [order[: num_rows // 2], order[num_rows // 2 :]]


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
    """Evaluates a finished run on one split.

    Metrics and logits are recorded in its folder, but for those of other data than the run knows
    by the split's name, or of another precision than the run's own records. Nothing is recorded of
    a run of the hub.

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
            f"expected one of {', '.join(known) or 'none, for its data are not here'}",
            "`outshine predict` answers rows without labels",
        )
    forward, tokenizer = load_forward(run, device, precision)
    max_length = run.max_length()
    results, recorded = {}, {}
    for task in with_split:
        table = encode(task, split, tokenizer, max_length)
        predictions = predict_table(forward, table, run.info()["id"])
        results[task.name] = table_metrics(table, predictions.logits)
        if forward.precision == "fp32" and _is_data_of(run, table):
            recorded[task.name] = predictions
    _record(run, split, recorded, results)
    return {"tasks": results, "score": score(with_split, results)}


def _is_data_of(run: Run, table: TokenTable) -> bool:
    """Whether a table is the split that the run knows by its name, or one new to it."""
    known = run.info()["data"].get(table.task.name, {}).get(table.split, table.data)
    return known == table.data


def _record(
    run: Run, split: str, recorded: Mapping[str, Predictions], results: Mapping[str, Any]
) -> None:
    """Adds logits (those on train are the teachers' cache, of other rows) and metrics to a run."""
    if run.hub:
        say(f"note: not recorded: {run.hub} is a run of the hub, which is only read")
        return
    left_out = [name for name in results if name not in recorded]
    if left_out:
        say(
            f"note: not recorded in {run.path}: {', '.join(left_out)} (other data than the run "
            "was made with, or another precision)"
        )
    try:
        for name, predictions in recorded.items():
            if split != "train":
                predictions.save(run.predictions_path(name, split))
        run.add_metrics({name: {split: results[name]} for name in recorded})
    except WorldError as error:
        say(f"note: not recorded: {error}")
