"""What only a GPU computes: torch's kernel for rows of any length, graphs, copies that do not wait.

All of it is skipped where there is none.
"""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from outshine import jobs, run_study, training
from outshine.errors import DivergedError
from outshine.optim import Watch, adamw, parameter_groups
from outshine.predicting import load
from outshine.tasks import Task
from outshine.training import train
from studies import study_text, write_study

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SETTINGS: dict[str, Any] = {
    "max_steps": 8,
    "batch_size": 12,
    "max_tokens": 80,
    "dropout": 0.0,
    "log_every": 1,
    "eval_every": 3,
    "lr": 1e-3,
    "sampling": "explicit",
    "sampling_weights": {"tickets": 1.0, "duplicate": 0.05},
}


@pytest.fixture
def tasks(tickets: Path, duplicate: Path) -> list[Task]:
    return [Task.load(tickets), Task.load(duplicate)]


def losses(run: Any) -> list[float]:
    return [json.loads(line)["loss"] for line in run.log_path.open()]


@pytest.mark.parametrize(("pooling", "keep"), [("auto", "all"), ("mean", "predictions")])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_trains_as_a_cpu_does(
    compiled: bool, pooling: str, keep: str, tasks: list[Task], encoder: Path, tmp_path: Path
) -> None:
    given = SETTINGS | {"encoder": str(encoder), "pooling": pooling, "keep": keep}
    cpu = train(tasks, out=tmp_path / "cpu", device="cpu", precision="fp32", **given)
    gpu = train(
        tasks, out=tmp_path / "gpu", device="cuda", precision="bf16", compile=compiled, **given
    )
    assert losses(gpu) == pytest.approx(losses(cpu), abs=0.03)
    for task in tasks:
        assert gpu.metrics()[task.name]["dev"]["n"] == cpu.metrics()[task.name]["dev"]["n"]
    if keep == "all":
        assert load(gpu, device="cuda").predict(["where is my parcel"])


@pytest.mark.parametrize("compiled", [False, True])
def test_an_interrupted_run_goes_on_on_a_gpu(
    compiled: bool,
    tasks: list[Task],
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = SETTINGS | {"encoder": str(encoder), "device": "cuda", "compile": compiled}
    whole = train(tasks, out=tmp_path / "whole", **given)
    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(training, "_interruptible", lambda: nullcontext(lambda: len(done) >= 4))
        step = training.set_step
        patch.setattr(training, "set_step", lambda *args: (done.append(1), step(*args)))
        with pytest.raises(training.Interrupted, match="at step 4"):
            train(tasks, out=tmp_path / "run", **given)
    run = train(tasks, out=tmp_path / "run", **given)
    assert losses(run) == pytest.approx(losses(whole), abs=0.03)


def test_no_update_is_made_from_what_is_not_finite() -> None:
    network = nn.Linear(3, 2).cuda()
    optimizer = adamw(parameter_groups(network, None, 1.0, 0.1), 1e-6)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    watch = Watch(optimizer, waits=False)
    before = network.weight.detach().clone()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    watch.look(1, torch.tensor(torch.nan, device="cuda"), torch.ones((), device="cuda"))
    optimizer.step()
    assert torch.equal(network.weight, before)
    with pytest.raises(DivergedError, match="at step 1: the loss is nan"):
        watch.settle()


def test_runs_of_a_study_are_measured_and_made_side_by_side(
    tmp_path: Path,
    encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("WARM_S", "MEASURE_S"):
        monkeypatch.setattr(jobs, name, 0.5)
    monkeypatch.setattr(jobs, "MAX_PER_GPU", 2)
    file = write_study(tmp_path, study_text(encoder))
    study = run_study(file, jobs="auto")
    assert set(study.rows()) == set(study.graph.nodes)
    assert not any("cores" in row.device for row in study.rows().values())
    assert re.search(r"--jobs [12], measured in .*: 1: [\d,]+ rows/s", capsys.readouterr().err)
