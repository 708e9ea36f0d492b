"""Several processes train the model that one process trains.

Two real processes on the CPU, started as users start them. With dropout 0 and float32 they must
give one process's loss curve to 1e-5, and its final metrics.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from conftest import write_duplicate, write_tickets, write_urgency
from outshine import batches, training
from outshine.cli import app
from outshine.config import TrainConfig, resolve
from outshine.distributed import ALONE, Team, like, whole, wrap
from outshine.losses import micro_batch_loss
from outshine.planning import prepare
from outshine.runs import Run
from outshine.tasks import Task
from outshine.training import train

STEPS = 9
# `urgency` gives rows to few steps, so its head often has none; the token budget cuts a step into
# several micro-batches, of which the processes would have different numbers.
SETTINGS: dict[str, Any] = {
    "lr": 1e-3,
    "batch_size": 12,
    "epochs": 10.0,
    "max_steps": STEPS,
    "max_tokens": 48,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "precision": "fp32",
    "device": "cpu",
    "log_every": 3,
    "eval_every": 6,
    "layer_decay": 0.9,
    "ema": 0.5,
    "sampling": "explicit",
    "sampling_weights": {"tickets": 1.0, "urgency": 0.03, "duplicate": 1.0},
}
ACCELERATE = [
    *("accelerate.commands.launch", "--num_machines", "1", "--num_processes", "2"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
]
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
# Trains as `python -m outshine` does, but asks for an end after the sixth step.
INTERRUPTED = """
from contextlib import contextmanager
from outshine import training
from outshine.cli import main

asked = []
step = training.set_step

@contextmanager
def after_six():
    yield lambda: len(asked) >= 6

def counted(*args):
    asked.append(1)
    step(*args)

training._interruptible, training.set_step = after_six, counted
main()
"""


ENDING = """
import atexit
import sys
from outshine.cli import main

class Kept:
    def __del__(self):
        print("taken apart")

