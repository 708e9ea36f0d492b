"""The work of a study: takes the next run, trains it, records it, until nothing is left.

Every process does the same, alone or beside others on one folder: there is no master. A run is
claimed by a lock that goes with its process, so that another takes it up where it stopped.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outshine.checkpoints import State
from outshine.console import say, watched
from outshine.data import folds
from outshine.degenerate import DIVERGED, curve, reasons
from outshine.errors import (
    DivergedError,
    MemoryFullError,
    OtherRunError,
    OutshineError,
    UserError,
    WorldError,
)
from outshine.evaluation import table_metrics
from outshine.files import digest, write_json
from outshine.graph import Node
from outshine.plan import serving, to_make
from outshine.planning import Plan, prepare
from outshine.predictions import Predictions
from outshine.provenance import provenance
from outshine.results import Claims, Row, append_row
from outshine.runs import FORMAT, Run, locked, start_anew
from outshine.study import Study, drop_weights, note_choices, open_study, settled
from outshine.tasks import kind_of
from outshine.teachers import only_reading, teacher_cache
from outshine.training import train

CURVE_POINTS = 60
# What a row takes from `run.json` as it stands there.
_FROM_INFO = (
    *("steps", "rows", "tokens", "train_s", "mixture", "versions", "git_commit", "device"),
    *("precision", "num_threads", "peak_memory_bytes", "data"),
)
POLL_S = 0.5
PROGRESS_S = 0.5

Notify = Callable[[dict[str, Any]], None]


def work(study: Study, seeds: Sequence[int], notify: Notify) -> None:
    """Makes the runs of these seeds that are not done, those of other processes excepted.

    Args:
        study: The study, begun.
        seeds: Of the arms.
        notify: Is told {"event": "begin" | "progress" | "done" | "waiting", "run": id, ...}; of a
            run that begins also "host" and "pid" of the process that makes it.

    Raises:
        OutshineError: If a run cannot be made; what is done stays.
        KeyboardInterrupt: After Ctrl-C, when the checkpoint of the run is written.
    """
    claims, noted = Claims(study.path), 0
    try:
        while (study := settled(study)).graph.pending or to_make(study, seeds, study.rows()):
            if len(study.graph.choices) > noted:  # at once: a report may be asked for at any time
                noted = len(study.graph.choices)
                note_choices(study)
            left = to_make(study, seeds, study.rows())
            node = _take(study, left, seeds, claims)
            if node is None:  # what can be made is being made elsewhere
                notify({"event": "waiting"})
                time.sleep(POLL_S)
                continue
            try:
                _make(study, node, notify)
            finally:
                claims.release(node.id)
    finally:
        claims.close()


# --- workers in other processes ---------------------------------------------------------------


def request(study: Study, seeds: Sequence[int], glue_dir: str | Path | None) -> dict[str, Any]:
    """What another process needs to know to work on a study, as plain data; see `serve`."""
    glue_dir = glue_dir or os.environ.get("OUTSHINE_GLUE_DIR")
    return {
        "study": str(study.path.absolute()),
        "seeds": list(seeds),
        "others": [str(folder.absolute()) for folder in study.others],
        "glue_dir": str(Path(glue_dir).absolute()) if glue_dir else None,
        "cwd": str(Path.cwd()),
    }


def serve(given: Mapping[str, Any], send: Notify) -> dict[str, Any] | None:
    """Works on a study as `request` says, and tells of progress twice a second at most.

    Returns:
        None when nothing is left, or the error that stopped it (`failure`); its "full" says
        whether another process may go on where this one had too little memory.

    Raises:
        KeyboardInterrupt: As `work` does.
    """
    last = 0.0

    def tell(event: dict[str, Any]) -> None:
        nonlocal last
        now = time.monotonic()
        if event["event"] == "progress" and now - last < PROGRESS_S:
            return
        last = now
        send(event)

    try:
        study = open_study(given["study"], glue_dir=given["glue_dir"], others=given["others"])
        work(study, given["seeds"], tell)
    except OutshineError as error:
        fields = {"code": error.exit_code, "message": error.message, "hint": error.hint}
        return {"event": "error", **fields, "full": isinstance(error, MemoryFullError)}
    return None


def failure(event: Mapping[str, Any]) -> OutshineError:
    """The error that `serve` has returned."""
    kind = UserError if event["code"] == UserError.exit_code else WorldError
    return kind(event["message"], event["hint"])


# --- one run ----------------------------------------------------------------------------------


def _take(study: Study, left: Sequence[Node], seeds: Sequence[int], claims: Claims) -> Node | None:
    """Claims the first run whose teachers are there."""
    waiting = {node.id for node in left}
    for node in left:
        if waiting.isdisjoint(node.parents) and claims.take(node.id):
            # another process may have made it between our look at the rows and our claim
            if any(other.id == node.id for other in to_make(study, seeds, study.rows())):
                return node
            claims.release(node.id)
    return None


def _make(study: Study, node: Node, notify: Notify) -> None:
    """Trains a run, or takes up what is there of it, and records its row."""
    begin = time.monotonic()
    notify({"event": "begin", "run": node.id, "host": platform.node(), "pid": os.getpid()})

    def tell(what: str, done: int, total: int, text: str) -> None:
        event = {"event": "progress", "run": node.id, "what": what}
        notify({**event, "done": done, "total": total, "text": text})

    rows = study.rows()
    children = [c for c in study.graph.children(node) if c.id not in rows]
    run = Run(study.path / node.folder)
    if not (run.is_complete and all(serving(study, node, child, rows) for child in children)):
        try:
            with watched(tell), only_reading(study.others):
                run = _train(study, node, children, rows, force=run.is_complete)
        except OtherRunError as error:  # it was begun with another precision, or other versions
            say(f"note: {error.message}; it begins anew")
            start_anew(run)
            _make(study, node, notify)
            return
    if node.id not in rows:
        append_row(study.path, _row(node, run, rows, time.monotonic() - begin))
    rows = study.rows()
    for served in (node, *(study.graph.nodes[parent] for parent in node.parents)):
        drop_weights(study, served, rows)
    notify({"event": "done", "run": node.id})


def _train(
    study: Study,
    node: Node,
    children: Sequence[Node],
    rows: Mapping[str, Row],
    force: bool,
) -> Run:
    run = Run(study.path / node.folder)
    cfg = node.cfg.model_copy(update={"keep": _keep(study, node, children)})
    sources = {
        task: _sources(study, node, task, rows)
        for task, runs in node.teachers.items()
        if not any(rows[teacher].diverged for teacher in runs)
    }
    if node.start:
        if rows[node.start].diverged:
            plan = prepare(node.tasks, cfg, sources)
            return _constant(run, plan, "the run that it starts from diverged")
        start = _parent(study, node.start, node, rows)
        cfg = cfg.model_copy(update={"init": str(start.path)})
    if cfg.init == "teachers" and not sources:
        plan = prepare(node.tasks, cfg.model_copy(update={"init": "encoder"}), sources)
        return _constant(run, plan, "the runs that it starts from diverged")
    try:
        return train(node.tasks, cfg, teachers=sources, out=run.path, force=force)
    except DivergedError as error:
        return _constant(run, prepare(node.tasks, cfg, sources), error.message)


def _keep(study: Study, node: Node, children: Sequence[Node]) -> str:
    """What a run keeps when it is finished; weights that nobody needs are dropped afterwards."""
    if any(study.graph.needs_weights(node, child) for child in children):
        return "all"
    if children and study.spec.keep != "all":
        return "predictions"
    # train logits, which keep = "predictions" computes, would serve nobody
    return "metrics" if study.spec.keep == "metrics" else "all"


# --- teachers ---------------------------------------------------------------------------------


def _parent(study: Study, run: str, child: Node, rows: Mapping[str, Row]) -> Run:
    """A run that teaches, or starts, one that is made."""
    node = study.graph.nodes[run]
    return serving(study, node, child, rows) or Run(study.path / node.folder)


def _sources(study: Study, child: Node, task: str, rows: Mapping[str, Row]) -> list[str]:
    """The teachers of one task of a run, as `train` takes them."""
    runs = child.teachers[task]
    members = [_parent(study, run, child, rows) for run in runs]
    nodes = [study.graph.nodes[run] for run in runs]
    if nodes[0].cfg.fold:
        members = [_out_of_fold(study, task, nodes, members)]
    return [str(run.path) for run in members]


def _out_of_fold(study: Study, task: str, nodes: Sequence[Node], members: Sequence[Run]) -> Run:
    """A teacher whose logits on each fold are those of the run that has not seen it."""
    identity = digest([node.id for node in nodes])
    cfg = nodes[0].cfg
    joined = Run(study.path / "runs" / f"folds-{task}-seed{cfg.seed}-{identity[:8]}")
    path = joined.predictions_path(task, "train")
    if path.exists() and joined.is_complete:
        return joined
    answers = []
    for run in members:
        place = run
        if not run.predictions_path(task, "train").exists():  # it has kept its weights
            if study.path not in run.path.parents:  # a folder that is only read
                place = Run(joined.path / "members" / run.path.name)
            teacher_cache(run, device=cfg.device, into=place)
        answers.append(Predictions.load(place.predictions_path(task, "train")))
    first = answers[0]
    fold_of = folds(first.ids, len(nodes))
    logits = np.empty_like(first.logits)
    for number, predictions in enumerate(answers, start=1):
        rows = np.flatnonzero(fold_of == number)
        logits[rows], _ = predictions.take([first.ids[row] for row in rows.tolist()])
    Predictions(
        logits, first.ids, identity[:12], first.task, first.version, first.labels, first.data
    ).save(path)
    write_json(joined.path / "config.json", members[0].config())
    write_json(joined.path / "metrics.json", {})
    write_json(joined.path / "run.json", {"format": FORMAT, "id": identity[:12]})
    shutil.rmtree(joined.path / "members", ignore_errors=True)
    return joined


# --- runs that diverged -----------------------------------------------------------------------


def _constant(run: Run, plan: Plan, reason: str) -> Run:
    """Completes a run that diverged, with a constant prediction: the mean of its train targets."""
    parts = {part.table.task.name: part for part in plan.mixture.parts}
    run_id = digest(plan.identity)[:12]
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    with locked(run.path):
        for (name, split), table in plan.dev.items():
            gold = np.asarray(parts[name].table.gold)[parts[name].rows]
            mean = kind_of(table.task).gold_target(table.task, gold).mean(axis=0)
            logits = np.tile(mean.astype(np.float32), (len(table), 1))
            metrics.setdefault(name, {})[split] = table_metrics(table, logits)
            task = table.task
            Predictions(
                logits, table.ids, run_id, name, task.version, task.labels, table.data
            ).save(run.predictions_path(name, split))
        if not run.log_path.exists():
            run.log_path.write_text("")
        write_json(
            run.path / "config.json",
            {
                "settings": plan.cfg.model_dump(mode="json"),
                "tasks": [task.model_dump(mode="json") for task in plan.tasks],
                "teachers": plan.teachers,
            },
        )
        write_json(run.path / "metrics.json", metrics)
        info = provenance(plan, State(), run_id, 0.0)
        write_json(run.path / "run.json", {**info, DIVERGED: reason})
        shutil.rmtree(run.path / "checkpoint", ignore_errors=True)
    return run


# --- rows -------------------------------------------------------------------------------------


def _row(node: Node, run: Run, rows: Mapping[str, Row], seconds: float) -> Row:
    """The row of a complete run."""
    info = run.info()
    untaught = {
        task: "a teacher of it diverged"
        for task, runs in node.teachers.items()
        if any(rows[teacher].diverged for teacher in runs if teacher in rows)
    }
    degenerate = reasons(run) if DIVERGED in info else reasons(run) | untaught
    return Row(
        run=node.id,
        folder=node.folder,
        stage=node.stage,
        chain=node.chain,
        tasks=tuple(task.name for task in node.tasks),
        seed=node.cfg.seed,
        metrics=run.metrics(),
        degenerate=degenerate,
        settings=_portable(node, run.config()["settings"]),
        teachers={task: list(runs) for task, runs in node.teachers.items()},
        seconds=round(max(seconds, info["train_s"]), 3),
        curve=curve(run, CURVE_POINTS),
        **{key: info[key] for key in _FROM_INFO},
    )


def _portable(node: Node, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without paths of this machine: they would say nothing elsewhere."""
    encoder = settings["encoder"]
    name = Path(encoder).name if Path(encoder).is_dir() else encoder
    return {**settings, "encoder": name, "init": node.start or node.cfg.init}
