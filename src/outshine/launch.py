"""Runs a study: in this process or in several of this machine, with a live table of what runs.

A worker process is `python -c "... worker()"`; it tells what it does in JSON lines on stdout. It
is not made by multiprocessing, so that a script that calls `run_study` needs no guard.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from outshine import ray_executor
from outshine.console import clock, console, say, table
from outshine.errors import OutshineError, UserError, WorldError
from outshine.graph import Node
from outshine.jobs import MIN_RUNS, choose_jobs, gpus_for, worker_environment
from outshine.plan import seconds_of, to_make
from outshine.processes import want_one_process
from outshine.ray_executor import LOOK_EVERY_S, MAX_DEATHS
from outshine.results import Row
from outshine.study import (
    Study,
    begin,
    chosen_seeds,
    note_choices,
    open_study,
    settled,
    sweep,
)
from outshine.workers import failure, request, serve, work

EXECUTORS = ("local", "ray")
PLAIN_LINE_EVERY_S = 30.0
AUTO = "auto"
# Its number, its process, and the thread that reads what it tells.
Worker = tuple[int, subprocess.Popen[str], threading.Thread]
_WORKER = "from outshine.launch import worker; worker()"


def run_study(
    place: str | Path,
    *,
    out: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int | str | None = None,
    executor: str = "local",
    settings: Mapping[str, Any] | None = None,
    glue_dir: str | Path | None = None,
    others: Sequence[str | Path] = (),
) -> Study:
    """Makes the runs of a study that are not done, seed by seed.

    Args:
        place: A study file, or the folder of a study that was begun.
        out: The study's folder; default: `<folder of the file>/<name>`.
        seeds: Some of the study's seeds; default: all.
        jobs: Processes; several on one folder, also of several calls, share the work. `auto`
            measures how many of them get through most (`jobs.choose_jobs`). Default: that where
            there is a GPU and runs enough to pay for it, else one per GPU, else 1, for the number
            of cores that each has moves results in the last bits.
        executor: `local`, or `ray` for the cluster at RAY_ADDRESS, whose nodes must all see the
            study's folder.
        settings: Settings of every run that win over those of the file.
        glue_dir: See `outshine.glue`.
        others: Folders of other studies whose rows count, too, where they are of the same runs.

    Returns:
        The study; its `results()` say what the arms scored.

    Raises:
        UserError: If anything given is wrong, before any training.
        WorldError: If the disk, the hub or a worker fails, or no Ray cluster answers.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when checkpoints are written.
    """
    want_one_process("run the study")
    if executor not in EXECUTORS:
        raise UserError(
            f"cannot run the study: executor {executor!r}, expected {', '.join(EXECUTORS)}",
            "choose one of these",
        )
    if jobs not in (None, AUTO) and (not isinstance(jobs, int) or jobs < 1):
        raise UserError(
            f"cannot run the study: {jobs} jobs, expected {AUTO}, or 1 or more", "give --jobs 1"
        )
    if executor == "ray" and jobs == AUTO:
        raise UserError(
            f"cannot run the study: {AUTO} jobs on Ray, expected a number",
            "give --jobs as many as the cluster has GPUs, or nodes",
        )
    if executor == "ray":
        ray_executor.check_cluster()
    study = open_study(place, out=out, overrides=settings, glue_dir=glue_dir, others=others)
    chosen = chosen_seeds(study, seeds)
    begin(study)
    sweep(study)
    left = to_make(study, chosen, study.rows())
    with _terminable():
        number = _number_of_jobs(study, chosen, left, jobs, executor, glue_dir)
    with _terminable(), _board(study, chosen, number) as tell:
        if not left:
            pass
        elif executor == "ray":
            ray_executor.run_on_ray(study, chosen, number, glue_dir, tell)
        elif number == 1:
            work(study, chosen, tell)
        else:
            _in_processes(study, chosen, number, gpus_for(left), glue_dir, tell)
    study = settled(study)
    note_choices(study)
    return study


def _number_of_jobs(
    study: Study,
    seeds: Sequence[int],
    left: Sequence[Node],
    jobs: int | str | None,
    executor: str,
    glue_dir: str | Path | None,
) -> int:
    """The processes that `run_study` wants for these runs."""
    if not left:
        return 1
    if jobs is None:
        gpus = len(gpus_for(left)) if executor == "local" else 0
        many = study.graph.pending or len(left) >= MIN_RUNS * gpus
        jobs = AUTO if gpus and many else max(1, gpus)
    if jobs == AUTO:
        jobs = choose_jobs(study, left, request(study, seeds, glue_dir))
    number = int(jobs)
    # runs that are not known yet may follow those that choose settings
    return number if study.graph.pending else min(number, len(left))


@contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM, which schedulers send some seconds before they kill, what Ctrl-C is.

    Where SIGINT is ignored, as in what a shell starts with &, it stays so in this process, but not
    in workers: they are asked by it to stop.
    """
    handlers: dict[int, Any] = {signal.SIGTERM: signal.default_int_handler}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        handlers[signal.SIGINT] = lambda *_: None  # unlike SIG_IGN it is not inherited
    try:
        before = {number: signal.signal(number, handlers[number]) for number in handlers}
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- several processes ------------------------------------------------------------------------