kept = Kept()
atexit.register(print, "at exit")
sys.argv = ["outshine", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tasks")
    return [write_tickets(folder), write_urgency(folder), write_duplicate(folder)]


@pytest.fixture(scope="module")
def arguments(tasks: list[Path], encoder: Path) -> list[str]:
    """Of `outshine`, without `--out`."""
    settings = [f"{key}={toml(value)}" for key, value in SETTINGS.items()]
    named = [word for setting in settings for word in ("--set", setting)]
    return ["train", *map(str, tasks), "--encoder", str(encoder), *named]


@pytest.fixture(scope="module")
def alone(tasks: list[Path], encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    return train([Task.load(path) for path in tasks], encoder=str(encoder), out=out, **SETTINGS)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {item}" for key, item in value.items()) + "}"
    return str(value)


def launch(launcher: list[str], what: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m LAUNCHER WHAT` to its end; the launcher starts two processes."""
    return subprocess.run(
        [sys.executable, "-m", *launcher, *what],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        timeout=600,
    )


def torchrun(*what: str) -> list[str]:
    return ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", *what]


def curve(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.log_path.read_text().splitlines()]


def assert_same(run: Run, alone: Run) -> None:
    assert run.info()["num_processes"] == 2
    assert alone.info()["num_processes"] == 1
    lines, wanted = curve(run), curve(alone)
    assert [line["step"] for line in lines] == [3, 6, 9]
    for line, other in zip(lines, wanted, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert line["task_loss"] == pytest.approx(other["task_loss"], abs=1e-5)
        assert (line["rows"], line["tokens"]) == (other["rows"], other["tokens"])
    metrics, others = run.metrics(), alone.metrics()
    assert metrics.keys() == others.keys()
    for task in metrics:
        assert metrics[task]["dev"] == pytest.approx(others[task]["dev"], abs=1e-4)


def test_ddp_equals_one_process(arguments: list[str], alone: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = launch(
        [*ACCELERATE, "--multi_gpu", "-m", "outshine"], [*arguments, "--out", str(out), "--json"]
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(out)  # once, not by each process
    assert len(re.findall(r"^Mixture", done.stderr, re.M)) == 1
    assert_same(Run(out), alone)


@pytest.mark.parametrize(("argument", "code"), [("--version", 0), ("--unknown", 2)])
def test_processes_end_before_their_interpreter_is_taken_apart(argument: str, code: int) -> None:
    """A thread of gloo that still holds a tensor would abort one that is, once in ten times."""

    def printed(**env: str) -> list[str]:
        ended = subprocess.run(
            [sys.executable, "-c", ENDING, argument],
            env=os.environ | env,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == code
        return ended.stdout.splitlines()[-2:]

    several = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    assert printed() == ["at exit", "taken apart"]
    assert printed(**several)[-1] == "at exit"


@pytest.mark.parametrize(
    ("code", "found", "said"), [(None, 0, ""), (3, 3, ""), ("no port", 1, "no port\n")]
)
def test_a_process_leaves_with_the_code_that_sys_exit_would_give(
    code: int | str | None, found: int, said: str
) -> None:
    script = f"from outshine.processes import leave; print('done'); leave({code!r})"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (found, "done\n", said)


def test_fsdp_interrupted_and_resumed_equals_one_process(
    arguments: list[str], alone: Run, tmp_path: Path
) -> None:
    script, out = tmp_path / "interrupted.py", tmp_path / "run"
    script.write_text(INTERRUPTED)
    what = [*arguments, "--out", str(out)]
    stopped = launch(torchrun(str(script)), what, **SHARDED)
    assert stopped.returncode != 0
    # whichever ends first says it; the launcher then stops the other, perhaps before it speaks
    said = r"^(process 1: )?interrupted at step 6; the checkpoint is written$"
    assert re.search(said, stopped.stderr, re.M), stopped.stderr
    assert [line["step"] for line in curve(Run(out))] == [3, 6]
    done = launch(torchrun("-m", "outshine"), what, **SHARDED)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"resuming .* at step 6 of 9", done.stderr)) == 1
    assert_same(Run(out), alone)


@pytest.mark.parametrize("env", [{}, SHARDED], ids=["ddp", "fsdp"])
def test_a_run_of_one_process_goes_on_in_two_without_a_pooler(
    env: dict[str, str],
    tasks: list[Path],
    encoder: Path,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """BERT has a pooler that `cls` does not use; DDP must not wait for its gradient.

    With FSDP the whole word embedding is trained, by others the rows of words that occur.
    """
    found = [Task.load(path) for path in tasks]
    settings = SETTINGS | {"pooling": "cls"}
    alone = train(found, encoder=str(encoder), out=tmp_path / "alone", **settings)
    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(training, "_interruptible", lambda: nullcontext(lambda: len(done) >= 5))
        step = training.set_step
        patch.setattr(training, "set_step", lambda *args: (done.append(1), step(*args)))
        with pytest.raises(training.Interrupted, match="at step 5"):  # between lines of the log
            train(found, encoder=str(encoder), out=tmp_path / "run", **settings)
    what = [*arguments, "--set", "pooling=cls", "--out", str(tmp_path / "run")]
    resumed = launch(torchrun("-m", "outshine"), what, **env)
    assert resumed.returncode == 0, resumed.stderr
    assert "at step 5 of 9" in resumed.stderr
    assert_same(Run(tmp_path / "run"), alone)


def test_a_run_of_two_processes_with_fsdp_goes_on_in_one(
    tasks: list[Path], encoder: Path, arguments: list[str], alone: Run, tmp_path: Path
) -> None:
    script, out = tmp_path / "interrupted.py", tmp_path / "run"
    script.write_text(INTERRUPTED)
    stopped = launch(torchrun(str(script)), [*arguments, "--out", str(out)], **SHARDED)
    assert stopped.returncode != 0
    run = train([Task.load(path) for path in tasks], encoder=str(encoder), out=out, **SETTINGS)
    assert run.info()["resumed"] == 1
    lines, wanted = curve(run), curve(alone)
    assert [line["step"] for line in lines] == [3, 6, 9]
    assert [line["loss"] for line in lines] == pytest.approx(
        [line["loss"] for line in wanted], abs=1e-5
    )
    for task, found in run.metrics().items():
        assert found["dev"] == pytest.approx(alone.metrics()[task]["dev"], abs=1e-4)


def test_rows_are_dealt_by_tokens_and_each_goes_to_one_process() -> None:
    lengths = np.random.default_rng(0).integers(4, 128, 33)
    hands = Team(0, 4).deal(lengths)
    assert sorted(np.concatenate(hands).tolist()) == list(range(33))
    tokens = [int(lengths[hand].sum()) for hand in hands]
    assert max(tokens) - min(tokens) <= int(lengths.max())
    assert max(tokens) < 1.02 * lengths.sum() / 4


def test_all_processes_get_equally_many_micro_batches() -> None:
    lengths = np.array([9, 3, 3, 3])

    def division(lengths: np.ndarray) -> list[np.ndarray]:
        return batches.fill(lengths, 6)

    def at_most_four(lengths: np.ndarray) -> list[np.ndarray]:
        return batches.fill(lengths, 4)

    shares = [Team(rank, 3, object()).divided(division)(lengths) for rank in range(3)]  # type: ignore[arg-type]
    assert [len(share) for share in shares] == [1, 1, 1]
    few = [Team(rank, 3, object()).divided(division)(lengths[:2]) for rank in range(3)]  # type: ignore[arg-type]
    assert [[len(rows) for rows in share] for share in few] == [[1], [1], [0]]
    lengths = np.array([6, 2, 2, 2])  # two passes of at most four tokens against one too long
    uneven = [Team(rank, 2, object()).divided(at_most_four)(lengths) for rank in range(2)]  # type: ignore[arg-type]
    assert [[rows.tolist() for rows in share] for share in uneven] == [[[0], []], [[1, 2], [3]]]
    assert ALONE.divided(division) is division


def test_gradients_lie_where_ddp_adds_them_up(tasks: list[Path], encoder: Path) -> None:
    """Else every step copies all of them back, and memory holds them twice."""
    plan = prepare((Task.load(tasks[0]),), resolve(TrainConfig(encoder=str(encoder)), 1), None)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        forward = wrap(Team(0, 1, object()), plan.forward)  # type: ignore[arg-type]
        batch = batches.make_batch(
            plan.mixture, next(batches.steps(plan.mixture, 1)), 1.0, forward.divide
        )
        micro_batch_loss(forward, plan.mixture, batch.micro_batches[0], 1.0)[0].backward()
        gradients = [p.grad for p in forward.model.parameters() if p.grad is not None]
        buckets = {g.untyped_storage().data_ptr() for g in gradients}
    finally:
        torch.distributed.destroy_process_group()
    assert len(gradients) > 20
    assert len(buckets) < 3


def test_tensors_of_one_process_are_themselves() -> None:
    values = torch.arange(6.0).view(2, 3)
    assert torch.equal(whole(values), values)
    assert torch.equal(like(values, torch.zeros(2, 3)), values)
    assert ALONE.any(True, False) == [True, False]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"},
            "cannot train with FSDP version 1: expected 2\n"
            "hint: use `accelerate launch --use_fsdp --fsdp_version 2`\n",
        ),
        (
            {},
            "cannot train on cpu:0 in 2 processes: expected auto, cpu or cuda\n"
            "hint: each process takes the GPU of its number on its machine\n",
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            "cannot train with DeepSpeed: expected DDP or FSDP\n"
            "hint: use `accelerate launch --use_fsdp --fsdp_version 2`\n",
        ),
    ],
)
def test_launchers_that_are_not_supported_are_refused(
    env: dict[str, str], message: str, arguments: list[str], tmp_path: Path
) -> None:
    group = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    device = ["--set", "device=cpu:0"] if not env else []
    words = [*arguments, *device, "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, words, env=group | env)
    assert (done.exit_code, done.stderr) == (2, message)
    assert not (tmp_path / "run").exists()


def test_other_commands_want_one_process() -> None:
    group = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    done = CliRunner().invoke(app, ["doctor"], env=group)
    assert (done.exit_code, done.stderr) == (
        2,
        "process 1: cannot run `outshine doctor` in 2 processes: expected 1\n"
        "hint: torchrun and accelerate launch are for `outshine train`\n",
    )
