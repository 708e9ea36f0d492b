"""Rows from every kind of file, with their lines, and the peculiarities of the GLUE files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from outshine.cells import Tally, cell_text
from outshine.errors import UserError
from outshine.readers import Row, data_fingerprint, is_labelled, read_rows
from outshine.tasks import Task

CELLS = [
    {"key": "k1", "body": "my card, twice", "team": "billing"},
    {"key": "k2", "body": 'it says "no"', "team": "tech"},
    {"key": "k3", "body": "über alles\tok", "team": ""},
]


def make(path: Path, **changes: Any) -> Task:
    fields: dict[str, Any] = {
        "name": "tickets",
        "text": ("body",),
        "label": "team",
        "labels": ("billing", "tech"),
        "files": {"train": str(path)},
    }
    return Task(**(fields | changes))


def write(folder: Path, ending: str) -> Path:
    """CELLS in one of the formats."""
    path = folder / f"train{ending}"
    if ending == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in CELLS))
    elif ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(CELLS), path)
    else:
        import csv

        with path.open("w", newline="", encoding="utf-8") as file:
            delimiter = "," if ending == ".csv" else "\t"
            writer = csv.DictWriter(file, list(CELLS[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(CELLS)
    return path


@pytest.mark.parametrize(
    ("ending", "lines"),
    [(".csv", [2, 3]), (".tsv", [2, 3]), (".jsonl", [1, 2]), (".parquet", [1, 2])],
)
def test_the_same_rows_come_from_every_format(
    tmp_path: Path, ending: str, lines: list[int]
) -> None:
    task = make(write(tmp_path, ending), id="key")
    tally = Tally()
    assert list(read_rows(task, "train", tally)) == [
        Row("k1", ("my card, twice",), 0.0, lines[0]),
        Row("k2", ('it says "no"',), 1.0, lines[1]),
    ]
    assert (tally.unlabelled, tally.skipped) == (1, 0)


@pytest.mark.parametrize(("ending", "separator"), [(".CSV", ","), (".Tsv", "\t")])
def test_the_ending_of_a_file_may_have_capitals(
    ending: str, separator: str, tmp_path: Path
) -> None:
    path = tmp_path / f"t{ending}"
    path.write_text(f"body{separator}team\na{separator}tech\n")
    assert [row.texts for row in read_rows(make(path), "train")] == [("a",)]


def test_without_an_id_column_the_id_is_the_number_of_the_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("body,team\na,tech\nb,\nc,billing\n")
    assert [row.id for row in read_rows(make(path), "train")] == ["0", "2"]


def test_a_line_number_counts_the_lines_inside_of_cells(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('body,team\n"two\nlines",tech\nb,billing\n')
    rows = list(read_rows(make(path), "train"))
    assert rows == [Row("0", ("two\nlines",), 1.0, 2), Row("1", ("b",), 0.0, 4)]


def test_a_quote_left_open_is_told_with_the_line_where_its_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('body,team\na,tech\n"b,tech\n' + "c,tech\n" * 50)
    with pytest.raises(UserError) as caught:
        list(read_rows(make(path), "train"))
    assert f"unexpected end of data, expected a row ({path}:3)" in str(caught.value)


def test_a_test_split_needs_no_label_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("body\na\n")
    task = make(path, files={"test": str(path), "test_mismatched": str(path)})
    for split in task.splits:
        (row,) = read_rows(task, split)
        assert row.texts == ("a",)
        assert math.isnan(row.gold)
    assert [is_labelled(s) for s in ("train", "dev", "dev_mismatched", "test", "ax")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_labels_are_compared_as_text(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"body": "a", "team": 1}\n{"body": "b", "team": true}\n')
    task = make(path, labels=("true", "1"))
    assert [row.gold for row in read_rows(task, "train")] == [1.0, 0.0]
    assert cell_text(None) == cell_text(float("nan")) == ""
    assert cell_text(2.5) == "2.5"


def test_label_values_translate_what_files_write(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("body,team\na,0\nb,tech\n")
    task = make(path, label_values={"0": "billing"})
    assert [row.gold for row in read_rows(task, "train")] == [0.0, 1.0]


def test_regression_labels_are_numbers_in_the_range(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("body,team\na,0\nb,2.5\nc,5e0\n")
    task = make(path, kind="regression", labels=(), range=(0, 5))
    assert [row.gold for row in read_rows(task, "train")] == [0.0, 2.5, 5.0]


# --- the GLUE files -------------------------------------------------------------------------


def glue_like(path: Path, **changes: Any) -> Task:
    fields: dict[str, Any] = {"quoting": False, "skip_bad_rows": True, "id": ""}
    return make(path, **(fields | changes))


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    for ending, separator in ((".tsv", "\t"), (".csv", ",")):
        path = tmp_path / f"t{ending}"
        path.write_bytes(b"\xef\xbb\xbf" + f"team{separator}body\ntech{separator}a\n".encode())
        assert [row.gold for row in read_rows(make(path), "train")] == [1.0]
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"body": "a", "team": "tech"}\n')
    assert [row.gold for row in read_rows(make(path), "train")] == [1.0]


def test_a_file_without_header_has_the_columns_that_the_task_names(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("src\ttech\t\tfirst\nsrc\tbilling\t*\tsecond\n")
    task = glue_like(path, columns={"train": ("source", "team", "mark", "body")})
    assert list(read_rows(task, "train")) == [
        Row("0", ("first",), 1.0, 1),
        Row("1", ("second",), 0.0, 2),
    ]


def test_quotes_are_text_in_the_glue_files(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('body\tteam\n"open\ttech\nhe said "no""\tbilling\n\'"\ttech\n')
    assert [row.texts[0] for row in read_rows(glue_like(path), "train")] == [
        '"open',
        'he said "no""',
        "'\"",
    ]


def test_the_last_row_needs_no_newline_and_rows_may_end_in_carriage_return(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(b"body\tteam\r\na\ttech\r\nb\tbilling")
    rows = list(read_rows(glue_like(path), "train"))
    assert [(row.texts[0], row.gold) for row in rows] == [("a", 1.0), ("b", 0.0)]


def test_ragged_and_empty_rows_of_glue_files_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("body\tteam\na\ttech\nb\n\nc\ttech\tmore\n \ttech\nd\tbilling\n")
    tally = Tally()
    assert [row.texts[0] for row in read_rows(glue_like(path), "train", tally)] == ["a", "d"]
    assert (tally.skipped, tally.unlabelled) == (4, 0)


def test_own_files_have_ragged_rows_refused_with_all_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("body,team\na,tech\nb\n\nc,tech,more\n ,tech\n")
    with pytest.raises(UserError) as caught:
        list(read_rows(make(path), "train"))
    assert str(caught.value) == (
        f"cannot read {path}: 4 problems\n"
        f"  1 cell, expected 2 cells ({path}:3)\n"
        f"  an empty line, expected 2 cells ({path}:4)\n"
        f"  3 cells, expected 2 cells ({path}:5)\n"
        f"  column 'body': empty, expected text ({path}:6)\n"
        "hint: mend these rows, or the task file that describes them"
    )


def test_of_many_problems_twenty_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("body,team\n" + "a,nobody\n" * 123)
    with pytest.raises(UserError) as caught:
        list(read_rows(make(path), "train"))
    lines = caught.value.message.split("\n")
    assert lines[0] == f"cannot read {path}: 123 problems"
    assert len(lines) == 22
    assert lines[20].endswith(f"({path}:21)")
    assert lines[21] == "  and 103 more"


# --- held-out rows --------------------------------------------------------------------------


def test_held_out_rows_are_dev_and_never_train(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("body,team\n" + "".join(f"text {i},tech\n" for i in range(50)))
    task = make(path, holdout=10)
    train, dev = (list(read_rows(task, split)) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (40, 10)
    assert {row.id for row in train} | {row.id for row in dev} == {str(i) for i in range(50)}
    assert dev == list(read_rows(task, "dev"))
    assert all(row.texts == (f"text {row.id}",) for row in dev)


def test_a_dev_file_beats_held_out_rows(tmp_path: Path) -> None:
    train, dev = tmp_path / "t.csv", tmp_path / "d.csv"
    train.write_text("body,team\na,tech\nb,tech\n")
    dev.write_text("body,team\nc,tech\n")
    task = make(train, holdout=1, files={"train": str(train), "dev": str(dev)})
    assert [row.texts for row in read_rows(task, "train")] == [("a",), ("b",)]
    assert [row.texts for row in read_rows(task, "dev")] == [("c",)]


def test_more_held_out_rows_than_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("body,team\na,tech\nb,tech\n")
    with pytest.raises(UserError) as caught:
        list(read_rows(make(path, holdout=2), "dev"))
    assert str(caught.value) == (
        f"cannot hold out 2 rows of 2: expected fewer ({path})\n"
        "hint: lower `holdout`, or name a dev file"
    )


# --- fingerprints ---------------------------------------------------------------------------


def test_the_fingerprint_changes_with_all_that_changes_rows_or_gold(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("key,body,team\n1,a,tech\n")
    first = data_fingerprint(make(path), "train")
    changed = [
        make(path, labels=("tech", "billing")),
        make(path, id="key"),
        make(path, text=("key",)),
        make(path, label="key"),
        make(path, version="2"),
        make(path, skip_bad_rows=True),
        make(path, label_values={"x": "tech"}),
    ]
    found = {data_fingerprint(task, "train") for task in changed}
    assert len(found | {first}) == len(changed) + 1
    path.write_text("key,body,team\n1,a,billing\n")
    assert data_fingerprint(make(path), "train") != first


def test_the_fingerprint_does_not_know_the_place_of_the_file_or_the_metrics(
    tmp_path: Path,
) -> None:
    for name in ("t.csv", "copy.csv"):
        (tmp_path / name).write_text("body,team\na,tech\n")
    first = data_fingerprint(make(tmp_path / "t.csv"), "train")
    moved = make(tmp_path / "copy.csv", metrics=("f1_macro",))
    assert data_fingerprint(moved, "train") == first


def test_rows_of_a_large_file_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    column = pyarrow.array([f"text {i}" for i in range(10_000)])
    team = pyarrow.array(np.array(["tech", "billing"])[np.arange(10_000) % 2])
    pyarrow.parquet.write_table(pyarrow.table({"body": column, "team": team}), path)
    rows = read_rows(make(path), "train")
    assert next(rows) == Row("0", ("text 0",), 1.0, 1)
    assert sum(1 for _ in rows) == 9_999
