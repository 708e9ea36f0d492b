"""What `outshine train` and `distill` would do, without training: for `--dry-run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from outshine import teachers as teaching
from outshine.config import TrainConfig
from outshine.console import say
from outshine.distillation import plan_steps
from outshine.planning import Plan, describe, prepare, run_to_start_from, settle
from outshine.tasks import Task, unique_tasks


def preview(
    tasks: Sequence[Task],
    cfg: TrainConfig | None = None,
    *,
    teachers: teaching.Teachers | None = None,
    out: str | Path | None = None,
    force: bool = False,
    **overrides: Any,
) -> dict[str, Any]:
    """Checks the arguments of `training.train` and prints the resolved mixture.

    Nothing is written but encoded tables in the cache; teachers are looked at, and logits that
    they lack are not computed.

    Returns:
        {"out", "settings", "steps", "precision", "tasks": {name: {"rows", "probability",
        "passes", "weight", "tokens" (of one pass), "truncated", "teachers"}}}.

    Raises:
        UserError: If anything given is wrong.
    """
    tasks, cfg, path = settle(tasks, cfg or TrainConfig(), out, force, overrides)
    sources = teaching.normalise(teachers, tasks)
    for task in tasks:
        for source in sources.get(task.name, []):
            teaching.recognise(source, task)
            if cfg.init == "teachers":
                run_to_start_from(source, task, cfg)
    plan = _plan(tasks, cfg, sources)
    describe(plan)
    return {"out": str(path)} | _facts(plan)


def preview_distillation(
    tasks: Sequence[Task],
    *,
    out: str | Path,
    settings: Mapping[str, Any],
    single: Mapping[str, Any],
    multi: Mapping[str, Any],
    student: Mapping[str, Any],
    teachers: teaching.Teachers | None = None,
) -> dict[str, Any]:
    """Checks the arguments of `distillation.distill` and prints the mixture of each of its runs.

    Returns:
        {"runs": [what `preview` returns, for each run in order]}.

    Raises:
        UserError: If anything given is wrong.
    """
    tasks = unique_tasks(tasks)
    sources = teaching.normalise(teachers, tasks)
    for task in tasks:
        for source in sources.get(task.name, []):
            teaching.recognise(source, task)
    _, steps = plan_steps(tasks, sources, Path(out), settings, single, multi, student)
    runs = []
    for number, step in enumerate(steps, start=1):
        say(f"\n[{number}/{len(steps)}] {step.title}: {step.path}")
        taught = {task.name: [str(Path(out) / "teachers" / task.name)] for task in tasks} | sources
        last = number == len(steps)
        plan = _plan(step.tasks, step.cfg, taught if last else {})
        describe(plan)
        runs.append({"out": str(step.path)} | _facts(plan))
    return {"runs": runs}


def _plan(tasks: tuple[Task, ...], cfg: TrainConfig, sources: dict[str, list[str]]) -> Plan:
    """The plan of a run whose teachers need not exist yet; it computes nothing of theirs."""
    start = "encoder" if sources and cfg.init == "teachers" else cfg.init
    plan = prepare(tasks, cfg.model_copy(update={"init": start}), None)
    return replace(plan, cfg=cfg, teachers=sources)


def _facts(plan: Plan) -> dict[str, Any]:
    mixture = plan.mixture
    return {
        "settings": plan.cfg.model_dump(mode="json"),
        "steps": mixture.num_steps,
        "precision": plan.forward.precision,
        "tasks": {
            part.table.task.name: {
                "rows": len(part.rows),
                "probability": part.probability,
                "passes": mixture.passes(part),
                "weight": part.weight,
                "tokens": int(part.table.lengths_of(part.rows).sum()),
                "truncated": int(np.asarray(part.table.truncated)[part.rows].sum()),
                "teachers": plan.teachers.get(part.table.task.name, []),
            }
            for part in mixture.parts
        },
    }
