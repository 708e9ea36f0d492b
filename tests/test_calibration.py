"""Temperatures: fitted on dev, judged on rows that had no part in them, and used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from outshine import calibration
from outshine.calibration import calibrate, calibration_error, fit_temperature
from outshine.cli import app
from outshine.errors import UserError
from outshine.files import write_json
from outshine.kinds import CLASSIFICATION, softmax
from outshine.predicting import load
from outshine.predictions import Predictions
from outshine.readers import read_rows
from outshine.runs import Run


@pytest.fixture
def run(student: Path, tmp_path: Path) -> Run:
    """A copy of the student."""
    return Run(Path(shutil.copytree(student, tmp_path / "run")))


def drawn(count: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and gold that follows their distribution at a temperature."""
    rng = np.random.default_rng(3)
    logits = 3 * rng.standard_normal((count, 3))
    gold = [rng.choice(3, p=p) for p in softmax(logits, temperature)]
    return logits, np.array(gold)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_gold_is_found(temperature: float) -> None:
    logits, gold = drawn(20_000, temperature)
    assert fit_temperature(CLASSIFICATION, logits, gold) == pytest.approx(temperature, rel=0.05)


def test_rows_without_a_mistake_ask_for_no_temperature_below_the_bound() -> None:
    logits = np.eye(3)[[0, 1, 2, 0]]
    found = fit_temperature(CLASSIFICATION, logits, logits.argmax(axis=1))
    assert found == pytest.approx(0.1, rel=1e-3)


def test_calibration_error_matches_a_count_by_hand() -> None:
    # two rows at 0.9 (one right), two at 0.6 (both right)
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.6, 0.4]])
    gold = np.array([0, 1, 1, 0])
    by_hand = (2 * abs(0.5 - 0.9) + 2 * abs(1.0 - 0.6)) / 4
    assert calibration_error(probs, gold) == pytest.approx(by_hand)
    assert calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0.0
    # in one bin for all rows, over- and under-confidence cancel
    assert calibration_error(probs, gold, 1) == pytest.approx(abs(0.75 - 0.75))


def test_calibrate_lowers_the_error_of_an_overconfident_model(
    run: Run, capsys: pytest.CaptureFixture
) -> None:
    path = run.predictions_path("tickets", "dev")
    saved = Predictions.load(path)
    loud = 50 * np.asarray(saved.logits)
    Predictions(**vars(saved) | {"logits": loud}).save(path)
    found = calibrate(run)
    assert found == json.loads(run.calibration_path.read_text(encoding="utf-8"))
    assert found["bins"] == 15 and found["run"] == run.info()["id"]
    assert found["tasks"].keys() == {"tickets", "duplicate"}
    tickets = found["tasks"]["tickets"]
    assert tickets["n"] == 24 and len(tickets["halves"]) == 2
    assert tickets["temperature"] == pytest.approx(10.0, rel=1e-3)
    note = "note: the temperature of tickets ends at the bound 10: dev asks for one beyond it"
    assert note in capsys.readouterr().err.splitlines()
    assert tickets["loss"]["after"] < tickets["loss"]["before"]
    assert tickets["calibration_error"]["after"] < tickets["calibration_error"]["before"]


