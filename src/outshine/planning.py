"""From tasks and settings to all that a run needs before its first step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outshine import batches, encoders
from outshine import teachers as teaching
from outshine.batches import Mixture, Part
from outshine.config import BY_TASK, WITHOUT_EFFECT, TrainConfig, resolve, takes_swapped
from outshine.console import say, show
from outshine.data import TokenTable, encode, folds, tokenizer_fingerprint
from outshine.depths import parameter_depths
from outshine.devices import pick_device, pick_precision
from outshine.distributed import ALONE, Team
from outshine.errors import UserError
from outshine.forward import Forward, make_forward
from outshine.graph import other_start
from outshine.model import (
    MultiTaskModel,
    add_weights,
    architecture,
    build_model,
    load_model,
    num_positions,
    weights_digest,
)
from outshine.runs import Run, check_new, open_run
from outshine.tasks import Task, kind_of, unique_tasks

MANY_PASSES = 50
# They say where the weights come from that `start` covers; the same place may be spelled otherwise.
_STARTS = frozenset({"encoder", "init"})


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
        forward: The untrained model on its device.
        depths: Parameter -> depth from the output, where the learning rate decays with it.
        identity: What the run's result depends on, as plain data.
        taught: Task -> split -> metrics of its teachers on the dev rows, where they have any.
    """

    tasks: tuple[Task, ...]
    cfg: TrainConfig
    teachers: dict[str, list[str]]
    mixture: Mixture
    dev: dict[tuple[str, str], TokenTable]
    tokenizer: Any
    forward: Forward
    depths: dict[str, int] | None
    identity: dict[str, Any] = field(default_factory=dict)
    taught: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def rebuild(self, weights: Mapping[str, Any]) -> Forward:
        """A new model with given weights, on the same device."""
        location = encoders.locate(self.cfg.encoder)
        model = build_model(location, self.tasks, pooling=self.cfg.pooling, random_weights=True)
        model.load_state_dict(weights)
        place, precision = self.forward.device, self.forward.precision
        return make_forward(model, self.tokenizer, place, precision, max_tokens=self.cfg.max_tokens)


def prepare(
    tasks: tuple[Task, ...],
    cfg: TrainConfig,
    teachers: teaching.Teachers | None,
    team: Team = ALONE,
) -> Plan:
    """Reads and checks everything that a run needs; writes only to the cache of encoded tables."""
    _check_trackers(cfg)
    sources = teaching.normalise(teachers, tasks)
    location = encoders.locate(cfg.encoder)
    tokenizer = encoders.load_tokenizer(location)
    device = pick_device(cfg.device) if team.state is None else team.state.device
    model = _initial_model(location, tasks, cfg, sources)
    start = weights_digest(model)
    if cfg.gradient_checkpointing:
        network = model.network  # transformers 5.23 has a new name for it
        getattr(network, "activation_checkpointing_enable", network.gradient_checkpointing_enable)()
    forward = make_forward(
        model,
        tokenizer,
        device,
        pick_precision(cfg.precision, device),
        max_tokens=cfg.max_tokens,
        plain=cfg.compile or cfg.gradient_checkpointing,
        replayed=cfg.compile and not cfg.gradient_checkpointing and team.size == 1,
        wrapped=team.size > 1,
    )
    _check_length(model, cfg.max_length)
    depths = parameter_depths(model) if cfg.layer_decay != 1.0 else None
    tables = {t.name: _train_table(t, tokenizer, cfg) for t in tasks}
    dev = {
        (task.name, split): encode(task, split, tokenizer, cfg.max_length)
        for task in tasks
        for split in task.dev_splits
    }
    warn_overlap(tasks, tables, dev)
    mixture = _mixture(tasks, tables, cfg)
    parts = [_with_teacher(part, sources, cfg, device) for part in mixture.parts]
    mixture = replace(mixture, parts=tuple(parts))
    identity = {
        "settings": {
            key: value
            for key, value in cfg.model_dump(mode="json").items()
            if key not in WITHOUT_EFFECT | _STARTS
        },
        "precision": forward.precision,
        "start": {"weights": start, "tokenizer": tokenizer_fingerprint(tokenizer)},
        "architecture": architecture(model, location),
        "data": {name: table.data for name, table in tables.items()},
        "rows": {
            part.table.task.name: hashlib.sha256(part.rows.tobytes()).hexdigest()
            for part in mixture.parts
        },
        "teachers": {
            part.table.task.name: hashlib.sha256(part.soft_targets.tobytes()).hexdigest()
            for part in mixture.parts
            if part.soft_targets is not None
        },
    }
    taught: dict[str, dict[str, dict[str, float]]] = {name: {} for name in sources}
    for (name, split), table in dev.items():
        if name in sources:
            taught[name][split] = teaching.dev_metrics(sources[name], table, str(device))
    return Plan(tasks, cfg, sources, mixture, dev, tokenizer, forward, depths, identity, taught)


