"""First light: single, multi and single->multi on real GLUE data, as a queue of training runs.

    python results/first-light/run.py a --glue-dir GLUE            # builtin, 4 tasks, 4 passes
    python results/first-light/run.py b --glue-dir GLUE --encoder FOLDER   # 8 tasks x 2,000 rows

Every arm takes the learning rate that is best for it, of the same few, on seed 100, which is not
reported. Each finished run appends one line to `rows-<study>.jsonl` beside this file; a run that
has its line is not trained again, and one that was interrupted goes on from its checkpoint, so
the command can be stopped and given again. On another machine, too: what teachers say of their
train rows stands in `teachers-<study>/`.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SELECTION_SEED = 100


@dataclass(frozen=True)
class Study:
    """One of the two experiments: what is the same for all of its runs."""

    name: str
    encoder: str
    tasks: tuple[str, ...]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    selection: dict[str, Any]


# attention_dropout: the encoders' own, which was the default when these rows were made
STUDIES = {
    "a": Study(
        name="a",
        encoder="builtin",
        tasks=("cola", "mrpc", "stsb", "rte"),
        lrs=(1e-4, 3e-4),
        seeds=(1,),
        settings={"epochs": 4.0, "symmetric": False, "attention_dropout": 0.1},
        # two learning rates for three arms in full would be twice the work of the study itself
        selection={"epochs": 1.0, "max_train_rows": 1500},
    ),
    "b": Study(
        name="b",
        encoder="",
        tasks=("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"),
        lrs=(1e-4, 3e-4, 1e-3),
        seeds=(1, 2, 3, 4, 5),
        settings={"epochs": 3.0, "max_train_rows": 2000, "attention_dropout": 0.1},
        selection={},
    ),
}
BATCH_SIZE = {"single": 32, "multi": 64, "single->multi": 64}


@dataclass(frozen=True)
class Job:
    """One training run; `key` names it in the rows and on disk."""

    arm: str
    tasks: tuple[str, ...]
    seed: int
    lr: float
    teachers: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        what = self.tasks[0] if self.arm == "single" else "all"
        return f"{self.arm.replace('->', '-to-')}-{what}-seed{self.seed}-lr{self.lr:g}"


def train_job(job: Job, study: Study, glue_dir: str, work: Path, threads: int) -> dict[str, Any]:
    """Trains one job in a worker process and returns its row."""
    import outshine
    from outshine.console import set_quiet

    set_quiet(True)
    settings = study.settings | (study.selection if job.seed == SELECTION_SEED else {})
    run = outshine.train(
        outshine.glue(*job.tasks, data_dir=glue_dir),
        outshine.TrainConfig(
            encoder=study.encoder,
            lr=job.lr,
            batch_size=BATCH_SIZE[job.arm],
            layer_decay=1.0,
            seed=job.seed,
            num_threads=threads,
            keep="predictions" if job.arm == "single" else "metrics",
            **settings,
        ),
        teachers=dict(job.teachers),
        out=work / job.key,
        # an interrupted run is taken up at its checkpoint
        force=(work / job.key / "run.json").exists(),
    )
    if job.arm == "single":
        save_table(run, study, job)
    info = run.info()
    kept = ("id", "versions", "git_commit", "device", "precision", "num_threads", "steps", "rows")
    return {
        **{k: v for k, v in asdict(job).items() if k != "teachers"},
        "key": job.key,
        "metrics": run.metrics(),
        "train_s": info["train_s"],
        "tokens": info["tokens"],
        **{name: info[name] for name in kept},
    }


def table_path(study: Study, job: Job) -> Path:
    return HERE / f"teachers-{study.name}" / f"{job.key}.parquet"


def save_table(run: Any, study: Study, job: Job) -> None:
    """Keeps what a teacher says of its train rows, so that its student can be trained elsewhere."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from outshine.predictions import Predictions
    from outshine.tasks import kind_of

    (task,) = run.tasks()
    kind, known = kind_of(task), Predictions.load(run.predictions_path(task.name, "train"))
    said = kind.probs(known.logits) if kind.probs else kind.decode(task, known.logits)[:, None]
    columns = dict(zip(kind.table_columns(task), said.T, strict=True))
    path = table_path(study, job)
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": known.ids} | columns), path, compression="zstd")


def primary(row: dict[str, Any], task: str) -> float:
    """The task's primary dev metric: the first that its row lists."""
    return next(iter(row["metrics"][task]["dev"].values()))


def mean_score(rows: list[dict[str, Any]]) -> float:
    """Mean over all tasks of the rows' primary metrics."""
    values = [primary(row, task) for row in rows for task in row["tasks"]]
    return sum(values) / len(values)


