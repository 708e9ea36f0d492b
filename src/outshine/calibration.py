"""One temperature per task, so that a probability means what it says. N rows, C classes.

Dividing logits by a temperature changes no answer, only how sure it sounds.
Source: Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from outshine.console import say
from outshine.errors import UserError
from outshine.evaluation import evaluate, halves
from outshine.files import write_json
from outshine.kinds import Kind
from outshine.predictions import Predictions
from outshine.readers import data_fingerprint, read_rows
from outshine.runs import Run, open_run
from outshine.tasks import Task, kind_of

NUM_BINS = 15
# A dev half without a mistake asks for temperature 0, which no data supports.
BOUNDS = (0.1, 10.0)


def calibrate(
    run: Run | str | Path, *, device: str = "auto", dry_run: bool = False
) -> dict[str, Any]:
    """Fits a temperature per task on the run's dev logits, and writes `calibration.json`.

    Args:
        run: The finished run or its folder.
        device: Where to compute dev logits that the run did not keep.
        dry_run: Whether to write nothing; needs dev logits that the run did keep.

    Returns:
        {"run", "bins", "tasks": {name: {"temperature", "halves": [of each half of dev], "n",
        "calibration_error" and "loss" (nats): {"before", "after"}}}}. `after` judges each half
        by the temperature of the other; `temperature` is that of all dev rows, or 1 where `loss`
        does not fall.

    Raises:
        UserError: If no task has classes and two dev rows, or a dry run would have to compute
            and keep dev logits, or the run is one of the hub.
    """
    run = open_run(run)
    run.check_own("keep the temperatures")
    found = {}
    for task in run.tasks():
        kind = kind_of(task)
        if kind.probs is None or "dev" not in task.splits:
            reason = "no dev rows" if kind.probs else "no classes"
            say(f"note: {task.name} has {reason} and is left as it is")
            continue
        logits, gold = _dev_logits(run, task, device, dry_run)
        if len(gold) < 2:
            say(f"note: {task.name} has 1 dev row, which cannot be halved, and is left as it is")
            continue
        found[task.name] = _judge(kind, logits, gold)
        if found[task.name]["temperature"] == 1.0:
            say(f"note: no temperature helps {task.name} on rows that it was not fitted on")
        for bound in BOUNDS:
            if math.isclose(found[task.name]["temperature"], bound, rel_tol=1e-3):
                say(
                    f"note: the temperature of {task.name} ends at the bound {bound:g}: dev asks "
                    "for one beyond it"
                )
    if not found:
        raise UserError(
            f"cannot calibrate the run {run.path}: no task has classes and dev rows, expected one",
            "values of a regression need no temperature",
        )
    content = {"run": run.info()["id"], "bins": NUM_BINS, "tasks": found}
    if not dry_run:
        write_json(run.calibration_path, content)
    return content


def _dev_logits(run: Run, task: Task, device: str, dry_run: bool) -> tuple[np.ndarray, np.ndarray]:
    """(N, C) float32 logits of the dev rows, and (N,) int64 gold."""
    path = run.predictions_path(task.name, "dev")
    if not path.exists():
        if dry_run:
            raise UserError(
                f"cannot calibrate the run {run.path} without writing: no dev logits of "
                f"{task.name}, expected {path}",
                f"make them: `outshine eval {run.path}`, or leave --dry-run out",
            )
        evaluate(run, "dev", device=device)
    predictions = Predictions.load(path)
    predictions.check(path, task, data_fingerprint(task, "dev"))
    rows = list(read_rows(task, "dev"))
    logits, _ = predictions.take([row.id for row in rows])
    return logits, np.array([row.gold for row in rows], np.int64)


def _judge(kind: Kind, logits: np.ndarray, gold: np.ndarray) -> dict[str, Any]:
    parts = halves(len(gold))
    temperatures = [fit_temperature(kind, logits[half], gold[half]) for half in parts]
    swapped = np.empty((len(gold), 1))
    for half, temperature in zip(parts, reversed(temperatures), strict=True):
        swapped[half] = temperature
    assert kind.probs is not None
    probs = {"before": kind.probs(logits), "after": kind.probs(logits / swapped)}
    loss = {when: _loss(p, gold) for when, p in probs.items()}
    helps = loss["after"] < loss["before"]
    return {
        "temperature": fit_temperature(kind, logits, gold) if helps else 1.0,
        "halves": temperatures,
        "n": len(gold),
        "calibration_error": {when: calibration_error(p, gold) for when, p in probs.items()},
        "loss": loss,
    }


def fit_temperature(kind: Kind, logits: np.ndarray, gold: np.ndarray) -> float:
    """The temperature of the smallest cross-entropy, between 0.1 and 10.

    Args:
        kind: One with classes.
        logits: (N, C).
        gold: (N,) class indices.
    """
    from scipy.optimize import minimize_scalar

    assert kind.probs is not None
    probs = kind.probs
    found = minimize_scalar(
        lambda log: _loss(probs(logits / np.exp(log)), gold),
        bounds=np.log(BOUNDS),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def _loss(probs: np.ndarray, gold: np.ndarray) -> float:
    """Mean cross-entropy in nats."""
    chosen = probs[np.arange(len(gold)), gold]
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())


def calibration_error(probs: np.ndarray, gold: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error, in [0, 1].

    The rows are put into bins of equal width by the probability of their answer; the error is
    the mean over rows of |accuracy - mean probability| of their bin.

    Args:
        probs: (N, C) probabilities.
        gold: (N,) class indices.
        num_bins: How many bins.
    """
    confidence, is_right = probs.max(axis=1), probs.argmax(axis=1) == gold
    bins = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
    gaps = np.bincount(bins, weights=is_right - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(gold))
