"""Teachers, multi-task model, student and table in one go, with tiny models."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import write_duplicate, write_tickets, write_urgency
from outshine import costs, distillation
from outshine.distillation import ARMS, STUDENT, Distillation, distill
from outshine.errors import UserError
from outshine.evaluation import evaluate
from outshine.files import read_json
from outshine.metrics import standard_error
from outshine.predictions import Predictions
from outshine.readers import read_rows
from outshine.runs import Run
from outshine.tasks import Task

SETTINGS = {"max_steps": 3, "batch_size": 8, "device": "cpu", "lr": 1e-3}


@pytest.fixture(scope="module", autouse=True)
def _cost_in_a_moment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "ALONE_S", 0.05)
        patch.setattr(costs, "BATCHED_S", 0.05)
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    folder = tmp_path_factory.mktemp("tasks")
    return [Task.load(write(folder)) for write in (write_tickets, write_urgency, write_duplicate)]


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tasks: list[Task], encoder: Path
) -> Distillation:
    """Distilled once; tests that change its folder copy it first."""
    out = tmp_path_factory.mktemp("distilled")
    return distill(tasks, encoder=str(encoder), out=out, settings=SETTINGS)


@pytest.fixture
def copied(made: Distillation, tmp_path: Path) -> Path:
    """A copy whose student finds its teachers in the copy."""
    return shutil.copytree(made.path, tmp_path / "copy")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the folders in which `distill` trains from now on."""
    paths: list[str] = []
    train = distillation.train

    def note(*args: Any, **kwargs: Any) -> Run:
        paths.append(Path(kwargs["out"]).name)
        return train(*args, **kwargs)

    monkeypatch.setattr(distillation, "train", note)
    return paths


def test_distill_leaves_a_run_per_teacher_a_multi_task_run_and_a_student(
    made: Distillation, tasks: list[Task]
) -> None:
    assert sorted(made.teachers) == sorted(task.name for task in tasks)
    for run in (*made.teachers.values(), made.multi, made.student):
        assert run.is_complete
    assert made.student.config()["teachers"] == {
        name: [str(run.path)] for name, run in made.teachers.items()
    }
    assert made.multi.config()["teachers"] == {}


def test_teachers_keep_the_train_logits_that_taught_the_student(
    made: Distillation, tasks: list[Task]
) -> None:
    for task in tasks:
        cached = Predictions.load(made.teachers[task.name].predictions_path(task.name, "train"))
        assert len(cached.ids) == 48 * (2 if task.symmetric else 1)
        assert np.isfinite(cached.logits).all()


def test_results_equal_what_eval_says(made: Distillation, tasks: list[Task]) -> None:
    evaluated = {
        arm: evaluate(run) for arm, run in ((ARMS[1], made.multi), (STUDENT, made.student))
    }
    for arm, found in evaluated.items():
        for task in tasks:
            entry = dict(made.results["tasks"][task.name]["arms"][arm]["dev"])
            entry.pop("standard_error")
            assert entry == pytest.approx(found["tasks"][task.name])
        assert made.results["score"][arm]["value"] == pytest.approx(found["score"])
    for task in tasks:
        single = dict(made.results["tasks"][task.name]["arms"]["single"]["dev"])
        single.pop("standard_error")
        assert single == pytest.approx(made.teachers[task.name].metrics()[task.name]["dev"])


def test_standard_error_is_that_of_the_saved_dev_predictions(
    made: Distillation, tasks: list[Task]
) -> None:
    task = tasks[0]
    saved = Predictions.load(made.student.predictions_path(task.name, "dev"))
    gold = np.array([row.gold for row in read_rows(task, "dev")])
    expected = standard_error("accuracy", gold, saved.logits.argmax(axis=1))
    arms = made.results["tasks"][task.name]["arms"]
    assert arms[STUDENT]["dev"]["standard_error"] == pytest.approx(expected)
    errors = [
        entry["arms"]["multi"]["dev"]["standard_error"] for entry in made.results["tasks"].values()
    ]
    total = math.sqrt(sum(error**2 for error in errors)) / 3
    assert made.results["score"]["multi"]["standard_error"] == pytest.approx(total)


def test_results_file_holds_all_and_no_path_outside(made: Distillation) -> None:
    assert read_json(made.path / "results.json") == json.loads(json.dumps(made.results))
    assert made.results["seed"] == 1
    assert made.results["teachers"]["tickets"] == ["teachers/tickets"]
    assert set(made.results["runs"]) == {
        "teachers/tickets",
        "teachers/urgency",
        "teachers/duplicate",
        "multi",
        "student",
    }
    assert made.results["settings"]["single"]["lr"] == 1e-3
    assert {"device", "num_threads", "versions"} <= made.results["machine"].keys()


