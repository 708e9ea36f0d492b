"""Many seeds of one small task: side by side on one device, against tuned Trainer one by one.

    python bench/seeds.py [--glue-dir GLUE] [--task rte] [--seeds 20] [--jobs 4] [--pairs 5]

Outshine trains the seeds in so many processes at once, each its share of them one after another;
transformers.Trainer (bf16 where there is any, group_by_length) trains them one after another in
one. Both start when models and rows are loaded; Trainer's time is that of its loops alone,
Outshine's goes from the first step of the first process to the last of the last. Prints one JSON
object.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping
from typing import Any

from common import arguments, conditions, encoder_folder, fit, in_turn, plan_of, ratios
from pairs import as_child, together
from trainer import DROPOUT, trainer_fit

from outshine.glue_tasks import glue
from outshine.planning import Plan


def plan(work: Mapping[str, Any], seed: int) -> Plan:
    """One seed of the task, with the settings of the paper."""
    limit = {"max_steps": work["max_steps"]} if work["max_steps"] else {}
    return plan_of(
        glue(work["task"], data_dir=work["glue_dir"]),
        encoder=work["encoder"],
        device=work["device"],
        preset="bam-single",
        dropout=DROPOUT,
        log_every=100,
        seed=seed,
        **limit,
    )


def train_child(work: Mapping[str, Any]) -> None:
    plans = [plan(work, seed) for seed in work["seeds"]]

    def train() -> dict[str, Any]:
        return {"rows": sum(len(fit(plan).lengths) for plan in plans)}

    as_child(train)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--glue-dir")
    parser.add_argument("--task", default="rte")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=4, help="processes side by side")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--max-steps", type=int, default=0)
    parser.add_argument("--child", type=json.loads)
    args = parser.parse_args()
    if args.child:
        train_child(args.child)
        return
    seeds = range(1, args.seeds + 1)
    with tempfile.TemporaryDirectory() as folder:
        work = {key: getattr(args, key) for key in ("task", "glue_dir", "device", "max_steps")}
        work["encoder"] = encoder_folder(args.encoder, folder)
        shares = [list(seeds[job :: args.jobs]) for job in range(args.jobs)]

        def ours(_: int) -> float:
            return together(__file__, [work | {"seeds": share} for share in shares])[0]

        def theirs(_: int) -> float:
            return sum(trainer_fit(plan(work, seed), "tuned").seconds for seed in seeds)

        found = in_turn({"outshine": ours, "tuned": theirs}, args.pairs)
    content = {
        "task": args.task,
        "seeds": args.seeds,
        "jobs": args.jobs,
        "pairs": args.pairs,
        "seconds": {name: round(statistics.median(s), 2) for name, s in found.items()},
        "ratio": ratios(found["tuned"], found["outshine"]),
    }
    print(json.dumps({"bench": "seeds"} | conditions(args) | content, indent=2))


if __name__ == "__main__":
    main()
