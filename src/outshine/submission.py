"""A zip for the GLUE server: eleven files, checked before the zip takes its place.

Each file has the header `index<TAB>prediction`, the test file's ids in their order, and labels as
the official files spell them. C is the number of outputs of a head.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from outshine.cells import FileFormat, Tally, cell_text, file_cells
from outshine.console import progress, say, show
from outshine.errors import UserError, did_you_mean, raise_problems
from outshine.files import read_errors, replacing
from outshine.glue_tasks import glue, id_column, named_tasks, official_labels
from outshine.hub import data_set_split
from outshine.predicting import Predictor, load
from outshine.readers import read_rows
from outshine.runs import Run
from outshine.tasks import Task, kind_of
from outshine.texts import Texts

FILLS = ("majority",)
HEADER = "index\tprediction"
ROWS_PER_CALL = 2048
# One date for all files, so that the same answers give the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Part:
    """One file of a submission.

    Attributes:
        name: The file, as the server knows it.
        task: The task whose head answers it.
        split: The task's split.
        rows: Rows of the official test file.
        first: Digest of its first row's texts, which tells it from other files.
    """

    name: str
    task: str
    split: str
    rows: int
    first: str


# The digests of MNLI and QQP are of the rows that the data sets' public pages show, the others of
# the files themselves.
PARTS = (
    Part("CoLA.tsv", "cola", "test", 1063, "b4ac049fff28"),
    Part("SST-2.tsv", "sst2", "test", 1821, "2821f65b5e8d"),
    Part("MRPC.tsv", "mrpc", "test", 1725, "db8159d0a6cb"),
    Part("STS-B.tsv", "stsb", "test", 1379, "a61aff36c675"),
    Part("MNLI-m.tsv", "mnli", "test", 9796, "07822e3c2e99"),
    Part("MNLI-mm.tsv", "mnli", "test_mismatched", 9847, "e52600c150b2"),
    Part("QNLI.tsv", "qnli", "test", 5463, "de2534a475ec"),
    Part("QQP.tsv", "qqp", "test", 390965, "14d5f9ea10ce"),
    Part("RTE.tsv", "rte", "test", 3000, "6db530d99c0c"),
    Part("WNLI.tsv", "wnli", "test", 146, "ebd44eac77e2"),
    Part("AX.tsv", "mnli", "ax", 1104, "8ee0b50b1253"),
)
_TASKS = tuple(dict.fromkeys(part.task for part in PARTS))

Rows = list[tuple[str, Texts]]


def submit(
    run: Run | str | Path,
    out: str | Path,
    *,
    glue_dir: str | Path | None = None,
    fill: str | None = None,
    device: str = "auto",
    force: bool = False,
    dry_run: bool = False,
) -> dict[str, dict[str, Any]]:
    """Answers GLUE's test sets and writes them as the zip that the server takes.

    Args:
        run: The run or its folder.
        out: The zip.
        glue_dir: See `glue_tasks.glue`.
        fill: How tasks that the run lacks are answered: `majority`, the commonest label of
            train, or the mean of its values; None refuses to go on without them.
        device: `auto`, `cpu`, `cuda`, ...
        force: Whether an existing file is replaced.
        dry_run: Whether to check all but the answers, and to write nothing.

    Returns:
        File -> {"task", "rows", "answered_by": "head" or the label or value that fills it}.

    Raises:
        UserError: If the run is unfit or lacks tasks that are not filled, a test file is missing
            or lacks rows, or the file exists or is a folder.
        WorldError: If the disk is full, or the hub does not answer.
    """
    out = Path(out)
    if fill is not None and fill not in FILLS:
        raise UserError(
            f"cannot fill with {fill!r}{did_you_mean(fill, FILLS)}, expected {', '.join(FILLS)}",
            "`--fill majority` answers with what is commonest in train",
        )
    if out.is_dir():
        raise UserError(f"cannot write {out}: a folder, expected a file", "name a file in it")
    if out.exists() and not force:
        raise UserError(
            f"cannot write {out}: it exists already",
            "choose another --out, or replace it with --force",
        )
    predictor = load(run, device=device)
    trained = {task.name: task for task in predictor.tasks if task.name in _TASKS}
    lacking = [name for name in _TASKS if name not in trained]
    if lacking and not fill:
        raise UserError(
            f"cannot make a submission: the run lacks {', '.join(lacking)}, expected all of GLUE",
            "`--fill majority` answers them with what is commonest in train",
        )
    official = {task.name: task for task in glue(*_TASKS, data_dir=glue_dir)}
    _check_labels(trained, official)
    _check_files(official, lacking)
    rows = {part.name: _read_test(part, official[part.task]) for part in PARTS}
    _warn_of_sizes(rows)
    filled = {name: _commonest(official[name]) for name in lacking}
    if not dry_run:
        _write(out, rows, _all_answers(predictor, trained, filled, rows))
    facts: dict[str, dict[str, Any]] = {
        part.name: {
            "task": part.task,
            "rows": len(rows[part.name]),
            "answered_by": filled.get(part.task, "head"),
        }
        for part in PARTS
    }
    _show(facts)
    return facts


# --- before -----------------------------------------------------------------------------------


def _check_labels(trained: Mapping[str, Task], official: Mapping[str, Task]) -> None:
    """Refuses a task of the user's own that only has the name of one of GLUE's."""
    for name, task in trained.items():
        kind, wanted = kind_of(task), official[name]
        found, expected = kind.describe_gold(task), kind_of(wanted).describe_gold(wanted)
        if found != expected:
            raise UserError(
                f"cannot answer GLUE's {name} with the run's task of that name: "
                f"labels {found}, expected {expected}",
                "train on GLUE's own task, or give yours another name",
            )


def _check_files(official: Mapping[str, Task], lacking: Sequence[str]) -> None:
    """Tells all files that are missing at once, before anything is computed."""
    needed = [(official[part.task], part.split) for part in PARTS]
    needed += [(official[name], "train") for name in lacking]
    missing = [
        f"{task.files[split]} is missing"
        for task, split in needed
        if not task.hub and not Path(task.files[split]).is_file()
    ]
    raise_problems(
        "cannot make a submission",
        missing,
        "put the official files there; without --glue-dir and OUTSHINE_GLUE_DIR the hub is asked",
    )


def _read_test(part: Part, task: Task) -> Rows:
    """(id, texts) of all rows of a test file, also of those with an empty text.

    Raises:
        UserError: If rows are missing, damaged or in another order.
    """
    place = task.files[part.split]
    if task.hub:
        config, _, split = place.rpartition(":")
        found = data_set_split(task.hub, config or task.hub_config, split)
        cells = enumerate(found.select_columns(list(task.text)))
        return [(str(i), tuple(cell_text(row[column]) for column in task.text)) for i, row in cells]
    name, tally = id_column(task.name), Tally()
    how = FileFormat(columns=(name, *task.text), quoting=False, skip_bad_rows=True)
    rows: Rows = []
    problems: list[str] = []
    for line, row in file_cells(Path(place), how, tally):
        if not problems and row[name] != str(len(rows)):
            problems.append(f"{name} {row[name]!r}, expected {str(len(rows))!r} ({place}:{line})")
        rows.append((row[name], tuple(row[column] for column in task.text)))
    if tally.skipped:
        problems.append(f"{tally.skipped} ragged rows, expected none ({place})")
    if not rows:
        problems.append(f"no row, expected {part.rows:,} ({place})")
    elif len(rows) != part.rows and _digest(rows[0][1]) == part.first:
        problems.append(f"{len(rows):,} rows, expected {part.rows:,} ({place})")
    raise_problems(
        f"cannot answer {place}", problems, "rows are missing or moved: get the official file again"
    )
    return rows


def _digest(texts: Texts) -> str:
    return hashlib.sha256("\t".join(texts).encode()).hexdigest()[:12]


def _warn_of_sizes(rows: Mapping[str, Rows]) -> None:
    other = [
        f"{part.name} {len(rows[part.name]):,} of {part.rows:,}"
        for part in PARTS
        if len(rows[part.name]) != part.rows
    ]
    if other:
        say(f"warning: not GLUE's own test rows, the server will refuse them: {', '.join(other)}")


# --- answers ----------------------------------------------------------------------------------


def _all_answers(
    predictor: Predictor,
    trained: Mapping[str, Task],
    filled: Mapping[str, str],
    rows: Mapping[str, Rows],
) -> dict[str, list[str]]:
    """File -> its cells, by the head of its task or by what fills it."""
    answers = {}
    with progress("answering", sum(len(rows[p.name]) for p in PARTS if p.task in trained)) as bar:
        for part in PARTS:
            if part.task in trained:
                answers[part.name] = _answers(predictor, trained[part.task], rows[part.name], bar)
            else:
                answers[part.name] = [filled[part.task]] * len(rows[part.name])
    return answers


def _answers(predictor: Predictor, task: Task, rows: Rows, bar: Any) -> list[str]:
    """A task's answers for rows, spelled as the server wants them."""
    cells: list[str] = []
    for start in range(0, len(rows), ROWS_PER_CALL):
        chunk = rows[start : start + ROWS_PER_CALL]
        found = predictor.logits([{task.name: texts} for _, texts in chunk])
        cells += _spelled(task, np.stack([row[task.name] for row in found]))
        bar.advance(len(chunk))
    return cells


