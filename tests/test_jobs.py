"""How many processes make the runs of a study: measured, and what each gets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from outshine import jobs, launch, run_study
from outshine.errors import UserError
from outshine.graph import Node
from outshine.jobs import choose_jobs, gpus_for, worker_environment
from outshine.plan import to_make
from outshine.results import read_rows
from outshine.study import Study, begin, open_study
from outshine.workers import request
from studies import alike, study_text, write_study


@pytest.fixture
def study(tmp_path: Path, encoder: Path) -> Study:
    """Twelve runs, none of them made."""
    made = open_study(write_study(tmp_path, study_text(encoder, "seeds = 3")))
    begin(made)
    return made


def left(study: Study) -> list[Node]:
    return to_make(study, study.spec.seeds, study.rows())


def choose(study: Study) -> int:
    return choose_jobs(study, left(study), request(study, study.spec.seeds, None))


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, visible: str | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


class Rates:
    """Stands in for the measured processes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rates: Mapping[int, float], room: int = 99):
        self.rates, self.room, self.asked = rates, room, list[tuple[int, int]]()
        self.environments: list[Mapping[str, str]] = []
        monkeypatch.setattr(jobs, "_start", self.start)
        monkeypatch.setattr(jobs, "_measure", self.measure)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def start(self, given: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
        self.environments.append(environment)
        return self

    def kill(self) -> None: ...

    def communicate(self) -> None: ...

    def measure(self, trials: list[Any], threads: int) -> list[dict[str, Any]] | None:
        count = len(trials)
        self.asked.append((count, threads))
        if count not in self.rates:
            return None
        rows = self.rates[count] / count * 2.0
        return [{"rows": rows, "seconds": 2.0, "room": self.room}] * count


@pytest.mark.parametrize(
    ("rates", "asked", "best"),
    [
        ({1: 100.0, 2: 180.0, 4: 190.0}, [(1, 8), (2, 4), (4, 2)], 2),
        ({1: 100.0, 2: 180.0, 4: 300.0, 8: 400.0}, [(1, 8), (2, 4), (4, 2), (8, 1)], 8),
        ({1: 100.0, 2: 109.0, 4: 400.0}, [(1, 8), (2, 4)], 1),
        ({1: 100.0, 2: 111.0, 4: 121.0}, [(1, 8), (2, 4), (4, 2)], 2),
        ({1: 100.0, 2: 180.0}, [(1, 8), (2, 4), (4, 2)], 2),  # four do not fit
        ({}, [(1, 8)], 1),
    ],
)
def test_processes_are_doubled_while_it_pays(
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    rates: dict[int, float],
    asked: list[tuple[int, int]],
    best: int,
) -> None:
    measured = Rates(monkeypatch, rates)
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 8)
    assert choose(study) == best
    assert measured.asked == asked
    assert len(measured.environments) == asked[-1][0]  # those that run already go on


def test_no_more_processes_than_runs_or_memory(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {2**i: 100.0 * 2**i for i in range(8)}
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 64)
    assert len(left(study)) == 12
    Rates(monkeypatch, rates)
    assert choose(study) == 8
    Rates(monkeypatch, rates, room=2)
    assert choose(study) == 4  # two more fitted beside the two, four more did not beside the four
    Rates(monkeypatch, rates, room=0)
    assert choose(study) == 1


def test_each_gpu_has_as_many_processes(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2, "3,5")
    measured = Rates(monkeypatch, {2: 100.0, 4: 190.0, 8: 200.0}, room=2)
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 16)
    assert choose(study) == 4
    assert measured.asked == [(2, 8), (4, 4), (8, 2)]
    places = [each["CUDA_VISIBLE_DEVICES"] for each in measured.environments]
    assert places == ["3", "5"] * 4


def test_the_largest_run_is_measured(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Mapping[str, Any]] = []

    def start(asked: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
        given.append(asked)
        return measured

    measured = Rates(monkeypatch, {})
    monkeypatch.setattr(jobs, "_start", start)
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 4)
    choose(study)
    assert study.graph.nodes[given[0]["run"]].chain == "multi"


@pytest.mark.parametrize(
    ("count", "visible", "device", "gpus"),
    [
        (0, None, "auto", []),
        (2, None, "auto", ["0", "1"]),
        (2, "4,7", "cuda", ["4", "7"]),
        (1, "GPU-8f2a", "auto", ["GPU-8f2a"]),
        (0, "", "auto", []),
        (2, None, "cuda:1", []),
        (2, None, "cpu", []),
    ],
)
def test_gpus_are_shared_unless_a_run_names_its_own(
    tmp_path: Path,
    encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    visible: str | None,
    device: str,
    gpus: list[str],
) -> None:
    made = open_study(write_study(tmp_path, study_text(encoder)), overrides={"device": "cpu"})
    nodes = [
        Node(**{**vars(n), "cfg": n.cfg.model_copy(update={"device": device})}) for n in left(made)
    ]
    with_gpus(monkeypatch, count, visible)
    assert gpus_for(nodes) == gpus
    assert gpus_for([]) == []


def test_a_worker_gets_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert worker_environment(1, 3, []) == {"OMP_NUM_THREADS": "2"}
    assert worker_environment(0, 20, [])["OMP_NUM_THREADS"] == "1"
    assert worker_environment(4, 6, ["2", "6", "7"])["CUDA_VISIBLE_DEVICES"] == "6"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert worker_environment(1, 3, []) == {"OMP_NUM_THREADS": "5"}


def test_measuring_for_real_leaves_nothing_behind(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "MEASURE_S", 0.3)
    monkeypatch.setattr(jobs, "WORTH", 0.0)
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 2)
    before = sorted(study.path.rglob("*"))
    assert choose(study) == 2
    said = capsys.readouterr().err
    assert "note: --jobs 2, by the rate of so many processes together (1: " in said
    assert sorted(study.path.rglob("*")) == before
    words = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert not [line for line in words if jobs._TRIAL in line]


def test_a_run_that_cannot_be_measured_is_made_by_one_process(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in study.files_dir.glob("*.csv"):
        path.unlink()
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 2)
    assert choose(study) == 1


def test_auto_makes_the_same_runs(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "choose_jobs", lambda *_: 2)
    run_study(study.path, jobs="auto")
    alone = run_study(study.files_dir / study.source, out=study.files_dir / "alone")
    assert alike(read_rows([study.path])) == alike(alone.rows())


@pytest.mark.parametrize(
    ("gpus", "executor", "few", "number"),
    [(0, "local", 1, 1), (2, "local", 1, 7), (2, "local", 20, 2), (2, "ray", 1, 1)],
)
def test_a_gpu_is_shared_without_being_asked_where_it_pays(
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    executor: str,
    few: int,
    number: int,
) -> None:
    with_gpus(monkeypatch, gpus)
    monkeypatch.setattr(launch, "MIN_RUNS", few)
    monkeypatch.setattr(launch, "choose_jobs", lambda *_: 7)
    found = launch._number_of_jobs(study, (1, 2, 3), left(study), None, executor, None)
    assert found == number


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": "many"}, "cannot run the study: many jobs, expected auto, or 1 or more"),
        ({"jobs": "auto", "executor": "ray"}, "cannot run the study: auto jobs on Ray"),
    ],
)
def test_a_wrong_number_is_refused(study: Study, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run_study(study.path, **options)
    assert caught.value.message.startswith(message)
    assert json.loads((study.path / "study.json").read_text())["name"] == "tiny"
