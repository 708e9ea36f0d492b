"""Files of rows through a model: formats, bad rows, counts, and going on after a kill."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from conftest import write_csv
from outshine import bulk, console, devices, inputs, outputs, predicting
from outshine.bulk import predict_file
from outshine.errors import UserError
from outshine.predicting import Predictor

TEXTS = [f"{'now ' * (i % 5)}refund my invoice {i}" for i in range(23)]
SKIP = ", or leave such rows out with `--on-error skip`"


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "ROWS_PER_CHUNK", 4)
    monkeypatch.setattr(outputs, "ROWS_PER_PART", 8)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """23 rows with ids, as JSONL."""
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"id": f"r{i}", "body": text}) for i, text in enumerate(TEXTS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def whole(path: Path) -> dict[str, bytes]:
    """Every file at a path with its content."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name: file.read_bytes() for file in files}


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        predict_file(*args, **options)
    return str(caught.value)


# --- formats ----------------------------------------------------------------------------------


def write_rows(path: Path, columns: dict[str, list[Any]]) -> Path:
    """Writes a table in the format of the path's ending."""
    names, cells = list(columns), list(zip(*columns.values(), strict=True))
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=5)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in cells]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    elif path.suffix == ".tsv":
        lines = ["\t".join(row) for row in [names, *cells]]
        path.write_text("".join(f"{line}\r\n" for line in lines), encoding="utf-8-sig")
    else:
        write_csv(path, names, [list(row) for row in cells])
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_every_format_gives_the_same_answers_in_order_with_ids(
    ending: str, model: Predictor, tmp_path: Path
) -> None:
    ids = [f"r{i}" for i in range(len(TEXTS))]
    source = write_rows(tmp_path / f"in{ending}", {"extra": ids, "id": ids, "body": TEXTS})
    output = tmp_path / "out.jsonl"
    counts = predict_file(model, source, output)
    assert (counts.rows, counts.skipped, counts.unanswered["duplicate"]) == (23, 0, 23)
    assert answers(output) == model.predict(
        [{"id": i, "body": text} for i, text in zip(ids, TEXTS, strict=True)]
    )
    assert sorted(tmp_path.iterdir()) == [source, output]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_endings_in_capitals_mean_the_same(
    ending: str, model: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = write_rows(tmp_path / f"in{ending}", {"body": ["refund", "thanks"]})
    source = source.rename(source.with_suffix(ending.upper()))
    predict_file(model, source, tmp_path / "out.jsonl")
    assert answers(tmp_path / "out.jsonl") == model.predict(["refund", "thanks"])
    predict_file(model, source, tmp_path / "OUT.CSV")
    assert (tmp_path / "OUT.CSV").read_text(encoding="utf-8").startswith("id,tickets.label,")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["o.tsv", "o.json", "o.TXT"])
def test_an_output_with_the_ending_of_no_format_is_refused(
    name: str, model: Predictor, rows: Path, tmp_path: Path
) -> None:
    ending = Path(name).suffix.lower()
    assert refusal(model, rows, tmp_path / name) == (
        f"cannot write {tmp_path / name}: ending {ending!r}, expected .jsonl, .csv or .parquet\n"
        "hint: rename it, or name its format with --output-format"
    )
    predict_file(model, rows, tmp_path / name, output_format="csv")
    assert (tmp_path / name).read_text(encoding="utf-8").startswith("id,tickets.label,")


