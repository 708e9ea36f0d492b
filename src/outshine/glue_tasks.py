"""The nine GLUE tasks and TREC, as data: where their official files keep text and label.

Label names and their order are those of the hub's `nyu-mll/glue` and `CogComp/trec`. The
diagnostic set AX is a split of MNLI, because the MNLI head reads it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outshine.console import say
from outshine.errors import UserError, did_you_mean
from outshine.tasks import Task

GLUE_HUB = "nyu-mll/glue"
TREC_HUB = "CogComp/trec"

_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_FILES = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}
_HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
_COLA_COLUMNS = ("source", "label", "author_mark", "sentence")


@dataclass(frozen=True)
class _Layout:
    """One task in the two places where it is found.

    Attributes:
        folder: Folder of the official files below the GLUE folder.
        shared: Task fields that hold in both places.
        local: Task fields for the official files, beyond `shared`.
        hub: Task fields for the hub, beyond `shared`.
        raw: What the official files write for each label, in order; () for the names themselves.
        files: Split -> official file.
        hub_splits: Split -> split on the hub.
        id_column: Column of the row's number in the official test files.
    """

    folder: str
    shared: dict[str, Any]
    local: dict[str, Any]
    hub: dict[str, Any]
    raw: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=lambda: _FILES)
    hub_splits: dict[str, str] = field(default_factory=lambda: _HUB_SPLITS)
    id_column: str = "index"


_PAIR = {"text": ("sentence1", "sentence2"), "label": "label"}
_SENTENCE = {"text": ("sentence",), "label": "label"}

_LAYOUTS: dict[str, _Layout] = {
    "cola": _Layout(
        "CoLA",
        {"labels": ("unacceptable", "acceptable"), "metrics": ("matthews", "accuracy")},
        _SENTENCE | {"columns": {"train": _COLA_COLUMNS, "dev": _COLA_COLUMNS}},
        _SENTENCE,
        raw=_BINARY,
    ),
    "sst2": _Layout(
        "SST-2",
        {"labels": ("negative", "positive"), "metrics": ("accuracy",)},
        _SENTENCE,
        _SENTENCE,
        raw=_BINARY,
    ),
    "mrpc": _Layout(
        "MRPC",
        {
            "labels": ("not_equivalent", "equivalent"),
            "metrics": ("accuracy", "f1"),
            "symmetric": True,
        },
        {"text": ("#1 String", "#2 String"), "label": "Quality"},
        _PAIR,
        raw=_BINARY,
    ),
    "stsb": _Layout(
        "STS-B",
        {
            "kind": "regression",
            "range": (0.0, 5.0),
            "metrics": ("spearman", "pearson"),
            "symmetric": True,
        },
        {"text": ("sentence1", "sentence2"), "label": "score"},
        _PAIR,
    ),
    "qqp": _Layout(
        "QQP",
        {"labels": ("not_duplicate", "duplicate"), "metrics": ("accuracy", "f1")},
        {"text": ("question1", "question2"), "label": "is_duplicate"},
        {"text": ("question1", "question2"), "label": "label"},
        raw=_BINARY,
        id_column="id",
    ),
    "mnli": _Layout(
        "MNLI",
        {"labels": ("entailment", "neutral", "contradiction"), "metrics": ("accuracy",)},
        {"text": ("sentence1", "sentence2"), "label": "gold_label"},
        {"text": ("premise", "hypothesis"), "label": "label"},
        files={
            "train": "train.tsv",
            "dev": "dev_matched.tsv",
            "dev_mismatched": "dev_mismatched.tsv",
            "test": "test_matched.tsv",
            "test_mismatched": "test_mismatched.tsv",
            "ax": "../AX/diagnostic.tsv",
        },
        hub_splits={
            "train": "train",
            "dev": "validation_matched",
            "dev_mismatched": "validation_mismatched",
            "test": "test_matched",
            "test_mismatched": "test_mismatched",
            "ax": "ax:test",
        },
    ),
    "qnli": _Layout(
        "QNLI",
        {"labels": _ENTAILMENT, "metrics": ("accuracy",), "text": ("question", "sentence")},
        {"label": "label"},
        {"label": "label"},
    ),
    "rte": _Layout("RTE", {"labels": _ENTAILMENT, "metrics": ("accuracy",)}, _PAIR, _PAIR),
    "wnli": _Layout(
        "WNLI",
        {"labels": ("not_entailment", "entailment"), "metrics": ("accuracy",)},
        _PAIR,
        _PAIR,
        raw=_BINARY,
    ),
    # The official files have no dev set: 500 of the train rows, the same ones always.
    "trec": _Layout(
        "TREC",
        {
            "labels": ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"),
            "metrics": ("accuracy",),
            "holdout": 500,
        },
        {"text": ("sentence",), "label": "coarse"},
        {"text": ("text",), "label": "coarse_label", "hub": TREC_HUB, "hub_config": ""},
        files={"train": "train.tsv", "test": "test.tsv"},
        hub_splits={"train": "train", "test": "test"},
    ),
}

GLUE_TASKS: tuple[str, ...] = tuple(_LAYOUTS)


DEMO_DIR = Path(__file__).parent / "demo_suite"


def demo_task_names() -> list[str]:
    """Names of the tasks of the demo, whose files come with the package."""
    return sorted(path.stem for path in DEMO_DIR.glob("*.toml"))


def glue(*names: str, data_dir: str | Path | None = None) -> list[Task]:
    """Returns GLUE tasks (and TREC) by name.

    Args:
        *names: Of GLUE_TASKS; all of them when none is given.
        data_dir: Folder with `RTE/train.tsv` and so on; else the environment variable
            OUTSHINE_GLUE_DIR; else the rows come from the hub (extra `hub`).

    Raises:
        UserError: If a name is unknown, or the folder or a task's folder in it is missing.
    """
    folder = data_dir or os.environ.get("OUTSHINE_GLUE_DIR")
    return [_task(name, Path(folder) if folder else None) for name in names or GLUE_TASKS]


def _task(name: str, data_dir: Path | None) -> Task:
    layout = _LAYOUTS.get(name.lower())
    if layout is None:
        known = [*_LAYOUTS, *demo_task_names()]
        raise UserError(
            f"unknown task {name!r}{did_you_mean(name, known)}, "
            f"expected one of {', '.join(_LAYOUTS)} or a path to a task TOML",
            "`outshine tasks ls` lists the tasks",
        )
    common = {"name": name.lower()} | layout.shared
    if data_dir is None:
        source = {"hub": GLUE_HUB, "hub_config": name.lower(), "files": layout.hub_splits}
        return Task(**(common | source | layout.hub))
    folder = data_dir / layout.folder
    if not folder.is_dir():
        raise UserError(
            f"cannot read task {name!r}: {folder} is missing, expected the official files there",
            "set --glue-dir or OUTSHINE_GLUE_DIR to the folder that holds CoLA, RTE, ...; "
            "without it the hub is asked",
        )
    files = {
        split: os.path.normpath((folder / file).absolute()) for split, file in layout.files.items()
    }
    mismatched = files.get("dev_mismatched")
    if mismatched and not Path(mismatched).is_file():
        # copies of the files often lack it, and can be used all the same
        say(f"note: {name.lower()} has no split dev_mismatched: {mismatched} is missing")
        del files["dev_mismatched"]
    local = {
        "files": files,
        "label_values": dict(zip(layout.raw, layout.shared.get("labels", ()), strict=False)),
        "quoting": False,
        "skip_bad_rows": True,
    }
    task = Task(**(common | local | layout.local))
    usual = data_dir / "diagnostic" / "diagnostic.tsv"  # where the usual download has AX
    if usual.is_file() and not Path(task.files.get("ax", usual)).is_file():
        return task.model_copy(update={"files": task.files | {"ax": str(usual.absolute())}})
    return task


def official_labels(name: str) -> dict[str, str]:
    """Label of a GLUE task -> what its official files write for it; {} for values."""
    labels = _LAYOUTS[name].shared.get("labels", ())
    return dict(zip(labels, _LAYOUTS[name].raw or labels, strict=True))


def id_column(name: str) -> str:
    """Column of a GLUE task's official test files that numbers their rows."""
    return _LAYOUTS[name].id_column


def named_tasks() -> list[tuple[str, Task]]:
    """(suite, task) of every task that has a name; those of GLUE and TREC as on the hub."""
    public = [("TREC" if name == "trec" else "GLUE", _task(name, None)) for name in GLUE_TASKS]
    return public + [("demo", find_task(name)) for name in demo_task_names()]


def find_task(name: str, data_dir: str | Path | None = None) -> Task:
    """Returns the task that the command line means by `name`.

    Args:
        name: A GLUE name, a name of the demo's tasks, or a path to a task file.
        data_dir: See `glue`.

    Raises:
        UserError: If there is no such task, or its file is at fault.
    """
    if name.lower() in _LAYOUTS:
        return glue(name, data_dir=data_dir)[0]
    if name in demo_task_names():
        return Task.load(DEMO_DIR / f"{name}.toml")
    if name.endswith(".toml") or os.sep in name or Path(name).exists():
        return Task.load(name)
    return _task(name, None)  # raises, with the names that exist
