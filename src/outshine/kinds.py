"""Kinds of task: one frozen record per kind holds all that differs between kinds.

No other module asks which kind a task is. A new kind is one more record here. Nothing imports
torch: a loss uses the methods of the tensors that it is given.

Shapes: N rows, C outputs of the head (classes, or 1 for regression).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from outshine.tasks import Task


@dataclass(frozen=True)
class Kind:
    """All that Outshine knows about one kind of task.

    Attributes:
        name: As written in a task file.
        metrics: Metrics that fit; the first is the default.
        problems: Task -> what is wrong with its labels or range, one line each.
        num_outputs: Task -> C.
        describe_gold: Task -> the values that a label cell may hold, for people.
        parse_gold: (Task, cell text) -> gold as a float (a class index, or a value); raises
            ValueError with `<found>, expected <what>`.
        gold_target: (Task, gold (N,) float32) -> (N, C) float32, the target at gold_weight 1.
        soft_target: (logits (N, C), temperature) -> (N, C) float32, the target at gold_weight 0.
        loss: (logits (N, C), target (N, C)) -> (N,) float32 tensor, one loss per row.
        decode: (Task, logits (N, C)) -> (N,) what the metrics take as predictions.
        gold_values: (Task, gold (N,) float32) -> (N,) what the metrics take as gold.
        answer: (Task, logits (C,)) -> the task's part of a line of `outshine predict`.
        probs: logits (N, C) -> (N, C) float64 probabilities of the classes; None without classes.
        table_columns: Task -> the columns of a teacher's table of probabilities.
        table_problem: (row of that table (C,)) -> what is wrong with it, or an empty string.
        logits_of_table: (Task, table (N, C) float64) -> logits (N, C) float32 that give it back.
        average: [logits (N, C), ...] -> logits (N, C) of the mean of the output distributions.
        classifier_rows: (Task, label names of a transformers classifier) -> (its output rows in
            the order of the task's outputs, factor, shift) that turn its outputs into logits;
            raises ValueError with `<found>, expected <what>`.
        problem_type: What a transformers classifier calls the kind in its configuration.
        output_scale: Task -> (factor, shift) that turn logits into the outputs of such a
            classifier, the inverse of `classifier_rows`.
        cells: (Task, logits (N, C)) -> N answers as a table writes them, read by `parse_gold`.
        balance: (Task, gold (N,)) -> {name: value} that describes how gold is distributed.
    """

    name: str
    metrics: tuple[str, ...]
    problems: Callable[[Task], list[str]]
    num_outputs: Callable[[Task], int]
    describe_gold: Callable[[Task], str]
    parse_gold: Callable[[Task, str], float]
    gold_target: Callable[[Task, np.ndarray], np.ndarray]
    soft_target: Callable[[np.ndarray, float], np.ndarray]
    loss: Callable[[Tensor, Tensor], Tensor]
    decode: Callable[[Task, np.ndarray], np.ndarray]
    gold_values: Callable[[Task, np.ndarray], np.ndarray]
    answer: Callable[[Task, np.ndarray], dict[str, Any]]
    probs: Callable[[np.ndarray], np.ndarray] | None
    table_columns: Callable[[Task], list[str]]
    table_problem: Callable[[np.ndarray], str]
    logits_of_table: Callable[[Task, np.ndarray], np.ndarray]
    average: Callable[[Sequence[np.ndarray]], np.ndarray]
    classifier_rows: Callable[[Task, list[str]], tuple[list[int], float, float]]
    problem_type: str
    output_scale: Callable[[Task], tuple[float, float]]
    cells: Callable[[Task, np.ndarray], list[str]]
    balance: Callable[[Task, np.ndarray], dict[str, float]]


def to_number(text: str) -> float:
    """`float`, but for the underscores that Python allows between digits; raises ValueError."""
    if "_" in text:
        raise ValueError(f"{text!r} is no number")
    return float(text)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Softmax over the last axis, computed in float64. Returns float64, same shape."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


# --- classification -------------------------------------------------------------------------


def _class_problems(task: Task) -> list[str]:
    problems = []
    if len(task.labels) < 2:
        problems.append(f"labels: {len(task.labels)} given, expected two or more")
    if len(set(task.labels)) != len(task.labels):
        problems.append("labels: a label stands twice, expected distinct labels")
    if task.range is not None:
        problems.append('range: given, expected none for kind = "classification"')
    return problems


def _parse_class(task: Task, text: str) -> float:
    try:
        return float(task.labels.index(text))
    except ValueError:
        raise ValueError(f"label {text!r}, expected one of {', '.join(task.labels)}") from None


def _one_hot(task: Task, gold: np.ndarray) -> np.ndarray:
    return np.eye(len(task.labels), dtype=np.float32)[gold.astype(np.int64)]


def _soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (nats) of a target distribution; with a one-hot target the ordinary one."""
    return -(target * logits.log_softmax(dim=-1)).sum(dim=-1)


def _class_answer(task: Task, logits: np.ndarray) -> dict[str, Any]:
    probs = softmax(logits)
    return {
        "label": task.labels[int(logits.argmax())],
        "probs": {label: float(p) for label, p in zip(task.labels, probs, strict=True)},
    }


def _probability_problem(row: np.ndarray) -> str:
    if (row < 0).any() or (row > 1).any():
        return "a probability outside [0, 1]"
    if abs(row.sum() - 1.0) > 1e-3:
        return f"probabilities that sum to {row.sum():.4g}, expected 1"
    return ""


def _log(probs: np.ndarray) -> np.ndarray:
    """Logarithm with probability 0 taken as the smallest float32, so that logits stay finite."""
    return np.log(np.maximum(probs, np.finfo(np.float32).tiny)).astype(np.float32)


def _classifier_rows(task: Task, names: list[str]) -> tuple[list[int], float, float]:
    if sorted(names) != sorted(task.labels):
        raise ValueError(f"labels {', '.join(names)}, expected {', '.join(task.labels)}")
    return [names.index(label) for label in task.labels], 1.0, 0.0


def _class_balance(task: Task, gold: np.ndarray) -> dict[str, float]:
    counts = np.bincount(gold.astype(np.int64), minlength=len(task.labels))
    shares = counts / max(1, len(gold))
    return {label: float(share) for label, share in zip(task.labels, shares, strict=True)}


CLASSIFICATION = Kind(
    name="classification",
    metrics=("accuracy", "f1", "f1_macro", "matthews"),
    problems=_class_problems,
    num_outputs=lambda task: len(task.labels),
    describe_gold=lambda task: ", ".join(task.labels),
    parse_gold=_parse_class,
    gold_target=_one_hot,
    soft_target=lambda logits, temperature: softmax(logits, temperature).astype(np.float32),
    loss=_soft_cross_entropy,
    decode=lambda task, logits: logits.argmax(axis=-1),
    gold_values=lambda task, gold: gold.astype(np.int64),
    answer=_class_answer,
    probs=softmax,
    table_columns=lambda task: list(task.labels),
    table_problem=_probability_problem,
    logits_of_table=lambda task, table: _log(table),
    average=lambda members: _log(np.mean([softmax(logits) for logits in members], axis=0)),
    classifier_rows=_classifier_rows,
    problem_type="single_label_classification",
    output_scale=lambda task: (1.0, 0.0),
    cells=lambda task, logits: [task.labels[i] for i in logits.argmax(axis=-1)],
    balance=_class_balance,
)


# --- regression -----------------------------------------------------------------------------
# The head's one output is the label scaled to [0, 1]; values leave on the label's own scale.


def _bounds(task: Task) -> tuple[float, float]:
    assert task.range is not None
    return task.range


def _range_problems(task: Task) -> list[str]:
    problems = []
    if task.range is None:
        problems.append('range: missing, expected range = [low, high] for kind = "regression"')
    elif not (math.isfinite(task.range[0]) and task.range[0] < task.range[1] < math.inf):
        problems.append(f"range: {list(task.range)}, expected two finite numbers, low < high")
    if task.labels:
        problems.append('labels: given, expected none for kind = "regression"')
    return problems


def _parse_value(task: Task, text: str) -> float:
    low, high = _bounds(task)
    expected = f"expected a number from {low:g} to {high:g}"
    try:
        value = to_number(text)
    except ValueError:
        raise ValueError(f"label {text!r}, {expected}") from None
    if not low <= value <= high:  # also refuses NaN
        raise ValueError(f"label {text!r}, {expected}")
    return value


def _scale(task: Task, gold: np.ndarray) -> np.ndarray:
    low, high = _bounds(task)
    return ((gold - low) / (high - low)).astype(np.float32)[:, None]


def _unscale(task: Task, logits: np.ndarray) -> np.ndarray:
    low, high = _bounds(task)
    return low + (high - low) * logits[..., 0].astype(np.float64)


def _regressor_rows(task: Task, names: list[str]) -> tuple[list[int], float, float]:
    if len(names) != 1:
        raise ValueError(f"{len(names)} outputs, expected one, the value")
    low, high = _bounds(task)
    return [0], 1.0 / (high - low), -low / (high - low)


def _value_scale(task: Task) -> tuple[float, float]:
    low, high = _bounds(task)
    return high - low, low


def _value_cells(task: Task, logits: np.ndarray) -> list[str]:
    """Values with three decimals, those outside the range at its nearer end."""
    return [f"{value:.3f}" for value in np.clip(_unscale(task, logits), *_bounds(task))]


def _value_balance(task: Task, gold: np.ndarray) -> dict[str, float]:
    quartiles = np.quantile(gold, (0.0, 0.25, 0.5, 0.75, 1.0))
    names = ("min", "q25", "median", "q75", "max")
    return {name: float(value) for name, value in zip(names, quartiles, strict=True)}


REGRESSION = Kind(
    name="regression",
    metrics=("spearman", "pearson"),
    problems=_range_problems,
    num_outputs=lambda task: 1,
    describe_gold=lambda task: "{:g} to {:g}".format(*_bounds(task)),
    parse_gold=_parse_value,
    gold_target=_scale,
    soft_target=lambda logits, temperature: logits.astype(np.float32),
    loss=lambda logits, target: (logits - target).square().sum(dim=-1),
    decode=_unscale,
    gold_values=lambda task, gold: gold.astype(np.float64),
    answer=lambda task, logits: {"value": float(_unscale(task, logits))},
    probs=None,
    table_columns=lambda task: ["value"],
    table_problem=lambda row: "",
    logits_of_table=lambda task, table: _scale(task, table[:, 0]),
    average=lambda members: np.asarray(np.mean(members, axis=0), np.float32),
    classifier_rows=_regressor_rows,
    problem_type="regression",
    output_scale=_value_scale,
    cells=_value_cells,
    balance=_value_balance,
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in (CLASSIFICATION, REGRESSION)}
