"""Traps that a careful reader of the whole program once found open, each shut by a test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification

import outshine
from conftest import write_tickets
from outshine import training
from outshine.config import TrainConfig
from outshine.devices import pick_device
from outshine.distillation import distill
from outshine.errors import DivergedError, UserError
from outshine.evaluation import evaluate
from outshine.model import MultiTaskModel, build_model, num_positions
from outshine.predictions import Predictions
from outshine.runs import Run
from outshine.tasks import Task


@pytest.fixture
def cfg(encoder: Path) -> outshine.TrainConfig:
    return outshine.TrainConfig(encoder=str(encoder), max_steps=2, batch_size=8, device="cpu")


def failure(function: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*args, **options)
    return str(caught.value)


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


# --- what is on disk stays whole ------------------------------------------------------------


def test_a_model_folder_is_not_taken_for_an_interrupted_run(
    tickets: Path, encoder: Path, cfg: outshine.TrainConfig, tmp_path: Path
) -> None:
    folder = shutil.copytree(encoder, tmp_path / "model")
    before = (folder / "config.json").read_bytes()
    message = failure(outshine.train, [Task.load(tickets)], cfg, out=folder)
    assert message == (
        f"cannot write the run {folder}: the folder holds other files (config.json, "
        "model.safetensors, tokenizer.json), expected none\nhint: choose a new --out"
    )
    assert (folder / "config.json").read_bytes() == before


def test_a_run_that_another_process_completed_meanwhile_is_kept(
    tickets: Path, cfg: outshine.TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, prepare = Task.load(tickets), training.prepare

    def slow_prepare(*args: Any) -> Any:
        monkeypatch.setattr(training, "prepare", prepare)
        outshine.train([task], cfg, out=tmp_path / "run")
        return prepare(*args)

    monkeypatch.setattr(training, "prepare", slow_prepare)
    message = failure(outshine.train, [task], cfg, out=tmp_path / "run", seed=2)
    assert "it is already complete" in message
    assert Run(tmp_path / "run").info()["seed"] == 1


def test_other_data_under_a_known_name_are_evaluated_and_not_recorded(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(shutil.copytree(student, tmp_path / "run"))
    task = next(task for task in run.tasks() if task.name == "tickets")
    lines = Path(task.files["dev"]).read_text().splitlines(keepends=True)
    (tmp_path / "few.csv").write_text("".join(lines[:6]))
    few = task.model_copy(update={"files": {"dev": str(tmp_path / "few.csv")}})
    before = (run.metrics(), run.predictions_path("tickets", "dev").read_bytes())
    assert evaluate(run, tasks=[few])["tasks"]["tickets"]["n"] == 5
    evaluate(run, precision="bf16")
    assert (run.metrics(), run.predictions_path("tickets", "dev").read_bytes()) == before
    said = capsys.readouterr().err
    assert f"note: not recorded in {run.path}: tickets (other data than" in said
    assert "tickets, urgency, duplicate (other data than the run was made with, or" in said


# --- the same run, or a refusal ---------------------------------------------------------------


def interrupted(
    path: Path, task: Task, cfg: outshine.TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaves a run that stopped after its last step, with its checkpoint."""
    with monkeypatch.context() as patch:
        patch.setattr(training, "_finish", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            outshine.train([task], cfg, out=path)
    assert Run(path).checkpoint_path.exists()


@pytest.mark.parametrize("change", ["symmetric", "encoder"])
def test_a_run_goes_on_only_with_the_same_rows_and_the_same_encoder(
    change: str,
    duplicate: Path,
    encoder: Path,
    cfg: outshine.TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(encoder, tmp_path / "encoder")
    cfg = cfg.model_copy(update={"encoder": str(folder)})
    interrupted(tmp_path / "run", Task.load(duplicate), cfg, monkeypatch)
    if change == "symmetric":
        edit(duplicate, "symmetric = true", "symmetric = false")
        wanted = "rows.duplicate was "
    else:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        weights["embeddings.word_embeddings.weight"] *= 0.5
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        wanted = "start.weights was "
    message = failure(outshine.train, [Task.load(duplicate)], cfg, out=tmp_path / "run")
    assert message.startswith(f"cannot go on with the run {tmp_path / 'run'}: {wanted}")


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"max_tokens": 40}])
def test_a_loaded_run_gives_the_saved_logits_to_the_last_bit_with_every_way_to_compute(
    options: dict[str, Any], tickets: Path, cfg: outshine.TrainConfig, tmp_path: Path
) -> None:
    run = outshine.train([Task.load(tickets)], cfg, out=tmp_path / "run", **options)
    path = run.predictions_path("tickets", "dev")
    saved = np.array(Predictions.load(path).logits)
    path.unlink()
    evaluate(run)
    assert np.array_equal(Predictions.load(path).logits, saved)


