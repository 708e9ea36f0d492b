"""Statistics of a handful of scores, one per seed: summaries, intervals, rank tests, power.

Accuracies on a small dev set are often equal, so the rank tests are exact with ties, too: SciPy's
where it has them, else by counting all the ways to deal the tied ranks out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.05  # two-sided
POWER = 0.8
NUM_DRAWS = 10_000
# Intervals drawn from fewer seeds cover less than they say (tests/test_stats.py measures it).
FEW_SEEDS = 5
# Values that differ by less are equal: a mean of the same numbers may differ in its last bit.
DECIMALS = 9
ALL_EQUAL = "all equal"


def summary(values: np.ndarray) -> dict[str, float | int | None]:
    """n, median, mean, standard deviation (ddof 1; None for n = 1), quartiles, min and max.

    Args:
        values: (n,) at least one. Quartiles are interpolated between neighbours.
    """
    q25, median, q75 = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {
        "n": len(values),
        "median": median,
        "mean": float(np.mean(values)),
        "std": deviation(values),
        "q25": q25,
        "q75": q75,
        "min": float(np.min(values)),
        "max": float(np.max(values)),
    }


def deviation(values: np.ndarray) -> float | None:
    """Standard deviation of a sample (ddof 1), or None where one value cannot show any."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def median_difference(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    """Median of a minus median of b along an axis."""
    return np.median(a, axis=axis) - np.median(b, axis=axis)


def median_interval(
    a: np.ndarray, b: np.ndarray, rng: np.random.Generator
) -> tuple[float, float] | None:
    """95 % percentile-bootstrap interval of the difference of medians (SciPy).

    Args:
        a: (n_a,) values.
        b: (n_b,) values.
        rng: Draws NUM_DRAWS resamples of each.

    Returns:
        Lower and upper end, or None where one value stands for an arm: resampling it shows nothing.
    """
    from scipy.stats import bootstrap

    if min(len(a), len(b)) < 2:
        return None
    result = bootstrap(
        (a, b),
        median_difference,
        n_resamples=NUM_DRAWS,
        confidence_level=1 - LEVEL,
        method="percentile",
        rng=rng,
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def effect_size(a: np.ndarray, b: np.ndarray) -> float:
    """Common-language effect size: P(a > b) + P(a = b) / 2 over all pairs, in [0, 1].

    Source: McGraw and Wong 1992; with ties, Vargha and Delaney 2000.
    """
    gaps = np.round(np.subtract.outer(a, b), DECIMALS)
    return float(np.mean((np.sign(gaps) + 1) / 2))


def mann_whitney(a: np.ndarray, b: np.ndarray) -> tuple[float, str]:
    """Two-sided Mann-Whitney U test of two independent samples, exact with and without ties.

    With ties, p is the share of all ways to deal the pooled midranks out in which the rank sum of
    a lies at least as far from its expectation: the permutation test with every permutation.

    Args:
        a: (n_a,) values.
        b: (n_b,) values.

    Returns:
        p and the name of the test; 1 where all values are equal.
    """
    from scipy.stats import mannwhitneyu, rankdata

    pooled = np.round(np.concatenate([a, b]), DECIMALS)
    num_distinct = len(np.unique(pooled))
    if num_distinct == 1:
        return 1.0, ALL_EQUAL
    if num_distinct == len(pooled):
        return float(mannwhitneyu(a, b, method="exact").pvalue), "Mann-Whitney U, exact"
    ranks = np.rint(2 * rankdata(pooled)).astype(int)  # twice the midranks are whole
    counts = _subset_sums(ranks, len(a))[len(a)]
    expected = len(a) * (len(pooled) + 1)
    found = abs(ranks[: len(a)].sum() - expected)
    extreme = np.abs(np.arange(len(counts)) - expected) >= found
    return _share(counts, extreme), "Mann-Whitney U, exact permutation with ties"


def signed_rank(differences: np.ndarray) -> tuple[float, str]:
    """Two-sided Wilcoxon signed-rank test of paired differences, exact with ties and zeros.

    It ranks, as Mann-Whitney does, so one degenerate run weighs no more than any other run; a
    sign-flip test of the mean would follow that run. Zeros are ranked and then left out (Pratt
    1959): left out before, larger differences could make p larger.

    Args:
        differences: (n,) a minus b, by seed.

    Returns:
        p and the name of the test; 1 where all differences are zero.
    """
    from scipy.stats import rankdata, wilcoxon

    differences = np.round(differences, DECIMALS)
    sizes = np.abs(differences)
    if not sizes.any():
        return 1.0, ALL_EQUAL
    if sizes.all() and len(np.unique(sizes)) == len(sizes):
        p = wilcoxon(differences, method="exact").pvalue
        return float(p), "Wilcoxon signed-rank, exact"
    ranks = np.rint(2 * rankdata(sizes)).astype(int)
    counted = ranks[sizes > 0]
    counts = _subset_sums(counted, len(counted)).sum(axis=0)
    # a sum and the sum of the other ranks are equally far from half of the total
    found = abs(2 * ranks[differences > 0].sum() - counted.sum())
    extreme = np.abs(2 * np.arange(len(counts)) - counted.sum()) >= found
    return _share(counts, extreme), "Wilcoxon signed-rank, exact permutation with ties or zeros"


def _subset_sums(weights: np.ndarray, max_size: int) -> np.ndarray:
    """(max_size + 1, sum + 1) float64: how many subsets have each size and each sum.

    Args:
        weights: (n,) positive integers.
        max_size: Largest size that is counted.

    Source: the shift algorithm, Streitberg and Röhmel 1986.
    """
    counts = np.zeros((max_size + 1, int(weights.sum()) + 1))
    counts[0, 0] = 1.0
    end = 1  # of what the weights so far can reach; small weights first, so that it grows late
    for number, weight in enumerate(np.sort(weights).tolist()):
        size = min(number, max_size - 1) + 1
        counts[1 : size + 1, weight : end + weight] += counts[:size, :end]
        end += weight
    return counts


def _share(counts: np.ndarray, chosen: np.ndarray) -> float:
    return float(min(1.0, counts[chosen].sum() / counts.sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction over their family, in the same order.

    Source: Holm 1979.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    steps = np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order])
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


def smallest_p(num_a: int, num_b: int) -> float:
    """Smallest two-sided p that Mann-Whitney can reach with so many seeds, without ties."""
    return min(1.0, 2 / math.comb(num_a + num_b, num_a))


def seeds_to_reach(family: int) -> int:
    """Seeds per arm from which p can fall to 5 % after Holm over so many comparisons."""
    num = 1
    while family * smallest_p(num, num) > LEVEL:
        num += 1
    return num


def seeds_needed(difference: float, std_a: float | None, std_b: float | None) -> int | None:
    """Seeds per arm with which Mann-Whitney finds a difference with 80 % power at 5 %, two-sided.

    Noether's formula n = (z_0.975 + z_0.8)^2 / (6 (P - 1/2)^2), with P = P(a > b) of two normal
    distributions that lie `difference` apart and have these deviations; one comparison, no Holm.

    Args:
        difference: Between the arms, in the unit of the deviations.
        std_a: Standard deviation over the seeds of one arm.
        std_b: Of the other arm.

    Returns:
        The number, at least the 4 that can reach 5 % at all; None for a difference of 0 and
        where a deviation is not known.

    Source: Noether 1987, Sample size determination for some common nonparametric tests.
    """
    from scipy.stats import norm

    if std_a is None or std_b is None or round(difference, DECIMALS) == 0:
        return None
    spread = math.hypot(std_a, std_b)
    chance = norm.cdf(abs(difference) / spread) if spread > 0 else 1.0
    z = norm.ppf(1 - LEVEL / 2) + norm.ppf(POWER)
    return max(seeds_to_reach(1), math.ceil(z**2 / (6 * (chance - 0.5) ** 2)))
