"""Soups: weights are averaged, runs that do not fit are refused, and what is written is a run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import outshine
from conftest import write_duplicate, write_tickets, write_urgency
from outshine import soups
from outshine.errors import UserError
from outshine.files import write_json
from outshine.greedy import Choice
from outshine.model import load_model
from outshine.predictions import Predictions
from outshine.runs import Run
from outshine.soups import fill_with_mean, preview_soup, soup
from outshine.verification import run_outputs
from studies import study_text, write_study
from test_cli import outshine as command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> list[Run]:
    """Three seeds of a run on tickets and urgency, the second with the tasks in another order."""
    folder = tmp_path_factory.mktemp("soups")
    tasks = [
        outshine.Task.load(write(folder / "tasks")) for write in (write_tickets, write_urgency)
    ]
    write_duplicate(folder / "tasks")
    cfg = outshine.TrainConfig(
        encoder=str(encoder), max_steps=6, batch_size=8, lr=1e-3, device="cpu"
    )
    return [
        outshine.train(tasks[::order], cfg, seed=seed, out=folder / f"r{seed}")
        for seed, order in ((1, 1), (2, -1), (3, 1))
    ]


@pytest.fixture
def runs(trained: list[Run], tmp_path: Path) -> list[Run]:
    """Copies of them."""
    return [Run(Path(shutil.copytree(run.path, tmp_path / run.path.name))) for run in trained]


def weights(run: Run) -> dict[str, np.ndarray]:
    model, _, _ = load_model(run.model_dir)
    return {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}


def chosen(members: tuple[int, ...]) -> Callable[..., Choice]:
    """A choice without trying."""
    values = {"soup": 0.5, "best": 0.4, "mean": 0.3}
    tasks = dict.fromkeys(("tickets", "urgency"), values)
    return lambda *_: Choice(members, [0.2, 0.3, 0.1], ((1,), members), tasks, dict(values))


def refused(runs: list[Run], out: Path) -> str:
    with pytest.raises(UserError) as caught:
        soup(runs, out=out)
    assert not out.exists() or out in [run.path for run in runs]
    with pytest.raises(UserError) as dry:
        preview_soup(runs, out=out)
    assert str(dry.value) == str(caught.value)
    return str(caught.value)


def test_averaged_weights_are_the_mean_of_those_of_the_runs(runs: list[Run]) -> None:
    model, _, _ = load_model(runs[0].model_dir)
    fill_with_mean(model, runs)
    given = [weights(run) for run in runs]
    for name, tensor in model.named_parameters():
        wanted = np.mean([of_run[name] for of_run in given], axis=0)
        np.testing.assert_allclose(tensor.detach().numpy(), wanted, rtol=1e-5, atol=1e-7)
    heads = [of_run["heads.task-tickets.weight"] for of_run in given]
    assert np.abs(heads[0] - heads[1]).max() > 1e-3  # the runs do differ


def test_a_soup_of_one_has_the_weights_of_that_run(runs: list[Run]) -> None:
    model, _, _ = load_model(runs[0].model_dir)
    fill_with_mean(model, [runs[1]])
    wanted = weights(runs[1])
    assert all(torch.equal(p, torch.tensor(wanted[n])) for n, p in model.named_parameters())


def test_what_is_written_is_a_complete_run_that_says_what_it_is_made_of(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soups, "choose", chosen((1, 0)))
    made = soup(runs, out=tmp_path / "soup", device="cpu")
    found, given = weights(made), [weights(run) for run in runs[:2]]
    for name, tensor in found.items():
        wanted = np.mean([of_run[name] for of_run in given], axis=0)
        np.testing.assert_allclose(tensor, wanted, rtol=1e-5, atol=1e-7)
    facts = made.info()["soup"]
    assert [(r["seed"], r["weight"], r["score"]) for r in facts["runs"]] == [
        (2, 0.5, 0.3),
        (1, 0.5, 0.2),
        (3, 0.0, 0.1),
    ]
    assert facts["runs"][0]["run"] == str(runs[1].path)
    ids = [run.info()["id"] for run in runs]
    assert [run["id"] for run in facts["runs"]] == [ids[1], ids[0], ids[2]]
    assert facts["score"] == {"soup": 0.5, "best": 0.4, "mean": 0.3}
    values = {"soup": 0.5, "best": 0.4, "mean": 0.3}
    assert facts["tasks"] == {
        "tickets": {"metric": "accuracy", "n": 24} | values,
        "urgency": {"metric": "spearman", "n": 24} | values,
    }
    assert facts["halves"] == [
        {"soup": [ids[1]], "best": ids[1]},
        {"soup": [ids[1], ids[0]], "best": ids[1]},
    ]
    assert made.info()["id"] not in ids
    assert made.info()["seed"] == 2 and made.config()["settings"]["seed"] == 2
    assert made.info()["steps"] == 12
    assert made.metrics() == {
        name: {"dev": value}
        for name, value in outshine.evaluate(made, device="cpu")["tasks"].items()
    }
    assert not (made.path / ".lock").exists()


def test_the_teachers_of_a_soup_are_those_of_all_runs_in_it(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soups, "choose", chosen((1, 0)))
    for run, teachers in zip(runs, (["a"], ["b", "a"], ["c"]), strict=True):
        config = run.config() | {"teachers": {"tickets": teachers}}
        write_json(run.path / "config.json", config)
    made = soup(runs, out=tmp_path / "soup", device="cpu")
    assert made.config()["teachers"] == {"tickets": ["b", "a"]}  # not those of the third


def test_a_soup_predicts_teaches_and_is_exported(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soups, "choose", chosen((0, 2)))
    made = soup(runs, out=tmp_path / "soup", device="cpu")
    predictor = outshine.load(made, device="cpu")
    tickets = predictor.choose(["tickets"])[0]
    texts = [("my invoice please",), ("login error again",)]
    logits = Predictions.load(made.predictions_path("tickets", "dev")).logits
    assert run_outputs(predictor, tickets, texts).shape == (2, 3) and np.isfinite(logits).all()
    outshine.export(made, tmp_path / "hf", format="hf")
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert (
        "* The weights are a mean: of the runs with the seeds 1, 3 out of 3. The dev rows of the "
        "scores chose them. Chosen so by other dev rows, the score is 50.0; 40.0 for the best run, "
        "30.0 for the runs' mean.\n" in card
    )
    (task,) = [task for task in made.tasks() if task.name == "tickets"]
    cfg = outshine.TrainConfig(**made.config()["settings"] | {"max_steps": 1})
    taught = outshine.train([task], cfg, teachers={"tickets": made}, out=tmp_path / "taught")
    assert taught.is_complete


def test_the_soup_scores_no_less_on_dev_than_the_best_run(runs: list[Run], tmp_path: Path) -> None:
    made = soup(runs, out=tmp_path / "soup", device="cpu")
    facts, tasks = made.info()["soup"], made.tasks()
    scores = [run["score"] for run in facts["runs"]]
    assert scores == sorted(scores, reverse=True)
    dev = {name: splits["dev"] for name, splits in made.metrics().items()}
    assert soups.score(tasks, dev) >= max(scores) - 1e-6
    assert sum(run["weight"] for run in facts["runs"]) == pytest.approx(1.0)
    assert {half["best"] for half in facts["halves"]} <= {run["id"] for run in facts["runs"]}
    assert all(half["soup"][0] == half["best"] for half in facts["halves"])


def test_dev_logits_that_a_run_did_not_keep_are_computed(runs: list[Run], tmp_path: Path) -> None:
    wanted = soup(runs, out=tmp_path / "soup", device="cpu").info()["soup"]
    path = runs[1].predictions_path("urgency", "dev")
    path.unlink()
    found = soup(runs, out=tmp_path / "again", device="cpu").info()["soup"]
    assert found["score"] == pytest.approx(wanted["score"]) and path.exists()


def test_a_task_without_two_dev_rows_has_no_part_in_the_choice(
    runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = runs[0].metrics()
    metrics["urgency"]["dev"]["n"] = 1
    write_json(runs[0].path / "metrics.json", metrics)
    made = soup(runs, out=tmp_path / "soup", device="cpu")
    assert made.info()["soup"]["tasks"].keys() == {"tickets"}
    note = "note: urgency has no two dev rows, and no part in the choice"
    assert note in capsys.readouterr().err.splitlines()


def test_force_replaces_a_complete_run(runs: list[Run], tmp_path: Path) -> None:
    out = tmp_path / "soup"
    soup(runs[:2], out=out, device="cpu")
    assert refused(runs, out=runs[2].path) == (
        f"cannot write the soup {runs[2].path}: it is one of the runs that are averaged\n"
        "hint: choose another --out"
    )
    with pytest.raises(UserError, match=r"it is already complete"):
        soup(runs, out=out)
    stale = out / "predictions" / "other-dev.safetensors"
    stale.write_bytes(b"")
    made = soup(runs, out=out, device="cpu", force=True)
    assert len(made.info()["soup"]["runs"]) == 3 and not stale.exists()


def test_an_interrupted_training_is_not_written_over(runs: list[Run], tmp_path: Path) -> None:
    out = Run(Path(shutil.copytree(runs[0].path, tmp_path / "begun")))
    (out.path / "run.json").unlink()
    out.checkpoint_path.parent.mkdir()
    out.checkpoint_path.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        soup(runs, out=out.path)
    assert str(caught.value) == (
        f"cannot write the soup {out.path}: a training was interrupted there, expected a new "
        "folder\nhint: choose another --out, or give up that training with --force"
    )
    assert soup(runs, out=out.path, device="cpu", force=True).is_complete
    assert not out.checkpoint_path.exists()


# --- what is refused --------------------------------------------------------------------------


def test_one_run_makes_no_soup(runs: list[Run], tmp_path: Path) -> None:
    assert refused(runs[:1], tmp_path / "soup") == (
        "cannot make a soup: 1 given, expected two or more runs\n"
        "hint: name runs that differ in their seed"
    )


def test_a_run_is_not_averaged_with_itself(runs: list[Run], tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(runs[0].path, tmp_path / "copy")))
    for again in (copy, runs[0]):
        assert refused([runs[0], again], tmp_path / "soup") == (
            f"cannot make a soup: {again.path} is the same run as {runs[0].path}, expected "
            "different ones\nhint: name each run once"
        )


def test_a_run_without_weights_is_refused(runs: list[Run], tmp_path: Path) -> None:
    shutil.rmtree(runs[1].model_dir)
    assert refused(runs, tmp_path / "soup") == (
        f"cannot make a soup of {runs[1].path}: it kept no weights, expected {runs[1].model_dir}\n"
        'hint: train it with keep = "all"; in a study file, too'
    )


def change(run: Run, **settings: Any) -> None:
    config = run.config()
    write_json(run.path / "config.json", config | {"settings": config["settings"] | settings})


def without_urgency(run: Run) -> None:
    config = run.config()
    kept = [task for task in config["tasks"] if task["name"] != "urgency"]
    write_json(run.path / "config.json", config | {"tasks": kept})


def other_dev_rows(run: Run) -> None:
    info = run.info()
    info["data"]["urgency"]["dev"] = "0" * 64
    write_json(run.path / "run.json", info)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (without_urgency, "tasks tickets, expected tickets, urgency"),
        (lambda run: change(run, encoder="another"), "encoder another, expected {encoder}"),
        (lambda run: change(run, pooling="mean"), "pooling mean, expected auto"),
        (lambda run: change(run, max_length=64), "max_length 64, expected 128"),
        (lambda run: change(run, init="random"), "init random of seed 2, expected encoder"),
        (lambda run: change(run, init="teachers"), "init teachers {{}}, expected encoder"),
        (lambda run: change(run, init="runs/x"), "init runs/x, expected encoder"),
        (other_dev_rows, "other dev rows of urgency, or read in another way"),
    ],
)
def test_runs_that_do_not_fit_together_are_refused(
    runs: list[Run], encoder: Path, tmp_path: Path, damage: Callable[[Run], None], found: str
) -> None:
    damage(runs[1])
    assert refused(runs, tmp_path / "soup") == (
        f"cannot make a soup of {runs[0].path} and {runs[1].path}: "
        f"{found.format(encoder=encoder)}\nhint: the mean of weights needs runs of the same tasks, "
        "dev rows, encoder, pooling and start"
    )


def test_random_encoders_of_different_seeds_are_refused(runs: list[Run], tmp_path: Path) -> None:
    for run in runs:
        change(run, init="random")
    assert "init random of seed 2, expected random of seed 1\n" in refused(runs, tmp_path / "soup")


def test_without_dev_rows_there_is_no_choice(runs: list[Run], tmp_path: Path) -> None:
    write_json(runs[0].path / "metrics.json", {})
    assert refused(runs, tmp_path / "soup") == (
        "cannot make a soup: no task that counts in scores has two dev rows, expected one that "
        "has\nhint: the choice needs dev rows: give the task a dev file or `holdout`, and train "
        "again"
    )


# --- the command ------------------------------------------------------------------------------


def test_a_dry_run_shows_the_order_and_writes_nothing(runs: list[Run], tmp_path: Path) -> None:
    out = tmp_path / "soup"
    words = ["soup", *(str(run.path) for run in runs), "--out", str(out)]
    facts = json.loads(command(*words, "--dry-run", "--json").stdout)
    assert not out.exists()
    made = json.loads(command(*words, "--json", "--device", "cpu").stdout)
    assert facts["out"] == made["out"] == str(out)
    order = [(run["id"], pytest.approx(run["score"], abs=1e-6)) for run in made["runs"]]
    assert [(run["id"], run["score"]) for run in facts["runs"]] == order
    assert {key: made[key] for key in made if key != "out"} == Run(out).info()["soup"]


def test_the_command_shows_the_choice_and_the_judgement(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soups, "choose", chosen((1, 0)))
    words = ["soup", *(str(run.path) for run in runs), "--out", str(tmp_path / "soup")]
    shown = [line.split() for line in command(*words).stdout.splitlines()]
    assert [str(runs[1].path), "yes", "2", "30.0"] in shown
    assert [str(runs[2].path), "no", "3", "10.0"] in shown
    assert ["tickets", "accuracy", "50.0", "40.0", "30.0", "24"] in shown
    assert ["score", "mean", "50.0", "40.0", "30.0"] in shown


# --- soups of a study -------------------------------------------------------------------------


def test_the_groups_of_a_study_are_disjoint_and_are_compared_with_their_runs(
    encoder: Path, tmp_path: Path
) -> None:
    keys = 'seeds = 5\nkeep = "all"'
    outshine.run_study(write_study(tmp_path, study_text(encoder, keys, arms='["multi", "single"]')))
    script = [sys.executable, Path(__file__).parent.parent / "studies" / "soups.py"]
    words = [tmp_path / "tiny", "multi", "--size", "2", "--device", "cpu"]
    done = subprocess.run([*script, *words], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert [group["seeds"] for group in found["groups"]] == ["1-2", "3-4"]
    made = [Run(tmp_path / "tiny" / "soups" / f"multi-seeds{s}") for s in ("1-2", "3-4")]
    used = [{run["seed"] for run in run.info()["soup"]["runs"]} for run in made]
    assert used == [{1, 2}, {3, 4}]
    for way in ("best", "mean"):
        gaps = [group["soup"] - group[way] for group in found["groups"]]
        assert found[f"soup minus {way}"]["n"] == 2
        assert found[f"soup minus {way}"]["mean"] == pytest.approx(np.mean(gaps), abs=0.01)
    for arm, size, message in (
        ("single", "2", "cannot make soups of 'single': several runs per seed, expected one"),
        ("multi", "6", "cannot make soups of 'multi': no group of 6 finished seeds"),
    ):
        words = [tmp_path / "tiny", arm, "--size", size]
        done = subprocess.run([*script, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stderr.startswith(f"{message}\nhint: ")
