"""The other side: transformers.Trainer on the rows that a run of Outshine draws."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from common import Fit, drawn_lengths, drawn_rows, synchronize

from outshine import encoders
from outshine.devices import has_bf16
from outshine.planning import Plan

SIDES = ("defaults", "tuned", "compiled")
DROPOUT = 0.1  # of hidden states; attention keeps what its side has by default


def options(side: str, device: torch.device) -> dict[str, Any]:
    """Arguments of a side; bf16 is no gain, and not asked for, where the processor lacks it."""
    tuned = {"bf16": has_bf16(device), "train_sampling_strategy": "group_by_length"}
    return {"defaults": {}, "tuned": tuned, "compiled": tuned | {"torch_compile": True}}[side]


def trainer_fit(plan: Plan, side: str, warm: bool = False) -> Fit:
    """Trains the rows that a run draws, with its batch size, learning rate and encoder.

    Args:
        plan: The run; it is not trained.
        side: One of SIDES.
        warm: Whether a first pass over the rows is not timed.
    """
    from transformers import (
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    cfg, device = plan.cfg, plan.forward.device
    rows = []
    for part, row in drawn_rows(plan):
        table = plan.mixture.parts[part].table
        place = slice(int(table.offsets[row]), int(table.offsets[row + 1]))
        tokens, types = table.tokens[place].tolist(), table.types[place].tolist()
        given = {"token_type_ids": types} if plan.forward.takes_types else {}
        label = min(int(table.gold[row]), 2)
        mask = [1] * len(tokens)
        rows.append({"input_ids": tokens, "attention_mask": mask, "labels": label, **given})
    torch.set_float32_matmul_precision("highest")  # a compiled Trainer leaves TF32 on
    torch.manual_seed(cfg.seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        encoders.locate(cfg.encoder),
        num_labels=3,
        dtype=torch.float32,
        hidden_dropout_prob=DROPOUT,
    )
    start, end, losses = (0.0, 0.0), (0.0, 0.0), []

    def clocks() -> tuple[float, float]:
        synchronize(device)
        return time.perf_counter(), time.process_time()

    class Clock(TrainerCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            nonlocal start
            start = clocks()  # that of the last epoch counts

        def on_train_end(self, *_: Any, **__: Any) -> None:
            nonlocal end
            end = clocks()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=cfg.batch_size,
                num_train_epochs=2 if warm else 1,
                learning_rate=cfg.lr,
                weight_decay=0.01,
                warmup_steps=0.1,
                seed=cfg.seed,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                logging_steps=min(cfg.log_every, plan.mixture.num_steps),
                use_cpu=device.type == "cpu",
                **options(side, device),
            ),
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(plan.tokenizer),
            callbacks=[Clock()],
        ).train()
    return Fit(end[0] - start[0], end[1] - start[1], drawn_lengths(plan), losses[-1])
