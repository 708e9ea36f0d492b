"""The built-in tasks: what they are, and the real files where they are at hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from outshine.cells import Tally
from outshine.errors import UserError
from outshine.glue_tasks import GLUE_TASKS, find_task, glue
from outshine.readers import read_rows

# Task -> (rows of train, of dev, rows of each class in train). The class counts tell swapped or
# misread labels; QQP, MNLI and QNLI are the samples of shared data, not the full sets.
COMPLETE = {
    "cola": (8551, 1043, (2528, 6023)),
    "sst2": (67349, 872, (29780, 37569)),
    "mrpc": (3668, 408, (1194, 2474)),
    "stsb": (5749, 1500, ()),
    "rte": (2490, 277, (1249, 1241)),
    "wnli": (635, 71, (323, 312)),
    "trec": (4952, 500, (81, 1143, 1060, 1103, 758, 807)),
}
METRICS = {
    "cola": ("matthews", "accuracy"),
    "sst2": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "stsb": ("spearman", "pearson"),
    "qqp": ("accuracy", "f1"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
    "trec": ("accuracy",),
}


def test_the_built_in_tasks_have_the_metrics_of_the_benchmark() -> None:
    assert {task.name: task.metrics for task in glue_on_the_hub()} == METRICS


def glue_on_the_hub() -> list:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OUTSHINE_GLUE_DIR", raising=False)
        return glue()


def test_tasks_on_the_hub_and_in_files_are_the_same_but_for_columns(tmp_path: Path) -> None:
    for folder in ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI", "TREC"):
        (tmp_path / folder).mkdir()
    (tmp_path / "MNLI/dev_mismatched.tsv").touch()
    for hub, local in zip(glue_on_the_hub(), glue(data_dir=tmp_path), strict=True):
        assert hub.hub
        assert not local.hub
        for field in ("name", "kind", "labels", "range", "metrics", "symmetric"):
            assert getattr(hub, field) == getattr(local, field)
        assert hub.files.keys() == local.files.keys()


def test_swapped_order_is_trained_for_mrpc_and_stsb_alone() -> None:
    assert [task.name for task in glue_on_the_hub() if task.symmetric] == ["mrpc", "stsb"]


def test_names_may_be_given_in_capitals_and_unknown_ones_get_a_did_you_mean() -> None:
    assert [task.name for task in glue("RTE", "MNLI")] == ["rte", "mnli"]
    with pytest.raises(UserError) as caught:
        find_task("mrcp")
    assert str(caught.value) == (
        "unknown task 'mrcp' (did you mean 'mrpc'?), expected one of "
        f"{', '.join(GLUE_TASKS)} or a path to a task TOML\n"
        "hint: `outshine tasks ls` lists the tasks"
    )


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        glue("rte", data_dir=tmp_path)
    assert str(caught.value) == (
        f"cannot read task 'rte': {tmp_path / 'RTE'} is missing, expected the official files there"
        "\nhint: set --glue-dir or OUTSHINE_GLUE_DIR to the folder that holds CoLA, RTE, ...; "
        "without it the hub is asked"
    )


def test_local_mnli_without_the_mismatched_dev_set_can_be_used_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "MNLI").mkdir()
    (task,) = glue("MNLI", data_dir=tmp_path)
    assert task.dev_splits == ("dev",)
    assert " ".join(capsys.readouterr().err.split()) == (
        f"note: mnli has no split dev_mismatched: {tmp_path / 'MNLI/dev_mismatched.tsv'} is missing"
    )


def test_find_task_reads_names_and_task_files(tickets: Path) -> None:
    assert find_task(str(tickets)).name == "tickets"
    with pytest.raises(UserError, match=r"cannot read the task file nowhere\.toml|no such file"):
        find_task("nowhere.toml")


@pytest.mark.parametrize("name", COMPLETE)
def test_real_files_have_the_published_rows_and_labels(glue_dir: str, name: str) -> None:
    (task,) = glue(name, data_dir=glue_dir)
    num_train, num_dev, classes = COMPLETE[name]
    tally = Tally()
    train, dev = (list(read_rows(task, split, tally)) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (num_train, num_dev)
    assert (tally.skipped, tally.unlabelled) == (0, 0)
    counts = Counter(row.gold for row in train)
    if classes:
        assert tuple(counts[i] for i in range(len(task.labels))) == classes
    else:
        assert (min(counts), max(counts)) == (0.0, 5.0)


@pytest.mark.parametrize("name", ["qqp", "mnli", "qnli"])
def test_real_samples_of_the_large_sets_have_every_label(glue_dir: str, name: str) -> None:
    (task,) = glue(name, data_dir=glue_dir)
    for split in ("train", "dev"):
        tally = Tally()
        counts = Counter(row.gold for row in read_rows(task, split, tally))
        assert (tally.skipped, tally.unlabelled) == (0, 0)
        assert sorted(counts) == list(range(len(task.labels)))
        # no label is rare in these sets
        assert min(counts.values()) > 0.25 * max(counts.values())


def test_mnli_reads_both_dev_sets_and_the_diagnostic_texts(glue_dir: str) -> None:
    (task,) = glue("mnli", data_dir=glue_dir)
    assert task.dev_splits == ("dev", "dev_mismatched")
    assert sum(1 for _ in read_rows(task, "dev_mismatched")) > 0
    assert sum(1 for _ in read_rows(task, "ax")) == 1104


@pytest.mark.parametrize(("name", "split", "count"), [("cola", "dev", 16), ("stsb", "dev", 6)])
def test_real_dev_rows_that_also_stand_in_train(
    glue_dir: str, name: str, split: str, count: int
) -> None:
    (task,) = glue(name, data_dir=glue_dir)
    train = {row.texts for row in read_rows(task, "train")}
    assert sum(row.texts in train for row in read_rows(task, split)) == count
