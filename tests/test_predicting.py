"""Answers for raw text: which tasks answer which row, what they say, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import outshine
from conftest import write_tickets
from outshine import predicting
from outshine.data import encode
from outshine.errors import UserError
from outshine.evaluation import table_logits
from outshine.files import read_json, write_json
from outshine.kinds import softmax
from outshine.predicting import Predictor, load
from outshine.predictions import Predictions
from outshine.readers import read_rows
from outshine.runs import Run
from outshine.tasks import Task
from outshine.texts import row_texts

ROW = {"body": "refund my invoice", "left": "a crash", "right": "the login"}


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


def test_answers_equal_the_logits_of_the_table(varied: Run, model: Predictor) -> None:
    for task in varied.tasks():
        table = encode(task, "dev", model.tokenizer, model.max_length)
        saved = Predictions.load(varied.predictions_path(task.name, "dev"))
        np.testing.assert_allclose(table_logits(model.forward, table), saved.logits, atol=1e-5)
    task = varied.tasks()[0]
    texts = [row.texts[0] for row in read_rows(task, "dev")]
    answers = model.predict(texts, tasks=["tickets"])
    saved = Predictions.load(varied.predictions_path("tickets", "dev"))
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


def test_the_id_is_else_that_of_the_first_task_whose_own_files_name_its_column(
    model: Predictor,
) -> None:
    tickets, urgency, duplicate = model.tasks
    named = replace(
        model,
        tasks=(
            tickets,
            urgency.model_copy(update={"id": "number"}),
            duplicate.model_copy(update={"id": "case"}),
        ),
    )
    texts = {"text": "refund", "text_a": "a", "text_b": "b"}
    rows = [{"number": 7, "case": 8}, {"case": 8}, {"id": None, "number": 7}, {"other": 1}]
    found = named.predict([row | texts for row in rows])
    assert [answer.get("id", "none") for answer in found] == [7, 8, None, "none"]
    chosen = named.predict([row | texts for row in rows], tasks=["duplicate"])
    assert [answer.get("id", "none") for answer in chosen] == [8, 8, None, "none"]


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


# --- Python's own rows ------------------------------------------------------------------------


def test_numpy_arrays_and_lists_are_rows(model: Predictor) -> None:
    texts, pairs = ["refund", "my login"], [("a crash", "the login"), ("thanks", "a crash")]
    by_text, by_pair = model.predict(texts), model.predict(pairs)
    for rows in (np.array(texts), np.array(texts, object), tuple(texts), iter(texts)):
        assert model.predict(rows) == by_text
    for rows in (np.array(pairs), np.array(pairs, object), [list(pair) for pair in pairs]):
        assert model.predict(rows) == by_pair


def test_predict_proba_has_the_labels_in_their_order(
    model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "ROWS_PER_CHUNK", 2)
    texts = ["refund my invoice", "thanks", "crash now", "my login", "a"]
    found = model.predict_proba(np.array(texts), "tickets")
    assert found.shape == (5, 3) and found.dtype == np.float64
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    answers = model.predict(texts, tasks=["tickets"])
    (task,) = model.choose(["tickets"])
    for row, answer in zip(found, answers, strict=True):
        assert dict(zip(task.labels, row.tolist(), strict=True)) == answer["tickets"]["probs"]
    assert model.predict_proba([], "tickets").shape == (0, 3)


def test_a_cut_text_is_flagged_and_only_that(model: Predictor) -> None:
    long = "now " * 200
    found = model.predict(["refund", long, {"id": 1, "text_a": "a", "text_b": long}])
    assert "truncated" not in found[0]
    assert found[1]["truncated"] is True and list(found[1])[-1] == "truncated"
    assert found[2]["truncated"] is True and found[2]["id"] == 1
    # exactly as long as the encoder takes: nothing is lost
    words = " ".join(["now"] * (model.max_length - 2))
    assert "truncated" not in model.predict([words])[0]
    assert "truncated" in model.predict([f"{words} now"])[0]


def test_a_temperature_changes_probabilities_and_no_label(model: Predictor) -> None:
    texts = ["refund my invoice", "thanks", "crash now"]
    warm = replace(model, temperatures={"tickets": 2.0})
    logits = np.stack(
        [row["tickets"] for row in warm.logits([{"tickets": (text,)} for text in texts])]
    )
    np.testing.assert_allclose(warm.predict_proba(texts, "tickets"), softmax(logits, 2.0))
    np.testing.assert_allclose(model.predict_proba(texts, "tickets"), softmax(logits))
    for before, after in zip(model.predict(texts), warm.predict(texts), strict=True):
        assert before["tickets"]["label"] == after["tickets"]["label"]
        assert before["tickets"]["probs"] != after["tickets"]["probs"]
        assert before["urgency"] == after["urgency"]


class Frame:
    columns = ("body",)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model: model.predict("refund"),
            "cannot predict: one str, expected a list of rows\n"
            "hint: put it into a list: model.predict([...])",
        ),
        (
            lambda model: model.predict({"body": "refund"}),
            "cannot predict: one dict, expected a list of rows\n"
            "hint: put it into a list: model.predict([...])",
        ),
        (
            lambda model: model.predict(Frame()),
            "cannot predict: a Frame, expected texts, pairs or mappings\n"
            'hint: give its rows: frame.to_dict("records"), or one column as a list',
        ),
        (
            lambda model: model.predict(None),
            "cannot predict: one NoneType, expected a list of rows\n"
            "hint: put it into a list: model.predict([...])",
        ),
        (
            lambda model: model.predict(np.array("refund")),
            "cannot predict: one ndarray, expected a list of rows\n"
            "hint: put it into a list: model.predict([...])",
        ),
        (
            lambda model: model.predict([np.array("refund")]),
            "cannot answer row 1: ndarray, expected a text, a pair of texts or an object\n"
            'hint: for example {"text": "..."}',
        ),
        (
            lambda model: model.predict([{1: "refund", None: "x"}]),
            "cannot answer row 1: columns 1, None, expected those of a task (tickets: body; "
            "urgency: body; duplicate: left + right), or text, or text_a and text_b\n"
            "hint: rename the columns",
        ),
        (
            lambda model: model.predict(["half \ud83d"]),
            "cannot answer row 1: column 'text' is 'half \\ud83d', expected Unicode, which half a "
            "surrogate pair is not\nhint: mend or remove the row",
        ),
        (
            lambda model: model.predict(["refund"], tasks=[]),
            "no task named, expected some of tickets, urgency, duplicate\n"
            "hint: leave `tasks` out for all of them",
        ),
        (
            lambda model: model.predict_proba(["refund"]),
            "cannot give probabilities: no task named, expected one of tickets, duplicate\n"
            "hint: name it: model.predict_proba(rows, task)",
        ),
        (
            lambda model: replace(model, tasks=model.tasks[1:2]).predict_proba(["refund"]),
            "cannot give probabilities: no task named, expected a task with classes\n"
            "hint: name it: model.predict_proba(rows, task)",
        ),
        (
            lambda model: model.predict_proba(["refund"], "urgency"),
            "cannot give probabilities of task 'urgency': it has no classes, expected one of "
            "tickets, duplicate\nhint: `predict` gives its values",
        ),
        (
            lambda model: model.predict_proba(["refund"], "urgencyy"),
            "unknown task 'urgencyy' (did you mean 'urgency'?), expected some of tickets, "
            "urgency, duplicate\nhint: these are the tasks that the model was trained on",
        ),
        (
            lambda model: model.predict(np.array([1.5])),
            "cannot answer row 1: float64, expected a text, a pair of texts or an object\n"
            'hint: for example {"text": "..."}',
        ),
    ],
    ids=[
        "a text",
        "a row",
        "a frame",
        "None",
        "an array of one",
        "an array in a list",
        "names that are no texts",
        "half a surrogate pair",
        "no task",
        "several tasks with classes",
        "no task with classes",
        "no classes",
        "unknown task",
        "numbers",
    ],
)
def test_what_is_no_list_of_rows_or_no_task_with_classes_is_refused(
    call: Callable[[Predictor], Any], message: str, model: Predictor
) -> None:
    with pytest.raises(UserError) as caught:
        call(model)
    assert str(caught.value) == message


def test_one_task_may_be_named_without_a_list_and_the_only_one_with_classes_not_at_all(
    model: Predictor,
) -> None:
    texts = ["refund my invoice", "thanks"]
    assert model.predict(texts, tasks="tickets") == model.predict(texts, tasks=["tickets"])
    one = replace(model, tasks=model.tasks[:2])
    np.testing.assert_array_equal(one.predict_proba(texts), model.predict_proba(texts, "tickets"))


def test_an_empty_cell_is_as_good_as_none(model: Predictor) -> None:
    pair = {"left": "a crash", "right": "the login"}
    for empty in ("", "  ", None, float("nan")):
        rows = [ROW | {"right": empty}, pair | {"body": empty}, {"body": empty, "text": "thanks"}]
        found = model.predict(rows)
        assert [list(answer) for answer in found] == [
            ["tickets", "urgency"], ["duplicate"], ["tickets", "urgency"]
        ]  # fmt: skip
        assert found == model.predict([{"body": ROW["body"]}, pair, "thanks"])
        with pytest.raises(UserError) as caught:
            model.predict([ROW | {"right": empty}], tasks=["tickets", "duplicate"])
        assert str(caught.value) == (
            f"cannot answer row 1: column 'right' is {empty!r}, expected a text that is not "
            "empty\nhint: mend or remove the row"
        )


def rename_a_task(config: dict[str, Any]) -> None:
    config["tasks"][0]["name"] = "letters"


def drop_a_label(config: dict[str, Any]) -> None:
    config["tasks"][0]["labels"].pop()


def move_the_range(config: dict[str, Any]) -> None:
    config["tasks"][1]["range"] = [1.0, 6.0]


HEADS = "tickets (billing, tech, other); urgency (0 to 5); duplicate (different, same)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            rename_a_task,
            f"tasks {HEADS.replace('tickets', 'letters')}, expected those of its model, {HEADS} "
            "(RUN/config.json)",
        ),
        (
            drop_a_label,
            f"tasks {HEADS.replace(', other', '')}, expected those of its model, {HEADS} "
            "(RUN/config.json)",
        ),
        (
            move_the_range,
            f"tasks {HEADS.replace('0 to 5', '1 to 6')}, expected those of its model, {HEADS} "
            "(RUN/config.json)",
        ),
        (
            lambda config: config["settings"].pop("max_length"),
            "max_length None, expected a number (RUN/config.json: settings)",
        ),
        (
            lambda config: config.update(settings="lr=1e-4"),
            "max_length None, expected a number (RUN/config.json: settings)",
        ),
    ],
    ids=["a renamed task", "a label fewer", "another range", "no max_length", "no settings"],
)
def test_a_run_whose_config_is_damaged_is_refused(
    change: Callable[[dict[str, Any]], Any], message: str, student: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(student, tmp_path / "run"))
    config = read_json(run / "config.json")
    change(config)
    write_json(run / "config.json", config)
    with pytest.raises(UserError) as caught:
        load(run, device="cpu")
    assert str(caught.value) == (
        f"cannot load the run {run}: {message.replace('RUN', str(run))}\n"
        "hint: the file was changed: train the run again"
    )


def test_a_long_cell_is_not_shown_whole(model: Predictor) -> None:
    with pytest.raises(UserError) as caught:
        model.predict([{"text": [1] * 1000}])
    assert len(str(caught.value)) < 250


# --- refusals ---------------------------------------------------------------------------------

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
