"""Teacher logits: rows per second, and the share of the matrix rate.

    python bench/logits.py [--glue-dir GLUE] [--tasks glue] [--rows 2000] [--pairs 5]

Answers train rows of GLUE tasks (so many in all, as many of each) with the model's own task
heads, untrained, as a student's training does before its first step. Prints one JSON object;
rate.py has the formula of the share, which is taken pair by pair with the rate of bare products.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import replace

import numpy as np
from common import GLUE, arguments, conditions, encoder_folder, in_turn, plan_of, ratios
from rate import matrix_rate, multiplied, operations

from outshine.evaluation import table_logits
from outshine.glue_tasks import glue


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--glue-dir")
    parser.add_argument("--tasks", nargs="+", default=["glue"])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    args = parser.parse_args()
    names = GLUE if args.tasks == ["glue"] else args.tasks
    tasks = glue(*names, data_dir=args.glue_dir)
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(
            tasks,
            encoder=encoder_folder(args.encoder, folder),
            device=args.device,
            max_train_rows=args.rows // len(tasks),
            symmetric=False,
        )
    forward = replace(plan.forward, precision=args.precision)
    parts = plan.mixture.parts
    lengths = np.concatenate([part.table.lengths_of(part.rows) for part in parts])

    def seconds(_: int) -> float:
        start = time.perf_counter()
        for part in parts:
            table_logits(forward, part.table, part.rows)
        return time.perf_counter() - start

    counted = multiplied(lambda: seconds(0))  # the first passes allocate, too
    line = min(int(lengths.sum()) // len(parts), forward.budget.tokens)
    sides = {"logits": seconds, "matrix": lambda _: matrix_rate(forward, line, False)}
    found = in_turn(sides, args.pairs)
    work = operations(forward.model, lengths, False)
    content = {
        "tasks": names,
        "rows": len(lengths),
        "tokens_per_row": round(float(lengths.mean()), 1),
        "precision": args.precision,
        "pairs": args.pairs,
        "rows_per_s": round(len(lengths) / statistics.median(found["logits"]), 1),
        "matrix_gflops": round(statistics.median(found["matrix"]) / 1e9, 1),
        "multiplied_of_formula": round(counted / work, 4),
        "share_of_matrix_rate": ratios([work / s for s in found["logits"]], found["matrix"]),
    }
    print(json.dumps({"bench": "logits"} | conditions(args) | content, indent=2))


if __name__ == "__main__":
    main()
