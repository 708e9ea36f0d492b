"""Studies run for real, with tiny models: made once, resumed, shared, and told apart."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import outshine
from outshine import launch, workers
from outshine import study as studying
from outshine.cli import app
from outshine.data import folds
from outshine.errors import UserError, WorldError
from outshine.files import map_arrays, write_arrays
from outshine.findings import compare, report_data
from outshine.launch import run_study
from outshine.plan import plan_facts, seconds_left, to_make
from outshine.predictions import Predictions
from outshine.report import render
from outshine.results import ROWS, Row, append_row, read_rows
from outshine.runs import Run
from outshine.study import Study, chosen_seeds, open_study, read_study
from studies import alike, slow_text, start, study_text, wait_for, write_study
from test_training import interrupt_at


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """Two tasks, two seeds, four arms."""
    arms = '["single", "multi", "single->multi", "multi+finetune"]'
    return write_study(tmp_path_factory.mktemp("study"), study_text(encoder, arms=arms))


@pytest.fixture(scope="module")
def made(file: Path) -> Study:
    """The study, finished; tests that change it copy its folder."""
    return run_study(file)


@pytest.fixture
def copied(made: Study, tmp_path: Path) -> Path:
    """A copy of the finished study's folder, beside a copy of its files."""
    shutil.copytree(made.path.parent, tmp_path / "copy")
    return tmp_path / "copy" / "tiny"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders in which a study trains from now on."""
    paths: list[str] = []
    train = workers.train

    def note(*args: Any, **kwargs: Any) -> Run:
        paths.append(f"runs/{Path(kwargs['out']).name}")
        return train(*args, **kwargs)

    monkeypatch.setattr(workers, "train", note)
    return paths


def forget(study: Path, *folders: str) -> None:
    """Removes the rows of some runs."""
    lines = (study / ROWS).read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["folder"] not in folders]
    (study / ROWS).write_text("".join(kept))


def node_of(study: Study, arm: str, seed: int = 1, task: str = "tickets") -> Any:
    runs = [study.graph.nodes[run] for run in study.graph.ends[arm][seed]]
    return next(node for node in runs if task in [t.name for t in node.tasks])


# --- what a study leaves ------------------------------------------------------------------------


def test_every_run_of_the_graph_has_one_row(made: Study) -> None:
    lines = [json.loads(line) for line in (made.path / ROWS).read_text().splitlines()]
    assert sorted(line["run"] for line in lines) == sorted(made.graph.nodes)
    assert to_make(made, made.spec.seeds, made.rows()) == []


def test_a_row_says_what_its_run_says(made: Study) -> None:
    node = node_of(made, "single->multi")
    row, run = made.rows()[node.id], Run(made.path / node.folder)
    assert row.metrics == run.metrics()
    assert row.steps == 4 and row.seed == 1 and row.stage == "multi"
    assert row.teachers == {name: list(runs) for name, runs in node.teachers.items()}
    assert [point[0] for point in row.curve] == [1, 2, 3, 4]
    assert row.curve[0][2] == 0.0 and row.settings["anneal"] == "linear"
    assert set(row.mixture) == {"tickets", "urgency"}
    assert row.mixture["tickets"]["rows"] == 48
    assert row.seconds >= row.train_s > 0


def test_rows_hold_no_path_of_this_machine(made: Study) -> None:
    assert str(made.path.parent) not in (made.path / ROWS).read_text()


def test_the_results_are_complete_and_those_of_the_rows(made: Study) -> None:
    results = made.results()
    assert [arm.name for arm in results.arms] == [arm.name for arm in made.spec.arms]
    for arm in results.arms:
        for task, cells in arm.cells.items():
            for seed, cell in cells.items():
                row = made.rows()[node_of(made, arm.name, seed, task).id]
                assert cell.value == row.primary(task)
            assert set(cells) == {1, 2}
    assert results.dev_rows == {"tickets": 24, "urgency": 24}
    assert results.metrics == {"tickets": "accuracy", "urgency": "spearman"}


def test_weights_that_nobody_needs_are_dropped_and_predictions_stay(made: Study) -> None:
    assert list(made.path.rglob("model.safetensors")) == []
    for node in made.graph.nodes.values():
        for task in node.tasks:
            assert Run(made.path / node.folder).predictions_path(task.name, "dev").exists()


def test_train_logits_are_computed_for_teachers_alone(made: Study) -> None:
    with_logits = {p.parent.parent.name for p in made.path.rglob("*-train.safetensors")}
    singles = {Path(n.folder).name for n in made.graph.nodes.values() if n.chain == "single"}
    assert with_logits == singles


@pytest.mark.parametrize(
    ("keep", "weights", "predictions"), [("all", 3, True), ("metrics", 0, False)]
)
def test_keep_says_what_stays(
    tmp_path: Path, encoder: Path, keep: str, weights: int, predictions: bool
) -> None:
    keys = f'seeds = 1\nkeep = "{keep}"'
    study = run_study(write_study(tmp_path, study_text(encoder, keys, arms='["single->multi"]')))
    assert len(list(study.path.rglob("heads.safetensors"))) == weights
    assert bool(list(study.path.rglob("*-dev.safetensors"))) == predictions
    assert len(study.rows()) == 3


def test_the_student_learns_from_its_own_teachers(made: Study) -> None:
    node = node_of(made, "single->multi", seed=2)
    config = Run(made.path / node.folder).config()
    teacher = made.graph.nodes[node.teachers["tickets"][0]]
    assert config["teachers"]["tickets"] == [str(made.path / teacher.folder)]
    assert teacher.cfg.seed == 2


def test_a_finetuned_run_starts_from_the_multi_task_weights(made: Study) -> None:
    node = node_of(made, "multi+finetune")
    start = made.graph.nodes[node.start]
    settings = Run(made.path / node.folder).config()["settings"]
    assert settings["init"] == str(made.path / start.folder)
    assert made.rows()[node.id].settings["init"] == start.id


# --- resuming -----------------------------------------------------------------------------------


def test_a_finished_study_trains_nothing_again(made: Study, trained: list[str]) -> None:
    before = (made.path / ROWS).read_bytes()
    run_study(made.path)
    assert trained == []
    assert (made.path / ROWS).read_bytes() == before


def test_rows_alone_count_as_done(copied: Path, trained: list[str]) -> None:
    shutil.rmtree(copied / "runs")
    study = run_study(copied)
    assert trained == []
    assert plan_facts(study)["left"] == 0


def test_a_student_that_is_left_brings_back_the_teachers_it_needs(
    made: Study, copied: Path, trained: list[str]
) -> None:
    student = node_of(made, "single->multi")
    shutil.rmtree(copied / "runs")
    forget(copied, student.folder)
    study = run_study(copied)
    teachers = [made.graph.nodes[runs[0]].folder for runs in student.teachers.values()]
    assert sorted(trained) == sorted([*teachers, student.folder])
    assert alike(study.rows()) == alike(made.rows())
    assert len((copied / ROWS).read_text().splitlines()) == len(made.graph.nodes)


def test_a_finetuned_run_that_is_left_brings_back_the_weights_it_starts_from(
    made: Study, copied: Path, trained: list[str]
) -> None:
    tuned = node_of(made, "multi+finetune", task="urgency")
    forget(copied, tuned.folder)
    shutil.rmtree(copied / tuned.folder)
    study = run_study(copied)
    assert trained == [made.graph.nodes[tuned.start].folder, tuned.folder]
    assert alike(study.rows()) == alike(made.rows())


def test_a_run_that_only_lacks_its_row_is_not_trained_again(
    made: Study, copied: Path, trained: list[str]
) -> None:
    forget(copied, node_of(made, "single").folder)
    assert alike(run_study(copied).rows()) == alike(made.rows())
    assert trained == []


def test_a_block_of_seeds_is_run_alone_and_the_rest_later(
    made: Study, file: Path, tmp_path: Path
) -> None:
    study = run_study(file, out=tmp_path / "out", seeds=[2])
    assert {row.seed for row in study.rows().values()} == {2}
    assert plan_facts(study)["left"] == len(made.graph.nodes) / 2
    assert plan_facts(study, [2])["left"] == 0
    assert alike(run_study(tmp_path / "out").rows()) == alike(made.rows())


def test_rows_of_another_folder_count(made: Study, file: Path, tmp_path: Path) -> None:
    first = run_study(file, out=tmp_path / "a", seeds=[1])
    second = run_study(file, out=tmp_path / "b", others=[first.path])
    assert {row.seed for row in read_rows([second.path]).values()} == {2}
    assert alike(second.rows()) == alike(made.rows())
    merged = read_study(tmp_path / "b", others=[tmp_path / "a"])
    assert merged.results() == made.results()


def change(study: Path, *changes: tuple[str, str]) -> Path:
    """Changes the file beside a study's folder, and returns it."""
    path = study.parent / "tiny.toml"
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def test_a_file_with_other_seeds_arms_and_comparisons_goes_on_in_its_folder(
    copied: Path, trained: list[str]
) -> None:
    old = (copied / ROWS).read_bytes()
    path = change(
        copied,
        ("seeds = 2", 'seeds = 3\ncompare = [["multi->multi", "single"]]'),
        ('"multi", "single->multi"', '"multi->multi"'),
        ("[stage.single]", '[[arm]]\nname = "v"\nchain = "single"\nset.lr = 2e-3\n[stage.single]'),
    )
    facts = plan_facts(open_study(path))
    # seed 3: two single runs and multi, two finetuned; multi->multi and two of v for every seed
    assert facts["left"] == 5 + 3 * (1 + 2) + 2  # and multi of the first seeds, to teach again
    assert "seeds = 2" in json.loads((copied / "study.json").read_text())["file"]
    study = run_study(path)
    assert len(trained) == facts["left"]
    assert (copied / ROWS).read_bytes().startswith(old)
    assert json.loads((copied / "study.json").read_text())["file"] == path.read_text()
    results = read_study(path).results()
    assert [arm.name for arm in results.arms] == ["single", "multi->multi", "multi+finetune", "v"]
    assert results == study.results()
    assert all(set(cells) == {1, 2, 3} for arm in results.arms for cells in arm.cells.values())
    assert results.comparisons == (("multi->multi", "single"),)


