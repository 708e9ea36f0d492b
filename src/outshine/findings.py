"""What a study found: the dict that its report shows, and the comparison of two arms."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from outshine.analysis import analyse, arm_warnings
from outshine.degenerate import RULE
from outshine.errors import UserError
from outshine.margin import TaskPredictions, margin_verdict
from outshine.metrics import NOT_IN_SCORE
from outshine.predictions import Predictions
from outshine.readers import data_fingerprint, read_rows
from outshine.results import Row
from outshine.runs import Run
from outshine.study import Study, read_study, results_of
from outshine.study_source import task_finder
from outshine.tasks import Task, kind_of


def report_data(study: Study) -> dict[str, Any]:
    """All that a report shows, as plain JSON data: the analysis and what surrounds it.

    Raises:
        UserError: If no run of an arm is finished.
    """
    rows = study.rows()
    results = results_of(study.spec, study.graph, rows)
    arms = {arm.name: list(_arm_rows(study, arm.name, rows)) for arm in study.spec.arms}
    counted = {row.run: row for of_arm in arms.values() for row in of_arm}
    if not counted:
        raise UserError(
            f"cannot report on the study {study.path}: no finished run, expected at least one",
            f"`outshine study run {study.path}` makes them",
        )
    analysis = analyse(results)
    settings = [f"{key}={_portable(key, value)}" for key, value in study.spec.overrides.items()]
    command = ["outshine", "study", "run", study.source]
    return {
        **analysis,
        "warnings": [*analysis["warnings"], *_machine_warnings(arms)],
        "methods": {
            **analysis["methods"],
            "degenerate": RULE,
            **({"selection": choices} if (choices := _choices(study)) else {}),
        },
        "choices": list(study.graph.choices),
        "study": study.spec.name,
        "metrics": dict(results.metrics),
        "dev_rows": dict(results.dev_rows),
        "seeds": list(results.seeds),
        "teachers": results.teachers,
        "file": study.spec.text,
        "command": shlex.join([*command, *(word for s in settings for word in ("--set", s))]),
        "made": datetime.now(UTC).date().isoformat(),
        "arms_info": {
            arm.name: {
                "chain": arm.chain,
                "tasks": list(arm.tasks),
                "set": dict(arm.stages[-1].settings),
                "teachers": str(arm.teachers) if len(arm.stages) > 1 else "",
            }
            for arm in study.spec.arms
        },
        "provenance": _provenance(_behind([*counted, *study.graph.trials], rows)),
        "curves": [
            {
                "arm": arm,
                "seed": row.seed,
                "task": row.tasks[0] if len(row.tasks) == 1 else None,
                "points": row.curve,
            }
            for arm, of_arm in arms.items()
            for row in of_arm
        ],
        "mixture": {
            arm: {name: facts for row in reversed(of_arm) for name, facts in row.mixture.items()}
            for arm, of_arm in arms.items()
        },
        "degenerate": [
            {
                "arm": arm,
                "seed": row.seed,
                "task": task,
                "reason": reason,
                "value": 100 * row.primary(task),
            }
            for arm, of_arm in arms.items()
            for row in of_arm
            for task, reason in row.degenerate.items()
        ],
    }


def _choices(study: Study) -> str:
    """What was chosen on the seed that is not reported, in words."""
    return " ".join(
        f"{choice['chain']} on {', '.join(choice['tasks'])}: {_settings(choice['chosen'])}, chosen "
        f"on seed {choice['seed']} by the score ("
        + "; ".join(f"{_settings(p)}: {100 * score:.1f}" for p, score in choice["scores"])
        + ")."
        for choice in study.graph.choices
    )


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {_toml(value)}" for key, value in settings.items())


def _arm_rows(study: Study, arm: str, rows: Mapping[str, Row]) -> Iterable[Row]:
    """The rows that give an arm's scores, seed by seed."""
    for runs in study.graph.ends[arm].values():
        yield from (rows[run] for run in runs if run in rows)


def _behind(runs: Iterable[str], rows: Mapping[str, Row]) -> list[Row]:
    """The rows of these runs, and of all that taught them or that they started from."""
    found: dict[str, Row] = {}
    left = list(runs)
    while left:
        run = left.pop()
        if run in rows and run not in found:
            row = found[run] = rows[run]
            # `init` may also be a word, which names no run
            left += [row.settings["init"], *(run for its in row.teachers.values() for run in its)]
    return [row for run, row in rows.items() if run in found]


def _provenance(rows: Sequence[Row]) -> dict[str, Any]:
    """Where the rows come from; of a fact in which they differ, all values."""
    names = dict.fromkeys(name for row in rows for name in row.versions)
    return {
        "versions": {name: _distinct(row.versions.get(name) for row in rows) for name in names},
        **{
            key: _distinct(getattr(row, key) for row in rows)
            for key in ("device", "precision", "num_threads")
        },
        "encoder": _distinct(row.settings["encoder"] for row in rows),
        "git_commits": list(dict.fromkeys(row.git_commit for row in rows if row.git_commit)),
        "data": {task: splits for row in rows for task, splits in row.data.items()},
        "train_s": sum(row.train_s for row in rows),
        "runs": len(rows),
    }