def _in_processes(
    study: Study,
    seeds: Sequence[int],
    jobs: int,
    gpus: Sequence[str],
    glue_dir: str | Path | None,
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Keeps so many workers at work until nothing is left; an error of one stops all."""
    events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    given = json.dumps(request(study, seeds, glue_dir))

    def begin_worker(number: int) -> Worker:
        environment = os.environ | worker_environment(number, jobs, gpus)
        return number, *_start(given, environment, events)

    workers = [begin_worker(number) for number in range(jobs)]
    problem: OutshineError | None = None
    deaths, full, looked = 0, 0, time.monotonic()
    try:
        while (workers or not events.empty()) and problem is None:
            try:
                event = events.get(timeout=0.2)
            except queue.Empty:
                event = {}
            if event.get("full") and full < jobs - 1:
                full += 1  # it ends, and its memory is the others', who take its run up
                say(f"note: {event['message']}; {jobs - full} of {jobs} workers go on")
            elif event.get("event") == "error":
                problem = failure(event)
            elif event:
                tell(event)
            if event and time.monotonic() < looked + LOOK_EVERY_S:
                continue
            looked = time.monotonic()
            for ended in [each for each in workers if each[1].poll() is not None]:
                number, worker, reader = ended
                reader.join()  # its last word may be an error
                workers.remove(ended)
                if worker.returncode and problem is None:
                    deaths += 1
                    say(f"note: a worker ended with code {worker.returncode}; another takes over")
                    if deaths > MAX_DEATHS:
                        problem = WorldError(
                            f"cannot go on: {deaths} workers have died", "see their output above"
                        )
                    else:
                        workers.append(begin_worker(number))
    finally:
        for _, worker, _ in workers:
            worker.send_signal(signal.SIGINT)
        for _, worker, _ in workers:
            worker.wait()
    if problem is not None:
        raise problem


def _start(
    given: str, environment: Mapping[str, str], events: queue.SimpleQueue[dict[str, Any]]
) -> tuple[subprocess.Popen[str], threading.Thread]:
    """Starts a worker and the thread that reads its events.

    It has a session of its own, so that Ctrl-C reaches it once, through us.
    """
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, given],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )

    def read() -> None:
        assert worker.stdout is not None
        with worker.stdout as lines:
            for line in lines:
                try:
                    events.put(json.loads(line))
                except ValueError:  # a library's own words
                    say(line.rstrip("\n"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return worker, reader


def worker() -> None:
    """What a worker process does; its argument is JSON (`workers.request`)."""
    parent = os.getppid()

    def stop_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop_with_parent, daemon=True).start()

    def send(event: dict[str, Any]) -> None:
        print(json.dumps(event), flush=True)

    try:
        error = serve(json.loads(sys.argv[1]), send)
        if error:
            send(error)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)


# --- what people see --------------------------------------------------------------------------


@contextmanager
def _board(
    study: Study, seeds: Sequence[int], jobs: int
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A live table of what runs, on a terminal; elsewhere one line per run."""
    board = _Board(study, seeds, jobs)
    screen = console()
    if not screen.is_terminal:
        yield board.tell
        return
    from rich.live import Live

    with Live(get_renderable=board.table, console=screen, refresh_per_second=2, transient=True):
        yield board.tell


class _Board:
    """What the workers have told so far."""

    def __init__(self, study: Study, seeds: Sequence[int], jobs: int) -> None:
        self.study, self.seeds, self.jobs = study, seeds, jobs
        self.screen = console()
        self.running: dict[str, dict[str, Any]] = {}
        self.last_line = time.monotonic()
        self._count()

    def _count(self) -> dict[str, Row]:
        self.study = settled(self.study)
        rows = self.study.rows()
        left = to_make(self.study, self.seeds, rows)
        self.total = len(self.study.graph.needed(self.seeds))
        self.left, self.expected = len(left), seconds_of(left, rows)
        return rows

    def eta(self) -> str:
        """How long it will take, less what each run under way has had of its own time."""
        now, running, expected = time.monotonic(), dict(self.running), self.expected
        had = {run: now - state["since"] for run, state in running.items()}
        seconds = sum(max(0.0, its - had.get(run, 0.0)) for run, its in expected.items())
        about = f"about {clock(seconds / self.jobs)}"
        more = ", more when settings are chosen" if self.study.graph.pending else ""
        unknown = self.left - len(expected)
        if not unknown:
            return f"{about} left{more}"
        others = f", {about} for the others" if expected else ""
        return f"{self.left} left, {unknown} of them of a kind not measured yet{others}{more}"

    def tell(self, event: dict[str, Any]) -> None:
        """Takes in one event of a worker, and prints its line where there is no terminal."""
        kind, run = event["event"], event.get("run", "")
        if run and run not in self.study.graph.nodes:
            self.study = settled(self.study)
            if run not in self.study.graph.nodes:  # of a file that was changed meanwhile
                return
        if kind == "begin":
            self.running[run] = event | {"since": time.monotonic()}
        elif kind == "progress":
            self.running.setdefault(run, {"since": time.monotonic()}).update(event)
        elif kind == "done":
            since = self.running.pop(run, {}).get("since", time.monotonic())
            rows = self._count()
            text = _scores(rows[run]) if run in rows else ""
            title = _title(self.study.graph.nodes[run])
            place = f"[{self.total - self.left}/{self.total}]"
            self._line(f"{place} {title}: {text} ({clock(time.monotonic() - since)}), {self.eta()}")
        if not self.screen.is_terminal and time.monotonic() - self.last_line > PLAIN_LINE_EVERY_S:
            for run, state in self.running.items():
                self._line(f"{_title(self.study.graph.nodes[run])}: {_state(state)}, {self.eta()}")

    def _line(self, text: str) -> None:
        self.last_line = time.monotonic()
        self.screen.print(text, markup=False)

    def table(self) -> Any:
        """The live table."""
        rows = [
            [
                _title(self.study.graph.nodes[run]),
                f"{state.get('host', '')}:{state.get('pid', '')}",
                _state(state),
                clock(time.monotonic() - state["since"]),
            ]
            for run, state in list(self.running.items())
        ]
        title = (
            f"{self.study.spec.name}: {self.total - self.left} of {self.total} runs; {self.eta()}"
        )
        return table(title, ["run", "where", "state", "time"], rows, num_text=3)


def _title(node: Node) -> str:
    what = node.tasks[0].name if len(node.tasks) == 1 else f"{len(node.tasks)} tasks"
    fold = f", without fold {node.cfg.fold}" if node.cfg.fold else ""
    return f"{node.chain} on {what}, seed {node.cfg.seed}{fold}"


def _state(state: Mapping[str, Any]) -> str:
    if "what" not in state:
        return "reading data"
    share = state["done"] / max(1, state["total"])
    return f"{state['what']} {share:.0%}" + (f", {state['text']}" if state["text"] else "")


def _scores(row: Row) -> str:
    """The primary dev metrics of a row, in percent."""
    marks = " (degenerate)" if row.degenerate else ""
    if len(row.tasks) > 4:
        mean = sum(row.primary(name) for name in row.tasks) / len(row.tasks)
        return f"mean {100 * mean:.1f}{marks}"
    return ", ".join(f"{name} {100 * row.primary(name):.1f}" for name in row.tasks) + marks
