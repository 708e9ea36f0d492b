"""A study's report as it may be: made-up numbers in the form that `analysis` and `study` give."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Sequence
from typing import Any

METRICS = {"cola": "matthews", "mrpc": "accuracy", "stsb": "spearman", "rte": "accuracy"}
DEV_ROWS = {"cola": 1043, "mrpc": 408, "stsb": 1500, "rte": 277}
ARMS = ("single", "multi", "single->multi")


def stats(values: dict[str, float], degenerate: int = 0) -> dict[str, Any]:
    """The statistics of values by seed."""
    ordered = list(values.values())
    quarters = statistics.quantiles(ordered, n=4) if len(ordered) > 1 else ordered * 3
    return {
        "n": len(ordered),
        "median": statistics.median(ordered),
        "mean": statistics.fmean(ordered),
        "std": statistics.stdev(ordered) if len(ordered) > 1 else None,
        "q25": quarters[0],
        "q75": quarters[2],
        "min": min(ordered),
        "max": max(ordered),
        "degenerate": degenerate,
        "values": values,
    }


def report(
    arms: Sequence[str] = ARMS,
    tasks: Sequence[str] = tuple(METRICS),
    num_seeds: int = 5,
    fewer: bool = True,
) -> dict[str, Any]:
    """The dict of a report.

    Args:
        arms: Their names; the first is the baseline.
        tasks: Names; those that GLUE lacks are accuracies on 200 rows.
        num_seeds: Seeds 1, 2, ...
        fewer: Whether the last arm lacks the first task and has no score, and the first arm's
            last run is degenerate.
    """
    numbers = random.Random(0)
    seeds = range(1, num_seeds + 1)
    found: dict[str, Any] = {}
    for arm_number, arm in enumerate(arms):
        left_out = fewer and arm == arms[-1] and len(arms) > 1
        own = [task for task in tasks if not (left_out and task == tasks[0])]
        by_task = {
            task: {
                str(seed): round(55 + 6 * i + arm_number / 2 + numbers.gauss(0, 1.3), 4)
                for seed in seeds
            }
            for i, task in enumerate(own)
        }
        bad = int(fewer and arm == arms[0])
        if bad:
            by_task[tasks[-1]][str(num_seeds)] = 47.2924
        score = {
            str(seed): statistics.fmean(values[str(seed)] for values in by_task.values())
            for seed in seeds
        }
        found[arm] = {
            "tasks": {
                task: stats(values, bad if task == tasks[-1] else 0)
                for task, values in by_task.items()
            },
            "score": None if left_out else stats(score, bad),
        }
    return {
        "arms": found,
        "comparisons": [
            comparison(arm, arms[0], task, num_seeds, list(found[arm]["tasks"]))
            for arm in arms[1:]
            for task in ("score", *found[arm]["tasks"])
        ],
        "warnings": [f"{num_seeds} seeds cannot reach p < 0.05 after Holm in every comparison"],
        "methods": {
            "values": "primary dev metric of the final weights in percent, one value per seed",
            "difference": "median of the first arm minus median of the second, in points",
            "ci": "95 % percentile bootstrap over seeds, 10,000 draws, seed 0",
            "test": "Mann-Whitney U, two-sided, exact without ties, else 100,000 permutations",
            "effect_size": "common-language effect size, P(a > b) + P(a = b) / 2",
            "holm": "Holm, the scores as one family and the tasks as a second",
            "paired": "by seed: Wilcoxon signed-rank, two-sided",
            "smallest_p": "smallest two-sided p of Mann-Whitney with so many seeds",
            "seeds_needed": "seeds per arm for 80 % power at two-sided 5 % before Holm",
            "degenerate": "degenerate runs are counted in all statistics",
        },
        "conclusion": [
            f"{arm} against {arms[0]}: no difference that {num_seeds} seeds can show."
            for arm in arms[1:]
        ]
        or ["One arm: nothing is compared."],
        "study": "support & <desk>",
        "metrics": {task: METRICS.get(task, "accuracy") for task in tasks},
        "dev_rows": {task: DEV_ROWS.get(task, 200) for task in tasks},
        "seeds": list(seeds),
        "teachers": "same-seed",
        "file": 'name = "support"\nencoder = "builtin"\narms = ["single", "multi"]  # a < b & c\n',
        "command": "outshine study report studies/support.toml",
        "made": "2026-03-01",
        "arms_info": {
            arm: {
                "chain": arm,
                "tasks": list(found[arm]["tasks"]),
                "set": {"anneal": "linear"},
                "teachers": "same-seed" if "->" in arm else "",
            }
            for arm in arms
        },
        "provenance": {
            "versions": {"python": "3.11.9", "outshine": "0.1.0", "torch": "2.13.0"},
            "device": "AMD EPYC, 2 cores",
            "precision": "bf16",
            "num_threads": 1,
            "encoder": "splade-tiny",
            "git_commits": ["5e0358e1aa", None],
            "data": {
                task: {split: f"{i}{j}c0ffee" * 8 for j, split in enumerate(("train", "dev"))}
                for i, task in enumerate(tasks)
            },
            "train_s": 4231.5,
            "runs": num_seeds * len(arms),
        },
        "curves": [
            curve(arm, seed, task, numbers)
            for arm in arms
            for seed in seeds
            for task in (found[arm]["tasks"] if arm == "single" else [None])
        ],
        "mixture": {arm: mixture(list(found[arm]["tasks"]), arm == "single") for arm in arms},
        "degenerate": [
            {
                "arm": arms[0],
                "seed": num_seeds,
                "task": tasks[-1],
                "reason": "one class predicted",
                "value": 47.2924,
            }
        ]
        if fewer
        else [],
    }


def comparison(a: str, b: str, task: str, num_seeds: int, tasks: list[str]) -> dict[str, Any]:
    """A comparison of two arms on one task or the score."""
    odd = len(task) % 2
    return {
        "a": a,
        "b": b,
        "task": task,
        "difference": -0.4123 if odd else 1.2345,
        "ci": [-1.3111, 0.7222] if odd else [0.2111, 2.1999],
        "p": 0.41234 if odd else 0.0079365,
        "p_holm": 1.0 if odd else 0.031746,
        "test": "Mann-Whitney U, permutation, 100000 draws" if odd else "Mann-Whitney U, exact",
        "effect_size": 0.3611 if odd else 0.9222,
        "n": [num_seeds, num_seeds],
        "smallest_p": 0.0079365,
        "seeds_needed": None if odd else 9,
        "paired": {"test": "Wilcoxon signed rank, exact", "p": 0.0625, "p_holm": 0.125, "n": 5}
        if task == "score"
        else None,
        "tasks": tasks,
    }


def curve(arm: str, seed: int, task: str | None, numbers: random.Random) -> dict[str, Any]:
    """The course of one run."""
    total = 30 if task else 120
    points = [
        [
            step * total // 30,
            round(0.4 + 0.7 * 0.9**step + numbers.gauss(0, 0.03), 4),
            round(step / 30, 4) if "->" in arm else 1.0,
            round(3e-4 * min(step / 3, (30 - step) / 27), 8),
        ]
        for step in range(1, 31)
    ]
    return {"arm": arm, "seed": seed, "task": task, "points": points}


def mixture(tasks: list[str], alone: bool) -> dict[str, Any]:
    """What a run draws from each task."""
    rows = {task: DEV_ROWS.get(task, 200) * 7 for task in tasks}
    total = sum(count**0.75 for count in rows.values())
    return {
        task: {
            "rows": count,
            "probability": 1.0 if alone else count**0.75 / total,
            "passes": 3.0 if alone else 18000 * count**-0.25 / total,
            "weight": 1.0,
        }
        for task, count in rows.items()
    }


def renamed(data: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """The dict with another name for an arm or task."""
    inside = json.dumps(new)[1:-1]
    return json.loads(json.dumps(data).replace(f'"{old}"', f'"{inside}"'))
