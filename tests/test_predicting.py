"""Answers for raw text: which tasks answer which row, what they say, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import outshine
from conftest import write_duplicate, write_tickets, write_urgency
from outshine import predicting
from outshine.data import encode
from outshine.errors import UserError
from outshine.evaluation import table_logits
from outshine.kinds import softmax
from outshine.predicting import Predictor, load, row_texts
from outshine.predictions import Predictions
from outshine.readers import read_rows
from outshine.tasks import Task

ROW = {"body": "refund my invoice", "left": "a crash", "right": "the login"}


@pytest.fixture(scope="module")
def run(make_encoder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on tickets, urgency and duplicate whose answers differ from row to row."""
    folder = tmp_path_factory.mktemp("run")
    makers = (write_tickets, write_urgency, write_duplicate)
    tasks = [outshine.Task.load(make(folder / "tasks")) for make in makers]
    encoder = str(make_encoder("bert", initializer_range=0.2))
    cfg = outshine.TrainConfig(encoder=encoder, max_steps=3, batch_size=8, device="cpu")
    return outshine.train(tasks, cfg, out=folder / "run")


@pytest.fixture(scope="module")
def model(run: Any) -> Predictor:
    return load(run, device="cpu")


def test_all_heads_in_one_pass_equal_each_head_alone(model: Predictor) -> None:
    rows = [ROW, ROW | {"body": "thanks"}, ROW | {"left": "the login"}]
    together = model.predict(rows)
    for i, row in enumerate(rows):
        assert list(together[i]) == ["tickets", "urgency", "duplicate"]
        for name in together[i]:
            alone = model.predict([row], tasks=[name])[0]
            assert list(alone) == [name]
            found, wanted = together[i][name], alone[name]
            assert found.keys() == wanted.keys()
            if name == "urgency":
                assert found["value"] == pytest.approx(wanted["value"], abs=1e-5)
            else:
                assert found["label"] == wanted["label"]
                assert found["probs"] == pytest.approx(wanted["probs"], abs=1e-6)
    assert together[0]["tickets"] != together[1]["tickets"]
    assert together[0]["duplicate"] != together[2]["duplicate"]