def test_plain_lines_are_read_as_they_are_and_may_begin_with_a_brace(
    model: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_bytes(b"\xef\xbb\xbf{refund\r\n my login \n")
    predict_file(model, source, output, input_format="lines", tasks=["tickets"])
    rows = [{"id": 1, "text": "{refund"}, {"id": 2, "text": " my login "}]
    assert answers(output) == model.predict(rows, ["tickets"])
    assert capsys.readouterr().err == ""
    source.write_bytes(b"my login\n")
    predict_file(model, source, output, tasks=["tickets"])
    assert f"note: reading {source} as one text per line" in capsys.readouterr().err


def test_the_id_of_a_plain_line_is_its_number_so_that_skipped_ones_do_no_harm(
    model: Predictor, tmp_path: Path
) -> None:
    source = tmp_path / "in.txt"
    source.write_text("refund\n\nthanks\n", encoding="utf-8")
    for name in ("out.jsonl", "out.csv"):
        predict_file(model, source, tmp_path / name, skip_bad_rows=True)
    assert [x["id"] for x in answers(tmp_path / "out.jsonl")] == [1, 3]
    lines = (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
    assert [line.partition(",")[0] for line in lines] == ["id", "1", "3"]


def test_a_quoted_cell_may_hold_separators_and_line_breaks(
    model: Predictor, tmp_path: Path
) -> None:
    source = write_csv(tmp_path / "in.csv", ["body"], [['a, "refund"\nnow'], ["thanks"], ["a\nb"]])
    predict_file(model, source, tmp_path / "out.jsonl")
    assert answers(tmp_path / "out.jsonl") == model.predict(['a, "refund"\nnow', "thanks", "a\nb"])
    source.write_text(source.read_text(encoding="utf-8") + "x,y\n", encoding="utf-8")
    assert refusal(model, source, tmp_path / "out.jsonl") == (
        f"cannot read {source}: 2 cells, expected 1 cell ({source}:7)\n"
        f"hint: mend the row: quote cells that hold ',' or a line break{SKIP}"
    )


def test_tables_of_answers_hold_what_the_lines_hold(
    model: Predictor, rows: Path, tmp_path: Path
) -> None:
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"id": 7, "text_a": "the login", "text_b": "a crash"}\n')
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        predict_file(model, rows, tmp_path / name)
    lines = answers(tmp_path / "out.jsonl")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table.num_rows == len(lines) == len(cells) == 24
    assert list(cells[0]) == table.column_names
    assert table.column_names[:3] == ["id", "tickets.label", "tickets.probs.billing"]
    assert table.column_names[-1] == "truncated"
    for line, row, record in zip(lines, cells, table.to_pylist(), strict=True):
        assert record["id"] == row["id"] == str(line["id"])
        assert record["truncated"] is False
        for name, value in (("tickets.label", "label"), ("tickets.probs.tech", "probs")):
            if "tickets" not in line:
                assert (record[name], row[name]) == (None, "")
                continue
            wanted = line["tickets"][value]
            wanted = wanted["tech"] if value == "probs" else wanted
            assert (record[name], row[name]) == (wanted, str(wanted))
    assert lines[-1].keys() == {"id", "duplicate"}
    assert record["duplicate.label"] == lines[-1]["duplicate"]["label"]


def test_no_rows_give_no_answers(model: Predictor, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", ["id", "body"], [])
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        assert predict_file(model, source, tmp_path / name).rows == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    assert (tmp_path / "out.csv").read_text(encoding="utf-8").startswith("id,tickets.label,")
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table.num_rows == 0 and table.column_names[0] == "id"


def test_a_cut_text_is_flagged_and_counted(model: Predictor, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("refund\n" + "now " * 200 + "\n", encoding="utf-8")
    for name in ("out.jsonl", "out.csv"):
        assert predict_file(model, source, tmp_path / name).truncated == 1
    assert [x.get("truncated") for x in answers(tmp_path / "out.jsonl")] == [None, True]
    text = (tmp_path / "out.csv").read_text(encoding="utf-8")
    assert [line.rpartition(",")[2] for line in text.splitlines()] == ["truncated", "false", "true"]


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_a_task_predicts_on_its_own_file_with_the_ids_of_it(
    ending: str, model: Predictor, tmp_path: Path
) -> None:
    named = replace(
        model, tasks=tuple(t.model_copy(update={"id": "ticket_id"}) for t in model.tasks)
    )
    columns = {"team": ["tech", "other"], "ticket_id": ["t7", "t8"], "body": ["refund", "thanks"]}
    source = write_rows(tmp_path / f"in{ending}", columns)
    predict_file(named, source, tmp_path / "out.jsonl")
    assert [x["id"] for x in answers(tmp_path / "out.jsonl")] == ["t7", "t8"]


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
def test_a_row_of_a_table_is_answered_by_the_tasks_whose_cells_are_filled(
    name: str, model: Predictor, tmp_path: Path
) -> None:
    source, output = tmp_path / name, tmp_path / "out.jsonl"
    empty = "" if name == "in.csv" else None
    columns = {
        "id": ["1", "2", "3"],
        "body": ["the app crashes", empty, "thanks"],
        "left": [empty, "a", "a"],
        "right": ["b", "b", "b"],
    }
    counts = predict_file(model, write_rows(source, columns), output)
    assert [list(line) for line in answers(output)] == [
        ["id", "tickets", "urgency"],
        ["id", "duplicate"],
        ["id", "tickets", "urgency", "duplicate"],
    ]
    assert (counts.skipped, dict(counts.unanswered)) == (
        0,
        {"duplicate": 1, "tickets": 1, "urgency": 1},
    )
    assert refusal(model, source, output, tasks=["duplicate"]) == (
        f"cannot answer row 1: column 'left' is {empty!r}, {TEXT_ERROR} "
        f"({source}:{2 if empty == '' else 1})\nhint: mend or remove the row{SKIP}"
    )


def test_parquet_ids_that_json_does_not_know_become_text(model: Predictor, tmp_path: Path) -> None:
    import datetime

    day = datetime.date(2024, 2, 29)
    for ids in ([day, None], [1.5, float("nan")], [3, 4]):
        source = write_rows(tmp_path / "in.parquet", {"id": ids, "body": ["refund", "thanks"]})
        predict_file(model, source, tmp_path / "out.jsonl")
        found = [x["id"] for x in answers(tmp_path / "out.jsonl")]
        assert found == {day: ["2024-02-29", None], 1.5: ["1.5", ""], 3: [3, 4]}[ids[0]]


# --- bad input --------------------------------------------------------------------------------

TEXT_ERROR = "expected a text that is not empty"
BAD_ROWS: list[tuple[str, bytes, str]] = [
    (
        "in.jsonl",
        b'{"body": "x"}\n{"body": " "}\n',
        f"cannot answer row 2: column 'body' is ' ', {TEXT_ERROR} (IN:2)\n"
        "hint: mend or remove the row",
    ),
    (
        "in.jsonl",
        b'{"body": "x"}\n{"body": 5}\n',
        f"cannot answer row 2: column 'body' is 5, {TEXT_ERROR} (IN:2)\n"
        "hint: mend or remove the row",
    ),
    (
        "in.jsonl",
        b'{"body": "x"}\n{"bdoy": "y"}\n',
        "cannot answer row 2: columns bdoy, expected those of a task (tickets: body; urgency: "
        "body; duplicate: left + right), or text, or text_a and text_b (IN:2)\n"
        "hint: rename the columns",
    ),
    (
        "in.jsonl",
        b'{"body": "x"}\n{"body": NaN}\n',
        "cannot read IN: NaN is no JSON, expected one JSON object a line (IN:2)\n"
        'hint: for example {"id": 1, "text": "..."}',
    ),
    (
        "in.jsonl",
        b'{"body": "x"}\n{"id": 1e999, "body": "y"}\n',
        "cannot read IN: 1e999 is no finite number, expected one JSON object a line (IN:2)\n"
        'hint: for example {"id": 1, "text": "..."}',
    ),
    (
        "in.jsonl",
        b'{"body": "x"}\n["y"]\n',
        "cannot read IN: no JSON object, expected one JSON object a line (IN:2)\n"
        'hint: for example {"id": 1, "text": "..."}',
    ),
    (
        "in.jsonl",
        b'{"body": "x"}\n\n',
        "cannot read IN: an empty line, expected a JSON object (IN:2)\nhint: remove the line",
    ),
    (
        "in.jsonl",
        b'{"body": "x"}\n{"body": "\xff"}\n',
        "cannot read IN: invalid UTF-8, expected UTF-8 (IN:2)\nhint: save the file as UTF-8",
    ),
    (
        "in.txt",
        b"x\n \n",
        "cannot read IN: an empty line, expected a text (IN:2)\nhint: remove the line",
    ),
    (
        "in.csv",
        b"id,body\n1,x\n2\n",
        "cannot read IN: 1 cell, expected 2 cells (IN:3)\n"
        "hint: mend the row: quote cells that hold ',' or a line break",
    ),
    (
        "in.csv",
        b"id,body\n1,x\n\n",
        "cannot read IN: an empty line, expected 2 cells (IN:3)\n"
        "hint: mend the row: quote cells that hold ',' or a line break",
    ),
    (
        "in.tsv",
        b"id\tbody\n1\tx\n2\t\n",
        f"cannot answer row 2: column 'body' is '', {TEXT_ERROR} (IN:3)\n"
        "hint: mend or remove the row",
    ),
    (
        "in.csv",
        b'body\nx\n"y" z\n',
        "cannot read IN: ',' expected after '\"', expected a row (IN:3)\n"
        "hint: mend the quotes of the row",
    ),
    (
        "in.csv",
        b"body\nx\n\xff\n",
        "cannot read IN: invalid UTF-8, expected UTF-8 (IN:3)\nhint: save the file as UTF-8",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_ROWS)
def test_a_bad_row_stops_with_its_line_or_is_skipped_and_counted(
    name: str, content: bytes, message: str, model: Predictor, tmp_path: Path
) -> None:
    source, output = tmp_path / name, tmp_path / "out.jsonl"
    good = content.splitlines(keepends=True)[-2]
    source.write_bytes(content + good)
    assert refusal(model, source, output) == message.replace("IN", str(source)) + SKIP
    assert list(tmp_path.iterdir()) == [source]
    counts = predict_file(model, source, output, skip_bad_rows=True)
    assert (counts.rows, counts.skipped) == (3, 1)
    assert counts.problems == [message.split("\nhint: ")[0].replace("IN", str(source))]
    first, second = answers(output)
    if name == "in.txt":  # the id of a plain line is its number
        assert (first.pop("id"), second.pop("id")) == (1, 3)
    assert first == second and first.keys() >= {"tickets", "urgency"}


@pytest.mark.parametrize(
    ("end", "found"),
    [
        ("", "unexpected end of data in a row of 199 lines"),
        ('7,"fine"\n', "',' expected after '\"' in a row of 200 lines"),
        ('7,a",b,c\n', "4 cells in a row of 200 lines"),
        ("7,\xff\n", "invalid UTF-8"),
    ],
    ids=["to the end", "to the next quote", "to a quote with more cells", "to a bad line"],
)
@pytest.mark.parametrize("skip", [False, True], ids=["stop", "skip"])
def test_a_quote_left_open_stops_with_its_line_and_skips_no_good_row(
    skip: bool, end: str, found: str, model: Predictor, tmp_path: Path
) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.jsonl"
    lines = ["id,body\n", '1,"refund\n', *(f"{i},thanks\n" for i in range(198)), end]
    source.write_bytes("".join(lines).encode("latin-1"))
    line, expected, hint = 2, "a row", "mend the quotes of the row"
    if "cells" in found:
        expected, hint = "2 cells", "mend the row: quote cells that hold ',' or a line break"
    if "UTF-8" in found:
        line, expected, hint = 201, "UTF-8", "save the file as UTF-8"
    assert refusal(model, source, output, skip_bad_rows=skip) == (
        f"cannot read {source}: {found}, expected {expected} ({source}:{line})\nhint: {hint}"
    )
    assert not output.exists()


def test_a_quote_left_open_does_not_read_the_whole_file(model: Predictor, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text('id,body\n1,"refund\n' + ("now " * 250_000 + "\n") * 20, encoding="utf-8")
    assert refusal(model, source, tmp_path / "out.jsonl", skip_bad_rows=True) == (
        f"cannot read {source}: field larger than field limit (16777216) in a row of 18 lines, "
        f"expected a row ({source}:2)\nhint: mend the quotes of the row"
    )


def test_a_wrong_text_of_several_lines_is_told_with_the_first(
    model: Predictor, tmp_path: Path
) -> None:
    source = tmp_path / "in.csv"
    source.write_text('id,body\n1,"\n\n"\n', encoding="utf-8")
    assert f"expected a text that is not empty ({source}:2)\n" in refusal(model, source, None)


def test_a_wrong_cell_of_a_parquet_file_is_told_with_its_row(
    model: Predictor, tmp_path: Path
) -> None:
    for cells, shown in ((["a", None], "None"), ([2.0, float("nan")], "2.0")):
        source = write_rows(tmp_path / "in.parquet", {"body": cells})
        row = 2 if shown == "None" else 1
        assert refusal(model, source, tmp_path / "out.jsonl") == (
            f"cannot answer row {row}: column 'body' is {shown}, {TEXT_ERROR} ({source}:{row})\n"
            f"hint: mend or remove the row{SKIP}"
        )


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_a_table_without_the_columns_is_refused_even_when_bad_rows_are_skipped(
    ending: str, model: Predictor, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / f"in{ending}", {"id": ["1"], "bdoy": ["refund"]})
    assert refusal(model, source, tmp_path / "out.jsonl", skip_bad_rows=True) == (
        f"cannot answer {source}: columns id, bdoy, expected those of a task (tickets: body; "
        "urgency: body; duplicate: left + right), or text, or text_a and text_b "
        f"({source}:1)\nhint: rename the columns"
    )
    assert refusal(model, source, None, tasks=["tickets"], skip_bad_rows=True) == (
        f"cannot answer {source} for task 'tickets': columns id, bdoy, expected body or text "
        f"({source}:1)\nhint: rename the columns, or leave the task out"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "in.csv",
            b"",
            "cannot read IN: the file is empty, expected a header (IN:1)\n"
            "hint: give the file its header and rows",
        ),
        (
            "in.csv",
            b"body,body\nx,y\n",
            "cannot read IN: column 'body' twice, expected distinct names (IN:1)\n"
            "hint: rename one of them",
        ),
        (
            "in.parquet",
            b"PAR1 and no more",
            "cannot read IN: Parquet magic bytes not found in footer. Either the file is corrupted "
            "or this is not a parquet file., expected Parquet (IN:1)\n"
            "hint: the file is truncated or damaged: make it again",
        ),
    ],
)
def test_a_file_that_is_none_of_its_format_is_refused(
    name: str, content: bytes, message: str, model: Predictor, tmp_path: Path
) -> None:
    source = tmp_path / name
    source.write_bytes(content)
    found = refusal(model, source, tmp_path / "out.jsonl", skip_bad_rows=True)
    assert found == message.replace("IN", str(source))
    assert list(tmp_path.iterdir()) == [source]


def test_no_more_than_twenty_problems_are_kept(model: Predictor, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("\n" * 30 + "refund\n", encoding="utf-8")
    counts = predict_file(model, source, tmp_path / "o", input_format="lines", skip_bad_rows=True)
    assert (counts.skipped, len(counts.problems)) == (30, 20)
    assert len(answers(tmp_path / "o")) == 1


def test_parquet_is_not_read_from_a_pipe(model: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(write)
    with os.fdopen(read) as pipe:
        monkeypatch.setattr(inputs.sys, "stdin", pipe)
        assert refusal(model, None, None, input_format="parquet") == (
            "cannot read standard input: a pipe, expected a file, for Parquet is read from its "
            "end\nhint: give the file as --input"
        )


def test_parquet_needs_a_folder_of_its_own(model: Predictor, rows: Path, tmp_path: Path) -> None:
    hint = "name one that is new, such as `--output answers.parquet`"
    assert refusal(model, rows, None, output_format="parquet") == (
        f"cannot write Parquet: no folder given, expected a folder for part files\nhint: {hint}"
    )
    taken = tmp_path / "taken"
    taken.touch()
    assert refusal(model, rows, taken, output_format="parquet") == (
        f"cannot write {taken}: a file, expected a folder for part files\nhint: {hint}"
    )
    before = whole(tmp_path)
    assert refusal(model, rows, tmp_path, output_format="parquet") == (
        f"cannot write {tmp_path}: the folder holds other files, expected a new one\n"
        "hint: remove it, or choose another --output"
    )
    assert whole(tmp_path) == before


# --- going on ---------------------------------------------------------------------------------


def killed(work: Callable[[], Any], monkey: pytest.MonkeyPatch, target: Any, name: str, call: int):
    """Does the work in a child process that is killed by signal 9 at a call of a function."""
    real = getattr(target, name)
    count = iter(range(1, 1000))

    def deadly(*args: Any, **options: Any) -> Any:
        if next(count) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    child = os.fork()
    if not child:
        try:
            monkey.setattr(target, name, deadly)
            work()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
@pytest.mark.parametrize(
    ("target", "function", "call"),
    [
        (Predictor, "answer", 1),
        (Predictor, "answer", 4),
        (outputs, "write_json", 3),
        (os, "replace", 3),
        (os, "fsync", 4),
    ],
    ids=["at the start", "in a chunk", "before the state", "before a rename", "before a flush"],
)
def test_kill_9_and_the_same_command_give_the_bytes_of_an_undisturbed_one(
    name: str, target: Any, function: str, call: int, model: Predictor, rows: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with rows.open("a", encoding="utf-8") as file:
        file.write("{oops\n" + json.dumps({"text_a": "a", "text_b": "b " * 200}) + "\n")
    undisturbed = tmp_path / "undisturbed" / name
    wanted = predict_file(model, rows, undisturbed, skip_bad_rows=True)
    output = tmp_path / "killed" / name

    def work() -> outputs.Counts:
        return predict_file(model, rows, output, skip_bad_rows=True)

    killed(work, monkeypatch, target, function, call)
    assert not output.is_file()
    asked: list[int] = []
    real = Predictor.answer
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "answer", lambda s, w: asked.append(len(w)) or real(s, w))
        found = work()
    assert found == wanted
    assert (found.rows, found.skipped, found.truncated) == (25, 1, 1)
    assert whole(output) == whole(undisturbed)
    if function == "answer" and call > 1:
        assert sum(asked) < 24  # not all of it again
    rest = [path.name for path in (tmp_path / "killed").iterdir() if path != output]
    assert all(left.startswith(".") for left in rest)  # at most a nameless temporary file


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_bad_row_late_in_a_file_costs_nothing_that_was_done(
    name: str, model: Predictor, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    rows.write_text("".join([*lines[:18], "{oops\n", *lines[18:]]), encoding="utf-8")
    output = tmp_path / name
    assert f"({rows}:19)" in refusal(model, rows, output)
    assert not output.is_file()
    counts = predict_file(model, rows, output, skip_bad_rows=True)
    assert f"going on with {output} behind row 16" in capsys.readouterr().err
    assert (counts.rows, counts.skipped) == (24, 1)
    predict_file(model, rows, tmp_path / "other" / name, skip_bad_rows=True)
    assert whole(output) == whole(tmp_path / "other" / name)


def begun(model: Predictor, rows: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves an output behind that ends after four chunks."""
    killed(lambda: predict_file(model, rows, output), monkeypatch, Predictor, "answer", 5)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_a_dry_run_tells_what_is_done_makes_the_same_refusals_and_writes_nothing(
    name: str, model: Predictor, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "o" / name
    assert predict_file(model, rows, output, dry_run=True).rows == 0
    assert not output.parent.exists()
    killed(lambda: predict_file(model, rows, output), monkeypatch, Predictor, "answer", 5)
    place = output if name == "out.parquet" else output.parent
    before = whole(place)
    monkeypatch.setattr(Predictor, "answer", None)
    assert predict_file(model, rows, output, dry_run=True).rows == 16
    told = refusal(model, rows, output, dry_run=True, run_id="x")
    assert told.startswith("cannot go on with ") and 'run "", expected "x"' in told
    assert whole(place) == before
    rows.write_text("{oops\n", encoding="utf-8")
    told = refusal(model, rows, tmp_path / name, dry_run=True)
    assert told.startswith(f"cannot read {rows}: Expecting property name") and SKIP in told


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_what_another_command_has_begun_is_not_continued(
    name: str, model: Predictor, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "o" / name
    begun(model, rows, output, monkeypatch)
    before = whole(tmp_path / "o") if name == "out.jsonl" else whole(output)
    state = output / "_manifest.json" if "parquet" in name else Path(f"{output}.part.json")
    hint = (
        "hint: another command, or one with other input, has begun it: remove it, or choose "
        "another --output"
    )
    assert refusal(model, rows, output, run_id="x") == (
        f'cannot go on with {state}: run "", expected "x"\n{hint}'
    )
    assert refusal(model, rows, output, tasks=["tickets"]) == (
        f'cannot go on with {state}: tasks null, expected ["tickets"]\n{hint}'
    )
    warm = replace(model, temperatures={"tickets": 2.0})
    assert refusal(warm, rows, output) == (
        f'cannot go on with {state}: temperatures {{}}, expected {{"tickets": 2.0}}\n{hint}'
    )
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"body": "one more"}\n')
    assert refusal(model, rows, output).startswith(f"cannot go on with {state}: input {{")
    assert (whole(tmp_path / "o") if name == "out.jsonl" else whole(output)) == before


def test_going_on_removes_half_files_of_its_own_alone(
    model: Predictor, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.parquet"
    begun(model, rows, output, monkeypatch)
    (output / ".part-00002.parquet.ab12cd_9").touch()
    (output / ".notes").touch()
    (output / ".folder").mkdir()
    predict_file(model, rows, output)
    left = sorted(path.name for path in output.glob(".*"))
    assert left == [".folder", ".notes"]


def test_a_part_that_lost_its_end_is_not_continued(
    model: Predictor, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    begun(model, rows, output, monkeypatch)
    part, state = Path(f"{output}.part"), Path(f"{output}.part.json")
    size = part.stat().st_size
    os.truncate(part, 10)
    assert refusal(model, rows, output) == (
        f"cannot go on with {part}: 10 bytes, expected {size} ({state})\n"
        f"hint: remove {state} to begin anew"
    )


def test_a_kill_right_after_the_end_leaves_nothing_in_the_way(
    model: Predictor, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    killed(lambda: predict_file(model, rows, output), monkeypatch, Path, "unlink", 2)
    wanted = whole(output)
    assert Path(f"{output}.part.json").exists()
    predict_file(model, rows, output)
    assert whole(output) == wanted
    assert sorted(tmp_path.iterdir()) == [output, rows]


def test_a_complete_folder_is_not_overwritten_and_a_complete_file_is(
    model: Predictor, rows: Path, tmp_path: Path
) -> None:
    for name in ("out.jsonl", "out.parquet"):
        predict_file(model, rows, tmp_path / name)
    predict_file(model, rows, tmp_path / "out.jsonl", tasks=["tickets"])
    assert answers(tmp_path / "out.jsonl")[0].keys() == {"id", "tickets"}
    assert refusal(model, rows, tmp_path / "out.parquet") == (
        f"cannot write {tmp_path / 'out.parquet'}: it is already complete, expected a new folder\n"
        "hint: remove it, or choose another --output"
    )


def test_the_manifest_tells_where_the_answers_come_from(
    model: Predictor, rows: Path, tmp_path: Path
) -> None:
    predict_file(model, rows, tmp_path / "out.parquet", run_id="abc")
    manifest = json.loads((tmp_path / "out.parquet" / "_manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["identity"]["run"] == "abc"
    assert manifest["identity"]["input"]["size"] == rows.stat().st_size
    assert manifest["counts"]["rows"] == 23
    parts = sorted(path.name for path in (tmp_path / "out.parquet").glob("*.parquet"))
    assert parts == [f"part-0000{i}.parquet" for i in range(3)]


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_two_processes_do_not_write_one_output(
    name: str, model: Predictor, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / name
    messages = []
    real = Predictor.answer

    def answer(self: Predictor, wanted: Any) -> Any:
        if not messages:
            messages.append("")
            messages.append(refusal(model, rows, output))
        return real(self, wanted)

    monkeypatch.setattr(Predictor, "answer", answer)
    predict_file(model, rows, output)
    assert messages[1] == (
        f"cannot write {output}: another process is writing it\n"
        "hint: wait for it, or choose another --output"
    )


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_what_comes_from_a_pipe_is_whole_or_absent(
    name: str, model: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def piped(content: str, output: Path) -> Callable[[], outputs.Counts]:
        path = tmp_path / "stdin"
        path.write_text(content, encoding="utf-8")
        monkeypatch.setattr(inputs.sys, "stdin", path.open(encoding="utf-8"))
        return lambda: predict_file(model, None, output, input_format="lines")

    output = tmp_path / "out" / name
    work = piped("refund\n" * 21 + "\n", output)
    with pytest.raises(UserError, match=r"an empty line, expected a text \(standard input:22\)"):
        work()
    assert list((tmp_path / "out").iterdir()) == []
    if name != "out.parquet":  # a folder without manifest is told from a foreign one by nobody
        killed(piped("refund\n" * 21, output), monkeypatch, Predictor, "answer", 4)
    assert piped("refund\n" * 21, output)().rows == 21
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_memory_holds_one_chunk(
    model: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.txt"
    source.write_text("\n".join(TEXTS), encoding="utf-8")
    ahead, real = [], bulk.open_input

    class Watched:
        def __init__(self, rows: Iterator[Any]) -> None:
            self.rows, self.taken = rows, 0

        def __iter__(self) -> Watched:
            return self

        def __next__(self) -> Any:
            self.taken += 1
            return next(self.rows)

    @contextmanager
    def open_input(*args: Any) -> Iterator[Any]:
        with real(*args) as opened:
            watched = Watched(opened.rows)
            answer = Predictor.answer
            monkeypatch.setattr(
                Predictor, "answer", lambda s, w: ahead.append(watched.taken) or answer(s, w)
            )
            yield replace(opened, rows=watched)

    monkeypatch.setattr(bulk, "open_input", open_input)
    predict_file(model, source, tmp_path / "out.jsonl")
    assert ahead == [4, 8, 12, 16, 20, 24]


# --- progress ---------------------------------------------------------------------------------


def test_progress_goes_by_bytes_or_rows_and_knows_no_eta_for_a_pipe(
    model: Predictor,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(console, "PLAIN_LINE_EVERY_S", 0.0)

    def shares(source: Path | None) -> list[str]:
        predict_file(model, source, tmp_path / "out.jsonl")
        lines = capsys.readouterr().err.splitlines()
        return [re.sub(r", [\d,]+ rows/s$", "", line) for line in lines]

    size = rows.stat().st_size
    done = [sum(map(len, rows.read_bytes().splitlines(True)[:n])) for n in (4, 8, 12, 16, 20, 23)]
    found = shares(rows)
    assert [line.split(",")[0] for line in found] == [f"predicting: {n / size:.0%}" for n in done]
    assert found[-1] == "predicting: 100%, took 0:00, 23 rows"
    table = write_rows(tmp_path / "in.parquet", {"body": TEXTS})
    assert shares(table)[0].startswith("predicting: 17%, 0:0")
    read, write = os.pipe()
    os.write(write, b'{"body": "x"}\n' * 5)
    os.close(write)
    with os.fdopen(read) as pipe:
        monkeypatch.setattr(inputs.sys, "stdin", pipe)
        assert shares(None) == ["predicting, 4 rows", "predicting, 5 rows"]


def test_a_c_library_that_cannot_trim_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Other:
        def __init__(self, name: None) -> None:
            asked.append(name)

    monkeypatch.setattr(devices.ctypes, "CDLL", Other)
    devices.trim_memory()
    assert asked == [None]


@pytest.mark.parametrize("name", ["rows.jsonl", "link.jsonl", "rows", "sub/../rows.jsonl"])
def test_the_rows_are_not_replaced_by_their_answers(
    name: str, model: Predictor, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.jsonl").symlink_to(rows)
    before = rows.read_bytes()
    output = written = tmp_path / name
    if name == "rows":  # the file that it would grow in
        rows = written = rows.rename(tmp_path / "rows.part")
    assert refusal(model, rows, output) == (
        f"cannot write {output}: {written} is the file that the rows are read from, expected "
        "another one\nhint: choose another --output"
    )
    assert rows.read_bytes() == before


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_folder_is_no_place_for_a_file_of_answers(
    name: str, model: Predictor, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert refusal(model, rows, Path(name)) == (
        f"cannot write {name}: a folder, expected a file\nhint: name a file in it"
    )
    if name != ".":
        assert refusal(model, rows, Path(name), output_format="parquet") == (
            f"cannot write {name}: the folder holds other files, expected a new one\n"
            "hint: remove it, or choose another --output"
        )


@pytest.mark.parametrize("given", [{"doc": 1, "ü": None}, ["a", 2]])
def test_an_id_that_is_no_scalar_is_json_in_tables(
    given: Any, model: Predictor, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "in.jsonl", {"id": [given], "body": ["refund"]})
    for name in ("out.csv", "out.parquet"):
        predict_file(model, source, tmp_path / name)
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    ids += pyarrow.parquet.read_table(tmp_path / "out.parquet")["id"].to_pylist()
    assert [json.loads(found) for found in ids] == [given, given]
