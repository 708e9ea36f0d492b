"""One training run: single-task, multi-task and born-again are the same function."""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from outshine import batches, dropout
from outshine.checkpoints import State, first_state, restore, save_checkpoint
from outshine.config import TrainConfig, takes_swapped
from outshine.console import progress, show
from outshine.devices import set_up
from outshine.distributed import (
    ALONE,
    Team,
    find_team,
    gathered,
    touched,
    whole,
    without_rows,
    wrap,
)
from outshine.embedding import merge_rows, train_rows
from outshine.errors import MemoryFullError, UserError
from outshine.evaluation import evaluate_tables, predict_table, score
from outshine.files import (
    digest,
    remove_temporaries,
    replacing_folder,
    world_errors,
    write_json,
)
from outshine.forward import Forward, clear_gradients, compile_encoder, load_forward
from outshine.journal import Log
from outshine.losses import micro_batch_loss
from outshine.model import save_model
from outshine.optim import Watch, adamw, parameter_groups, set_step
from outshine.planning import Plan, describe, prepare, settle
from outshine.provenance import provenance
from outshine.runs import Run, check_new, locked, start_anew
from outshine.schedules import gold_weight, lr_factor
from outshine.seeds import stream
from outshine.tasks import Task
from outshine.teachers import Teachers


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during training, after the checkpoint was written."""


class InterruptedLate(KeyboardInterrupt):
    """Ctrl-C or SIGTERM when the run was complete: it lacks nothing, but no other shall begin."""

    def __init__(self, run: Run) -> None:
        """Names the run, which is kept as `run`."""
        super().__init__(f"interrupted when the run {run.path} was complete")
        self.run = run


def train(
    tasks: Sequence[Task],
    cfg: TrainConfig | None = None,
    *,
    teachers: Teachers | None = None,
    out: str | Path | None = None,
    force: bool = False,
    **overrides: Any,
) -> Run:
    """Trains one model on one or several tasks, with or without teachers.

    Args:
        tasks: One head each.
        cfg: Settings; what is left unset takes the preset's value.
        teachers: Task name -> a run, a transformers classifier (folder or hub id), a table of
            probabilities, or a list of these. Tasks without one learn from gold alone.
        out: The run's folder; default `runs/<tasks>-seed<seed>`.
        force: Whether a complete run there is replaced.
        **overrides: Settings that override `cfg`, such as `anneal="linear"`.

    Returns:
        The complete run.

    Raises:
        UserError: If anything given is wrong; nothing has been written then.
        WorldError: If the disk or the hub fails, or the device's memory is full
            (`MemoryFullError`).
        DivergedError: If the loss or its gradient is not finite; the update is not made.
        KeyboardInterrupt: After Ctrl-C, when the checkpoint is written; `InterruptedLate` if the
            run was complete by then.
    """
    tasks, cfg, path = settle(tasks, cfg or TrainConfig(), out, force, overrides)
    set_up(cfg.num_threads, cfg.deterministic)
    team = find_team(cfg.device)
    with team.first():
        plan = prepare(tasks, cfg, teachers, team)
    describe(plan)
    with locked(path) if team.is_first else nullcontext():
        if team.is_first:
            check_new(path, force)  # another process may have completed it meanwhile
            remove_temporaries(path)
            if force:
                start_anew(Run(path))
        team.wait()
        try:
            late = _train_into(Run(path), plan, team)
        except torch.OutOfMemoryError as error:
            reason = str(error).split("\n")[0].split(". ")[0]
            raise MemoryFullError(
                f"cannot go on with the run {path}: {reason}",
                "other processes may hold the memory; smaller micro-batches (`max_tokens`) and "
                "`gradient_checkpointing` need less",
            ) from error
        team.wait()
    if late:
        raise InterruptedLate(Run(path))
    return Run(path)


def _train_into(run: Run, plan: Plan, team: Team) -> bool:
    """Trains (or goes on), evaluates and saves; `run.json` comes last.

    Returns:
        Whether a signal asked to stop after that.
    """
    plan, optimizer = make_ready(plan, team)
    cfg, model = plan.cfg, plan.forward.model
    state = first_state(plan)
    begun = run.checkpoint_path.exists()
    if all(team.any(begun, not begun)):
        raise UserError(
            f"cannot go on with the run {run.path}: not all processes see its checkpoint",
            "put the run where all machines see it",
        )
    if begun:
        restore(run, plan, optimizer, state, team)
    elif team.is_first:
        write_json(
            run.path / "config.json",
            {
                "settings": cfg.model_dump(mode="json"),
                "tasks": [task.model_dump(mode="json") for task in plan.tasks],
                "teachers": plan.teachers,
            },
        )
        with world_errors(run.log_path):
            run.log_path.write_text("")
    late: list[int] = []

    def stop_outside_of_the_loop(number: int, _frame: Any) -> None:
        if not run.is_complete:
            written = "; the checkpoint is written" if run.checkpoint_path.exists() else ""
            trained = state.step == plan.mixture.num_steps
            before = "the evaluation ended" if trained else "training went on"
            raise Interrupted(f"interrupted before {before}{written}")
        late.append(number)
        signal.signal(number, signal.default_int_handler)  # a tracker may hang

    with _on_signal(stop_outside_of_the_loop), closing(Log(run, plan, state, team)) as log:
        with _interruptible() as stop, world_errors(run.path):
            fit(log, optimizer, stop)
            save_checkpoint(run, plan, optimizer, state, team)  # the evaluation may be interrupted
            team.wait()  # a launcher that sees one process end would stop the first at writing
            if any(team.any(stop())):
                raise Interrupted(f"interrupted at step {state.step}; the checkpoint is written")
        if state.average is not None:
            with torch.no_grad():
                for parameter, averaged in zip(model.parameters(), state.average, strict=True):
                    parameter.copy_(averaged)
        merge_rows(model)
        forward = gathered(team, plan.forward, plan.rebuild)
        if team.is_first:
            metrics = _finish(run, replace(plan, forward=forward), state)
            log.track({f"{s}/{name}": found[s] for name, found in metrics.items() for s in found})
    return bool(late)


def make_ready(plan: Plan, team: Team = ALONE) -> tuple[Plan, torch.optim.Optimizer]:
    """The plan with a model that can be trained, also by several processes, and its optimizer.

    It is called once per plan, whose model it changes.
    """
    cfg, forward = plan.cfg, plan.forward
    if not team.is_sharded:
        train_rows(forward.model, partial(batches.used_tokens, plan.mixture, forward.pad_id))
    forward = wrap(team, forward)
    if cfg.compile:
        compile_encoder(forward)
    groups = parameter_groups(forward.model, plan.depths, cfg.layer_decay, cfg.weight_decay)
    return replace(plan, forward=forward), adamw(groups, cfg.adam_eps)


def fit(
    log: Log, optimizer: torch.optim.Optimizer, stop: Callable[[], bool] = lambda: False
) -> None:
    """The training loop: one pass of the `for` is one optimizer step, after which it may stop.

    Args:
        log: Of the run; its state says at which step to begin, and counts on.
        optimizer: As `make_ready` gives it with the plan of `log`.
        stop: Is asked after each step whether to stop before the next.

    Raises:
        DivergedError: If the loss or its gradient is not finite.
        WorldError: If the log or a checkpoint cannot be written.
    """
    plan, state, team = log.plan, log.state, log.team
    cfg, mixture, model = plan.cfg, plan.mixture, plan.forward.model
    division = team.divided(plan.forward.divide)
    own = [team.rank] if team.rank else []  # other processes draw other dropout masks
    watch = Watch(optimizer, waits=plan.forward.device.type != "cuda" or team.size > 1)
    model.train()
    with progress(_title(plan), mixture.num_steps, state.step) as bar:
        for drawn in batches.steps(mixture, cfg.seed, state.step):
            weight = gold_weight(cfg.anneal, state.step / mixture.num_steps, cfg.gold_weight)
            batch = batches.make_batch(mixture, drawn, weight, division)
            dropout.seed(stream(cfg.seed, "dropout", state.step, *own))
            step_loss = _add_gradients(plan, batch, team, log)
            if team.size > 1:
                without_rows(plan.forward, [p.table.task.name for p in mixture.parts], drawn)
            norm = clip_grad_norm_(model.parameters(), cfg.max_grad_norm or math.inf)
            watch.look(state.step + 1, step_loss, whole(norm))
            lr = cfg.lr * lr_factor(
                cfg.lr_schedule, state.step, mixture.num_steps, cfg.warmup_fraction
            )
            set_step(optimizer, lr, state.step, cfg.adam_eps, cfg.bias_correction)
            optimizer.step()
            clear_gradients(plan.forward, optimizer)
            if state.average is not None:
                weights = [p.detach() for p in model.parameters()]
                torch._foreach_lerp_(state.average, weights, 1.0 - cfg.ema)
            state.step += 1
            state.rows += batch.num_rows
            state.tokens += batch.num_tokens
            bar.advance(1)
            if log.is_due():
                watch.settle()
            written = log.step(drawn, step_loss, lr, weight, bar.note)
            if team.size > 1 and not written:
                continue  # processes agree when the log's numbers are added up, too
            stopping, saving = team.any(stop(), log.seconds_since_save() > cfg.save_every_s)
            if stopping or saving:
                watch.settle()
            if stopping:
                break
            if saving:
                log.note(state)
                save_checkpoint(log.run, plan, optimizer, state, team)
                log.saved()
    log.note(state)


def _add_gradients(plan: Plan, batch: batches.Batch, team: Team, log: Log) -> torch.Tensor:
    """Forward and backward pass of a step's micro-batches.

    Returns:
        The step's loss, of the rows of all processes.
    """
    forward, mixture = plan.forward, plan.mixture
    # gradients of several processes are averaged: each one's loss counts `size` times as much
    denominator = (batch.weight if plan.cfg.loss_reduction == "mean" else 1.0) / team.size
    step_loss = torch.zeros((), device=forward.device)
    for number, micro_batch in enumerate(batch.micro_batches, start=1):
        with team.gradients(forward, last=number == len(batch.micro_batches)):
            loss, sums = micro_batch_loss(forward, mixture, micro_batch, denominator)
            touched(forward, loss).backward()
        step_loss += loss.detach()
        log.add(sums)
    return team.total(step_loss) / team.size


def _title(plan: Plan) -> str:
    names = [task.name for task in plan.tasks]
    what = names[0] if len(names) == 1 else f"{len(names)} tasks"
    return f"training {what}" + (" with teachers" if plan.teachers else "")


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Makes the first SIGINT or SIGTERM a request for the loop to stop; a second stops at once."""
    asked: list[int] = []

    def note(number: int, _frame: Any) -> None:
        asked.append(number)
        signal.signal(number, signal.default_int_handler)

    with _on_signal(note):
        yield lambda: bool(asked)


