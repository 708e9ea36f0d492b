"""From a study to its runs: each is there once, teachers before students, seed by seed.

A run is identified by the content of what it depends on: the settings that have an effect on it,
the encoder, its tasks' data, its teachers, the run that it starts from, and its seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any

from outshine.chains import Policy, Stage, chain_text
from outshine.config import WITHOUT_EFFECT, TrainConfig, of_tasks, resolve, takes_swapped
from outshine.encoders import BUILTIN, BUILTIN_SHA256
from outshine.errors import UserError
from outshine.files import digest, digest_file
from outshine.metrics import NOT_IN_SCORE
from outshine.readers import data_fingerprint
from outshine.results import Row
from outshine.study_file import Arm, StudySpec
from outshine.tasks import Task

FORMAT = 1
ID_LENGTH = 16


@dataclass(frozen=True)
class Node:
    """One training run of a study.

    Attributes:
        id: Digest of all that the run's result depends on.
        stage: `single`, `multi` or `finetune`.
        chain: The stages up to this one, such as `single->multi`.
        cfg: Complete settings.
        tasks: The tasks that it is trained on.
        teachers: Task -> ids of the runs that teach it; several are an ensemble, or, where they
            were trained without a fold, answer that fold each.
        start: Id of the run with whose weights it starts, or "".
    """

    id: str
    stage: str
    chain: str
    cfg: TrainConfig
    tasks: tuple[Task, ...]
    teachers: Mapping[str, tuple[str, ...]]
    start: str

    @property
    def folder(self) -> str:
        """Where the run is, below the folder of the study."""
        what = self.tasks[0].name if len(self.tasks) == 1 else "all"
        chain = self.chain.replace("->", "-").replace("+", "-")
        return f"runs/{chain}-{what}-seed{self.cfg.seed}-{self.id[:8]}"

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of the runs that it needs."""
        ids = [run for runs in self.teachers.values() for run in runs]
        return tuple(dict.fromkeys([*ids, *([self.start] if self.start else [])]))


@dataclass(frozen=True)
class Graph:
    """The runs of a study.

    Attributes:
        nodes: Id -> run, in an order in which they can be trained.
        ends: Arm -> seed -> ids of the runs that give the arm's scores for this seed.
        trials: Ids of the runs that choose settings.
        choices: What they chose, one record per chain: {"chain", "tasks", "seed", "scores":
            [[settings, score as a fraction], ...], "chosen": settings}.
        pending: Whether a choice is open, so that runs which depend on it are not there yet.
        data: Task -> fingerprints, for the next call of `build_graph`.
    """

    nodes: Mapping[str, Node]
    ends: Mapping[str, Mapping[int, tuple[str, ...]]]
    trials: frozenset[str] = frozenset()
    choices: tuple[Mapping[str, Any], ...] = ()
    pending: bool = False
    data: Mapping[str, Any] = field(default_factory=dict)

    def needed(self, seeds: Sequence[int]) -> list[Node]:
        """The runs of these seeds' arms, those that choose settings, and their teachers."""
        wanted: set[str] = set()
        left = list(self.reported(seeds) | self.trials)
        while left:
            run = left.pop()
            if run not in wanted:
                wanted.add(run)
                left += self.nodes[run].parents
        return [node for run, node in self.nodes.items() if run in wanted]

    def reported(self, seeds: Sequence[int]) -> set[str]:
        """Ids of the runs that give the arms' scores for these seeds."""
        by_arm = self.ends.values()
        return {run for of_seed in by_arm for seed in seeds for run in of_seed.get(seed, ())}

    @cached_property
    def _children(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {run: [] for run in self.nodes}
        for node in self.nodes.values():
            for parent in node.parents:
                found[parent].append(node)
        return found

    def children(self, node: Node) -> list[Node]:
        """The runs that a run teaches, or that start from it."""
        return self._children[node.id]

    def needs_weights(self, node: Node, child: Node) -> bool:
        """Whether a child of a run needs its weights, and not only its logits on train."""
        if child.start == node.id or child.cfg.init == "teachers":
            return True
        taught = [task for task in child.tasks if node.id in child.teachers.get(task.name, ())]
        return any(_has_more_rows(child.cfg, node.cfg, task) for task in taught)


def _has_more_rows(student: TrainConfig, teacher: TrainConfig, task: Task) -> bool:
    """Whether a student is trained on rows of a task that its teacher was not trained on."""
    taken, given = (cfg.max_train_rows or float("inf") for cfg in (student, teacher))
    return taken > given or (takes_swapped(task, student) and not takes_swapped(task, teacher))


@dataclass
class _Build:
    """What is made while a graph is built."""

    spec: StudySpec
    data: Mapping[str, Any]
    rows: Mapping[str, Row]
    nodes: dict[str, Node] = field(default_factory=dict)
    known: dict[str, Node] = field(default_factory=dict)
    trials: set[str] = field(default_factory=set)
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)


class _OpenChoiceError(Exception):
    """Settings on which a run depends are not chosen yet."""


