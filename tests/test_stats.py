"""Statistics against published examples, brute force, SciPy, and simulation.

The simulations draw accuracies like those of a dev set of 277 rows (RTE's): many are tied.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from outshine import stats

DEV_ROWS = 277
# few distinct values, so that ties are frequent
SAMPLES = st.lists(st.integers(0, 12).map(lambda hits: hits / 12), min_size=1, max_size=7).map(
    np.array
)


def accuracies(rng: np.random.Generator, num_seeds: int, chance: float = 0.7) -> np.ndarray:
    """(num_seeds,) in percent, of predictions that are right with this chance."""
    return 100 * rng.binomial(DEV_ROWS, chance, num_seeds) / DEV_ROWS


def highest_rate(num_trials: int, chance: float = stats.LEVEL) -> float:
    """Rate that is passed with probability 0.001 where the true one is `chance`."""
    return float(scipy.stats.binom.ppf(0.999, num_trials, chance)) / num_trials


def lowest_rate(num_trials: int, chance: float) -> float:
    return float(scipy.stats.binom.ppf(0.001, num_trials, chance)) / num_trials


# --- summaries and effect size --------------------------------------------------------------


def test_summary_matches_a_table_computed_by_hand() -> None:
    assert stats.summary(np.array([4.0, 1.0, 2.0, 3.0, 10.0])) == pytest.approx(
        {"n": 5, "median": 3, "mean": 4, "std": math.sqrt(12.5), "q25": 2, "q75": 4}
        | {"min": 1, "max": 10}
    )


def test_one_value_has_no_standard_deviation() -> None:
    assert stats.summary(np.array([71.5]))["std"] is None


@settings(max_examples=60, deadline=None)
@given(SAMPLES, st.randoms())
def test_summary_does_not_depend_on_the_order(values: np.ndarray, random) -> None:
    shuffled = values.tolist()
    random.shuffle(shuffled)
    assert stats.summary(np.array(shuffled)) == pytest.approx(stats.summary(values), nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(SAMPLES, SAMPLES)
def test_effect_size_is_u_over_all_pairs_and_its_mirror(a: np.ndarray, b: np.ndarray) -> None:
    u = scipy.stats.mannwhitneyu(a, b, method="asymptotic").statistic
    assert stats.effect_size(a, b) == pytest.approx(u / (len(a) * len(b)))
    assert stats.effect_size(a, b) + stats.effect_size(b, a) == pytest.approx(1.0)


# --- Mann-Whitney ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "p", "test"),
    [
        pytest.param(
            # Shier 2004, The Mann-Whitney U Test, Mathematics Learning Support Centre
            [19, 22, 16, 29, 24],
            [20, 11, 17, 12],
            1 / 9,
            "Mann-Whitney U, exact",
            id="age at diagnosis",
        ),
        pytest.param(
            # Hollander and Wolfe 1973, page 69 (R, ?wilcox.test: one-sided p 0.1272)
            [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46],
            [1.15, 0.88, 0.90, 0.74, 1.21],
            0.2544,
            "Mann-Whitney U, exact",
            id="permeability",
        ),
        pytest.param(
            # StatXact 4 manual, page 221 (R, exactRankTests, ?wilcox.exact)
            [94, 108, 110, 90],
            [80, 94, 85, 90, 90, 90, 108, 94, 78, 105, 88],
            0.0989,
            "Mann-Whitney U, exact permutation with ties",
            id="blood pressure, with ties",
        ),
    ],
)
def test_mann_whitney_matches_published_examples(
    a: list[float], b: list[float], p: float, test: str
) -> None:
    found = stats.mann_whitney(np.array(a, float), np.array(b, float))
    assert found == (pytest.approx(p, abs=5e-5), test)


@settings(max_examples=60, deadline=None)
@given(SAMPLES, SAMPLES)
def test_mann_whitney_is_the_permutation_test_of_all_splits(a: np.ndarray, b: np.ndarray) -> None:
    pooled = np.concatenate([a, b])
    ranks = scipy.stats.rankdata(pooled)
    expected = len(a) * (len(pooled) + 1) / 2
    sums = [sum(split) for split in itertools.combinations(ranks.tolist(), len(a))]
    distances = np.abs(np.array(sums) - expected)
    found = np.mean(distances >= abs(ranks[: len(a)].sum() - expected))
    assert stats.mann_whitney(a, b)[0] == pytest.approx(found)


def test_mann_whitney_with_ties_equals_scipys_permutations() -> None:
    # SciPy doubles the smaller tail: the same for samples of equal size, whose null is symmetric
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 6, 6) / 6, rng.integers(2, 9, 6) / 6
    method = scipy.stats.PermutationMethod(n_resamples=np.inf)
    expected = scipy.stats.mannwhitneyu(a, b, method=method).pvalue
    found, test = stats.mann_whitney(a, b)
    assert test == "Mann-Whitney U, exact permutation with ties"
    assert found == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(SAMPLES, SAMPLES, st.randoms())
def test_mann_whitney_depends_on_ranks_alone(a: np.ndarray, b: np.ndarray, random) -> None:
    p, test = stats.mann_whitney(a, b)
    # ties can make the null lean to one side where the samples differ in size
    least = stats.smallest_p(len(a), len(b)) / (1 if len(a) == len(b) else 2)
    assert least - 1e-12 <= p <= 1.0
    assert stats.mann_whitney(b, a) == (pytest.approx(p), test)
    shuffled = a.tolist()
    random.shuffle(shuffled)
    assert stats.mann_whitney(np.array(shuffled), b) == (pytest.approx(p), test)
    assert stats.mann_whitney(np.exp(5 * a), np.exp(5 * b)) == (pytest.approx(p), test)


def test_all_equal_values_give_p_one() -> None:
    assert stats.mann_whitney(np.full(5, 52.7), np.full(4, 52.7)) == (1.0, "all equal")
    assert stats.signed_rank(np.zeros(5)) == (1.0, "all equal")


def test_values_that_differ_by_rounding_alone_are_tied() -> None:
    assert 0.1 + 0.2 != 0.3
    a, b = np.array([0.1 + 0.2, 1.0]), np.array([0.3, 2.0])
    assert stats.mann_whitney(a, b) == stats.mann_whitney(np.array([0.3, 1.0]), b)
    assert stats.effect_size(a[:1], b[:1]) == 0.5
    assert stats.signed_rank(a[:1] - b[:1]) == (1.0, "all equal")


@pytest.mark.parametrize("num_seeds", [5, 10, 20])
def test_false_positives_on_tied_accuracies_stay_within_the_binomial_band(num_seeds: int) -> None:
    rng, num_trials = np.random.default_rng(num_seeds), 600
    pairs = [(accuracies(rng, num_seeds), accuracies(rng, num_seeds)) for _ in range(num_trials)]
    tied = np.mean([len(np.unique(np.concatenate(pair))) < 2 * num_seeds for pair in pairs])
    assert tied > 0.8
    for p_values in (
        np.array([stats.mann_whitney(a, b)[0] for a, b in pairs]),
        np.array([stats.signed_rank(a - b)[0] for a, b in pairs]),
    ):
        assert np.mean(p_values <= stats.LEVEL) <= highest_rate(num_trials)
        assert np.mean(p_values <= 0.2) <= highest_rate(num_trials, 0.2)


def test_false_positives_stay_within_the_band_when_runs_collapse() -> None:
    # a fifth of the runs predicts one class, and all these score the same
    rng, num_trials = np.random.default_rng(3), 300
    constant = 100 * 146 / DEV_ROWS

    def arm() -> np.ndarray:
        return np.where(rng.random(20) < 0.2, constant, accuracies(rng, 20))

    p_values = np.array([stats.mann_whitney(arm(), arm())[0] for _ in range(num_trials)])
    assert np.mean(p_values <= stats.LEVEL) <= highest_rate(num_trials)


# --- pairs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("differences", "p", "test"),
    [
        pytest.param(
            # Hollander and Wolfe 1973, page 29 (R, ?wilcox.test: one-sided p 0.01953)
            np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
            - np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]),
            0.03906,
            "Wilcoxon signed-rank, exact",
            id="depression scale",
        ),
        pytest.param(
            # Cureton 1967, Darwin's maize (scipy.stats.wilcoxon)
            np.array([6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75.0]),
            0.041259765625,
            "Wilcoxon signed-rank, exact",
            id="maize",
        ),
        pytest.param(
            # Bortz, Lienert and Boehnke; as in R's exactRankTests (0.1367) without the zeros
            np.array([9, 14, 8, 11, 14, 10, 8, 14, 12, 14, 13, 9, 15, 12, 9.0])
            - np.array([13, 15, 9, 12, 16, 10, 8, 13, 12, 16, 9, 10, 16, 12, 9.0]),
            0.1367,
            "Wilcoxon signed-rank, exact permutation with ties or zeros",
            id="with ties",
        ),
    ],
)
def test_signed_rank_matches_published_examples(
    differences: np.ndarray, p: float, test: str
) -> None:
    found = stats.signed_rank(differences[differences != 0])
    assert found == (pytest.approx(p, abs=5e-5), test)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
def test_signed_rank_is_the_permutation_test_of_all_signs(differences: list[int]) -> None:
    found = np.array(differences, float)
    ranks = scipy.stats.rankdata(np.abs(found)) * (found != 0)
    signs = itertools.product([-1, 1], repeat=len(ranks))
    sums = np.abs([np.dot(ranks, np.array(sign)) for sign in signs])
    expected = np.mean(sums >= abs(np.dot(ranks, np.sign(found))) - 1e-9)
    assert stats.signed_rank(found)[0] == pytest.approx(expected)
    assert stats.signed_rank(-found)[0] == pytest.approx(expected)


def test_signed_rank_with_zeros_equals_scipys_permutations_by_pratt() -> None:
    differences = np.array([0.0, 1, 1, -2, 3, 3, 0, 5])
    method = scipy.stats.PermutationMethod(n_resamples=np.inf)
    expected = scipy.stats.wilcoxon(differences, zero_method="pratt", method=method).pvalue
    assert stats.signed_rank(differences)[0] == pytest.approx(expected)


def test_one_collapsed_run_does_not_decide_a_paired_test() -> None:
    differences = np.array([0.5, 0.7, 0.2, 0.9, 0.4, 0.6, 0.3, 0.8, -30.0])
    assert differences.mean() < 0
    # its rank is 9 whether it lies 1 or 30 points below
    p, _ = stats.signed_rank(differences)
    assert p == stats.signed_rank(np.append(differences[:-1], -1.0))[0]
    assert p < 0.15


# --- Holm -----------------------------------------------------------------------------------


def test_holm_matches_a_published_example() -> None:
    # Wikipedia, Holm-Bonferroni method: of four, the first and the last are rejected at 0.05
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(
    p_values: list[float], level: float
) -> None:
    rejected = set()
    for step, index in enumerate(np.argsort(p_values).tolist()):
        if p_values[index] > level / (len(p_values) - step):
            break
        rejected.add(index)
    adjusted = stats.holm(p_values)
    near = any(math.isclose(p, level, rel_tol=1e-9) for p in adjusted)
    assert near or {i for i, p in enumerate(adjusted) if p <= level} == rejected
    assert all(p <= q <= 1.0 for p, q in zip(p_values, adjusted, strict=True))
    assert stats.holm(p_values[::-1]) == pytest.approx(adjusted[::-1])


def test_holm_of_no_comparison_is_empty() -> None:
    assert stats.holm([]) == []


# --- what so many seeds can show ------------------------------------------------------------


@pytest.mark.parametrize(("num_a", "num_b"), [(1, 1), (1, 4), (3, 3), (4, 4), (5, 5), (5, 20)])
def test_smallest_p_is_that_of_samples_that_do_not_overlap(num_a: int, num_b: int) -> None:
    a, b = np.arange(num_a) + 100.0, np.arange(num_b) + 0.0
    assert stats.smallest_p(num_a, num_b) == pytest.approx(stats.mann_whitney(a, b)[0])


def test_seeds_to_reach_is_the_first_number_that_can() -> None:
    # 2 / C(2n, n): 0.1 for 3, 0.029 for 4, 0.0079 for 5, 0.0022 for 6, 0.00058 for 7
    assert [stats.seeds_to_reach(family) for family in (1, 2, 6, 7, 23, 24)] == [4, 5, 5, 6, 6, 7]


def mann_whitney_power(num_seeds: int, difference: float, std: float, num_trials: int) -> float:
    """Share of simulated normal samples whose difference has p <= 5 %."""
    rng = np.random.default_rng(num_seeds)
    a = rng.normal(difference, std, (num_trials, num_seeds))
    b = rng.normal(0, std, (num_trials, num_seeds))
    p_values = scipy.stats.mannwhitneyu(a, b, axis=1, method="exact").pvalue
    return float(np.mean(p_values <= stats.LEVEL))


def test_twenty_seeds_find_half_a_point_but_not_three_tenths() -> None:
    half, third = (stats.seeds_needed(difference, 0.4, 0.4) for difference in (0.5, 0.3))
    assert half is not None and third is not None
    assert half <= 20 < third
    trials = 2000
    assert mann_whitney_power(20, 0.5, 0.4, trials) >= highest_rate(trials, stats.POWER)
    assert mann_whitney_power(20, 0.3, 0.4, trials) <= lowest_rate(trials, stats.POWER)


@pytest.mark.parametrize("difference", [0.3, 0.5, 0.8])
def test_seeds_needed_gives_the_power_that_it_promises(difference: float) -> None:
    needed, trials = stats.seeds_needed(difference, 0.4, 0.4), 2000
    assert needed is not None
    assert mann_whitney_power(needed, difference, 0.4, trials) >= lowest_rate(trials, stats.POWER)
    # and asks for a third more than would do at most
    assert mann_whitney_power(needed * 2 // 3, difference, 0.4, trials) < stats.POWER


def test_seeds_needed_matches_noethers_formula_computed_by_hand() -> None:
    # P(a > b) 0.702 for 0.3 / (0.4 sqrt 2); (1.96 + 0.842)^2 / (6 * 0.202^2) = 32.05
    assert stats.seeds_needed(0.3, 0.4, 0.4) == 33
    assert stats.seeds_needed(-0.3, 0.4, 0.4) == 33
    assert stats.seeds_needed(0.3, 0.0, 0.4 * math.sqrt(2)) == 33


def test_seeds_needed_has_its_limits() -> None:
    assert stats.seeds_needed(5.0, 0.0, 0.0) == 6
    assert stats.seeds_needed(0.0, 0.4, 0.4) is None
    assert stats.seeds_needed(1e-12, 0.4, 0.4) is None
    assert stats.seeds_needed(0.3, None, 0.4) is None


# --- the interval of the difference of medians ----------------------------------------------


def test_interval_equals_resampling_by_hand() -> None:
    a, b = np.array([70.0, 71, 75, 72]), np.array([69.0, 70, 70])
    low, high = stats.median_interval(a, b, np.random.default_rng(0)) or (0.0, 0.0)
    # all resamples of 4 and of 3, each equally likely
    medians = [
        np.median(list(itertools.product(sample.tolist(), repeat=len(sample))), axis=1)
        for sample in (a, b)
    ]
    exact = np.quantile(np.subtract.outer(*medians), [0.025, 0.975])
    assert [low, high] == pytest.approx(exact.tolist(), abs=0.5)


def test_interval_is_the_same_for_the_same_seed_and_none_for_one_value() -> None:
    a, b = np.array([70.0, 71, 75]), np.array([69.0, 70, 70])
    first, again = (stats.median_interval(a, b, np.random.default_rng(1)) for _ in range(2))
    assert first == again
    assert stats.median_interval(a[:1], b, np.random.default_rng(1)) is None
    assert stats.median_interval(a, b[:1], np.random.default_rng(1)) is None


def test_interval_of_equal_values_is_their_difference() -> None:
    a, b = np.full(5, 70.0), np.full(5, 68.0)
    assert stats.median_interval(a, b, np.random.default_rng(0)) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("num_seeds", "low", "high"),
    # measured with 600 pairs: 0.91 for 3 seeds (0.88 without ties), 0.97 to 0.98 for 5 and more
    [(3, 0.85, 0.95), (5, 0.95, 0.995), (20, 0.95, 0.995)],
)
def test_interval_covers_the_true_difference_as_often_as_measured(
    num_seeds: int, low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "NUM_DRAWS", 999)
    truth = 100 * float(np.subtract(*scipy.stats.binom.median(DEV_ROWS, [0.7, 0.75]))) / DEV_ROWS
    rng, num_trials, covered = np.random.default_rng(2), 300, 0
    for _ in range(num_trials):
        a, b = accuracies(rng, num_seeds, 0.7), accuracies(rng, num_seeds, 0.75)
        interval = stats.median_interval(a, b, rng)
        assert interval is not None
        covered += interval[0] - 1e-9 <= truth <= interval[1] + 1e-9
    assert low <= covered / num_trials <= high
