"""The engine's claims: gradients, teachers, resumption to the last bit, and what a run leaves."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

import outshine
from conftest import write_duplicate, write_tickets, write_urgency
from outshine import batches, planning, training
from outshine.cli import app
from outshine.config import TrainConfig, resolve
from outshine.errors import DivergedError, UserError
from outshine.files import map_arrays
from outshine.kinds import softmax
from outshine.losses import micro_batch_loss
from outshine.optim import Watch
from outshine.planning import Plan, describe, prepare, warn_overlap
from outshine.predicting import load
from outshine.predictions import Predictions
from outshine.runs import Run
from outshine.tasks import Task
from outshine.training import train

LOG_KEYS = [
    "step",
    "elapsed_s",
    "rows",
    "tokens",
    "loss",
    "lr",
    "gold_weight",
    "rows_per_s",
    "tokens_per_s",
    "task_loss",
]
CLOCKED = ("elapsed_s", "rows_per_s", "tokens_per_s")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Task files of tickets, urgency and duplicate; not to be changed."""
    folder = tmp_path_factory.mktemp("tasks")
    makers = (write_tickets, write_urgency, write_duplicate)
    return {path.stem: path for path in (make(folder) for make in makers)}


@pytest.fixture(scope="module")
def tasks(files: dict[str, Path]) -> dict[str, Task]:
    return {name: Task.load(path) for name, path in files.items()}


@pytest.fixture(scope="module")
def encoder(make_encoder: Callable[..., Path]) -> Path:
    """A random BERT with weights so large that its rows differ."""
    return make_encoder("bert", initializer_range=0.2)


@pytest.fixture
def cfg(encoder: Path) -> TrainConfig:
    """Twelve steps of eight rows with dropout."""
    return TrainConfig(encoder=str(encoder), lr=1e-3, max_steps=12, batch_size=8, device="cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, encoder: Path, tasks: dict) -> Run:
    """A run on all three tasks whose answers are far from uniform."""
    settings = TrainConfig(encoder=str(encoder), lr=3e-3, max_steps=25, batch_size=16, device="cpu")
    return train([*tasks.values()], settings, out=tmp_path_factory.mktemp("teacher") / "run")


def plan_of(tasks: dict[str, Task], cfg: TrainConfig, teachers: Any = None, **changes: Any) -> Plan:
    return prepare(tuple(tasks.values()), resolve(cfg, len(tasks), **changes), teachers)


def log_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.log_path.read_text().splitlines()]


def texts_of(files: dict[str, Path], name: str) -> list[dict[str, str]]:
    """The train rows of a task as the csv file has them."""
    with files[name].with_name(f"{name}-train.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "mpnet"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_micro_batches_equal_full_batch(
    family: str, reduction: str, checkpoint: Callable[[str], Path], tasks: dict, teacher: Run
) -> None:
    found = {}
    for max_tokens in (40, 8192):
        plan = plan_of(
            tasks,
            TrainConfig(
                encoder=str(checkpoint(family)), device="cpu", batch_size=30, precision="fp32"
            ),
            {"tickets": teacher, "duplicate": teacher},
            max_tokens=max_tokens,
            precision="fp32",
            dropout=0.0,
            attention_dropout=0.0,
            task_weight={"urgency": 3.0},
        )
        mixture, forward = plan.mixture, plan.forward
        batch = batches.make_batch(
            mixture, next(batches.steps(mixture, 1)), 0.3, lambda n, f=forward: f.divide(n)
        )
        total = 0.0
        for micro_batch in batch.micro_batches:
            denominator = batch.weight if reduction == "mean" else 1.0
            loss, _ = micro_batch_loss(forward, mixture, micro_batch, denominator)
            loss.backward()
            total += float(loss.detach())
        gradients = [p.grad for p in forward.model.parameters() if p.grad is not None]
        found[max_tokens] = (
            len(batch.micro_batches),
            total,
            torch.cat([g.ravel() for g in gradients]),
        )
    many, one = found[40], found[8192]
    assert many[0] > 5 * one[0]
    assert many[1] == pytest.approx(one[1], rel=1e-6)
    assert (many[2] - one[2]).norm() <= 1e-5 * one[2].norm()


def test_task_weight_is_the_share_of_a_row_in_the_mean(cfg: TrainConfig, tasks: dict) -> None:
    weights = {"tickets": 5.0, "duplicate": 0.5}
    plan = plan_of(tasks, cfg, task_weight=weights, precision="fp32", dropout=0.0)
    mixture = plan.mixture
    drawn = next(batches.steps(mixture, 1))
    batch = batches.make_batch(mixture, drawn, 1.0, plan.forward.divide)
    parts = [micro_batch_loss(plan.forward, mixture, m, batch.weight) for m in batch.micro_batches]
    names = [part.table.task.name for part in mixture.parts]
    weight = [weights.get(name, 1.0) for name in names]
    sums = [sum(float(s.get(i, 0.0)) for _, s in parts) for i in range(len(names))]
    top = sum(w * s for w, s in zip(weight, sums, strict=True))
    bottom = sum(w * len(rows) for w, rows in zip(weight, drawn, strict=True))
    assert sum(float(loss.detach()) for loss, _ in parts) == pytest.approx(top / bottom, rel=1e-6)