def test_cost_compares_one_model_with_one_per_task(made: Distillation) -> None:
    cost = made.results["cost"]
    assert (cost["num_tasks"], cost["num_models"], cost["rounds"]) == (3, 3, 5)
    # tickets and urgency read the same column, duplicate reads two others
    assert cost["num_inputs"] == 2
    assert 2.5 < cost["teachers"]["megabytes"] / cost["student"]["megabytes"] < 3.1
    for side in ("student", "teachers"):
        assert cost[side]["ms_per_row"] > 0
        assert cost[side]["rows_per_s"] > 0


def test_again_with_the_same_settings_trains_nothing(
    made: Distillation, tasks: list[Task], encoder: Path, trained: list[str]
) -> None:
    again = distill(tasks, encoder=str(encoder), out=made.path, settings=SETTINGS)
    assert trained == []
    assert again.results["tasks"] == made.results["tasks"]


def test_only_the_missing_run_is_trained(
    made: Distillation, tasks: list[Task], encoder: Path, trained: list[str], copied: Path
) -> None:
    shutil.rmtree(copied / "student")
    again = distill(tasks, encoder=str(encoder), out=copied, settings=SETTINGS)
    assert trained == ["student"]
    assert again.results["tasks"] == made.results["tasks"]


def test_a_complete_run_with_other_settings_is_refused(
    tasks: list[Task], encoder: Path, copied: Path, trained: list[str]
) -> None:
    with pytest.raises(UserError, match=r"settings\.lr was 0\.001, is 0\.002") as caught:
        distill(tasks, encoder=str(encoder), out=copied, settings=SETTINGS | {"lr": 2e-3})
    assert str(copied / "teachers" / "tickets") in caught.value.message
    assert "--force" in caught.value.hint
    assert trained == []


def test_force_trains_all_anew(
    tasks: list[Task], encoder: Path, copied: Path, trained: list[str]
) -> None:
    changed = SETTINGS | {"lr": 2e-3}
    again = distill(tasks, encoder=str(encoder), out=copied, settings=changed, force=True)
    assert trained == ["tickets", "urgency", "duplicate", "multi", "student"]
    assert again.student.config()["settings"]["lr"] == 2e-3


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_complete_run_of_other_data_is_refused(
    split: str, tmp_path: Path, encoder: Path, trained: list[str]
) -> None:
    files = [write(tmp_path / "tasks") for write in (write_tickets, write_urgency)]
    out = tmp_path / "out"
    distill([Task.load(f) for f in files], encoder=str(encoder), out=out, settings=SETTINGS)
    with (tmp_path / "tasks" / f"urgency-{split}.csv").open("a") as file:
        file.write("the printer is on fire,5\n")
    trained.clear()
    with pytest.raises(UserError, match=r"data\.urgency was \w{12}, is \w{12}"):
        distill([Task.load(f) for f in files], encoder=str(encoder), out=out, settings=SETTINGS)
    assert trained == []


def test_a_ready_made_teacher_is_not_trained(
    made: Distillation, tasks: list[Task], encoder: Path, tmp_path: Path, trained: list[str]
) -> None:
    teachers = {"tickets": made.teachers["tickets"]}
    again = distill(
        tasks, encoder=str(encoder), out=tmp_path / "out", settings=SETTINGS, teachers=teachers
    )
    assert trained == ["urgency", "duplicate", "multi", "student"]
    arms = [one.results["tasks"]["tickets"]["arms"]["single"] for one in (made, again)]
    assert arms[0] == arms[1]
    assert again.results["cost"]["num_models"] == 3


