"""Loss curves of 30 steps, against stored ones and against a plain padded PyTorch loop.

The plain loop shares nothing with the engine but the initial weights and the rows that each step
draws: it reads the csv files, pads, and has its own optimizer groups, schedule, targets and
teachers. `OUTSHINE_WRITE_GOLDEN=1 python -m pytest tests/test_golden.py` writes the stored curves
anew, with the versions that made them.
"""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from conftest import write_duplicate, write_tickets, write_urgency
from outshine import batches
from outshine.config import TrainConfig, resolve
from outshine.planning import prepare
from outshine.runs import Run
from outshine.tasks import Task
from outshine.training import train

GOLDEN = Path(__file__).parent / "golden" / "curves.json"
COMMAND = "OUTSHINE_WRITE_GOLDEN=1 python -m pytest tests/test_golden.py"
TOLERANCE = 1e-5
STEPS = 30
SINGLES = ("tickets", "urgency", "duplicate")
CURVES = (*SINGLES, "multi", "single->multi")
SETTINGS: dict[str, Any] = {
    "lr": 1e-3,
    "batch_size": 12,
    "epochs": 10.0,
    "max_steps": STEPS,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "precision": "fp32",
    "device": "cpu",
    "log_every": 1,
}


@pytest.fixture(scope="module")
def encoder(make_encoder: Callable[..., Path]) -> Path:
    return make_encoder("bert", initializer_range=0.1)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    folder = tmp_path_factory.mktemp("tasks")
    makers = (write_tickets, write_urgency, write_duplicate)
    return {path.stem: Task.load(path) for path in (make(folder) for make in makers)}


@pytest.fixture(scope="module")
def cfg(encoder: Path) -> TrainConfig:
    return TrainConfig(encoder=str(encoder), **SETTINGS)


@pytest.fixture(scope="module")
def curves(
    tasks: dict[str, Task], cfg: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[float]]:
    """The engine's loss at each step of each run."""
    folder = tmp_path_factory.mktemp("runs")
    everything = list(tasks.values())
    runs = {name: train([tasks[name]], cfg, out=folder / name) for name in SINGLES}
    runs["multi"] = train(everything, cfg, out=folder / "multi")
    teachers = {name: runs[name] for name in SINGLES}
    runs["single->multi"] = train(everything, cfg, teachers=teachers, out=folder / "student")
    return {name: losses(run) for name, run in runs.items()}


def losses(run: Run) -> list[float]:
    return [json.loads(line)["loss"] for line in run.log_path.read_text().splitlines()]


def test_golden_curves_are_met(curves: dict[str, list[float]]) -> None:
    if os.environ.get("OUTSHINE_WRITE_GOLDEN"):
        made = {
            "command": COMMAND,
            "settings": SETTINGS,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
            },
            "losses": {name: [round(loss, 7) for loss in curves[name]] for name in CURVES},
        }
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden["settings"] == SETTINGS
    assert tuple(golden["losses"]) == CURVES
    for name in CURVES:
        assert len(golden["losses"][name]) == STEPS
        np.testing.assert_allclose(
            curves[name], golden["losses"][name], rtol=0, atol=TOLERANCE, err_msg=name
        )


# --- the plain loop -------------------------------------------------------------------------


