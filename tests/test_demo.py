"""What the demo does and prints, with a tiny encoder in place of the built-in one."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from outshine import costs, demo, distillation, load
from outshine.distillation import ARMS, Distillation


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
