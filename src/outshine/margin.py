"""Is one way of training worse than another by more than a margin? Asked of dev predictions.

Two things make a difference uncertain: which rows the dev set has, and which seeds were trained.
The bootstrap here draws both, so it also answers for one seed, then for the rows alone.

N rows, D draws, S seeds, K classes. Scores are fractions inside, points (percent) outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from outshine import metrics
from outshine.errors import UserError
from outshine.seeds import stream
from outshine.stats import FEW_SEEDS, LEVEL

NUM_DRAWS = 2000
BETTER = "better"
NOT_WORSE = "not worse by more than the margin"
WORSE = "worse"
UNDECIDED = "undecided"
CELLS_PER_CHUNK = 500_000  # of (draws, N) float64: 4 MB


@dataclass(frozen=True)
class TaskPredictions:
    """What two arms predict on one dev set.

    Attributes:
        metric: A key of metrics.METRICS, the task's primary one.
        gold: (N,) class indices, or values.
        a: Seed -> (N,) predictions of the first arm, likewise.
        b: Seed -> (N,) of the second.
        scored: Whether the task counts in the mean over tasks.
    """

    metric: str
    gold: np.ndarray
    a: Mapping[int, np.ndarray]
    b: Mapping[int, np.ndarray]
    scored: bool = True


def margin_verdict(
    a: str,
    b: str,
    tasks: Mapping[str, TaskPredictions],
    margin: float,
    *,
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
) -> dict[str, Any]:
    """Whether arm a is better than arm b, not worse by more than a margin, worse, or undecided.

    Each draw takes N dev rows with replacement, the same for both arms, and seeds: one fewer than
    there are, since the mean of S of them would spread too little. Where the arms have two seeds
    or more in common, these alone count, and the same are drawn for both arms. Means over the
    seeds of the primary metric are compared. All tasks of a draw have the same seeds, as the tasks
    of a multi-task run do.

    Args:
        a: Name of the first arm.
        b: Name of the second.
        tasks: Task -> what is compared.
        margin: In points, 0 or more.
        seed: Of the bootstrap.
        num_draws: D.

    Returns:
        {"a", "b", "margin", "difference" (mean over the scored tasks, None without any), "ci",
        "verdict", "tasks": {task: {"metric", "rows", "seeds": [n_a, n_b], "paired", "difference",
        "ci", "verdict"}}, "warnings": [text], "method": text, "conclusion": [sentence]}.

    Raises:
        UserError: If the margin is negative.

    Source: rows and seeds, Owen 2007, The pigeonhole bootstrap (if anything too wide: it counts
    the noise of single predictions with both); S - 1 of S, McCarthy and Snowden 1985.
    """
    if not (margin >= 0 and np.isfinite(margin)):
        raise UserError(
            f"cannot compare {a} with {b}: margin {margin}, expected 0 or more points (--margin)",
            "give the loss that you would accept, such as --margin 0.5",
        )
    found, draws = {}, {}
    tasks = {name: _on_common_seeds(task) for name, task in tasks.items()}
    for name, task in tasks.items():
        draws[name] = _differences(name, task, seed, num_draws)
        found[name] = {
            "metric": task.metric,
            "rows": len(task.gold),
            "seeds": [len(task.a), len(task.b)],
            "paired": _is_paired(task),
            **_judged(_mean_score(task, task.a) - _mean_score(task, task.b), draws[name], margin),
        }
    scored = [name for name, task in tasks.items() if task.scored]
    total: dict[str, Any] = {"difference": None, "ci": None, "verdict": UNDECIDED}
    if scored:
        difference = float(np.mean([found[name]["difference"] for name in scored]))
        total = _judged(difference, np.mean([draws[name] for name in scored], axis=0), margin)
    return {
        "a": a,
        "b": b,
        "margin": margin,
        **total,
        "tasks": found,
        "warnings": _warnings(tasks),
        "method": f"95 % percentile bootstrap, {num_draws:,} draws, seed {seed}: dev rows drawn "
        "for both arms together, and one seed fewer than there are, at least one (where the arms "
        "have two or more in common, of these alone, and the same for both); difference of the "
        "means over seeds; each task is judged by itself, without a correction for their number",
        "conclusion": _conclusion(a, b, margin, total, found, len(scored)),
    }


def _on_common_seeds(task: TaskPredictions) -> TaskPredictions:
    """What is compared by seed, where the arms have two or more in common; else all of it."""
    both = task.a.keys() & task.b.keys()
    if len(both) < 2:
        return task
    a, b = ({seed: arm[seed] for seed in both} for arm in (task.a, task.b))
    return replace(task, a=a, b=b)


def _is_paired(task: TaskPredictions) -> bool:
    return set(task.a) == set(task.b)


def _mean_score(task: TaskPredictions, predictions: Mapping[int, np.ndarray]) -> float:
    """Mean over seeds of the metric on the dev set as it is, in points."""
    metric = metrics.METRICS[task.metric]
    values = [metric(task.gold, predictions[number]) for number in sorted(predictions)]
    return 100 * float(np.mean(values))


def _judged(difference: float, draws: np.ndarray, margin: float) -> dict[str, Any]:
    low, high = np.quantile(draws, [LEVEL / 2, 1 - LEVEL / 2]).tolist()
    if low > 0:
        verdict = BETTER
    elif low >= -margin:
        verdict = NOT_WORSE
    else:
        verdict = WORSE if high < 0 else UNDECIDED
    return {"difference": difference, "ci": [low, high], "verdict": verdict}


# --- the bootstrap --------------------------------------------------------------------------


def _differences(name: str, task: TaskPredictions, seed: int, num_draws: int) -> np.ndarray:
    """(D,) differences of the mean metric between resamples, in points."""
    arms = [{number: arm[number] for number in sorted(arm)} for arm in (task.a, task.b)]
    predictions = [np.stack(list(arm.values())) for arm in arms]
    # a stream is named by its seeds: arms and tasks with the same seeds draw the same ones
    picks = [
        np.random.default_rng(stream(seed, "seeds", *arm)).integers(
            len(arm), size=(num_draws, max(1, len(arm) - 1))
        )
        for arm in arms
    ]
    resampled = RESAMPLED[task.metric]
    rng = np.random.default_rng(stream(seed, "rows", name))
    differences, start = [], 0
    for counts in _row_counts(len(task.gold), num_draws, rng):
        rows = slice(start, start + len(counts))
        means = [
            np.take_along_axis(resampled(task.gold, values, counts), pick[rows], 1).mean(axis=1)
            for values, pick in zip(predictions, picks, strict=True)
        ]
        differences.append(100 * (means[0] - means[1]))
        start = rows.stop
    return np.concatenate(differences)


def _row_counts(num_rows: int, num_draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields (D', N) float64: how often each row is in each resample, some draws at a time."""
    at_once = max(1, CELLS_PER_CHUNK // num_rows)
    for start in range(0, num_draws, at_once):
        num = min(at_once, num_draws - start)
        drawn = rng.integers(num_rows, size=(num, num_rows))
        drawn += num_rows * np.arange(num)[:, None]
        flat = np.bincount(drawn.ravel(), minlength=num * num_rows)
        yield flat.reshape(num, num_rows).astype(np.float64)


# --- metrics of many resamples at once ------------------------------------------------------
# Each takes gold (N,), predictions (S, N) and counts (D, N), and returns (D, S) fractions: what
# the metric of the same name gives for the rows repeated as counted.

Resampled = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, 0 where below is 0 (or less, by rounding)."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _accuracy(gold: np.ndarray, predictions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return counts @ (predictions == gold).T / counts.sum(axis=1, keepdims=True)


def _class_counts(
    gold: np.ndarray, predictions: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K, D, S) rows of each class that are hits, that are predicted; (K, D, 1) that are gold."""
    classes = np.union1d(gold, predictions)
    hits = [counts @ ((predictions == k) & (gold == k)).T for k in classes]
    predicted = [counts @ (predictions == k).T for k in classes]
    actual = [counts @ (gold == k)[:, None] for k in classes]
    return np.stack(hits), np.stack(predicted), np.stack(actual)


def _f1(gold: np.ndarray, predictions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    positive, found = gold == 1, predictions == 1
    hits = counts @ (found & positive).T
    return _ratio(2 * hits, counts @ found.T + counts @ positive[:, None])


def _f1_macro(gold: np.ndarray, predictions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    hits, predicted, actual = _class_counts(gold, predictions, counts)
    either = predicted + actual
    return _ratio(2 * hits, either).sum(axis=0) / (either > 0).sum(axis=0)


def _matthews(gold: np.ndarray, predictions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Source: Gorodkin 2004, the form for any number of classes."""
    hits, predicted, actual = _class_counts(gold, predictions, counts)
    total = counts.sum(axis=1, keepdims=True)
    covariance = hits.sum(axis=0) * total - (predicted * actual).sum(axis=0)
    spread = (total**2 - (predicted**2).sum(axis=0)) * (total**2 - (actual**2).sum(axis=0))
    return _ratio(covariance, np.sqrt(spread))


def _pearson(gold: np.ndarray, predictions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    # the correlation does not depend on the place; centred values lose less to rounding
    x, y = (gold - gold.mean())[None], predictions - predictions.mean(axis=1, keepdims=True)
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean_x, var_x = _moments(x, weights)
    mean_y, var_y = _moments(y, weights)
    return _ratio(weights @ (x * y).T - mean_x * mean_y, np.sqrt(var_x * var_y))


def _moments(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D, S) means and variances of values (S, N); a resample of equal values has variance 0."""
    means, squares = weights @ values.T, weights @ (values * values).T
    variances = squares - means**2
    # else the rounding of equal values would pass for a correlation
    return means, np.where(variances > 1e-12 * squares, variances, 0.0)


def _spearman(gold: np.ndarray, predictions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    x = _centred_ranks(gold, counts)
    weighted_x = counts * x
    norm_x = (weighted_x * x).sum(axis=1)
    columns = []
    for values in predictions:
        y = _centred_ranks(values, counts)
        norm = np.sqrt(norm_x * (counts * y * y).sum(axis=1))
        columns.append(_ratio((weighted_x * y).sum(axis=1), norm))
    return np.stack(columns, axis=1)


def _centred_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(D, N) midrank of each row among the resampled rows, minus the mean of the ranks."""
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(distinct)))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)
    midranks = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
    return (midranks - (counts.sum(axis=1, keepdims=True) + 1) / 2)[:, group]