def _check_trackers(cfg: TrainConfig) -> None:
    """Refuses trackers that are not installed; accelerate would leave them out in silence."""
    for name in cfg.track:
        if find_spec(name) is None:
            raise UserError(
                f"cannot track the run with {name}: it is not installed", f"pip install {name}"
            )


def _check_task_names(tasks: Sequence[Task], cfg: TrainConfig) -> None:
    """Refuses settings by task that name a task which is not trained."""
    names = [task.name for task in tasks]
    for key in BY_TASK:
        by_task = getattr(cfg, key)
        unknown = [n for n in by_task if n not in names] if isinstance(by_task, dict) else []
        if unknown:
            raise UserError(
                f"cannot use {key}: no task {unknown[0]!r}, expected some of {', '.join(names)}",
                "name tasks that are trained",
            )


def _initial_model(
    location: str, tasks: Sequence[Task], cfg: TrainConfig, sources: Mapping[str, Sequence[str]]
) -> MultiTaskModel:
    model = build_model(
        location,
        tasks,
        pooling=cfg.pooling,
        seed=cfg.seed,
        random_weights=cfg.init == "random",
        dropout=cfg.dropout,
        attention_dropout=cfg.attention_dropout,
    )
    if cfg.init == "teachers":
        _start_from_teachers(model, tasks, cfg, sources)
    elif cfg.init not in ("encoder", "random"):
        start, _, known = load_model(open_run(cfg.init).model_dir)
        try:
            model.network.load_state_dict(start.network.state_dict())
        except RuntimeError as error:
            differs = str(error).split("\n")[1:2] or [str(error)]
            raise UserError(
                f"cannot start from {cfg.init}: {differs[0].strip()}",
                "the run must have the same encoder and pooling",
            ) from None
        outputs = {task.name: (task.kind, task.labels, task.range) for task in known}
        for task in tasks:
            if outputs.get(task.name) == (task.kind, task.labels, task.range):
                model.head(task.name).load_state_dict(start.head(task.name).state_dict())
            elif task.name in outputs:
                say(f"note: {task.name} has other labels in {cfg.init}: its head starts anew")
    return model


def _start_from_teachers(
    model: MultiTaskModel,
    tasks: Sequence[Task],
    cfg: TrainConfig,
    sources: Mapping[str, Sequence[str]],
) -> None:
    """Fills a model with the mean of its teachers' encoders, and its heads with theirs.

    A run that teaches several tasks counts once. Heads of tasks without a teacher stay new.
    """
    if not sources:
        raise UserError(
            'cannot use init = "teachers": no teacher is given, expected one or more',
            "give `--teacher TASK=RUN`, or start from the encoder",
        )
    taught: dict[Path, list[str]] = {}
    for task in tasks:
        for source in sources.get(task.name, ()):
            taught.setdefault(run_to_start_from(source, task, cfg).path, []).append(task.name)
    with torch.no_grad():
        for module in (model.network, *(model.head(name) for name in sources)):
            for parameter in module.parameters():
                parameter.zero_()
        for path, names in taught.items():
            teacher, _, _ = load_model(Run(path).model_dir)
            add_weights(model.network, teacher.network, len(taught))
            for name in names:
                add_weights(model.head(name), teacher.head(name), len(sources[name]))


