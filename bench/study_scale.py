"""Times `outshine study plan` and `report` on a study of some 200 finished runs.

    python bench/study_scale.py [--encoder builtin] [--tasks cola mrpc stsb rte] [--runs 200]

The study has the arms single, multi, single->single and single->multi; no model is trained: each
run gets the files of a finished one, with made-up metrics and a log of 300 lines, and is recorded
by the code that records real ones. GLUE tasks are found by OUTSHINE_GLUE_DIR. Prints one JSON
object: per command the wall and processor seconds of whole processes (the median of some), and
what of them goes to reading data and encoder files in order to identify the runs.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import arguments, conditions

from outshine.graph import Node, build_graph, encoder_identity
from outshine.results import append_row
from outshine.runs import FORMAT, Run
from outshine.study import Study, begin, open_study
from outshine.workers import _row

TARGET_S = {"plan": 2.0, "report": 10.0}
ARMS = ("single", "multi", "single->single", "single->multi")
LOG_LINES = 300


def study_text(encoder: str, tasks: list[str], num_runs: int) -> str:
    per_seed = 2 * len(tasks) + 2
    return (
        f'name = "scale"\nencoder = "{encoder}"\ntasks = {json.dumps(tasks)}\n'
        f"seeds = {math.ceil(num_runs / per_seed)}\narms = {json.dumps(ARMS)}\n"
        '[stage.single]\npreset = "small-single"\n[stage.multi]\npreset = "small-multi"\n'
    )


def pretend(study: Study, node: Node, rng: random.Random) -> None:
    """Writes the files of a finished run without weights, and records it."""
    run = Run(study.path / node.folder)
    (run.path / "predictions").mkdir(parents=True)
    metrics: dict[str, Any] = {
        task.name: {"dev": {m: rng.uniform(0.5, 0.9) for m in task.metrics} | {"n": 1000}}
        for task in node.tasks
    }
    lines = [
        {"step": 10 * i, "loss": rng.uniform(0.9, 1.0) / i, "gold_weight": 0.5, "lr": 1e-4}
        | {"task_loss": {task.name: rng.uniform(0.9, 1.0) / i for task in node.tasks}}
        for i in range(1, LOG_LINES + 1)
    ]
    run.log_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = node.cfg.model_dump(mode="json")
    tasks = [task.model_dump(mode="json") for task in node.tasks]
    info = {
        "format": FORMAT,
        "id": node.id[:12],
        **dict.fromkeys(("steps", "rows", "tokens", "peak_memory_bytes"), 1000),
        "train_s": 60.0,
        "mixture": {
            task.name: {"rows": 1000, "probability": 0.25, "passes": 3.0, "weight": 1.0}
            for task in node.tasks
        },
        "versions": {"outshine": "0", "torch": torch.__version__},
        "git_commit": None,
        "device": "none",
        "precision": "fp32",
        "num_threads": 1,
        "data": {task.name: study.graph.data[task.name]["splits"] for task in node.tasks},
    }
    for name, content in (
        ("config.json", {"settings": settings, "tasks": tasks, "teachers": {}}),
        ("metrics.json", metrics),
        ("run.json", info),
    ):
        (run.path / name).write_text(json.dumps(content))
    append_row(study.path, _row(node, run, {}, 66.0))


@contextlib.contextmanager
def timed(found: dict[str, float]) -> Iterator[None]:
    """Wall and processor seconds of the block, its child processes included."""
    of = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)

    def processor() -> float:
        return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, of))

    wall, cpu = time.perf_counter(), processor()
    yield
    found |= {"wall_s": time.perf_counter() - wall, "processor_s": processor() - cpu}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tasks", nargs="+", default=["cola", "mrpc", "stsb", "rte"])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scale.toml"
        file.write_text(study_text(args.encoder, args.tasks, args.runs))
        study = open_study(file)
        begin(study)
        for node in study.graph.nodes.values():
            pretend(study, node, rng)
        identify: dict[str, float] = {}
        encoder_identity.cache_clear()
        with timed(identify):
            build_graph(study.spec, study.rows())
        rounds: dict[str, list[dict[str, float]]] = {command: [] for command in TARGET_S}
        code = "from outshine.cli import main; main()"
        for _ in range(args.rounds):
            for command, seconds in rounds.items():
                seconds.append({})
                with timed(seconds[-1]):
                    subprocess.run(
                        [sys.executable, "-c", code, "study", command, str(file)],
                        check=True,
                        capture_output=True,
                    )
        print(
            json.dumps(
                {
                    "bench": "study_scale",
                    **conditions(args),
                    "tasks": args.tasks,
                    "runs": len(study.graph.nodes),
                    "seeds": len(study.spec.seeds),
                    "rounds": args.rounds,
                    "target_s": TARGET_S,
                    **{
                        command: {
                            key: round(statistics.median(s[key] for s in seconds), 2)
                            for key in ("wall_s", "processor_s")
                        }
                        for command, seconds in rounds.items()
                    },
                    "identify": {key: round(value, 2) for key, value in identify.items()},
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