# --- names ------------------------------------------------------------------------------------


def named(name: str, labels: int) -> Task:
    texts = tuple(f"label {i}" for i in range(labels))
    return Task(name=name, text=("a",), label="y", labels=texts)


def test_every_task_name_has_a_head_of_its_own(encoder: Path) -> None:
    tasks = [named("a.b", 2), named("a-dot-b", 3), named("type", 4), named("items", 5)]
    model = build_model(str(encoder), tasks)
    assert isinstance(model, MultiTaskModel)
    assert [model.head(task.name).out_features for task in tasks] == [2, 3, 4, 5]


@pytest.mark.parametrize("name", ["id", "truncated", "score"])
def test_a_task_may_not_be_named_like_what_stands_beside_it(name: str) -> None:
    taken = f"name: {name!r} is taken in answers or tables, expected another"
    with pytest.raises(ValueError, match=taken):
        named(name, 2)


def test_a_misspelt_split_is_refused(tickets: Path) -> None:
    edit(tickets, "dev = ", "dve = ")
    assert failure(Task.load, tickets).startswith(
        f"cannot read the task file {tickets}: unknown key 'dve' under [files] "
        "(did you mean 'dev'?), expected train, dev, test, or a name that begins with dev_ or test_"
    )


def test_a_task_without_a_dev_split_is_trained_and_that_is_said(
    tickets: Path,
    cfg: outshine.TrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(tickets, 'dev = "tickets-dev.csv"', "")
    run = outshine.train([Task.load(tickets)], cfg, out=tmp_path / "run")
    assert run.metrics() == {}
    said = capsys.readouterr().err
    assert "note: tickets has no dev split: it is not evaluated" in said
    assert "Dev metrics" not in said


def test_a_column_name_that_stands_twice_is_refused(tickets: Path, tmp_path: Path) -> None:
    path = tickets.with_name("tickets-train.csv")
    edit(path, "body,team", "body,team,body")
    message = failure(outshine.train, [Task.load(tickets)], encoder="builtin", out=tmp_path / "run")
    assert f"column 'body' stands 2 times, expected once ({path}:1)" in message


def test_a_task_file_may_begin_with_a_byte_order_mark(tickets: Path) -> None:
    wanted = Task.load(tickets)
    tickets.write_bytes(b"\xef\xbb\xbf" + tickets.read_bytes())
    assert Task.load(tickets) == wanted


def test_numbers_have_no_underscores(urgency: Path, cfg: Any, tmp_path: Path) -> None:
    path = urgency.with_name("urgency-train.csv")
    lines = path.read_text().splitlines()
    lines[1] = lines[1].rpartition(",")[0] + ",0_1"
    path.write_text("\n".join(lines))
    message = failure(outshine.train, [Task.load(urgency)], cfg, out=tmp_path / "run")
    assert f"label '0_1', expected a number from 0 to 5 ({path}:2)" in message


# --- models -----------------------------------------------------------------------------------


def classifier(encoder: Path, folder: Path, num_labels: int = 5) -> Path:
    """A classification checkpoint with the encoder's tokenizer."""
    config = AutoConfig.from_pretrained(encoder, num_labels=num_labels)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    for path in encoder.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def test_a_classifier_folder_is_an_encoder_whatever_its_labels(
    encoder: Path, tickets: Path, cfg: outshine.TrainConfig, tmp_path: Path
) -> None:
    folder = classifier(encoder, tmp_path / "classifier")
    run = outshine.train([Task.load(tickets)], cfg, out=tmp_path / "run", encoder=str(folder))
    assert run.is_complete


def test_an_encoder_weight_of_another_shape_is_refused(encoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder, tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    message = failure(build_model, str(folder), [named("t", 2)])
    assert (
        "weight bert.embeddings.position_embeddings.weight has another shape than the "
        "configuration says" in message
    )


def test_rows_of_a_teacher_end_where_its_positions_end(
    make_encoder: Callable[..., Path],
    tickets: Path,
    cfg: outshine.TrainConfig,
    tmp_path: Path,
) -> None:
    roberta = make_encoder("roberta", max_position_embeddings=16, type_vocab_size=1)
    assert num_positions(build_model(str(roberta), [named("t", 2)])) == 15
    edit(tickets.with_name("tickets-train.csv"), "please", "please " * 20)
    teacher = classifier(roberta, tmp_path / "teacher", 3)
    config = json.loads((teacher / "config.json").read_text())
    labels = dict(enumerate(Task.load(tickets).labels))
    (teacher / "config.json").write_text(json.dumps(config | {"id2label": labels}))
    run = outshine.train(
        [Task.load(tickets)], cfg, teachers={"tickets": teacher}, out=tmp_path / "run"
    )
    assert run.is_complete


def test_a_teacher_whose_logits_are_not_finite_is_refused(
    student: Path, tickets: Path, cfg: outshine.TrainConfig, tmp_path: Path
) -> None:
    run = Run(shutil.copytree(student, tmp_path / "teacher"))
    task = next(task for task in run.tasks() if task.name == "tickets")
    outshine.train([task], cfg, teachers={"tickets": run}, out=tmp_path / "first")
    path = run.predictions_path("tickets", "train")
    known = Predictions.load(path)
    logits = np.array(known.logits)
    logits[3, 0] = np.nan
    Predictions(logits, *(getattr(known, f) for f in list(vars(known))[1:])).save(path)
    message = failure(
        outshine.train, [task], cfg, teachers={"tickets": run}, out=tmp_path / "second"
    )
    assert message == (
        f"cannot use the teacher {run.path} for 'tickets': a logit is not finite\n"
        "hint: its training diverged: train it again with a lower lr"
    )


def test_a_run_to_start_from_gives_its_head_only_to_the_same_labels(
    student: Path, tmp_path: Path, cfg: outshine.TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tickets(tmp_path / "tasks")
    edit(path, '["billing", "tech", "other"]', '["tech", "billing", "other"]')
    outshine.train([Task.load(path)], cfg, out=tmp_path / "run", init=str(student))
    said = capsys.readouterr().err
    assert f"note: tickets has other labels in {student}: its head starts anew" in said


def test_a_run_of_other_pooling_is_no_start(
    student: Path, tickets: Path, cfg: outshine.TrainConfig, tmp_path: Path
) -> None:
    message = failure(
        outshine.train,
        [Task.load(tickets)],
        cfg,
        out=tmp_path / "run",
        init=str(student),
        pooling="cls",
    )
    assert message.startswith(f"cannot start from {student}: Missing key(s) in state_dict: ")


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"task_weight": {"rte": 0}}, "task_weight.rte: 0, expected: Input should be greater"),
        ({"track": "foo"}, "track.0: 'foo', expected: Input should be 'tensorboard', "),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], problem: str) -> None:
    assert problem in failure(TrainConfig, **settings)


