"""The study file: which arms, tasks and seeds are trained with which settings, and compared."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from outshine.config import BY_TASK, TrainConfig
from outshine.errors import UserError, did_you_mean, raise_problems
from outshine.files import read_errors
from outshine.glue_tasks import find_task
from outshine.tasks import Task, validation_lines

STAGES = ("single", "multi", "finetune")
POLICIES = ("same-seed", "first", "ensemble:k", "out-of-fold:k")
# Settings that the study itself decides.
_OF_THE_STUDY = ("seed", "keep", "fold")


@dataclass(frozen=True)
class Stage:
    """One link of a chain: `single`, `multi` or `finetune`, with settings of its own if any."""

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """Who teaches the student of one seed: `same-seed`, `first`, `ensemble` or `out-of-fold`.

    Attributes:
        name: One of these.
        count: k teachers, 1 for the first two.
    """

    name: str
    count: int = 1

    def __str__(self) -> str:
        return self.name if self.count == 1 else f"{self.name}:{self.count}"


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


def read_study_text(path: Path) -> str:
    """The text of a study file.

    Raises:
        UserError: If the file is missing or no UTF-8.
    """
    with read_errors(path):
        content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read the study file {path}: {error}, expected TOML ({path})", "mend the syntax"
        ) from None


def toml_content(text: str, path: Path) -> dict[str, Any]:
    """The plain data of a study file's text.

    Raises:
        UserError: If it is no TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(
            f"cannot read the study file {path}: {error}, expected TOML ({path})", "mend the syntax"
        ) from None


