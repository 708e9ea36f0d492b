"""The greedy choice, and that it is judged by rows that had no part in it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from outshine.evaluation import halves
from outshine.greedy import Dev, choose, greedy
from outshine.tasks import Task

HALF = 4


def scored(scores: Mapping[str, float]) -> tuple[list[str], tuple[int, ...]]:
    """The soups that are tried, and the members chosen, where names are digits of runs."""
    tried: list[str] = []

    def mixed(members: tuple[int, ...]) -> float:
        tried.append("".join(map(str, members)))
        return scores["".join(map(str, sorted(members)))]

    alone = [scores[str(i)] for i in range(sum(len(name) == 1 for name in scores))]
    return tried, greedy(alone, mixed)


def test_runs_are_tried_from_the_best_to_the_worst() -> None:
    scores = {"0": 0.5, "1": 0.7, "2": 0.6, "12": 0.8, "012": 0.9}
    assert scored(scores) == (["12", "120"], (1, 2, 0))


def test_a_run_that_lowers_the_score_is_left_out_and_the_next_is_tried_without_it() -> None:
    scores = {"0": 0.7, "1": 0.6, "2": 0.5, "01": 0.69, "02": 0.71}
    assert scored(scores) == (["01", "02"], (0, 2))


def test_a_run_that_changes_nothing_is_taken_in() -> None:
    assert scored({"0": 0.7, "1": 0.6, "01": 0.7}) == (["01"], (0, 1))


def test_a_soup_is_compared_with_the_best_soup_so_far_and_not_with_the_best_run() -> None:
    scores = {"0": 0.7, "1": 0.6, "2": 0.5, "01": 0.8, "012": 0.75}
    assert scored(scores) == (["01", "012"], (0, 1))


def test_of_equal_runs_the_first_given_is_tried_first() -> None:
    assert scored({"0": 0.6, "1": 0.7, "2": 0.7, "12": 0.6, "01": 0.6})[1] == (1,)


def task(name: str) -> Task:
    return Task(name=name, text=("a",), label="b", labels=("no", "yes"), files={"dev": "none"})


def right(*counts: int) -> np.ndarray:
    """(8, 2) logits that are right on so many rows of each half, where gold is class 0."""
    logits = np.tile([[0.0, 1.0]], (2 * HALF, 1))
    for half, count in zip(halves(2 * HALF), counts, strict=True):
        logits[half[:count]] = [1.0, 0.0]
    return logits


def test_each_half_judges_what_the_other_has_chosen() -> None:
    a, b, both = {"t": right(4, 1)}, {"t": right(1, 3)}, {"t": right(2, 4)}
    mixes: list[tuple[int, ...]] = []

    def mix(members: tuple[int, ...]) -> Mapping[str, np.ndarray]:
        mixes.append(members)
        return both

    choice = choose(Dev((task("t"),), {"t": np.zeros(2 * HALF, np.int64)}), [a, b], mix)
    # half 0: a has 4 of 4, with b only 2. Half 1: b has 3 of 4, with a all 4.
    assert choice.halves == ((0,), (1, 0))
    # half 1 of a has 1 of 4, half 0 of both has 2 of 4
    assert choice.score["soup"] == pytest.approx((1 / 4 + 2 / 4) / 2)
    # a chosen by half 0 has 1 of 4 on half 1, b chosen by half 1 has 1 of 4 on half 0
    assert choice.score["best"] == pytest.approx((1 / 4 + 1 / 4) / 2)
    assert choice.score["mean"] == pytest.approx((5 / 8 + 4 / 8) / 2)
    assert choice.tasks == {"t": choice.score}
    # all of dev: 5, 4 and 6 of 8 rows
    assert choice.members == (0, 1)
    assert choice.scores == pytest.approx([5 / 8, 4 / 8])
    assert mixes == [(0, 1)]  # weights are averaged once per set of runs


def test_the_score_is_the_mean_over_the_tasks_that_count() -> None:
    tasks = (task("t"), task("u"), task("wnli"))
    gold = {each.name: np.zeros(2 * HALF, np.int64) for each in tasks}
    dev = Dev(tasks, gold)
    logits = {"t": right(4, 4), "u": right(2, 1), "wnli": right(0, 0)}
    assert dev.score(logits, 0) == pytest.approx((1 + 2 / 4) / 2)
    assert dev.score(logits, 1) == pytest.approx((1 + 1 / 4) / 2)
    assert dev.score(logits, 2) == pytest.approx((1 + 3 / 8) / 2)
    assert dev.values(logits, 2)["wnli"]["accuracy"] == 0.0


def test_the_halves_of_dev_share_no_row_and_are_always_the_same() -> None:
    first, second = halves(9)
    assert sorted([*first, *second]) == list(range(9))
    assert (len(first), len(second)) == (4, 5)
    assert np.array_equal(first, halves(9)[0])
