"""A greedy soup: the mean of the weights of some of the runs given, which dev chooses.

The choice is in `greedy`; here runs are checked, averaged and written.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outshine.config import TrainConfig
from outshine.console import say
from outshine.data import TokenTable, encode
from outshine.errors import UserError
from outshine.evaluation import evaluate, evaluate_tables, score, table_logits
from outshine.files import digest, remove_temporaries, replacing_folder, world_errors, write_json
from outshine.forward import Forward, load_forward
from outshine.graph import other_start
from outshine.greedy import Choice, Dev, Logits, choose
from outshine.model import MultiTaskModel, add_weights, load_model, save_model
from outshine.predictions import Predictions
from outshine.provenance import surroundings
from outshine.runs import FORMAT, Run, check_new, locked, open_run, start_anew
from outshine.tasks import Task, kind_of

Runs = Sequence[Run | str | Path]
_COUNTS = ("steps", "rows", "tokens", "train_s")


def soup(runs: Runs, *, out: str | Path, device: str = "auto", force: bool = False) -> Run:
    """Averages the weights of some of the runs given, greedily chosen by dev score.

    The runs are tried from the best to the worst; one is taken in where the mean of the weights,
    with it, scores no less. All of dev chooses what is written. What that is worth is measured on
    rows that had no part in the choice: it is made on one half of each task's dev rows and judged
    by the other, then the halves are swapped.

    Args:
        runs: Two finished runs or more, or their folders, of the same tasks, dev rows, encoder,
            pooling and start; they usually differ in their seed. Dev logits that one did not
            keep are computed and added to it.
        out: Folder of the new run.
        device: Where to compute.
        force: Whether a complete run there is replaced.

    Returns:
        The new run, complete. `info()["soup"]` is {"runs": [{"run": folder, "id", "seed", "score",
        "weight"}] in the order of trying, "score": {"soup", "best" (the run chosen alone), "mean"
        (of the runs)}, "tasks": {name: {"metric", "n", "soup", "best", "mean"}}, "halves":
        [{"soup": ids, "best": id} chosen on each half of dev]}; all are fractions, and but for
        `score` of `runs` they are of rows that had no part in the choice.

    Raises:
        UserError: If the runs do not fit together, one has no weights, or no task has dev rows.
    """
    found = _checked(runs, Path(out), force)
    with locked(Path(out)):
        check_new(Path(out), force)  # another process may have completed it meanwhile
        return _make(Run(Path(out)), found, device, force)


def preview_soup(runs: Runs, *, out: str | Path, force: bool = False) -> dict[str, Any]:
    """Checks the arguments of `soup`; writes and averages nothing.

    Returns:
        {"out", "runs": [{"run": folder, "id", "seed", "score"}] in the order of trying}.

    Raises:
        UserError: As `soup`.
    """
    found = _checked(runs, Path(out), force)
    tasks = _judges(found[0])
    scores = [
        score(tasks, {task.name: run.metrics()[task.name]["dev"] for task in tasks})
        for run in found
    ]
    described = [_described(run, value) for run, value in zip(found, scores, strict=True)]
    return {"out": str(out), "runs": sorted(described, key=lambda run: -run["score"])}


# --- which runs may be averaged ---------------------------------------------------------------


def _checked(runs: Runs, out: Path, force: bool) -> list[Run]:
    """The runs, if a soup of them can be made and written."""
    found = [open_run(run) for run in runs]
    if len(found) < 2:
        raise UserError(
            f"cannot make a soup: {len(found)} given, expected two or more runs",
            "name runs that differ in their seed",
        )
    by_id: dict[str, Run] = {}
    for run in found:
        run.check_own("make a soup")
        run_id = run.info()["id"]
        if run_id in by_id:
            raise UserError(
                f"cannot make a soup: {run.path} is the same run as {by_id[run_id].path}, "
                "expected different ones",
                "name each run once",
            )
        by_id[run_id] = run
        if run.path.resolve() == out.resolve():
            raise UserError(
                f"cannot write the soup {out}: it is one of the runs that are averaged",
                "choose another --out",
            )
        if not (run.model_dir / "tasks.json").exists():
            raise UserError(
                f"cannot make a soup of {run.path}: it kept no weights, expected {run.model_dir}",
                'train it with keep = "all"; in a study file, too',
            )
        differs = _difference(run, found[0])
        if differs:
            raise UserError(
                f"cannot make a soup of {found[0].path} and {run.path}: {differs}",
                "the mean of weights needs runs of the same tasks, dev rows, encoder, pooling and "
                "start",
            )
    check_new(out, force)
    if Run(out).checkpoint_path.exists() and not force:
        raise UserError(
            f"cannot write the soup {out}: a training was interrupted there, expected a new folder",
            "choose another --out, or give up that training with --force",
        )
    _judges(found[0])
    return found


def _difference(run: Run, first: Run) -> str:
    """Why the weights of two runs cannot be averaged, or ""."""
    settings, wanted = run.config()["settings"], first.config()["settings"]
    pairs = {
        "tasks": [", ".join(sorted(task.name for task in r.tasks())) for r in (run, first)],
        "max_length": [settings["max_length"], wanted["max_length"]],
        "init": [_start(run), _start(first)],
    }
    for what, (theirs, own) in pairs.items():
        if theirs != own:
            return f"{what} {theirs}, expected {own}"
    for task in first.tasks():
        rows = [r.info()["data"].get(task.name, {}).get("dev") for r in (run, first)]
        if rows[0] != rows[1]:
            return f"other dev rows of {task.name}, or read in another way"
    return other_start(settings, TrainConfig(**wanted))


def _start(run: Run) -> str:
    """With which weights the run began; heads begin anew in each seed."""
    config = run.config()
    init = config["settings"]["init"]
    of = {"random": f" of seed {config['settings']['seed']}", "teachers": f" {config['teachers']}"}
    return init + of.get(init, "")


def _judges(run: Run) -> tuple[Task, ...]:
    """The tasks whose dev rows choose."""
    metrics = run.metrics()
    num_rows = {t.name: metrics.get(t.name, {}).get("dev", {}).get("n", 0) for t in run.tasks()}
    tasks = tuple(task for task in run.tasks() if num_rows[task.name] > 1)
    if score(tasks, {task.name: metrics[task.name]["dev"] for task in tasks}) is None:
        raise UserError(
            "cannot make a soup: no task that counts in scores has two dev rows, expected one "
            "that has",
            "the choice needs dev rows: give the task a dev file or `holdout`, and train again",
        )
    return tasks


def _described(run: Run, value: float | None) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "id": run.info()["id"],
        "seed": run.info()["seed"],
        "score": value,
    }


# --- the run ----------------------------------------------------------------------------------


@torch.no_grad()
def fill_with_mean(model: MultiTaskModel, runs: Sequence[Run]) -> None:
    """Gives a model the mean of the weights of runs, which have its tasks in any order."""
    for parameter in model.parameters():
        parameter.zero_()
    for run in runs:
        other, _, _ = load_model(run.model_dir)
        add_weights(model.network, other.network, len(runs))
        for name in model.names:
            add_weights(model.head(name), other.head(name), len(runs))


def _make(made: Run, runs: Sequence[Run], device: str, force: bool) -> Run:
    """Chooses, averages, evaluates and saves."""
    begin = time.monotonic()
    forward, tokenizer = load_forward(runs[0], device, "fp32")
    max_length = runs[0].max_length()
    tables = {
        (task.name, split): encode(task, split, tokenizer, max_length)
        for task in runs[0].tasks()
        for split in task.dev_splits
    }
    judges = _judges(runs[0])
    for task in runs[0].tasks():
        if task not in judges:
            say(f"note: {task.name} has no two dev rows, and no part in the choice")
    by_task = {task.name: tables[task.name, "dev"] for task in judges}
    gold = {
        name: kind_of(table.task).gold_values(table.task, np.asarray(table.gold))
        for name, table in by_task.items()
    }

    def mix(members: tuple[int, ...]) -> Logits:
        fill_with_mean(forward.model, [runs[i] for i in members])
        return {name: table_logits(forward, table) for name, table in by_task.items()}

    alone = [_dev_logits(run, by_task, device) for run in runs]
    choice = choose(Dev(judges, gold), alone, mix)
    taken = [runs[i] for i in choice.members]
    fill_with_mean(forward.model, taken)
    if force:
        start_anew(made)
    remove_temporaries(made.path)
    facts = _facts(choice, runs, {task.name: (task, len(gold[task.name])) for task in judges})
    _write(made, taken, forward, tokenizer, tables, {"soup": facts}, begin)
    return made


def _facts(
    choice: Choice, runs: Sequence[Run], judges: Mapping[str, tuple[Task, int]]
) -> dict[str, Any]:
    """What `run.json` says of a soup; `judges` are tasks with their number of dev rows."""
    ids = [run.info()["id"] for run in runs]
    weight = 1 / len(choice.members)
    return {
        "runs": [
            _described(runs[i], choice.scores[i])
            | {"weight": weight if i in choice.members else 0.0}
            for i in sorted(range(len(runs)), key=lambda i: -choice.scores[i])
        ],
        "score": choice.score,
        "tasks": {
            name: {"metric": task.primary_metric, "n": num_rows} | choice.tasks[name]
            for name, (task, num_rows) in judges.items()
        },
        "halves": [
            {"soup": [ids[i] for i in members], "best": ids[members[0]]}
            for members in choice.halves
        ],
    }


def _write(
    made: Run,
    taken: Sequence[Run],
    forward: Forward,
    tokenizer: Any,
    tables: Mapping[tuple[str, str], TokenTable],
    facts: Mapping[str, Any],
    begin: float,
) -> None:
    """Evaluates and saves the mean of the runs taken, the best first; `run.json` comes last."""
    best = taken[0]
    run_id = digest({"soup": sorted(run.info()["id"] for run in taken)})[:12]
    config = best.config()
    config["settings"]["keep"] = "all"
    config["teachers"] = _teachers(taken)
    write_json(made.path / "config.json", config)
    with world_errors(made.log_path):
        made.log_path.write_text("")
    with replacing_folder(made.model_dir) as folder:
        save_model(forward.model, tokenizer, best.tasks(), folder)
    metrics = evaluate_tables(forward, tables, made, run_id)
    write_json(made.path / "metrics.json", metrics)
    write_json(
        made.path / "run.json",
        {
            "format": FORMAT,
            "id": run_id,
            "seed": best.info()["seed"],
            **surroundings(forward),
            "data": best.info()["data"],
            # what it took to train those that are in it
            **{key: sum(run.info()[key] for run in taken) for key in _COUNTS},
            "energy_j": _energy(run.info() for run in taken),
            "seconds": round(time.monotonic() - begin, 3),
            **facts,
        },
    )


def _energy(infos: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Joules that training all of them took, of the parts that were counted for all."""
    found = [info.get("energy_j", {}) for info in infos]
    parts = [part for part in found[0] if all(part in other for other in found)]
    return {part: round(sum(other[part] for other in found), 1) for part in parts}


def _teachers(taken: Sequence[Run]) -> dict[str, list[str]]:
    """Task -> the teachers of all runs in the soup."""
    found: dict[str, dict[str, None]] = {}  # in the order in which they are met
    for run in taken:
        for task, sources in run.config().get("teachers", {}).items():
            found.setdefault(task, {}).update(dict.fromkeys(sources))
    return {task: list(sources) for task, sources in found.items()}


def _dev_logits(run: Run, tables: Mapping[str, TokenTable], device: str) -> dict[str, np.ndarray]:
    """Task -> (N, C) float32 dev logits of one run, which computes what it did not keep."""
    if not all(run.predictions_path(name, "dev").exists() for name in tables):
        evaluate(run, "dev", device=device)
    found = {}
    for name, table in tables.items():
        path = run.predictions_path(name, "dev")
        predictions = Predictions.load(path)
        predictions.check(path, table.task, table.data)
        found[name], _ = predictions.take(table.ids)
    return found
