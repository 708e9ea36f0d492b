"""The queue: what shares a pass, who waits, and what one caller can do to the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from outshine.micro_batching import MicroBatcher, Pass

Batcher = MicroBatcher[str, str]


class Model:
    """Answers in capitals, pass by pass, when the test lets it."""

    def __init__(self) -> None:
        self.passes: list[list[str]] = []
        self.may_end = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def run(self, items: list[str]) -> list[str]:
        self.passes.append(items)
        self.begun.release()
        assert self.may_end.acquire(timeout=10)
        if "poison" in items:
            raise ValueError("poisoned")
        return [item.upper() for item in items]

    async def has_begun(self) -> None:
        """Waits until the next pass runs."""
        assert await asyncio.to_thread(self.begun.acquire, timeout=10)


def with_batcher(
    test: Callable[[Batcher, Model], Awaitable[Any]], max_tokens: int = 100, max_wait_s: float = 0.0
) -> tuple[Model, list[Pass]]:
    """Runs a test in an event loop; returns what the model saw and what was told of it."""
    model, told = Model(), list[Pass]()

    async def main() -> None:
        batcher: Batcher = MicroBatcher(model.run, max_tokens, max_wait_s, told.append)
        try:
            async with asyncio.timeout(20):
                await test(batcher, model)
        finally:
            model.may_end.release(100)
            await batcher.close()

    asyncio.run(main())
    return model, told


def ask(batcher: Batcher, *items: str, tokens: int = 1) -> asyncio.Task[list[str]]:
    return asyncio.create_task(batcher.submit(items, [tokens] * len(items)))


def test_what_arrives_during_a_pass_shares_the_next_one() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = ask(batcher, "a")
        await model.has_begun()
        others = [ask(batcher, item) for item in "bcd"]
        model.may_end.release(2)
        assert await asyncio.gather(first, *others) == [["A"], ["B"], ["C"], ["D"]]

    model, told = with_batcher(test)
    assert model.passes == [["a"], ["b", "c", "d"]]
    assert [(done.num_jobs, done.num_items, done.num_tokens) for done in told] == [
        (1, 1, 1),
        (3, 3, 3),
    ]
    assert all(done.seconds > 0 for done in told)


def test_a_pass_holds_at_most_its_budget_of_tokens_and_a_longer_item_comes_alone() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.may_end.release(100)
        asked = [ask(batcher, item, tokens=4) for item in "abc"]
        asked += [ask(batcher, "long", tokens=11), ask(batcher, "d", tokens=4)]
        await asyncio.gather(*asked)

    model, _ = with_batcher(test, max_tokens=10)
    assert model.passes == [["a", "b"], ["c"], ["long"], ["d"]]


def test_answers_come_in_the_order_of_the_items_from_several_passes() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.may_end.release(100)
        assert await ask(batcher, *"abcdefg") == list("ABCDEFG")

    assert with_batcher(test, max_tokens=3)[0].passes == [["a", "b", "c"], ["d", "e", "f"], ["g"]]


def test_a_small_job_does_not_wait_for_all_of_a_large_one() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        large = ask(batcher, *(f"large{i}" for i in range(8)))
        await model.has_begun()
        small = ask(batcher, "small")
        model.may_end.release(2)
        assert await small == ["SMALL"]
        assert not large.done()
        model.may_end.release(10)
        await large

    assert with_batcher(test, max_tokens=2)[0].passes[1] == ["large2", "small"]


def test_a_caller_that_is_cancelled_leaves_the_queue() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = ask(batcher, "a")
        await model.has_begun()
        gone, stays = ask(batcher, "gone"), ask(batcher, "b")
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        model.may_end.release(2)
        assert await asyncio.gather(first, stays) == [["A"], ["B"]]
        assert gone.cancelled()

    assert with_batcher(test)[0].passes == [["a"], ["b"]]


def test_a_caller_that_leaves_during_its_pass_hurts_nobody() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        gone, stays = ask(batcher, "gone"), ask(batcher, "b")
        await model.has_begun()
        gone.cancel()
        model.may_end.release(2)
        assert await stays == ["B"]
        assert await ask(batcher, "c") == ["C"]

    assert with_batcher(test)[0].passes == [["gone", "b"], ["c"]]


def test_an_error_reaches_those_in_its_pass_and_the_next_pass_runs() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = ask(batcher, "a")
        await model.has_begun()
        bad = [ask(batcher, "poison", "more"), ask(batcher, "b")]
        model.may_end.release(3)
        assert await first == ["A"]
        for task in bad:
            with pytest.raises(ValueError, match=r"^poisoned$"):
                await task
        assert await ask(batcher, "c") == ["C"]

    with_batcher(test)


def test_a_pass_with_too_few_answers_fails_and_the_next_one_runs() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.may_end.release(10)
        right = batcher._run
        batcher._run = lambda items: right(items)[1:]
        for task in [ask(batcher, "a"), ask(batcher, "b", "c")]:
            with pytest.raises(ValueError, match=r"^zip\(\) argument 2 is shorter"):
                await task
        batcher._run = right
        assert await ask(batcher, "d") == ["D"]

    _, told = with_batcher(test)
    assert [done.num_items for done in told] == [1]


def test_an_error_of_what_is_told_of_passes_reaches_those_in_the_pass_alone() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.may_end.release(10)
        told = batcher._on_pass

        def fail(_: Pass) -> None:
            raise RuntimeError("cannot count")

        batcher._on_pass = fail
        with pytest.raises(RuntimeError, match=r"^cannot count$"):
            await ask(batcher, "a")
        batcher._on_pass = told
        assert await ask(batcher, "b") == ["B"]

    with_batcher(test)


def test_an_idle_model_begins_at_once_whatever_the_longest_wait() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.may_end.release(10)
        for item in "abc":  # after a pass of one job there is nobody to wait for either
            async with asyncio.timeout(5):
                assert await ask(batcher, item) == [item.upper()]

    with_batcher(test, max_wait_s=60)


def test_behind_a_pass_of_two_the_first_to_come_back_waits_for_the_other() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.may_end.release(10)
        await asyncio.gather(ask(batcher, "a"), ask(batcher, "b"))
        again = ask(batcher, "a")
        await asyncio.sleep(0.05)
        assert len(model.passes) == 1
        await asyncio.gather(again, ask(batcher, "b"))

    assert with_batcher(test, max_wait_s=60)[0].passes == [["a", "b"], ["a", "b"]]


def test_it_waits_no_longer_than_it_may() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.may_end.release(10)
        await asyncio.gather(ask(batcher, "a"), ask(batcher, "b"))
        assert await ask(batcher, "a") == ["A"]

    assert with_batcher(test, max_wait_s=0.05)[0].passes == [["a", "b"], ["a"]]


def test_nobody_is_left_waiting_when_the_last_one_leaves_during_the_wait() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        model.may_end.release(10)
        await asyncio.gather(ask(batcher, "a"), ask(batcher, "b"))
        gone = ask(batcher, "gone")
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.1)
        assert await ask(batcher, "c") == ["C"]

    assert with_batcher(test, max_wait_s=0.05)[0].passes == [["a", "b"], ["c"]]


def test_closing_cancels_those_who_still_wait() -> None:
    async def main() -> None:
        model = Model()
        batcher: Batcher = MicroBatcher(model.run, 100, 0)
        in_pass = ask(batcher, "a")
        await model.has_begun()
        waiting = ask(batcher, "b")
        await asyncio.sleep(0)
        model.may_end.release(2)
        await batcher.close()
        await asyncio.wait({in_pass, waiting}, timeout=10)
        assert in_pass.cancelled()
        assert waiting.cancelled()

    asyncio.run(main())