RESAMPLED: dict[str, Resampled] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}


# --- words ----------------------------------------------------------------------------------


def _warnings(tasks: Mapping[str, TaskPredictions]) -> list[str]:
    fewest = min((len(arm) for task in tasks.values() for arm in (task.a, task.b)), default=0)
    if fewest == 1:
        return ["one seed: the interval covers the choice of dev rows, not how seeds vary"]
    if fewest < FEW_SEEDS:
        return [f"{fewest} seeds: an interval from so few tends to be too narrow"]
    return []


def _conclusion(
    a: str,
    b: str,
    margin: float,
    total: Mapping[str, Any],
    found: Mapping[str, Mapping[str, Any]],
    num_scored: int,
) -> list[str]:
    sentences = []
    if num_scored > 1:
        sentences.append(_sentence(a, b, margin, f"the mean of {num_scored} tasks", total))
    sentences += [_sentence(a, b, margin, name, row) for name, row in found.items()]
    return sentences


def _sentence(a: str, b: str, margin: float, where: str, row: Mapping[str, Any]) -> str:
    said = {
        BETTER: f"{a} is better than {b}",
        NOT_WORSE: f"{a} is not worse than {b} by more than {margin:g} points",
        WORSE: f"{a} is worse than {b}",
        UNDECIDED: f"it is undecided whether {a} is worse than {b} by more than {margin:g} points",
    }[row["verdict"]]
    low, high = row["ci"]
    return (
        f"On {where}, {said}: difference {row['difference']:+.2f} points, 95 % interval "
        f"{low:+.2f} to {high:+.2f}."
    )