def test_a_new_arm_may_bring_a_stage_of_its_own(tmp_path: Path, encoder: Path) -> None:
    text = study_text(encoder, "seeds = 1", arms='["multi"]')
    path = write_study(tmp_path, text.partition("[stage.finetune]")[0])
    run_study(path)
    path.write_text(text.replace('["multi"]', '["multi", "multi+finetune"]'))
    assert len(run_study(path).rows()) == 3


def test_a_changed_file_is_not_read_before_it_is_run(copied: Path) -> None:
    path = change(copied, ("seeds = 2", "seeds = 3"))
    with pytest.raises(UserError) as caught:
        read_study(path)
    assert caught.value.message == (
        f"cannot read the study {copied}: its file has changed since it was run: seeds was 2, is 3"
    )
    assert caught.value.hint == (
        f"`outshine study run` takes the changes up; {copied} in the file's place stands for the "
        "study as it was run"
    )
    assert read_study(copied).spec.seeds == (1, 2)
    path = change(copied, ("max_steps = 4", "max_steps = 5"))  # which `run` would refuse, too
    with pytest.raises(UserError) as caught:
        read_study(path)
    assert caught.value.hint == (f"{copied} in the file's place stands for the study as it was run")


def test_changed_data_are_refused_beside_a_changed_file(copied: Path) -> None:
    path = change(copied, ("seeds = 2", "seeds = 3"), ('"single", "multi"', '"multi"'))
    dev = copied.parent / "tickets-dev.csv"
    dev.write_text(dev.read_text() + "my invoice again,billing\n")
    with pytest.raises(UserError, match=r"cannot go on with .*the runs of 'single' are others"):
        open_study(path)


def test_a_changed_list_of_seeds_leaves_the_runs_of_old_seeds(
    copied: Path, trained: list[str]
) -> None:
    run_study(change(copied, ("seeds = 2", "seeds = [2, 4]")), seeds=[2])
    assert trained == []


def test_a_process_with_the_old_file_does_not_take_the_changes_back(copied: Path) -> None:
    path = copied.parent / "tiny.toml"
    old = open_study(path)
    change(copied, ("seeds = 2", "seeds = 1"))
    studying.begin(open_study(path))
    studying.note_choices(old)
    assert read_study(copied).spec.seeds == (1,)


def test_rows_of_a_study_with_another_file_count_where_the_runs_are_the_same(
    made: Study, copied: Path, tmp_path: Path, trained: list[str]
) -> None:
    path = change(copied, ("lr = 1e-4", "lr = 2e-4"), ("seeds = 2", 'seeds = 1\nkeep = "all"'))
    study = run_study(path, out=tmp_path / "out", others=[made.path])
    tuned = [run for runs in study.graph.ends["multi+finetune"].values() for run in runs]
    start = study.graph.nodes[tuned[0]].start
    assert set(read_rows([study.path])) == set(tuned)
    assert len(trained) == 3 and study.graph.nodes[start].folder in trained
    assert study.results().arms[0].cells["tickets"].keys() == {1}


