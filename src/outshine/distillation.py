"""Born-again distillation in one go: teachers, a plain multi-task model, the student, the table.

Everything stands in one folder DIR: `teachers/<task>`, `multi`, `student` and `results.json`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from outshine import teachers as teaching
from outshine.checkpoints import same_identity
from outshine.config import TrainConfig, build, resolve
from outshine.console import say, show
from outshine.data import TokenTable
from outshine.errors import UserError
from outshine.evaluation import Predictor, load, score, table_metrics
from outshine.files import write_json
from outshine.metrics import standard_error
from outshine.planning import WITHOUT_EFFECT, prepare, settle
from outshine.readers import read_rows
from outshine.runs import Run
from outshine.tasks import Task, kind_of, unique_tasks
from outshine.training import train

FORMAT = 1
STUDENT = "single->multi"
ARMS = ("single", "multi", STUDENT)

_BY_TASK = ("task_weight", "sampling_weights", "symmetric")
_NOT_SCORES = ("n", "constant_prediction", "standard_error")

# Cost is measured over so many rounds of both sides, in about so many seconds.
_ROUNDS = 5
_ALONE_S, _BATCHED_S = 2.0, 4.0


@dataclass(frozen=True)
class Distillation:
    """What `distill` made.

    Attributes:
        path: DIR.
        teachers: Task -> the run that taught it, where its teacher is one run.
        multi: The plain multi-task model.
        student: The born-again model.
        results: Content of `DIR/results.json`.
    """

    path: Path
    teachers: dict[str, Run]
    multi: Run
    student: Run
    results: dict[str, Any]


@dataclass(frozen=True)
class _Step:
    """One run to be made."""

    title: str
    tasks: tuple[Task, ...]
    cfg: TrainConfig
    path: Path


def distill(
    tasks: Sequence[Task],
    *,
    encoder: str = "",
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
    single: Mapping[str, Any] | None = None,
    multi: Mapping[str, Any] | None = None,
    student: Mapping[str, Any] | None = None,
    teachers: teaching.Teachers | None = None,
    seed: int = 1,
    force: bool = False,
) -> Distillation:
    """Trains teachers, a plain multi-task model and their student, and compares them.

    A run in DIR that is complete and would come out the same is kept; an interrupted one is
    taken up again.

    Args:
        tasks: Two or more, each with a dev split.
        encoder: Folder, hub id or `builtin`, for all runs.
        out: DIR.
        settings: For all runs; they have the last word over those of a stage.
        single: Settings of the teachers.
        multi: Settings of the plain multi-task model and, but for `student`, of the student.
        student: Settings of the student alone.
        teachers: Task -> a teacher that exists already (see `train`); it is not trained then.
        seed: Of every run.
        force: Whether complete runs are trained anew.

    Returns:
        The runs, and what `results.json` holds.

    Raises:
        UserError: If anything given is wrong, before any training; or if a complete run in DIR
            has other settings, data or teachers.
        WorldError: If the disk or the hub fails.
    """
    tasks, out = unique_tasks(tasks), Path(out)
    _check_request(tasks, out)
    sources = teaching.normalise(teachers, tasks)
    cfgs = _settings(
        {"encoder": encoder, "seed": seed},
        {"single": single or {}, "multi": multi or {}, STUDENT: student or {}},
        settings or {},
        len(tasks),
    )
    untaught = [task for task in tasks if task.name not in sources]
    steps = [
        *(
            _Step(
                f"teacher of {task.name}",
                (task,),
                _of_task(cfgs["single"], task),
                out / "teachers" / task.name,
            )
            for task in untaught
        ),
        _Step("multi-task model without teachers", tasks, cfgs["multi"], out / "multi"),
        _Step("student of all teachers", tasks, cfgs[STUDENT], out / "student"),
    ]
    for step in steps:
        settle(step.tasks, step.cfg, step.path, force=True, overrides={})
    # All data and the ready-made teachers are read here, before hours of training.
    plan = prepare(tasks, cfgs["multi"], sources)
    dev, device = _tables_by_task(plan.dev), cfgs["multi"].device
    del plan  # and with it the memory of a model
    for task in tasks:
        _measure(task, dev[task.name], sources.get(task.name, []), device)

    runs = []
    for number, step in enumerate(steps, start=1):
        say(f"\n[{number}/{len(steps)}] {step.title}: {step.path}")
        runs.append(_train_once(step, sources if number == len(steps) else None, force))
        if number <= len(untaught):
            sources[step.tasks[0].name] = [str(step.path)]

    *_, plain, born_again = runs
    taught_by = {task.name: _one_run(sources[task.name], task) for task in tasks}
    teacher_runs = {name: run for name, run in taught_by.items() if run is not None}
    results = _compare(tasks, sources, plain, born_again, dev, device)
    results |= {
        "format": FORMAT,
        "seed": seed,
        "settings": {arm: cfg.model_dump(mode="json") for arm, cfg in cfgs.items()},
        "teachers": {
            name: [_inside(source, out) for source in given] for name, given in sources.items()
        },
        "runs": {_inside(run.path, out): _brief(run) for run in runs},
        "machine": {
            key: born_again.info()[key]
            for key in ("device", "precision", "num_threads", "versions", "git_commit")
        },
        "cost": measure_cost(tasks, teacher_runs, born_again, device),
    }
    write_json(out / "results.json", results)
    show_results(results)
    say(f"The student is in {born_again.path}, all numbers are in {out / 'results.json'}")
    return Distillation(out, teacher_runs, plain, born_again, results)


def _check_request(tasks: Sequence[Task], out: Path) -> None:
    if len(tasks) < 2:
        raise UserError(
            f"cannot distil {tasks[0].name} alone: one task, expected two or more",
            f"for one task use `outshine train` twice, the second time with "
            f"--teacher {tasks[0].name}=RUN",
        )
    for task in tasks:
        if "dev" not in task.dev_splits:
            raise UserError(
                f"cannot distil {task.name}: no dev split, expected one to compare the models on",
                "add `dev = ...` or `holdout = 200` under [files] of the task",
            )
    if Run(out).is_complete:
        raise UserError(
            f"cannot distil into {out}: it is a run, expected a folder for several runs",
            "choose another --out",
        )


def _settings(
    common: Mapping[str, Any],
    stages: Mapping[str, Mapping[str, Any]],
    last: Mapping[str, Any],
    num_tasks: int,
) -> dict[str, TrainConfig]:
    """Complete settings of each arm's last stage; the student starts from those of `multi`."""
    below = {"single": {}, "multi": {}, STUDENT: stages["multi"]}
    given = {arm: build({**common, **below[arm], **stages[arm], **last}) for arm in ARMS}
    cfgs = {arm: resolve(cfg, 1 if arm == "single" else num_tasks) for arm, cfg in given.items()}
    for cfg in cfgs.values():
        if cfg.keep != "all":
            raise UserError(
                f'cannot distil with keep = "{cfg.keep}": expected keep = "all"',
                "teachers and student need their weights, to teach and to be weighed",
            )
    return cfgs