def task_finder(folder: Path, glue_dir: str | Path | None = None) -> Callable[[str], Task]:
    """Finds the task that a study file means by a name.

    Args:
        folder: The file's folder, to which paths of task files are relative.
        glue_dir: See `glue_tasks.glue`.
    """

    def find(name: str) -> Task:
        task = find_task(str(folder / name) if is_path(name) else name, glue_dir)
        if "dev" not in task.dev_splits:
            raise UserError(
                f"task {task.name!r} has no dev split, expected one to score its runs on",
                "add `dev = ...` or `holdout = 200` under [files] of the task",
            )
        return task

    def is_path(name: str) -> bool:
        return name.endswith(".toml") or "/" in name

    return find


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
    stages, by_task = _stages(file, overrides, arms, tasks, problems)
    spec = StudySpec(
        name=file.name,
        tasks={task.name: task for task in tasks.values()},
        written={written: task.name for written, task in tasks.items()},
        arms=arms,
        seeds=_seeds(file.seeds, problems),
        compare=file.compare or tuple((arm.name, arms[0].name) for arm in arms[1:]),
        keep=file.keep,
        stages=stages,
        by_task=by_task,
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


def study_content(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """All that a study is made from, as plain data: its file, and what overrides it."""
    return dict(content) | ({"--set": dict(overrides)} if overrides else {})


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two contents of study files differ in: `key was X, is Y`, one per key."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return [
        f"{key} was {old.get(key, 'not given')}, is {new.get(key, 'not given')}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif key == "arm" and not prefix:
            for arm in value:
                yield from _flat(
                    {k: v for k, v in arm.items() if k != "name"}, f"arm.{arm['name']}."
                )
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value


# --- seeds, tasks, settings -------------------------------------------------------------------


def _seeds(given: int | tuple[int, ...], problems: list[str]) -> tuple[int, ...]:
    if isinstance(given, int):
        if given < 1:
            problems.append(f"seeds: {given}, expected a number of seeds from 1, or a list")
        return tuple(range(1, given + 1))
    if not given or len(set(given)) != len(given) or min(given) < 0:
        problems.append(f"seeds: {list(given)}, expected distinct numbers from 0")
    return given


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
        settings = {key: value for key, value in table.items() if key != "task"}
        _check_settings(settings, f"stage.{kind}", names, problems)
        if own and kind == "multi":
            problems.append("stage.multi.task: given, expected only in stages of one task a run")
        names = [task.name for task in tasks.values()]
        if kind == "finetune" and "init" in settings:
            problems.append("stage.finetune.init: given, expected none: it goes on with a run")
        for name, its in own.items() if isinstance(own, dict) else ():
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
    except ValidationError as error:
        problems += [f"{place}: {line}" for line in validation_lines(error, TrainConfig)]
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
    by_name = {arm.name: arm for arm in written}
    common = Policy("same-seed")
    try:
        common = parse_policy(file.teachers)
    except ValueError as error:
        problems.append(str(error))
    for arm in written:
        try:
            stages = _links(arm, by_name, ())
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


def _links(
    arm: _ArmTable, by_name: Mapping[str, _ArmTable], above: tuple[str, ...]
) -> tuple[Stage, ...]:
    """The stages of an arm; a chain may begin with the name of another arm.

    Raises:
        ValueError: If the chain does not parse, or comes back to itself.
    """
    if arm.name in above:
        raise ValueError(
            f"a cycle: {' starts with '.join([*above[above.index(arm.name) :], arm.name])}"
        )
    others = {name: other for name, other in by_name.items() if name != other.chain}
    stages: list[Stage] = []
    for kind in parse_chain(arm.chain, tuple(others)):
        if kind in others:
            stages += _links(others[kind], by_name, (*above, arm.name))
        else:
            stages.append(Stage(kind))
    # its settings are those of the last stage: the teachers stay the same runs
    stages[-1] = Stage(stages[-1].kind, {**stages[-1].settings, **arm.set})
    return tuple(stages)


def parse_chain(chain: str, names: Sequence[str] = ()) -> list[str]:
    """The links of a chain such as `single->multi+finetune`: stages, or first an arm's name.

    Args:
        chain: As written; `->` reads "teaches", `+finetune` at the end goes on with the weights.
        names: Of other arms, one of which may be the first link.

    Raises:
        ValueError: With a second line that shows the chain and a third that points at the place.
    """
    body, plus, end = chain.partition("+")
    links: list[str] = []
    position = 0
    for part in body.split("->"):
        link = part.strip()
        place = position + len(part) - len(part.lstrip())
        if link in ("single", "multi") or (link in names and not links):
            links.append(link)
        elif not link:
            raise ValueError(_pointed("a stage is missing, expected single or multi", chain, place))
        elif link == "finetune":
            text = "finetune teaches nobody, expected `+finetune` at the end of the chain"
            raise ValueError(_pointed(text, chain, place))
        else:
            known = did_you_mean(link, ["single", "multi", *names])
            text = f"unknown stage {link!r}{known}, expected single or multi"
            raise ValueError(_pointed(text, chain, place))
        position += len(part) + len("->")
    if plus:
        last = end.strip()
        place = len(body) + len(plus) + len(end) - len(end.lstrip())
        if last.startswith("finetune") and last != "finetune":
            text = f"{last.removeprefix('finetune')!r} after finetune, expected the chain's end"
            raise ValueError(_pointed(text, chain, place + len("finetune")))
        if last != "finetune":
            known = did_you_mean(last, ["finetune"])
            text = f"{last!r} after `+`{known}, expected finetune at the end of the chain"
            raise ValueError(_pointed(text, chain, place))
        if links[-1] != "multi" and links[-1] not in names:
            text = f"finetune after {links[-1]}, expected after multi"
            raise ValueError(_pointed(text, chain, place))
        links.append("finetune")
    return links


def _pointed(text: str, chain: str, place: int) -> str:
    return f"{text}\n    {chain}\n    {' ' * place}^"


def parse_policy(text: str) -> Policy:
    """Reads `same-seed`, `first`, `ensemble:k` or `out-of-fold:k`.

    Raises:
        ValueError: If it is none of these.
    """
    found = re.fullmatch(r"(ensemble|out-of-fold):([0-9]+)", text)
    if text in POLICIES[:2]:
        return Policy(text)
    if not found or int(found[2]) < 2:
        known = did_you_mean(text, POLICIES)
        raise ValueError(f"teachers: {text!r}{known}, expected {', '.join(POLICIES)} with k from 2")
    return Policy(found[1], int(found[2]))