@pytest.mark.parametrize(
    ("keep", "before", "new"),
    [("predictions", "single->multi", "single->single"), ("all", "multi", "multi+finetune")],
)
def test_logits_and_weights_of_another_folder_are_used_where_they_lie(
    tmp_path: Path, encoder: Path, trained: list[str], keep: str, before: str, new: str
) -> None:
    text = study_text(encoder, f'seeds = 1\nkeep = "{keep}"', arms=f'["{before}"]')
    path = write_study(tmp_path, text)
    first = run_study(path, out=tmp_path / "first")
    trained.clear()
    path.write_text(text.replace(f'"{before}"', f'"{before}", "{new}"'))
    study = run_study(path, out=tmp_path / "second", others=[first.path])
    made_now = read_rows([study.path]).values()
    assert {row.chain for row in made_now} == {new}
    assert sorted(trained) == sorted(row.folder for row in made_now) and len(trained) == 2
    node = node_of(study, new)
    config = Run(study.path / node.folder).config()
    used = [config["settings"]["init"]] if node.start else config["teachers"]["tickets"]
    assert used == [str(first.path / study.rows()[node.parents[0]].folder)]


@pytest.mark.parametrize("policy", ["same-seed", "out-of-fold:2"])
def test_another_folder_is_only_read_where_a_teacher_has_weights_and_no_logits(
    tmp_path: Path, encoder: Path, policy: str
) -> None:
    keys = f'seeds = 1\nkeep = "all"\nteachers = "{policy}"'
    path = write_study(tmp_path, study_text(encoder, keys, arms='["single->multi"]'))
    first = run_study(path, out=tmp_path / "first")
    for logits in first.path.rglob("*-train.safetensors"):
        logits.unlink()
    for joined in first.path.glob("runs/folds-*"):
        shutil.rmtree(joined)
    before = {p: p.stat().st_mtime_ns for p in first.path.rglob("*")}
    path.write_text(
        path.read_text().replace('"single->multi"', '"single->multi", "single->single"')
    )
    study = run_study(path, out=tmp_path / "second", others=[first.path])
    assert {row.chain for row in read_rows([study.path]).values()} == {"single->single"}
    assert {p: p.stat().st_mtime_ns for p in first.path.rglob("*")} == before
    assert not list(study.path.rglob("members"))


def test_what_a_process_that_died_has_left_is_removed(made: Study, copied: Path) -> None:
    left = copied / node_of(made, "multi").folder / "model"
    left.mkdir()
    (left / "heads.safetensors").write_text("")
    run_study(copied)
    assert not left.exists()