def run_to_start_from(source: str, task: Task, cfg: TrainConfig) -> Run:
    """The run that a teacher is, if a student with settings `cfg` can start from its weights.

    Raises:
        UserError: If it is no run, kept no weights, or has another encoder or pooling.
    """
    run = teaching.recognise(source, task)
    what = f"cannot start from the teacher {source} of {task.name!r}"
    if not isinstance(run, Run):
        raise UserError(f"{what}: it is no run, expected a run", "start from the encoder instead")
    differs = other_start(run.config()["settings"], cfg)
    if differs:
        raise UserError(
            f"{what}: {differs}",
            "the mean of weights needs the same encoder and pooling in all teachers",
        )
    if not (run.model_dir / "tasks.json").exists():
        raise UserError(
            f"{what}: it kept no weights, expected weights", 'train it with keep = "all"'
        )
    return run


def _check_length(model: MultiTaskModel, max_length: int) -> None:
    """Refuses rows that are longer than the encoder's table of positions."""
    limit = num_positions(model)
    if limit is not None and max_length > limit:
        raise UserError(
            f"cannot use max_length = {max_length}: the encoder has {limit} positions",
            f"use `--set max_length={limit}` or less",
        )


def _train_table(task: Task, tokenizer: Any, cfg: TrainConfig) -> TokenTable:
    return encode(task, "train", tokenizer, cfg.max_length, swapped=takes_swapped(task, cfg))


def _mixture(tasks: Sequence[Task], tables: dict[str, TokenTable], cfg: TrainConfig) -> Mixture:
    rows = {t.name: _train_rows(tables[t.name], cfg) for t in tasks}
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


def _train_rows(table: TokenTable, cfg: TrainConfig) -> np.ndarray:
    """The rows of a train table that a run learns from; it may answer more of them."""
    rows = table.selection(cfg.max_train_rows, takes_swapped(table.task, cfg))
    if not cfg.fold:
        return rows
    number, count = map(int, cfg.fold.split("/"))
    kept = rows[folds([table.ids[row] for row in rows.tolist()], count) != number]
    if not len(kept):
        raise UserError(
            f"cannot train without fold {cfg.fold} of {table.task.name}: no row is left of "
            f"{len(rows)}",
            "use fewer folds",
        )
    return kept


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
        train = tables[task.name]
        known = row_digests(train)[: train.num_originals]
        for (name, split), table in dev.items():
            if name == task.name:
                shared = int(np.isin(row_digests(table), known).sum())
                if shared:
                    say(f"warning: {shared} of {len(table)} {split} rows of {name} stand in train")


def row_digests(table: TokenTable) -> np.ndarray:
    """(N,) int64 numbers that tell rows of different tokens apart, within one process."""
    tokens = np.asarray(table.tokens)
    hashes = (hash(tokens[start:stop].tobytes()) for start, stop in pairwise(table.offsets))
    return np.fromiter(hashes, np.int64, len(table))


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
    tokens = sum(mixture.passes(p) * float(p.table.lengths_of(p.rows).sum()) for p in mixture.parts)
    show(f"Mixture (preset {cfg.preset}, seed {cfg.seed})", header, rows)
    say(
        f"{mixture.num_steps:,} steps of {mixture.batch_size} rows, about {tokens:,.0f} tokens; "
        f"lr {cfg.lr:g}, {plan.forward.precision} on {plan.forward.device}, "
        f"{torch.get_num_threads()} threads, "
        + ("packed rows" if plan.forward.packing else "rows of similar length padded together")
    )
    for task in plan.tasks:
        if not task.dev_splits:
            say(f"note: {task.name} has no dev split: it is not evaluated")
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
