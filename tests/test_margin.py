"""The margin's bootstrap against metrics of repeated rows, and by simulation."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import numpy as np
import pytest

from outshine.errors import UserError
from outshine.margin import RESAMPLED, TaskPredictions, _row_counts, margin_verdict
from outshine.metrics import METRICS

NUM_ROWS = 277


def right(share: float, num_rows: int = 1000) -> np.ndarray:
    """(num_rows,) predictions of which the first `share` are those of gold, which is all 1."""
    return (np.arange(num_rows) < share * num_rows).astype(int)


def judge(a: Mapping[int, np.ndarray], b: Mapping[int, np.ndarray], margin: float = 0.5) -> dict:
    gold = np.ones(len(next(iter(a.values()))), int)
    return margin_verdict(
        "student", "single", {"rte": TaskPredictions("accuracy", gold, a, b)}, margin
    )


# --- metrics of resamples -------------------------------------------------------------------


def test_every_metric_can_be_resampled() -> None:
    assert RESAMPLED.keys() == METRICS.keys()


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("num_classes", [2, 3, 40])
def test_resampled_metrics_equal_those_of_the_repeated_rows(name: str, num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    gold = rng.integers(0, num_classes, 30)
    # the last seed predicts one class
    predictions = np.vstack([rng.integers(0, num_classes, (3, 30)), np.full(30, gold[0])])
    counts = next(_row_counts(30, 25, rng))
    repeats = counts.astype(int)
    expected = [
        [METRICS[name](np.repeat(gold, times), np.repeat(row, times)) for row in predictions]
        for times in repeats
    ]
    assert RESAMPLED[name](gold, predictions, counts) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_resampled_correlations_equal_those_of_the_repeated_values(name: str) -> None:
    rng = np.random.default_rng(3)
    gold = rng.uniform(0, 5, 8).round(1)
    # values far from 0, and a constant whose mean is not exactly itself
    predictions = np.stack([rng.normal(1e3, 1, 8), gold + rng.normal(size=8), np.full(8, 0.1)])
    counts = np.vstack([next(_row_counts(8, 200, rng)), np.eye(8) * 8])
    expected = [
        [METRICS[name](np.repeat(gold, times), np.repeat(row, times)) for row in predictions]
        for times in counts.astype(int)
    ]
    assert RESAMPLED[name](gold, predictions, counts) == pytest.approx(np.array(expected), abs=1e-6)


def test_resamples_have_as_many_rows_as_the_dev_set_in_chunks_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = np.concatenate(list(_row_counts(50, 20, np.random.default_rng(0))))
    assert (whole.sum(axis=1) == 50).all()
    monkeypatch.setattr("outshine.margin.CELLS_PER_CHUNK", 150)
    chunks = list(_row_counts(50, 20, np.random.default_rng(0)))
    assert [len(chunk) for chunk in chunks] == [3] * 6 + [2]
    assert (np.concatenate(chunks) == whole).all()


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_resample_of_equal_rows_has_no_correlation(name: str) -> None:
    rng = np.random.default_rng(0)
    # rows 0 and 1 are equal, and some resamples have no other
    gold = np.repeat(rng.normal(size=4), [2, 1, 1, 1])
    predictions = np.repeat(rng.normal(size=(20, 4)), [2, 1, 1, 1], axis=1)
    counts = np.zeros((60, 5))
    counts[:, 0], counts[:, 1] = range(1, 61), range(60, 0, -1)
    assert (RESAMPLED[name](gold, predictions, counts) == 0).all()


# --- verdicts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share_a", "share_b", "margin", "verdict", "said"),
    [
        (0.9, 0.7, 0.5, "better", "student is better than single"),
        (0.7, 0.7, 0.0, "not worse by more than the margin", "student is not worse than single"),
        (
            0.695,
            0.7,
            2,
            "not worse by more than the margin",
            "not worse than single by more than 2",
        ),
        (0.69, 0.7, 0.5, "worse", "student is worse than single"),
        (0.5, 0.7, 0.5, "worse", "student is worse than single"),
    ],
)
def test_the_interval_decides_the_verdict(
    share_a: float, share_b: float, margin: float, verdict: str, said: str
) -> None:
    found = judge({1: right(share_a)}, {1: right(share_b)}, margin)
    assert found["verdict"] == found["tasks"]["rte"]["verdict"] == verdict
    assert found["difference"] == pytest.approx(100 * (share_a - share_b))
    assert said in found["conclusion"][0]


def test_a_difference_smaller_than_its_interval_is_undecided() -> None:
    # other rows are wrong, so that the difference depends on the rows
    found = judge({1: right(0.7)}, {1: right(0.7)[::-1]})
    low, high = found["ci"]
    assert low < -0.5 < 0 < high
    assert found["verdict"] == "undecided"
    assert found["conclusion"] == [
        "On rte, it is undecided whether student is worse than single by more than 0.5 points: "
        f"difference +0.00 points, 95 % interval {low:+.2f} to {high:+.2f}."
    ]


def test_one_seed_covers_the_rows_as_a_proportion_does() -> None:
    # of 1,000 rows 100 are won and 50 lost: sd of the mean of +1, -1, 0
    a, b = right(0.75), right(0.7)
    a[:50], a[950:] = 0, 1
    found = judge({1: a}, {4: b})
    sd = 100 * np.sqrt((100 + 50) / 1000 - 0.05**2) / np.sqrt(1000)
    assert found["difference"] == pytest.approx(5.0)
    assert found["ci"] == pytest.approx([5 - 1.96 * sd, 5 + 1.96 * sd], abs=0.25)
    assert found["tasks"]["rte"]["seeds"] == [1, 1]
    assert found["warnings"] == [
        "one seed: the interval covers the choice of dev rows, not how seeds vary"
    ]


def test_few_seeds_are_warned_of() -> None:
    many, few = ({seed: right(0.7) for seed in range(num)} for num in (5, 4))
    assert judge(many, many)["warnings"] == []
    assert judge(many, few)["warnings"] == [
        "4 seeds: an interval from so few tends to be too narrow"
    ]


def test_equal_seeds_are_paired_and_others_are_not() -> None:
    shares = (0.5, 0.6, 0.7, 0.8, 0.9)
    b = {seed: right(share) for seed, share in enumerate(shares)}
    a = {seed: right(share + 0.01) for seed, share in enumerate(shares)}
    paired, apart = judge(a, b), judge({seed + 5: row for seed, row in a.items()}, b)
    assert (paired["tasks"]["rte"]["paired"], apart["tasks"]["rte"]["paired"]) == (True, False)
    assert paired["verdict"] == "better"
    assert apart["verdict"] == "undecided"
    assert apart["difference"] == paired["difference"] == pytest.approx(1.0)


def test_seeds_that_one_arm_lacks_do_not_turn_pairing_off() -> None:
    shares = (0.5, 0.6, 0.7, 0.8, 0.9)
    b = {seed: right(share) for seed, share in enumerate(shares)}
    a = {seed: right(share + 0.01) for seed, share in enumerate(shares)}
    more = judge({**a, 5: right(0.1)}, {7: right(0.2), **b})
    assert more == judge(a, b)
    assert (more["tasks"]["rte"]["paired"], more["tasks"]["rte"]["seeds"]) == (True, [5, 5])
    # one common seed cannot be compared by seed
    assert judge({1: a[1], 2: a[2]}, {1: b[1], 3: b[3]})["tasks"]["rte"]["seeds"] == [2, 2]


def test_the_order_of_seeds_and_tasks_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 2, 100)
    a, b = ({seed: rng.integers(0, 2, 100) for seed in range(5)} for _ in range(2))
    one = TaskPredictions("f1", gold, a, b)
    two = TaskPredictions(
        "f1", gold, dict(reversed(list(a.items()))), dict(reversed(list(b.items())))
    )
    first = margin_verdict("a", "b", {"x": one, "y": two}, 1.0)
    second = margin_verdict("a", "b", {"y": one, "x": two}, 1.0)
    assert first["tasks"] == second["tasks"]
    assert first["ci"] == pytest.approx(second["ci"])


def test_tasks_share_the_seeds_of_a_draw_in_the_mean() -> None:
    # what a seed gains on one task it loses on the other: their mean does not vary
    gold = np.ones(1000, int)
    shares = (0.5, 0.6, 0.7, 0.8, 0.9)
    base = {seed: right(0.7) for seed in range(5)}
    up = {seed: right(share) for seed, share in enumerate(shares)}
    down = {seed: right(1.4 - share) for seed, share in enumerate(shares)}
    found = margin_verdict(
        "a",
        "b",
        {
            "up": TaskPredictions("accuracy", gold, up, base),
            "down": TaskPredictions("accuracy", gold, down, base),
        },
        0.5,
    )
    widths = {name: np.subtract(*row["ci"][::-1]) for name, row in found["tasks"].items()}
    assert np.subtract(*found["ci"][::-1]) < 0.2 * min(widths.values())
    assert found["conclusion"][0].startswith("On the mean of 2 tasks, ")


def test_the_mean_is_over_the_scored_tasks() -> None:
    gold, good, bad = np.ones(1000, int), {1: right(0.9)}, {1: right(0.5)}
    tasks = {
        "rte": TaskPredictions("accuracy", gold, good, bad),
        "wnli": TaskPredictions("accuracy", gold, bad, good, scored=False),
    }
    found = margin_verdict("a", "b", tasks, 0.5)
    assert found["difference"] == pytest.approx(40.0)
    assert found["tasks"]["wnli"]["difference"] == pytest.approx(-40.0)
    assert len(found["conclusion"]) == 2
    alone = margin_verdict("a", "b", {"wnli": tasks["wnli"]}, 0.5)
    assert (alone["difference"], alone["ci"], alone["verdict"]) == (None, None, "undecided")


def test_the_verdict_is_plain_json_and_names_its_method() -> None:
    found = judge({1: right(0.7)}, {1: right(0.6)})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["method"].startswith("95 % percentile bootstrap, 2,000 draws, seed 0: dev rows")


@pytest.mark.parametrize("margin", [-0.5, float("nan"), float("inf")])
def test_a_margin_below_zero_is_refused(margin: float) -> None:
    with pytest.raises(UserError) as caught:
        judge({1: right(0.7)}, {1: right(0.7)}, margin)
    assert str(caught.value) == (
        f"cannot compare student with single: margin {margin}, expected 0 or more points "
        "(--margin)\nhint: give the loss that you would accept, such as --margin 0.5"
    )


def test_chunks_of_draws_do_not_change_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = ({seed: rng.integers(0, 2, 100) for seed in range(5)} for _ in range(2))
    whole = judge(a, b)
    monkeypatch.setattr("outshine.margin.CELLS_PER_CHUNK", 700)
    assert judge(a, b) == whole


def test_a_draw_has_one_seed_fewer_than_there_are() -> None:
    # one of four models is right on all rows: three of three draws of it have probability 1/64
    right_on_none, right_on_all = right(0.0), right(1.0)
    a = {1: right_on_none, 2: right_on_none, 3: right_on_none, 4: right_on_all}
    found = judge(a, dict.fromkeys(a, right_on_none))
    assert found["ci"] == pytest.approx([0.0, 200 / 3])


# --- simulation -----------------------------------------------------------------------------


def simulated(num_seeds: int, seed_std: float, num_trials: int) -> list[tuple[float, float]]:
    """Intervals of two arms whose models differ by chance alone.

    A row has a difficulty, a seed has a strength, and each prediction has noise of its own.
    """
    rng, intervals = np.random.default_rng(num_seeds), []
    for trial in range(num_trials):
        ease = 0.7 + rng.normal(size=NUM_ROWS)
        strengths = seed_std * rng.normal(size=(2 * num_seeds, 1))
        noise = 0.7 * rng.normal(size=(2 * num_seeds, NUM_ROWS))
        models = dict(enumerate((ease + strengths + noise > 0).astype(int)))
        a = {seed: models[seed] for seed in range(num_seeds)}
        b = {seed: models[seed] for seed in range(num_seeds, 2 * num_seeds)}
        task = TaskPredictions("accuracy", np.ones(NUM_ROWS, int), a, b)
        found = margin_verdict("a", "b", {"rte": task}, 0.5, seed=trial, num_draws=400)
        intervals.append(tuple(found["ci"]))
    return intervals


@pytest.mark.parametrize(
    ("num_seeds", "seed_std", "low", "high"),
    [
        # rows vary more than seeds: wide enough, rather too wide
        (1, 0.0, 0.93, 1.0),
        (5, 0.1, 0.94, 1.0),
        # seeds vary more than rows: about 0.9 from 5 seeds, too little from 2
        (5, 0.3, 0.87, 0.97),
        (2, 0.3, 0.72, 0.91),
        # one seed says nothing about seeds
        (1, 0.3, 0.24, 0.46),
    ],
)
def test_interval_covers_no_difference_as_often_as_measured(
    num_seeds: int, seed_std: float, low: float, high: float
) -> None:
    intervals = simulated(num_seeds, seed_std, 250)
    assert low <= np.mean([first <= 0 <= last for first, last in intervals]) <= high


def test_twenty_seeds_on_mnli_are_judged_in_seconds() -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 3, 9815)
    a, b = ({seed: rng.integers(0, 3, 9815) for seed in range(20)} for _ in range(2))
    started = time.process_time()
    margin_verdict("a", "b", {"mnli": TaskPredictions("accuracy", gold, a, b)}, 0.5)
    assert time.process_time() - started < 10
