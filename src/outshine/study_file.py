"""The study file: which arms, tasks and seeds are trained with which settings, and compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from outshine.chains import STAGES, Policy, Stage, linked_stages, parse_policy
from outshine.config import BY_TASK, TrainConfig
from outshine.errors import UserError, did_you_mean, raise_problems
from outshine.study_source import study_content, toml_content
from outshine.tasks import Task, validation_lines

# Settings that the study itself decides.
_OF_THE_STUDY = ("seed", "keep", "fold")


@dataclass(frozen=True)
class Arm:
    """One way of training that a study compares.

    Attributes:
        name: As shown in tables.
        chain: As written.
        stages: The links of the chain; each teaches the next, and `finetune` goes on with the
            weights of the one before.
        tasks: Names of its tasks.
        teachers: Who teaches the students of its chain.
    """

    name: str
    chain: str
    stages: tuple[Stage, ...]
    tasks: tuple[str, ...]
    teachers: Policy


@dataclass(frozen=True)
class Selection:
    """How settings are chosen on a seed that is not reported.

    Attributes:
        seed: Of the runs that choose; none of the study's.
        grid: The settings that each arm tries, the same for all.
        settings: Of the runs that choose, such as fewer epochs.
    """

    seed: int
    grid: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class StudySpec:
    """A study file, read and checked.

    Attributes:
        name: The study's name.
        tasks: Name -> task, for all arms.
        written: Task as written in the file (a name or a path) -> name.
        arms: The arms, in the order of the file.
        seeds: Seeds of the runs that are reported.
        compare: Pairs of arms that are tested.
        keep: What finished runs keep when nobody needs more: `all`, `predictions`, `metrics`.
        stages: Stage -> its settings.
        by_task: Stage -> task -> settings of its single-task runs.
        select: How settings are chosen, if they are.
        overrides: Settings of every run, from the command line; they win over the file's.
        content: The file and the overrides as plain data.
        text: The file.
    """

    name: str
    tasks: Mapping[str, Task]
    written: Mapping[str, str]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    compare: tuple[tuple[str, str], ...]
    keep: str
    stages: Mapping[str, Mapping[str, Any]]
    by_task: Mapping[str, Mapping[str, Mapping[str, Any]]]
    select: Selection | None
    overrides: Mapping[str, Any]
    content: Mapping[str, Any]
    text: str

    def arm(self, name: str) -> Arm:
        """The arm of this name.

        Raises:
            UserError: If there is none.
        """
        by_name = {arm.name: arm for arm in self.arms}
        if name not in by_name:
            raise UserError(
                f"no arm {name!r} in the study {self.name}{did_you_mean(name, by_name)}, "
                f"expected one of {', '.join(by_name)}",
                "arms are named as in the study file",
            )
        return by_name[name]


class _ArmTable(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    chain: str
    set: dict[str, Any] = {}
    tasks: tuple[str, ...] = ()
    teachers: str = ""


class _File(BaseModel):
    """The keys of a study file; design section 8 shows one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    encoder: str = ""
    tasks: tuple[str, ...] = Field(min_length=1)
    seeds: int | tuple[int, ...] = Field(1)
    arms: tuple[str, ...] = ()
    arm: tuple[_ArmTable, ...] = ()
    compare: tuple[tuple[str, str], ...] = ()
    teachers: str = "same-seed"
    keep: Literal["all", "predictions", "metrics"] = "predictions"
    stage: dict[str, dict[str, Any]] = {}
    select: dict[str, Any] | None = None


def parse_study(
    text: str, path: Path, find: Callable[[str], Task], overrides: Mapping[str, Any]
) -> StudySpec:
    """Reads the text of a study file.

    Args:
        text: TOML.
        path: Where it stands, for messages.
        find: Name as written -> task; raises UserError.
        overrides: Settings of every run that win over those of the file.

    Raises:
        UserError: If it is no TOML, or anything in it is wrong; with all problems at once.
    """
    what = f"cannot read the study file {path}"
    hint = "docs/studies.md shows every key of a study file"
    content = toml_content(text, path)
    try:
        file = _File(**content)
    except ValidationError as error:
        raise_problems(what, validation_lines(error, _File), hint)
        raise
    problems: list[str] = []
    written = _arm_tables(file, problems)
    tasks = _tasks([*file.tasks, *(n for a in written for n in a.tasks)], find, problems)
    arms = tuple(_arms(written, file, tasks, problems))
    problems += _other_beginnings(arms, chooses=file.select is not None)
    stages, by_task = _stages(file, overrides, arms, tasks, problems)
    seeds = _seeds(file.seeds, problems)
    select = _selection(
        file.select, seeds, arms, by_task, overrides, list(tasks.values()), problems
    )
    spec = StudySpec(
        name=file.name,
        tasks={task.name: task for task in tasks.values()},
        written={written: task.name for written, task in tasks.items()},
        arms=arms,
        seeds=seeds,
        compare=file.compare or tuple((arm.name, arms[0].name) for arm in arms[1:]),
        keep=file.keep,
        stages=stages,
        by_task=by_task,
        select=select,
        overrides=dict(overrides),
        content=study_content(content, overrides),
        text=text,
    )
    names = [arm.name for arm in written]
    for pair in file.compare:
        for name in pair:
            if name not in names:
                known = f"{did_you_mean(name, names)}, expected one of {', '.join(names)}"
                problems.append(f"compare: no arm {name!r}{known}")
        if pair[0] == pair[1]:
            problems.append(f"compare: {pair[0]!r} with itself, expected two arms")
    raise_problems(what, problems, hint)
    return spec


