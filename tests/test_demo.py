"""What the demo does and prints, with a tiny encoder in place of the built-in one."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from outshine import costs, demo, distillation, load
from outshine.cli import app
from outshine.distillation import ARMS, Distillation
from outshine.errors import UserError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, encoder: Path) -> None:
    distill = distillation.distill
    tiny = {"encoder": str(encoder), "max_steps": 2, "batch_size": 8, "device": "cpu"}

    def small(tasks: Any, **kwargs: Any) -> Distillation:
        return distill(tasks, **kwargs | {"settings": kwargs["settings"] | tiny})

    monkeypatch.setattr(demo, "distill", small)
    monkeypatch.setattr(costs, "ALONE_S", 0.05)
    monkeypatch.setattr(costs, "BATCHED_S", 0.05)


def test_the_demo_ends_with_a_table_answers_and_what_one_seed_shows(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = demo.run_demo(out=tmp_path / "demo", seed=3)
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    for task in (*demo.TASKS, "score"):
        assert any(line.startswith(task) and line.count("±") == len(ARMS) for line in lines)
    assert any("seed 3" in line for line in lines)
    assert sum(line.startswith("intent ") and "sentiment " in line for line in lines) == 3
    assert any(f"The student is in {made.student.path}" in line for line in lines)
    assert any("cannot show" in line for line in lines)

    command = next(line for line in lines if line.startswith("echo"))
    _, question, _, *rest = shlex.split(command)
    assert rest == ["outshine", "predict", str(made.student.path)]
    (answer,) = load(made.student).predict([json.loads(question)])
    assert answer.keys() == {"intent", "sentiment", "urgency"}


def test_the_demo_prints_the_command_so_that_the_shell_that_called_it_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "an environment" / "outshine"
    script.parent.mkdir()
    script.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(script), "demo"])  # as `make demo` calls it
    assert shlex.split(demo._as_called()) == [str(script)]
    monkeypatch.setenv("PATH", str(script.parent))
    assert demo._as_called() == "outshine"
    monkeypatch.setattr(sys, "argv", ["notebook"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert demo._as_called() == "outshine"


def test_the_demo_takes_the_force_that_a_refused_distillation_hints_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = []

    def distill(*args: Any, force: bool, **kwargs: Any) -> None:
        given.append(force)
        raise UserError("cannot go on", "--force to start anew")

    monkeypatch.setattr(demo, "distill", distill)
    codes = [CliRunner().invoke(app, ["demo", *more]).exit_code for more in ([], ["--force"])]
    assert (given, codes) == ([False, True], [2, 2])
