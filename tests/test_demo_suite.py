"""The suite that is shipped with the package: sizes, classes, and how varied its texts are."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from outshine.cells import Tally
from outshine.demo import TASKS, demo_tasks
from outshine.readers import Row, read_rows
from outshine.tasks import Task

SIZES = {
    "intent": (600, 240),
    "sentiment": (350, 210),
    "urgency": (160, 200),
    "duplicate": (260, 200),
    "answers": (230, 200),
}
TASK_BY_NAME = {task.name: task for task in demo_tasks()}


def rows(task: Task, split: str) -> list[Row]:
    return list(read_rows(task, split))


def words(text: str) -> list[str]:
    return re.sub(r"[^\w\s]", "", text.lower()).split()


def four_grams(found: list[Row]) -> set[tuple[str, ...]]:
    texts = [words(text) for row in found for text in row.texts]
    return {tuple(text[i : i + 4]) for text in texts for i in range(len(text) - 3)}


@pytest.mark.parametrize("name", TASKS)
def test_every_row_is_read(name: str) -> None:
    for split, size in zip(("train", "dev"), SIZES[name], strict=True):
        tally = Tally()
        assert len(list(read_rows(TASK_BY_NAME[name], split, tally))) == size
        assert (tally.skipped, tally.unlabelled, tally.num_problems) == (0, 0, 0)


def test_sizes_are_unequal_and_about_1500_in_all() -> None:
    train = [size for size, _ in SIZES.values()]
    assert len(set(train)) == 5
    assert 1400 <= sum(train) <= 1700
    assert all(dev >= 200 for _, dev in SIZES.values())


@pytest.mark.parametrize("name", [name for name in TASKS if TASK_BY_NAME[name].labels])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_every_class_has_rows(name: str, split: str) -> None:
    task = TASK_BY_NAME[name]
    counts = Counter(row.gold for row in rows(task, split))
    assert len(counts) == len(task.labels)
    assert max(counts.values()) <= 2 * min(counts.values())


def test_there_are_at_least_8_intents_and_3_sentiments() -> None:
    assert len(TASK_BY_NAME["intent"].labels) >= 8
    assert len(TASK_BY_NAME["sentiment"].labels) == 3


@pytest.mark.parametrize("split", ["train", "dev"])
def test_urgency_fills_its_range(split: str) -> None:
    gold = [row.gold for row in rows(TASK_BY_NAME["urgency"], split)]
    assert (min(gold), max(gold)) == (0.0, 10.0)
    assert len(set(gold)) == 21


@pytest.mark.parametrize("name", TASKS)
def test_dev_shares_few_4_grams_with_train(name: str) -> None:
    dev, train = (four_grams(rows(TASK_BY_NAME[name], split)) for split in ("dev", "train"))
    assert len(dev & train) / len(dev) < 0.04


@pytest.mark.parametrize("name", TASKS)
def test_texts_open_in_many_ways(name: str) -> None:
    """Template-filled text repeats its sentence frames; written text seldom opens alike."""
    found = [row for split in ("train", "dev") for row in rows(TASK_BY_NAME[name], split)]
    openings = Counter(tuple(words(row.texts[0])[:3]) for row in found)
    assert len(openings) / len(found) > 0.85
    assert max(openings.values()) <= 8


@pytest.mark.parametrize("name", TASKS)
def test_no_row_stands_twice(name: str) -> None:
    found = [row.texts for split in ("train", "dev") for row in rows(TASK_BY_NAME[name], split)]
    seen = Counter(tuple(" ".join(words(text)) for text in texts) for texts in found)
    assert [texts for texts, count in seen.items() if count > 1] == []
