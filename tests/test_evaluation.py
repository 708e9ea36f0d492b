"""Logits of tables, metrics, and the score."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import outshine
from outshine.batches import Rows
from outshine.data import encode
from outshine.errors import UserError
from outshine.evaluation import evaluate, score, table_logits
from outshine.forward import Forward, load_forward
from outshine.planning import prepare
from outshine.predicting import Predictor
from outshine.runs import Run
from outshine.tasks import Task


def test_some_rows_of_a_table_have_the_logits_that_they_have_among_all(
    varied: Run, model: Predictor
) -> None:
    table = encode(varied.tasks()[2], "dev", model.tokenizer, model.max_length)
    rows = np.array([7, 0, 23, 7])
    told: list[int] = []
    some = table_logits(model.forward, table, rows, told.append)
    np.testing.assert_allclose(some, table_logits(model.forward, table)[rows], atol=1e-5)
    assert sum(told) == 4


# --- eval -----------------------------------------------------------------------------------


def task(name: str, metric: str = "accuracy") -> Task:
    return Task(name=name, text=("a",), label="y", labels=("p", "q"), metrics=(metric, "f1"))


def test_a_pass_without_memory_is_halved_and_the_smaller_budget_is_kept(
    varied: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward, tokenizer = load_forward(varied, "cpu", "fp32")
    table = encode(varied.tasks()[0], "dev", tokenizer, 128)
    wanted = table_logits(forward, table)
    room, pooled = int(table.lengths_of(np.arange(len(table))).sum()) // 3, Forward.pooled
    sizes = []

    def scarce(self: Forward, rows: Rows) -> torch.Tensor:
        sizes.append(len(rows.tokens))
        if len(rows.tokens) > room:
            raise torch.OutOfMemoryError("made up")
        return pooled(self, rows)

    monkeypatch.setattr(Forward, "pooled", scarce)
    assert table_logits(forward, table) == pytest.approx(wanted, abs=1e-5)
    assert [size > room for size in sizes[:3]] == [True, True, False]
    assert capsys.readouterr().err.splitlines() == [
        f"note: cpu is out of memory: {sizes[0] // 2} tokens per pass from here",
        f"note: cpu is out of memory: {sizes[1] // 2} tokens per pass from here",
    ]
    sizes.clear()
    table_logits(forward, table)  # does not try the large passes again
    assert max(sizes) <= room


def test_a_single_row_without_memory_is_an_error(
    varied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_self: Forward, _rows: Rows) -> torch.Tensor:
        raise torch.OutOfMemoryError("made up")

    forward, tokenizer = load_forward(varied, "cpu", "fp32")
    table = encode(varied.tasks()[0], "dev", tokenizer, 128)
    monkeypatch.setattr(Forward, "pooled", none)
    with pytest.raises(torch.OutOfMemoryError, match="made up"):
        table_logits(forward, table)


def test_score_is_the_mean_of_the_primary_metrics_and_leaves_wnli_out() -> None:
    tasks = [task("cola", "matthews"), task("rte"), task("wnli")]
    metrics = {
        "cola": {"matthews": 0.5, "f1": 0.9},
        "rte": {"accuracy": 0.7, "f1": 0.1},
        "wnli": {"accuracy": 0.1, "f1": 0.1},
    }
    assert score(tasks, metrics) == pytest.approx(0.6)
    assert score(tasks, {name: metrics[name] for name in ("rte", "wnli")}) == pytest.approx(0.7)
    assert score([task("wnli")], {"wnli": metrics["wnli"]}) is None


def test_evaluate_equals_what_training_wrote_and_adds_other_splits(varied: Run) -> None:
    written = varied.metrics()
    found = evaluate(varied, device="cpu")
    assert found["tasks"] == {name: splits["dev"] for name, splits in written.items()}
    primaries = [found["tasks"][t.name][t.primary_metric] for t in varied.tasks()]
    assert found["score"] == pytest.approx(np.mean(primaries))
    on_train = evaluate(varied, "train", device="cpu")
    assert on_train["tasks"]["tickets"]["n"] == 48
    assert varied.metrics()["tickets"].keys() == {"dev", "train"}
    assert varied.metrics()["tickets"]["dev"] == written["tickets"]["dev"]


def test_a_split_without_labels_is_refused(varied: Run) -> None:
    for split in ("test", "deev"):
        with pytest.raises(UserError) as caught:
            evaluate(varied, split)
        assert str(caught.value) == (
            f"cannot evaluate on split {split!r}: no task has labels there, expected one of dev, "
            "train\nhint: `outshine predict` answers rows without labels"
        )


def test_evaluation_leaves_the_model_in_the_mode_it_was_in(varied: Run) -> None:
    cfg = outshine.TrainConfig(**varied.config()["settings"])
    plan = prepare(varied.tasks()[:1], cfg, None)
    for training in (True, False):
        plan.forward.model.train(training)
        table_logits(plan.forward, plan.dev["tickets", "dev"])
        assert plan.forward.model.training is training