def test_rows_are_taken_from_studies_alone(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_study(file, out=tmp_path / "out", others=[tmp_path])
    assert caught.value.message == (
        f"cannot take rows from {tmp_path}: no rows.jsonl in it, expected a study's folder"
    )


@pytest.fixture
def stopped(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study that a worker has begun, stopped in the middle of a finetuned run."""
    text = study_text(encoder, "seeds = 1", arms='["multi+finetune"]')
    study = open_study(write_study(tmp_path, text))
    studying.begin(study)

    real = workers.train

    def train(*args: Any, **kwargs: Any) -> Run:
        with monkeypatch.context() as patch:
            if args[1].init != "encoder":
                interrupt_at(patch, 1)
            return real(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(workers, "train", train)
        workers.serve(workers.request(study, [1], None), lambda event: None)
    assert list(study.path.glob("runs/multi-finetune-*/checkpoint/state.safetensors"))
    return study


def test_a_finetuned_run_goes_on_where_the_folder_is_spelled_otherwise(
    stopped: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stopped.path.parent)
    study = run_study("tiny.toml")
    assert study.path == Path("tiny")
    resumed = [Run(study.path / n.folder).info()["resumed"] for n in study.graph.nodes.values()]
    assert sum(resumed) == 1


def test_a_run_begun_with_another_precision_begins_anew(
    stopped: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = stopped.path.glob("runs/multi-finetune-*/checkpoint/state.safetensors")
    arrays, header = map_arrays(path)
    own = header["identity"]["precision"]  # bf16 where the processor has it
    header["identity"]["precision"] = other = {"fp32": "bf16", "bf16": "fp32"}[own]
    write_arrays(path, {name: np.array(values) for name, values in arrays.items()}, header)
    study = run_study(stopped.path)
    assert len(study.rows()) == len(study.graph.nodes) == 3
    assert not any(
        Run(study.path / node.folder).info()["resumed"] for node in study.graph.nodes.values()
    )
    assert (
        f"note: cannot go on with the run {path.parent.parent}: precision was {other}, is {own}; "
        "it begins anew\n"
    ) in capsys.readouterr().err


# --- policies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["predictions", "all"])
def test_out_of_fold_targets_come_from_the_run_that_has_not_seen_the_row(
    tmp_path: Path, encoder: Path, keep: str
) -> None:
    keys = f'keep = "{keep}"\nseeds = 1\nteachers = "out-of-fold:3"\n'
    keys += 'tasks = ["duplicate.toml", "tickets.toml"]'
    study = run_study(write_study(tmp_path, study_text(encoder, keys, arms='["single->multi"]')))
    student = node_of(study, "single->multi")
    members = [
        Run(study.path / study.graph.nodes[run].folder) for run in student.teachers["duplicate"]
    ]
    (source,) = Run(study.path / student.folder).config()["teachers"]["duplicate"]
    joined = Predictions.load(Run(Path(source)).predictions_path("duplicate", "train"))
    assert len(joined.ids) == 96  # both orders of 48 pairs
    parts = folds(joined.ids, 3)
    for number, run in enumerate(members, start=1):
        rows = [i for i, part in zip(joined.ids, parts, strict=True) if part == number]
        expected, _ = Predictions.load(run.predictions_path("duplicate", "train")).take(rows)
        assert np.array_equal(joined.take(rows)[0], expected)
        assert run.info()["mixture"]["duplicate"]["rows"] == 96 - len(rows) == 64


def test_an_ensemble_is_the_mean_of_its_members(tmp_path: Path, encoder: Path) -> None:
    keys = 'seeds = 1\nteachers = "ensemble:2"'
    study = run_study(write_study(tmp_path, study_text(encoder, keys, arms='["single->multi"]')))
    student = node_of(study, "single->multi")
    taught_by = Run(study.path / student.folder).config()["teachers"]["tickets"]
    assert [Run(Path(source)).info()["seed"] for source in taught_by] == [1, 2]
    # the teacher of seed 2 is no result of the study
    assert {seed for arm in study.results().arms for seed in arm.cells["tickets"]} == {1}


def test_folds_are_nearly_equal_and_keep_swapped_pairs_together() -> None:
    ids = [str(i) for i in range(50)] + [f"{i}/swap" for i in range(50)]
    parts = folds(ids, 4)
    assert sorted(np.bincount(parts)[1:]) == [24, 24, 26, 26]
    assert np.array_equal(parts[:50], parts[50:])
    assert np.array_equal(folds(ids[::-1], 4), parts[::-1])


FROM_TEACHERS = '[[arm]]\nname = "mean"\nchain = "single->multi"\nset = { init = "teachers" }\n'


def test_a_student_starts_from_its_teachers_before_their_weights_are_dropped(
    tmp_path: Path, encoder: Path, trained: list[str]
) -> None:
    text = study_text(encoder, f"seeds = 1\n\n{FROM_TEACHERS}", arms='["single->multi"]')
    study = run_study(write_study(tmp_path, text))
    assert len(trained) == len(study.rows()) == 4  # each teacher once
    mean, plain = (study.rows()[node_of(study, arm).id] for arm in ("mean", "single->multi"))
    assert mean.settings["init"] == "teachers" and plain.settings["init"] == "encoder"
    assert mean.curve[0][1] < plain.curve[0][1]  # it knows something of what they know
    assert list(study.path.rglob("heads.safetensors")) == []


def test_a_run_with_weights_keeps_them_until_all_that_it_teaches_is_done(
    tmp_path: Path, encoder: Path, trained: list[str]
) -> None:
    # multi+finetune needs the weights of multi, multi->multi its logits alone, and comes later
    text = study_text(encoder, "seeds = 1", arms='["multi+finetune", "multi->multi"]')
    study = run_study(write_study(tmp_path, text))
    assert len(trained) == len(study.rows()) == 4


# --- settings that are chosen -------------------------------------------------------------------


def test_settings_are_chosen_on_a_seed_that_is_not_reported(tmp_path: Path, encoder: Path) -> None:
    keys = "seeds = 1\n\n[select]\nseed = 9\nlr = [1e-3, 1e-9]\nset = { max_steps = 6 }\n"
    path = write_study(tmp_path, study_text(encoder, keys, arms='["single", "single->multi"]'))
    before = plan_facts(open_study(path))
    assert before["pending"] and before["runs"] == 4  # two tasks, two learning rates
    assert before["warnings"][0].startswith("settings are still to be chosen")
    study = run_study(path)
    rows = study.rows()
    single, student = study.graph.choices
    assert (single["chain"], student["chain"]) == ("single", "single->multi")
    assert single["seed"] == 9 and single["tasks"] == ["tickets", "urgency"]
    scores = {point["lr"]: score for point, score in single["scores"]}
    for lr, score in scores.items():
        tried = [r for r in rows.values() if r.seed == 9 and r.settings["lr"] == lr]
        alone = [r.primary(r.tasks[0]) for r in tried if r.chain == "single"]
        assert score == pytest.approx(np.mean(alone)) and len(alone) == 2
        assert all(row.steps == 6 for row in tried)
    best = max(scores, key=lambda lr: scores[lr])
    assert single["chosen"] == {"lr": best}
    assert node_of(study, "single").cfg.lr == best and node_of(study, "single").cfg.seed == 1
    # the runs that choose for the student are taught by the winners of the stage before
    trial = next(n for n in study.graph.nodes.values() if n.cfg.seed == 9 and n.teachers)
    assert study.graph.nodes[trial.teachers["tickets"][0]].cfg.lr == best
    assert {seed for arm in study.results().arms for seed in arm.cells["tickets"]} == {1}
    assert len(rows) == 4 + 2 + 2 + 1
    read = read_study(study.path)
    assert read.results() == study.results()
    assert "chosen on seed 9" in report_data(read)["methods"]["selection"]
    assert report_data(read)["provenance"]["runs"] == len(rows)
    assert plan_facts(open_study(path))["left"] == 0


def test_a_study_that_stopped_after_its_choice_can_be_reported(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = "seeds = 2\n\n[select]\nseed = 9\nlr = [1e-3, 1e-9]\n"
    path = write_study(tmp_path, study_text(encoder, keys, arms='["single"]'))
    train = workers.train

    def stop_in_seed_2(tasks: Any, cfg: Any, **options: Any) -> Run:
        if cfg.seed == 2:
            raise KeyboardInterrupt
        return train(tasks, cfg, **options)

    monkeypatch.setattr(workers, "train", stop_in_seed_2)
    with pytest.raises(KeyboardInterrupt):
        run_study(path)
    found = report_data(read_study(tmp_path / "tiny"))
    assert found["arms"]["single"]["score"]["n"] == 1
    assert "chosen on seed 9" in found["methods"]["selection"]
    for format in ("terminal", "markdown", "latex", "csv", "html"):
        assert "chosen on seed 9" in render(found, format)  # with one arm nothing is compared


# --- runs that diverge --------------------------------------------------------------------------


def test_a_run_that_diverges_is_recorded_with_a_constant_prediction_and_marked(
    tmp_path: Path, encoder: Path
) -> None:
    keys = (
        f"seeds = 1\n\n{FROM_TEACHERS}"
        '[[arm]]\nname = "lost"\nchain = "single->single"\nset = { init = "teachers" }\n'
        "[stage.single.task.tickets]\nlr = 1e30\nmax_grad_norm = 0.0\n"
        '[[arm]]\nname = "burst"\nchain = "multi"\n'
        "set = { lr = 1e30, max_grad_norm = 0.0, max_steps = 4 }\n"
        '[[arm]]\nname = "tuned burst"\nchain = "burst+finetune"\n'
    )
    text = study_text(encoder, keys, arms='["single->multi"]')
    text = text.replace("[stage.finetune]\nmax_steps = 2", "[stage.finetune]\nmax_steps = 4")
    text = text.replace("lr = 1e-4", "lr = 1e30\nmax_grad_norm = 0.0")
    study = run_study(write_study(tmp_path, text))
    rows = study.rows()
    student = rows[node_of(study, "single->multi").id]
    teacher = rows[student.teachers["tickets"][0]]
    assert teacher.degenerate["tickets"].startswith("diverged: training stopped at step ")
    assert teacher.metrics["tickets"]["dev"]["constant_prediction"] == 1
    assert 0 < teacher.primary("tickets") < 1
    assert student.degenerate["tickets"] == "a teacher of it diverged"
    assert list(Run(study.path / student.folder).config()["teachers"]) == ["urgency"]
    # started from what is left of its teachers, or from nothing
    assert rows[node_of(study, "mean").id].degenerate["tickets"] == "a teacher of it diverged"
    lost = rows[node_of(study, "lost").id]
    assert lost.degenerate["tickets"] == "diverged: the runs that it starts from diverged"
    assert lost.settings["init"] == "teachers"
    burst = rows[node_of(study, "burst").id]
    assert burst.degenerate["tickets"].startswith("diverged: ")
    tuned = rows[node_of(study, "tuned burst").id]
    assert tuned.degenerate["tickets"] == "diverged: the run that it starts from diverged"
    cells = {arm.name: arm.cells["tickets"][1] for arm in study.results().arms}
    assert cells["burst"].degenerate and cells["burst"].value == burst.primary("tickets")
    listed = report_data(study)["degenerate"]
    assert {entry["arm"] for entry in listed} >= {"single->multi", "burst", "tuned burst"}


# --- processes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """A study whose runs take a second or so, with a checkpoint at every step."""
    return write_study(tmp_path_factory.mktemp("slow"), slow_text(encoder))


@pytest.fixture(scope="module")
def undisturbed(slow: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(slow, out=tmp_path_factory.mktemp("undisturbed") / "out")


def test_killed_at_several_moments_and_resumed_it_is_the_undisturbed_study(
    slow: Path, undisturbed: Study, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("study", "run", str(slow), "--out", str(out), "--quiet")
    # in the first run, between runs, and in the student
    moments = (
        lambda: bool(list(out.glob("runs/*/checkpoint/state.safetensors"))),
        lambda: len(read_rows([out])) >= 1,
        lambda: bool(list(out.glob("runs/single-multi-*/checkpoint"))),
    )
    for number, moment in enumerate(moments):
        process = start(*words)
        wait_for(moment, f"moment {number}", process)
        process.kill()
        process.communicate()
    study = run_study(slow, out=out)
    assert alike(study.rows()) == alike(undisturbed.rows())
    resumed = [Run(p.parent).info()["resumed"] for p in out.glob("runs/*/run.json")]
    assert sum(resumed) >= 1
    assert [p for p in out.rglob(".*.*") if p.is_file()] == []


def test_ctrl_c_exits_with_130_and_leaves_the_checkpoint(
    slow: Path, undisturbed: Study, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start("study", "run", str(slow), "--out", str(out))
    wait_for(lambda: bool(list(out.glob("runs/*/log.jsonl"))), "a run")
    wait_for(lambda: any(p.stat().st_size for p in out.glob("runs/*/log.jsonl")), "a step")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "the checkpoint is written" in said and "Traceback" not in said
    assert list(out.glob("runs/*/checkpoint/state.safetensors"))
    assert alike(run_study(slow, out=out).rows()) == alike(undisturbed.rows())


def test_two_processes_share_one_folder(slow: Path, undisturbed: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("study", "run", str(slow), "--out", str(out))
    both = [start(*words) for _ in range(2)]
    ends = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    lines = (out / ROWS).read_text().splitlines()
    assert len(lines) == len(undisturbed.graph.nodes)
    assert alike(read_rows([out])) == alike(undisturbed.rows())


def test_a_worker_that_dies_has_its_run_taken_up(
    slow: Path, undisturbed: Study, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start("study", "run", str(slow), "--out", str(out), "--jobs", "2")
    wait_for(lambda: bool(list(out.glob("runs/*/checkpoint/state.safetensors"))), "a checkpoint")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert "note: a worker ended with code -9; another takes over" in said
    assert alike(read_rows([out])) == alike(undisturbed.rows())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
def test_a_signal_reaches_the_workers_once(
    number: signal.Signals, tmp_path: Path, encoder: Path
) -> None:
    text = slow_text(encoder).replace("max_steps = 40\nepochs = 20", "epochs = 2000")
    endless = write_study(tmp_path, text)
    out = tmp_path / "out"
    process = start("study", "run", str(endless), "--out", str(out), "--jobs", "2")
    wait_for(lambda: bool(list(out.glob("runs/*/checkpoint/state.safetensors"))), "a checkpoint")
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert list(out.glob("runs/*/checkpoint/state.safetensors"))


def test_sigterm_stops_workers_where_a_shell_has_sigint_ignored(
    tmp_path: Path, encoder: Path
) -> None:
    text = slow_text(encoder).replace("max_steps = 40\nepochs = 20", "epochs = 2000")
    endless = write_study(tmp_path, text)
    ignoring = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "from outshine.cli import main; main()"
    )
    words = ["study", "run", str(endless), "--out", str(tmp_path / "out"), "--jobs", "2"]
    process = subprocess.Popen([sys.executable, "-c", ignoring, *words], stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: len(children.read_text().split()) == 2, "its workers")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130


def test_workers_that_died_are_noticed_while_others_tell_without_pause(
    made: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    class Dead:
        returncode = -9

        def poll(self) -> int:
            return self.returncode

    def start_dead(given: str, environment: Any, events: Any) -> Any:
        begun.append(events)
        return Dead(), Thread(target=lambda: None)

    def tell(event: dict[str, Any]) -> None:
        told.append(event)
        if len(told) < 1000:
            begun[0].put(event)

    begun: list[Any] = []
    monkeypatch.setattr(launch, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(launch, "_start", start_dead)
    monkeypatch.setattr(Thread, "join", lambda self: begun[0].put({"event": "progress"}))
    with pytest.raises(WorldError) as caught:
        launch._in_processes(made, [1], 1, [], None, tell)
    assert caught.value.message == "cannot go on: 4 workers have died"
    assert len(told) < 10


SINGLE_MULTI = (("single->multi", 1), ("single->multi", 2))


def test_the_live_table_says_where_a_run_is_made(made: Study) -> None:
    events: list[dict[str, Any]] = []
    node = node_of(made, "single")
    workers._make(made, node, events.append)
    assert [event["event"] for event in events] == ["begin", "done"]
    board = launch._Board(made, [1], 1)
    board.tell(events[0])
    screen = Console(width=200)
    with screen.capture() as shown:
        screen.print(board.table())
    assert f"{platform.node()}:{os.getpid()}" in shown.get()
    assert " where " in shown.get()


def test_the_time_left_falls_while_a_run_is_under_way(
    made: Study, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [node_of(made, arm, 2) for arm in ("multi", "single->multi")]
    forget(copied, *(node.folder for node in left))
    slow = [replace(row, seconds=1000.0) for row in read_rows([copied]).values()]
    write_rows(copied, slow)
    now = 50.0
    monkeypatch.setattr(launch.time, "monotonic", lambda: now)
    board = launch._Board(open_study(copied), [1, 2], 2)
    assert board.eta() == "about 16:40 left"  # two runs, two processes
    board.tell({"event": "begin", "run": left[0].id})
    now += 600.0
    assert board.eta() == "about 11:40 left"
    now += 600.0
    assert board.eta() == "about 8:20 left"  # it takes longer, but nothing from the other
    board.tell({"event": "begin", "run": left[1].id})
    now += 1000.0
    assert board.eta() == "about 0:00 left"


def test_the_time_of_measured_runs_is_told_while_other_kinds_are_not_measured(
    made: Study, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [node_of(made, arm, seed) for arm, seed in (("multi", 2), *SINGLE_MULTI)]
    forget(copied, *(node.folder for node in left))
    write_rows(copied, [replace(r, seconds=30.0) for r in read_rows([copied]).values()])
    now = 50.0
    monkeypatch.setattr(launch.time, "monotonic", lambda: now)
    board = launch._Board(open_study(copied), [1, 2], 1)
    said = "3 left, 2 of them of a kind not measured yet, about 0:30 for the others"
    assert board.eta() == said
    board.tell({"event": "begin", "run": left[1].id})  # which is one of the two
    now += 20.0
    assert board.eta() == said


def test_the_time_left_says_that_settings_are_still_to_be_chosen(made: Study, copied: Path) -> None:
    forget(copied, node_of(made, "multi", 2).folder)
    write_rows(copied, [replace(r, seconds=30.0) for r in read_rows([copied]).values()])
    board = launch._Board(open_study(copied), [1, 2], 1)
    board.study = replace(board.study, graph=replace(board.study.graph, pending=True))
    assert board.eta() == "about 0:30 left, more when settings are chosen"


def test_an_error_of_a_worker_is_the_studys(
    slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    spec = open_study(slow, out=out)
    studying.begin(spec)
    (out / "runs").write_text("in the way")
    with pytest.raises((UserError, WorldError), match=r"cannot write"):
        run_study(slow, out=out, jobs=2)


# --- what is refused ----------------------------------------------------------------------------


def test_a_folder_made_from_another_file_is_refused_with_the_keys(
    copied: Path, encoder: Path
) -> None:
    path = copied.parent / "tiny.toml"
    text = path.read_text().replace("seeds = 2", 'seeds = 3\nkeep = "all"')
    path.write_text(text.replace("1e-4", "2e-4"))
    with pytest.raises(UserError) as caught:
        open_study(path)
    assert caught.value.message == (
        f"cannot use the study {copied}: it was made from another file: 2 problems\n"
        "  stage.finetune.lr was 0.0001, is 0.0002\n"
        "  keep was not given, is all"
    )
    assert caught.value.hint == (
        f"choose another --out (with `--rows {copied}` runs that are the same count), or give "
        "the file and the --set of the first time"
    )


def test_other_settings_on_the_command_line_are_another_study(made: Study, file: Path) -> None:
    with pytest.raises(UserError, match=r"another file: --set\.lr was not given, is 1\.0"):
        open_study(file, overrides={"lr": 1.0})


def test_settings_without_effect_on_results_do_not_bind_a_folder(made: Study, file: Path) -> None:
    again = open_study(file, overrides={"save_every_s": 60.0})
    assert again.graph.nodes.keys() == made.graph.nodes.keys()


def test_changed_data_are_refused(copied: Path) -> None:
    dev = copied.parent / "tickets-dev.csv"
    dev.write_text(dev.read_text() + "my invoice again,billing\n")
    with pytest.raises(UserError) as caught:
        open_study(copied.parent / "tiny.toml")
    assert caught.value.message == (
        f"cannot go on with the study {copied}: the runs of 'single' are others than when it was "
        "begun, because data, tasks, encoder or presets have changed"
    )


def test_results_are_read_without_data_or_encoder(made: Study, copied: Path) -> None:
    for path in copied.parent.iterdir():
        if path != copied:
            path.unlink()
    shutil.rmtree(copied / "runs")
    assert read_study(copied).results() == made.results()
    assert report_data(read_study(copied))["arms"] == report_data(made)["arms"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "cannot run the study: 0 jobs, expected auto, or 1 or more"),
        ({"executor": "slurm"}, "cannot run the study: executor 'slurm', expected local, ray"),
        ({"seeds": [7]}, "cannot run seed 7 of the study tiny: expected some of 1, 2"),
    ],
)
def test_a_wrong_request_is_refused(file: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run_study(file, **options)
    assert caught.value.message.startswith(message)


def test_a_folder_with_other_files_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError) as caught:
        run_study(file, out=tmp_path)
    assert caught.value.message == (
        f"cannot begin the study in {tmp_path}: the folder holds other files (notes.txt), "
        "expected none"
    )


def test_a_folder_that_is_no_study_is_refused(tmp_path: Path, file: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_study(tmp_path)
    assert caught.value.message == (
        f"cannot open the study {tmp_path}: no study.json in it, expected a study's folder"
    )
    with pytest.raises(UserError, match=r"no study\.json in it"):
        read_study(file, out=tmp_path / "nowhere")


def test_another_format_of_a_study_is_refused(copied: Path) -> None:
    path = copied / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    with pytest.raises(UserError, match=r"cannot open the study .*: format 9, expected 1 \("):
        read_study(copied)


def test_a_report_needs_a_finished_run(file: Path, tmp_path: Path) -> None:
    study = open_study(file, out=tmp_path / "out")
    studying.begin(study)
    with pytest.raises(UserError) as caught:
        report_data(read_study(tmp_path / "out"))
    assert caught.value.message == (
        f"cannot report on the study {tmp_path / 'out'}: no finished run, expected at least one"
    )


def write_rows(study: Path, rows: Iterable[Row]) -> None:
    """Replaces the rows of a study."""
    (study / ROWS).unlink()
    for row in rows:
        append_row(study, row)


def test_provenance_counts_the_runs_of_the_reports_arms_and_what_they_came_from(
    made: Study, copied: Path
) -> None:
    assert report_data(made)["provenance"]["runs"] == 12
    path = change(copied, ('"single", "multi", "single->multi", ', ""), ("seeds = 2", "seeds = 1"))
    rows = made.rows()
    tuned = [node_of(made, "multi+finetune", 1, task) for task in ("tickets", "urgency")]
    ids = {*(node.id for node in tuned), *(node.start for node in tuned)}
    study = run_study(path)
    foreign = [replace(row, train_s=1e6, git_commit="other") for row in rows.values()]
    write_rows(study.path, [rows[run] for run in ids])
    other = copied.parent / "other"
    other.mkdir()
    for row in foreign:
        append_row(other, row)
    found = report_data(read_study(study.path, others=[other]))["provenance"]
    assert found["runs"] == 3  # two finetuned, and the run that both start from
    assert found["train_s"] == pytest.approx(sum(rows[run].train_s for run in ids))
    assert found["git_commits"] == [rows[run].git_commit for run in ids][:1]


def test_the_report_names_the_encoder_and_no_path_of_this_machine(
    made: Study, file: Path, encoder: Path, tmp_path: Path
) -> None:
    study = open_study(file, out=tmp_path / "out", overrides={"encoder": str(encoder)})
    studying.begin(study)
    data = report_data(read_study(study.path, others=[made.path]))
    assert data["provenance"]["encoder"] == encoder.name
    assert data["command"] == f"outshine study run tiny.toml --set encoder={encoder.name}"


def test_arms_from_unlike_machines_are_warned_of(made: Study, copied: Path) -> None:
    assert not any("not the same" in warning for warning in report_data(made)["warnings"])
    rows = made.rows()
    taught = {node_of(made, "single->multi", seed).id for seed in (1, 2)}
    one = node_of(made, "single->multi").id
    write_rows(
        copied,
        [
            replace(
                row,
                device="GPU" if run in taught else "CPU",
                precision="bf16" if run == one else "fp32",
            )
            for run, row in rows.items()
        ],
    )
    said = [
        "device is not the same in all arms, so that scores may differ by it: single: CPU; "
        "multi: CPU; single->multi: GPU; multi+finetune: CPU",
        "precision is not the same in all arms, so that scores may differ by it: single: fp32; "
        "multi: fp32; single->multi: bf16, fp32; multi+finetune: fp32",
    ]
    assert [w for w in report_data(read_study(copied))["warnings"] if "not the same" in w] == said
    assert not any("not the same" in w for w in compare(copied, "multi", "single")["warnings"])
    for margin in (None, 1.0):
        found = compare(copied, "single->multi", "single", margin=margin)
        assert [w for w in found["warnings"] if "not the same" in w] == [
            "device is not the same in all arms, so that scores may differ by it: "
            "single->multi: GPU; single: CPU",
            "precision is not the same in all arms, so that scores may differ by it: "
            "single->multi: bf16, fp32; single: fp32",
        ]


def test_an_arm_that_lacks_a_version_is_warned_of(made: Study, copied: Path) -> None:
    taught = {node_of(made, "single->multi", seed).id for seed in (1, 2)}
    write_rows(
        copied,
        [
            replace(row, versions={"torch": "2"} | ({} if run in taught else {"kernels": "1"}))
            for run, row in made.rows().items()
        ],
    )
    assert [w for w in report_data(read_study(copied))["warnings"] if "not the same" in w] == [
        "kernels is not the same in all arms, so that scores may differ by it: single: 1; "
        "multi: 1; single->multi: not recorded; multi+finetune: 1"
    ]


# --- commands -----------------------------------------------------------------------------------


@pytest.fixture
def call() -> Iterator[Callable[..., Any]]:
    def invoke(*words: Any, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == code, result.output
        return result

    yield invoke


def test_plan_counts_what_is_done_and_left(made: Study, call: Callable[..., Any]) -> None:
    facts = json.loads(call("study", "plan", made.path, "--json").stdout)
    assert (facts["runs"], facts["done"], facts["left"]) == (12, 12, 0)
    assert facts["seconds_left"] == 0.0 and facts["unmeasured"] == 0
    assert [kind["chain"] for kind in facts["kinds"]] == [
        "single",
        "single",
        "multi",
        "single->multi",
        "multi+finetune",
        "multi+finetune",
    ]
    assert any("2 against 2 seeds cannot show a difference at 5 %" in w for w in facts["warnings"])
    shown = call("study", "plan", made.path)
    assert "single->multi" in shown.stdout
    assert "0 of 12 runs are left" in shown.stderr


def test_plan_estimates_the_time_of_runs_like_those_measured(
    made: Study, copied: Path, call: Callable[..., Any]
) -> None:
    forget(copied, node_of(made, "multi").folder, node_of(made, "single->multi").folder)
    rows = made.rows()
    facts = json.loads(call("study", "plan", copied, "--json").stdout)
    seconds = [rows[node_of(made, arm, 2).id].seconds for arm in ("multi", "single->multi")]
    assert facts["left"] == 2
    assert facts["seconds_left"] == pytest.approx(sum(seconds), abs=0.1)
    assert {entry["chain"] for entry in facts["to_make"]} == {"multi", "single->multi"}


def test_the_time_of_cheaper_runs_is_no_estimate(made: Study) -> None:
    left, rows = [node_of(made, "single", 2)], made.rows()
    like = [row for row in rows.values() if row.stage == "single" and row.tasks == ("tickets",)]
    expected = sum(row.seconds for row in like) / 2
    assert seconds_left(left, rows) == (pytest.approx(expected), 0)
    for other in ({"max_steps": 1}, {"max_train_rows": 5}, {"encoder": "smaller"}):
        cheap = {run: replace(row, settings=row.settings | other) for run, row in rows.items()}
        assert seconds_left(left, cheap) == (0.0, 1)


def test_a_dry_run_trains_nothing(file: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    out = tmp_path / "out"
    facts = json.loads(call("study", "run", file, "--out", out, "--dry-run", "--json").stdout)
    assert facts["left"] == 12 and facts["unmeasured"] == 12
    assert not out.exists()


def test_report_has_the_contracts_form_and_writes_every_format(
    copied: Path, call: Callable[..., Any]
) -> None:
    found = json.loads(call("study", "report", copied, "--json").stdout)
    score = found["arms"]["single"]["score"]
    assert {"n", "median", "mean", "std"} <= set(score) and score["n"] == 2
    assert set(found["arms"]["single"]["tasks"]) == {"tickets", "urgency"}
    keys = {"a", "b", "task", "difference", "ci", "p", "p_holm", "test"}
    assert all(keys <= set(comparison) for comparison in found["comparisons"])
    assert {path.name for path in copied.glob("report.*")} == {
        f"report.{end}" for end in ("md", "tex", "csv", "json", "html")
    }
    assert found["command"] == "outshine study run tiny.toml"
    assert call("study", "report", copied, "--format", "markdown").stdout.startswith("#")


def test_compare_tests_two_arms(made: Study, call: Callable[..., Any]) -> None:
    found = json.loads(call("compare", made.path, "single->multi", "single", "--json").stdout)
    assert {c["task"] for c in found["comparisons"]} == {"tickets", "urgency", "score"}
    assert {(c["a"], c["b"]) for c in found["comparisons"]} == {("single->multi", "single")}
    assert found == json.loads(json.dumps(compare(made, "single->multi", "single")))
    shown = call("compare", made.path, "single->multi", "single")
    assert "points" in shown.stdout
    assert all(method in shown.stderr for method in found["methods"].values())


def test_a_pair_that_was_named_does_not_enlarge_its_family(made: Study) -> None:
    named = compare(made, "single", "single->multi")["comparisons"]
    other = compare(made, "multi", "single->multi")["comparisons"]
    score = [next(c for c in found if c["task"] == "score") for found in (named, other)]
    assert score[0]["p_holm"] <= 3 * score[0]["p"] + 1e-9
    assert score[1]["p_holm"] <= 4 * score[1]["p"] + 1e-9


def test_compare_by_margin_answers_the_users_question(
    made: Study, call: Callable[..., Any]
) -> None:
    words = ("compare", made.path, "single->multi", "single", "--margin", "100")
    found = json.loads(call(*words, "--json").stdout)
    assert found["verdict"] == "not worse by more than the margin" or found["verdict"] == "better"
    rows = made.rows()
    for task in ("tickets", "urgency"):
        means = [
            np.mean([rows[node_of(made, arm, seed, task).id].primary(task) for seed in (1, 2)])
            for arm in ("single->multi", "single")
        ]
        assert found["tasks"][task]["difference"] == pytest.approx(100 * (means[0] - means[1]))
    assert "margin 100 points" in call(*words).stdout


def test_a_margin_has_the_warnings_of_both_arms(made: Study, copied: Path) -> None:
    sound = [replace(row, degenerate={}) for row in made.rows().values()]
    bad = node_of(made, "single", 2).id
    lacking = {node_of(made, "single->multi", 1).id, node_of(made, "multi", 1).id}
    write_rows(
        copied,
        [
            replace(row, degenerate={"tickets": "it failed"}) if row.run == bad else row
            for row in sound
            if row.run not in lacking
        ],
    )
    assert compare(copied, "single->multi", "single", margin=1.0)["warnings"] == [
        "one seed: the interval covers the choice of dev rows, not how seeds vary",
        "single, tickets: 1 of 2 runs degenerate (seed 2), counted like all",
        "single->multi: 1 of 2 planned seeds are complete",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("single", "mutli"),
            "no arm 'mutli' in the study tiny (did you mean 'multi'?), expected one of single, "
            "multi, single->multi, multi+finetune",
        ),
        (("single", "single"), "cannot compare 'single' with itself: expected two arms"),
    ],
)
def test_compare_refuses_arms_that_are_not_two(
    made: Study, call: Callable[..., Any], words: tuple[str, str], message: str
) -> None:
    assert message in call("compare", made.path, *words, code=2).stderr


def test_a_margin_needs_the_predictions(copied: Path, made: Study) -> None:
    folder = node_of(made, "single").folder
    shutil.rmtree(copied / folder)
    with pytest.raises(UserError) as caught:
        compare(copied, "single", "multi", margin=1.0)
    assert caught.value.message.startswith(
        f"cannot compare by margin: no predictions of {folder} on tickets, expected "
    )


def test_a_margin_needs_finished_runs(copied: Path, made: Study) -> None:
    forget(copied, node_of(made, "multi", 1).folder, node_of(made, "multi", 2).folder)
    with pytest.raises(UserError) as caught:
        compare(copied, "single", "multi", margin=1.0)
    assert caught.value.message == (
        "cannot compare by margin: no finished run of 'multi' on tickets"
    )


@pytest.mark.parametrize(
    ("text", "seeds"), [("1-3", (1, 2, 3)), ("2", (2,)), ("1-2,5", (1, 2, 5)), (None, None)]
)
def test_seeds_are_numbers_or_ranges(text: str | None, seeds: tuple[int, ...] | None) -> None:
    from outshine.cli_study import parse_seeds

    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "cannot read --seeds 'x': 'x', expected numbers or ranges"),
        ("1-", "cannot read --seeds '1-': '1-', expected numbers or ranges"),
        ("5-1", "cannot read --seeds '5-1': no seed, expected at least one"),
    ],
)
def test_other_seeds_are_refused(text: str, message: str) -> None:
    from outshine.cli_study import parse_seeds

    with pytest.raises(UserError) as caught:
        parse_seeds(text)
    assert caught.value.message == message


def test_the_public_names_are_there() -> None:
    assert outshine.run_study is run_study
    assert outshine.compare is compare


# --- size ---------------------------------------------------------------------------------------


@pytest.fixture
def finished_200(tmp_path: Path, encoder: Path, made: Study) -> Path:
    """A study of 200 finished runs: rows alone, made up from those of a real one."""
    file = write_study(tmp_path, study_text(encoder, "seeds = 50"))
    study = open_study(file)
    studying.begin(study)
    like = {row.chain + "".join(row.tasks): row for row in made.rows().values()}
    for node in study.graph.nodes.values():
        names = tuple(task.name for task in node.tasks)
        row = replace(
            like[node.chain + "".join(names)],
            run=node.id,
            folder=node.folder,
            seed=node.cfg.seed,
            curve=[[i, 0.1, 0.2, 0.3] for i in range(60)],
        )
        append_row(study.path, row)
    assert len(study.graph.nodes) == 200
    return study.path


def cpu_seconds(*words: str) -> float:
    """Processor time of a command; the clock would tell what else the machine does."""
    before = os.times()
    process = start(*words)
    _, said = process.communicate()
    assert process.returncode == 0, said
    after = os.times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )


def test_a_study_of_200_runs_plans_in_2_seconds_and_reports_in_10(finished_200: Path) -> None:
    assert plan_facts(open_study(finished_200))["done"] == 200
    assert cpu_seconds("study", "plan", str(finished_200)) < 2
    assert cpu_seconds("study", "report", str(finished_200)) < 10


def test_chosen_seeds_keep_the_studys_order(made: Study) -> None:
    assert chosen_seeds(made, None) == (1, 2)
    assert chosen_seeds(made, [2, 1]) == (1, 2)
