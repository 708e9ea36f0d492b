"""Greedy soups of one arm of a study, of disjoint groups of its seeds, against the runs in them.

    python studies/soups.py FOLDER ARM [--size 5]

FOLDER is that of a study with keep = "all" whose arm ends in one run per seed. The soups go into
FOLDER/soups, and those that are there are not made again. Prints one JSON object, in points: per
group the scores on dev rows that had no part in the choice (see `outshine soup`), and over the
groups the differences of the soup from the best run, which is chosen in the same way, and from the
mean of the runs. The groups share no run, but all are judged by the same dev rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

import outshine
from outshine.errors import UserError
from outshine.runs import Run
from outshine.stats import signed_rank
from outshine.study import Study, read_study


def groups(study: Study, arm: str, size: int) -> dict[str, list[Run]]:
    """Seeds, as `1-5`, -> their runs; seeds that are left over make no group."""
    study.spec.arm(arm)
    rows = study.rows()
    ends = {seed: runs for seed, runs in study.graph.ends[arm].items() if {*runs} <= rows.keys()}
    if any(len(runs) > 1 for runs in ends.values()):
        raise UserError(
            f"cannot make soups of {arm!r}: several runs per seed, expected one",
            "choose an arm that ends in `multi`",
        )
    by_seed = {seed: rows[run] for seed, (run,) in ends.items()}
    seeds = list(by_seed)
    starts = range(0, len(seeds) - size + 1, size)
    return {
        f"{group[0]}-{group[-1]}": [Run(by_seed[s].home / by_seed[s].folder) for s in group]
        for group in (seeds[start : start + size] for start in starts)
    }


def compared(made: list[dict[str, Any]], way: str) -> dict[str, Any]:
    """The soups' scores minus those of another way to use the same runs."""
    differences = [each["soup"] - each[way] for each in made]
    p, test = signed_rank(np.array(differences))
    return {
        "n": len(differences),
        "mean": round(statistics.fmean(differences), 2),
        "min": round(min(differences), 2),
        "max": round(max(differences), 2),
        "p": round(p, 4),
        "test": test,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("arm")
    parser.add_argument("--size", type=int, default=5)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    study = read_study(args.folder)
    made = []
    for seeds, runs in groups(study, args.arm, args.size).items():
        out = args.folder / "soups" / f"{args.arm.replace('->', '-')}-seeds{seeds}"
        run = Run(out) if Run(out).is_complete else outshine.soup(runs, out=out, device=args.device)
        facts = run.info()["soup"]
        scores = {way: round(100 * value, 2) for way, value in facts["score"].items()}
        taken = sum(run["weight"] > 0 for run in facts["runs"])
        made.append({"seeds": seeds, "runs": len(runs), "taken": taken} | scores)
    if not made:
        raise UserError(
            f"cannot make soups of {args.arm!r}: no group of {args.size} finished seeds",
            "run more seeds, or give a smaller --size",
        )
    content = {"study": study.spec.name, "arm": args.arm, "tasks": list(study.spec.tasks)}
    ways = {f"soup minus {way}": compared(made, way) for way in ("best", "mean")}
    print(json.dumps(content | {"groups": made} | ways, indent=2))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
