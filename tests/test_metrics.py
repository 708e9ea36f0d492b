"""Metrics against scikit-learn, SciPy and tables computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from outshine.metrics import METRICS, compute, standard_error

RNG = np.random.default_rng(7)
BINARY = RNG.integers(0, 2, 200), RNG.integers(0, 2, 200)
CLASSES = RNG.integers(0, 4, 200), RNG.integers(0, 4, 200)
# rounded, so that ranks have ties
VALUES = RNG.normal(size=200).round(1), RNG.normal(size=200).round(1)


@pytest.mark.parametrize(
    ("name", "columns", "reference"),
    [
        ("accuracy", CLASSES, sklearn.metrics.accuracy_score),
        ("f1", BINARY, sklearn.metrics.f1_score),
        ("f1_macro", CLASSES, lambda g, p: sklearn.metrics.f1_score(g, p, average="macro")),
        ("matthews", BINARY, sklearn.metrics.matthews_corrcoef),
        ("matthews", CLASSES, sklearn.metrics.matthews_corrcoef),
        ("pearson", VALUES, lambda g, p: scipy.stats.pearsonr(g, p).statistic),
        ("spearman", VALUES, lambda g, p: scipy.stats.spearmanr(g, p).statistic),
    ],
)
def test_metrics_match_reference_values(name: str, columns: tuple, reference) -> None:
    assert METRICS[name](*columns) == pytest.approx(float(reference(*columns)), abs=1e-12)


def test_metrics_match_a_table_computed_by_hand() -> None:
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives
    gold = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
    predicted = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    assert METRICS["accuracy"](gold, predicted) == pytest.approx(0.7)
    # precision 3/4, recall 3/5
    assert METRICS["f1"](gold, predicted) == pytest.approx(2 / 3)
    # class 0: precision 4/6, recall 4/5, F1 8/11
    assert METRICS["f1_macro"](gold, predicted) == pytest.approx((2 / 3 + 8 / 11) / 2)
    # (3 * 4 - 1 * 2) / sqrt(4 * 5 * 5 * 6)
    assert METRICS["matthews"](gold, predicted) == pytest.approx(10 / math.sqrt(600))
    values = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 14.0])
    # centred products 19, norms sqrt(5) and sqrt(110)
    assert METRICS["pearson"](*values) == pytest.approx(19 / math.sqrt(550))
    # rank differences 0, -1, 1, 0: 1 - 6 * 2 / (4 * 15)
    assert METRICS["spearman"](*values) == pytest.approx(0.8)


@pytest.mark.parametrize("name", ["spearman", "pearson", "matthews"])
def test_constant_prediction_has_correlation_zero_and_a_mark(name: str) -> None:
    gold = np.array([0, 1, 1, 0])
    assert compute([name], gold, np.ones(4)) == {name: 0.0, "n": 4, "constant_prediction": 1}


@pytest.mark.parametrize("name", ["spearman", "pearson"])
def test_constant_gold_has_correlation_zero(name: str) -> None:
    assert compute([name], np.ones(4), np.arange(4.0)) == {name: 0.0, "n": 4}


def test_f1_without_a_positive_is_zero() -> None:
    assert compute(["f1"], np.zeros(3), np.array([0, 0, 0])) == {
        "f1": 0.0,
        "n": 3,
        "constant_prediction": 1,
    }


def test_compute_refuses_no_rows_and_values_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="metrics need at least one row"):
        compute(["accuracy"], np.array([]), np.array([]))
    with pytest.raises(ValueError, match="a prediction is not a finite number"):
        compute(["pearson"], np.arange(2.0), np.array([0.0, np.nan]))


def test_standard_error_of_accuracy_is_that_of_a_proportion() -> None:
    gold, predicted = np.zeros(400, int), np.repeat([0, 1], [300, 100])
    expected = math.sqrt(0.75 * 0.25 / 400)
    assert standard_error("accuracy", gold, predicted) == pytest.approx(expected, rel=0.1)
    again = standard_error("accuracy", gold, predicted)
    assert standard_error("accuracy", gold, predicted) == again
