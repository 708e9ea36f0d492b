"""A study on disk: what it plans, what is done, and what its rows say.

A study's folder holds `study.json` (the file it was made from), `rows.jsonl` (results) and `runs/`
(what later runs need). The first two are enough for tables and tests.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from outshine.analysis import ArmResults, Cell, StudyResults
from outshine.console import say
from outshine.errors import UserError, raise_problems
from outshine.files import read_json, write_json
from outshine.graph import Graph, Node, build_graph
from outshine.metrics import NOT_IN_SCORE
from outshine.results import ROWS, Row, read_rows
from outshine.runs import Run
from outshine.study_file import StudySpec, parse_study
from outshine.study_source import (
    differences,
    of_old_runs,
    read_study_text,
    study_content,
    task_finder,
    toml_content,
)
from outshine.tasks import Task

FORMAT = 1
STUDY_FILE = "study.json"


@dataclass(frozen=True)
class Study:
    """A study and its folder.

    Attributes:
        path: The folder.
        spec: The study file.
        graph: Its runs; without `nodes` where the study is only read.
        source: Name of the study file.
        files_dir: Its folder, to which paths in it are relative.
        others: Folders of other studies whose rows count, too, where they are of the same runs.
    """

    path: Path
    spec: StudySpec
    graph: Graph
    source: str
    files_dir: Path
    others: tuple[Path, ...] = ()

    def rows(self) -> dict[str, Row]:
        """Run id -> row, of this folder and the others."""
        return read_rows([self.path, *self.others])

    def results(self) -> StudyResults:
        """The scores of every arm, as far as they are there."""
        return results_of(self.spec, self.graph, self.rows())


def settled(study: Study) -> Study:
    """The study with the runs that its rows by now allow to name (see `Graph.pending`)."""
    if not study.graph.pending:
        return study
    graph = build_graph(study.spec, study.rows(), study.graph.data)
    return replace(study, graph=graph)


def results_of(spec: StudySpec, graph: Graph, rows: Mapping[str, Row]) -> StudyResults:
    """What the rows of a study say about its arms."""
    dev_rows: dict[str, int] = {}
    arms = []
    for arm in spec.arms:
        cells: dict[str, dict[int, Cell]] = {name: {} for name in arm.tasks}
        for seed, runs in graph.ends[arm.name].items():
            for row in (rows[run] for run in runs if run in rows):
                for name in row.tasks:
                    dev_rows[name] = int(row.metrics[name]["dev"]["n"])
                    cells[name][seed] = Cell(row.primary(name), row.degenerate.get(name, ""))
        scored = tuple(name for name in arm.tasks if name not in NOT_IN_SCORE)
        policy = str(arm.teachers) if len(arm.stages) > 1 else ""
        arms.append(ArmResults(arm.name, arm.tasks, scored, cells, policy))
    return StudyResults(
        name=spec.name,
        arms=tuple(arms),
        metrics={name: task.primary_metric for name, task in spec.tasks.items()},
        dev_rows=dev_rows,
        comparisons=spec.compare,
        seeds=spec.seeds,
        teachers=", ".join(dict.fromkeys(str(arm.teachers) for arm in spec.arms)),
    )


def chosen_seeds(study: Study, seeds: Sequence[int] | None) -> tuple[int, ...]:
    """The seeds to run, in the study's order.

    Raises:
        UserError: If one of them is none of the study's.
    """
    for seed in seeds or ():
        if seed not in study.spec.seeds:
            known = ", ".join(map(str, study.spec.seeds))
            raise UserError(
                f"cannot run seed {seed} of the study {study.spec.name}: expected some of {known}",
                "`seeds` in the study file says which there are",
            )
    return tuple(seed for seed in study.spec.seeds if seeds is None or seed in seeds)


def sweep(study: Study) -> None:
    """Removes what a process that died, or a row of another folder, has left without use."""
    rows = study.rows()
    for node in study.graph.nodes.values():
        if node.id in rows:
            drop_weights(study, node, rows)


def drop_weights(study: Study, node: Node, rows: Mapping[str, Row]) -> None:
    """Removes what a recorded run has kept for others, once none of them needs it."""
    if study.spec.keep == "all":
        return
    run = Run(study.path / node.folder)
    if any(child.id not in rows for child in study.graph.children(node)):
        return  # one that needs logits alone finds all of them only where weights are
    shutil.rmtree(run.model_dir, ignore_errors=True)
    if study.spec.keep == "metrics":
        shutil.rmtree(run.path / "predictions", ignore_errors=True)


# --- opening ----------------------------------------------------------------------------------


def open_study(
    place: str | Path,
    *,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    glue_dir: str | Path | None = None,
    others: Sequence[str | Path] = (),
) -> Study:
    """Opens a study with its runs, from its file or from the folder that an earlier call made.

    Args:
        place: A study file, or a study's folder.
        out: The folder; default: `<folder of the file>/<name>`.
        overrides: Settings of every run that win over those of the file.
        glue_dir: See `glue_tasks.glue`.
        others: Folders of other studies, perhaps from other machines or of an earlier version of
            the file, whose rows count, too, where they are of the same runs.

    Raises:
        UserError: If the file is at fault, data are missing, or the folder was made from other
            data, or a file that differs in more than which runs there are.
    """
    source = _source(Path(place), overrides)
    find = task_finder(source.files_dir, glue_dir)
    spec = parse_study(source.text, Path(place), find, source.overrides)
    path = _folder_of(Path(place), out, spec.name)
    folders = _checked(others)
    rows = read_rows([path, *folders])
    graph = build_graph(spec, rows)
    if (path / STUDY_FILE).exists():
        stored = _stored(path)
        _check_content(path, stored, spec.content, free=True)
        if stored["file"] == spec.text:
            _check_runs(path, stored, graph)
        else:  # its runs of that time, if nothing else has changed
            before = parse_study(stored["file"], path / STUDY_FILE, find, stored["settings"])
            _check_runs(path, stored, build_graph(before, rows))
    return Study(path, spec, graph, source.name, source.files_dir, folders)


def read_study(
    place: str | Path,
    *,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    others: Sequence[str | Path] = (),
) -> Study:
    """Opens a study for its results alone; neither data nor encoder need to be there.

    Args:
        place: See `open_study`; so are `out`, `overrides` and `others`.

    Raises:
        UserError: If no such study was begun, or its file has changed since.
    """
    source = _source(Path(place), overrides)
    name = toml_content(source.text, Path(place)).get("name", "")
    path = _folder_of(Path(place), out, name)
    stored = _stored(path)
    found = {written: Task(**task) for written, task in stored["tasks"].items()}

    def find(written: str) -> Task:
        if written not in found:
            raise UserError(f"unknown task {written!r}, expected one of {', '.join(found)}")
        return found[written]

    # what was not run yet would not be found
    content = study_content(toml_content(source.text, Path(place)), source.overrides)
    _check_content(path, stored, content, free=False)
    spec = parse_study(source.text, Path(place), find, source.overrides)
    ends = {
        arm: {int(seed): tuple(runs) for seed, runs in by_seed.items()}
        for arm, by_seed in stored["ends"].items()
    }
    graph = Graph({}, ends, frozenset(stored.get("trials", ())), tuple(stored["choices"]))
    return Study(path, spec, graph, source.name, source.files_dir, _checked(others))


def begin(study: Study) -> None:
    """Writes `study.json`, if it is not there or of an earlier version of the file.

    Raises:
        UserError: If the folder holds other files.
    """
    path = study.path / STUDY_FILE
    if path.exists():
        stored = _stored(study.path)
        if stored["file"] != study.spec.text:
            say(f"note: {study.path} goes on with the changed file")
            _write(study)
        return
    foreign = [entry.name for entry in study.path.iterdir()] if study.path.is_dir() else []
    foreign = [name for name in foreign if not name.startswith(f".{STUDY_FILE}")]
    if foreign and not path.exists():  # another process may just have begun it
        raise UserError(
            f"cannot begin the study in {study.path}: the folder holds other files "
            f"({', '.join(sorted(foreign)[:3])}), expected none",
            "choose a new --out",
        )
    _write(study)


def note_choices(study: Study) -> None:
    """Brings `study.json` up to date with the settings that were chosen since it was written."""
    stored = _stored(study.path)
    # another process may have gone on with a changed file meanwhile
    if stored["file"] == study.spec.text and len(stored["choices"]) < len(study.graph.choices):
        _write(study)


def _write(study: Study) -> None:
    spec = study.spec
    write_json(
        study.path / STUDY_FILE,
        {
            "format": FORMAT,
            "name": spec.name,
            "source": study.source,
            "file": spec.text,
            "files_dir": os.path.relpath(study.files_dir, study.path),
            "settings": dict(spec.overrides),
            "tasks": {
                written: spec.tasks[name].without("files") for written, name in spec.written.items()
            },
            "ends": study.graph.ends,
            "trials": sorted(study.graph.trials),
            "choices": study.graph.choices,
        },
    )


@dataclass(frozen=True)
class _Source:
    """A study file: its name, its text, its folder, and the settings that override it."""

    name: str
    text: str
    files_dir: Path
    overrides: Mapping[str, Any]


def _source(place: Path, overrides: Mapping[str, Any] | None) -> _Source:
    if not place.is_dir():
        return _Source(place.name, read_study_text(place), place.parent, overrides or {})
    stored = _stored(place)
    given = stored["settings"] if overrides is None else overrides
    return _Source(stored["source"], stored["file"], place / stored["files_dir"], given)


def _folder_of(place: Path, out: str | Path | None, name: str) -> Path:
    if out is not None:
        return Path(out)
    return place if place.is_dir() else place.parent / name


def _stored(folder: Path) -> dict[str, Any]:
    """Content of a folder's `study.json`."""
    path = folder / STUDY_FILE
    if not path.exists():
        raise UserError(
            f"cannot open the study {folder}: no {STUDY_FILE} in it, expected a study's folder",
            "`outshine study run FILE` makes it; --out names it",
        )
    stored = read_json(
        path, "format", "source", "file", "files_dir", "settings", "tasks", "ends", "choices"
    )
    if stored["format"] != FORMAT:
        raise UserError(
            f"cannot open the study {folder}: format {stored['format']}, expected {FORMAT} "
            f"({path})",
            "it was made by another version of outshine: update outshine, or start anew",
        )
    return stored


