"""The rule that tells runs without a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from outshine.degenerate import CONSTANT, NEVER_FELL, RULE, curve, never_fell, reasons
from outshine.runs import Run


@pytest.mark.parametrize(
    ("losses", "fell"),
    [
        ([5, 4, 3, 2, 1], True),
        ([1, 1, 1, 1, 1], False),
        ([1, 2, 3, 4, 5], False),
        ([1, 9, 9, 9, 0.9], True),
        ([2, 2, 5, 5, 5, 5, 5, 5, 1, 2], True),
        ([1, 1, 1, 1], True),  # too short a log to tell
        ([], True),
    ],
)
def test_a_loss_fell_if_its_last_fifth_is_below_its_first(losses: list[float], fell: bool) -> None:
    assert never_fell(losses) is not fell


def made_run(folder: Path, dev: dict[str, float], losses: list[float], **info: Any) -> Run:
    lines = [
        {"step": i, "loss": x, "gold_weight": 1.0, "lr": 0.1, "task_loss": {"rte": x}}
        for i, x in enumerate(losses)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "metrics.json").write_text(json.dumps({"rte": {"dev": dev}}))
    (folder / "run.json").write_text(json.dumps({"format": 1, "id": "x", **info}))
    return Run(folder)


def test_a_sound_run_has_no_reason(tmp_path: Path) -> None:
    assert reasons(made_run(tmp_path, {"accuracy": 0.6, "n": 9}, [5, 4, 3, 2, 1])) == {}


def test_a_constant_prediction_is_degenerate(tmp_path: Path) -> None:
    dev = {"accuracy": 0.5, "n": 9, "constant_prediction": 1}
    assert reasons(made_run(tmp_path, dev, [5, 4, 3, 2, 1])) == {"rte": CONSTANT}


def test_a_loss_that_never_fell_is_degenerate(tmp_path: Path) -> None:
    dev = {"accuracy": 0.5, "n": 9}
    assert reasons(made_run(tmp_path, dev, [1, 2, 3, 4, 5])) == {"rte": NEVER_FELL}


def test_divergence_comes_before_all_else(tmp_path: Path) -> None:
    dev = {"accuracy": 0.5, "n": 9, "constant_prediction": 1}
    run = made_run(tmp_path, dev, [], diverged="the loss is nan")
    assert reasons(run) == {"rte": "diverged: the loss is nan"}


def test_the_rule_is_stated_as_it_is_applied() -> None:
    assert "last fifth" in RULE and "five or more" in RULE


def test_a_curve_has_the_first_and_last_line_and_few_between(tmp_path: Path) -> None:
    run = made_run(tmp_path, {"accuracy": 0.5, "n": 9}, [float(i) for i in range(500)])
    points = curve(run, 60)
    assert len(points) == 60
    assert points[0] == [0, 0.0, 1.0, 0.1] and points[-1] == [499, 499.0, 1.0, 0.1]
    assert len(curve(run, 1000)) == 500
