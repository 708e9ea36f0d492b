"""The queue in front of a model: requests that arrive together share one pass.

Whoever asks submits a job of one or more items and waits. One thread runs passes, one after the
other; each takes what has arrived, up to a budget of tokens, one item of every job in turn, so
that a job of many items does not make a small one wait for all of them.

A pass begins at once when the model was idle. Only behind a pass of several jobs does the next
one wait a moment: those who were answered together tend to come back together.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Pass:
    """One pass as it was: its jobs, items, tokens and seconds."""

    num_jobs: int
    num_items: int
    num_tokens: int
    seconds: float


@dataclass(eq=False)
class _Job(Generic[Item, Answer]):
    """Items that one caller waits for."""

    items: Sequence[Item]
    tokens: Sequence[int]
    done: asyncio.Future[list[Answer]]
    answers: dict[int, Answer] = field(default_factory=dict)
    taken: int = 0

    def put(self, place: int, answer: Answer) -> None:
        self.answers[place] = answer
        if len(self.answers) == len(self.items) and not self.done.done():
            self.done.set_result([self.answers[i] for i in range(len(self.items))])

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class MicroBatcher(Generic[Item, Answer]):
    """Collects items into passes; made, used and closed within one event loop."""

    def __init__(
        self,
        run: Callable[[list[Item]], list[Answer]],
        max_tokens: int,
        max_wait_s: float,
        on_pass: Callable[[Pass], None] = lambda _: None,
    ) -> None:
        """Starts to work.

        Args:
            run: Answers the items of one pass, in a thread of its own.
            max_tokens: Most tokens of one pass (a longer item comes alone).
            max_wait_s: Longest wait behind a pass for those whom it answered.
            on_pass: Told of every pass that answered.
        """
        self._run, self._max_tokens, self._max_wait_s = run, max_tokens, max_wait_s
        self._on_pass = on_pass
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[_Job[Item, Answer]] = deque()  # those with items not taken yet
        self._open: set[_Job[Item, Answer]] = set()  # those without all answers
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model")
        self._worker = asyncio.create_task(self._work())

    async def submit(self, items: Sequence[Item], tokens: Sequence[int]) -> list[Answer]:
        """The items' answers, in their order; a caller that is cancelled leaves the queue.

        Args:
            items: One or more.
            tokens: Tokens of each.

        Raises:
            Exception: What `run` raised in a pass with one of these items.
        """
        job: _Job[Item, Answer] = _Job(items, tokens, self._loop.create_future())
        self._open.add(job)
        self._jobs.append(job)
        self._arrived.set()
        try:
            return await job.done
        finally:
            self._open.remove(job)
            if job in self._jobs:
                self._jobs.remove(job)

    async def close(self) -> None:
        """Stops; whoever still waits is cancelled."""
        self._worker.cancel()
        for job in self._open:
            job.done.cancel()
        await asyncio.to_thread(self._thread.shutdown)

    async def _work(self) -> None:
        last, ended = 0, -math.inf
        while True:
            await self._company(last, ended + self._max_wait_s)
            batch = self._take()
            begin = time.monotonic()
            last = len({id(job) for job, _ in batch})
            try:
                items = [job.items[place] for job, place in batch]
                answers = await self._loop.run_in_executor(self._thread, self._run, items)
                answered = list(zip(batch, answers, strict=True))
                tokens = sum(job.tokens[place] for job, place in batch)
                self._on_pass(Pass(last, len(batch), tokens, time.monotonic() - begin))
                for (job, place), answer in answered:
                    job.put(place, answer)
            except Exception as error:  # whatever it is, the next pass may do better
                for job, _ in batch:
                    job.fail(error)
            ended = time.monotonic()

    async def _company(self, wanted: int, until: float) -> None:
        """Waits for a job, and until a time for as many jobs as are wanted."""
        while len(self._jobs) < max(1, wanted):
            left = until - time.monotonic() if self._jobs else None
            if left is not None and left <= 0:
                return
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrived.wait()

    def _take(self) -> list[tuple[_Job[Item, Answer], int]]:
        """Takes items for one pass, one of each job in turn, until the next one does not fit."""
        batch: list[tuple[_Job[Item, Answer], int]] = []
        room = self._max_tokens
        while self._jobs:
            job = self._jobs[0]
            if batch and job.tokens[job.taken] > room:
                break
            batch.append((job, job.taken))
            room -= job.tokens[job.taken]
            job.taken += 1
            self._jobs.rotate(-1)
            if job.taken == len(job.items):
                self._jobs.pop()
        return batch