# --- seeds, tasks, settings -------------------------------------------------------------------


def _seeds(given: int | tuple[int, ...], problems: list[str]) -> tuple[int, ...]:
    if isinstance(given, int):
        if given < 1:
            problems.append(f"seeds: {given}, expected a number of seeds from 1, or a list")
        return tuple(range(1, given + 1))
    if not given or len(set(given)) != len(given) or min(given) < 0:
        problems.append(f"seeds: {list(given)}, expected distinct numbers from 0")
    return given


def _selection(
    table: dict[str, Any] | None,
    seeds: Sequence[int],
    arms: Sequence[Arm],
    by_task: Mapping[str, Mapping[str, Mapping[str, Any]]],
    overrides: Mapping[str, Any],
    tasks: Sequence[Task],
    problems: list[str],
) -> Selection | None:
    """[select]: `seed`, `set`, and the grid as lists of values by setting, given nowhere else."""
    if table is None:
        return None
    lists = {key: value for key, value in table.items() if key not in ("seed", "set")}
    seed, settings = table.get("seed"), table.get("set", {})
    names = [task.name for task in tasks]
    if not isinstance(seed, int) or seed in seeds or seed < 0:
        problems.append(f"select.seed: {seed}, expected a number that is none of the seeds")
        seed = 0
    bad = [key for key, values in lists.items() if not isinstance(values, list) or len(values) < 2]
    for key in bad:
        problems.append(f"select.{key}: {lists.pop(key)!r}, expected a list of two values or more")
    if not lists and not bad:
        problems.append("select: no grid, expected lists such as lr = [1e-4, 3e-4]")
    grid = tuple(dict(zip(lists, values, strict=True)) for values in product(*lists.values()))
    _check_settings(settings, "select.set", names, problems)
    for point in grid:
        _check_settings(point, "select", names, problems)
    given = {f"arm {arm.name!r}: set": stage.settings for arm in arms for stage in arm.stages}
    given |= {
        f"stage.{kind}.task.{name}": its
        for kind, by_name in by_task.items()
        for name, its in by_name.items()
    }
    given |= {"--set": overrides, "select.set": settings if isinstance(settings, dict) else {}}
    for place, its in given.items():
        problems += [
            f"{place}.{key}: given, and also in the grid of [select]" for key in lists if key in its
        ]
    return Selection(seed, grid, settings)


def _tasks(
    names: Sequence[str], find: Callable[[str], Task], problems: list[str]
) -> dict[str, Task]:
    """Name as written -> task; those that cannot be read become problems."""
    found: dict[str, Task] = {}
    for name in dict.fromkeys(names):
        try:
            task = find(name)
        except UserError as error:
            problems.append(f"tasks: {error.message}")
            continue
        if task.name in {other.name for other in found.values()}:
            problems.append(f"tasks: {task.name} given twice, expected distinct names")
        found[name] = task
    return found


