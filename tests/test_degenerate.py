"""The rule that tells runs without a result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outshine.degenerate import (
    CONSTANT,
    MIN_LINES,
    NEVER_FELL,
    NUM_ERRORS,
    RULE,
    curve,
    never_fell,
    reasons,
)
from outshine.runs import Run
from outshine.schedules import ANNEALS, gold_weight

RISING = [float(i) for i in range(10)]
FALLING = RISING[::-1]


@pytest.mark.parametrize(
    ("losses", "fell"),
    [
        (FALLING, True),
        ([1.0] * 10, False),
        (RISING, False),
        ([5, 1, 9, 9, 9, 9, 9, 9, 9, 4], True),  # by less than its noise
        (RISING[:9], True),  # too short a log to tell
        ([], True),
    ],
)
def test_a_loss_fell_unless_its_last_fifth_is_clearly_above_its_first(
    losses: list[float], fell: bool
) -> None:
    assert never_fell(losses) is not fell


@pytest.mark.parametrize("num_lines", [10, 23, 60])
@pytest.mark.parametrize(
    ("trend", "low", "high"),
    [
        (0.0, 0.0, 0.06),  # flat: two standard errors in one direction, with few lines to tell them
        (-1.0, 0.0, 0.005),  # falls by a standard deviation of a line
        (20.0, 0.99, 1.0),
    ],
)
def test_noise_is_seldom_taken_for_a_loss_that_never_fell(
    num_lines: int, trend: float, low: float, high: float
) -> None:
    rng = np.random.default_rng(num_lines)
    curves = rng.normal(size=(1000, num_lines)) + np.linspace(0, trend, num_lines)
    assert low <= np.mean([never_fell(curve) for curve in curves]) <= high


def made_run(
    folder: Path,
    dev: dict[str, float],
    losses: Sequence[float],
    *,
    init: str = "encoder",
    anneal: str = "constant",
    **info: Any,
) -> Run:
    weights = [gold_weight(anneal, i / len(losses)) for i in range(len(losses))]
    lines = [
        {"step": i, "loss": x, "gold_weight": weight, "lr": 0.1, "task_loss": {"rte": x}}
        for i, (x, weight) in enumerate(zip(losses, weights, strict=True))
    ]
    (folder / "config.json").write_text(json.dumps({"settings": {"init": init}, "tasks": []}))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "metrics.json").write_text(json.dumps({"rte": {"dev": dev}}))
    (folder / "run.json").write_text(json.dumps({"format": 1, "id": "x", **info}))
    return Run(folder)


def test_a_sound_run_has_no_reason(tmp_path: Path) -> None:
    assert reasons(made_run(tmp_path, {"accuracy": 0.6, "n": 9}, FALLING)) == {}


def test_a_constant_prediction_is_degenerate(tmp_path: Path) -> None:
    dev = {"accuracy": 0.5, "n": 9, "constant_prediction": 1}
    assert reasons(made_run(tmp_path, dev, FALLING)) == {"rte": CONSTANT}


def test_a_loss_that_never_fell_is_degenerate(tmp_path: Path) -> None:
    dev = {"accuracy": 0.5, "n": 9}
    assert reasons(made_run(tmp_path, dev, RISING)) == {"rte": NEVER_FELL}
    assert reasons(made_run(tmp_path, dev, RISING, init="random")) == {"rte": NEVER_FELL}


@pytest.mark.parametrize("anneal", [name for name in ANNEALS if name != "constant"])
def test_losses_against_targets_that_change_are_not_compared(tmp_path: Path, anneal: str) -> None:
    # with "step", the loss against soft targets falls, and jumps where gold takes their place
    losses = [*np.linspace(0.65, 0.5, 30), *np.linspace(0.8, 0.7, 30)]
    assert never_fell(losses)
    assert reasons(made_run(tmp_path, {"accuracy": 0.5, "n": 9}, losses, anneal=anneal)) == {}


@pytest.mark.parametrize("init", ["teachers", "runs/multi-all-seed1-0f0f0f0f"])
def test_a_run_that_starts_from_trained_weights_need_not_fall(tmp_path: Path, init: str) -> None:
    assert reasons(made_run(tmp_path, {"accuracy": 0.5, "n": 9}, RISING, init=init)) == {}


def test_divergence_comes_before_all_else(tmp_path: Path) -> None:
    dev = {"accuracy": 0.5, "n": 9, "constant_prediction": 1}
    run = made_run(tmp_path, dev, [], diverged="the loss is nan")
    assert reasons(run) == {"rte": "diverged: the loss is nan"}


def test_the_rule_is_stated_as_it_is_applied() -> None:
    assert "last fifth lies two standard errors above" in RULE and "ten or more" in RULE
    assert (MIN_LINES, NUM_ERRORS) == (10, 2)


def test_a_curve_has_the_first_and_last_line_and_few_between(tmp_path: Path) -> None:
    run = made_run(tmp_path, {"accuracy": 0.5, "n": 9}, [float(i) for i in range(500)])
    points = curve(run, 60)
    assert len(points) == 60
    assert points[0] == [0, 0.0, 0.5, 0.1] and points[-1] == [499, 499.0, 0.5, 0.1]
    assert len(curve(run, 1000)) == 500
