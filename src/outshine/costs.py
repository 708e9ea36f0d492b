"""What one model costs against several that give the same answers: disk, latency, throughput."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from outshine.predicting import Predictor, load
from outshine.readers import read_rows
from outshine.runs import Run
from outshine.tasks import Task

# Both sides are measured over so many rounds, in about so many seconds.
ROUNDS = 5
ALONE_S, BATCHED_S = 2.0, 4.0


def measure_cost(
    tasks: Sequence[Task], teachers: Mapping[str, Run], student: Run, device: str
) -> dict[str, Any] | None:
    """Measures what one model costs against several that give the same answers.

    Each dev text goes through the student once, for the answers of all its tasks, and through
    every teacher. Both sides take turns, with the same texts; a value is the median of the
    rounds. The numbers of texts are chosen so that it takes a few seconds.

    Args:
        tasks: The student's tasks.
        teachers: Task -> its run; tasks without one are left out on both sides.
        student: The run that answers all of them.
        device: `auto`, `cpu`, `cuda`, ...

    Returns:
        {"num_tasks", "num_models", "num_inputs" (different sets of text columns), "rounds",
        "num_rows" (texts, one at a time), "batch_size", "student" and "teachers":
        {"megabytes" (of 10**6 bytes), "ms_per_row", "rows_per_s"}}, or None with fewer than two
        teachers.
    """
    members = [task for task in tasks if task.name in teachers]
    by_path: dict[Path, list[Task]] = {}
    for task in members:
        by_path.setdefault(teachers[task.name].path, []).append(task)
    if len(by_path) < 2:
        return None
    sides = {
        "student": [_on_one_text(student, members, device)],
        "teachers": [_on_one_text(Run(path), taught, device) for path, taught in by_path.items()],
    }
    texts = _dev_texts(members, 64)
    for models in sides.values():
        _seconds(models, [texts[:2]])  # the first pass allocates
    alone = sum(_seconds(models, [[text] for text in texts[:2]]) for models in sides.values()) / 2
    num_rows = min(max(int(ALONE_S / (ROUNDS * alone)), 1), len(texts))
    # in a batch a text costs less than alone
    batch_size = min(max(int(2 * BATCHED_S / (ROUNDS * alone)), 8), len(texts))
    work = {"alone": [[text] for text in texts[:num_rows]], "batched": [texts[:batch_size]]}
    seconds: dict[tuple[str, str], list[float]] = {
        (side, how): [] for how in work for side in sides
    }
    for _ in range(ROUNDS):
        for (side, how), times in seconds.items():
            times.append(_seconds(sides[side], work[how]))
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    weights = {"student": [student], "teachers": [Run(path) for path in by_path]}
    return {
        "num_tasks": len(members),
        "num_models": len(by_path),
        "num_inputs": len({task.text for task in members}),
        "rounds": ROUNDS,
        "num_rows": num_rows,
        "batch_size": batch_size,
    } | {
        side: {
            "megabytes": sum(map(_num_bytes, weights[side])) / 1e6,
            "ms_per_row": 1000 * medians[side, "alone"] / num_rows,
            "rows_per_s": batch_size / medians[side, "batched"],
        }
        for side in sides
    }


def _on_one_text(run: Run, tasks: Iterable[Task], device: str) -> Predictor:
    """A model that answers the same text by all of these tasks, whichever columns they read."""
    single = [task.model_copy(update={"text": ("text",), "symmetric": False}) for task in tasks]
    return replace(load(run, device=device), tasks=tuple(single))


def _dev_texts(tasks: Sequence[Task], count: int) -> list[str]:
    """Dev rows as one text each, taken in turn from all tasks."""
    each = [islice(read_rows(task, "dev"), math.ceil(count / len(tasks))) for task in tasks]
    rows = [[" ".join(row.texts) for row in rows] for rows in each]
    longest = max(map(len, rows))
    return [texts[i] for i in range(longest) for texts in rows if i < len(texts)][:count]


def _seconds(models: Sequence[Predictor], batches: Sequence[Sequence[str]]) -> float:
    start = time.perf_counter()
    for batch in batches:
        for model in models:
            model.predict(batch)
    return time.perf_counter() - start


def _num_bytes(run: Run) -> int:
    return sum(file.stat().st_size for file in run.model_dir.rglob("*") if file.is_file())