def _of_task(cfg: TrainConfig, task: Task) -> TrainConfig:
    """Settings of one teacher: what is given by task, for this task alone."""
    own = {
        key: {name: value for name, value in given.items() if name == task.name}
        for key in _BY_TASK
        if isinstance(given := getattr(cfg, key), dict)
    }
    return cfg.model_copy(update=own)


def _train_once(step: _Step, teachers: teaching.Teachers | None, force: bool) -> Run:
    """Trains a run, unless it is complete and would come out the same."""
    run = Run(step.path)
    if force or not run.is_complete:
        return train(step.tasks, step.cfg, teachers=teachers, out=step.path, force=force)
    info, plan = run.info(), prepare(step.tasks, step.cfg, teachers)
    found = {
        "settings": {k: v for k, v in run.config()["settings"].items() if k not in WITHOUT_EFFECT},
        "precision": info["precision"],
        "data": {name: splits["train"] for name, splits in info["data"].items()},
        "teachers": info["teachers"],
        "dev data": {name: splits["dev"] for name, splits in info["data"].items()},
    }
    dev = {name: table.data for (name, split), table in plan.dev.items() if split == "dev"}
    same_identity(run, found, plan.identity | {"dev data": dev})
    say("It is complete, and is kept.")
    return run


def _one_run(sources: Sequence[str], task: Task) -> Run | None:
    """The task's teacher, if it is one run."""
    teacher = teaching.recognise(sources[0], task) if len(sources) == 1 else None
    return teacher if isinstance(teacher, Run) else None


def _inside(path: str | Path, out: Path) -> str:
    """A path relative to DIR where it lies in it, so that DIR can be moved."""
    return str(Path(path).relative_to(out)) if Path(path).is_relative_to(out) else str(path)


def _brief(run: Run) -> dict[str, Any]:
    info = run.info()
    return {key: info[key] for key in ("id", "seed", "steps", "tokens", "train_s")}


# --- the comparison ---------------------------------------------------------------------------


def _tables_by_task(
    tables: Mapping[tuple[str, str], TokenTable],
) -> dict[str, dict[str, TokenTable]]:
    """(task, split) -> table, as task -> split -> table."""
    found: dict[str, dict[str, TokenTable]] = {}
    for (name, split), table in tables.items():
        found.setdefault(name, {})[split] = table
    return found


def _compare(
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
            "arms": {arm: _measure(task, dev[task.name], given, device) for arm, given in by_arm},
        }
    return {"tasks": found, "score": {arm: _score(tasks, found, arm) for arm in ARMS}}


def _measure(
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


# --- the cost ---------------------------------------------------------------------------------


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
    num_rows = min(max(int(_ALONE_S / (_ROUNDS * alone)), 1), len(texts))
    # in a batch a text costs less than alone
    batch_size = min(max(int(2 * _BATCHED_S / (_ROUNDS * alone)), 8), len(texts))
    work = {"alone": [[text] for text in texts[:num_rows]], "batched": [texts[:batch_size]]}
    seconds: dict[tuple[str, str], list[float]] = {
        (side, how): [] for how in work for side in sides
    }
    for _ in range(_ROUNDS):
        for (side, how), times in seconds.items():
            times.append(_seconds(sides[side], work[how]))
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    weights = {"student": [student], "teachers": [Run(path) for path in by_path]}
    return {
        "num_tasks": len(members),
        "num_models": len(by_path),
        "num_inputs": len({task.text for task in members}),
        "rounds": _ROUNDS,
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
