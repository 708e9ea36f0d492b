"""Born-again distillation in one go: teachers, a plain multi-task model, the student, the table.

Everything stands in one folder DIR: `teachers/<task>`, `multi`, `student` and `results.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outshine import teachers as teaching
from outshine.checkpoints import same_identity
from outshine.comparison import (
    ARMS,
    STUDENT,
    compare_arms,
    measure,
    show_results,
    tables_by_task,
)
from outshine.config import TrainConfig, of_tasks, resolve
from outshine.console import say
from outshine.costs import measure_cost
from outshine.errors import UserError
from outshine.files import write_json
from outshine.graph import other_start
from outshine.planning import prepare, run_to_start_from, settle
from outshine.processes import want_one_process
from outshine.runs import Run
from outshine.tasks import Task, unique_tasks
from outshine.training import train

FORMAT = 1

_NOT_SCORES = ("n", "constant_prediction", "standard_error")


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
class Step:
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
        settings: For all runs; those of a stage have the last word.
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
    want_one_process("distil")
    tasks, out = unique_tasks(tasks), Path(out)
    sources = teaching.normalise(teachers, tasks)
    cfgs, steps = plan_steps(
        tasks,
        sources,
        out,
        {"encoder": encoder, "seed": seed} | dict(settings or {}),
        single or {},
        multi or {},
        student or {},
    )
    num_teachers = len(steps) - 2
    # All data and the ready-made teachers are read here, before hours of training.
    plan = prepare(tasks, cfgs["multi"], sources)
    dev, device = tables_by_task(plan.dev), cfgs["multi"].device
    del plan  # and with it the memory of a model
    for task in tasks:
        if len(dev[task.name]["dev"]) < 2:
            raise UserError(
                f"cannot distil {task.name}: one dev row, expected two or more to compare on",
                "add dev rows, or raise `holdout`",
            )
        measure(task, dev[task.name], sources.get(task.name, []), device)

    runs = []
    for number, step in enumerate(steps, start=1):
        say(f"\n[{number}/{len(steps)}] {step.title}: {step.path}")
        runs.append(_train_once(step, sources if number == len(steps) else None, force))
        if number <= num_teachers:
            sources[step.tasks[0].name] = [str(step.path)]

    *_, plain, born_again = runs
    taught_by = {task.name: _one_run(sources[task.name], task) for task in tasks}
    teacher_runs = {name: run for name, run in taught_by.items() if run is not None}
    results = compare_arms(tasks, sources, plain, born_again, dev, device)
    results |= {
        "format": FORMAT,
        "seed": cfgs[STUDENT].seed,
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


def plan_steps(
    tasks: tuple[Task, ...],
    sources: Mapping[str, Sequence[str]],
    out: Path,
    settings: Mapping[str, Any],
    single: Mapping[str, Any],
    multi: Mapping[str, Any],
    student: Mapping[str, Any],
) -> tuple[dict[str, TrainConfig], list[Step]]:
    """The runs of a distillation in their order: teachers, multi-task model, student.

    Args:
        tasks: The student's tasks.
        sources: Task -> teachers that exist already.
        out: DIR.
        settings: As in `distill`, with encoder and seed; so are `single`, `multi`, `student`.

    Returns:
        Arm -> complete settings of its last stage, and the steps.

    Raises:
        UserError: If anything given is wrong.
    """
    _check_request(tasks, out)
    stages = {"single": single, "multi": multi, STUDENT: student}
    cfgs = _settings(settings, stages, len(tasks))
    steps = [
        Step(
            f"teacher of {task.name}",
            (task,),
            of_tasks(cfgs["single"], [task.name]),
            out / "teachers" / task.name,
        )
        for task in tasks
        if task.name not in sources
    ]
    steps += [
        Step("multi-task model without teachers", tasks, cfgs["multi"], out / "multi"),
        Step("student of all teachers", tasks, cfgs[STUDENT], out / "student"),
    ]
    for step in steps:
        settle(step.tasks, step.cfg, step.path, force=True, overrides={})
    if cfgs[STUDENT].init == "teachers":
        _check_start(tasks, sources, cfgs)
    return cfgs, steps


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
    num_tasks: int,
) -> dict[str, TrainConfig]:
    """Complete settings of each arm's last stage; the student starts from those of `multi`."""
    below = {"single": {}, "multi": {}, STUDENT: stages["multi"]}
    given = {arm: TrainConfig(**{**common, **below[arm], **stages[arm]}) for arm in ARMS}
    cfgs = {arm: resolve(cfg, 1 if arm == "single" else num_tasks) for arm, cfg in given.items()}
    for cfg in cfgs.values():
        if cfg.keep != "all":
            raise UserError(
                f'cannot distil with keep = "{cfg.keep}": expected keep = "all"',
                "teachers and student need their weights, to teach and to be weighed",
            )
    return cfgs


def _check_start(
    tasks: Sequence[Task], sources: Mapping[str, Sequence[str]], cfgs: Mapping[str, TrainConfig]
) -> None:
    """Refuses teachers from whose weights the student cannot start, before any of them trains."""
    differs = other_start(cfgs["single"].model_dump(), cfgs[STUDENT])
    if differs and len(sources) < len(tasks):
        raise UserError(
            f'cannot distil with init = "teachers": the teachers have {differs}',
            "the mean of weights needs the same encoder and pooling in all of them",
        )
    for task in tasks:
        for source in sources.get(task.name, ()):
            run_to_start_from(source, task, cfgs[STUDENT])


def _train_once(step: Step, teachers: teaching.Teachers | None, force: bool) -> Run:
    """Trains a run, unless it is complete and would come out the same."""
    run = Run(step.path)
    if force or not run.is_complete:
        return train(step.tasks, step.cfg, teachers=teachers, out=step.path, force=force)
    info, plan = run.info(), prepare(step.tasks, step.cfg, teachers)
    found = info["identity"] | {
        "dev data": {name: splits["dev"] for name, splits in info["data"].items()}
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
