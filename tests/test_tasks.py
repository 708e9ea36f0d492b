"""Task files: what is read, and every problem of a file at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from outshine.errors import UserError
from outshine.tasks import Task, unique_tasks

HINT = "`outshine tasks show rte` shows a complete task; docs/own-tasks.md lists the keys"
WHOLE = """
name = "tickets"
kind = "classification"
text = ["subject", "body"]
label = "team"
labels = ["billing", "tech", "other"]
metrics = ["accuracy", "f1_macro"]
id = "ticket_id"
symmetric = false
[files]
train = "train.csv"
dev = "sub/dev.csv"
"""


def load(tmp_path: Path, text: str) -> Task:
    path = tmp_path / "tickets.toml"
    path.write_text(text, encoding="utf-8")
    return Task.load(path)


def refused(tmp_path: Path, text: str) -> list[str]:
    """The lines of the message, without the path that stands in each."""
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    path = str(tmp_path / "tickets.toml")
    assert caught.value.hint == HINT
    return caught.value.message.replace(path, "F").split("\n")


def test_a_complete_task_file_is_read(tmp_path: Path) -> None:
    task = load(tmp_path, WHOLE)
    assert task.name == "tickets"
    assert task.text == ("subject", "body")
    assert task.labels == ("billing", "tech", "other")
    assert task.primary_metric == "accuracy"
    assert task.files == {
        "train": str(tmp_path / "train.csv"),
        "dev": str(tmp_path / "sub" / "dev.csv"),
    }
    assert task.splits == ("train", "dev")


def test_paths_are_relative_to_the_task_file_and_not_to_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tickets.toml").write_text(WHOLE)
    monkeypatch.chdir(tmp_path.parent)
    task = Task.load(f"{tmp_path.name}/tickets.toml")
    assert task.files["train"] == str(tmp_path / "train.csv")


def test_a_minimal_task_has_the_kinds_first_metric_and_one_text(tmp_path: Path) -> None:
    task = load(tmp_path, 'name = "t"\ntext = "body"\nlabel = "y"\nlabels = ["a", "b"]')
    assert (task.kind, task.text, task.metrics) == ("classification", ("body",), ("accuracy",))
    task = load(
        tmp_path, 'name = "t"\nkind = "regression"\ntext = "body"\nlabel = "y"\nrange = [0, 5]'
    )
    assert (task.range, task.metrics) == ((0.0, 5.0), ("spearman",))


def test_a_hub_data_set_keeps_the_names_of_its_splits(tmp_path: Path) -> None:
    task = load(
        tmp_path,
        'name = "t"\ntext = "body"\nlabel = "y"\nlabels = ["a", "b"]\n'
        '[files]\nhub = "org/data"\nconfig = "plain"\ntrain = "train"\ndev = "validation"',
    )
    assert (task.hub, task.hub_config) == ("org/data", "plain")
    assert task.files == {"train": "train", "dev": "validation"}


def test_held_out_rows_are_a_dev_split_unless_one_is_given() -> None:
    fields = {"name": "t", "text": ("a",), "label": "y", "labels": ("p", "q"), "holdout": 5}
    assert Task(**fields, files={"train": "x.csv"}).splits == ("train", "dev")
    both = Task(**fields, files={"train": "x.csv", "dev": "y.csv"})
    assert both.splits == ("train", "dev")


def test_dev_splits_are_dev_and_those_named_after_it() -> None:
    files = dict.fromkeys(("train", "dev", "dev_mismatched", "test", "test_mismatched"), "x.csv")
    task = Task(name="t", text=("a",), label="y", labels=("p", "q"), files=files)
    assert task.dev_splits == ("dev", "dev_mismatched")


def test_tasks_are_immutable_and_equal_by_content() -> None:
    task = Task(name="t", text=("a",), label="y", labels=("p", "q"))
    assert task == Task(name="t", text=("a",), label="y", labels=("p", "q"))
    with pytest.raises(ValidationError, match="frozen"):
        task.name = "u"


def test_a_task_comes_back_from_plain_data() -> None:
    task = Task(name="t", kind="regression", text=("a", "b"), label="y", range=(0, 5))
    assert Task(**task.model_dump(mode="json")) == task
    assert task.without("text", "label") == {
        "name": "t",
        "kind": "regression",
        "range": [0.0, 5.0],
        "metrics": ["spearman"],
    }


def test_all_problems_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    text = 'name = "a b"\ntext = ["1", "2", "3"]\nlabl = "y"\nlabels = ["a", 2]\nholdout = -1'
    assert refused(tmp_path, text) == [
        "cannot read the task file F: 6 problems",
        "  name: 'a b', expected: String should match pattern '^[A-Za-z0-9_][A-Za-z0-9_.-]*$' (F)",
        "  text: ['1', '2', '3'], expected: Tuple should have at most 2 items after validation, "
        "not 3 (F)",
        "  label: missing (F)",
        "  labels.1: 2, expected: Input should be a valid string (F)",
        "  holdout: -1, expected: Input should be greater than or equal to 0 (F)",
        "  unknown key 'labl' (did you mean 'label'?) (F)",
    ]


BASE = 'name = "t"\ntext = ["a"]\nlabel = "y"\n'


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ('labels = ["a"]', ["labels: 1 given, expected two or more"]),
        ('labels = ["a", "b", "a"]', ["labels: a label stands twice, expected distinct labels"]),
        (
            'kind = "clasification"\nlabels = ["a", "b"]',
            [
                "kind: 'clasification' (did you mean 'classification'?), expected one of "
                "classification, regression"
            ],
        ),
        (
            'kind = "regression"',
            ['range: missing, expected range = [low, high] for kind = "regression"'],
        ),
        (
            'kind = "regression"\nrange = [5, 5]\nlabels = ["a", "b"]',
            [
                "range: [5.0, 5.0], expected two finite numbers, low < high",
                'labels: given, expected none for kind = "regression"',
            ],
        ),
        (
            'kind = "regression"\nrange = [0, inf]',
            ["range: [0.0, inf], expected two finite numbers, low < high"],
        ),
        (
            'kind = "regression"\nrange = [nan, 1]',
            ["range: [nan, 1.0], expected two finite numbers, low < high"],
        ),
        (
            'labels = ["a", "b"]\nrange = [0, 1]',
            ['range: given, expected none for kind = "classification"'],
        ),
        (
            'labels = ["a", "b", "c"]\nmetrics = ["f1", "acuracy", "pearson"]',
            [
                "metrics: 'acuracy' (did you mean 'accuracy'?), expected some of accuracy, f1, "
                "f1_macro, matthews",
                "metrics: 'pearson' does not fit kind = 'classification', expected some of "
                "accuracy, f1, f1_macro, matthews",
                'metrics: "f1" needs two labels, expected "f1_macro"',
            ],
        ),
        (
            'labels = ["a", "b"]\nsymmetric = true',
            ["symmetric: true with one text column, expected two"],
        ),
        (
            'labels = ["a", "b"]\nfiles = "train.csv"',
            ["files: 'train.csv', expected: Input should be a valid dictionary"],
        ),
        (
            'labels = ["a", "b"]\n[file]\ntrain = "x.csv"',
            ["unknown key 'file' (did you mean 'files'?)"],
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, problems: list[str]) -> None:
    lines = refused(tmp_path, BASE + text)
    if len(problems) == 1:
        assert lines == [f"cannot read the task file F: {problems[0]} (F)"]
    else:
        assert lines == [
            f"cannot read the task file F: {len(problems)} problems",
            *(f"  {problem} (F)" for problem in problems),
        ]


def test_a_file_that_is_no_toml_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "tickets.toml"
    with pytest.raises(UserError) as caught:
        load(tmp_path, 'name = "t"\ntext = [')
    assert str(caught.value) == (
        f"cannot read the task file {path}: Invalid value (at end of document), expected TOML "
        f"({path})\nhint: mend the syntax"
    )


def test_tasks_of_one_run_have_distinct_names() -> None:
    task = Task(name="t", text=("a",), label="y", labels=("p", "q"))
    assert unique_tasks([task]) == (task,)
    with pytest.raises(UserError) as caught:
        unique_tasks([task, task])
    assert str(caught.value) == (
        "cannot combine the tasks: t given twice, expected distinct names\n"
        "hint: give one of them another name"
    )
    with pytest.raises(UserError, match="cannot train: no task given, expected at least one"):
        unique_tasks([])