@pytest.mark.parametrize("option", ["compile", "gradient_checkpointing"])
def test_other_ways_to_compute_give_the_same_losses(
    option: str,
    cfg: TrainConfig,
    tasks: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # what is traced is run as it is: to translate it into C++ would take a minute
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    settings = {"dropout": 0.0, "precision": "fp32", "log_every": 1, "max_steps": 2}
    plain, other = (
        train([tasks["tickets"]], cfg, out=tmp_path / str(on), **settings | {option: on})
        for on in (False, True)
    )
    curves = [[line["loss"] for line in log_of(run)] for run in (plain, other)]
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert (compiled > 0) == (option == "compile")


# --- the mixture ----------------------------------------------------------------------------


def test_explicit_sampling_gives_the_chances_that_were_asked_for(
    cfg: TrainConfig, tasks: dict
) -> None:
    weights = {"tickets": 3.0, "urgency": 1.0, "duplicate": 4.0}
    plan = plan_of(tasks, cfg, sampling="explicit", sampling_weights=weights)
    assert [part.probability for part in plan.mixture.parts] == [0.375, 0.125, 0.5]


def test_max_train_rows_takes_a_subset_that_no_seed_changes(cfg: TrainConfig, tasks: dict) -> None:
    def rows(count: int, seed: int) -> list[set[int]]:
        plan = plan_of(tasks, cfg, max_train_rows=count, seed=seed)
        return [set(part.rows.tolist()) for part in plan.mixture.parts]

    few, same, more = rows(10, 1), rows(10, 2), rows(20, 3)
    assert few == same
    assert [len(chosen) for chosen in few] == [10, 10, 20]
    assert all(a < b for a, b in zip(few, more, strict=True))
    assert {row % 48 for row in few[2]} == {row for row in few[2] if row < 48}


def test_the_check_for_overlap_keeps_few_bytes_per_row(
    cfg: TrainConfig, tasks: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    part = plan_of({"tickets": tasks["tickets"]}, cfg).mixture.parts[0]
    count = 20_000
    rows = np.arange(3 * count, dtype=np.int32)
    big = replace(
        part.table,
        tokens=rows,
        offsets=np.arange(0, 3 * count + 1, 3),
        gold=np.zeros(count, np.float32),
        num_originals=count,
    )
    dev = replace(part.table, tokens=rows[9:], offsets=np.array([0, 3, 6, 8]), gold=np.zeros(3))
    tracemalloc.start()
    try:
        warn_overlap([tasks["tickets"]], {"tickets": big}, {("tickets", "dev"): dev})
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 64 * count
    warning = "warning: 2 of 3 dev rows of tickets stand in train\n"
    assert capsys.readouterr().err.endswith(warning)


def test_a_set_seen_more_than_fifty_times_is_warned_of(
    cfg: TrainConfig, tasks: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"tickets": tasks["tickets"]}
    describe(plan_of(one, cfg, max_steps=0, epochs=51.0))
    warning = "warning: each row of tickets is seen 51 times, more than 50\n"
    assert warning in capsys.readouterr().err
    describe(plan_of(one, cfg, max_steps=0, epochs=50.0))
    assert "warning: each row" not in capsys.readouterr().err


# --- teachers -------------------------------------------------------------------------------


def test_cached_logits_equal_live_teacher(cfg: TrainConfig, tasks: dict, teacher: Run) -> None:
    live = load(teacher).forward
    plan = plan_of(tasks, cfg, dict.fromkeys(tasks, teacher), temperature=2.0)
    for drawn in batches.steps(plan.mixture, 1):
        for part, at in zip(plan.mixture.parts, drawn, strict=True):
            if not len(at):
                continue
            task = part.table.task
            with torch.no_grad():
                pooled = live.pooled(batches.gather([part.table], [part.rows[at]]))
                logits = live.model.head(task.name)(pooled).numpy()
            wanted = logits if task.kind == "regression" else softmax(logits, 2.0)
            np.testing.assert_allclose(part.soft_targets[at], wanted, atol=1e-6)
    assert plan.mixture.parts[1].soft_targets.std() > 1e-2


def test_a_teachers_logits_are_cached_in_its_run_by_example_id(
    cfg: TrainConfig, tasks: dict, teacher: Run, tmp_path: Path
) -> None:
    copy = Run(shutil.copytree(teacher.path, tmp_path / "teacher"))
    shutil.rmtree(copy.path / "predictions")
    one = {"duplicate": tasks["duplicate"]}
    few = plan_of(one, cfg, {"duplicate": copy}, max_train_rows=5)
    path = copy.predictions_path("duplicate", "train")
    assert len(Predictions.load(path).ids) == 10
    plan_of(one, cfg, {"duplicate": copy})
    known = Predictions.load(path)
    assert len(known.ids) == 96
    part = few.mixture.parts[0]
    logits, missing = known.take([part.table.ids[row] for row in part.rows])
    assert missing == []
    np.testing.assert_allclose(part.soft_targets, softmax(logits), atol=1e-6)
    shutil.rmtree(copy.model_dir)  # from now on the cache alone teaches
    again = plan_of(one, cfg, {"duplicate": copy}).mixture.parts[0]
    np.testing.assert_allclose(again.soft_targets, softmax(known.logits), atol=1e-6)


def test_swapped_rows_have_teacher_logits_of_their_own(
    cfg: TrainConfig, tasks: dict, files: dict, teacher: Run
) -> None:
    plan = plan_of({"duplicate": tasks["duplicate"]}, cfg, {"duplicate": teacher})
    part = plan.mixture.parts[0]
    place = {part.table.ids[row]: i for i, row in enumerate(part.rows)}
    rows = texts_of(files, "duplicate")
    predictor = load(teacher)
    for suffix, columns in (("", ("left", "right")), ("/swap", ("right", "left"))):
        pairs = [tuple(row[column] for column in columns) for row in rows]
        answers = predictor.predict(pairs, tasks=["duplicate"])
        wanted = [list(answer["duplicate"]["probs"].values()) for answer in answers]
        found = part.soft_targets[[place[f"{i}{suffix}"] for i in range(len(rows))]]
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    both = part.soft_targets[place["17"]], part.soft_targets[place["17/swap"]]
    assert np.abs(both[0] - both[1]).max() > 1e-3


@pytest.fixture
def other_classifier(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A RoBERTa classifier with a vocabulary in another order and permuted labels."""
    folder = tmp_path / "classifier"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("roberta"))
    tokenizer.save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    words = [word for word, i in vocabulary.items() if i >= 5]
    ids = [vocabulary[word] for word in words]
    random.Random(0).shuffle(ids)
    vocabulary.update(zip(words, ids, strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    names = {0: "other", 1: "billing", 2: "tech"}
    config = AutoConfig.from_pretrained(checkpoint("roberta"), id2label=names)
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    classifier.save_pretrained(folder)
    return folder


def test_a_transformers_classifier_of_other_tokenizer_and_architecture_teaches(
    cfg: TrainConfig, tasks: dict, files: dict, other_classifier: Path
) -> None:
    part = plan_of(
        {"tickets": tasks["tickets"]}, cfg, {"tickets": str(other_classifier)}
    ).mixture.parts[0]
    tokenizer = AutoTokenizer.from_pretrained(other_classifier)
    classifier = AutoModelForSequenceClassification.from_pretrained(other_classifier).eval()
    texts = [row["body"] for row in texts_of(files, "tickets")]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    encoded.pop("token_type_ids", None)
    assert encoded["input_ids"][0, :8].tolist() != part.table.tokens[:8].tolist()
    with torch.no_grad():
        wanted = classifier(**encoded).logits.softmax(dim=-1)[:, [1, 2, 0]].numpy()
    np.testing.assert_allclose(part.soft_targets, wanted, atol=1e-5)
    assert wanted.std(axis=0).max() > 1e-2


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def probabilities(count: int = 48) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(N, 3) distributions, and the rows of a table of them in another order."""
    probs = np.random.default_rng(0).dirichlet([0.5, 0.5, 0.5], count)
    rows = [
        {"id": str(i), "other": probs[i, 2], "billing": probs[i, 0], "tech": probs[i, 1]}
        for i in reversed(range(count))
    ]
    return probs, rows


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_table_of_probabilities_teaches_by_example_id(
    ending: str, cfg: TrainConfig, tasks: dict, tmp_path: Path
) -> None:
    probs, rows = probabilities()
    table = write_table(tmp_path / f"probs.{ending}", rows)
    plan = plan_of({"tickets": tasks["tickets"]}, cfg, {"tickets": table})
    np.testing.assert_allclose(plan.mixture.parts[0].soft_targets, probs, atol=1e-6)


def test_a_table_of_values_teaches_a_regression(
    cfg: TrainConfig, tasks: dict, tmp_path: Path
) -> None:
    table = write_table(tmp_path / "v.csv", [{"id": i, "value": i / 10} for i in range(48)])
    plan = plan_of({"urgency": tasks["urgency"]}, cfg, {"urgency": table})
    wanted = np.arange(48)[:, None] / 10 / 5
    np.testing.assert_allclose(plan.mixture.parts[0].soft_targets, wanted, atol=1e-6)


def test_an_ensemble_averages_the_probabilities_of_its_members(
    cfg: TrainConfig, tasks: dict, teacher: Run, tmp_path: Path
) -> None:
    probs, rows = probabilities()
    table = write_table(tmp_path / "probs.csv", rows)
    one = {"tickets": tasks["tickets"]}
    alone = plan_of(one, cfg, {"tickets": teacher}).mixture.parts[0].soft_targets
    both = plan_of(one, cfg, {"tickets": [teacher, table]}).mixture.parts[0].soft_targets
    np.testing.assert_allclose(both, (alone + probs) / 2, atol=1e-6)


def test_tasks_without_a_teacher_learn_from_gold_alone(
    cfg: TrainConfig, tasks: dict, teacher: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tasks, cfg, {"tickets": teacher})
    assert [part.soft_targets is None for part in plan.mixture.parts] == [False, True, True]
    describe(plan)
    assert capsys.readouterr().err.count("gold alone") == 2


def teacher_column(printed: str) -> dict[str, str]:
    """Metric or task -> its cell under `teacher` in the table that ends a training."""
    table = printed[printed.index("Dev metrics") :].splitlines()
    (header,) = (line for line in table if line.split()[:2] == ["task", "split"])
    start, end = header.index("value") + 5, header.index("teacher") + 7
    rows = [line for line in table if line.split()[1:2] == ["dev"]]
    return {" ".join(row.split()[0:3:2]): row[start:end].strip() for row in rows}


def test_the_teachers_of_every_kind_stand_beside_the_student_on_the_same_dev_rows(
    cfg: TrainConfig,
    tasks: dict,
    teacher: Run,
    other_classifier: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = Run(shutil.copytree(teacher.path, tmp_path / "teacher"))
    (copy.path / "metrics.json").write_text("damaged")  # its logits tell
    teachers = {
        "tickets": [copy, str(other_classifier)],
        "urgency": teacher,
        "duplicate": copy,
    }
    run = train([*tasks.values()], cfg, out=tmp_path / "run", teachers=teachers)
    shown, known = teacher_column(capsys.readouterr().err), run.info()["teacher_metrics"]
    assert known["duplicate"] == {"dev": teacher.metrics()["duplicate"]["dev"]}
    assert known["urgency"] == {"dev": teacher.metrics()["urgency"]["dev"]}
    assert known["tickets"]["dev"]["n"] == 24
    f1, accuracy = (known["duplicate"]["dev"][metric] for metric in ("f1", "accuracy"))
    primary = [known["tickets"]["dev"]["accuracy"], known["urgency"]["dev"]["spearman"], accuracy]
    assert shown["duplicate f1"] == f"{100 * f1:.1f}"
    assert shown["tickets accuracy"] == f"{100 * primary[0]:.1f}"
    assert shown["score mean"] == f"{100 * np.mean(primary):.1f}"


def test_a_teacher_without_logits_of_the_students_dev_rows_has_no_score_beside_it(
    cfg: TrainConfig, teacher: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tickets, urgency = (
        Task.load(write(tmp_path / "tasks")) for write in (write_tickets, write_urgency)
    )
    with (tmp_path / "tasks" / "tickets-dev.csv").open("a") as file:
        file.write("my refund,billing\n")
    table = write_table(tmp_path / "v.csv", [{"id": i, "value": i / 10} for i in range(48)])
    before = teacher.predictions_path("tickets", "dev").read_bytes()
    run = train(
        [tickets, urgency],
        cfg,
        out=tmp_path / "run",
        teachers={"tickets": teacher, "urgency": table},
    )
    shown = teacher_column(capsys.readouterr().err)
    assert shown == {"tickets accuracy": "", "urgency spearman": "", "score mean": ""}
    assert run.info()["teacher_metrics"] == {"tickets": {"dev": {}}, "urgency": {"dev": {}}}
    assert teacher.predictions_path("tickets", "dev").read_bytes() == before


def test_a_teachers_damaged_dev_logits_are_met_before_the_first_step(
    cfg: TrainConfig, tasks: dict, teacher: Run, tmp_path: Path
) -> None:
    copy = Run(shutil.copytree(teacher.path, tmp_path / "teacher"))
    place = copy.predictions_path("tickets", "dev")
    place.write_bytes(place.read_bytes()[:-8])
    with pytest.raises(UserError) as caught:
        train([tasks["tickets"]], cfg, out=tmp_path / "run", teachers={"tickets": copy})
    assert str(caught.value).startswith(f"cannot read {place}: array ")
    assert not (tmp_path / "run").exists()


# --- the same run again, and resumed --------------------------------------------------------


def assert_same_run(one: Run, other: Run) -> None:
    """Weights, predictions and metrics to the last bit; the log but for the clock."""
    logs = [
        [{k: v for k, v in line.items() if k not in CLOCKED} for line in log_of(run)]
        for run in (one, other)
    ]
    assert logs[0] == logs[1]
    assert one.metrics() == other.metrics()
    arrays = sorted(p.relative_to(one.path) for p in one.path.rglob("*.safetensors"))
    assert arrays == sorted(p.relative_to(other.path) for p in other.path.rglob("*.safetensors"))
    for path in arrays:
        assert (one.path / path).read_bytes() == (other.path / path).read_bytes(), path


def interrupt_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Sends a real SIGINT to this process while the given step is made."""
    real = batches.make_batch
    made: list[int] = []

    def make_batch(*args: Any) -> batches.Batch:
        made.append(1)
        if len(made) == step:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    patch.setattr(batches, "make_batch", make_batch)


@pytest.mark.parametrize("settings", [{"log_every": 3}, {"ema": 0.9, "eval_every": 4}])
def test_resume_is_bitwise_equal(
    settings: dict, cfg: TrainConfig, tasks: dict, teacher: Run, tmp_path: Path
) -> None:
    arguments = {"teachers": {"tickets": teacher, "urgency": teacher}, **settings}
    whole = train([*tasks.values()], cfg, out=tmp_path / "whole", **arguments)
    resumed = Run(tmp_path / "resumed")
    for step in (5, 2):  # interrupted twice, in the midst of what the log sums up
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(patch, step)
            with pytest.raises(KeyboardInterrupt, match="the checkpoint is written"):
                train([*tasks.values()], cfg, out=resumed.path, **arguments)
        assert resumed.checkpoint_path.is_file()
        assert not resumed.is_complete
    train([*tasks.values()], cfg, out=resumed.path, **arguments)
    assert_same_run(whole, resumed)
    assert resumed.info()["resumed"] == 2
    assert not resumed.checkpoint_path.parent.exists()
    assert [line["step"] for line in log_of(whole)][-1] == 12


def test_a_checkpoint_of_rows_is_taken_up_by_the_whole_table_and_back(
    cfg: TrainConfig, tasks: dict, tmp_path: Path
) -> None:
    """Also of words that do not occur, which decay, and of the moving averages."""
    settings = {"ema": 0.7, "lr": 1e-2, "weight_decay": 1.0, "dropout": 0.0, "precision": "fp32"}
    whole = train([tasks["tickets"]], cfg, out=tmp_path / "whole", **settings)
    run = Run(tmp_path / "run")
    shapes = []
    for at, rows in ((5, True), (4, False), (0, True)):
        with pytest.MonkeyPatch.context() as patch:
            if not rows:
                patch.setattr(training, "train_rows", lambda *_: None)
            if at:
                interrupt_at(patch, at)
            with pytest.raises(KeyboardInterrupt) if at else nullcontext():
                train([tasks["tickets"]], cfg, out=run.path, **settings)
        if at:
            shapes.append(any(k.endswith(".rows") for k in map_arrays(run.checkpoint_path)[0]))
    assert shapes == [True, False]
    found, wanted = (load_file(r.model_dir / "model.safetensors") for r in (run, whole))
    start = load_file(Path(str(cfg.encoder)) / "model.safetensors")
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, atol=2e-6, rtol=1e-5)
    (words,) = (name for name in wanted if name.endswith("word_embeddings.weight"))
    decayed = (wanted[words] / start[words.removeprefix("bert.")]).std(dim=1) < 1e-5
    assert 0 < decayed.sum() < len(decayed)  # some words occur, others do not
    assert (wanted[words][decayed] / start[words.removeprefix("bert.")][decayed]).max() < 0.97


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("evaluate_tables", "interrupted before the evaluation ended; the checkpoint is written"),
        ("save_checkpoint", "interrupted at step 12; the checkpoint is written"),
    ],
)
def test_a_signal_after_the_last_step_loses_no_training(
    at: str,
    message: str,
    asked: signal.Signals,
    cfg: TrainConfig,
    tasks: dict,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = train([tasks["tickets"]], cfg, out=tmp_path / "whole", ema=0.9)
    real = getattr(training, at)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        done = real(*args, **kwargs)
        signal.raise_signal(asked)
        return done

    resumed = Run(tmp_path / "resumed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, at, interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            train([tasks["tickets"]], cfg, out=resumed.path, ema=0.9)
    assert str(caught.value) == message
    train([tasks["tickets"]], cfg, out=resumed.path, ema=0.9)
    assert f"resuming {resumed.path} at step 12 of 12" in capsys.readouterr().err
    assert_same_run(whole, resumed)
    assert not resumed.checkpoint_path.parent.exists()


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_run_json_is_written_interrupts_nothing_of_the_run(
    asked: signal.Signals, cfg: TrainConfig, tasks: dict, files: dict, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    show = training._show_metrics

    def interrupted(*args: Any) -> None:
        signal.raise_signal(asked)
        show(*args)

    monkeypatch.setattr(training, "_show_metrics", interrupted)
    run = Run(tmp_path / "run")
    with pytest.raises(training.InterruptedLate) as caught:  # a loop over runs ends with it
        train([tasks["tickets"]], cfg, out=run.path)
    assert str(caught.value) == f"interrupted when the run {run.path} was complete"
    assert run.is_complete and not run.checkpoint_path.parent.exists()
    assert "Dev metrics of the final weights" in capsys.readouterr().err
    words = ["train", files["tickets"], "--encoder", cfg.encoder, "--out", tmp_path / "by-command"]
    done = CliRunner().invoke(app, [*map(str, words), "--set", "max_steps=2"])
    assert done.exit_code == 0, done.stderr
    assert done.stderr.endswith(f"The run is in {tmp_path / 'by-command'}\n")


def test_a_process_stopped_by_ctrl_c_and_resumed_ends_as_if_it_never_was(
    files: dict, tasks: dict, encoder: Path, tmp_path: Path
) -> None:
    cut = Run(tmp_path / "cut")
    options = ["--encoder", encoder, "--set", "batch_size=4", "--set", "max_steps=100"]
    options += ["--set", "epochs=99", "--set", "log_every=1", "--set", "device=cpu"]
    command = ["train", files["tickets"], *options, "--out", cut.path]
    code = "from outshine.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (cut.log_path.exists() and cut.log_path.read_text().count("\n") > 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert cut.checkpoint_path.is_file()
    assert len(log_of(cut)) < 100
    cfg = TrainConfig(
        encoder=str(encoder), batch_size=4, max_steps=100, epochs=99, log_every=1, device="cpu"
    )
    runs = [train([tasks["tickets"]], cfg, out=out) for out in (cut.path, tmp_path / "whole")]
    assert_same_run(*runs)


def test_same_seed_gives_bitwise_the_same_run_and_another_seed_does_not(
    cfg: TrainConfig, tasks: dict, tmp_path: Path
) -> None:
    runs = [
        train([*tasks.values()], cfg, out=tmp_path / name, seed=seed)
        for name, seed in (("one", 3), ("same", 3), ("other", 4))
    ]
    assert_same_run(runs[0], runs[1])
    assert log_of(runs[0])[-1]["loss"] != log_of(runs[2])[-1]["loss"]


@pytest.fixture
def interrupted(cfg: TrainConfig, tasks: dict, tmp_path: Path, teacher: Run) -> Run:
    """A run on tickets with a teacher, stopped after two steps."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train([tasks["tickets"]], cfg, out=tmp_path / "run", teachers={"tickets": teacher})
    return Run(tmp_path / "run")


def test_resuming_with_other_settings_names_the_key(
    interrupted: Run, cfg: TrainConfig, tasks: dict, teacher: Run
) -> None:
    before = interrupted.checkpoint_path.read_bytes()
    with pytest.raises(UserError) as caught:
        train(
            [tasks["tickets"]],
            cfg,
            out=interrupted.path,
            teachers={"tickets": teacher},
            lr=2e-3,
            anneal="cosine",
        )
    assert str(caught.value) == (
        f"cannot go on with the run {interrupted.path}: settings.anneal was linear, is cosine, "
        "settings.lr was 0.001, is 0.002\n"
        "hint: give the settings and data that it was made with, or --force to start anew"
    )
    with pytest.raises(UserError, match=r"teachers\.tickets was \w{12}, is None"):
        train([tasks["tickets"]], cfg, out=interrupted.path)
    assert interrupted.checkpoint_path.read_bytes() == before


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_dropout_prob", 0.3, "architecture.hidden_dropout_prob was 0.1, is 0.3"),
        ("hidden_act", "relu", "architecture.hidden_act was gelu, is relu"),
        ("transformers_version", "4.0.0", ""),
        ("attention_probs_dropout_prob", 0.3, ""),  # which the setting replaces
    ],
)
def test_a_run_is_not_resumed_with_an_encoder_that_computes_otherwise(
    key: str, value: Any, message: str, cfg: TrainConfig, tasks: dict, tmp_path: Path
) -> None:
    copy = shutil.copytree(cfg.encoder, tmp_path / "encoder")
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train([tasks["tickets"]], cfg, out=out, encoder=str(copy))
    content = json.loads((copy / "config.json").read_text())
    assert content[key] != value
    (copy / "config.json").write_text(json.dumps(content | {key: value}))
    if not message:
        assert train([tasks["tickets"]], cfg, out=out, encoder=str(copy)).info()["resumed"] == 1
        return
    with pytest.raises(UserError) as caught:
        train([tasks["tickets"]], cfg, out=out, encoder=str(copy))
    assert caught.value.message == f"cannot go on with the run {out}: {message}"


def test_settings_without_effect_do_not_hinder_resumption(
    interrupted: Run, cfg: TrainConfig, tasks: dict, teacher: Run
) -> None:
    run = train(
        [tasks["tickets"]],
        cfg,
        out=interrupted.path,
        teachers={"tickets": teacher},
        log_every=1,
        save_every_s=9.0,
        eval_every=5,
    )
    assert run.info()["resumed"] == 1


def test_force_starts_an_interrupted_run_anew(
    interrupted: Run, cfg: TrainConfig, tasks: dict
) -> None:
    run = train([tasks["tickets"]], cfg, out=interrupted.path, force=True, lr=2e-3)
    assert (run.info()["resumed"], log_of(run)[-1]["rows"]) == (0, 96)


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
@pytest.mark.parametrize("what", ["loss", "norm of the gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_update(
    what: str,
    max_grad_norm: float,
    cfg: TrainConfig,
    tasks: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models, weights = [], []
    real = training.micro_batch_loss

    def poisoned(forward: Any, *args: Any) -> Any:
        models.append(forward.model)
        loss, sums = real(forward, *args)
        if len(models) == 3:
            weights.extend(p.detach().clone() for p in forward.model.parameters())
            if what == "loss":
                loss = loss * float("nan")
            else:
                loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss, sums

    monkeypatch.setattr(training, "micro_batch_loss", poisoned)
    with pytest.raises(DivergedError) as caught:
        train([tasks["tickets"]], cfg, out=tmp_path / "run", max_grad_norm=max_grad_norm)
    assert str(caught.value) == (
        f"training stopped at step 3: the {what} is nan\n"
        'hint: the update was not made; try a lower lr, or precision = "fp32"'
    )
    assert caught.value.exit_code == 1
    for parameter, before in zip(models[-1].parameters(), weights, strict=True):
        assert torch.equal(parameter, before)
    assert not Run(tmp_path / "run").is_complete


def test_what_is_not_finite_is_read_before_it_is_logged_or_saved(
    cfg: TrainConfig, tasks: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that is not waited for it is read one step late."""
    calls = []
    real = training.micro_batch_loss

    def poisoned(*args: Any) -> Any:
        calls.append(1)
        loss, sums = real(*args)
        return loss * (float("nan") if len(calls) == 3 else 1.0), sums

    monkeypatch.setattr(training, "micro_batch_loss", poisoned)
    monkeypatch.setattr(training, "Watch", lambda optimizer, waits: Watch(optimizer, waits=False))
    for name, settings, steps in (
        ("late", {"log_every": 50}, 4),
        ("logged", {"log_every": 1}, 3),
        ("saved", {"save_every_s": 1e-9, "log_every": 50}, 3),
    ):
        calls.clear()
        run = Run(tmp_path / name)
        with pytest.raises(DivergedError, match="at step 3: the loss is nan"):
            train([tasks["tickets"]], cfg, out=run.path, **settings)
        assert len(calls) == steps
        assert "NaN" not in run.log_path.read_text()
        if name == "saved":
            assert map_arrays(run.checkpoint_path)[1]["step"] == 2


def test_a_logit_that_is_not_finite_ends_the_run_before_anything_is_saved(
    tasks: dict[str, Task], cfg: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError) as caught:
        train(
            [tasks["tickets"]],
            cfg,
            out=tmp_path / "run",
            max_steps=1,
            warmup_fraction=0.0,
            lr=1e38,
        )
    assert str(caught.value) == (
        "evaluation stopped: a logit of tickets is not finite\n"
        'hint: nothing was saved; try a lower lr, or precision = "fp32"'
    )
    assert not Run(tmp_path / "run").is_complete


def test_a_fold_that_leaves_no_row_is_refused(
    tasks: dict[str, Task], cfg: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        train([tasks["tickets"]], cfg, out=tmp_path / "run", max_train_rows=1, fold="1/2")
    assert str(caught.value) == (
        "cannot train without fold 1/2 of tickets: no row is left of 1\nhint: use fewer folds"
    )


# --- what a run leaves ----------------------------------------------------------------------


def test_a_run_holds_what_the_design_says_and_run_json_comes_last(
    cfg: TrainConfig, tasks: dict, tmp_path: Path
) -> None:
    run = train([*tasks.values()], cfg, out=tmp_path / "run")
    found = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    assert found == {
        "config.json",
        "log.jsonl",
        "metrics.json",
        "run.json",
        "model/config.json",
        "model/heads.safetensors",
        "model/model.safetensors",
        "model/tasks.json",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        *(f"predictions/{name}-dev.safetensors" for name in tasks),
    }
    written = {name: (run.path / name).stat().st_mtime_ns for name in found}
    assert max(written, key=lambda name: written[name]) == "run.json"
    again = TrainConfig(**run.config()["settings"])
    assert again == resolve(cfg, 3)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("predictions", {"tickets-train", "tickets-dev"}),
        ("metrics", set()),
    ],
)
def test_keep_says_what_stays(
    keep: str, kept: set[str], cfg: TrainConfig, tasks: dict, tmp_path: Path
) -> None:
    one = [tasks["tickets"]]
    run = train(one, cfg, out=tmp_path / "run", keep=keep)
    found = {path.stem for path in (run.path / "predictions").glob("*")}
    assert found == kept
    assert not run.model_dir.exists()
    assert run.metrics()["tickets"]["dev"]["n"] == 24
    with pytest.raises(UserError, match="no weights, expected"):
        outshine.load(run)
    if keep == "predictions":  # the logits alone can teach
        whole = train(one, cfg, out=tmp_path / "whole")
        parts = [
            plan_of({"tickets": tasks["tickets"]}, cfg, {"tickets": teacher}).mixture.parts[0]
            for teacher in (run, whole)
        ]
        np.testing.assert_allclose(parts[0].soft_targets, parts[1].soft_targets, atol=1e-6)
    else:
        with pytest.raises(UserError, match="no logits for 48 of 48 train rows"):
            plan_of({"tickets": tasks["tickets"]}, cfg, {"tickets": run})


def test_the_log_has_exactly_the_keys_of_the_design(
    cfg: TrainConfig, tasks: dict, teacher: Run, tmp_path: Path
) -> None:
    run = train(
        [*tasks.values()], cfg, out=tmp_path / "run", teachers={"tickets": teacher}, log_every=5
    )
    log = log_of(run)
    assert [list(line) for line in log] == [LOG_KEYS] * 3
    assert [line["step"] for line in log] == [5, 10, 12]
    assert [line["rows"] for line in log] == [40, 80, 96]
    assert [line["gold_weight"] for line in log] == pytest.approx([4 / 12, 9 / 12, 11 / 12])
    assert set(log[0]["task_loss"]) == {"tickets", "urgency", "duplicate"}
    # warm-up of one step, then a line to 0 after the twelfth
    assert [line["lr"] for line in log] == pytest.approx([1e-3 * n / 11 for n in (8, 3, 1)])
    assert log[-1]["tokens"] == run.info()["tokens"]


def test_without_teachers_the_weight_on_gold_is_one(
    cfg: TrainConfig, tasks: dict, tmp_path: Path
) -> None:
    run = train([tasks["urgency"]], cfg, out=tmp_path / "run", log_every=4)
    assert [line["gold_weight"] for line in log_of(run)] == [1.0, 1.0, 1.0]


def test_eval_every_puts_dev_metrics_into_the_log_and_changes_nothing(
    cfg: TrainConfig, tasks: dict, tmp_path: Path
) -> None:
    chosen = [tasks["tickets"], tasks["urgency"]]
    plain = train(chosen, cfg, out=tmp_path / "plain", log_every=4)
    run = train(chosen, cfg, out=tmp_path / "run", log_every=4, eval_every=4)
    log = log_of(run)
    assert [line["step"] for line in log if "dev" in line] == [4, 8]
    for line in log[:2]:
        assert list(line) == [*LOG_KEYS, "dev"]
        assert line["dev"]["tickets"]["accuracy"] <= 1.0
        assert line["dev"]["urgency"]["n"] == 24
    assert [line["loss"] for line in log] == [line["loss"] for line in log_of(plain)]
    assert run.metrics() == plain.metrics()


def test_every_run_is_a_run_of_its_own_in_a_tracker_with_all_numbers_of_its_log(
    cfg: TrainConfig, tasks: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fake(tracking.GeneralTracker):
        """As strict as MLflow: a second run while one is open is an error."""

        name, requires_logging_directory, tracker = "mlflow", False, None
        open: ClassVar[list[str]] = []
        logged: ClassVar[dict[str, dict[int, dict[str, float]]]] = {}

        def __init__(self, project: str, run_name: str) -> None:
            super().__init__()
            self.run_name = f"{project}: {run_name}"

        def start(self) -> None:
            assert not self.open, f"{self.open[0]} is active"
            self.open.append(self.run_name)
            self.logged[self.run_name] = {}

        def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
            assert all(isinstance(value, int | float) for value in values.values())
            self.logged[self.run_name].setdefault(step, {}).update(values)

        def finish(self) -> None:
            self.open.remove(self.run_name)

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", Fake)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.MLFLOW])
    monkeypatch.setattr(planning, "find_spec", lambda name: True)
    given = {"track": "mlflow", "log_every": 6, "eval_every": 6}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "evaluate_tables", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train([tasks["tickets"]], cfg, out=tmp_path / "failed", **given)
    run = train([*tasks.values()], cfg, out=tmp_path / "one", **given)
    train([tasks["tickets"]], cfg, out=tmp_path / "two", **given)
    assert not Fake.open
    assert list(Fake.logged) == ["outshine: failed", "outshine: one", "outshine: two"]
    steps = Fake.logged["outshine: one"]
    line = log_of(run)[0]
    assert (list(steps), line["step"]) == ([6, 12], 6)
    assert steps[6]["loss"] == line["loss"]
    assert steps[6]["task_loss/tickets"] == line["task_loss"]["tickets"]
    assert steps[6]["dev/tickets/accuracy"] == line["dev"]["tickets"]["accuracy"]
    final = run.metrics()["duplicate"]["dev"]
    assert steps[12]["dev/duplicate/f1"] == final["f1"]


def test_tensorboard_gets_curves_and_final_metrics(
    cfg: TrainConfig, tasks: dict, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs = [
        train([tasks["tickets"]], cfg, out=tmp_path / name, track="tensorboard", log_every=6)
        for name in ("one", "two")
    ]
    for run in runs:
        events = EventAccumulator(str(run.path / "outshine")).Reload()
        assert [event.step for event in events.Scalars("task_loss/tickets")] == [6, 12]
        (final,) = events.Scalars("dev/tickets/accuracy")
        assert final.value == pytest.approx(run.metrics()["tickets"]["dev"]["accuracy"])


def test_a_run_can_start_from_the_weights_of_another(
    cfg: TrainConfig, tasks: dict, teacher: Run
) -> None:
    start = load(teacher).forward.model
    plan = plan_of({"tickets": tasks["tickets"]}, cfg, init=str(teacher.path))
    for name, weight in plan.forward.model.state_dict().items():
        assert torch.equal(weight, start.state_dict()[name]), name


# --- starting from the teachers -----------------------------------------------------------------


@pytest.fixture(scope="module")
def several(
    tmp_path_factory: pytest.TempPathFactory, encoder: Path, tasks: dict[str, Task]
) -> dict[str, Run]:
    """Teachers of tickets and urgency alone (`tickets2` with another seed), and of both."""
    out = tmp_path_factory.mktemp("several")
    cfg = TrainConfig(encoder=str(encoder), lr=1e-3, max_steps=3, batch_size=8, device="cpu")
    chosen = {
        "tickets": (["tickets"], 1),
        "tickets2": (["tickets"], 2),
        "urgency": (["urgency"], 1),
        "both": (["tickets", "urgency"], 1),
    }
    return {
        name: train([tasks[task] for task in names], cfg, out=out / name, seed=seed)
        for name, (names, seed) in chosen.items()
    }


def weights_of(run: Run, part: str) -> dict[str, torch.Tensor]:
    """The parameters of a run's `network`, or of the head of a task."""
    model = load(run).forward.model
    module = model.network if part == "network" else model.head(part)
    return {name: weight.detach() for name, weight in module.named_parameters()}


@pytest.mark.parametrize(
    ("teachers", "encoders"),
    [
        ({"tickets": ["tickets"], "urgency": ["urgency"]}, ["tickets", "urgency"]),
        ({"tickets": ["tickets", "tickets2"], "urgency": ["urgency"]}, None),
        ({"tickets": ["both"], "urgency": ["both"]}, ["both"]),
        ({"tickets": ["both", "tickets"], "urgency": ["both"]}, ["both", "tickets"]),
        ({"urgency": ["urgency"]}, ["urgency"]),
    ],
)
def test_a_student_can_start_from_the_mean_of_its_teachers(
    cfg: TrainConfig,
    tasks: dict[str, Task],
    several: dict[str, Run],
    teachers: dict[str, list[str]],
    encoders: list[str] | None,
) -> None:
    chosen = [tasks["tickets"], tasks["urgency"]]
    settings = resolve(cfg, 2, init="teachers")
    given = {name: [several[run] for run in runs] for name, runs in teachers.items()}
    model = prepare(tuple(chosen), settings, given).forward.model
    parts = {"network": encoders or ["tickets", "tickets2", "urgency"], **teachers}
    for part, runs in parts.items():
        module = model.network if part == "network" else model.head(part)
        every = [weights_of(several[run], part) for run in runs]
        for name, weight in module.named_parameters():
            mean = torch.stack([weights[name] for weights in every]).mean(0)
            torch.testing.assert_close(weight, mean, rtol=0, atol=1e-6)
    plain = prepare(tuple(chosen), resolve(cfg, 2), given).forward.model
    untaught = [name for name in ("tickets", "urgency") if name not in teachers]
    for name in untaught:
        assert torch.equal(model.head(name).weight, plain.head(name).weight)


def test_a_student_that_starts_from_its_teachers_trains_and_resumes(
    cfg: TrainConfig,
    tasks: dict[str, Task],
    several: dict[str, Run],
    tmp_path: Path,
) -> None:
    teachers = {name: several[name] for name in ("tickets", "urgency")}
    chosen = [tasks["tickets"], tasks["urgency"]]
    run = train(chosen, cfg, teachers=teachers, init="teachers", out=tmp_path / "run")
    assert run.config()["settings"]["init"] == "teachers"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(chosen, cfg, teachers=teachers, init="teachers", out=tmp_path / "again")
    again = train(chosen, cfg, teachers=teachers, init="teachers", out=tmp_path / "again")
    assert again.info()["resumed"] == 1
    for part in ("network", "tickets", "urgency"):
        for name, weight in weights_of(again, part).items():
            assert torch.equal(weight, weights_of(run, part)[name])


def test_a_teacher_that_a_student_cannot_start_from_is_refused(
    cfg: TrainConfig,
    tasks: dict[str, Task],
    several: dict[str, Run],
    make_encoder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    task = tasks["tickets"]
    other = make_encoder("bert", initializer_range=0.1)
    bare = train([task], cfg, out=tmp_path / "bare", keep="predictions")
    table = tmp_path / "probabilities.csv"
    table.write_text("id,billing,tech,other\n")
    source = several["tickets"].path
    cases = [
        ({}, {}, 'cannot use init = "teachers": no teacher is given, expected one or more'),
        (
            {"tickets": bare},
            {},
            f"cannot start from the teacher {bare.path} of 'tickets': it kept no weights, expected "
            "weights",
        ),
        (
            {"tickets": table},
            {},
            f"cannot start from the teacher {table} of 'tickets': it is no run, expected a run",
        ),
        (
            {"tickets": source},
            {"pooling": "cls"},
            f"cannot start from the teacher {source} of 'tickets': pooling auto, expected cls",
        ),
        (
            {"tickets": source},
            {"encoder": str(other)},
            f"cannot start from the teacher {source} of 'tickets': encoder {cfg.encoder}, "
            f"expected {other}",
        ),
    ]
    for teachers, changes, message in cases:
        with pytest.raises(UserError) as caught:
            train([task], cfg, teachers=teachers, init="teachers", out=tmp_path / "x", **changes)
        assert caught.value.message == message and caught.value.hint
        assert not (tmp_path / "x").exists()
