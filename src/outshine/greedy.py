"""Which runs a greedy soup is made of, and what choosing so is worth on other rows.

N dev rows of a task, C outputs of its head. `members` are indices of runs.

Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves
accuracy without increasing inference time", ICML 2022, recipe 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from outshine.console import progress
from outshine.evaluation import halves, score
from outshine.metrics import compute
from outshine.tasks import Task, kind_of

Logits = Mapping[str, np.ndarray]  # task -> (N, C)
WAYS = ("soup", "best", "mean")
PARTS = (0, 1, 2)  # the halves of each task's dev rows, and all of them


@dataclass(frozen=True)
class Dev:
    """What chooses and judges.

    Attributes:
        tasks: The tasks.
        gold: Task -> (N,) gold, as `kinds.Kind.gold_values` gives it.
    """

    tasks: tuple[Task, ...]
    gold: Mapping[str, np.ndarray]

    @cached_property
    def _parts(self) -> dict[str, list[np.ndarray]]:
        """Task -> the rows of its two halves, and all of them."""
        sizes = {name: len(gold) for name, gold in self.gold.items()}
        return {name: [*halves(size), np.arange(size)] for name, size in sizes.items()}

    def values(self, logits: Logits, part: int) -> dict[str, dict[str, float]]:
        """Task -> its primary metric on one half of its rows (0 or 1), or on all (2)."""
        found = {}
        for task in self.tasks:
            rows = self._parts[task.name][part]
            predicted = kind_of(task).decode(task, logits[task.name][rows])
            found[task.name] = compute(task.metrics[:1], self.gold[task.name][rows], predicted)
        return found

    def score(self, logits: Logits, part: int) -> float:
        """The score on one half of every task's rows (0 or 1), or on all (2)."""
        value = score(self.tasks, self.values(logits, part))
        assert value is not None
        return value


def greedy(scores: Sequence[float], mixed: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """The members of the greedy soup, the best run first.

    Args:
        scores: Of each run alone; of equal ones the first given is tried first.
        mixed: Members -> score of the mean of their weights.
    """
    best, *others = sorted(range(len(scores)), key=lambda i: -scores[i])
    members: tuple[int, ...] = (best,)
    highest = scores[best]
    for candidate in others:
        found = mixed((*members, candidate))
        if found >= highest:
            members, highest = (*members, candidate), found
    return members


@dataclass(frozen=True)
class Choice:
    """Which runs are averaged, and what choosing so is worth. Scores and metrics are fractions.

    Attributes:
        members: Chosen by all of dev, the best run first.
        scores: Of each run alone, on all of dev.
        halves: Members chosen by each half of dev.
        tasks: Task -> its primary metric by each of WAYS, on rows that had no part in the choice.
        score: Likewise.
    """

    members: tuple[int, ...]
    scores: list[float]
    halves: tuple[tuple[int, ...], ...]
    tasks: dict[str, dict[str, float]]
    score: dict[str, float | None]


def choose(dev: Dev, alone: Sequence[Logits], mix: Callable[[tuple[int, ...]], Logits]) -> Choice:
    """Chooses by all of dev, and by each half what the other half judges.

    Args:
        dev: What chooses.
        alone: The dev logits of each run.
        mix: Members, ascending -> dev logits of the mean of their weights.
    """
    known = {frozenset([i]): logits for i, logits in enumerate(alone)}

    def mixed(members: tuple[int, ...]) -> Logits:
        key = frozenset(members)
        if key not in known:
            known[key] = mix(tuple(sorted(members)))
        return known[key]

    chosen, scores = [], []
    with progress("trying soups", len(PARTS) * (len(alone) - 1)) as bar:
        for part in PARTS:

            def tried(members: tuple[int, ...], part: int = part) -> float:
                found = dev.score(mixed(members), part)
                bar.advance(1)
                return found

            scores = [dev.score(logits, part) for logits in alone]
            chosen.append(greedy(scores, tried))
    *by_half, members = chosen
    judged: dict[str, list[dict[str, dict[str, float]]]] = {way: [] for way in WAYS}
    for half, taken in enumerate(by_half):
        judged["soup"].append(dev.values(mixed(taken), 1 - half))
        judged["best"].append(dev.values(alone[taken[0]], 1 - half))
        judged["mean"] += [dev.values(logits, 1 - half) for logits in alone]

    def mean(way: str, task: Task) -> float:
        return float(np.mean([values[task.name][task.primary_metric] for values in judged[way]]))

    return Choice(
        members=members,
        scores=scores,
        halves=tuple(by_half),
        tasks={task.name: {way: mean(way, task) for way in WAYS} for task in dev.tasks},
        score={
            way: score(dev.tasks, {t.name: {t.primary_metric: mean(way, t)} for t in dev.tasks})
            for way in WAYS
        },
    )
