"""Teachers, plain multi-task model and student side by side: dev metrics and their table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outshine import teachers as teaching
from outshine.console import say, show
from outshine.data import TokenTable
from outshine.evaluation import score, table_metrics
from outshine.metrics import standard_error
from outshine.runs import Run
from outshine.tasks import Task, kind_of

STUDENT = "single->multi"
ARMS = ("single", "multi", STUDENT)


def tables_by_task(
    tables: Mapping[tuple[str, str], TokenTable],
) -> dict[str, dict[str, TokenTable]]:
    """(task, split) -> table, as task -> split -> table."""
    found: dict[str, dict[str, TokenTable]] = {}
    for (name, split), table in tables.items():
        found.setdefault(name, {})[split] = table
    return found


def compare_arms(
    tasks: Sequence[Task],
    sources: Mapping[str, Sequence[str]],
    multi: Run,
    student: Run,
    dev: Mapping[str, Mapping[str, TokenTable]],
    device: str,
) -> dict[str, Any]:
    """Every dev metric of every arm, as fractions, with the standard error of the primary one.

    Returns:
        {"tasks": {task: {"metric": name, "arms": {arm: {split: {metric: ..., "n": rows,
        "standard_error": ...}}}}}, "score": {arm: {"value", "standard_error"}}}; an arm without
        dev logits (a teacher that is a table) has {} and no score.
    """
    found: dict[str, Any] = {}
    for task in tasks:
        by_arm = zip(
            ARMS, (sources[task.name], [str(multi.path)], [str(student.path)]), strict=True
        )
        found[task.name] = {
            "metric": task.primary_metric,
            "arms": {arm: measure(task, dev[task.name], given, device) for arm, given in by_arm},
        }
    return {"tasks": found, "score": {arm: _score(tasks, found, arm) for arm in ARMS}}


def measure(
    task: Task, tables: Mapping[str, TokenTable], sources: Sequence[str], device: str
) -> dict[str, dict[str, float]]:
    """Dev metrics of one model, or ensemble, from its saved dev logits where it has them."""
    # a table's ids are those of train rows, and dev rows have the same numbers
    known = [teaching.recognise(source, task) for source in sources]
    if not known or any(isinstance(teacher, Path) for teacher in known):
        return {}
    kind, found = kind_of(task), {}
    for split, table in tables.items():
        logits = teaching.teacher_logits(sources, table, np.arange(len(table)), device)
        gold = kind.gold_values(task, np.asarray(table.gold))
        error = standard_error(task.primary_metric, gold, kind.decode(task, logits))
        found[split] = table_metrics(table, logits) | {"standard_error": error}
    return found


def _score(tasks: Sequence[Task], found: Mapping[str, Any], arm: str) -> dict[str, float] | None:
    """Mean of the primary dev metrics, and its standard error (dev sets are independent)."""
    dev = {name: entry["arms"][arm].get("dev") for name, entry in found.items()}
    if None in dev.values():
        return None
    value = score(tasks, dev)
    # the same mean over one task alone tells whether it counts
    counted = [dev[task.name] for task in tasks if score([task], dev) is not None]
    if value is None:
        return None
    error = math.sqrt(sum(row["standard_error"] ** 2 for row in counted)) / len(counted)
    return {"value": value, "standard_error": error}


def show_results(results: Mapping[str, Any]) -> None:
    """Prints the table of scores in percent, and what one model costs against several."""
    rows = []
    for name, entry in results["tasks"].items():
        metric, arms = entry["metric"], entry["arms"]
        for split, student in arms[STUDENT].items():
            cells = [_cell(arms[arm].get(split, {}), metric) for arm in ARMS]
            title = name if split == "dev" else f"{name} {split}"
            rows.append([title, metric, *cells, str(student["n"])])
    totals = [_cell(results["score"][arm] or {}, "value") for arm in ARMS]
    rows.append(["score", "mean", *totals, ""])
    show(
        f"Dev scores in percent, ± the standard error of so many dev rows; seed {results['seed']}",
        ["task", "metric", *ARMS, "n"],
        rows,
    )
    cost = results["cost"]
    if cost is None:
        say("cost: not measured, because fewer than two teachers are runs")
        return
    one, many, count = cost["student"], cost["teachers"], cost["num_models"]
    rows = []
    for key, title, less_is_better in (
        ("megabytes", "megabytes on disk", True),
        ("ms_per_row", "ms per text, one at a time", True),
        ("rows_per_s", f"texts/s, {cost['batch_size']} at a time", False),
    ):
        gain = many[key] / one[key] if less_is_better else one[key] / many[key]
        rows.append([title, f"{one[key]:,.1f}", f"{many[key]:,.1f}", f"{gain:.1f}"])
    show(
        f"Cost of one student against {count} teachers, each text answered by all heads",
        ["", "student", f"{count} teachers", "gain"],
        rows,
    )
    machine, inputs = results["machine"], cost["num_inputs"]
    say(
        f"Measured on dev texts in float32, {machine['num_threads']} threads of "
        f"{machine['device']}; median of {cost['rounds']} rounds in turn."
    )
    if inputs > 1:
        say(
            f"One pass answers the tasks that read the same columns. These {cost['num_tasks']} "
            f"tasks read {inputs} different sets of columns, so a row that has them all takes the "
            f"student {inputs} passes and the teachers {cost['num_tasks']}."
        )


def _cell(values: Mapping[str, float], metric: str) -> str:
    if metric not in values:
        return "-"
    mark = " (constant)" if "constant_prediction" in values else ""
    return f"{100 * values[metric]:.1f} ± {100 * values['standard_error']:.1f}{mark}"