def test_one_tracker_may_be_given_as_text() -> None:
    assert TrainConfig(track="tensorboard").track == ("tensorboard",)


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    tickets: Path, cfg: outshine.TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outshine.planning.find_spec", lambda name: None)
    message = failure(
        outshine.train, [Task.load(tickets)], cfg, out=tmp_path / "run", track=("wandb",)
    )
    assert message == (
        "cannot track the run with wandb: it is not installed\nhint: pip install wandb"
    )
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_no_cpu_or_gpu_is_refused() -> None:
    assert failure(pick_device, "meta").startswith(
        "cannot use the device 'meta': it is not supported, expected auto, cpu or cuda (device)"
    )


def test_one_dev_row_is_too_few_to_compare_on(
    tickets: Path, urgency: Path, cfg: outshine.TrainConfig, tmp_path: Path
) -> None:
    edit(tickets, 'dev = "tickets-dev.csv"', "holdout = 1")
    tasks = [Task.load(tickets), Task.load(urgency)]
    message = failure(distill, tasks, encoder=cfg.encoder, out=tmp_path / "out")
    assert message == (
        "cannot distil tickets: one dev row, expected two or more to compare on\n"
        "hint: add dev rows, or raise `holdout`"
    )
    assert not (tmp_path / "out").exists()


def test_non_finite_dev_logits_stop_a_run_before_it_is_complete(
    tickets: Path, cfg: outshine.TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match="a logit of tickets is not finite"):
        outshine.train(
            [Task.load(tickets)],
            cfg,
            out=tmp_path / "run",
            lr=1e38,
            warmup_fraction=0.0,
            max_steps=1,
        )
    assert not Run(tmp_path / "run").is_complete
