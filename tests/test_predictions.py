"""Logits by example id come back as they were saved, and are not mistaken for others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outshine.errors import UserError
from outshine.files import map_arrays, write_arrays
from outshine.predictions import Predictions
from outshine.tasks import Task

TASK = Task(name="tickets", text=("body",), label="team", labels=("billing", "tech"))
DATA = "0123456789abcdef"
SAVED = Predictions(
    logits=np.array([[1, 2], [3, 4], [5, 6]], np.float32),
    ids=["a", "b/swap", "ü"],
    run="r1",
    task="tickets",
    version="1",
    labels=("billing", "tech"),
    data=DATA,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tickets-train.safetensors"
    SAVED.save(path)
    return path


def test_predictions_come_back_memory_mapped(path: Path) -> None:
    loaded = Predictions.load(path)
    assert isinstance(loaded.logits, np.memmap)
    np.testing.assert_array_equal(loaded.logits, SAVED.logits)
    assert replace(loaded, logits=SAVED.logits) == SAVED


def test_the_file_holds_what_the_contract_says(path: Path) -> None:
    arrays, header = map_arrays(path)
    assert arrays["logits"].dtype == np.float32
    assert arrays["offsets"].tolist() == [0, 1, 2, 3]
    assert header == {
        "format": 1,
        "run": "r1",
        "task": "tickets",
        "version": "1",
        "labels": ["billing", "tech"],
        "data": DATA,
    }


def test_take_joins_by_id_and_names_what_is_missing(path: Path) -> None:
    logits, missing = Predictions.load(path).take(["ü", "x", "a", "y"])
    assert missing == [1, 3]
    np.testing.assert_array_equal(logits[[0, 2]], [[5, 6], [1, 2]])
    assert np.isnan(logits[[1, 3]]).all()


def test_take_from_no_logits_at_all_misses_every_id() -> None:
    empty = replace(SAVED, logits=np.empty((0, 2), np.float32), ids=[])
    logits, missing = empty.take(["a", "b"])
    assert missing == [0, 1]
    assert logits.shape == (2, 2)


@given(
    known=st.lists(st.text(max_size=3), unique=True, max_size=8),
    asked=st.lists(st.text(max_size=3), max_size=12),
    data=st.data(),
)
def test_every_id_gets_its_own_row_whatever_the_order(
    known: list[str], asked: list[str], data: st.DataObject
) -> None:
    if known:  # else hardly any id is known
        asked = data.draw(st.permutations([*asked, *data.draw(st.lists(st.sampled_from(known)))]))
    rows = {example_id: [i, -i] for i, example_id in enumerate(known)}
    saved = np.array([*rows.values()], np.float32).reshape(-1, 2)
    logits, missing = replace(SAVED, logits=saved, ids=known).take(asked)
    wanted = [rows.get(example_id, [np.nan, np.nan]) for example_id in asked]
    np.testing.assert_array_equal(logits, np.array(wanted, np.float32).reshape(-1, 2))
    assert missing == [i for i, example_id in enumerate(asked) if example_id not in rows]


@pytest.mark.parametrize(
    ("task", "data", "found"),
    [
        ({"name": "urgency"}, DATA, "task tickets, expected urgency"),
        ({"version": "2"}, DATA, "version 1, expected 2"),
        ({"labels": ("tech", "billing")}, DATA, "labels billing, tech, expected tech, billing"),
        ({}, "f" * 64, "data fingerprint 0123456789ab, expected ffffffffffff"),
    ],
)
def test_logits_of_something_else_are_refused(
    path: Path, task: dict, data: str, found: str
) -> None:
    loaded = Predictions.load(path)
    loaded.check(path, TASK, DATA)
    with pytest.raises(UserError) as caught:
        loaded.check(path, TASK.model_copy(update=task), data)
    assert str(caught.value) == (
        f"cannot use the logits in {path}: {found}\n"
        "hint: they were computed for something else: remove the file to have them computed "
        "again, or choose another teacher"
    )


@pytest.mark.parametrize("width", [1, 3])
def test_logits_of_another_width_are_refused(path: Path, width: int) -> None:
    with pytest.raises(UserError) as caught:
        replace(SAVED, logits=np.ones((3, width), np.float32)).check(path, TASK, DATA)
    assert str(caught.value) == (
        f"cannot use the logits in {path}: outputs {width}, expected 2\n"
        "hint: they were computed for something else: remove the file to have them computed "
        "again, or choose another teacher"
    )


def test_other_formats_and_other_arrays_are_refused(tmp_path: Path, path: Path) -> None:
    arrays, header = map_arrays(path)
    other = tmp_path / "other.safetensors"
    write_arrays(other, arrays, header | {"format": 9})
    with pytest.raises(UserError) as caught:
        Predictions.load(other)
    assert str(caught.value) == (
        f"cannot read {other}: format 9, expected 1\n"
        "hint: it was written by another version of outshine: remove it"
    )
    cases = [
        ({"weights": np.zeros(3)}, {}),
        (arrays, {}),
        (arrays, {key: value for key, value in header.items() if key != "run"}),
        (arrays | {"logits": arrays["logits"][:2]}, header),
        (arrays | {"logits": arrays["logits"][:, 0].copy()}, header),
    ]
    for content, metadata in cases:
        write_arrays(other, content, metadata)
        with pytest.raises(UserError) as caught:
            Predictions.load(other)
        assert str(caught.value) == (
            f"cannot read {other}: other arrays, expected logits by example id ({other})\n"
            "hint: no run has written this file, or it is damaged: remove it and let it be made "
            "again"
        )
