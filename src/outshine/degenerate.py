"""Runs whose result is none: what counts as one, and how it is told from a run's files."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from outshine.runs import Run

# The rule, as reports state it.
RULE = (
    "A run is degenerate on a task if (1) its loss or a logit was not a finite number: it then "
    "counts with the metrics of a constant prediction; or (2) it predicts the same for every dev "
    "row; or (3) its loss never fell: of ten or more logged lines, the mean loss of the task over "
    "the last fifth lies two standard errors above that over the first (by the noise that "
    "neighbouring lines show), or is the same without any noise; not asked of runs that start from "
    "another run, or whose gold weight changes, and what the loss is with it; or (4) a run that "
    "taught it, or from which it started, was degenerate by (1)."
)
MIN_LINES = 10
NUM_ERRORS = 2  # standard errors by which a loss must have risen
CONSTANT = "one prediction for all rows"
NEVER_FELL = "the loss never fell"
DIVERGED = "diverged"


def reasons(run: Run) -> dict[str, str]:
    """Task -> why a complete run is degenerate on it; {} for a sound run."""
    info, lines = run.info(), log_lines(run)
    # trained weights have little left to learn; the losses of other targets do not compare
    anew = run.config()["settings"]["init"] in ("encoder", "random")
    comparable = anew and len({line["gold_weight"] for line in lines}) == 1
    found = {}
    for name, splits in run.metrics().items():
        losses = [line["task_loss"][name] for line in lines if name in line["task_loss"]]
        if DIVERGED in info:
            found[name] = f"{DIVERGED}: {info[DIVERGED]}"
        elif splits["dev"].get("constant_prediction"):
            found[name] = CONSTANT
        elif comparable and never_fell(losses):
            found[name] = NEVER_FELL
    return found


def never_fell(losses: Sequence[float]) -> bool:
    """Whether a curve ends above its start by more than its noise, or level without any.

    The means of its first and its last fifth are compared. The variance of a line is half the mean
    square of the differences between neighbours, which a trend hardly changes.
    """
    if len(losses) < MIN_LINES:
        return False
    part = len(losses) // 5
    rise = float(np.mean(losses[-part:]) - np.mean(losses[:part]))
    error = float(np.sqrt(np.mean(np.diff(losses) ** 2) / part))
    return rise >= NUM_ERRORS * error


def log_lines(run: Run) -> list[dict]:
    """The lines of a run's log."""
    return [json.loads(line) for line in run.log_path.read_text().splitlines()]


def curve(run: Run, max_points: int) -> list[list[float]]:
    """At most so many of (step, loss, gold_weight, lr) of a run's log, evenly spread."""
    lines = log_lines(run)
    places = np.linspace(0, len(lines) - 1, min(max_points, len(lines))).round().astype(int)
    keys = ("step", "loss", "gold_weight", "lr")
    return [[lines[i][key] for key in keys] for i in places.tolist()]
