"""One training run: single-task, multi-task and born-again are the same function."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outshine import batches, dropout, encoders
from outshine import teachers as teaching
from outshine.batches import Mixture, Part
from outshine.config import TrainConfig, resolve
from outshine.console import progress, say, show
from outshine.data import TokenTable, encode
from outshine.devices import pick_device, pick_precision
from outshine.errors import OutshineError, UserError
from outshine.engine import Engine, make_engine
from outshine.evaluation import predict_table, score, table_metrics
from outshine.files import (
    digest,
    map_arrays,
    replacing_folder,
    world_errors,
    write_arrays,
    write_json,
)
from outshine.losses import micro_batch_loss
from outshine.model import MultiTaskModel, build_model, load_model, parameter_depths, save_model
from outshine.optim import adamw, parameter_groups, set_step
from outshine.runs import FORMAT, Run, check_new, locked, open_run
from outshine.schedules import gold_weight, lr_factor
from outshine.seeds import stream
from outshine.tasks import Task, kind_of, unique_tasks

MANY_PASSES = 50
# Settings that do not change what a run computes.
WITHOUT_EFFECT = frozenset(
    {"save_every_s", "log_every", "eval_every", "num_threads", "device", "keep", "track"}
)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training, after the checkpoint was written."""


class Diverged(OutshineError):
    """The loss is no finite number."""


