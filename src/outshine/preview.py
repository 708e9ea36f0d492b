"""What `outshine train` would do, without training: for `--dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from outshine import teachers as teaching
from outshine.config import TrainConfig
from outshine.planning import Plan, describe, prepare, settle
from outshine.tasks import Task


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
    plan = replace(prepare(tasks, cfg, None), teachers=sources)
    describe(plan)
    return {"out": str(path)} | _facts(plan)


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
