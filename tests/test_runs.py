"""A run's folder: complete or not, foreign or not, and one writer at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from outshine.errors import UserError
from outshine.files import read_json, write_json
from outshine.runs import Run, check_new, locked, open_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A folder that looks like a complete run."""
    task = {"name": "t", "text": ["a"], "label": "y", "labels": ["p", "q"]}
    write_json(tmp_path / "run" / "config.json", {"settings": {"lr": 1.0}, "tasks": [task]})
    write_json(tmp_path / "run" / "run.json", {"format": 1, "id": "abc"})
    return Run(tmp_path / "run")


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_run(path)
    return str(caught.value)


def test_a_run_is_complete_when_its_last_file_exists(run: Run) -> None:
    assert open_run(str(run.path)) == run
    assert open_run(run) is run
    assert run.tasks()[0].labels == ("p", "q")
    assert run.predictions_path("t", "dev") == run.path / "predictions" / "t-dev.safetensors"
    (run.path / "run.json").unlink()
    assert not run.is_complete
    assert refused(run.path) == (
        f"cannot open the run {run.path}: it is incomplete, expected a finished run\n"
        "hint: give the same `outshine train` command again to resume it"
    )
    (run.path / "config.json").unlink()
    assert refused(run.path) == (
        f"cannot open the run {run.path}: no run.json in it, expected a finished run\n"
        "hint: check it"
    )
    shutil.rmtree(run.path)
    assert refused(run.path) == (
        f"cannot open the run {run.path}: no such folder\nhint: check the path"
    )


def test_a_run_of_another_format_or_with_damaged_files_is_refused(run: Run) -> None:
    place = run.path / "run.json"
    write_json(place, {"format": 2, "id": "abc"})
    assert refused(run.path) == (
        f"cannot open the run {run.path}: format 2, expected 1 ({place})\n"
        "hint: it was made by another version of outshine: update outshine, or train again"
    )
    place.write_text('{"format": 1,')
    assert refused(run.path).startswith(f"cannot read {place}: Expecting property name")
    place.write_text("[]")
    assert refused(run.path) == (
        f"cannot read {place}: no object, expected JSON with 'format', 'id' ({place})\n"
        "hint: the file is damaged: make it again, or remove its folder"
    )
    place = run.path / "config.json"
    for tasks in ("t", ["t"], [{"name": "t"}], 3):
        write_json(place, {"settings": {}, "tasks": tasks})
        with pytest.raises(UserError) as caught:
            run.tasks()
        assert str(caught.value) == (
            f"cannot read {place}: a damaged task, expected those of the run (tasks)\n"
            "hint: the file was changed: train the run again"
        )


def test_metrics_are_merged_by_task_and_split(run: Run) -> None:
    run.add_metrics({"t": {"dev": {"accuracy": 0.5, "n": 2}}})
    run.add_metrics({"t": {"dev_mismatched": {"accuracy": 0.25, "n": 4}}, "u": {"dev": {"n": 1}}})
    assert run.metrics() == {
        "t": {"dev": {"accuracy": 0.5, "n": 2}, "dev_mismatched": {"accuracy": 0.25, "n": 4}},
        "u": {"dev": {"n": 1}},
    }


def test_out_may_be_new_or_an_incomplete_run_and_nothing_else(run: Run, tmp_path: Path) -> None:
    check_new(tmp_path / "new", force=False)
    (tmp_path / "empty").mkdir()
    check_new(tmp_path / "empty", force=False)
    check_new(run.path, force=True)
    with pytest.raises(UserError) as caught:
        check_new(run.path, force=False)
    assert str(caught.value) == (
        f"cannot write the run {run.path}: it is already complete\n"
        "hint: choose another --out, or replace it with --force"
    )
    (run.path / "run.json").unlink()
    check_new(run.path, force=False)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UserError) as caught:
        check_new(file, force=True)
    assert str(caught.value) == (
        f"cannot write the run {file}: a file, expected a folder\nhint: choose another"
    )
    with pytest.raises(UserError) as caught:
        check_new(tmp_path, force=True)
    assert str(caught.value) == (
        f"cannot write the run {tmp_path}: the folder holds other files (empty, file, run), "
        "expected none\nhint: choose a new --out"
    )


def test_a_second_writer_is_refused_and_the_lock_goes_with_the_first(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with locked(path):
        write_json(path / "config.json", {})
        with pytest.raises(UserError) as caught, locked(path):
            pass
        assert str(caught.value) == (
            f"cannot write the run {path}: another process is writing it\n"
            "hint: wait for it, or choose another --out"
        )
        assert (path / ".lock").exists()
    assert [entry.name for entry in path.iterdir()] == ["config.json"]
    with locked(path):
        assert read_json(path / "config.json") == {}


def test_a_folder_into_which_nothing_was_written_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "a" / "run"):
        raise KeyboardInterrupt
    assert not (tmp_path / "a" / "run").exists()
