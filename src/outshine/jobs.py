"""How many runs of a study train side by side on this machine: measured.

A small run leaves a GPU idle between its kernels, and many cores idle where they wait for each
other; a large run fills either alone. Which it is depends on encoder, batches and machine. So
processes train the largest run that is left, without keeping anything of it, and their number is
doubled as long as together they get through more rows.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from outshine.checkpoints import State
from outshine.console import clock, say, watched
from outshine.errors import OutshineError
from outshine.graph import Node
from outshine.journal import Log
from outshine.planning import Plan, prepare
from outshine.runs import Run
from outshine.study import Study, open_study
from outshine.training import fit, make_ready

WARM_S = 3.0
MEASURE_S = 4.0
# The measuring takes half a minute; fewer runs per GPU may not pay for it, and nobody has asked.
MIN_RUNS = 20
MAX_PER_GPU = 16
# Twice as many processes need twice the memory, and each run then takes longer: so much more work
# is worth that.
WORTH = 1.1
# Other runs, and the evaluation, may need more memory than the one that is measured.
MEMORY_SHARE = 0.8
_CONTEXT_BYTES = 512 * 2**20  # of a process on a GPU, beside its tensors
_TRIAL = "from outshine.jobs import trial; trial()"


def gpus_for(left: Sequence[Node]) -> list[str]:
    """The GPUs over which these runs are spread, as CUDA_VISIBLE_DEVICES names them.

    Where a run's setting `device` says which, none is: its number is one of all GPUs.
    """
    if not left or any(node.cfg.device not in ("auto", "cuda") for node in left):
        return []
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return names[:count]


def worker_environment(number: int, jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """Environment variables of a worker: its share of the cores, unless the user says, and its GPU.

    Args:
        number: Of the worker, from 0.
        jobs: Workers in all.
        gpus: See `gpus_for`.
    """
    share = {"OMP_NUM_THREADS": str(_threads(jobs))}
    return share | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})


def _threads(jobs: int) -> int:
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() else max(1, (os.cpu_count() or 1) // jobs)


def choose_jobs(study: Study, left: Sequence[Node], request: Mapping[str, Any]) -> int:
    """The number of processes that get through most rows a second, and no more than pay.

    It takes the largest number of 1, 2, 4, ... processes, per GPU where there are some, that train
    at least WORTH times the rows of half as many, and that the memory holds.

    Args:
        study: The study, begun.
        left: Its runs that are left.
        request: How another process opens the study (`workers.request`).
    """
    gpus = gpus_for(left)
    jobs = max(1, len(gpus))
    runs = math.inf if study.graph.pending else len(left)
    most = min(runs, jobs * MAX_PER_GPU if gpus else os.cpu_count() or 1)
    if most < 2 * jobs:
        return jobs
    node = max(left, key=lambda node: (node.cfg.batch_size, len(node.tasks)))
    say("measuring how many runs train side by side (--jobs says it without)")
    begin, best, found = time.monotonic(), 0, dict[int, float]()
    trials: list[subprocess.Popen[str]] = []
    try:
        while jobs <= most:
            for number in range(len(trials), jobs):
                environment = os.environ | worker_environment(number, jobs, gpus)
                trials.append(_start({**request, "run": node.id}, environment))
            answers = _measure(trials, node.cfg.num_threads or _threads(jobs))
            if answers is None:
                break
            found[jobs] = sum(answer["rows"] / answer["seconds"] for answer in answers)
            if best and found[jobs] < WORTH * found[best]:
                break
            best = jobs
            if min(answer["room"] for answer in answers) < jobs // max(1, len(gpus)):
                break
            jobs *= 2
    finally:
        for process in trials:
            process.kill()
            process.communicate()
    best = best or jobs
    rates = ", ".join(f"{count}: {rate:,.0f} rows/s" for count, rate in found.items())
    took = clock(time.monotonic() - begin)
    say(f"note: --jobs {best}, by the rate of so many processes together ({rates}; {took})")
    return best


# --- the processes that are measured ----------------------------------------------------------


def _start(given: Mapping[str, Any], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Starts a trial in a session of its own: Ctrl-C reaches us, and we end it."""
    return subprocess.Popen(
        [sys.executable, "-c", _TRIAL, json.dumps(given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    )


def _measure(trials: Sequence[subprocess.Popen[str]], threads: int) -> list[dict[str, Any]] | None:
    """What all trials do at the same time; None if one cannot, for want of memory perhaps."""
    try:
        for asked in ({"warm": True}, {"seconds": MEASURE_S}):
            for process in trials:
                assert process.stdin is not None
                process.stdin.write(json.dumps({"threads": threads, **asked}) + "\n")
                process.stdin.flush()
            pipes = [process.stdout for process in trials if process.stdout]
            answers = [json.loads(pipe.readline()) for pipe in pipes]
    except (BrokenPipeError, ValueError):
        return None
    return answers


def trial() -> None:
    """What a measured process does: trains as long as each line on stdin says, and tells of it."""
    given = json.loads(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder, watched(lambda *_: None):
        try:
            study = open_study(given["study"], glue_dir=given["glue_dir"], others=given["others"])
            train_for = _training(study.graph.nodes[given["run"]], Path(folder))
            for line in sys.stdin:
                asked = json.loads(line)
                torch.set_num_threads(asked["threads"])
                # kernels are compiled, and memory is laid out, in the first steps
                seconds = WARM_S if "warm" in asked else asked["seconds"]
                print(json.dumps(train_for(seconds)), file=answers, flush=True)
        except OutshineError:
            sys.exit(1)  # the run itself will say it


def _training(node: Node, folder: Path) -> Callable[[float], dict[str, Any]]:
    """A function that goes on with a run, without teachers, for some seconds.

    Teachers and starts from other runs may not be made yet; they change nothing of a step's work.
    """
    kept = {"epochs": 1e6, "max_steps": 0, "eval_every": 0, "save_every_s": math.inf, "track": ()}
    init = "random" if node.cfg.init == "random" else "encoder"
    plan, optimizer = make_ready(
        prepare(node.tasks, node.cfg.model_copy(update={**kept, "init": init}), None)
    )
    state = State()
    log = Log(Run(folder), plan, state)

    def train_for(seconds: float) -> dict[str, Any]:
        rows, begin = state.rows, time.monotonic()
        fit(log, optimizer, lambda: time.monotonic() > begin + seconds)
        if plan.forward.device.type == "cuda":
            torch.cuda.synchronize(plan.forward.device)
        took = time.monotonic() - begin
        return {"rows": state.rows - rows, "seconds": took, "room": _room(plan)}

    return train_for


def _room(plan: Plan) -> int:
    """How many more processes like this one the free memory holds."""
    free, own = psutil.virtual_memory().available, psutil.Process().memory_info().rss
    more = MEMORY_SHARE * free / own
    if plan.forward.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(plan.forward.device)
        own = torch.cuda.max_memory_reserved(plan.forward.device) + _CONTEXT_BYTES
        more = min(more, MEMORY_SHARE * free / own)
    return int(more)
