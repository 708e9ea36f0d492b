"""Exports answer as the run does, are whole or absent, and need nothing but their format."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import outshine
from conftest import write_urgency
from families import FAMILIES, ROWS
from outshine import exporting
from outshine.errors import OutshineError, UserError, WorldError
from outshine.files import read_json, write_json
from outshine.verification import run_outputs
from test_cli import outshine as command


def plain_outputs(folder: Path, rows: list[tuple[str, ...]]) -> np.ndarray:
    """Outputs of a folder by transformers alone, all rows in one padded batch."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    columns = [list(column) for column in zip(*rows, strict=True)]
    with torch.no_grad():
        inputs = tokenizer(*columns, truncation=True, padding=True, return_tensors="pt")
        return model(**inputs).logits.numpy()


# --- transformers -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_model_gives_same_logits(
    family: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    run = trained(family)
    exporting.export(run, tmp_path / "out")
    predictor = outshine.load(run)
    for task in predictor.tasks:
        rows = ROWS[task.name]
        wanted = run_outputs(predictor, task, rows)
        found = plain_outputs(tmp_path / "out" / task.name, rows)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
        assert np.abs(wanted[0] - wanted[1]).max() > 1e-3  # the rows differ


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_a_pipeline_gives_the_answers_of_predict(
    family: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    exporting.export(trained(family), tmp_path / "out")
    predictor = outshine.load(trained(family))
    for name in ("tickets", "urgency", "duplicate"):
        classify = pipeline("text-classification", str(tmp_path / "out" / name))
        given = [row[0] if len(row) == 1 else row for row in ROWS[name]]
        for row, answer in zip(ROWS[name], predictor.predict(given, [name]), strict=True):
            text = row[0] if len(row) == 1 else {"text": row[0], "text_pair": row[1]}
            found = classify(text, truncation=True)
            (found,) = found if isinstance(found, list) else [found]
            if name == "urgency":
                assert found == {"label": "value", "score": pytest.approx(answer[name]["value"])}
            else:
                assert found["label"] == answer[name]["label"]
                assert found["score"] == pytest.approx(max(answer[name]["probs"].values()))


def test_an_exported_task_says_its_labels_and_problem(student: Path, tmp_path: Path) -> None:
    exporting.export(student, tmp_path / "team", task="tickets")
    exporting.export(student, tmp_path / "urgency", task="urgency")
    config = read_json(tmp_path / "team" / "config.json")
    assert config["id2label"] == {"0": "billing", "1": "tech", "2": "other"}
    assert config["label2id"] == {"billing": 0, "tech": 1, "other": 2}
    assert config["problem_type"] == "single_label_classification"
    assert config["architectures"] == ["BertForSequenceClassification"]
    config = read_json(tmp_path / "urgency" / "config.json")
    assert (config["problem_type"], config["id2label"]) == ("regression", {"0": "value"})


@pytest.mark.parametrize("format", ["hf", "onnx"])
def test_values_are_exported_on_a_scale_that_does_not_begin_at_zero(
    format: str, encoder: Path, tmp_path: Path
) -> None:
    path = write_urgency(tmp_path / "tasks")
    path.write_text(path.read_text().replace("range = [0, 5]", "range = [-1, 6]"))
    cfg = outshine.TrainConfig(encoder=str(encoder), max_steps=3, batch_size=8, device="cpu")
    run = outshine.train([outshine.Task.load(path)], cfg, out=tmp_path / "run")
    exporting.export(run, tmp_path / "out", format=format)
    texts = ["refund now", "my login"]
    if format == "hf":
        classify = pipeline("text-classification", str(tmp_path / "out" / "urgency"))
        found = [answer["score"] for answer in classify(texts)]
    else:
        session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
        inputs = AutoTokenizer.from_pretrained(tmp_path / "out")(texts, padding=True)
        names = [given.name for given in session.get_inputs()]
        (found,) = session.run(["urgency"], {name: np.int64(inputs[name]) for name in names})
        found = found[:, 0]
    answers = outshine.load(run).predict(texts)
    assert found == pytest.approx([answer["urgency"]["value"] for answer in answers], abs=1e-5)


def test_an_exported_task_is_a_teacher_with_the_same_logits(student: Path, tmp_path: Path) -> None:
    from outshine.classifiers import classifier_model
    from outshine.model import load_model

    exporting.export(student, tmp_path / "urgency", task="urgency")
    task = next(task for task in outshine.load(student).tasks if task.name == "urgency")
    head = classifier_model(str(tmp_path / "urgency"), task).head("urgency")
    wanted = load_model(student / "model")[0].head("urgency")
    torch.testing.assert_close(head.weight, wanted.weight)
    torch.testing.assert_close(head.bias, wanted.bias)


def test_an_exported_task_loads_where_outshine_is_not_imported(
    student: Path, tmp_path: Path
) -> None:
    exporting.export(student, tmp_path / "out", task="tickets")
    code = (
        "import json, sys\n"
        "from transformers import pipeline\n"
        "found = pipeline('text-classification', sys.argv[1])('refund my invoice', top_k=None)\n"
        "assert not any('outshine' in name for name in sys.modules)\n"
        "print(json.dumps({answer['label']: answer['score'] for answer in found}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    (answer,) = outshine.load(student).predict(["refund my invoice"], ["tickets"])
    assert json.loads(done.stdout) == pytest.approx(answer["tickets"]["probs"], abs=1e-5)


def test_the_whole_export_is_a_student_without_names_of_this_machine(
    student: Path, tmp_path: Path
) -> None:
    exporting.export(student, tmp_path / "out")
    rows = ["refund my invoice", ("the login", "a crash")]
    assert outshine.load(tmp_path / "out").predict(rows) == outshine.load(student).predict(rows)
    folders = [student.parent, Path(outshine.load(student).tokenizer.name_or_path).parent]
    for file in tmp_path.rglob("*"):
        if file.suffix in (".json", ".md"):
            content = file.read_text(encoding="utf-8")
            assert not any(str(folder) in content for folder in folders), file
            assert "pytest" not in content, file


def test_a_pooling_of_our_own_is_refused_with_a_way_out(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        exporting.export(trained("bert", pooling="mean"), tmp_path / "out")
    assert str(caught.value) == (
        "cannot make a transformers classifier of task 'tickets': pooling 'mean', "
        "expected 'auto', the family's own\n"
        "hint: `--format onnx` exports what transformers has no class for"
    )
    assert not (tmp_path / "out").exists() and not [*tmp_path.iterdir()]


# --- verification -----------------------------------------------------------------------------


def test_dev_rows_are_compared_and_made_up_ones_where_there_are_too_few(
    student: Path, tmp_path: Path
) -> None:
    verified = exporting.export(student, tmp_path / "out")["verified"]
    assert verified.keys() == {"tickets", "urgency", "duplicate"}
    for facts in verified.values():
        assert (facts["rows"], facts["dev_rows"]) == (64, 24)
        assert 0 <= facts["largest_difference"] < 1e-4
    assert read_json(tmp_path / "out" / "export.json")["verified"] == verified


def test_made_up_rows_do_when_the_data_is_gone(student: Path, tmp_path: Path) -> None:
    shutil.copytree(student, tmp_path / "run")
    config = read_json(tmp_path / "run" / "config.json")
    for task in config["tasks"]:
        task["files"] = {split: f"{path}.gone" for split, path in task["files"].items()}
    write_json(tmp_path / "run" / "config.json", config)
    verified = exporting.export(tmp_path / "run", tmp_path / "out")["verified"]
    assert {(facts["rows"], facts["dev_rows"]) for facts in verified.values()} == {(64, 0)}


@pytest.mark.parametrize("name", [".", "..", "mount"])
def test_a_folder_that_cannot_be_replaced_is_refused_before_any_work(
    name: str, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "export.json").touch()
    (tmp_path / "here" / "export.json").touch()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "mount")
    monkeypatch.setattr(exporting, "load", None)
    with pytest.raises(UserError) as caught:
        exporting.export(student, name, force=True)
    assert str(caught.value) == (
        f"cannot export to {name}: the current folder, one above it or a mount point, expected a "
        "folder that can be replaced\nhint: name a folder in it"
    )
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "export.json", "export.json", "here"
    ]  # fmt: skip


@pytest.mark.parametrize("change", [3e-4, float("nan")])
def test_an_export_that_answers_differently_leaves_nothing(
    change: float, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = exporting._hf_outputs
    monkeypatch.setattr(exporting, "_hf_outputs", lambda *given: honest(*given) + change)
    with pytest.raises(WorldError) as caught:
        exporting.export(student, tmp_path / "out", task="tickets")
    shown = "0.0003" if change == 3e-4 else "nan"
    assert str(caught.value) == (
        "cannot export to hf: outputs of task 'tickets' differ from the run's by up to "
        f"{shown} on 64 rows, expected at most 0.0001 + 0.0001 * |output|\n"
        "hint: nothing was written; report it with what `outshine doctor` prints"
    )
    assert not [*tmp_path.iterdir()]


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_checks_and_writes_nothing(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "push_to_hub", None)
    before = everything(student)
    given = ("--format", "hf", "--out", tmp_path / "out", "--dry-run", "--push", "org/desk")
    result = command("export", student, *given, "--json")
    assert result.stderr == (
        f"The export would be in {tmp_path / 'out'}, of tickets, urgency, duplicate\n"
        "It would be uploaded to org/desk\n"
    )
    assert json.loads(result.stdout)["verified"] == {"tickets": {}, "urgency": {}, "duplicate": {}}
    assert not [*tmp_path.iterdir()] and everything(student) == before
    assert "unknown task 'ticket'" in refusal(student, *given, "--task", "ticket")
    given = (student, "--format", "hf", "--out", tmp_path / "out", "--push", "a/b/c")
    assert refusal(*given) == (
        f"cannot push {tmp_path / 'out'} to a/b/c: no such repository on the hub\n"
        "hint: check the spelling; private and gated repositories need `hf auth login`\n"
    )
    assert not [*tmp_path.iterdir()]


# --- the card ---------------------------------------------------------------------------------


def test_the_card_tells_scores_data_time_and_limits(student: Path, tmp_path: Path) -> None:
    exporting.export(student, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    run = outshine.Run(student)
    metrics, info = run.metrics(), run.info()
    assert card.data.library_name == "outshine"
    assert card.data.pipeline_tag == "text-classification"
    found = {(r.dataset_name, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert found["tickets", "accuracy"] == metrics["tickets"]["dev"]["accuracy"]
    assert found["duplicate", "f1"] == metrics["duplicate"]["dev"]["f1"]
    accuracy = f"{100 * metrics['tickets']['dev']['accuracy']:.1f}"
    assert f"| tickets | dev | accuracy | {accuracy}" in card.text
    assert "| 24 |" in card.text
    for fact in (
        info["data"]["urgency"]["train"][:12],
        "* Arm: multi, from gold labels alone.",
        f"Training took {info['train_s']:.0f} s on {info['device']}",
        "Energy of training" if info["energy_j"] else "Energy: not measured",
        "## Intended use",
        "## Limits",
        "@inproceedings{clark2019bam,",
        "{{BAM!} Born-Again",
        info["id"],
    ):
        assert fact in card.text
    single = ModelCard.load(tmp_path / "out" / "tickets" / "README.md")
    assert single.data.library_name == "transformers"
    assert "as one head of a model that answers urgency, duplicate, too" in single.text


def test_the_card_of_a_distilled_run_names_its_teachers_without_their_folders(
    student: Path, tmp_path: Path
) -> None:
    run = outshine.Run(Path(shutil.copytree(student, tmp_path / "run")))
    teachers = {"tickets": [str(tmp_path / "teachers" / "first"), "org/second"]}
    write_json(run.path / "config.json", run.config() | {"teachers": teachers})
    exporting.export(run, tmp_path / "out", task="tickets")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "* Arm: multi, distilled from the teachers above." in card
    assert "| first, org/second |" in card
    assert str(tmp_path) not in card
    assert "| task | split | metric | score | n |" in card  # nobody knows what these teachers score


def test_the_card_puts_scores_beside_those_of_the_teachers_on_the_same_rows(
    student: Path, tmp_path: Path
) -> None:
    run = outshine.Run(Path(shutil.copytree(student, tmp_path / "run")))
    scored = {"tickets": {"dev": {"accuracy": 0.875, "f1_macro": 0.5, "n": 24}}}
    write_json(run.path / "run.json", run.info() | {"teacher_metrics": scored})
    exporting.export(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    lines = card[card.index("## Scores") : card.index("## Training")].splitlines()
    assert "| task | split | metric | score | its teacher | n |" in lines
    assert "| --- | --- | --- | ---: | ---: | ---: |" in lines
    (tickets,) = (line for line in lines if line.startswith("| tickets | dev | accuracy |"))
    assert tickets.endswith(" | 87.5 | 24 |")
    (urgency,) = (line for line in lines if line.startswith("| urgency | dev | spearman |"))
    assert urgency.endswith(" |  | 24 |")


def test_temperatures_go_along_with_the_student_and_its_card_says_where_they_hold(
    student: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(student, tmp_path / "run"))
    none = "* Probabilities are not calibrated.\n* How it treats"
    exporting.export(run, tmp_path / "plain")
    assert none in (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")
    assert not (tmp_path / "plain" / "calibration.json").exists()
    found = outshine.Run(run).info()["id"]
    write_json(run / "calibration.json", {"run": found, "tasks": {"tickets": {"temperature": 3}}})
    exporting.export(run, tmp_path / "out")
    model = outshine.load(tmp_path / "out", calibrated=True, device="cpu")
    assert model.temperatures == {"tickets": 3.0}
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Probabilities are calibrated (one temperature per task with classes" in card
    single = (tmp_path / "out" / "tickets" / "README.md").read_text(encoding="utf-8")
    assert "Logits are not divided by the temperatures that were fitted on dev" in single
    assert not any(none in text for text in (card, single))


def test_damaged_temperatures_stop_the_export_of_the_student_alone(
    student: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(student, tmp_path / "run"))
    write_json(run / "calibration.json", {"run": "another", "tasks": {}})
    given = (run, "--format", "hf", "--out", tmp_path / "out")
    assert refusal(*given) == (
        f"cannot load the run {run} calibrated: temperatures of run another, expected "
        f"{outshine.Run(run).info()['id']} ({run / 'calibration.json'})\n"
        f"hint: make them again: `outshine calibrate {run}`\n"
    )
    assert not (tmp_path / "out").exists()
    command("export", *given, "--task", "tickets")


# --- bad input --------------------------------------------------------------------------------


def refusal(*args: str | Path, code: int = 2) -> str:
    """What `outshine export` says on stderr."""
    return command("export", *args, code=code).stderr


def test_the_command_prints_differences_and_json(student: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("export", student, "--format", "hf", "--out", out, "--task", "tickets", "--json")
    result = command(*given)
    assert json.loads(result.stdout) == read_json(out / "export.json")
    assert "largest difference" in result.stderr
    assert f"The export is in {out}" in result.stderr


def test_an_unknown_task_or_format_gets_a_did_you_mean(student: Path, tmp_path: Path) -> None:
    given = (student, "--out", tmp_path / "out")
    assert refusal(*given, "--format", "hf", "--task", "ticket") == (
        "unknown task 'ticket' (did you mean 'tickets'?), expected some of tickets, urgency, "
        "duplicate\nhint: these are the tasks that the model was trained on\n"
    )
    assert refusal(*given, "--format", "onx") == (
        "cannot export: format 'onx' (did you mean 'onnx'?), expected hf or onnx\n"
        "hint: `hf` is for transformers, `onnx` for ONNX Runtime\n"
    )
    assert not [*tmp_path.iterdir()]


def test_an_export_is_replaced_with_force_alone(student: Path, tmp_path: Path) -> None:
    given = (student, "--format", "hf", "--task", "tickets", "--out", tmp_path / "out")
    command("export", *given)
    (tmp_path / "out" / "stray").touch()
    assert refusal(*given) == (
        f"cannot export to {tmp_path / 'out'}: it holds an export already\n"
        "hint: choose another --out, or replace it with --force\n"
    )
    command("export", *given, "--force")
    assert not (tmp_path / "out" / "stray").exists()


def test_a_folder_of_something_else_is_not_replaced_even_with_force(
    student: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name, found in (("mine", "the folder holds other files"), ("file", "a file")):
        given = (student, "--format", "hf", "--out", tmp_path / name, "--force")
        assert refusal(*given) == (
            f"cannot export to {tmp_path / name}: {found}, expected none, or an earlier export\n"
            "hint: choose another\n"
        )
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_an_empty_folder_is_taken(student: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    exporting.export(student, tmp_path / "out", task="tickets")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def remove_end(run: Path) -> None:
    (run / "run.json").unlink()


def raise_format(run: Path) -> None:
    write_json(run / "run.json", read_json(run / "run.json") | {"format": 99})


def truncate_weights(run: Path) -> None:
    path = run / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def remove_weights(run: Path) -> None:
    shutil.rmtree(run / "model")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (remove_end, "it is incomplete, expected a finished run"),
        (raise_format, "format 99, expected 1"),
        (truncate_weights, "cannot load the encoder in"),
        (remove_weights, "no weights, expected"),
    ],
)
@pytest.mark.parametrize("format", exporting.FORMATS)
def test_a_run_that_cannot_be_used_is_refused(
    spoil: Callable[[Path], None], problem: str, format: str, student: Path, tmp_path: Path
) -> None:
    shutil.copytree(student, tmp_path / "run")
    spoil(tmp_path / "run")
    said = refusal(tmp_path / "run", "--format", format, "--out", tmp_path / "out")
    assert problem in said and "\nhint: " in said
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_task_that_takes_the_place_of_the_student_is_refused(
    student: Path, tmp_path: Path
) -> None:
    shutil.copytree(student, tmp_path / "run")
    for path in [*(tmp_path / "run").glob("*.json"), tmp_path / "run" / "model" / "tasks.json"]:
        path.write_text(path.read_text().replace('"tickets"', '"model"'))
    heads = tmp_path / "run" / "model" / "heads.safetensors"
    weights = {k.replace(".task-tickets.", ".task-model."): v for k, v in load_file(heads).items()}
    save_file(weights, heads)
    with pytest.raises(OutshineError) as caught:
        exporting.export(tmp_path / "run", tmp_path / "out")
    assert str(caught.value) == (
        "cannot export task 'model' with the whole student: its folder is the student's own\n"
        "hint: export each task by itself with --task"
    )
    exporting.export(tmp_path / "run", tmp_path / "out", task="model")
