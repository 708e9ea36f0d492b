"""A study's scores as plain data: statistics per arm, tests between arms, sentences that follow.

Scores come in as fractions and go out in percent; differences are in points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from outshine import stats
from outshine.seeds import stream

SCORE = "score"


@dataclass(frozen=True)
class Cell:
    """What one run scored on one task's dev set.

    Attributes:
        value: The primary metric, as a fraction.
        degenerate: Why the run counts as degenerate; empty for a sound one.
    """

    value: float
    degenerate: str = ""


@dataclass(frozen=True)
class ArmResults:
    """All finished runs of one arm.

    Attributes:
        name: As in the study file.
        tasks: Its tasks, in order.
        scored: Those that count in the score.
        teachers: Which seeds' runs teach it; "" for an arm without teachers.
        cells: Task -> seed -> cell.
    """

    name: str
    tasks: tuple[str, ...]
    scored: tuple[str, ...]
    cells: Mapping[str, Mapping[int, Cell]]
    teachers: str = ""

    def values(self, task: str) -> dict[int, float]:
        """Seed -> the primary metric of one task, in percent, by rising seed."""
        cells = self.cells.get(task, {})
        return {seed: 100 * cells[seed].value for seed in sorted(cells)}

    def scores(self, tasks: Sequence[str]) -> dict[int, float]:
        """Seed -> mean over tasks in percent, for the seeds that have all of these tasks."""
        columns = [self.values(task) for task in tasks]
        seeds = sorted(set.intersection(*(set(column) for column in columns))) if columns else []
        return {seed: float(np.mean([column[seed] for column in columns])) for seed in seeds}

    def degenerate(self, tasks: Sequence[str]) -> set[int]:
        """Seeds with a degenerate run on any of these tasks."""
        cells = (cell for task in tasks for cell in self.cells.get(task, {}).items())
        return {seed for seed, cell in cells if cell.degenerate}


@dataclass(frozen=True)
class StudyResults:
    """What a study has measured so far.

    Attributes:
        name: Of the study.
        arms: In the order of the study file.
        metrics: Task -> its primary metric.
        dev_rows: Task -> rows of its dev set.
        comparisons: Pairs of arms, named before the results were known.
        seeds: Those that are planned.
        teachers: Which teacher teaches which seed.
    """

    name: str
    arms: tuple[ArmResults, ...]
    metrics: Mapping[str, str]
    dev_rows: Mapping[str, int]
    comparisons: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    teachers: str


def analyse(
    results: StudyResults, *, seed: int = 0, only: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Statistics of every arm, the named comparisons, and what they say in plain words.

    Degenerate runs are counted like all others. Comparisons that cannot be made yet keep their
    place in the family that Holm's correction covers.

    Args:
        results: The study.
        seed: Of the bootstrap; each comparison has its own stream of it.
        only: The comparison to tell of; the others still count in Holm's families. None: all.

    Returns:
        {"arms": {arm: {"tasks": {task: statistics}, "score": statistics or None}}, "comparisons":
        [...], "warnings": [text], "methods": {name: text}, "conclusion": [sentence]}.

    Raises:
        ValueError: If a cell is not a finite number.
    """
    for arm in results.arms:
        for task, cells in arm.cells.items():
            for number, cell in cells.items():
                if not np.isfinite(cell.value):
                    raise ValueError(f"{arm.name}, {task}, seed {number}: {cell.value} as a score")
    arms = {arm.name: arm for arm in results.arms}
    pairs = [(arms[a], arms[b]) for a, b in results.comparisons]
    shared = [(a, b, SCORE, _shared(a.scored, b.scored)) for a, b in pairs]
    of_scores = [named for named in shared if named[-1]]
    of_tasks = [(a, b, task, (task,)) for a, b in pairs for task in _shared(a.tasks, b.tasks)]
    scores, by_task = _family(of_scores, seed), _family(of_tasks, seed)
    if only is not None:
        pairs = [(arms[only[0]], arms[only[1]])]
        results = replace(results, arms=pairs[0])
        scores, by_task = (
            [row for row in rows if (row["a"], row["b"]) == only] for rows in (scores, by_task)
        )
    return {
        "arms": {arm.name: _arm_statistics(arm) for arm in results.arms},
        "comparisons": [*scores, *by_task],
        "warnings": [
            *arm_warnings(results),
            *_comparison_warnings(pairs),
            *seed_warnings(_fewest(scores), len(of_scores), "scores"),
            *seed_warnings(_fewest(by_task), len(of_tasks), "tasks"),
        ],
        "methods": _methods(len(of_scores), len(of_tasks), seed),
        "conclusion": conclusion(scores, by_task),
    }


# --- arms -----------------------------------------------------------------------------------


def _arm_statistics(arm: ArmResults) -> dict[str, Any]:
    return {
        "tasks": {
            task: _statistics(arm.values(task), arm.degenerate([task]))
            for task in arm.tasks
            if arm.values(task)
        },
        "score": _statistics(arm.scores(arm.scored), arm.degenerate(arm.scored)),
    }


