"""What a study is made from: the text of its file, its tasks, and how two of them differ."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from outshine.config import WITHOUT_EFFECT
from outshine.errors import UserError
from outshine.files import read_errors
from outshine.glue_tasks import find_task
from outshine.tasks import Task

# Keys that say which runs there are, and what is made of them, but not what a run is.
_WHICH_RUNS = ("seeds", "arms", "arm", "compare", "select")


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


def study_content(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """All that a study's results come from, as plain data: its file, and what overrides it."""
    given = {key: value for key, value in overrides.items() if key not in WITHOUT_EFFECT}
    return dict(content) | ({"--set": given} if given else {})


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two contents of study files differ in: `key was X, is Y`, one per key."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return [
        f"{key} was {old.get(key, 'not given')}, is {new.get(key, 'not given')}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def of_old_runs(content: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What a study file says of runs that another version of it has made, or will make.

    That is all but the keys which only say which runs there are, and the stages that the other
    version does not have.
    """
    stages, others = content.get("stage", {}), other.get("stage", {})
    return {
        **{key: value for key, value in content.items() if key not in _WHICH_RUNS},
        "stage": {kind: table for kind, table in stages.items() if kind in others},
    }


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
