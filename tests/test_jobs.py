"""How many processes make the runs of a study: measured, and what each gets."""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from typer.testing import CliRunner

from outshine import jobs, launch, run_study, training
from outshine.cli import app
from outshine.config import TrainConfig
from outshine.errors import UserError, WorldError
from outshine.graph import Node
from outshine.jobs import choose_jobs, gpus_for, worker_environment
from outshine.plan import to_make
from outshine.results import read_rows
from outshine.study import Study, begin, open_study
from outshine.workers import request, serve
from studies import alike, study_text, write_study


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores and no GPU."""
    with_gpus(monkeypatch, 0)
    monkeypatch.setattr(jobs, "num_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


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


def on(node: Node, device: str) -> TrainConfig:
    return node.cfg.model_copy(update={"device": device})


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, visible: str | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


class Rates:
    """Stands in for the measured processes: number of them -> rows a second of all."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        rates: Mapping[int, float],
        room: float = 99.0,
        gpu_room: float = 99.0,
    ) -> None:
        self.rates, self.rooms = rates, {"room": room, "gpu_room": gpu_room}
        self.asked: list[tuple[int, int]] = []
        self.given: list[Mapping[str, Any]] = []
        self.environments: list[Mapping[str, str]] = []
        monkeypatch.setattr(jobs, "_start", self.start)
        monkeypatch.setattr(jobs, "_measure", self.measure)

    def start(self, given: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
        self.given.append(given)
        self.environments.append(environment)
        return self

    def kill(self) -> None: ...

    def communicate(self) -> None: ...

    def measure(self, trials: list[Any], threads: int) -> list[dict[str, Any]]:
        count = len(trials)
        self.asked.append((count, threads))
        if count not in self.rates:
            return [{"error": "OutOfMemoryError: full"}] * count
        return [{"rows": self.rates[count] / count * 2.0, "seconds": 2.0, **self.rooms}] * count


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
    assert choose(study) == best
    assert measured.asked == asked
    assert len(measured.environments) == asked[-1][0]  # those that run already go on


def test_no_more_processes_than_runs_or_memory(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {2**i: 100.0 * 2**i for i in range(8)}
    monkeypatch.setattr(jobs, "num_cores", lambda: 64)
    assert len(left(study)) == 12
    Rates(monkeypatch, rates)
    assert choose(study) == 8
    Rates(monkeypatch, rates, room=2.9)
    assert choose(study) == 4  # two more fitted beside the two, four more did not beside the four
    Rates(monkeypatch, rates, room=0.9)
    assert choose(study) == 1


def test_each_gpu_has_as_many_processes(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2, "3,5")
    measured = Rates(monkeypatch, {2: 100.0, 4: 190.0, 8: 200.0})
    assert choose(study) == 4
    assert measured.asked == [(2, 4), (4, 2), (8, 1)]
    places = [each["CUDA_VISIBLE_DEVICES"] for each in measured.environments]
    assert places == ["3", "5"] * 4


def test_memory_of_the_machine_and_of_each_gpu_counts(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, 2)
    rates = {2: 100.0, 4: 200.0, 8: 400.0}
    Rates(monkeypatch, rates, room=3.0)
    assert choose(study) == 4
    Rates(monkeypatch, rates, gpu_room=1.0)
    assert choose(study) == 4


def test_a_gpu_that_runs_name_has_a_limit(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [replace(node, cfg=on(node, "cuda:1")) for node in left(study)]
    monkeypatch.setattr(jobs, "num_cores", lambda: 64)
    monkeypatch.setattr(jobs, "MAX_PER_GPU", 4)
    Rates(monkeypatch, {2**i: 100.0 * 2**i for i in range(8)})
    assert choose_jobs(study, nodes, request(study, study.spec.seeds, None)) == 4


def test_the_run_with_the_largest_batches_is_measured(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Rates(monkeypatch, {})
    nodes = left(study)
    choose_jobs(study, nodes, request(study, study.spec.seeds, None))
    assert study.graph.nodes[measured.given[-1]["run"]].chain == "multi"
    single = replace(nodes[1], cfg=nodes[1].cfg.model_copy(update={"max_length": 200}))
    choose_jobs(study, [nodes[0], single], request(study, study.spec.seeds, None))
    assert measured.given[-1]["run"] == single.id


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
    nodes = [replace(node, cfg=on(node, device)) for node in left(made)]
    with_gpus(monkeypatch, count, visible)
    assert gpus_for(nodes) == gpus
    assert gpus_for([]) == []


def test_a_worker_gets_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_environment(1, 3, []) == {"OMP_NUM_THREADS": "2"}
    assert worker_environment(0, 20, [])["OMP_NUM_THREADS"] == "1"
    assert worker_environment(4, 6, ["2", "6", "7"])["CUDA_VISIBLE_DEVICES"] == "6"
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    assert worker_environment(1, 3, []) == {}


def children() -> list[str]:
    """Command lines of the trials that live."""
    lines = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    return [line for line in lines if jobs._TRIAL in line]


def test_measuring_for_real_leaves_nothing_behind(
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for name in ("WARM_S", "MEASURE_S"):
        monkeypatch.setattr(jobs, name, 0.3)
    monkeypatch.setattr(jobs, "WORTH", 0.0)
    monkeypatch.setattr(jobs, "num_cores", lambda: 2)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = sorted(study.path.rglob("*"))
    assert choose(study) == 2
    said = capsys.readouterr().err
    rate = r"[\d,]+ rows/s"
    assert re.search(rf"--jobs 2, measured in 0:\d\d together: 1: {rate}; 2: {rate}", said)
    assert sorted(study.path.rglob("*")) == before
    assert list(temporary.iterdir()) == []
    assert children() == []


def test_ctrl_c_ends_the_measuring(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        assert len(children()) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        choose(study)
    assert children() == []


def test_a_run_that_cannot_be_measured_is_made_by_one_process(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in study.files_dir.glob("*.csv"):
        path.unlink()
    assert choose(study) == 1
    assert re.search(r"--jobs 1, .*: 1: UserError: cannot read .*csv", capsys.readouterr().err)


def test_a_process_that_dies_ends_the_measuring(study: Study) -> None:
    dead = subprocess.Popen(
        ["true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    dead.wait()
    assert jobs._measure([dead], 1) == [{"error": "a process died"}]
    dead.communicate()


def test_half_of_the_free_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    own = psutil.Process().memory_info().rss
    free = SimpleNamespace(available=10 * own)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    rooms = jobs._rooms(torch.device("cpu"))
    assert rooms["room"] == pytest.approx(5.0, rel=0.1) and rooms["gpu_room"] == math.inf
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2.5 * gib)
    assert jobs._rooms(torch.device("cuda"))["gpu_room"] == 5.0


def test_auto_makes_the_same_runs(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "choose_jobs", lambda *_: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # with others the last bits differ
    run_study(study.path, jobs="auto")
    alone = run_study(study.files_dir / study.source, out=study.files_dir / "alone")
    assert alike(read_rows([study.path])) == alike(alone.rows())


@pytest.mark.parametrize(
    ("gpus", "executor", "few", "number"),
    [(0, "local", 1, 1), (2, "local", 6, 7), (2, "local", 7, 2), (2, "ray", 1, 1)],
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


@pytest.mark.parametrize("text", ["--5", "1.5", "many", "-1", "0"])
def test_the_command_refuses_what_is_no_number(study: Study, text: str) -> None:
    result = CliRunner().invoke(app, ["study", "run", str(study.path), f"--jobs={text}"])
    assert result.exit_code == 2
    assert f"cannot run the study: {text} jobs, expected auto, or 1 or more" in result.output


# --- a device whose memory is full -------------------------------------------------------------


def test_a_full_device_is_an_error_of_the_run(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(training, "fit", full)
    given = request(study, study.spec.seeds, None)
    answer = serve(given, lambda event: None)
    assert answer is not None and answer["full"] and answer["code"] == 1
    assert answer["message"].endswith("-seed1-" + left(study)[0].id[:8] + ": CUDA out of memory")
    assert "max_tokens" in answer["hint"]


class Worker:
    """A worker that has said its last word."""

    returncode = 0

    def poll(self) -> int:
        return self.returncode

    def send_signal(self, number: int) -> None: ...

    def wait(self) -> None: ...


@pytest.mark.parametrize("count", [1, 2])
def test_while_others_go_on_a_full_device_stops_one_worker_alone(
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    count: int,
) -> None:
    event = {"event": "error", "code": 1, "message": "memory is full", "hint": "", "full": True}

    def start(given: str, environment: Any, events: Any) -> Any:
        begun.append(events)
        if len(begun) <= count:
            events.put(event)
        return Worker(), Thread(target=lambda: None)

    begun: list[Any] = []
    monkeypatch.setattr(launch, "_start", start)
    monkeypatch.setattr(Thread, "join", lambda self: None)
    if count == 2:
        with pytest.raises(WorldError, match="memory is full"):
            launch._in_processes(study, [1], 2, [], None, lambda event: None)
    else:
        launch._in_processes(study, [1], 2, [], None, lambda event: None)
    assert "note: memory is full; 1 of 2 workers go on" in capsys.readouterr().err
    assert len(begun) == 2
