"""Training rows per second: Outshine against transformers.Trainer, in turn in one process.

    python bench/train.py [--glue-dir GLUE] [--tasks mnli] [--batch-size 32 128] [--rows 640]
        [--pairs 5] [--sides outshine defaults tuned] [--compile] [--set key=value ...]

All sides train the rows that Outshine draws, from the same encoder with the same dropout of hidden
states, learning rate, schedule and batch size. In attention Trainer has the encoder's own dropout
and Outshine none, as both do by default; `--set attention_dropout=0.1` changes that. Start-up,
tokenising and evaluation are outside the timed part. Tuned is group_by_length, and bf16 where the
processor has it; `--compile` adds tuned with torch_compile. With it, and on a GPU, every side
trains the rows once before, untimed. `--set` changes settings of Outshine. Trainer has one head:
with several tasks (`--tasks glue`: eight of them) it learns three classes, whatever a row's task
is, and losses say nothing; with MNLI alone they must agree within 5 %.

Prints one JSON object: per batch size rows per second (median over the pairs), their ratio pair by
pair, the loss over the last quarter, the share of the matrix rate (rate.py has the formula), and
what Outshine multiplied as a fraction of that formula.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from functools import partial
from typing import Any

from common import (
    GLUE,
    Fit,
    arguments,
    conditions,
    drawn_lengths,
    encoder_folder,
    fit,
    in_turn,
    plan_of,
    ratios,
)
from rate import matrix_rate, multiplied, operations
from trainer import DROPOUT, SIDES, trainer_fit

from outshine.config import parse_settings
from outshine.glue_tasks import glue
from outshine.planning import Plan

LR = 5e-5


def plan(args: argparse.Namespace, batch_size: int, seed: int) -> Plan:
    """A run of so many rows of the tasks."""
    settings = {
        "encoder": args.folder,
        "device": args.device,
        "lr": LR,
        "dropout": DROPOUT,
        "preset": "bam-single",
        "epochs": 1000.0,
        "max_steps": args.rows // batch_size,
        "batch_size": batch_size,
        "log_every": max(1, args.rows // batch_size // 4),
        "seed": seed,
    }
    return plan_of(
        glue(*args.tasks, data_dir=args.glue_dir), **settings | parse_settings(args.settings)
    )


def measure(args: argparse.Namespace, batch_size: int) -> dict[str, Any]:
    """All sides with one batch size."""
    first = plan(args, batch_size, 0)
    forward, lengths = first.forward, drawn_lengths(first)
    line = min(int(lengths.mean() * batch_size), forward.budget.tokens)
    warm = args.compile or first.cfg.compile or forward.device.type == "cuda"
    sides: dict[str, Any] = {
        name: partial(train_side, args, batch_size, name, warm)
        for name in [*args.sides, *(["compiled"] if args.compile else [])]
    }
    found = in_turn(sides | {"matrix": lambda _: matrix_rate(forward, line, True)}, args.pairs)
    rates = found.pop("matrix")
    eager = replace(first, cfg=first.cfg.model_copy(update={"compile": False}))
    counted = multiplied(lambda: fit(eager)) / operations(forward.model, lengths, True)
    speed = {name: [len(f.lengths) / f.seconds for f in fits] for name, fits in found.items()}
    loss = {name: statistics.fmean(f.loss for f in fits) for name, fits in found.items()}
    return {
        "batch_size": batch_size,
        "rows": len(lengths),
        "tokens_per_row": round(float(lengths.mean()), 1),
        "precision": forward.precision,
        "rows_per_s": {name: round(statistics.median(v), 2) for name, v in speed.items()},
        "ratio_to": {n: ratios(speed["outshine"], v) for n, v in speed.items() if n != "outshine"},
        "loss": {name: round(value, 4) for name, value in loss.items()},
        "loss_difference": {n: round(v / loss["outshine"] - 1, 4) for n, v in loss.items()},
        "matrix_gflops": round(statistics.median(rates) / 1e9, 1),
        "multiplied_of_formula": round(counted, 4),
        "share_of_matrix_rate": {
            name: ratios(
                [operations(forward.model, f.lengths, True) / f.seconds for f in fits], rates
            )
            for name, fits in found.items()
        },
    }


def train_side(args: argparse.Namespace, batch_size: int, side: str, warm: bool, pair: int) -> Fit:
    """One training of one side, from a model and rows made anew."""
    made = plan(args, batch_size, pair)
    return fit(made, warm) if side == "outshine" else trainer_fit(made, side, warm)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--glue-dir")
    parser.add_argument("--tasks", nargs="+", default=["mnli"])
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--pairs", type=int, default=5)
    sides = ["outshine", *SIDES]
    parser.add_argument("--sides", nargs="+", choices=sides, default=sides[:3])
    parser.add_argument("--compile", action="store_true", help="also tuned with torch_compile")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    args = parser.parse_args()
    args.tasks = GLUE if args.tasks == ["glue"] else args.tasks
    with tempfile.TemporaryDirectory() as folder:
        args.folder = encoder_folder(args.encoder, folder)
        runs = [measure(args, batch_size) for batch_size in args.batch_size]
    about = {"bench": "train", "tasks": args.tasks, "pairs": args.pairs}
    print(json.dumps(about | conditions(args) | {"runs": runs}, indent=2))


if __name__ == "__main__":
    main()