@dataclass
class Data:
    """A task's train rows as its csv file has them; swapped pairs follow the others."""

    task: Task

    @cached_property
    def cells(self) -> list[dict[str, str]]:
        with open(self.task.files["train"], newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def texts(self, i: int) -> tuple[str, ...]:
        swapped, row = divmod(i, len(self.cells))
        texts = tuple(self.cells[row][column] for column in self.task.text)
        return texts[::-1] if swapped else texts

    def gold(self, i: int) -> list[float]:
        cell = self.cells[i % len(self.cells)][self.task.label]
        if self.task.range:
            return [float(cell) / 5.0]
        return [float(cell == label) for label in self.task.labels]

    def __len__(self) -> int:
        return len(self.cells) * (2 if self.task.symmetric else 1)


@dataclass
class Plain:
    """transformers' own classifier, its last layer replaced by one head per task."""

    network: nn.Module
    heads: nn.ModuleDict
    tokenizer: Any

    def logits(self, data: Data, rows: list[int]) -> Tensor:
        columns = zip(*(data.texts(i) for i in rows), strict=True)
        encoded = self.tokenizer(*map(list, columns), padding=True, return_tensors="pt")
        return self.heads[data.task.name](self.network(**encoded).logits)


def plain_model(encoder: Path, initial: Any) -> Plain:
    network = AutoModelForSequenceClassification.from_pretrained(
        encoder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ).train()
    network.classifier = nn.Identity()
    network.load_state_dict(initial.network.state_dict())
    heads = nn.ModuleDict()
    for name in initial.names:
        head = initial.head(name)
        heads[name] = nn.Linear(head.in_features, head.out_features)
        heads[name].load_state_dict(head.state_dict())
    return Plain(network, heads, AutoTokenizer.from_pretrained(encoder))


def plain_optimizer(model: Plain, layer_decay: float) -> tuple[torch.optim.AdamW, list[float]]:
    """One group per parameter, and its share of the learning rate."""
    depth = {"embeddings": 4, "layer.0": 3, "layer.1": 2, "pooler": 1}
    groups, scales = [], []
    for name, parameter in model.network.named_parameters():
        decay = 0.0 if name.endswith("bias") or "LayerNorm" in name else 0.01
        groups.append({"params": [parameter], "weight_decay": decay})
        scales.append(layer_decay ** next(d for part, d in depth.items() if part in name))
    for name, parameter in model.heads.named_parameters():
        decay = 0.0 if name.endswith("bias") else 0.01
        groups.append({"params": [parameter], "weight_decay": decay})
        scales.append(1.0)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8), scales


def plain_losses(
    model: Plain,
    data: list[Data],
    drawn: list[list[np.ndarray]],
    layer_decay: float,
    teachers: dict[str, Tensor],
) -> list[float]:
    """Trains and returns the loss of each step.

    Args:
        model: With initial weights.
        data: One per task.
        drawn: Per step and task the numbers of the rows.
        layer_decay: Factor per layer.
        teachers: Task -> (N, C) distribution for each train row.
    """
    optimizer, scales = plain_optimizer(model, layer_decay)
    parameters = [*model.network.parameters(), *model.heads.parameters()]
    found = []
    warmup = STEPS // 10
    for step, positions in enumerate(drawn):
        total: Any = 0.0
        for one, rows in zip(data, positions, strict=True):
            if not len(rows):
                continue
            target = torch.tensor([one.gold(i) for i in rows.tolist()])
            if one.task.name in teachers:
                lam = step / STEPS
                target = lam * target + (1 - lam) * teachers[one.task.name][rows]
            logits = model.logits(one, rows.tolist())
            if one.task.range:
                total = total + functional.mse_loss(logits, target, reduction="sum")
            else:
                total = total + functional.cross_entropy(logits, target, reduction="sum")
        loss = total / sum(map(len, positions))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        factor = step / warmup if step < warmup else (STEPS - step) / (STEPS - warmup)
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] = SETTINGS["lr"] * scale * factor
        optimizer.step()
        found.append(loss.item())
    return found


def plain_teacher(model: Plain, data: Data) -> Tensor:
    """(N, C) what a trained model says of each train row, each computed alone."""
    model.network.eval()
    with torch.no_grad():
        logits = torch.cat([model.logits(data, [i]) for i in range(len(data))])
    return logits if data.task.range else logits.softmax(dim=-1)


def test_golden_curves_equal_a_plain_padded_loop(
    curves: dict[str, list[float]], tasks: dict[str, Task], cfg: TrainConfig, encoder: Path
) -> None:
    def run(names: tuple[str, ...], teachers: dict[str, Tensor]) -> tuple[Plain, list[float]]:
        chosen = tuple(tasks[name] for name in names)
        settings = resolve(cfg, len(chosen))
        plan = prepare(chosen, settings, None)
        drawn = list(batches.steps(plan.mixture, settings.seed))
        model = plain_model(encoder, plan.forward.model)
        data = [Data(task) for task in chosen]
        layer_decay = 1.0 if len(names) == 1 else 0.9
        return model, plain_losses(model, data, drawn, layer_decay, teachers)

    found, teachers = {}, {}
    for name in SINGLES:
        model, found[name] = run((name,), {})
        teachers[name] = plain_teacher(model, Data(tasks[name]))
    _, found["multi"] = run(SINGLES, {})
    _, found["single->multi"] = run(SINGLES, teachers)
    for name in CURVES:
        np.testing.assert_allclose(curves[name], found[name], rtol=0, atol=TOLERANCE, err_msg=name)
    assert curves["multi"] != curves["single->multi"]
    for name in CURVES:  # something is learnt, so that there is something to compare
        assert np.mean(curves[name][-10:]) < np.mean(curves[name][:10]), name
