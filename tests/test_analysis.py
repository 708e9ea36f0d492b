"""From the cells of a study to statistics, tests, warnings and sentences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from outshine import stats
from outshine.analysis import ArmResults, Cell, StudyResults, analyse, seed_warnings

COLLAPSED = "one class predicted"


def arm(
    name: str,
    scores: Mapping[str, Sequence[float]],
    *,
    scored: tuple[str, ...] | None = None,
    degenerate: Sequence[tuple[str, int]] = (),
) -> ArmResults:
    """An arm with scores in percent, by task, of the seeds 1, 2, ..."""
    cells = {
        task: {
            seed: Cell(value / 100, COLLAPSED if (task, seed) in degenerate else "")
            for seed, value in enumerate(values, 1)
        }
        for task, values in scores.items()
    }
    return ArmResults(name, tuple(scores), tuple(scores) if scored is None else scored, cells)


def study(*arms: ArmResults, comparisons: Sequence[tuple[str, str]] = (), **given) -> StudyResults:
    tasks = {task for one in arms for task in one.tasks}
    seeds = {seed for one in arms for cells in one.cells.values() for seed in cells}
    return StudyResults(
        name="glue-small",
        arms=arms,
        metrics=dict.fromkeys(tasks, "accuracy"),
        dev_rows=dict.fromkeys(tasks, 277),
        comparisons=tuple(comparisons),
        seeds=given.get("seeds", tuple(sorted(seeds))),
        teachers=given.get("teachers", "same-seed"),
    )


LOW, HIGH = [60.0, 61, 62, 63, 64], [70.0, 71, 72, 73, 74.5]
FLAT = [66.0, 66, 67, 67, 68]
BETTER = study(
    arm("multi", {"rte": LOW, "mrpc": LOW}),
    arm("single->multi", {"rte": HIGH, "mrpc": FLAT}),
    comparisons=[("single->multi", "multi")],
)


def test_arms_have_the_statistics_of_every_task_and_of_the_score() -> None:
    found = analyse(BETTER)["arms"]["single->multi"]
    rte = found["tasks"]["rte"]
    assert rte.pop("values") == {"1": 70.0, "2": 71.0, "3": 72.0, "4": 73.0, "5": 74.5}
    assert rte == pytest.approx(
        {"n": 5, "median": 72, "mean": 72.1, "std": np.std(HIGH, ddof=1), "q25": 71, "q75": 73}
        | {"min": 70, "max": 74.5, "degenerate": 0}
    )
    assert found["score"]["values"] == pytest.approx(
        {"1": 68.0, "2": 68.5, "3": 69.5, "4": 70.0, "5": 71.25}
    )


def test_the_analysis_is_plain_json() -> None:
    found = analyse(BETTER)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_score_needs_all_scored_tasks_of_its_seed() -> None:
    found = analyse(study(arm("multi", {"rte": LOW, "mrpc": LOW[:3], "wnli": [], "cola": LOW})))
    assert found["arms"]["multi"]["score"] is None
    assert "wnli" not in found["arms"]["multi"]["tasks"]
    without = arm("multi", {"rte": LOW, "mrpc": LOW[:3], "wnli": []}, scored=("rte", "mrpc"))
    assert analyse(study(without))["arms"]["multi"]["score"]["values"].keys() == {"1", "2", "3"}


def test_tasks_that_do_not_count_stay_out_of_the_score_but_are_compared() -> None:
    arms = [
        arm(name, {"rte": values, "wnli": [50.0] * 5}, scored=("rte",))
        for name, values in (("a", HIGH), ("b", LOW))
    ]
    found = analyse(study(*arms, comparisons=[("a", "b")]))
    assert found["arms"]["a"]["score"]["median"] == pytest.approx(72.0)
    score, rte, wnli = found["comparisons"]
    assert [score["task"], rte["task"], wnli["task"]] == ["score", "rte", "wnli"]
    assert score["tasks"] == ["rte"]
    assert (wnli["p"], wnli["test"]) == (1.0, "all equal")


def test_a_comparison_has_every_number_and_names_its_tests() -> None:
    score, rte, mrpc = analyse(BETTER)["comparisons"]
    assert (score["a"], score["b"], score["task"]) == ("single->multi", "multi", "score")
    assert score["tasks"] == ["rte", "mrpc"]
    assert score["difference"] == pytest.approx(69.5 - 62)
    assert score["p"] == score["smallest_p"] == pytest.approx(2 / 252)
    assert score["p_holm"] == score["p"]  # the only comparison of scores
    assert score["test"] == "Mann-Whitney U, exact"
    assert score["effect_size"] == 1.0
    assert score["n"] == [5, 5]
    assert score["ci"][0] < score["difference"] < score["ci"][1]
    std = [float(np.std(values, ddof=1)) for values in (np.add(HIGH, FLAT) / 2, LOW)]
    assert score["seeds_needed"] == stats.seeds_needed(score["difference"], *std)
    assert rte["p_holm"] == mrpc["p_holm"] == pytest.approx(2 * 2 / 252)
    assert mrpc["test"] == "Mann-Whitney U, exact permutation with ties"
    assert mrpc["paired"] == {
        "test": "Wilcoxon signed-rank, exact permutation with ties or zeros",
        "p": 2 / 32,
        "p_holm": 4 / 32,
        "n": 5,
    }


def test_seeds_pair_by_number() -> None:
    a = arm("a", {"rte": [10.0, 20, 30, 40]})
    reversed_seeds = {5 - seed: cell for seed, cell in a.cells["rte"].items()}
    b = ArmResults("b", ("rte",), ("rte",), {"rte": reversed_seeds})
    paired = analyse(study(a, b, comparisons=[("a", "b")]))["comparisons"][0]["paired"]
    assert paired["n"] == 4
    assert paired["p"] == 1.0  # -30, -10, 10, 30
    alone = ArmResults("b", ("rte",), ("rte",), {"rte": {4: Cell(0.1), 9: Cell(0.2)}})
    assert analyse(study(a, alone, comparisons=[("a", "b")]))["comparisons"][0]["paired"] is None


def test_arms_with_different_tasks_compare_on_the_shared_ones() -> None:
    found = analyse(
        study(
            arm("all", {"rte": HIGH, "mrpc": LOW, "cola": LOW}),
            arm("rte alone", {"rte": LOW}),
            comparisons=[("all", "rte alone")],
        )
    )
    score, rte = found["comparisons"]
    assert score["tasks"] == ["rte"]
    assert score["difference"] == rte["difference"] == pytest.approx(10.0)
    assert found["arms"]["all"]["score"]["median"] == pytest.approx((72 + 62 + 62) / 3)
    assert "all against rte alone: their scores are compared on the shared rte" in found["warnings"]


def test_arms_without_a_shared_task_are_not_compared() -> None:
    arms = arm("a", {"rte": LOW}), arm("b", {"cola": LOW}), arm("c", {"rte": HIGH})
    found = analyse(study(*arms, comparisons=[("a", "b")]))
    assert found["comparisons"] == found["conclusion"] == []
    assert found["warnings"] == ["a against b: no shared task that counts in the score"]
    # and take no place in the family
    score, _ = analyse(study(*arms, comparisons=[("a", "b"), ("a", "c")]))["comparisons"]
    assert score["p_holm"] == score["p"]


def test_a_comparison_that_cannot_be_made_yet_keeps_its_place_in_the_family() -> None:
    waiting = ArmResults("later", ("rte",), ("rte",), {})
    found = analyse(
        study(
            arm("a", {"rte": HIGH}),
            arm("b", {"rte": LOW}),
            waiting,
            comparisons=[("a", "b"), ("a", "later")],
        )
    )
    assert [row["b"] for row in found["comparisons"]] == ["b", "b"]
    assert found["comparisons"][0]["p_holm"] == pytest.approx(2 * 2 / 252)
    assert found["arms"]["later"] == {"tasks": {}, "score": None}
    assert found["warnings"] == [
        "later: 0 of 5 planned seeds are complete",
        "a against later: no seed of one arm is complete, so scores are not compared",
    ]


def test_degenerate_runs_are_counted_and_shown() -> None:
    collapsed = arm("a", {"rte": [52.7, 71, 72, 73, 74], "cola": HIGH}, degenerate=[("rte", 1)])
    found = analyse(study(collapsed))
    rte, score = found["arms"]["a"]["tasks"]["rte"], found["arms"]["a"]["score"]
    assert (rte["n"], rte["degenerate"], rte["min"]) == (5, 1, pytest.approx(52.7))
    assert (score["n"], score["degenerate"]) == (5, 1)
    assert found["arms"]["a"]["tasks"]["cola"]["degenerate"] == 0
    assert found["warnings"] == ["a, rte: 1 of 5 runs degenerate (seed 1), counted like all"]


def test_a_degenerate_run_whose_seed_has_no_score_is_not_counted_in_the_score() -> None:
    cut = arm("a", {"rte": HIGH, "cola": LOW[:4]}, degenerate=[("rte", 5)])
    found = analyse(study(cut))["arms"]["a"]
    assert (found["score"]["n"], found["score"]["degenerate"]) == (4, 0)
    assert found["tasks"]["rte"]["degenerate"] == 1


def test_teachers_of_one_seed_are_warned_of_by_arm() -> None:
    first = replace(arm("a", {"rte": LOW}), teachers="first")
    found = analyse(study(first, arm("b", {"rte": HIGH})))["warnings"]
    assert found == [
        "a: all seeds have the teachers of one seed (teachers = first), so the statistics do not "
        "cover how teachers vary"
    ]


def test_too_few_seeds_for_a_test_are_warned_of() -> None:
    assert seed_warnings((3, 3), 2, "scores") == [
        "scores: 3 against 3 seeds cannot show a difference at 5 %: p = 0.1 at best, p = 0.2 after "
        "Holm over 2 comparisons; 5 seeds per arm are the fewest that can"
    ]
    assert seed_warnings((1, 1), 1, "scores") == [
        "scores: 1 against 1 seed cannot show a difference at 5 %: p = 1 at best, p = 1 after "
        "Holm over 1 comparison; 4 seeds per arm are the fewest that can"
    ]
    assert seed_warnings((5, 5), 6, "tasks") == []
    assert seed_warnings(None, 0, "tasks") == []
    three = study(arm("a", {"rte": HIGH[:3]}), arm("b", {"rte": LOW[:3]}), comparisons=[("a", "b")])
    assert [w.split(":")[0] for w in analyse(three)["warnings"]] == ["scores", "tasks"]


def test_one_comparison_is_told_without_the_warnings_of_other_arms() -> None:
    pairs = [("a", "b"), ("a", "c"), ("c", "b")]
    late = arm("c", {"rte": LOW[:1]}, degenerate=[("rte", 1)])
    three = study(arm("a", {"rte": HIGH}), arm("b", {"rte": LOW}), late, comparisons=pairs)
    whole, alone = analyse(three), analyse(three, only=("a", "b"))
    assert "scores: 5 against 1 seed cannot show" in " ".join(whole["warnings"])
    assert alone["warnings"] == []
    assert list(alone["arms"]) == ["a", "b"]
    # with the same place in a family of three
    assert alone["comparisons"] == [c for c in whole["comparisons"] if (c["a"], c["b"]) == pairs[0]]
    assert alone["comparisons"][0]["p_holm"] == pytest.approx(3 * 2 / 252)
    assert [sentence for sentence in whole["conclusion"] if "a is above b" in sentence] == (
        alone["conclusion"]
    )


def test_a_score_that_is_not_a_number_is_an_error() -> None:
    broken = arm("a", {"rte": [70.0, float("nan")]})
    with pytest.raises(ValueError, match=r"^a, rte, seed 2: nan as a score$"):
        analyse(study(broken))


def test_analysis_depends_on_the_seed_of_the_bootstrap_alone() -> None:
    assert analyse(BETTER) == analyse(BETTER)
    more = study(*BETTER.arms, comparisons=[("multi", "single->multi"), *BETTER.comparisons])
    by_pair = {(r["a"], r["task"]): r["ci"] for r in analyse(more)["comparisons"]}
    for row in analyse(BETTER)["comparisons"]:
        assert by_pair[row["a"], row["task"]] == row["ci"]


def test_swapping_the_arms_mirrors_the_comparison() -> None:
    swapped = study(*BETTER.arms, comparisons=[("multi", "single->multi")])
    for row, mirror in zip(
        analyse(BETTER)["comparisons"], analyse(swapped)["comparisons"], strict=True
    ):
        assert mirror["difference"] == -row["difference"]
        assert mirror["effect_size"] == pytest.approx(1 - row["effect_size"])
        assert mirror["p_holm"] == row["p_holm"]
        assert mirror["ci"] == pytest.approx([-row["ci"][1], -row["ci"][0]], abs=0.5)


def test_every_method_is_named() -> None:
    methods = analyse(BETTER)["methods"]
    assert methods.keys() >= {"ci", "test", "effect_size", "holm", "paired", "seeds_needed"}
    assert "percentile bootstrap" in methods["ci"] and "10,000 draws, seed 0" in methods["ci"]
    assert (
        "one family of 1 comparison of scores and one of 2 comparisons by task" in (methods["holm"])
    )
    assert "Noether" in methods["seeds_needed"]


# --- sentences ------------------------------------------------------------------------------


def conclusion(a: Sequence[float], b: Sequence[float]) -> str:
    results = study(arm("a", {"rte": a}), arm("b", {"rte": b}), comparisons=[("a", "b")])
    return analyse(results)["conclusion"][0]


def test_a_difference_that_is_shown_is_said_with_its_size_and_p() -> None:
    score = analyse(BETTER)["comparisons"][0]
    low, high = score["ci"]
    assert analyse(BETTER)["conclusion"] == [
        f"single->multi is above multi by 7.50 points (95 % interval {low:.2f} to {high:.2f}; "
        "p = 0.0079 after Holm, 5 against 5 seeds, 2 tasks).",
        "single->multi against multi by task, after Holm: above on rte, mrpc.",
    ]
    assert conclusion(LOW, HIGH).startswith("a is below b by 10.00 points (95 % interval ")


def test_a_difference_that_is_not_shown_says_how_many_seeds_would_be_needed() -> None:
    said = conclusion([60.0, 61, 62, 63, 64], [60.5, 61.5, 61.8, 62.5, 63.5])
    assert said.startswith("a and b are not told apart: difference +0.20 points (95 % interval ")
    assert "p = 1 after Holm, 5 against 5 seeds, rte); about " in said
    assert said.endswith(
        " seeds per arm would be needed for a difference of this size, before Holm."
    )
    near = conclusion([60.0, 61, 62.01, 63, 64], [60.1, 61.1, 62, 62.9, 63.9])
    assert "; more than 1,000 seeds per arm would be needed" in near


def test_too_few_seeds_say_that_they_cannot_show_it() -> None:
    assert conclusion(HIGH[:3], LOW[:3]) == (
        "3 against 3 seeds cannot show a difference between a and b: +10.00 points on rte, the "
        "smallest possible p = 0.1; about 6 seeds per arm would be needed for a difference of "
        "this size, before Holm."
    )
    assert conclusion([70.0], [60.0]) == (
        "1 against 1 seed cannot show a difference between a and b: +10.00 points on rte, the "
        "smallest possible p = 1."
    )


def test_arms_that_are_equal_are_not_told_apart() -> None:
    assert conclusion([52.7] * 5, [52.7] * 5) == (
        "a and b are not told apart: difference +0.00 points (95 % interval 0.00 to 0.00; p = 1 "
        "after Holm, 5 against 5 seeds, rte)."
    )


def test_a_difference_in_distribution_without_one_in_medians_is_said_so() -> None:
    a = [70.0] * 11 + [80.0] * 10
    b = [60.0] * 10 + [70.0] * 11
    assert "a and b differ, but not in their medians: a run of a is above one of b" in (
        conclusion(a, b)
    )


def test_tasks_are_sorted_into_above_below_and_not_told_apart() -> None:
    found = analyse(
        study(
            arm("a", {"rte": [*HIGH, 75.0], "cola": [*LOW, 65.0], "mrpc": [*FLAT, 68.0]}),
            arm("b", {"rte": [*LOW, 65.0], "cola": [*HIGH, 75.0], "mrpc": [*FLAT, 68.0]}),
            comparisons=[("a", "b")],
        )
    )
    assert found["conclusion"][1] == (
        "a against b by task, after Holm: above on rte; below on cola; not told apart on mrpc."
    )


def test_tiny_p_values_are_bounded_not_rounded_to_zero() -> None:
    assert "; p < 0.0001 after Holm, 20 against 20 seeds" in conclusion(
        [70 + i / 100 for i in range(20)], [60 + i / 100 for i in range(20)]
    )
