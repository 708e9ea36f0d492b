"""Metrics by name, computed by scikit-learn and SciPy, and the error of a dev score.

Predictions are class indices for classification and values on the label's scale for regression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

# WNLI's dev set contradicts its train set by design; GLUE scores leave it out (BAM! section 3).
NOT_IN_SCORE = ("wnli",)

Metric = Callable[[np.ndarray, np.ndarray], float]


def accuracy(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Share of rows whose predicted class is the gold class, in [0, 1]."""
    return float(np.mean(gold == predicted))


def f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    """F1 of class 1 (the task's second label), in [0, 1]; 0 where it is undefined."""
    from sklearn.metrics import f1_score

    return float(f1_score(gold == 1, predicted == 1, zero_division=0.0))


def f1_macro(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Unweighted mean of the classes' F1 over the classes that occur, in [0, 1]."""
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, average="macro", zero_division=0.0))


def matthews(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Matthews correlation, in [-1, 1]; 0 for a constant prediction."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(gold, predicted))


def pearson(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson correlation, in [-1, 1]; 0 where one side is constant."""
    from scipy.stats import pearsonr

    return 0.0 if _is_constant(gold, predicted) else float(pearsonr(gold, predicted).statistic)


def spearman(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Spearman rank correlation, in [-1, 1]; 0 where one side is constant."""
    from scipy.stats import spearmanr

    return 0.0 if _is_constant(gold, predicted) else float(spearmanr(gold, predicted).statistic)


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def _is_constant(*columns: np.ndarray) -> bool:
    return any(len(column) < 2 or bool(np.all(column == column[0])) for column in columns)


def compute(names: Sequence[str], gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """All metrics of one split, with its number of rows and a mark for a constant prediction.

    Args:
        names: Keys of METRICS; the first is the primary metric.
        gold: (N,) class indices int64, or values float64.
        predicted: (N,) likewise.

    Returns:
        {metric: fraction, ..., "n": N}; with "constant_prediction": 1 where all predictions are
        equal, because a correlation is then undefined and reported as 0.

    Raises:
        ValueError: If there are no rows or a prediction is not finite.
    """
    if len(gold) == 0:
        raise ValueError("metrics need at least one row")
    if not np.all(np.isfinite(predicted)):
        raise ValueError("a prediction is not a finite number")
    scores: dict[str, float] = {name: METRICS[name](gold, predicted) for name in names}
    scores["n"] = len(gold)
    if _is_constant(predicted):
        scores["constant_prediction"] = 1
    return scores


def standard_error(name: str, gold: np.ndarray, predicted: np.ndarray) -> float:
    """Standard error of a metric over dev rows: what so many rows can resolve, as a fraction.

    The bootstrap's standard deviation over 500 resamples of rows (SciPy), with a fixed seed. It
    covers the choice of dev rows, not the seed of the training run.
    """
    from scipy.stats import bootstrap

    result = bootstrap(
        (gold, predicted),
        METRICS[name],
        paired=True,
        vectorized=False,
        n_resamples=500,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.standard_error)
