"""A task as data: what its rows look like, where they are, and how it is scored."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from outshine.errors import UserError, did_you_mean, raise_problems
from outshine.files import read_errors, read_json
from outshine.kinds import KINDS, Kind
from outshine.metrics import METRICS

# What stands beside tasks' names in a line of answers, or in a table of scores.
RESERVED = ("id", "truncated", "score")
SPLITS = ("train", "dev", "test", "ax")
FILE_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")


class Task(BaseModel):
    """One task. Immutable; two equal tasks read the same rows in the same way.

    Attributes:
        name: Short name, used for heads, files and columns of tables.
        kind: A key of `kinds.KINDS`.
        text: One or two text columns.
        label: The label column.
        labels: Class names, in the order of the head's outputs (classification).
        range: (low, high) of the labels (regression).
        metrics: Names in `metrics.METRICS`; the first is the primary one.
        id: Column of the example id; without it the number of the row in its file, from 0.
        symmetric: Whether training also sees each pair in swapped order.
        files: Split -> absolute path, or, with `hub`, the name of the data set's split (as
            `config:split` where it stands in another configuration).
        hub: Id of a data set on the hub, or "".
        hub_config: Name of the data set's configuration, or "".
        holdout: Rows taken from `train` to serve as `dev`, the same ones always; 0 for none.
        label_values: Cell text -> label, where files write labels in another way.
        columns: Split -> column names, for files without a header line.
        quoting: Whether csv and tsv files use quotes; the GLUE files do not.
        skip_bad_rows: Whether ragged and empty rows are skipped and counted (GLUE) or errors.
        version: Raised by hand when a change should make old predictions invalid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    kind: str = "classification"
    text: tuple[str, ...] = Field(min_length=1, max_length=2)
    label: str
    labels: tuple[str, ...] = ()
    range: tuple[float, float] | None = None
    metrics: tuple[str, ...] = ()
    id: str = ""
    symmetric: bool = False
    files: dict[str, str] = {}
    hub: str = ""
    hub_config: str = ""
    holdout: int = Field(default=0, ge=0)
    label_values: dict[str, str] = {}
    columns: dict[str, tuple[str, ...]] = {}
    quoting: bool = True
    skip_bad_rows: bool = False
    version: str = "1"

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Task:
        if self.kind not in KINDS:
            known = ", ".join(sorted(KINDS))
            raise ValueError(
                f"kind: {self.kind!r}{did_you_mean(self.kind, KINDS)}, expected one of {known}"
            )
        kind = KINDS[self.kind]
        problems = kind.problems(self)
        for metric in self.metrics:
            if metric not in METRICS:
                problems.append(
                    f"metrics: {metric!r}{did_you_mean(metric, METRICS)}, "
                    f"expected some of {', '.join(kind.metrics)}"
                )
            elif metric not in kind.metrics:
                problems.append(
                    f"metrics: {metric!r} does not fit kind = {self.kind!r}, "
                    f"expected some of {', '.join(kind.metrics)}"
                )
        if self.name in RESERVED:
            problems.append(f"name: {self.name!r} is taken in answers or tables, expected another")
        problems += [
            f"unknown key {split!r} under [files]{did_you_mean(split, SPLITS)}, expected train, "
            "dev, test, or a name that begins with dev_ or test_"
            for split in self.files
            if split not in SPLITS and split.partition("_")[0] not in ("dev", "test")
        ]
        if "f1" in self.metrics and len(self.labels) != 2:
            problems.append('metrics: "f1" needs two labels, expected "f1_macro"')
        if self.symmetric and len(self.text) != 2:
            problems.append("symmetric: true with one text column, expected two")
        if problems:
            raise ValueError("\n".join(problems))
        if not self.metrics:
            object.__setattr__(self, "metrics", (kind.metrics[0],))
        return self

    @property
    def primary_metric(self) -> str:
        """The metric that counts in scores and tables."""
        return self.metrics[0]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that can be read, `train` first."""
        held_out = ("dev",) if self.holdout and "dev" not in self.files else ()
        return tuple(self.files) + held_out

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """The splits that a run is evaluated on: `dev`, and others named `dev_...`."""
        return tuple(split for split in self.splits if split.split("_")[0] == "dev")

    @classmethod
    def load(cls, path: str | Path) -> Task:
        """Reads a task file (TOML).

        Args:
            path: The file; paths of data files in it are relative to its folder.

        Raises:
            UserError: If the file is missing, no TOML, or has unknown or unfit keys; all
                problems of the file at once.
        """
        path = Path(path)
        what = f"cannot read the task file {path}"
        try:
            with read_errors(path):
                content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{what}: {error}, expected TOML ({path})", "mend the syntax") from None
        try:
            return cls(**_flatten(content, path.parent))
        except ValidationError as error:
            raise_problems(
                what,
                [f"{line} ({path})" for line in validation_lines(error, cls)],
                "`outshine tasks show rte` shows a complete task; docs/own-tasks.md lists the keys",
            )
            raise

    def to_toml(self) -> str:
        """The task as a complete task file, from which `load` reads an equal task."""
        fields = self.without() | self.model_dump(include={"kind", "metrics", "symmetric"})
        moved = {"hub": "hub", "hub_config": "config", "holdout": "holdout"}
        files = {key: fields.pop(field) for field, key in moved.items() if field in fields}
        fields["files"] = files | fields.pop("files", {})
        order = ["name", "kind", *type(self).model_fields]
        keys = sorted(fields, key=lambda key: (isinstance(fields[key], dict), order.index(key)))
        lines = []
        for key in keys:
            if isinstance(fields[key], dict):
                lines.append(f"\n[{key}]")
                lines += [f"{_toml_key(k)} = {_toml_value(v)}" for k, v in fields[key].items()]
            else:
                lines.append(f"{key} = {_toml_value(fields[key])}")
        return "\n".join(lines) + "\n"

    def without(self, *attributes: str) -> dict[str, Any]:
        """The task as plain data, without some attributes and those at their default."""
        return self.model_dump(mode="json", exclude=set(attributes), exclude_defaults=True)


def kind_of(task: Task) -> Kind:
    """The record of the task's kind."""
    return KINDS[task.kind]