def _statistics(values: Mapping[int, float], degenerate: set[int]) -> dict[str, Any] | None:
    if not values:
        return None
    return {
        **stats.summary(np.array(list(values.values()))),
        "degenerate": len(degenerate & values.keys()),
        "values": {str(seed): value for seed, value in values.items()},
    }


def arm_warnings(results: StudyResults) -> list[str]:
    """What limits the arms: unfinished seeds, degenerate runs, teachers of one seed."""
    warnings = []
    for arm in results.arms:
        complete = len(arm.scores(arm.tasks).keys() & set(results.seeds))
        if complete < len(results.seeds):
            warnings.append(
                f"{arm.name}: {complete} of {len(results.seeds)} planned seeds are complete"
            )
        for task in arm.tasks:
            if seeds := arm.degenerate([task]):
                warnings.append(
                    f"{arm.name}, {task}: {len(seeds)} of {len(arm.values(task))} runs degenerate "
                    f"({_plural(len(seeds), 'seed')} {_listed(sorted(seeds))}), counted like all"
                )
        if arm.teachers == "first":
            warnings.append(
                f"{arm.name}: all seeds have the teachers of one seed (teachers = first), so the "
                "statistics do not cover how teachers vary"
            )
    return warnings


# --- comparisons ----------------------------------------------------------------------------