def test_tasks_with_the_same_texts_share_one_encoding(
    model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []
    real = predicting.Forward.pooled

    def pooled(self: Any, rows: Any) -> torch.Tensor:
        lengths.append(len(rows.lengths))
        return real(self, rows)

    monkeypatch.setattr(predicting.Forward, "pooled", pooled)
    model.predict([ROW, ROW, {"body": "thanks"}])
    assert sum(lengths) == 3  # two bodies and one pair; tickets and urgency read the same


def test_answers_equal_the_logits_of_the_table(run: Any, model: Predictor) -> None:
    for task in run.tasks():
        table = encode(task, "dev", model.tokenizer, model.max_length)
        saved = Predictions.load(run.predictions_path(task.name, "dev"))
        np.testing.assert_allclose(table_logits(model.forward, table), saved.logits, atol=1e-5)
    task = run.tasks()[0]
    texts = [row.texts[0] for row in read_rows(task, "dev")]
    answers = model.predict(texts, tasks=["tickets"])
    saved = Predictions.load(run.predictions_path("tickets", "dev"))
    probs = [list(answer["tickets"]["probs"].values()) for answer in answers]
    np.testing.assert_allclose(probs, softmax(saved.logits), atol=1e-5)
    labels = [task.labels[i] for i in saved.logits.argmax(axis=1)]
    assert [answer["tickets"]["label"] for answer in answers] == labels


def test_texts_go_by_column_or_by_alias(model: Predictor) -> None:
    by_column = model.predict([{"body": "refund"}, {"left": "a", "right": "the"}])
    for rows in (
        ["refund", ("a", "the")],
        [{"text": "refund"}, {"text_a": "a", "text_b": "the"}],
        [{"text": "refund"}, ["a", "the"]],
    ):
        assert model.predict(rows) == by_column
    assert [list(answer) for answer in by_column] == [["tickets", "urgency"], ["duplicate"]]
    # a task's own column wins over the alias
    both = model.predict([{"text": "thanks", "body": "refund"}, ("a", "the")])
    assert both == by_column


def test_ids_are_handed_through_and_tasks_left_out_are_named(model: Predictor) -> None:
    rows = [{"id": 7, "text": "refund"}, {"id": "x", "text_a": "a", "text_b": "b"}, "help"]
    answers = list(model.stream(rows))
    assert [answer.get("id") for answer, _ in answers] == [7, "x", None]
    left_out = [sorted(names) for _, names in answers]
    assert left_out == [["duplicate"], ["tickets", "urgency"], ["duplicate"]]


def test_the_order_of_pairs_matters(model: Predictor) -> None:
    one, other = model.predict([("a crash", "the login"), ("the login", "a crash")])
    assert one["duplicate"]["probs"] != other["duplicate"]["probs"]


def test_many_rows_are_answered_in_order_and_in_bounded_pieces(
    model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{'now ' * (i % 7)}refund" for i in range(23)]
    whole = model.predict(rows, tasks=["urgency"])
    monkeypatch.setattr(predicting, "ROWS_PER_CHUNK", 4)
    taken: list[int] = []

    def source() -> Any:
        for i, row in enumerate(rows):
            taken.append(i)
            yield row

    answers = model.stream(source(), ["urgency"])
    first, _ = next(answers)
    assert len(taken) == 4
    pieces = [first, *(answer for answer, _ in answers)]
    for a, b in zip(whole, pieces, strict=True):
        assert a["urgency"]["value"] == pytest.approx(b["urgency"]["value"], abs=1e-5)
    assert model.predict([]) == []


@pytest.mark.parametrize("pooling", ["auto", "cls", "mean"])
@pytest.mark.parametrize("family", ["bert", "mpnet", "modernbert"])
def test_answers_have_no_randomness(
    family: str, pooling: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    task = Task.load(write_tickets(tmp_path))
    encoder = str(checkpoint(family))
    cfg = outshine.TrainConfig(encoder=encoder, max_steps=1, device="cpu", pooling=pooling)
    loaded = load(outshine.train([task], cfg, out=tmp_path / "run", dropout=0.5), device="cpu")
    assert loaded.predict(["refund my invoice"]) == loaded.predict(["refund my invoice"])


ERRORS: list[tuple[Any, Any, str]] = [
    (
        "refund",
        ["ticket"],
        "unknown task 'ticket' (did you mean 'tickets'?), expected some of tickets, urgency, "
        "duplicate\nhint: these are the tasks that the model was trained on",
    ),
    (
        {"text_a": "a", "text_b": "b"},
        ["tickets"],
        "cannot answer row 2 for task 'tickets': columns text_a, text_b, expected body or text\n"
        "hint: rename the columns, or leave the task out",
    ),
    (
        {"boddy": "a"},
        None,
        "cannot answer row 2: columns boddy, expected those of a task (tickets: body; urgency: "
        "body; duplicate: left + right), or text, or text_a and text_b\nhint: rename the columns",
    ),
    (
        {"body": "  "},
        None,
        "cannot answer row 2: column 'body' is '  ', expected a text that is not empty\n"
        "hint: mend or remove the row",
    ),
    (
        {"left": "a", "right": None},
        None,
        "cannot answer row 2: column 'right' is None, expected a text that is not empty\n"
        "hint: mend or remove the row",
    ),
    (
        17,
        None,
        "cannot answer row 2: int, expected a text, a pair of texts or an object\n"
        'hint: for example {"text": "..."}',
    ),
    (
        ["a", "b", "c"],
        None,
        "cannot answer row 2: list, expected a text, a pair of texts or an object\n"
        'hint: for example {"text": "..."}',
    ),
]


@pytest.mark.parametrize(("row", "names", "message"), ERRORS)
def test_a_row_that_cannot_be_answered_is_refused_with_its_number(
    row: Any, names: Any, message: str, model: Predictor
) -> None:
    with pytest.raises(UserError) as caught:
        model.predict(["fine", row], tasks=names)
    assert str(caught.value) == message


def test_a_row_with_more_columns_is_answered_by_every_task_that_can() -> None:
    tasks = [Task(name=n, text=(n,), label="y", labels=("p", "q")) for n in "ab"]
    found = row_texts({"a": "one", "b": "two", "c": 3}, tasks, 1, strict=False)
    assert found == {"a": ("one",), "b": ("two",)}