def _commonest(task: Task) -> str:
    """The commonest label of train, or the mean of its values."""
    gold = np.array([row.gold for row in read_rows(task, "train")], np.float32)
    return _spelled(task, kind_of(task).gold_target(task, gold).mean(axis=0, keepdims=True))[0]


def _spelled(task: Task, logits: np.ndarray) -> list[str]:
    spelling = official_labels(task.name)
    return [spelling.get(cell, cell) for cell in kind_of(task).cells(task, logits)]


def _write(out: Path, rows: Mapping[str, Rows], answers: Mapping[str, Sequence[str]]) -> None:
    ids = {name: [example_id for example_id, _ in found] for name, found in rows.items()}
    content = _zip(ids, answers)
    check_submission(content, ids)
    with replacing(out) as file:
        file.write(content.getvalue())


def _zip(ids: Mapping[str, Sequence[str]], answers: Mapping[str, Sequence[str]]) -> io.BytesIO:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as made:
        for name, cells in answers.items():
            lines = [f"{i}\t{cell}" for i, cell in zip(ids[name], cells, strict=True)]
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            made.writestr(entry, "\n".join([HEADER, *lines]) + "\n")
    return content


def check_submission(source: str | Path | BinaryIO, ids: Mapping[str, Sequence[str]]) -> None:
    """Refuses a zip that the GLUE server would not take.

    Args:
        source: The zip.
        ids: File -> ids of the test rows, in their order.

    Raises:
        UserError: With all that is wrong: files missing or unknown, a wrong header, rows missing
            or in another order, predictions that are no label or outside the range.
    """
    place = source if isinstance(source, str | Path) else "the zip"
    try:
        with read_errors(Path(place)), zipfile.ZipFile(source) as archive:
            found = {name: archive.read(name).decode() for name in archive.namelist()}
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot use {place}: {error}, expected a zip of text files", "make it again"
        ) from None
    known = [part.name for part in PARTS]
    problems = [f"{name} is missing" for name in known if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in known]
    tasks = {task.name: task for _, task in named_tasks()}
    for part in PARTS:
        if part.name in found:
            problems += _file_problems(
                part.name, found[part.name], ids[part.name], tasks[part.task]
            )
    raise_problems(
        f"cannot use {place}", problems, "the server takes no such zip: `outshine submit` makes one"
    )


