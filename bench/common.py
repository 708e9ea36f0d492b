"""What the benchmarks share: taking turns, where numbers come from, and one training."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pairs import LOAD_BEFORE

from outshine import batches, encoders, training
from outshine.checkpoints import State
from outshine.config import TrainConfig, resolve
from outshine.console import set_quiet
from outshine.demo import demo_tasks
from outshine.devices import pick_device
from outshine.journal import Log
from outshine.planning import Plan, prepare
from outshine.provenance import device_name, git_commit
from outshine.runs import Run
from outshine.tasks import Task

T = TypeVar("T")
GLUE = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"]
# Encoders made here, with random weights and the tokenizer of `builtin`.
SHAPES: dict[str, dict[str, int]] = {
    "bert-base-shape": {},
    "bert-tiny-shape": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 512,
    },
}


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what all have: the encoder and the device."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--encoder", default="builtin", help=f"as in outshine train, or {' or '.join(SHAPES)}"
    )
    parser.add_argument("--device", default="cpu")
    set_quiet(True)
    return parser


def encoder_folder(name: str, folder: str) -> str:
    """The encoder; one of `SHAPES` is made."""
    if name not in SHAPES:
        return name
    from transformers import AutoModel, BertConfig

    path = Path(folder) / name
    if not path.exists():
        AutoModel.from_config(BertConfig(**SHAPES[name])).save_pretrained(path)
        encoders.load_tokenizer(encoders.locate(encoders.BUILTIN)).save_pretrained(path)
    return str(path)


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    """Where numbers come from; of a path only the last part is told."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    shown = [Path(w).name.upper().replace("-", "_") if w.startswith("/") else w for w in words]
    return {
        "command": f"python bench/{' '.join(shown)}",
        "encoder": Path(args.encoder).name,
        "device": args.device,
        "machine": device_name(pick_device(args.device)),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
        },
        "git_commit": git_commit(),
        "load_average_before": LOAD_BEFORE,
    }


def in_turn(sides: Mapping[str, Callable[[int], T]], pairs: int) -> dict[str, list[T]]:
    """Calls every side with 0, 1, ..., in an order that is turned round from pair to pair."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name in list(sides)[:: 1 if pair % 2 == 0 else -1]:
            with redirect_stdout(sys.stderr):
                found[name].append(sides[name](pair))
    return found


def ratios(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Median of a / b by pairs, and all of them."""
    pairs = [round(x / y, 3) for x, y in zip(a, b, strict=True)]
    return {"median": round(statistics.median(pairs), 3), "pairs": pairs}


def five_heads(folder: Path, encoder: str) -> Run:
    """A run of one step with the demo's five tasks, all of which read the column `text`."""
    changes = {"text": ("text",), "symmetric": False}
    tasks = [task.model_copy(update=changes) for task in demo_tasks()]
    cfg = TrainConfig(encoder=encoder_folder(encoder, str(folder)), max_steps=1, device="cpu")
    with redirect_stdout(sys.stderr):
        return training.train(tasks, cfg, out=folder / "run")


# --- one training -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A training without start-up and evaluation.

    Attributes:
        seconds: By the clock.
        cpu_s: Processor time of all threads; threads that wait for others count.
        lengths: (rows,) int64 real tokens of each row.
        loss: Of the last line of its log.
    """

    seconds: float
    cpu_s: float
    lengths: np.ndarray
    loss: float


def plan_of(tasks: Sequence[Task], **settings: Any) -> Plan:
    """A run before its first step; all its rows and its model are loaded."""
    return prepare(tuple(tasks), resolve(TrainConfig(**settings), len(tasks)), None)


def drawn_rows(plan: Plan) -> list[tuple[int, int]]:
    """(part, row of its table) of every draw of a run, in order."""
    return [
        (number, int(row))
        for drawn in batches.steps(plan.mixture, plan.cfg.seed)
        for number, (part, at) in enumerate(zip(plan.mixture.parts, drawn, strict=True))
        for row in part.rows[at]
    ]


def drawn_lengths(plan: Plan) -> np.ndarray:
    """(draws,) int64 tokens of every draw."""
    lengths = [part.table.lengths for part in plan.mixture.parts]
    return np.array([lengths[part][row] for part, row in drawn_rows(plan)], np.int64)


def fit(plan: Plan, warm: bool = False, around: AbstractContextManager[Any] | None = None) -> Fit:
    """Trains, within a context such as a profiler's.

    With `warm` the same rows are trained once before, untimed, for what compiles or allocates.
    """
    forward = plan.forward
    plan, optimizer = training.make_ready(plan)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        if warm:
            training.fit(Log(run, plan, State()), optimizer)
            run.log_path.unlink()
        synchronize(forward.device)
        start = time.perf_counter(), time.process_time()
        with around or nullcontext():
            training.fit(Log(run, plan, State()), optimizer)
            synchronize(forward.device)
        seconds, cpu_s = time.perf_counter() - start[0], time.process_time() - start[1]
        loss = json.loads(run.log_path.read_text().splitlines()[-1])["loss"]
    return Fit(seconds, cpu_s, drawn_lengths(plan), loss)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
