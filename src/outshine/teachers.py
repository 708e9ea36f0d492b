"""Teachers: whatever gives a distribution for each train row, joined by example id.

A teacher is an Outshine run, a transformers sequence classifier, or a table of probabilities;
several of them for one task are an ensemble.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np

from outshine.cells import FileFormat, Tally, cell_text, existing_file, file_cells
from outshine.classifiers import classifier_model
from outshine.config import TrainConfig, takes_swapped
from outshine.console import progress, say
from outshine.data import TokenTable, encode
from outshine.encoders import load_tokenizer, locate
from outshine.errors import UserError, WorldError, raise_problems
from outshine.evaluation import predict_table, table_metrics
from outshine.files import cache_dir, digest
from outshine.forward import Forward, load_forward, make_forward
from outshine.kinds import to_number
from outshine.model import num_positions, weights_digest
from outshine.predictions import Predictions
from outshine.runs import Run, is_run_config, open_run
from outshine.tasks import FILE_ENDINGS, Task, kind_of

Source = str | Path | Run
Teachers = Mapping[str, Source | Sequence[Source]]

_read_only: ContextVar[tuple[Path, ...]] = ContextVar("_read_only", default=())


@contextmanager
def only_reading(folders: Sequence[Path]) -> Iterator[None]:
    """Keeps fresh logits of runs below these folders, somebody else's, in the cache folder."""
    token = _read_only.set(tuple(folder.resolve() for folder in folders))
    try:
        yield
    finally:
        _read_only.reset(token)


