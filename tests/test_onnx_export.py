"""The ONNX graph answers as the run does, with any number of rows of any length."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

import outshine
from families import ROWS
from outshine import exporting, onnx_export
from outshine.errors import UserError, WorldError
from outshine.files import read_json, write_json
from outshine.verification import run_outputs


@pytest.fixture(scope="session")
def exported(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student as a graph, in float32 and in eight bits."""
    out = tmp_path_factory.mktemp("onnx") / "out"
    exporting.export(student, out, format="onnx", int8=True)
    return out


def outputs(folder: Path, task: str, columns: tuple[list[str], ...]) -> np.ndarray:
    """Outputs of one task by ONNX Runtime and the tokenizer alone, all rows in one call."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    inputs = tokenizer(*columns, truncation=True, padding=True, return_tensors="np")
    (found,) = session.run([task], {name: np.int64(x) for name, x in inputs.items()})
    return found


# Exporting takes ten seconds a family; all of test_exporting's were tried when this was written.
@pytest.mark.parametrize(
    ("family", "pooling", "only"), [("roberta", "auto", None), ("bert", "mean", "duplicate")]
)
def test_exported_graph_gives_same_logits(
    family: str, pooling: str, only: str | None, trained: Callable[..., Path], tmp_path: Path
) -> None:
    run, out = trained(family, pooling=pooling), tmp_path / "out"
    verified = exporting.export(run, out, format="onnx", task=only)["verified"]
    predictor = outshine.load(run)
    tasks = predictor.choose([only] if only else None)
    assert list(verified) == [task.name for task in tasks]
    assert [task["name"] for task in read_json(out / "tasks.json")["tasks"]] == list(verified)
    for task in tasks:
        assert verified[task.name]["largest_difference"] < 1e-4
        rows = ROWS[task.name]
        wanted = run_outputs(predictor, task, rows)
        columns = tuple(list(column) for column in zip(*rows, strict=True))
        np.testing.assert_allclose(outputs(out, task.name, columns), wanted, rtol=1e-4, atol=1e-4)
        assert np.abs(wanted[0] - wanted[1]).max() > 1e-3  # the rows differ


def test_the_graph_takes_what_the_tokenizer_gives_and_names_its_outputs_by_task(
    exported: Path,
) -> None:
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert [each.name for each in session.get_inputs()] == tokenizer.model_input_names
    assert {tuple(each.shape) for each in session.get_inputs()} == {("batch", "length")}
    assert [each.name for each in session.get_outputs()] == ["tickets", "urgency", "duplicate"]
    assert [each.shape[1] for each in session.get_outputs()] == [3, 1, 2]


@pytest.mark.parametrize("size", [1, 3, 40])
@pytest.mark.parametrize("words", [1, 17, 126])
def test_the_graph_answers_batches_of_any_size_and_length(
    size: int, words: int, exported: Path, student: Path
) -> None:
    predictor = outshine.load(student)
    task = next(task for task in predictor.tasks if task.name == "urgency")
    texts = [" ".join(["invoice"] * max(1, words - i)) for i in range(size)]
    wanted = run_outputs(predictor, task, [(text,) for text in texts])
    np.testing.assert_allclose(outputs(exported, "urgency", (texts,)), wanted, atol=1e-5)


def test_what_the_outputs_mean_stands_beside_the_graph(exported: Path) -> None:
    described = {task["name"]: task for task in read_json(exported / "tasks.json")["tasks"]}
    assert described["tickets"]["labels"] == ["billing", "tech", "other"]
    assert described["urgency"]["range"] == [0.0, 5.0]
    assert "files" not in described["tickets"]
    card = ModelCard.load(exported / "README.md")
    assert card.data.library_name == "onnx"
    code = card.text.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(exported)
        exec(code, names)
    assert names["outputs"].shape == (1, 3)


def test_int8_is_smaller_and_its_loss_on_dev_is_measured(exported: Path, student: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in exported.glob("*.onnx")}
    assert sizes["model.int8.onnx"] < sizes["model.onnx"]
    measured = read_json(exported / "export.json")["int8"]
    scores = outshine.Run(student).metrics()
    for name, metric in (("tickets", "accuracy"), ("urgency", "spearman")):
        assert measured[name]["metric"] == metric
        assert measured[name]["n"] == 24
        assert measured[name]["float32"] == pytest.approx(scores[name]["dev"][metric], abs=1e-6)
        assert -1 <= measured[name]["int8"] <= 1


# --- what can go wrong ------------------------------------------------------------------------


def test_a_graph_that_answers_differently_leaves_nothing(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_write_graph", lambda *given: None)
    monkeypatch.setattr(onnx_export.Graph, "__init__", lambda self, folder, name: None)
    monkeypatch.setattr(
        onnx_export.Graph, "outputs", lambda self, task, texts, sizes: np.full((64, 3), 9.0)
    )
    with pytest.raises(WorldError, match=r"^cannot export to onnx: outputs of task 'tickets'"):
        exporting.export(student, tmp_path / "out", format="onnx", task="tickets")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_before_anything_is_done(
    package: str, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as caught:
        exporting.export(student, tmp_path / "out", format="onnx")
    assert str(caught.value) == (
        f"cannot export to onnx: the package `{package}` is missing\n"
        "hint: pip install 'outshine[onnx]'"
    )


def test_int8_needs_dev_rows(student: Path, tmp_path: Path) -> None:
    shutil.copytree(student, tmp_path / "run")
    config = read_json(tmp_path / "run" / "config.json")
    for task in config["tasks"]:
        task["files"]["dev"] += ".gone"
    write_json(tmp_path / "run" / "config.json", config)
    with pytest.raises(UserError, match=r"tickets-dev\.csv\.gone: no such file") as caught:
        exporting.export(tmp_path / "run", tmp_path / "out", format="onnx", int8=True)
    assert caught.value.hint == "check the path"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_int8_is_for_onnx_alone(student: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        exporting.export(student, tmp_path / "out", int8=True)
    assert str(caught.value) == (
        "cannot export to hf with int8: expected format onnx\nhint: add `--format onnx`"
    )
