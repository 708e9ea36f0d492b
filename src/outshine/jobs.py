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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from outshine.checkpoints import first_state
from outshine.console import clock, say, watched
from outshine.devices import set_up
from outshine.evaluation import table_logits
from outshine.graph import Node
from outshine.journal import Log
from outshine.planning import prepare
from outshine.runs import Run
from outshine.study import Study, open_study
from outshine.training import fit, make_ready

WARM_S = 3.0
MEASURE_S = 4.0
# Each number of processes takes some ten seconds; fewer runs per GPU may not pay for that, and
# nobody has asked.
MIN_RUNS = 20
MAX_PER_GPU = 16
# Twice as many processes need twice the memory, and each run then takes longer: so much more work
# is worth that.
WORTH = 1.1
# What more processes may take of the free memory: other runs may need more than the measured one.
MEMORY_SHARE = 0.5
EVALUATED_ROWS = 512
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
    share = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(_threads(jobs))}
    return share | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})


def _threads(jobs: int) -> int:
    return max(1, num_cores() // jobs)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_jobs(study: Study, left: Sequence[Node], request: Mapping[str, Any]) -> int:
    """The number of processes that get through most rows a second, and no more than pay.

    It takes the largest number of 1, 2, 4, ... processes, per GPU where there are some, that train
    at least WORTH times the rows of half as many, and for which there is memory. All train the run
    with the largest batches among those that are left.

    Args:
        study: The study, begun.
        left: Its runs that are left.
        request: How another process opens the study (`workers.request`).
    """
    gpus = gpus_for(left)
    devices = max(1, len(gpus))
    runs = math.inf if study.graph.pending else len(left)
    on_gpus = gpus or any(node.cfg.device.startswith("cuda") for node in left)
    most = min(runs, devices * MAX_PER_GPU if on_gpus else num_cores())
    jobs = devices
    if most < 2 * jobs:
        return jobs
    node = max(left, key=lambda node: (node.cfg.batch_size, node.cfg.max_length, len(node.tasks)))
    say("measuring how many runs to train side by side (`--jobs N` skips this)")
    begin, best, best_rate, told = time.monotonic(), devices, 0.0, []
    with tempfile.TemporaryDirectory() as folder, _ended() as trials:
        while jobs <= most:
            for number in range(len(trials), jobs):
                given = {**request, "run": node.id, "place": str(Path(folder, str(number)))}
                trials.append(_start(given, os.environ | worker_environment(number, jobs, gpus)))
            answers = _measure(trials, _threads(jobs))
            problems = [answer["error"] for answer in answers if "error" in answer]
            if problems:
                told.append(f"{jobs}: {problems[0]}")
                break
            rate = sum(answer["rows"] / answer["seconds"] for answer in answers)
            told.append(f"{jobs}: {rate:,.0f} rows/s")
            if rate < WORTH * best_rate:
                break
            best, best_rate = jobs, rate
            # twice as many are `jobs` more on this machine, and so many more on each GPU
            on_each = min(answer["gpu_room"] for answer in answers)
            if min(answer["room"] for answer in answers) < jobs or on_each < jobs // devices:
                break
            jobs *= 2
    took = clock(time.monotonic() - begin)
    say(f"note: --jobs {best}, measured in {took} together: {'; '.join(told)}")
    return best


# --- the processes that are measured ----------------------------------------------------------


@contextmanager
def _ended() -> Iterator[list[subprocess.Popen[str]]]:
    """A list of processes that do not live longer than the context."""
    trials: list[subprocess.Popen[str]] = []
    try:
        yield trials
    finally:
        for process in trials:
            process.kill()
            process.communicate()


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


def _measure(trials: Sequence[subprocess.Popen[str]], threads: int) -> list[dict[str, Any]]:
    """What all trials do at the same time, once warm; {"error": text} of one that cannot."""
    answers: list[dict[str, Any]] = []
    for seconds in (WARM_S, MEASURE_S):
        with suppress(BrokenPipeError):  # what ended has said why, or says nothing below
            for process in trials:
                assert process.stdin is not None
                process.stdin.write(json.dumps({"seconds": seconds, "threads": threads}) + "\n")
                process.stdin.flush()
        lines = [process.stdout.readline() for process in trials if process.stdout]
        answers = [json.loads(line or '{"error": "a process died"}') for line in lines]
        if any("error" in answer for answer in answers):
            break
    return answers


def trial() -> None:
    """What a measured process does: trains as long as each line on stdin says, and tells of it."""
    given = json.loads(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr

    def tell(answer: Mapping[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    with watched(lambda *_: None):
        try:
            study = open_study(given["study"], glue_dir=given["glue_dir"], others=given["others"])
            train_for = _training(study.graph.nodes[given["run"]], Path(given["place"]))
            for line in sys.stdin:
                tell(train_for(**json.loads(line)))
        except Exception as error:  # whatever it is, the run itself may meet it, and says it then
            first_line = str(error).split("\n")[0]
            tell({"error": f"{type(error).__name__}: {first_line}"})


def _training(node: Node, folder: Path) -> Callable[..., dict[str, Any]]:
    """A function that goes on with a run, without teachers, for some seconds.

    Teachers and starts from other runs may not be made yet; they change nothing of a step's work.
    """
    kept = {"epochs": 1e6, "max_steps": 0, "eval_every": 0, "save_every_s": math.inf, "track": ()}
    init = "random" if node.cfg.init == "random" else "encoder"
    cfg = node.cfg.model_copy(update={**kept, "init": init})
    set_up(cfg.num_threads, cfg.deterministic)
    plan, optimizer = make_ready(prepare(node.tasks, cfg, None))
    state = first_state(plan)
    folder.mkdir()
    log = Log(Run(folder), plan, state)
    for table in islice(plan.dev.values(), 1):  # evaluation takes memory, too
        table_logits(
            replace(plan.forward, precision="fp32"), table, np.arange(len(table))[:EVALUATED_ROWS]
        )

    def train_for(seconds: float, threads: int) -> dict[str, Any]:
        if not cfg.num_threads and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(threads)
        rows, begin = state.rows, time.monotonic()
        fit(log, optimizer, lambda: time.monotonic() > begin + seconds)
        if plan.forward.device.type == "cuda":
            torch.cuda.synchronize(plan.forward.device)
        took = time.monotonic() - begin
        return {"rows": state.rows - rows, "seconds": took, **_rooms(plan.forward.device)}

    return train_for


def _rooms(device: torch.device) -> dict[str, float]:
    """How many more processes like this one free memory holds, of the machine and of its GPU."""
    own = psutil.Process().memory_info().rss
    rooms = {"room": MEMORY_SHARE * psutil.virtual_memory().available / own, "gpu_room": math.inf}
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        own = torch.cuda.max_memory_reserved(device) + _CONTEXT_BYTES
        rooms["gpu_room"] = MEMORY_SHARE * free / own
    return rooms