def test_a_table_of_probabilities_teaches_but_has_no_dev_score(
    tasks: list[Task], encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "tickets.csv"
    table.write_text("id,billing,tech,other\n" + "".join(f"{i},0.5,0.3,0.2\n" for i in range(48)))
    again = distill(
        tasks[:2],
        encoder=str(encoder),
        out=tmp_path / "out",
        settings=SETTINGS,
        teachers={"tickets": table},
    )
    assert again.results["tasks"]["tickets"]["arms"]["single"] == {}
    assert again.results["score"]["single"] is None
    assert again.results["cost"] is None
    printed = capsys.readouterr().err
    assert "cost: not measured, because fewer than two teachers are runs" in printed


def test_stage_settings_reach_their_stage_and_win_over_common_ones(
    tasks: list[Task], encoder: Path, tmp_path: Path
) -> None:
    made = distill(
        tasks[:2],
        encoder=str(encoder),
        out=tmp_path / "out",
        settings={"max_steps": 2, "device": "cpu", "task_weight": {"urgency": 2.0}},
        single={"lr": 1e-4, "max_steps": 3},
        multi={"lr": 2e-4, "batch_size": 16},
        student={"anneal": "cosine"},
    )
    found = {
        name: run.config()["settings"]
        for name, run in (*made.teachers.items(), ("multi", made.multi), ("student", made.student))
    }
    assert [found[name]["lr"] for name in ("tickets", "multi", "student")] == [1e-4, 2e-4, 2e-4]
    assert [found[name]["batch_size"] for name in ("multi", "student")] == [16, 16]
    assert [found[name]["anneal"] for name in ("multi", "student")] == ["linear", "cosine"]
    steps = {name: settings["max_steps"] for name, settings in found.items()}
    assert steps == {"tickets": 3, "urgency": 3, "multi": 2, "student": 2}
    assert [found[name]["task_weight"] for name in ("tickets", "urgency", "student")] == [
        {},
        {"urgency": 2.0},
        {"urgency": 2.0},
    ]


def test_the_table_shows_every_arm_in_percent_with_its_standard_error(
    made: Distillation, capsys: pytest.CaptureFixture[str]
) -> None:
    distillation.show_results(made.results)
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    tickets = next(line for line in lines if line.startswith("tickets"))
    arms = made.results["tasks"]["tickets"]["arms"]
    for arm in ARMS:
        dev = arms[arm]["dev"]
        assert f"{100 * dev['accuracy']:.1f} ± {100 * dev['standard_error']:.1f}" in tickets
    assert tickets.split()[-1] == "24"
    assert any(line.startswith("score") for line in lines)
    assert any("megabytes on disk" in line for line in lines)


def test_bad_requests_are_refused_before_anything_is_written(
    tasks: list[Task], encoder: Path, tmp_path: Path, made: Distillation
) -> None:
    out = tmp_path / "out"
    cases: list[tuple[str, Callable[[], Any]]] = [
        (
            "cannot distil tickets alone: one task, expected two or more",
            lambda: distill(tasks[:1], encoder=str(encoder), out=out),
        ),
        (
            "cannot distil tickets: no dev split",
            lambda: distill(
                [tasks[0].model_copy(update={"files": {"train": "x.csv"}}), tasks[1]],
                encoder=str(encoder),
                out=out,
            ),
        ),
        (
            'cannot distil with keep = "metrics": expected keep = "all"',
            lambda: distill(tasks, encoder=str(encoder), out=out, settings={"keep": "metrics"}),
        ),
        (
            "no encoder given",
            lambda: distill(tasks, out=out),
        ),
        (
            r"unknown key 'lrr' \(did you mean 'lr'\?\)",
            lambda: distill(tasks, encoder=str(encoder), out=out, student={"lrr": 1}),
        ),
        (
            "cannot use a teacher for 'rte': no such task",
            lambda: distill(tasks, encoder=str(encoder), out=out, teachers={"rte": "x"}),
        ),
        (
            "it is a run, expected a folder for several runs",
            lambda: distill(tasks, encoder=str(encoder), out=made.student.path),
        ),
        (
            "cannot use task_weight: no task 'ticket'",
            lambda: distill(
                tasks, encoder=str(encoder), out=out, settings={"task_weight": {"ticket": 1.0}}
            ),
        ),
    ]
    for message, call in cases:
        with pytest.raises(UserError, match=message):
            call()
    assert not out.exists()


def test_a_broken_file_of_the_last_task_is_met_before_any_training(
    tmp_path: Path, encoder: Path, trained: list[str]
) -> None:
    files = [write(tmp_path / "tasks") for write in (write_tickets, write_urgency)]
    with (tmp_path / "tasks" / "urgency-dev.csv").open("a") as file:
        file.write("far too urgent,99\n")
    with pytest.raises(UserError, match=r"label '99', expected a number from 0 to 5"):
        distill([Task.load(f) for f in files], encoder=str(encoder), out=tmp_path / "out")
    assert trained == []
    assert not (tmp_path / "out").exists()


def test_the_student_can_start_from_its_teachers(
    tasks: list[Task], encoder: Path, tmp_path: Path
) -> None:
    chosen, start = tasks[:2], {"init": "teachers"}
    given = distill(chosen, encoder=str(encoder), out=tmp_path, settings=SETTINGS, student=start)
    assert given.student.config()["settings"]["init"] == "teachers"
    assert given.multi.config()["settings"]["init"] == "encoder"


def test_a_student_that_cannot_start_from_its_teachers_is_refused_before_any_training(
    tasks: list[Task], encoder: Path, made: Distillation, tmp_path: Path
) -> None:
    ready = {task.name: made.teachers[task.name] for task in tasks[:2]}
    common = {"encoder": str(encoder), "out": tmp_path / "out", "settings": SETTINGS}
    start = {"init": "teachers", "pooling": "mean"}
    with pytest.raises(UserError) as caught:
        distill(tasks[:2], student=start, **common)
    assert caught.value.message == (
        'cannot distil with init = "teachers": the teachers have pooling auto, expected mean'
    )
    with pytest.raises(UserError, match="pooling auto, expected mean"):
        distill(tasks[:2], student=start, teachers=ready, **common)
    assert not (tmp_path / "out").exists()