def build_graph(
    spec: StudySpec, rows: Mapping[str, Row] | None = None, data: Mapping[str, Any] | None = None
) -> Graph:
    """The runs of a study, from its specification; reads the data files to identify them.

    Args:
        spec: The study.
        rows: Run id -> row, of those that are finished; settings are chosen by them.
        data: Of an earlier graph, to spare reading.

    Raises:
        UserError: If data or encoder are missing, or settings of a stage do not fit together.
    """
    data = data or {
        name: {
            "splits": {s: data_fingerprint(task, s) for s in ("train", *task.dev_splits)},
            "metrics": task.metrics,
        }
        for name, task in spec.tasks.items()
    }
    made = _Build(spec, data, rows or {})
    ends: dict[str, dict[int, tuple[str, ...]]] = {arm.name: {} for arm in spec.arms}
    pending = False
    for seed in spec.seeds:
        for arm in spec.arms:
            try:
                runs = _end_runs(made, arm, arm.stages, seed)
            except _OpenChoiceError:
                pending = True
            else:
                ends[arm.name][seed] = tuple(node.id for node in runs)
    choices = tuple(made.choices.values())
    return Graph(made.nodes, ends, frozenset(made.trials), choices, pending, data)


def _end_runs(
    made: _Build,
    arm: Arm,
    stages: Sequence[Stage],
    seed: int,
    trial: Mapping[str, Any] | None = None,
) -> list[Node]:
    """The runs at the end of these stages, for all tasks of the arm."""
    groups = [arm.tasks] if stages[-1].kind == "multi" else [(name,) for name in arm.tasks]
    return [_run(made, arm, stages, names[0], seed, "", trial) for names in groups]


def _chosen(made: _Build, arm: Arm, stages: Sequence[Stage]) -> Mapping[str, Any]:
    """The settings of the grid that scored best at the end of these stages, on the choosing seed.

    Raises:
        _OpenChoiceError: If not all of them are tried yet; their runs are then in the graph.
    """
    select = made.spec.select
    if select is None:
        return {}
    key = repr((arm.tasks, [(s.kind, s.settings) for s in stages]))
    if key in made.choices:
        return made.choices[key]["chosen"]
    tried = [_end_runs(made, arm, stages, select.seed, point) for point in select.grid]
    made.trials.update(node.id for runs in tried for node in runs)
    if not all(node.id in made.rows for runs in tried for node in runs):
        raise _OpenChoiceError
    scores = [_score([made.rows[node.id] for node in runs]) for runs in tried]
    chosen = select.grid[scores.index(max(scores))]
    made.choices[key] = {
        "chain": chain_text(stages),
        "tasks": list(arm.tasks),
        "seed": select.seed,
        "scores": [[dict(p), score] for p, score in zip(select.grid, scores, strict=True)],
        "chosen": dict(chosen),
    }
    return chosen


def _score(rows: Sequence[Row]) -> float:
    """Mean of the primary dev metrics that count in scores (of all, if none does)."""
    values = {name: row.primary(name) for row in rows for name in row.tasks}
    counted = [value for name, value in values.items() if name not in NOT_IN_SCORE]
    return sum(counted or values.values()) / len(counted or values)


def _run(
    made: _Build,
    arm: Arm,
    stages: Sequence[Stage],
    task: str,
    seed: int,
    fold: str,
    trial: Mapping[str, Any] | None = None,
) -> Node:
    """The run at the end of these stages that answers a task, after those that it needs.

    `trial` are settings that are tried; without them the chosen ones hold.
    """
    *before, stage = stages
    names = arm.tasks if stage.kind == "multi" else (task,)
    key = repr(
        (arm.tasks, arm.teachers, [(s.kind, s.settings) for s in stages], names, seed, fold, trial)
    )
    if key in made.known:
        return made.known[key]
    teachers: dict[str, tuple[str, ...]] = {}
    start = ""
    if stage.kind == "finetune":
        start = _run(made, arm, before, task, seed, fold).id
    elif before:
        choosing = made.spec.select is not None and seed == made.spec.select.seed
        # the runs that choose have teachers of their own seed, under every policy
        policy = Policy("same-seed") if choosing else arm.teachers
        by = _teachers(made.spec, policy, seed)
        teachers = {
            name: tuple(_run(made, arm, before, name, s, f).id for s, f in by) for name in names
        }
    tried = _chosen(made, arm, stages) if trial is None else trial
    cfg = _settings(made.spec, stage, names, seed, fold, tried)
    if cfg.init == "teachers":
        _check_start(made, arm, stage, teachers, cfg)
    tasks = tuple(made.spec.tasks[name] for name in names)
    for name, (teacher, *_) in teachers.items():
        given = made.nodes[teacher].cfg
        if given.fold and _has_more_rows(cfg, given, made.spec.tasks[name]):
            raise UserError(
                f"cannot plan the arm {arm.name!r}: its stage {stage.kind} has more rows of {name} "
                "than its teachers out of fold, expected no more",
                "give both the same max_train_rows and symmetric, or take other teachers",
            )
    content = {
        "format": FORMAT,
        "settings": effective_settings(cfg, tasks, taught=bool(teachers)),
        "encoder": encoder_identity(cfg.encoder),
        "tasks": [{"name": name, **made.data[name]} for name in names],
        "teachers": teachers,
        "start": start,
        "seed": seed,
    }
    identity = digest(content)[:ID_LENGTH]
    node = Node(identity, stage.kind, chain_text(stages), cfg, tasks, teachers, start)
    # another arm may have had it already; then its name is that of the first
    made.known[key] = made.nodes.setdefault(node.id, node)
    return made.known[key]