def _stages(
    file: _File,
    overrides: Mapping[str, Any],
    arms: Sequence[Arm],
    tasks: Mapping[str, Task],
    problems: list[str],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, dict[str, Any]]]]:
    """Settings of each stage, and of its single-task runs by task; checked one table at a time."""
    common = {"encoder": file.encoder} if file.encoder else {}
    stages, by_task = {}, {}
    names = [task.name for task in tasks.values()]
    _check_settings(overrides, "--set", names, problems)
    for kind, table in file.stage.items():
        if kind not in STAGES:
            known = f"{did_you_mean(kind, STAGES)}, expected {', '.join(STAGES)}"
            problems.append(f"stage: unknown stage {kind!r}{known}")
            continue
        own = table.get("task", {})
        if not isinstance(own, dict) or not all(isinstance(its, dict) for its in own.values()):
            problems.append(
                f"stage.{kind}.task: {own!r}, expected tables such as [stage.{kind}.task.rte]"
            )
            own = {}
        settings = {key: value for key, value in table.items() if key != "task"}
        _check_settings(settings, f"stage.{kind}", names, problems)
        if own and kind == "multi":
            problems.append("stage.multi.task: given, expected only in stages of one task a run")
        if kind == "finetune" and "init" in settings:
            problems.append("stage.finetune.init: given, expected none: it goes on with a run")
        for name, its in own.items():
            if name not in names:
                known = f"{did_you_mean(name, names)}, expected one of {', '.join(names)}"
                problems.append(f"stage.{kind}.task: no task {name!r}{known}")
            _check_settings(its, f"stage.{kind}.task.{name}", names, problems)
        stages[kind] = common | settings
        by_task[kind] = own
    for arm in arms:
        for stage in arm.stages:
            if stage.kind not in stages:
                line = (
                    f"arm {arm.name!r}: no settings of its stage {stage.kind}, "
                    f"expected [stage.{stage.kind}]"
                )
                if line not in problems:
                    problems.append(line)
    if not file.encoder and "encoder" not in overrides:
        for kind, settings in stages.items():
            if "encoder" not in settings:
                problems.append(
                    f"stage.{kind}: no encoder, expected `encoder = ...` above the tables"
                )
    return stages, by_task


def _check_settings(settings: Any, place: str, names: Sequence[str], problems: list[str]) -> None:
    if not isinstance(settings, Mapping):
        problems.append(f"{place}: {settings!r}, expected a table of settings")
        return
    for key in _OF_THE_STUDY:
        if key in settings:
            problems.append(f"{place}.{key}: given, expected none: the study decides it")
    try:
        cfg = TrainConfig(**settings)
    except UserError as error:
        problems += [f"{place}: {problem}" for problem in error.problems]
        return
    for key in BY_TASK:
        by_task = getattr(cfg, key)
        for name in by_task if isinstance(by_task, dict) else ():
            if name not in names:
                known = f"{did_you_mean(name, names)}, expected one of {', '.join(names)}"
                problems.append(f"{place}.{key}: no task {name!r}{known}")


# --- arms -------------------------------------------------------------------------------------


def _arm_tables(file: _File, problems: list[str]) -> list[_ArmTable]:
    """All arms, those written as a chain alone first."""
    written = [_ArmTable(name=chain, chain=chain) for chain in file.arms] + list(file.arm)
    if not written:
        problems.append("arms: missing, expected at least one chain, or [[arm]] tables")
    names = [arm.name for arm in written]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"arms: {name!r} given twice, expected distinct names")
    return written


def _arms(
    written: Sequence[_ArmTable], file: _File, tasks: Mapping[str, Task], problems: list[str]
) -> Iterator[Arm]:
    chains = {arm.name: (arm.chain, arm.set) for arm in written}
    common = Policy("same-seed")
    try:
        common = parse_policy(file.teachers)
    except ValueError as error:
        problems.append(str(error))
    for arm in written:
        try:
            stages = linked_stages(arm.name, chains)
            policy = parse_policy(arm.teachers) if arm.teachers else common
        except ValueError as error:
            line = f"arm {arm.name!r}: {error}"
            if line not in problems:
                problems.append(line)
            continue
        _check_settings(
            arm.set, f"arm {arm.name!r}: set", [t.name for t in tasks.values()], problems
        )
        names = tuple(tasks[name].name for name in arm.tasks or file.tasks if name in tasks)
        yield Arm(arm.name, arm.chain, stages, names, policy)


def _other_beginnings(arms: Sequence[Arm], *, chooses: bool) -> Iterator[str]:
    """What keeps a chain that begins with the name of an arm from being taught by its runs."""
    by_name = {arm.name: arm for arm in arms if arm.name != arm.chain}
    for arm in arms:
        name = re.split(r"->|\+", arm.chain)[0].strip()
        if name not in by_name:
            continue
        first = by_name[name]
        given = f"arm {arm.name!r}: starts with {name!r}, whose"
        if len(first.stages) > 1 and first.teachers != arm.teachers:
            yield f"{given} teachers are {first.teachers}, expected its own, {arm.teachers}"
        # settings are chosen by the score over an arm's tasks, those of single-task runs, too
        together = chooses or any(stage.kind == "multi" for stage in first.stages)
        if first.tasks != arm.tasks and together:
            its, own = ", ".join(first.tasks), ", ".join(arm.tasks)
            yield f"{given} tasks are {its}, expected its own, {own}"