def _shared(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    return tuple(task for task in first if task in second)


def _family(
    pairs: Sequence[tuple[ArmResults, ArmResults, str, tuple[str, ...]]], seed: int
) -> list[dict[str, Any]]:
    """Compares (a, b, title, tasks) where both arms have a value; Holm covers all that are named.

    A comparison without values cannot be made yet; it takes part in the correction with p = 1.
    """
    found = []
    for a, b, task, tasks in pairs:
        values = a.scores(tasks), b.scores(tasks)
        if all(values):
            found.append(_compare(a.name, b.name, task, tasks, *values, seed))
    missing = [1.0] * (len(pairs) - len(found))
    paired = [row["paired"] or {"p": 1.0} for row in found]
    adjusted = stats.holm([*(row["p"] for row in found), *missing])
    adjusted_paired = stats.holm([*(row["p"] for row in paired), *missing])
    for row, p, p_paired in zip(found, adjusted, adjusted_paired, strict=False):
        row["p_holm"] = p
        if row["paired"]:
            row["paired"]["p_holm"] = p_paired
    return found


def _compare(
    a: str,
    b: str,
    task: str,
    tasks: Sequence[str],
    values_a: Mapping[int, float],
    values_b: Mapping[int, float],
    seed: int,
) -> dict[str, Any]:
    """One comparison, all but its place in the family; values are seed -> percent."""
    first, second = np.array(list(values_a.values())), np.array(list(values_b.values()))
    rng = np.random.default_rng(stream(seed, "bootstrap", a, b, task))
    p, test = stats.mann_whitney(first, second)
    difference = float(stats.median_difference(first, second))
    both = sorted(values_a.keys() & values_b.keys())
    paired = None
    if len(both) > 1:
        paired_p, paired_test = stats.signed_rank(
            np.array([values_a[number] - values_b[number] for number in both])
        )
        paired = {"test": paired_test, "p": paired_p, "p_holm": None, "n": len(both)}
    interval = stats.median_interval(first, second, rng)
    return {
        "a": a,
        "b": b,
        "task": task,
        "difference": difference,
        "ci": None if interval is None else list(interval),
        "p": p,
        "p_holm": None,
        "test": test,
        "effect_size": stats.effect_size(first, second),
        "n": [len(first), len(second)],
        "smallest_p": stats.smallest_p(len(first), len(second)),
        "seeds_needed": stats.seeds_needed(
            difference, stats.deviation(first), stats.deviation(second)
        ),
        "paired": paired,
        "tasks": list(tasks),
    }


def _comparison_warnings(pairs: Iterable[tuple[ArmResults, ArmResults]]) -> list[str]:
    warnings = []
    for a, b in pairs:
        title = f"{a.name} against {b.name}"
        shared = _shared(a.scored, b.scored)
        if not shared:
            warnings.append(f"{title}: no shared task that counts in the score")
        elif set(a.scored) != set(b.scored):
            warnings.append(f"{title}: their scores are compared on the shared {_listed(shared)}")
        if shared and not (a.scores(shared) and b.scores(shared)):
            warnings.append(f"{title}: no seed of one arm is complete, so scores are not compared")
    return warnings


def _fewest(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int] | None:
    """Seeds of the two arms in the comparison that can show the least."""
    return tuple(max(rows, key=lambda row: row["smallest_p"])["n"]) if rows else None


def seed_warnings(num_seeds: tuple[int, int] | None, family: int, what: str) -> list[str]:
    """Says so when Mann-Whitney cannot reach 5 % after Holm with so few seeds.

    Args:
        num_seeds: Of the two arms (a plan gives its number twice); None where there are none.
        family: How many comparisons are named.
        what: `scores` or `tasks`.

    Returns:
        No text or one.
    """
    if num_seeds is None:
        return []
    smallest = stats.smallest_p(*num_seeds)
    if smallest * family <= stats.LEVEL:
        return []
    return [
        f"{what}: {_seeds(num_seeds)} cannot show a difference at 5 %: "
        f"{_p(smallest)} at best, {_p(min(1.0, family * smallest))} after Holm over {family} "
        f"{_plural(family, 'comparison')}; {stats.seeds_to_reach(family)} seeds per arm are the "
        "fewest that can"
    ]


# --- words ----------------------------------------------------------------------------------


def _methods(num_scores: int, num_tasks: int, seed: int) -> dict[str, str]:
    return {
        "values": "primary dev metric of the final weights in percent, one value per seed; the "
        "score is the mean over tasks; standard deviation with n - 1, quartiles interpolated",
        "difference": "median of the first arm minus median of the second, in points",
        "ci": f"95 % percentile bootstrap over seeds, {stats.NUM_DRAWS:,} draws, seed {seed} "
        f"(scipy.stats.bootstrap); from fewer than {stats.FEW_SEEDS} seeds it tends to be too "
        "narrow",
        "test": "Mann-Whitney U, two-sided: exact without ties (scipy.stats.mannwhitneyu), with "
        "ties the exact permutation distribution of the midranks; all values equal: p = 1",
        "effect_size": "common-language effect size, P(a > b) + P(a = b) / 2",
        "holm": f"Holm's step-down correction, one family of {num_scores} "
        f"{_plural(num_scores, 'comparison')} of scores and one of {num_tasks} "
        f"{_plural(num_tasks, 'comparison')} by task",
        "paired": "by seed: Wilcoxon signed-rank, two-sided: exact (scipy.stats.wilcoxon), with "
        "ties or zeros the exact permutation distribution of Pratt's ranks; Holm as above; n pairs "
        "can reach p = 2 / 2^n",
        "smallest_p": "smallest two-sided p of Mann-Whitney with so many seeds, before Holm",
        "seeds_needed": "seeds per arm for 80 % power at two-sided 5 % before Holm, were the true "
        "difference and deviations those observed: Noether's formula for Mann-Whitney, normal "
        "distributions",
        "degenerate": "degenerate runs are counted in all statistics",
    }


def conclusion(
    scores: Sequence[Mapping[str, Any]], by_task: Sequence[Mapping[str, Any]]
) -> list[str]:
    sentences = []
    for row in scores:
        sentences.append(_sentence(row))
        tasks = [t for t in by_task if (t["a"], t["b"]) == (row["a"], row["b"])]
        if len(tasks) > 1:
            sentences.append(_task_sentence(row, tasks))
    return sentences


def _sentence(row: Mapping[str, Any]) -> str:
    """The outcome of one comparison of scores."""
    a, b, seeds = row["a"], row["b"], _seeds(row["n"])
    scope = f"{len(row['tasks'])} tasks" if len(row["tasks"]) > 1 else row["tasks"][0]
    interval = f"95 % interval {row['ci'][0]:.2f} to {row['ci'][1]:.2f}; " if row["ci"] else ""
    numbers = f"({interval}{_p(row['p_holm'])} after Holm, {seeds}, {scope})"
    if row["p_holm"] <= stats.LEVEL:
        direction = np.sign(row["effect_size"] - 0.5)
        if direction == np.sign(row["difference"]):
            side = "above" if direction > 0 else "below"
            return f"{a} is {side} {b} by {abs(row['difference']):.2f} points {numbers}."
        return (
            f"{a} and {b} differ, but not in their medians: a run of {a} is above one of {b} with "
            f"probability {row['effect_size']:.2f} {numbers}."
        )
    found = f"{a} and {b} are not told apart: difference {row['difference']:+.2f} points {numbers}"
    if row["smallest_p"] > stats.LEVEL:
        found = (
            f"{seeds} cannot show a difference between {a} and {b}: {row['difference']:+.2f} "
            f"points on {scope}, the smallest possible {_p(row['smallest_p'])}"
        )
    needed = row["seeds_needed"]
    if needed is None or needed <= min(row["n"]):
        return f"{found}."
    about = f"about {needed:,}" if needed <= 1000 else "more than 1,000"
    size = "for a difference of this size, before Holm"
    return f"{found}; {about} seeds per arm would be needed {size}."


def _task_sentence(score: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Which tasks differ between two arms."""
    shown = [row for row in rows if row["p_holm"] <= stats.LEVEL]
    above = [row["task"] for row in shown if row["effect_size"] > 0.5]
    below = [row["task"] for row in shown if row["effect_size"] < 0.5]
    rest = [row["task"] for row in rows if row["task"] not in (*above, *below)]
    parts = ((above, "above on"), (below, "below on"), (rest, "not told apart on"))
    said = "; ".join(f"{words} {_listed(tasks)}" for tasks, words in parts if tasks)
    return f"{score['a']} against {score['b']} by task, after Holm: {said}."


def _p(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def _seeds(num_seeds: Sequence[int]) -> str:
    return f"{num_seeds[0]} against {num_seeds[1]} {_plural(num_seeds[1], 'seed')}"


def _plural(number: int, noun: str) -> str:
    return noun if number == 1 else f"{noun}s"


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))