class Queue:
    """Runs jobs in worker processes and remembers the rows of those that are done."""

    def __init__(self, study: Study, args: argparse.Namespace) -> None:
        self.study, self.args = study, args
        self.path = HERE / f"rows-{study.name}.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.rows = {row["key"]: row for row in map(json.loads, lines)}
        self.pool = ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"))
        self.begun: dict[str, Future] = {}

    def begin(self, jobs: list[Job], *, as_teachers: bool = False) -> None:
        """Hands the jobs that have no row yet to the workers, after those handed over before.

        Args:
            jobs: What to train.
            as_teachers: Whether their tables are needed, so that jobs without one are trained
                again (their rows stay as they are).
        """
        for job in jobs:
            without_table = as_teachers and not table_path(self.study, job).exists()
            if job.key not in self.begun and (job.key not in self.rows or without_table):
                self.begun[job.key] = self.pool.submit(
                    train_job,
                    job,
                    self.study,
                    self.args.glue_dir,
                    self.args.work,
                    self.args.threads,
                )

    def run(self, jobs: list[Job], *, as_teachers: bool = False) -> list[dict[str, Any]]:
        """Trains the jobs that have no row yet, as `begin` does; returns the rows of all."""
        self.begin(jobs, as_teachers=as_teachers)
        todo = {self.begun[job.key]: job for job in jobs if job.key in self.begun}
        begin = time.time()
        while todo:
            done, _ = wait(todo, return_when=FIRST_COMPLETED)
            for future in done:
                job = todo.pop(future)
                row = future.result()
                if job.key not in self.rows:
                    self.rows[job.key] = row
                    with self.path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                print(
                    f"{time.time() - begin:6.0f}s  {job.key}  {100 * mean_score([row]):.1f}  "
                    f"{row['tokens'] / row['train_s']:.0f} tokens/s  {len(todo)} left",
                    flush=True,
                )
        return [self.rows[job.key] for job in jobs]


def singles(queue: Queue, seed: int, lr: float) -> list[Job]:
    return [Job("single", (task,), seed, lr) for task in queue.study.tasks]


def taught(queue: Queue, teachers: list[Job], seed: int, lr: float) -> Job:
    sources = tuple((job.tasks[0], str(table_path(queue.study, job))) for job in teachers)
    return Job("single->multi", queue.study.tasks, seed, lr, sources)


def best_lr(queue: Queue, arm: str, jobs: dict[float, list[Job]]) -> float:
    """The learning rate with the best score on the selection seed."""
    rows = queue.run([job for group in jobs.values() for job in group])
    by_key = {row["key"]: row for row in rows}
    scores = {lr: mean_score([by_key[job.key] for job in group]) for lr, group in jobs.items()}
    chosen = max(scores, key=lambda lr: scores[lr])
    shown = ", ".join(f"{lr:g}: {100 * value:.2f}" for lr, value in scores.items())
    print(f"learning rate of {arm}: {chosen:g} (score on seed {SELECTION_SEED}: {shown})")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--glue-dir", required=True)
    parser.add_argument("--encoder", default="")
    parser.add_argument("--work", type=Path, default=HERE.parent.parent / "runs" / "first-light")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    args = parser.parse_args()
    study = STUDIES[args.study]
    study = replace(study, encoder=args.encoder or study.encoder)
    args.work = args.work / study.name
    queue = Queue(study, args)
    sel = SELECTION_SEED
    lr = {}
    lr["single"] = best_lr(queue, "single", {x: singles(queue, sel, x) for x in study.lrs})
    lr["multi"] = best_lr(
        queue, "multi", {x: [Job("multi", study.tasks, sel, x)] for x in study.lrs}
    )
    teachers = singles(queue, sel, lr["single"])
    chosen_by = [taught(queue, teachers, sel, x) for x in study.lrs]
    queue.run(teachers, as_teachers=any(job.key not in queue.rows for job in chosen_by))
    lr["single->multi"] = best_lr(queue, "single->multi", {job.lr: [job] for job in chosen_by})
    last = []
    for seed in study.seeds:
        teachers = singles(queue, seed, lr["single"])
        student = taught(queue, teachers, seed, lr["single->multi"])
        multi = Job("multi", study.tasks, seed, lr["multi"])
        needed = student.key not in queue.rows
        queue.begin(teachers, as_teachers=needed)
        queue.begin([multi])
        queue.run(teachers, as_teachers=needed)
        queue.begin([student])
        last += [multi, student]
    queue.run(last)


if __name__ == "__main__":
    main()