def _checked(others: Sequence[str | Path]) -> tuple[Path, ...]:
    """The folders whose rows count, too; there need be nothing else in them."""
    folders = tuple(map(Path, others))
    for folder in folders:
        if not any((folder / name).exists() for name in (ROWS, STUDY_FILE)):
            raise UserError(
                f"cannot take rows from {folder}: no {ROWS} in it, expected a study's folder",
                "--rows names folders of studies that were begun",
            )
    return folders


def _check_content(
    folder: Path, stored: Mapping[str, Any], now: Mapping[str, Any], *, free: bool
) -> None:
    """Refuses a folder that was made from another file, or with other settings.

    With `free`, a file may differ in which runs there are, for each is identified by its content.
    """
    before = study_content(toml_content(stored["file"], folder / STUDY_FILE), stored["settings"])
    others = differences(of_old_runs(before, now), of_old_runs(now, before))
    if free:
        raise_problems(
            f"cannot use the study {folder}: it was made from another file",
            others,
            f"choose another --out (with `--rows {folder}` runs that are the same count), or give "
            "the file and the --set of the first time",
        )
    else:
        taken_up = "" if others else "`outshine study run` takes the changes up; "
        raise_problems(
            f"cannot read the study {folder}: its file has changed since it was run",
            differences(before, now),
            f"{taken_up}{folder} in the file's place stands for the study as it was run",
        )


def _check_runs(folder: Path, stored: Mapping[str, Any], graph: Graph) -> None:
    """Refuses a folder whose runs had other data, tasks or encoder.

    Args:
        folder: The study's.
        stored: Its `study.json`.
        graph: What the file in it means today.
    """
    for arm, by_seed in graph.ends.items():
        before = stored["ends"][arm]  # shorter, or empty, as long as settings were not chosen
        other = [s for s, runs in by_seed.items() if before.get(str(s), [*runs]) != [*runs]]
        if other:
            raise UserError(
                f"cannot go on with the study {folder}: the runs of {arm!r} are others than when "
                "it was begun, because data, tasks, encoder or presets have changed",
                "choose another --out, or bring back what has changed",
            )