def train(
    tasks: Sequence[Task],
    cfg: TrainConfig | None = None,
    *,
    teachers: teaching.Teachers | None = None,
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
        WorldError: If the disk or the hub fails.
        Diverged: If the loss is not finite; the update is not made.
        KeyboardInterrupt: After Ctrl-C, when the checkpoint is written.
    """
    tasks, cfg, path = settle(tasks, cfg or TrainConfig(), out, force, overrides)
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    torch.use_deterministic_algorithms(cfg.deterministic)
    plan = prepare(tasks, cfg, teachers)
    describe(plan)
    with locked(path):
        return _train_into(Run(path), plan, force)


def settle(
    tasks: Sequence[Task],
    cfg: TrainConfig,
    out: str | Path | None,
    force: bool,
    overrides: dict[str, Any],
) -> tuple[tuple[Task, ...], TrainConfig, Path]:
    """The tasks, complete settings and folder that `train` uses for these arguments, checked."""
    tasks = unique_tasks(tasks)
    cfg = resolve(cfg, len(tasks), **overrides)
    _check_task_names(tasks, cfg)
    names = "-".join(task.name for task in tasks)
    path = Path(out) if out is not None else Path("runs") / f"{names}-seed{cfg.seed}"
    check_new(path, force)
    return tasks, cfg, path


@dataclass(frozen=True)
class Plan:
    """All that a run needs before its first step.

    Attributes:
        tasks: The tasks.
        cfg: Complete settings.
        teachers: Task -> its teachers as text.
        mixture: Rows, probabilities, targets, steps.
        dev: (task, split) -> encoded table.
        tokenizer: The encoder's.
        engine: The untrained model on its device.
        identity: What the run's result depends on, as plain data.
    """

    tasks: tuple[Task, ...]
    cfg: TrainConfig
    teachers: dict[str, list[str]]
    mixture: Mixture
    dev: dict[tuple[str, str], TokenTable]
    tokenizer: Any
    engine: Engine
    identity: dict[str, Any] = field(default_factory=dict)


def prepare(
    tasks: tuple[Task, ...], cfg: TrainConfig, teachers: teaching.Teachers | None
) -> Plan:
    """Reads and checks everything that a run needs; writes only to the cache of encoded tables."""
    sources = teaching.normalise(teachers, tasks)
    location = encoders.locate(cfg.encoder)
    tokenizer = encoders.load_tokenizer(location)
    device = pick_device(cfg.device)
    model = _initial_model(location, tasks, cfg)
    if cfg.gradient_checkpointing:
        model.network.gradient_checkpointing_enable()
    engine = make_engine(
        model,
        tokenizer,
        device,
        pick_precision(cfg.precision, device),
        max_tokens=cfg.max_tokens,
        plain=cfg.compile or cfg.gradient_checkpointing,
    )
    _check_length(model, cfg.max_length)
    depths = parameter_depths(model) if cfg.layer_decay != 1.0 else None
    del depths  # asked for here so that an encoder without known layers is refused at once
    tables = {t.name: _train_table(t, tokenizer, cfg) for t in tasks}
    dev = {
        (task.name, split): encode(task, split, tokenizer, cfg.max_length)
        for task in tasks
        for split in task.dev_splits
        if split == "dev" or Path(task.files.get(split, "")).exists()
    }
    warn_overlap(tasks, tables, dev)
    mixture = _mixture(tasks, tables, cfg)
    parts = [_with_teacher(part, sources, cfg, device) for part in mixture.parts]
    mixture = replace(mixture, parts=tuple(parts))
    identity = {
        "settings": {
            key: value
            for key, value in cfg.model_dump(mode="json").items()
            if key not in WITHOUT_EFFECT
        },
        "precision": engine.precision,
        "data": {name: table.data for name, table in tables.items()},
        "teachers": {
            part.table.task.name: digest(part.soft_targets.tobytes().hex())
            for part in mixture.parts
            if part.soft_targets is not None
        },
    }
    return Plan(tasks, cfg, sources, mixture, dev, tokenizer, engine, identity)


def _check_task_names(tasks: Sequence[Task], cfg: TrainConfig) -> None:
    """Refuses settings by task that name a task which is not trained."""
    names = [task.name for task in tasks]
    for key in ("task_weight", "sampling_weights", "symmetric"):
        by_task = getattr(cfg, key)
        unknown = [n for n in by_task if n not in names] if isinstance(by_task, dict) else []
        if unknown:
            raise UserError(
                f"cannot use {key}: no task {unknown[0]!r}, expected some of {', '.join(names)}",
                "name tasks that are trained",
            )


def _initial_model(location: str, tasks: Sequence[Task], cfg: TrainConfig) -> MultiTaskModel:
    model = build_model(
        location,
        tasks,
        pooling=cfg.pooling,
        seed=cfg.seed,
        random_weights=cfg.init == "random",
        dropout=cfg.dropout,
        attention_dropout=cfg.attention_dropout,
    )
    if cfg.init not in ("encoder", "random"):
        start, _, _ = load_model(open_run(cfg.init).model_dir)
        try:
            model.network.load_state_dict(start.network.state_dict())
        except RuntimeError as error:
            first_line = str(error).split("\n")[0]
            raise UserError(
                f"cannot start from {cfg.init}: {first_line}",
                "the run must have the same encoder and pooling",
            ) from None
        for task in tasks:
            if task.name in start.names:
                model.head(task.name).load_state_dict(start.head(task.name).state_dict())
    return model


def _check_length(model: MultiTaskModel, max_length: int) -> None:
    config = model.network.config
    # RoBERTa's positions begin after the padding id, which takes pad_token_id + 1 of them
    name = type(model.encoder).__name__
    limit = getattr(config, "max_position_embeddings", None)
    if limit and "position_embeddings" in " ".join(n for n, _ in model.named_parameters()):
        offset = (config.pad_token_id or 0) + 1 if name.startswith(("Roberta", "MPNet", "XLM")) else 0
        if max_length > limit - offset:
            raise UserError(
                f"cannot use max_length = {max_length}: the encoder has {limit - offset} positions",
                f"use `--set max_length={limit - offset}` or less",
            )


def _swapped(task: Task, cfg: TrainConfig) -> bool:
    if isinstance(cfg.symmetric, dict):
        wanted = cfg.symmetric.get(task.name, task.symmetric)
        if wanted and len(task.text) != 2:
            raise UserError(
                f"cannot swap the texts of {task.name!r}: one text column, expected two (symmetric)",
                f"leave {task.name} out of `symmetric`",
            )
        return wanted
    return cfg.symmetric and task.symmetric


def _train_table(task: Task, tokenizer: Any, cfg: TrainConfig) -> TokenTable:
    return encode(task, "train", tokenizer, cfg.max_length, swapped=_swapped(task, cfg))


def _mixture(
    tasks: Sequence[Task], tables: dict[str, TokenTable], cfg: TrainConfig
) -> Mixture:
    rows = {
        t.name: tables[t.name].selection(cfg.max_train_rows, _swapped(t, cfg)) for t in tasks
    }
    chances = batches.probabilities(
        {name: len(chosen) for name, chosen in rows.items()},
        cfg.sampling,
        exponent=cfg.sampling_exponent,
        temperature=cfg.sampling_temperature,
        weights=cfg.sampling_weights,
    )
    draws, num_steps = batches.num_draws(
        sum(map(len, rows.values())), cfg.epochs, cfg.batch_size, cfg.max_steps
    )
    parts = tuple(
        Part(tables[name], rows[name], chances[name], cfg.task_weight.get(name, 1.0))
        for name in rows
    )
    return Mixture(parts, cfg.batch_size, num_steps, draws)


def _with_teacher(
    part: Part, sources: dict[str, list[str]], cfg: TrainConfig, device: torch.device
) -> Part:
    task = part.table.task
    if task.name not in sources:
        return part
    logits = teaching.teacher_logits(sources[task.name], part.table, part.rows, str(device))
    return replace(part, soft_targets=kind_of(task).soft_target(logits, cfg.temperature))


def warn_overlap(
    tasks: Sequence[Task],
    tables: dict[str, TokenTable],
    dev: dict[tuple[str, str], TokenTable],
) -> None:
    """Warns of dev rows whose tokens also stand in train, with their count."""
    for task in tasks:
        train_rows = row_digests(tables[task.name])
        for (name, split), table in dev.items():
            if name == task.name:
                shared = sum(row in train_rows for row in row_digests_list(table))
                if shared:
                    say(f"warning: {shared} of {len(table)} {split} rows of {name} stand in train")


def row_digests_list(table: TokenTable) -> list[int]:
    """One number per row that tells rows of different tokens apart."""
    tokens = np.asarray(table.tokens)
    bounds = table.offsets.tolist()
    return [
        hash(tokens[start:stop].tobytes()) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
    ]


def row_digests(table: TokenTable) -> set[int]:
    """The numbers of `row_digests_list` for the rows that are not swapped."""
    return set(row_digests_list(table)[: table.num_originals])


def describe(plan: Plan) -> None:
    """Prints the resolved mixture and warns of sets that are seen very often."""
    cfg, mixture = plan.cfg, plan.mixture
    rows = []
    for part in mixture.parts:
        task = part.table.task
        rows.append(
            [
                task.name,
                f"{len(part.rows):,}",
                f"{part.probability:.3f}",
                f"{mixture.passes(part):.1f}",
                f"{part.weight:g}",
                f"{int(part.table.lengths_of(part.rows).sum()):,}",
                f"{int(np.asarray(part.table.truncated)[part.rows].sum()):,}",
                ", ".join(plan.teachers.get(task.name, ["gold alone"])),
            ]
        )
    header = ["task", "rows", "probability", "passes", "weight", "tokens", "truncated", "teacher"]
    tokens = sum(
        mixture.passes(p) * float(p.table.lengths_of(p.rows).sum()) for p in mixture.parts
    )
    show(f"Mixture (preset {cfg.preset}, seed {cfg.seed})", header, rows)
    say(
        f"{mixture.num_steps:,} steps of {mixture.batch_size} rows, about {tokens:,.0f} tokens; "
        f"lr {cfg.lr:g}, {plan.engine.precision} on {plan.engine.device}, "
        f"{torch.get_num_threads()} threads"
    )
    for part in mixture.parts:
        left_out = part.table.unlabelled + part.table.skipped
        if left_out:
            say(
                f"note: {part.table.task.name}: {part.table.unlabelled} train rows without a label "
                f"and {part.table.skipped} damaged ones left out"
            )
        if mixture.passes(part) > MANY_PASSES:
            say(
                f"warning: each row of {part.table.task.name} is seen "
                f"{mixture.passes(part):.0f} times, more than {MANY_PASSES}"
            )


# --- the run ----------------------------------------------------------------------------------


@dataclass
class State:
    """What changes while a run trains, beside model and optimizer.

    Attributes:
        step: Optimizer steps done.
        rows, tokens: Seen so far.
        elapsed_s: Training seconds, those before an interruption included.
        average: Exponential moving average of the parameters, if one is kept.
        resumed: How often the run was taken up again.
    """

    step: int = 0
    rows: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    average: list[torch.Tensor] | None = None
    resumed: int = 0


def _train_into(run: Run, plan: Plan, force: bool) -> Run:
    """Trains (or goes on), evaluates and saves; `run.json` comes last."""
    if force and run.is_complete:
        (run.path / "run.json").unlink()
        for name in ("checkpoint", "predictions", "model"):
            shutil.rmtree(run.path / name, ignore_errors=True)
    if force:
        run.checkpoint_path.unlink(missing_ok=True)
    cfg, model = plan.cfg, plan.engine.model
    depths = parameter_depths(model) if cfg.layer_decay != 1.0 else None
    groups = parameter_groups(model, depths, cfg.layer_decay, cfg.weight_decay)
    optimizer = adamw(groups, cfg.adam_eps)
    if cfg.compile:
        model.network.compile(dynamic=True)
    state = State()
    if cfg.ema:
        state.average = [p.detach().clone() for p in model.parameters()]
    if run.checkpoint_path.exists():
        _restore(run, plan, optimizer, state)
    else:
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
    with world_errors(run.path):
        _fit(run, plan, optimizer, state)
    if state.average is not None:
        with torch.no_grad():
            for parameter, averaged in zip(model.parameters(), state.average, strict=True):
                parameter.copy_(averaged)
    return _finish(run, plan, state)


def _fit(run: Run, plan: Plan, optimizer: torch.optim.Optimizer, state: State) -> None:
    """The training loop: one pass of the `for` is one optimizer step."""
    cfg, mixture, model = plan.cfg, plan.mixture, plan.engine.model
    device = plan.engine.device
    log = Log(run, plan, state)
    model.train()
    with progress(_title(plan), mixture.num_steps, state.step) as bar, _interruptible() as stop:
        for drawn in batches.steps(mixture, cfg.seed, state.step):
            weight = gold_weight(cfg.anneal, state.step / mixture.num_steps, cfg.gold_weight)
            batch = batches.make_batch(mixture, drawn, weight, plan.engine.divide)
            dropout.seed(stream(cfg.seed, "dropout", state.step))
            denominator = batch.weight if cfg.loss_reduction == "mean" else 1.0
            step_loss = torch.zeros((), device=device)
            for micro_batch in batch.micro_batches:
                loss, sums = micro_batch_loss(plan.engine, mixture, micro_batch, denominator)
                loss.backward()
                step_loss += loss.detach()
                log.add(sums)
            if not torch.isfinite(step_loss):
                raise Diverged(
                    f"training stopped at step {state.step + 1}: the loss is {step_loss.item()}",
                    "the update was not made; try a lower lr, or precision = \"fp32\"",
                )
            if cfg.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.max_grad_norm)
            lr = cfg.lr * lr_factor(
                cfg.lr_schedule, state.step, mixture.num_steps, cfg.warmup_fraction
            )
            set_step(optimizer, lr, state.step, cfg.adam_eps, cfg.bias_correction)
            optimizer.step()
            optimizer.zero_grad()
            if state.average is not None:
                torch._foreach_lerp_(state.average, list(model.parameters()), 1.0 - cfg.ema)
            state.step += 1
            state.rows += batch.num_rows
            state.tokens += batch.num_tokens
            bar.advance(1)
            log.step(batch, drawn, step_loss, lr, weight, bar.note)
            if stop():
                _checkpoint(run, plan, optimizer, state, log.elapsed_s())
                raise Interrupted(f"interrupted at step {state.step}; the checkpoint is written")
            if log.seconds_since_save() > cfg.save_every_s:
                _checkpoint(run, plan, optimizer, state, log.elapsed_s())
                log.saved()
    state.elapsed_s = log.elapsed_s()


def _title(plan: Plan) -> str:
    names = [task.name for task in plan.tasks]
    what = names[0] if len(names) == 1 else f"{len(names)} tasks"
    return f"training {what}" + (" with teachers" if plan.teachers else "")


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Makes the first Ctrl-C a request that the loop asks for; a second one stops at once."""
    asked: list[int] = []

    def on_signal(number: int, _frame: Any) -> None:
        asked.append(number)
        signal.signal(number, signal.default_int_handler)

    try:
        before = signal.signal(signal.SIGINT, on_signal)
    except ValueError:  # not in the main thread
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


class Log:
    """Sums over the steps since the last line of `log.jsonl`."""

    def __init__(self, run: Run, plan: Plan, state: State) -> None:
        self.run, self.plan, self.state = run, plan, state
        self.begin = time.monotonic() - state.elapsed_s
        self.last_save = time.monotonic()
        self.tracker = _tracker(run, plan)
        self._reset()

    def _reset(self) -> None:
        self.since, self.first = time.monotonic(), (self.state.rows, self.state.tokens)
        self.losses: list[torch.Tensor] = []
        self.sums: dict[int, list[torch.Tensor]] = {}
        self.counts: dict[int, int] = {}

    def elapsed_s(self) -> float:
        return time.monotonic() - self.begin

    def seconds_since_save(self) -> float:
        return time.monotonic() - self.last_save

    def saved(self) -> None:
        self.last_save = time.monotonic()

    def add(self, sums: dict[int, torch.Tensor]) -> None:
        for part, value in sums.items():
            self.sums.setdefault(part, []).append(value)

    def step(
        self,
        batch: batches.Batch,
        drawn: Sequence[np.ndarray],
        loss: torch.Tensor,
        lr: float,
        weight: float,
        note: Callable[[str], None],
    ) -> None:
        """Counts one step, and writes a line each `log_every` steps and at the last one."""
        self.losses.append(loss)
        for part, positions in enumerate(drawn):
            self.counts[part] = self.counts.get(part, 0) + len(positions)
        cfg, state = self.plan.cfg, self.state
        last = state.step == self.plan.mixture.num_steps
        if state.step % cfg.log_every and not last:
            return
        seconds = time.monotonic() - self.since
        names = [part.table.task.name for part in self.plan.mixture.parts]
        line = {
            "step": state.step,
            "elapsed_s": round(self.elapsed_s(), 3),
            "rows": state.rows,
            "tokens": state.tokens,
            "loss": float(torch.stack(self.losses).mean()),
            "lr": lr,
            "gold_weight": weight if self.plan.teachers else 1.0,
            "rows_per_s": round((state.rows - self.first[0]) / seconds, 2),
            "tokens_per_s": round((state.tokens - self.first[1]) / seconds, 1),
            "task_loss": {
                names[part]: float(torch.stack(values).sum()) / self.counts[part]
                for part, values in sorted(self.sums.items())
            },
        }
        if cfg.eval_every and (state.step % cfg.eval_every < cfg.log_every) and not last:
            line["dev"] = _dev_metrics(self.plan)
        note(
            f"loss {line['loss']:.3f}, {line['rows_per_s']:.0f} rows/s, "
            f"{line['tokens_per_s']:.0f} tokens/s, lambda {line['gold_weight']:.2f}"
        )
        with world_errors(self.run.log_path), self.run.log_path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.tracker is not None:
            numbers = {k: v for k, v in line.items() if isinstance(v, int | float)}
            self.tracker.log(numbers, step=state.step)
        self._reset()


def _tracker(run: Run, plan: Plan) -> Any:
    """accelerate's trackers, if any are asked for."""
    if not plan.cfg.track:
        return None
    from accelerate import Accelerator

    accelerator = Accelerator(
        log_with=list(plan.cfg.track), project_dir=run.path, cpu=plan.engine.device.type == "cpu"
    )
    flat = {k: v for k, v in plan.cfg.model_dump().items() if isinstance(v, int | float | str)}
    accelerator.init_trackers("outshine", config=flat)
    return accelerator


def _dev_metrics(plan: Plan) -> dict[str, dict[str, float]]:
    """Metrics on every task's dev split, in the middle of training."""
    results = {}
    for (name, split), table in plan.dev.items():
        if split == "dev":
            results[name] = table_metrics(table, predict_table(plan.engine, table, "").logits)
    return results


# --- checkpoints ------------------------------------------------------------------------------


def _checkpoint(
    run: Run, plan: Plan, optimizer: torch.optim.Optimizer, state: State, elapsed_s: float
) -> None:
    """Writes weights, moments and counters as one file; random streams need no state."""
    arrays = {}
    for i, (name, parameter) in enumerate(plan.engine.model.named_parameters()):
        arrays[f"weight/{name}"] = parameter.detach().cpu().numpy()
        moments = optimizer.state.get(parameter, {})
        for key in ("exp_avg", "exp_avg_sq", "step"):
            if key in moments:
                arrays[f"{key}/{name}"] = moments[key].detach().cpu().numpy()
        if state.average is not None:
            arrays[f"average/{name}"] = state.average[i].cpu().numpy()
    write_arrays(
        run.checkpoint_path,
        arrays,
        {
            "identity": plan.identity,
            "step": state.step,
            "rows": state.rows,
            "tokens": state.tokens,
            "elapsed_s": elapsed_s,
            "resumed": state.resumed,
        },
    )


def _restore(run: Run, plan: Plan, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Takes a run up from its checkpoint, after checking that it is the same run."""
    arrays, header = map_arrays(run.checkpoint_path)
    same_identity(run, header["identity"], plan.identity)
    model = plan.engine.model
    with torch.no_grad():
        for i, (name, parameter) in enumerate(model.named_parameters()):
            parameter.copy_(torch.from_numpy(np.array(arrays[f"weight/{name}"])))
            if f"step/{name}" in arrays:
                optimizer.state[parameter] = {
                    key: torch.from_numpy(np.array(arrays[f"{key}/{name}"])).to(
                        parameter.device
                    )
                    for key in ("exp_avg", "exp_avg_sq", "step")
                }
            if state.average is not None:
                state.average[i].copy_(torch.from_numpy(np.array(arrays[f"average/{name}"])))
    state.step, state.rows, state.tokens = header["step"], header["rows"], header["tokens"]
    state.elapsed_s, state.resumed = header["elapsed_s"], header["resumed"] + 1
    lines = run.log_path.read_text().splitlines() if run.log_path.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= state.step]
    with world_errors(run.log_path):
        run.log_path.write_text("".join(f"{line}\n" for line in kept))
    say(f"resuming {run.path} at step {state.step:,} of {plan.mixture.num_steps:,}")


def same_identity(run: Run, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuses a run that was made with other settings, data or teachers, and names what differs."""
    for section, value in wanted.items():
        before = found.get(section)
        if before == value:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            keys = [k for k in sorted({*before, *value}) if before.get(k) != value.get(k)]
            differences = ", ".join(
                f"{section}.{k} was {_brief(before.get(k))}, is {_brief(value.get(k))}" for k in keys
            )
        else:
            differences = f"{section} was {before}, is {value}"
        raise UserError(
            f"cannot resume {run.path}: {differences}",
            "give the same settings and data to resume, or --force to start anew",
        )


def _brief(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


# --- the end of a run -------------------------------------------------------------------------


def _finish(run: Run, plan: Plan, state: State) -> Run:
    """Evaluates the final weights, saves what `keep` says, and completes the run."""
    cfg, engine = plan.cfg, plan.engine
    run_id = digest(plan.identity)[:12]
    if engine.precision != "fp32":
        engine = replace(engine, precision="fp32")
    engine.model.eval()
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    with progress("evaluating", sum(map(len, plan.dev.values()))) as bar:
        for (name, split), table in plan.dev.items():
            predictions = predict_table(engine, table, run_id, None, bar.advance)
            metrics.setdefault(name, {})[split] = table_metrics(table, predictions.logits)
            if cfg.keep != "metrics":
                predictions.save(run.predictions_path(name, split))
    if cfg.keep == "predictions":
        _save_train_logits(run, plan, engine, run_id)
    if cfg.keep == "all":
        with replacing_folder(run.model_dir) as folder:
            save_model(engine.model, plan.tokenizer, plan.tasks, folder)
    write_json(run.path / "metrics.json", metrics)
    write_json(run.path / "run.json", _provenance(plan, state, run_id))
    shutil.rmtree(run.path / "checkpoint", ignore_errors=True)
    _show_metrics(plan, metrics)
    return run


def _save_train_logits(run: Run, plan: Plan, engine: Engine, run_id: str) -> None:
    """The teacher cache of a run that will have no weights."""
    with progress("train logits", sum(len(p.rows) for p in plan.mixture.parts)) as bar:
        for part in plan.mixture.parts:
            predictions = predict_table(engine, part.table, run_id, part.rows, bar.advance)
            predictions.save(run.predictions_path(part.table.task.name, "train"))


def _provenance(plan: Plan, state: State, run_id: str) -> dict[str, Any]:
    engine = plan.engine
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = {
        "format": FORMAT,
        "id": run_id,
        "seed": plan.cfg.seed,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("outshine", "torch", "transformers", "tokenizers")},
        },
        "git_commit": git_commit(),
        "command": sys.argv,
        "data": {
            part.table.task.name: {
                "train": part.table.data,
                **{
                    split: table.data
                    for (name, split), table in plan.dev.items()
                    if name == part.table.task.name
                },
            }
            for part in plan.mixture.parts
        },
        "teachers": plan.identity["teachers"],
        "device": device_name(engine.device),
        "precision": engine.precision,
        "num_threads": torch.get_num_threads(),
        "num_parameters": sum(p.numel() for p in engine.model.parameters()),
        "steps": state.step,
        "rows": state.rows,
        "tokens": state.tokens,
        "train_s": round(state.elapsed_s, 3),
        "seconds": round(state.elapsed_s, 3),
        "resumed": state.resumed,
        # Linux counts in KiB, macOS in bytes
        "peak_memory_bytes": peak if sys.platform == "darwin" else peak * 1024,
    }
    if engine.device.type == "cuda":
        content["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(engine.device)
    return content


def device_name(device: torch.device) -> str:
    """Name of the processor or GPU, with the number of CPU cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def git_commit() -> str | None:
    """Commit of outshine's source, when it is used from a git checkout; `+` when it is changed."""
    folder = Path(__file__).parent
    if not (folder.parent.parent / ".git").exists():
        return None
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--", "src"])
    try:
        commit, changed = (
            subprocess.run(
                command, cwd=folder.parent.parent, capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def _show_metrics(plan: Plan, metrics: dict[str, dict[str, dict[str, float]]]) -> None:
    """The table of dev metrics in percent, beside the teachers' where they are runs."""
    taught = _teacher_metrics(plan)
    header = ["task", "split", "metric", "value", *(["teacher"] if plan.teachers else []), "n"]
    rows = []
    for name, splits in metrics.items():
        for split, values in splits.items():
            for metric, value in values.items():
                if metric in ("n", "constant_prediction"):
                    continue
                mark = " (constant)" if "constant_prediction" in values else ""
                cells = [name, split, metric, f"{100 * value:.1f}{mark}"]
                if plan.teachers:
                    teacher = taught.get(name, {}).get(split, {}).get(metric)
                    cells.append("" if teacher is None else f"{100 * teacher:.1f}")
                rows.append([*cells, str(values["n"])])
    dev = {name: splits["dev"] for name, splits in metrics.items() if "dev" in splits}
    total = score(plan.tasks, dev)
    if len(plan.tasks) > 1 and total is not None:
        rows.append(["score", "dev", "mean", f"{100 * total:.1f}", *([""] if taught else []), ""])
    show("Dev metrics of the final weights, in percent", header, rows)


def _teacher_metrics(plan: Plan) -> dict[str, dict[str, dict[str, float]]]:
    found = {}
    for name, sources in plan.teachers.items():
        run = Run(Path(sources[0]))
        if len(sources) == 1 and run.is_complete:
            found[name] = run.metrics().get(name, {})
    return found


def teacher_cache(run: Run | str | Path, split: str = "train", device: str = "auto") -> dict[str, int]:
    """Writes a run's logits on one split for each of its tasks; returns rows per task.

    Raises:
        UserError: If the run is incomplete or kept no weights, or a task lacks the split.
    """
    run = open_run(run)
    settings = TrainConfig(**run.config()["settings"])
    from outshine.evaluation import load_engine

    engine, tokenizer = load_engine(run, device, "fp32")
    counts = {}
    for task in run.tasks():
        swapped = split == "train" and _swapped(task, settings)
        table = encode(task, split, tokenizer, settings.max_length, swapped=swapped)
        rows = np.arange(len(table))
        if split == "train":
            rows = table.selection(settings.max_train_rows, swapped)
        with progress(f"logits of {task.name}", len(rows)) as bar:
            predictions = predict_table(engine, table, run.info()["id"], rows, bar.advance)
        predictions.save(run.predictions_path(task.name, split))
        counts[task.name] = len(rows)
    return counts