def normalise(teachers: Teachers | None, tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Task -> its teachers as text, checked for tasks that are not trained.

    Raises:
        UserError: If a teacher is given for a task that is not trained.
    """
    names = [task.name for task in tasks]
    plain: dict[str, list[str]] = {}
    for name, given in (teachers or {}).items():
        if name not in names:
            raise UserError(
                f"cannot use a teacher for {name!r}: no such task, expected one of "
                f"{', '.join(names)}",
                "give it as TASK=TEACHER with the name of a task that is trained",
            )
        sources = [given] if isinstance(given, str | Path | Run) else list(given)
        plain[name] = [str(s.path if isinstance(s, Run) else s) for s in sources]
    return {name: plain[name] for name in names if name in plain}


def teacher_logits(
    sources: Sequence[str], table: TokenTable, rows: np.ndarray, device: str
) -> np.ndarray:
    """(n, C) float32 logits of a task's teacher, or ensemble, for train rows in their order.

    Args:
        sources: Runs, classifier folders or hub ids, or tables.
        table: The student's encoded train split; teachers with another tokenizer encode anew.
        rows: (n,) rows of the table.
        device: Where logits that are missing are computed.

    Raises:
        UserError: If a teacher is of another task, labels or data, or lacks rows.
    """
    members = [_one(source, table, rows, device) for source in sources]
    for source, logits in zip(sources, members, strict=True):
        if not np.isfinite(logits).all():
            raise UserError(
                f"cannot use the teacher {source} for {table.task.name!r}: a logit is not finite",
                "its training diverged: train it again with a lower lr",
            )
    return members[0] if len(members) == 1 else kind_of(table.task).average(members)


def recognise(source: str, task: Task) -> Path | Run | None:
    """Tells what a teacher is, without computing anything.

    Returns:
        The path of a table, a complete run, or None for a transformers classifier.

    Raises:
        UserError: If it is none of these, or a run of another task.
    """
    path = Path(source)
    if path.suffix in FILE_ENDINGS:
        return existing_file(path)
    if (path / "run.json").is_file() or is_run_config(path / "config.json"):
        run = open_run(path)
        _check_task(run, task)
        return run
    is_local = path.exists() or source.startswith((".", "/")) or source.count("/") != 1
    if is_local and not (path / "config.json").is_file():
        found = "no run and no classifier in it" if path.exists() else "no such file or folder"
        raise UserError(
            f"cannot use the teacher {source} for {task.name!r}: {found}",
            "a teacher is a run, a transformers classification folder or hub id, or a table "
            "of probabilities (csv, tsv, jsonl, parquet)",
        )
    return None


def dev_metrics(sources: Sequence[str], table: TokenTable, device: str) -> dict[str, float]:
    """Metrics of a task's teacher, or ensemble, on a student's dev rows; {} where it has none.

    A table's ids are those of train rows, and dev rows have the same numbers. A run that had other
    dev rows has no logits of these, nor may they replace its own.

    Raises:
        UserError: If a teacher's dev logits are damaged.
    """
    for source in sources:
        teacher = recognise(source, table.task)
        if isinstance(teacher, Path) or (teacher and not _can_answer(teacher, table)):
            return {}
    return table_metrics(table, teacher_logits(sources, table, np.arange(len(table)), device))


def _can_answer(run: Run, table: TokenTable) -> bool:
    """Whether a run had exactly these dev rows, and has their logits or its weights."""
    name, split = table.task.name, table.split
    known = run.info().get("data", {}).get(name, {}).get(split)  # folds joined by a study have none
    answers = (run.predictions_path(name, split), run.model_dir / "tasks.json")
    return known == table.data and any(path.exists() for path in answers)


def _one(source: str, table: TokenTable, rows: np.ndarray, device: str) -> np.ndarray:
    teacher = recognise(source, table.task)
    if isinstance(teacher, Run):
        logits, missing = _run_teacher(teacher, table, rows, device)
    elif teacher is not None:
        logits, missing = _table_teacher(teacher, table, rows)
    else:
        logits, missing = _classifier_teacher(source, table, rows, device)
    if missing:
        raise UserError(
            f"cannot use the teacher {source} for {table.task.name!r}: no logits for "
            f"{len(missing)} of {len(rows)} train rows, the first with id "
            f"{table.ids[rows[missing[0]]]!r}, expected all",
            "a table needs one row per example id (`17/swap` for swapped pairs, or "
            "`--set symmetric=false`); a run without weights cannot compute more",
        )
    return logits


def _run_teacher(
    run: Run, table: TokenTable, rows: np.ndarray, device: str
) -> tuple[np.ndarray, list[int]]:
    """Logits that a run keeps; rows that it lacks are computed and added to them.

    Those of a run whose folder cannot, or may not (`only_reading`), be written are kept in the
    cache folder.
    """
    task = table.task
    path = run.predictions_path(task.name, table.split)
    key = digest({"run": run.info()["id"], "data": table.data})
    cached = cache_dir() / "teachers" / f"{task.name}-{table.split}-{key[:24]}.safetensors"
    ids = [table.ids[row] for row in rows.tolist()]
    known = None
    for place in (path, cached):
        if place.exists():
            known = Predictions.load(place)
            known.check(place, task, table.data)
            logits, missing = known.take(ids)
            if not missing:
                return logits, []
    if not (run.model_dir / "tasks.json").exists():
        return np.empty((0, 0), np.float32), list(range(len(ids))) if known is None else missing
    forward, tokenizer = load_forward(run, device, "fp32")
    max_length = run.max_length()
    own = encode(task, table.split, tokenizer, max_length, swapped=_has_swapped(table))
    wanted = set(ids) | set(known.ids if known else [])
    fresh = _compute(forward, own, run.info()["id"], wanted, f"teacher logits of {run.path}")
    if any(run.path.resolve().is_relative_to(folder) for folder in _read_only.get()):
        fresh.save(cached)
        return fresh.take(ids)
    try:
        fresh.save(path)
    except WorldError as error:
        fresh.save(cached)
        say(f"note: {error.message}; the teacher's logits are kept in {cached}")
    return fresh.take(ids)


def _check_task(run: Run, task: Task) -> None:
    taught = {other.name: other for other in run.tasks()}
    what = f"cannot use the teacher {run.path} for {task.name!r}"
    if task.name not in taught:
        raise UserError(
            f"{what}: it was trained on {', '.join(taught)}, expected {task.name}",
            "choose a run of this task",
        )
    other = taught[task.name]
    for field in ("kind", "labels", "range", "version"):
        if getattr(other, field) != getattr(task, field):
            raise UserError(
                f"{what}: {field} {getattr(other, field)}, expected {getattr(task, field)}",
                "teacher and student must mean the same task",
            )


def _has_swapped(table: TokenTable) -> bool:
    return len(table) > table.num_originals


def _compute(
    forward: Forward, table: TokenTable, run_id: str, ids: set[str], what: str
) -> Predictions:
    """Logits of the rows with these ids, with a progress bar."""
    rows = np.array([row for row, i in enumerate(table.ids) if i in ids], np.int64)
    with progress(what, len(rows)) as bar:
        return predict_table(forward, table, run_id, rows, bar.advance)


def _classifier_teacher(
    source: str, table: TokenTable, rows: np.ndarray, device: str
) -> tuple[np.ndarray, list[int]]:
    """Logits of a transformers classifier, cached by the content of its weights and the data."""
    from outshine.devices import pick_device

    task = table.task
    folder = locate(source, "the teacher")
    try:
        model = classifier_model(folder, task)
    except ValueError as error:
        raise UserError(
            f"cannot use the teacher {source} for {task.name!r}: {error}",
            "set id2label in its config.json to the task's labels, in any order",
        ) from None
    tokenizer = load_tokenizer(folder)
    max_length = min(512, num_positions(model) or 512)
    own = encode(task, table.split, tokenizer, max_length, swapped=_has_swapped(table))
    key = digest({"weights": weights_digest(model), "data": table.data, "ids": own.ids})
    path = cache_dir() / "teachers" / f"{task.name}-{key[:24]}.safetensors"
    ids = [table.ids[row] for row in rows.tolist()]
    if path.exists():
        logits, missing = Predictions.load(path).take(ids)
        if not missing:
            return logits, missing
    forward = make_forward(model, tokenizer, pick_device(device), "fp32")
    fresh = _compute(forward, own, key[:12], set(ids), f"teacher logits of {source}")
    fresh.save(path)
    return fresh.take(ids)


def _table_teacher(path: Path, table: TokenTable, rows: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Reads a table with the columns `id` and one per label (regression: `value`)."""
    task = table.task
    kind = kind_of(task)
    columns = kind.table_columns(task)
    tally = Tally()
    ids: list[str] = []
    values: list[list[float]] = []
    seen: set[str] = set()
    for line, cells in file_cells(path, FileFormat(("id", *columns)), tally):
        example_id = cell_text(cells["id"])
        numbers = [_number(cells[column]) for column in columns]
        problem = f"id {example_id!r} again, expected unique" if example_id in seen else ""
        for column, number in zip(columns, numbers, strict=True):
            if not np.isfinite(number):
                problem = f"column {column!r}: {cells[column]!r}, expected a finite number"
        problem = problem or kind.table_problem(np.array(numbers))
        if problem:
            tally.problem(f"{problem} ({path}:{line})")
            continue
        seen.add(example_id)
        ids.append(example_id)
        values.append(numbers)
    if not ids and not tally.problems:
        tally.problem(f"no row, expected at least one ({path})")
    raise_problems(
        f"cannot use the teacher {path} for {task.name!r}",
        tally.problems,
        f"the columns are id, {', '.join(columns)}",
    )
    logits = kind.logits_of_table(task, np.array(values))
    given = Predictions(logits, ids, "", task.name, task.version, task.labels, table.data)
    wanted = [table.ids[row] for row in rows.tolist()]
    extra = len(seen - set(table.ids))
    if extra:
        say(f"note: {extra} ids in {path} are no train rows of {task.name}; they are ignored")
    return given.take(wanted)


def _number(cell: Any) -> float:
    try:
        return to_number(cell) if isinstance(cell, str) else float(cell)
    except (TypeError, ValueError):
        return float("nan")


def teacher_cache(
    run: Run | str | Path,
    split: str = "train",
    device: str = "auto",
    *,
    dry_run: bool = False,
    into: Run | None = None,
) -> dict[str, int]:
    """Writes a run's logits on one split for each of its tasks; returns rows per task.

    With `dry_run` it only counts them. They go into the run's folder, or that of `into`.

    Raises:
        UserError: If the run is incomplete or kept no weights, or is one of the hub, or a task
            lacks the split.
    """
    run = open_run(run)
    run.check_own("keep the logits")
    settings = TrainConfig(**run.config()["settings"])
    forward, tokenizer = load_forward(run, device, "fp32")
    counts = {}
    for task in run.tasks():
        swapped = split == "train" and takes_swapped(task, settings)
        table = encode(task, split, tokenizer, settings.max_length, swapped=swapped)
        rows = np.arange(len(table))
        if split == "train":
            rows = table.selection(settings.max_train_rows, swapped)
        counts[task.name] = len(rows)
        if dry_run:
            continue
        with progress(f"logits of {task.name}", len(rows)) as bar:
            predictions = predict_table(forward, table, run.info()["id"], rows, bar.advance)
        predictions.save((into or run).predictions_path(task.name, split))
    return counts