def _machine_warnings(arms: Mapping[str, Sequence[Row]]) -> list[str]:
    """Says in what the surroundings of arms differ: a difference of scores may come from that."""
    facts: dict[str, dict[str, set[str]]] = {}
    versions = dict.fromkeys(
        name for rows in arms.values() for row in rows for name in row.versions
    )
    unknown = dict.fromkeys(versions, "not recorded")
    for arm, rows in arms.items():
        for row in rows:
            its = {"device": row.device, "precision": row.precision, **unknown, **row.versions}
            for name, value in its.items():
                facts.setdefault(name, {}).setdefault(arm, set()).add(value)
    return [
        f"{name} is not the same in all arms, so that scores may differ by it: "
        + "; ".join(f"{arm}: {', '.join(sorted(values))}" for arm, values in by_arm.items())
        for name, by_arm in facts.items()
        if len(set(map(frozenset, by_arm.values()))) > 1
    ]


def _distinct(values: Iterable[Any]) -> Any:
    found = list(dict.fromkeys(values))
    return found[0] if len(found) == 1 else found


def _toml(value: Any) -> str:
    return value if isinstance(value, str) else str(value).lower()


def _portable(key: str, value: Any) -> str:
    """A setting without a path of this machine, as in rows."""
    is_path = key in ("encoder", "init") and Path(value).is_absolute()
    return Path(value).name if is_path else _toml(value)


# --- two arms ---------------------------------------------------------------------------------


def compare(
    study: Study | str | Path,
    a: str,
    b: str,
    *,
    margin: float | None = None,
    glue_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Compares two arms of a study by what is finished of it.

    Args:
        study: A study, its file, or its folder.
        a: Name of the first arm.
        b: Name of the second.
        margin: In points: whether a is not worse than b by more than this, by bootstrap over dev
            rows and seeds. None: tests over seeds.
        glue_dir: Where the dev sets are that a margin needs; see `outshine.glue`.

    Returns:
        With a margin what `margin.margin_verdict` returns; else {"a", "b", "arms",
        "comparisons", "warnings", "methods", "conclusion"} of `analysis.analyse`.

    Raises:
        UserError: If there is no such study or arm, or predictions or dev sets are missing.
    """
    study = study if isinstance(study, Study) else read_study(study)
    for name in (a, b):
        study.spec.arm(name)
    if a == b:
        raise UserError(f"cannot compare {a!r} with itself: expected two arms", "name another arm")
    results, rows = study.results(), study.rows()
    unlike = _machine_warnings({name: list(_arm_rows(study, name, rows)) for name in (a, b)})
    if margin is not None:
        found = margin_verdict(a, b, _predictions(study, a, b, glue_dir, rows), margin)
        both = replace(results, arms=tuple(arm for arm in results.arms if arm.name in (a, b)))
        return {**found, "warnings": [*found["warnings"], *arm_warnings(both), *unlike]}
    # the pair takes its place in the family that was named beforehand, or joins it
    family = [pair for pair in results.comparisons if {*pair} != {a, b}]
    found = analyse(replace(results, comparisons=((a, b), *family)), only=(a, b))
    return {"a": a, "b": b, **found, "warnings": [*found["warnings"], *unlike]}


def _predictions(
    study: Study, a: str, b: str, glue_dir: str | Path | None, rows: Mapping[str, Row]
) -> dict[str, TaskPredictions]:
    """Dev predictions of the tasks that two arms share."""
    find = task_finder(study.files_dir, glue_dir)
    shared = [name for name in study.spec.arm(a).tasks if name in study.spec.arm(b).tasks]
    if not shared:
        raise UserError(
            f"cannot compare {a!r} with {b!r}: no task in common, expected at least one",
            "compare arms that share tasks",
        )
    found = {}
    for written, name in study.spec.written.items():
        if name not in shared:
            continue
        task = find(written)
        dev = {row.id: row.gold for row in read_rows(task, "dev")}
        gold = np.array(list(dev.values()), np.float32)
        found[name] = TaskPredictions(
            metric=task.primary_metric,
            gold=kind_of(task).gold_values(task, gold),
            a=_by_seed(study, a, task, list(dev), rows),
            b=_by_seed(study, b, task, list(dev), rows),
            scored=name not in NOT_IN_SCORE,
        )
    return found


def _by_seed(
    study: Study, arm: str, task: Task, ids: list[str], rows: Mapping[str, Row]
) -> dict[int, np.ndarray]:
    """Seed -> predictions of an arm on a task's dev set, in the order of `ids`."""
    data = data_fingerprint(task, "dev")
    found = {}
    for row in _arm_rows(study, arm, rows):
        if task.name not in row.tasks:
            continue
        path = Run(row.home / row.folder).predictions_path(task.name, "dev")
        if not path.exists():
            raise UserError(
                f"cannot compare by margin: no predictions of {row.folder} on {task.name}, "
                f"expected {path}",
                'a margin needs the predictions of every run: keep = "predictions" in the study '
                "file, and the folders of other machines with --rows",
            )
        predictions = Predictions.load(path)
        predictions.check(path, task, data)
        logits, _ = predictions.take(ids)
        found[row.seed] = kind_of(task).decode(task, logits)
    if not found:
        raise UserError(
            f"cannot compare by margin: no finished run of {arm!r} on {task.name}",
            "run the study first",
        )
    return found