def _check_start(
    made: _Build, arm: Arm, stage: Stage, teachers: Mapping[str, Sequence[str]], cfg: TrainConfig
) -> None:
    """Refuses a run that cannot start from the mean of its teachers' encoders."""
    what = f'cannot plan the arm {arm.name!r}: init = "teachers" in its stage {stage.kind}'
    if not teachers:
        raise UserError(
            f"{what}, which has no teachers",
            "give it in the `set` of an [[arm]] whose last stage has an arrow before it",
        )
    for teacher in (made.nodes[run].cfg for runs in teachers.values() for run in runs):
        if teacher.fold:
            raise UserError(
                f"{what}, whose teachers are out of fold, expected whole ones",
                "use teachers same-seed, first or ensemble:k with it",
            )
        differs = other_start(teacher.model_dump(), cfg)
        if differs:
            raise UserError(
                f"{what}, whose teachers have {differs}",
                "the mean of weights needs the same encoder and pooling in all of them",
            )


def other_start(theirs: Mapping[str, Any], cfg: TrainConfig) -> str:
    """Why no run with settings `cfg` can start from one with `theirs`, or ""."""
    for key, identity in (("encoder", encoder_identity), ("pooling", str)):
        own = getattr(cfg, key)
        if identity(theirs[key]) != identity(own):
            return f"{key} {theirs[key]}, expected {own}"
    return ""


def _teachers(spec: StudySpec, policy: Policy, seed: int) -> list[tuple[int, str]]:
    """(seed, fold) of each teacher of the student of one seed.

    An ensemble takes the next k of the study's seeds and, after the last of these, of the numbers
    above it, so that no two students have a teacher in common.
    """
    if policy.name == "first":
        return [(spec.seeds[0], "")]
    if policy.name == "out-of-fold":
        return [(seed, f"{number}/{policy.count}") for number in range(1, policy.count + 1)]
    if policy.name == "ensemble":
        first = next(i for i, number in enumerate(_pool(spec)) if number == seed) * policy.count
        return [(number, "") for number in islice(_pool(spec), first, first + policy.count)]
    return [(seed, "")]


def _pool(spec: StudySpec) -> Iterator[int]:
    """The seeds that ensembles are taken from, without end."""
    choosing = None if spec.select is None else spec.select.seed
    yield from spec.seeds
    yield from (number for number in count(max(spec.seeds) + 1) if number != choosing)


def _settings(
    spec: StudySpec,
    stage: Stage,
    names: Sequence[str],
    seed: int,
    fold: str,
    tried: Mapping[str, Any],
) -> TrainConfig:
    own = spec.by_task[stage.kind].get(names[0], {}) if len(names) == 1 else {}
    given = {**spec.stages[stage.kind], **own, **spec.overrides, **stage.settings, **tried}
    if spec.select is not None and seed == spec.select.seed:
        given |= spec.select.settings
    return of_tasks(resolve(TrainConfig(**given), len(names), seed=seed, fold=fold), names)


def effective_settings(cfg: TrainConfig, tasks: Sequence[Task], *, taught: bool) -> dict[str, Any]:
    """The settings that have an effect on a run's result, as plain data.

    Args:
        cfg: Complete settings.
        tasks: The run's tasks.
        taught: Whether it has teachers.
    """
    left_out = WITHOUT_EFFECT | {"preset", "encoder", "seed"}
    settings = {k: v for k, v in cfg.model_dump(mode="json").items() if k not in left_out}
    settings["symmetric"] = [task.name for task in tasks if takes_swapped(task, cfg)]
    weights = {name: w for name, w in cfg.task_weight.items() if w != 1.0}
    # one task's weight cancels out of a mean
    alone = len(tasks) == 1
    settings["task_weight"] = {} if alone and cfg.loss_reduction == "mean" else weights
    unused = {
        "anneal": not taught,
        "temperature": not taught,
        "gold_weight": not taught or cfg.anneal != "constant",
        "sampling": alone,
        "sampling_exponent": alone or cfg.sampling != "exponent",
        "sampling_temperature": alone or cfg.sampling != "temperature",
        "sampling_weights": alone or cfg.sampling != "explicit",
    }
    return {key: value for key, value in settings.items() if not unused.get(key)}


@cache
def encoder_identity(name: str) -> str:
    """What an encoder is, wherever it lies: a folder's files, or the hub's name for it."""
    if name == BUILTIN:
        return BUILTIN_SHA256
    folder = Path(name)
    if not folder.is_dir():
        return name
    endings = (".json", ".txt", ".model", ".safetensors", ".bin")
    files = sorted(path for path in folder.iterdir() if path.suffix in endings)
    return digest({path.name: digest_file(path) for path in files})
