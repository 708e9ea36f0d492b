"""What `outshine tasks check` tells about rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conftest import write_csv
from outshine.checks import check_task, warnings_of
from outshine.encoders import load_tokenizer
from outshine.errors import UserError
from outshine.glue_tasks import glue
from outshine.tasks import Task


def make_task(folder: Path, **splits: list[list[str]]) -> Task:
    files = {
        split: str(write_csv(folder / f"{split}.csv", ["body", "team"], rows))
        for split, rows in splits.items()
    }
    return Task(name="t", text=("body",), label="team", labels=("a", "b"), files=files)


@pytest.fixture(scope="session")
def tokenizer(encoder: Path) -> Any:
    return load_tokenizer(str(encoder))


def test_counts_balance_duplicates_and_overlap(tmp_path: Path) -> None:
    task = make_task(
        tmp_path,
        train=[["one", "a"], ["two", "b"], ["one", "b"], ["three", "a"], ["four", ""]],
        dev=[["two", "a"], ["five", "b"], ["five", "b"]],
        test=[["one", ""], ["six", ""]],
    )
    splits = check_task(task)["splits"]
    assert list(splits) == ["train", "dev", "test"]
    assert splits["train"] == {
        "rows": 4,
        "skipped": 0,
        "unlabelled": 1,
        "duplicates": 1,
        "balance": {"a": 0.5, "b": 0.5},
        "lengths": {},
        "truncated": None,
    }
    assert (splits["dev"]["duplicates"], splits["dev"]["in_train"]) == (1, 1)
    assert splits["test"]["balance"] == {}
    assert splits["test"]["in_train"] == 1


def test_pairs_in_another_order_are_other_rows(tmp_path: Path) -> None:
    header = ["left", "right", "team"]
    train = write_csv(tmp_path / "train.csv", header, [["x", "y", "a"], ["y", "x", "a"]])
    dev = write_csv(tmp_path / "dev.csv", header, [["x", "y", "b"], ["x x", "y", "b"]])
    task = Task(
        name="t",
        text=("left", "right"),
        label="team",
        labels=("a", "b"),
        files={"train": str(train), "dev": str(dev)},
    )
    splits = check_task(task)["splits"]
    assert splits["train"]["duplicates"] == 0
    assert splits["dev"]["in_train"] == 1


def test_lengths_are_before_truncation(tmp_path: Path, tokenizer: Any) -> None:
    rows = [[" ".join(["the"] * count), "a"] for count in (1, 2, 3, 4, 10)]
    task = make_task(tmp_path, train=rows, dev=rows)
    report = check_task(task, tokenizer, max_length=6)  # two special tokens
    train = report["splits"]["train"]
    assert train["lengths"] == {"min": 3, "q25": 4, "median": 5, "q75": 6, "q95": 11, "max": 12}
    assert train["truncated"] == 1
    assert report["max_length"] == 6


def test_regression_balance_is_quantiles(urgency: Path) -> None:
    balance = check_task(Task.load(urgency))["splits"]["train"]["balance"]
    assert list(balance) == ["min", "q25", "median", "q75", "max"]
    assert (balance["min"], balance["max"]) == (0.0, 5.0)


def test_warnings_name_what_a_person_should_look_at(tmp_path: Path, tokenizer: Any) -> None:
    task = make_task(tmp_path, train=[["the the", "a"], ["the the", ""]], dev=[["the the", "b"]])
    task = task.model_copy(update={"files": task.files | {"test": str(tmp_path / "no.csv")}})
    assert warnings_of(check_task(task, tokenizer, max_length=3)) == [
        "1 of 1 train rows of t have over 3 tokens",
        "1 train rows of t have no label and are left out",
        "1 of 1 dev rows of t also stand in train",
        "1 of 1 dev rows of t have over 3 tokens",
        f"no file for split test of t: {tmp_path / 'no.csv'}",
    ]


def test_a_further_dev_file_that_is_missing_is_refused_as_by_training(tmp_path: Path) -> None:
    task = make_task(tmp_path, train=[["one", "a"]], dev=[["three", "a"]])
    missing = tmp_path / "hrad.csv"
    task = task.model_copy(update={"files": task.files | {"dev_hard": str(missing)}})
    with pytest.raises(UserError) as caught:
        check_task(task)
    assert str(caught.value) == (
        f"cannot read {missing}: no such file, expected a data file\nhint: check the path"
    )


def test_a_clean_task_has_no_warnings(tmp_path: Path) -> None:
    task = make_task(tmp_path, train=[["one", "a"], ["two", "b"]], dev=[["three", "a"]])
    assert warnings_of(check_task(task)) == []


def test_bad_rows_are_refused_with_their_lines(tmp_path: Path) -> None:
    task = make_task(tmp_path, train=[["one", "a"], ["two", "c"]], dev=[["three", "a"]])
    with pytest.raises(UserError, match=r"label 'c', expected one of a, b \(.*train.csv:3\)"):
        check_task(task)


def test_a_task_without_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        check_task(make_task(tmp_path, dev=[["one", "a"]]))
    assert str(caught.value) == (
        "cannot read split 'train' of task 't': not given, expected one of dev\n"
        "hint: add `train = ...` under [files] of the task"
    )


def test_a_task_without_dev_is_read_as_by_training_and_a_warning_says_so(tmp_path: Path) -> None:
    report = check_task(make_task(tmp_path, train=[["one", "a"]]))
    assert list(report["splits"]) == ["train"]
    assert warnings_of(report) == ["t has no dev split: it is not evaluated"]


@pytest.mark.parametrize(
    ("name", "split", "shared"), [("cola", "dev", 16), ("stsb", "dev", 6), ("trec", "test", 10)]
)
def test_known_overlap_of_the_real_files(glue_dir: str, name: str, split: str, shared: int) -> None:
    splits = check_task(glue(name, data_dir=glue_dir)[0])["splits"]
    assert splits[split]["in_train"] == shared