@contextmanager
def _on_signal(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Hands SIGINT and SIGTERM to a function.

    Schedulers and containers send SIGTERM some seconds before they kill.
    """
    try:
        before = {
            number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)
        }
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _finish(run: Run, plan: Plan, state: State) -> dict[str, dict[str, dict[str, float]]]:
    """Evaluates the final weights, saves what `keep` says, and completes the run.

    Returns:
        Content of `metrics.json`.
    """
    cfg, forward, begin = plan.cfg, plan.forward, time.monotonic()
    run_id = digest(plan.identity)[:12]
    forward.model.eval()
    if cfg.keep == "all":
        with replacing_folder(run.model_dir) as folder:
            save_model(forward.model, plan.tokenizer, plan.tasks, folder)
    if cfg.keep == "all" and (cfg.compile or cfg.gradient_checkpointing or cfg.max_tokens):
        # these compute in another order than the run will when it is loaded
        forward, _ = load_forward(run, cfg.device, "fp32")
    elif forward.rounds:  # its attention computes in bf16 alone
        forward = plan.rebuild(forward.model.state_dict())
    forward = replace(forward, precision="fp32")
    keep_logits = cfg.keep != "metrics"
    metrics = evaluate_tables(forward, plan.dev, run, run_id, keep_logits=keep_logits)
    if cfg.keep == "predictions":
        _save_train_logits(run, plan, forward, run_id)
    write_json(run.path / "metrics.json", metrics)
    write_json(run.path / "run.json", provenance(plan, state, run_id, time.monotonic() - begin))
    shutil.rmtree(run.path / "checkpoint", ignore_errors=True)
    _show_metrics(plan, metrics)
    return metrics


def _save_train_logits(run: Run, plan: Plan, forward: Forward, run_id: str) -> None:
    """The teacher cache of a run that will have no weights; a fold left out is answered, too."""
    tables = [part.table for part in plan.mixture.parts]
    rows = [t.selection(plan.cfg.max_train_rows, takes_swapped(t.task, plan.cfg)) for t in tables]
    with progress("train logits", sum(map(len, rows))) as bar:
        for table, chosen in zip(tables, rows, strict=True):
            predictions = predict_table(forward, table, run_id, chosen, bar.advance)
            predictions.save(run.predictions_path(table.task.name, "train"))


def _show_metrics(plan: Plan, metrics: dict[str, dict[str, dict[str, float]]]) -> None:
    """The table of dev metrics in percent, beside those of the teachers on the same rows."""
    header = ["task", "split", "metric", "value", *(["teacher"] if plan.teachers else []), "n"]
    rows = []
    for name, splits in metrics.items():
        for split, values in splits.items():
            for metric, value in values.items():
                if metric in ("n", "constant_prediction"):
                    continue
                mark = " (constant)" if "constant_prediction" in values else ""
                cells = [name, split, metric, f"{_percent(value)}{mark}"]
                if plan.teachers:
                    cells.append(_percent(plan.taught.get(name, {}).get(split, {}).get(metric)))
                rows.append([*cells, str(values["n"])])
    if not rows:
        return
    dev = {name: splits["dev"] for name, splits in metrics.items() if "dev" in splits}
    total = score(plan.tasks, dev)
    if len(plan.tasks) > 1 and total is not None:
        cells = [_percent(total)]
        if plan.teachers:
            taught = {name: found["dev"] for name, found in plan.taught.items() if found.get("dev")}
            cells.append(
                _percent(score(plan.tasks, taught) if taught.keys() == dev.keys() else None)
            )
        rows.append(["score", "dev", "mean", *cells, ""])
    show("Dev metrics of the final weights, in percent", header, rows)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
