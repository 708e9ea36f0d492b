"""Cost against work: rows, tasks, and processes.

    python bench/scaling.py [--rows 320] [--batch-size 32] [--pairs 5] [--threads 1]

Trains made-up pairs (about 20 words) for one pass, each time in a fresh process with an empty
cache: so many rows, 4 and 16 times as many; so many draws from 1, 2, 5, 10 and 50 tasks, which are
the same rows under so many names; and 128 rows per step by `outshine train` in one process of one
thread, then in two under torchrun, which divide every step (DDP): seconds of the steps alone, as
the run's own log has them. Reports seconds by the clock and of the processor (machines are shared),
the peak memory, and the processor time before the first step. The sides take turns; values are
medians. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common import arguments, conditions, fit, in_turn, plan_of, ratios
from pairs import as_child, peak_mb, task_file, together

from outshine.tasks import Task

TIMES_ROWS = (1, 4, 16)
NUM_TASKS = (1, 2, 5, 10, 50)
DDP_BATCH = 128
KEYS = ("prepare_cpu_s", "seconds", "cpu_s", "peak_mb", "cpu_ms_per_row", "cpu_us_per_token")


def train_child(work: Mapping[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["OUTSHINE_CACHE_DIR"] = cache
        start = time.process_time()
        task = Task.load(Path(work["folder"]) / "pairs.toml")
        count = work["tasks"]
        plan = plan_of(
            [task.model_copy(update={"name": f"pairs{i}"}) for i in range(count)],
            encoder=work["encoder"],
            device=work["device"],
            epochs=1 / count,
            sampling="uniform",
            batch_size=work["batch_size"],
            lr=5e-5,
            layer_decay=1.0,
        )
        prepare_cpu_s = time.process_time() - start

        def train() -> dict[str, Any]:
            found = fit(plan)
            rows, tokens = len(found.lengths), int(found.lengths.sum())
            return {
                "rows": rows,
                "prepare_cpu_s": prepare_cpu_s,
                "seconds": found.seconds,
                "cpu_s": found.cpu_s,
                "peak_mb": peak_mb(),
                "cpu_ms_per_row": 1e3 * found.cpu_s / rows,
                "cpu_us_per_token": 1e6 * found.cpu_s / tokens,
            }

        as_child(train)


def medians(found: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Per side the medians, and cost per row and token relative to the first side, by pairs."""
    first = next(iter(found.values()))
    table = {}
    for name, runs in found.items():
        row = {"rows": runs[0]["rows"]}
        row |= {key: round(statistics.median(run[key] for run in runs), 3) for key in KEYS}
        for what, key in (("per_row", "cpu_ms_per_row"), ("per_token", "cpu_us_per_token")):
            row[what] = ratios([run[key] for run in runs], [run[key] for run in first])
        wall = [[run["seconds"] / run["rows"] for run in side] for side in (runs, first)]
        table[name] = row | {"per_row_by_clock": ratios(*wall)}
    return table


def steps_s(folder: Path, encoder: str, processes: int, _: int) -> float:
    """Seconds of the steps of one run that so many processes of one thread train together."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    settings = [f"batch_size={DDP_BATCH}", "epochs=1", "keep=metrics", "device=cpu"]
    with tempfile.TemporaryDirectory() as out:
        words = [*(torchrun if processes > 1 else []), "outshine", "train", f"{folder}/pairs.toml"]
        words += ["--encoder", encoder, "--out", f"{out}/run"]
        words += [word for setting in settings for word in ("--set", setting)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "OUTSHINE_CACHE_DIR": str(folder)}
        subprocess.run(
            [sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL, env=env
        )
        last = Path(out, "run", "log.jsonl").read_text().splitlines()[-1]
    return float(json.loads(last)["elapsed_s"])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=["rows", "tasks", "processes"])
    parser.add_argument("--child", type=json.loads)
    args = parser.parse_args()
    if args.child:
        train_child(args.child)
        return
    with tempfile.TemporaryDirectory() as name:
        folders = {}
        for times in TIMES_ROWS:
            folders[times] = Path(name) / str(times)
            folders[times].mkdir()
            task_file(folders[times], times * args.rows)

        def work(times: int = 1, tasks: int = 1, **changes: int) -> dict[str, Any]:
            common = {"encoder": args.encoder, "device": args.device, "threads": args.threads}
            given = {"batch_size": args.batch_size, "folder": str(folders[times]), "tasks": tasks}
            return common | given | changes

        def alone(given: dict[str, Any], _: int) -> dict[str, Any]:
            return together(__file__, [given])[1][0]

        content: dict[str, Any] = {"pairs": args.pairs, "threads_per_process": args.threads}
        if "rows" in args.only:
            sides = {str(times): partial(alone, work(times)) for times in TIMES_ROWS}
            content["times_rows"] = medians(in_turn(sides, args.pairs))
        if "tasks" in args.only:
            sides = {str(count): partial(alone, work(tasks=count)) for count in NUM_TASKS}
            content["tasks"] = medians(in_turn(sides, args.pairs))
        if "processes" in args.only:
            both = {str(n): partial(steps_s, folders[4], args.encoder, n) for n in (1, 2)}
            seconds = in_turn(both, args.pairs)
            content["processes"] = {
                "batch_size": DDP_BATCH,
                "rows": 4 * args.rows,
                "seconds": {n: round(statistics.median(s), 2) for n, s in seconds.items()},
                "gain": ratios(seconds["1"], seconds["2"]),
            }
    print(json.dumps({"bench": "scaling"} | conditions(args) | content, indent=2))


if __name__ == "__main__":
    main()