def test_each_half_is_judged_by_the_temperature_of_the_other(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[np.ndarray] = []

    def fit(kind: object, logits: np.ndarray, gold: np.ndarray) -> float:
        fitted.append(logits)
        return {1: 0.5, 2: 4.0}.get(len(fitted), 1.0)

    monkeypatch.setattr(calibration, "fit_temperature", fit)
    found = calibrate(run)["tasks"]["tickets"]
    assert found["halves"] == [0.5, 4.0]
    saved = Predictions.load(run.predictions_path("tickets", "dev"))
    (task, *_) = run.tasks()
    gold = np.array([row.gold for row in read_rows(task, "dev")], np.int64)
    temperature = np.array(
        [4.0 if (fitted[0] == row).all(axis=1).any() else 0.5 for row in saved.logits]
    )
    wanted = calibration_error(softmax(saved.logits / temperature[:, None]), gold)
    assert found["calibration_error"]["after"] == pytest.approx(wanted)


def test_a_temperature_that_helps_no_other_rows_is_not_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(calibration, "fit_temperature", lambda *_: 0.01)
    found = calibrate(run)["tasks"]["tickets"]
    assert found["loss"]["after"] > found["loss"]["before"]
    assert found["temperature"] == 1.0
    note = "note: no temperature helps tickets on rows that it was not fitted on"
    assert note in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(("tried", "shown"), [(0.01, "before"), (10.0, "after")])
def test_the_table_tells_the_error_of_the_temperature_that_is_kept(
    tried: float, shown: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run.predictions_path("tickets", "dev")
    saved = Predictions.load(path)
    Predictions(**vars(saved) | {"logits": 50 * np.asarray(saved.logits)}).save(path)
    monkeypatch.setattr(calibration, "fit_temperature", lambda *_: tried)
    told = CliRunner().invoke(app, ["calibrate", str(run.path)])
    (cells,) = (x.split() for x in told.stdout.splitlines() if x.split()[:1] == ["tickets"])
    error = json.loads(run.calibration_path.read_text())["tasks"]["tickets"]["calibration_error"]
    assert error["before"] != pytest.approx(error["after"], abs=0.01)
    assert cells[-3:] == [f"{100 * error[when]:.1f}" for when in ("before", shown)] + ["24"]


def test_load_uses_the_temperatures_when_asked(run: Run) -> None:
    with pytest.raises(UserError) as caught:
        load(run, device="cpu", calibrated=True)
    assert str(caught.value) == (
        f"cannot load the run {run.path} calibrated: no temperatures, expected "
        f"{run.calibration_path}\nhint: make them: `outshine calibrate {run.path}`"
    )
    found = calibrate(run)["tasks"]
    assert load(run, device="cpu").temperatures == {}
    assert load(run, device="cpu", calibrated=True).temperatures == {
        name: content["temperature"] for name, content in found.items()
    }


def test_temperatures_of_another_run_are_refused(run: Run) -> None:
    write_json(run.calibration_path, calibrate(run) | {"run": "another"})
    with pytest.raises(UserError) as caught:
        load(run, device="cpu", calibrated=True)
    assert str(caught.value) == (
        f"cannot load the run {run.path} calibrated: temperatures of run another, expected "
        f"{run.info()['id']} ({run.calibration_path})\n"
        f"hint: make them again: `outshine calibrate {run.path}`"
    )


@pytest.mark.parametrize(
    ("tasks", "found"),
    [
        ([1], "tasks [1]"),
        ({"tickets": 3}, "tickets 3"),
        ({"tickets": {}}, "tickets {}"),
        ({"tickets": {"temperature": 1.5}, "duplicate": {"temperature": 0}}, None),
        ({"tickets": {"temperature": -2.0}}, None),
        ({"tickets": {"temperature": "2"}}, None),
        ({"tickets": {"temperature": True}}, None),
        ({"tickets": {"temperature": float("nan")}}, None),
        ({"tickets": {"temperature": float("inf")}}, None),
        ({"tickets": {"temperature": 1e-60}}, None),
        ({"tickets": {"temperature": 10**40}}, None),
    ],
)
def test_temperatures_that_divide_nothing_are_refused(
    run: Run, tasks: Any, found: str | None
) -> None:
    content = {"run": run.info()["id"], "bins": 15, "tasks": tasks}
    run.calibration_path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(run, device="cpu", calibrated=True)
    found = found or " ".join(map(str, list(tasks.items())[-1]))
    assert str(caught.value) == (
        f'cannot load the run {run.path} calibrated: {found}, expected {{"temperature": a finite '
        f"number above 0}} ({run.calibration_path})\n"
        f"hint: make them again: `outshine calibrate {run.path}`"
    )


def test_logits_that_were_not_kept_are_computed(run: Run) -> None:
    before = calibrate(run)
    shutil.rmtree(run.path / "predictions")
    again = calibrate(run, device="cpu")
    assert again["tasks"]["tickets"]["temperature"] == pytest.approx(
        before["tasks"]["tickets"]["temperature"], rel=1e-3
    )


def test_a_dry_run_fits_and_writes_nothing(run: Run) -> None:
    wanted = calibrate(run)
    run.calibration_path.unlink()
    assert calibrate(run, dry_run=True) == wanted
    assert not run.calibration_path.exists()
    shutil.rmtree(run.path / "predictions")
    with pytest.raises(UserError) as caught:
        calibrate(run, dry_run=True)
    path = run.predictions_path("tickets", "dev")
    assert str(caught.value) == (
        f"cannot calibrate the run {run.path} without writing: no dev logits of tickets, expected "
        f"{path}\nhint: make them: `outshine eval {run.path}`, or leave --dry-run out"
    )
    assert not (run.path / "predictions").exists()


def test_a_run_without_classes_has_nothing_to_calibrate(
    run: Run, capsys: pytest.CaptureFixture
) -> None:
    config = run.config()
    urgency = [task for task in config["tasks"] if task["name"] == "urgency"]
    write_json(run.path / "config.json", config | {"tasks": urgency})
    with pytest.raises(UserError) as caught:
        calibrate(run)
    assert str(caught.value) == (
        f"cannot calibrate the run {run.path}: no task has classes and dev rows, expected one\n"
        "hint: values of a regression need no temperature"
    )
    assert capsys.readouterr().err == "note: urgency has no classes and is left as it is\n"
