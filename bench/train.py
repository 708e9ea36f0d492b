"""Training rows per second: Outshine against transformers.Trainer, alternating in one process.

    python bench/train.py --glue-dir GLUE [--encoder builtin] [--rows 640] [--pairs 5]

Both sides train the same MNLI rows from the same encoder with dropout 0.1 and the same learning
rate, schedule and batch size; start-up, tokenising and evaluation are outside the timed part.
Prints one JSON object: rows per second per side (median over the pairs), the ratio pair by pair,
and the final losses, which must agree within 5 % for the comparison to mean anything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outshine import encoders, training
from outshine.checkpoints import State
from outshine.config import TrainConfig, resolve
from outshine.console import set_quiet
from outshine.data import encode
from outshine.glue_tasks import glue
from outshine.optim import adamw, parameter_groups
from outshine.planning import prepare
from outshine.provenance import device_name
from outshine.runs import Run

LR = 5e-5
TUNED = {"bf16": True, "train_sampling_strategy": "group_by_length"}


def outshine_side(args: argparse.Namespace, seed: int, precision: str) -> tuple[float, float]:
    """Seconds of the training loop, and the mean loss of its last quarter."""
    cfg = resolve(
        TrainConfig(
            encoder=args.encoder,
            lr=LR,
            epochs=1,
            batch_size=args.batch_size,
            max_train_rows=args.rows,
            max_length=128,
            dropout=0.1,
            attention_dropout=0.1,
            seed=seed,
            log_every=1,
            precision=precision,
        ),
        1,
    )
    plan = prepare(tuple(glue("mnli", data_dir=args.glue_dir)), cfg, None)
    optimizer = adamw(parameter_groups(plan.forward.model, None, 1.0, cfg.weight_decay), 1e-8)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        start = time.perf_counter()
        training._fit(run, plan, optimizer, State())
        seconds = time.perf_counter() - start
        losses = [json.loads(line)["loss"] for line in run.log_path.read_text().splitlines()]
    return seconds, statistics.fmean(losses[-len(losses) // 4 :])


def trainer_side(
    args: argparse.Namespace, seed: int, options: dict[str, Any]
) -> tuple[float, float]:
    """The same for transformers.Trainer."""
    from transformers import (
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    location = encoders.locate(args.encoder)
    tokenizer = encoders.load_tokenizer(location)
    [task] = glue("mnli", data_dir=args.glue_dir)
    table = encode(task, "train", tokenizer, 128)
    rows = [
        {
            "input_ids": table.tokens[table.offsets[i] : table.offsets[i + 1]].tolist(),
            "token_type_ids": table.types[table.offsets[i] : table.offsets[i + 1]].tolist(),
            "attention_mask": [1] * int(table.offsets[i + 1] - table.offsets[i]),
            "labels": int(table.gold[i]),
        }
        for i in table.selection(args.rows, False)
    ]
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        location,
        num_labels=3,
        dtype=torch.float32,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    times: dict[str, float] = {}
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            times["begin"] = time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            times["end"] = time.perf_counter()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=args.batch_size,
                num_train_epochs=1,
                learning_rate=LR,
                weight_decay=0.01,
                warmup_steps=0.1,
                seed=seed,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                logging_steps=1,
                use_cpu=not torch.cuda.is_available(),
                **options,
            ),
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[Clock()],
        ).train()
    return times["end"] - times["begin"], statistics.fmean(losses[-len(losses) // 4 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--glue-dir", required=True)
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--sides", nargs="*", default=["outshine", "defaults", "tuned"])
    args = parser.parse_args()
    set_quiet(True)
    sides = {
        "outshine": lambda seed: outshine_side(args, seed, "auto"),
        "defaults": lambda seed: trainer_side(args, seed, {}),
        "tuned": lambda seed: trainer_side(args, seed, TUNED),
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in args.sides}
    for pair in range(args.pairs):
        for name in args.sides:
            with contextlib.redirect_stdout(sys.stderr):
                results[name].append(sides[name](pair))
    speed = {name: [args.rows / seconds for seconds, _ in pairs] for name, pairs in results.items()}
    ours = speed["outshine"]
    loss = {name: float(np.mean([x for _, x in pairs])) for name, pairs in results.items()}
    print(
        json.dumps(
            {
                "bench": "train",
                "encoder": args.encoder,
                "rows": args.rows,
                "batch_size": args.batch_size,
                "pairs": args.pairs,
                "machine": device_name(torch.device("cpu")),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "rows_per_s": {n: round(statistics.median(v), 2) for n, v in speed.items()},
                "ratio_to": {
                    name: {
                        "median": round(
                            statistics.median(a / b for a, b in zip(ours, other, strict=True)), 3
                        ),
                        "pairs": [round(a / b, 3) for a, b in zip(ours, other, strict=True)],
                    }
                    for name, other in speed.items()
                    if name != "outshine"
                },
                "loss": {name: round(value, 4) for name, value in loss.items()},
                "loss_difference": {
                    name: round(value / loss["outshine"] - 1.0, 4) for name, value in loss.items()
                },
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