def _flatten(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Turns the layout of a task file ([files] with hub, config, holdout) into Task fields."""
    fields = dict(content)
    files = fields.pop("files", {})
    if not isinstance(files, dict):
        return fields | {"files": files}
    files = dict(files)
    for key, field in (("hub", "hub"), ("config", "hub_config"), ("holdout", "holdout")):
        if key in files:
            fields[field] = files.pop(key)
    if isinstance(fields.get("text"), str):
        fields["text"] = [fields["text"]]
    if "hub" not in fields:
        files = {
            split: str((folder / name).absolute()) if isinstance(name, str) else name
            for split, name in files.items()
        }
    return fields | {"files": files}


def validation_lines(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per problem that pydantic found, `key: found, expected what`."""
    lines: list[str] = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = did_you_mean(key, model.model_fields)
            lines.append(f"unknown key {key!r}{known}")
        elif problem["type"] == "missing":
            lines.append(f"{key}: missing")
        elif problem["type"] == "value_error":
            text = str(problem["ctx"]["error"])
            lines += [f"{key}: {line}" if key else line for line in text.split("\n")]
        else:
            lines.append(f"{key}: {problem['input']!r}, expected: {problem['msg']}")
    return lines


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    """A text, number, truth value or list of these; JSON writes them as TOML does."""
    if isinstance(value, tuple):
        value = list(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def stored_tasks(path: Path) -> tuple[Task, ...]:
    """The tasks that a run has written under `tasks` in a JSON file.

    Raises:
        UserError: If the file is missing or damaged.
    """
    try:
        return tuple(Task(**task) for task in read_json(path, "tasks")["tasks"])
    except (TypeError, ValueError):
        raise UserError(
            f"cannot read {path}: a damaged task, expected those of the run (tasks)",
            "the file was changed: train the run again",
        ) from None


def unique_tasks(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks as a tuple, checked for at least one task and distinct names."""
    names = [task.name for task in tasks]
    if not names:
        raise UserError("cannot train: no task given, expected at least one", "name a task")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"cannot combine the tasks: {', '.join(twice)} given twice, expected distinct names",
            "give one of them another name",
        )
    return tuple(tasks)