def _file_problems(name: str, content: str, ids: Sequence[str], task: Task) -> list[str]:
    """What is wrong with one file; of its rows the first one that is."""
    header, *lines = content.removesuffix("\n").split("\n")
    if header != HEADER:
        return [f"header {header!r}, expected {HEADER!r} ({name}:1)"]
    if len(lines) != len(ids):
        return [f"{len(lines):,} rows, expected {len(ids):,} ({name})"]
    spelling = official_labels(task.name)
    for number, (line, wanted) in enumerate(zip(lines, ids, strict=True), start=2):
        found, _, prediction = line.partition("\t")
        if found != wanted:
            return [f"index {found!r}, expected {wanted!r} ({name}:{number})"]
        if spelling and prediction not in spelling.values():
            expected = ", ".join(spelling.values())
            return [f"prediction {prediction!r}, expected one of {expected} ({name}:{number})"]
        if not spelling:
            try:
                kind_of(task).parse_gold(task, prediction)
            except ValueError as error:
                return [f"{error} ({name}:{number})"]
    return []


def _show(facts: Mapping[str, Mapping[str, Any]]) -> None:
    answered = {"head": "its head"}
    rows = [
        [name, f["task"], answered.get(f["answered_by"], f["answered_by"]), f"{f['rows']:,}"]
        for name, f in facts.items()
    ]
    show("The submission", ["file", "task", "answered by", "rows"], rows)
    filled = sorted({f["task"] for f in facts.values() if f["answered_by"] != "head"})
    if filled:
        say(
            f"note: the run lacks {', '.join(filled)}: these are filled with what is commonest "
            "in train, and say nothing about the model"
        )
