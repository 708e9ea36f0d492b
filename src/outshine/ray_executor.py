"""Runs a study on a Ray cluster that exists: a worker is a Ray task that works as a local one.

Ray places the tasks, and starts one again elsewhere when its process or node dies; which run is
made by whom is decided in the study's folder, as everywhere. All nodes must share that folder.
"""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from outshine.errors import UserError, WorldError
from outshine.study import Study

ANSWER_S = 30
STOP_S = 60
# Both also hold for the processes of one machine (`launch`).
MAX_DEATHS = 3
# Workers that have ended are looked for so often, however much the others tell.
LOOK_EVERY_S = 1.0
# In a process of its own: ray.init goes on trying for minutes, and cannot be stopped meanwhile.
_PROBE = "import sys, ray; ray.init(address=sys.argv[1], logging_level=40)"


def address() -> str:
    """The cluster's address: RAY_ADDRESS, else `auto`, the one that runs on this machine."""
    return os.environ.get("RAY_ADDRESS", "auto")


def check_cluster() -> None:
    """Checks that there is a cluster to run on.

    Raises:
        UserError: If the package ray is missing.
        WorldError: If no cluster answers within ANSWER_S seconds.
    """
    if find_spec("ray") is None:
        raise UserError(
            "cannot run the study on Ray: the package ray is missing", "pip install 'outshine[ray]'"
        )
    try:
        probe = [sys.executable, "-c", _PROBE, address()]
        done = subprocess.run(probe, capture_output=True, text=True, timeout=ANSWER_S)
        reason = done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"no answer within {ANSWER_S} s"
    if reason:
        raise WorldError(
            f"cannot run the study on Ray at {address()!r}: {reason}",
            "`ray start --head` starts a cluster; RAY_ADDRESS names one, such as 10.0.0.1:6379",
        )


def run_on_ray(
    study: Study,
    seeds: Sequence[int],
    jobs: int,
    glue_dir: str | Path | None,
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Keeps so many workers at work on the cluster until nothing is left.

    Args:
        study: The study, begun, in a folder that all nodes see under the same path.
        seeds: Of the arms.
        jobs: Workers.
        glue_dir: See `glue_tasks.glue`; all nodes must see it, too.
        tell: Is told the workers' events (`workers.work`).

    Raises:
        OutshineError: If a run cannot be made, or a worker has died more than MAX_DEATHS times.
        KeyboardInterrupt: After Ctrl-C, when checkpoints are written.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.queue import Empty, Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from outshine.workers import failure, request

    ray.init(address=address(), logging_level=logging.ERROR, log_to_driver=False)
    try:
        # beside this process, so that no other node takes it along when it dies
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        worker = ray.remote(serve_on_node).options(
            max_retries=MAX_DEATHS, scheduling_strategy="SPREAD", **_share(ray.nodes(), jobs)
        )
        given = request(study, seeds, glue_dir)
        workers = [worker.remote(given, events) for _ in range(jobs)]
        ended: list[Any] = []
        error, stop, looked = None, True, time.monotonic()
        try:
            # the first that ends has found that nothing is left, or an error
            while not ended:
                with suppress(Empty):
                    tell(events.get(timeout=0.2))
                if time.monotonic() >= looked + LOOK_EVERY_S:
                    ended, _ = ray.wait(workers, timeout=0)
                    looked = time.monotonic()
            error = ray.get(ended[0])
            stop = error is not None
        except RayError as problem:
            reason = str(problem).strip().rpartition("\n")[2]
            raise WorldError(
                f"cannot go on: a worker on Ray failed: {reason}",
                "its log is below /tmp/ray/session_latest/logs on its node",
            ) from problem
        finally:
            for unfinished in workers if stop else ():
                ray.cancel(unfinished)  # as Ctrl-C does: it writes its checkpoint
            # one that found no place on the cluster would not end
            ray.wait(workers, num_returns=jobs, timeout=STOP_S)
        while not events.empty():
            tell(events.get())
        if error:
            raise failure(error)
    finally:
        ray.shutdown()


def serve_on_node(given: Mapping[str, Any], events: Any) -> dict[str, Any] | None:
    """Does what `workers.serve` does, on another machine that sees the same files."""
    from outshine.workers import serve

    for folder in (given["study"], given["cwd"]):
        if not Path(folder).is_dir():
            return {
                "event": "error",
                "code": WorldError.exit_code,
                "message": f"cannot work on the study on {platform.node()}: no folder {folder}",
                "hint": "all nodes must see the study's folder, its data and the folder of the "
                "command under the same paths, on a file system that they share",
            }
    os.chdir(given["cwd"])  # settings may have paths relative to it
    return serve(given, events.put)


def _share(nodes: Sequence[dict[str, Any]], jobs: int) -> dict[str, float]:
    """Cores and GPUs of each of so many workers, as options of a Ray task."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    cores = [int(of_node["CPU"]) for of_node in resources if of_node.get("CPU", 0) >= 1]
    gpus = int(sum(of_node.get("GPU", 0) for of_node in resources))
    # no worker may need more than a node has; Ray counts GPUs in steps of 0.0001
    num_cpus = max(1, min([sum(cores) // jobs, *cores]))
    return {"num_cpus": num_cpus, "num_gpus": 10_000 // -(-jobs // gpus) / 10_000 if gpus else 0}
