"""A model behind a queue: what a request may cost, how it is answered, what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from outshine.devices import trim_memory
from outshine.limits import Limits
from outshine.micro_batching import MicroBatcher, Pass
from outshine.predicting import Encoded, Predictor, cut_texts, flag
from outshine.texts import distinct_texts, row_id, row_texts

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Giving memory back takes milliseconds, in which requests wait.
PASSES_PER_TRIM = 256
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class RefusedError(Exception):
    """A request that is not answered: status code, message, hint, and headers."""

    def __init__(self, status: int, message: str, hint: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.hint = status, message, hint
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Metrics:
    """What Prometheus reads from `/metrics`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "outshine_requests", "Requests answered.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "outshine_request_seconds",
            "From the head of a request to the end of its answer.",
            ("route",),
            registry=self.registry,
            buckets=SECONDS,
        )
        self.queue = Gauge(
            "outshine_queue_texts", "Texts accepted, not answered.", registry=self.registry
        )
        self.pass_texts = Histogram(
            "outshine_pass_texts",
            "Texts of one pass through the encoder.",
            registry=self.registry,
            buckets=TEXTS,
        )
        self.pass_requests = Histogram(
            "outshine_pass_requests",
            "Requests that one pass answers, in whole or in part.",
            registry=self.registry,
            buckets=TEXTS,
        )
        self.pass_seconds = Histogram(
            "outshine_pass_seconds", "Of one pass.", registry=self.registry, buckets=SECONDS
        )
        self.tokens = Counter(
            "outshine_tokens", "Tokens through the encoder.", registry=self.registry
        )
        self.truncated = Counter(
            "outshine_truncated_texts", "Texts that were cut.", registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    def count_pass(self, done: Pass) -> None:
        """Counts one pass through the encoder."""
        self.pass_texts.observe(done.num_items)
        self.pass_requests.observe(done.num_jobs)
        self.pass_seconds.observe(done.seconds)
        self.tokens.inc(done.num_tokens)


class Service:
    """A model behind a queue, and how many requests and texts are under way."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.predictor: Predictor | None = None
        self.failure: BaseException | None = None  # why the model could not be loaded
        self.draining = False
        self.num_requests = 0
        self._num_texts = 0
        self._tokenizer_thread = ThreadPoolExecutor(1, "tokenizer")

    async def start(self, load: Callable[[], Predictor]) -> None:
        """Loads the model in a thread; from then on the service is ready."""
        predictor = await asyncio.to_thread(_load_and_warm_up, load)

        passes = count(1)

        def run(items: list[tuple[Encoded, Collection[str]]]) -> list[dict[str, Any]]:
            if not next(passes) % PASSES_PER_TRIM:
                trim_memory()
            return predictor.answer_texts(*zip(*items, strict=True))

        self._batcher = MicroBatcher(
            run,
            self.limits.max_batch_tokens,
            self.limits.max_wait_ms / 1000,
            self.metrics.count_pass,
        )
        self.predictor = predictor

    async def close(self) -> None:
        """Ends the threads."""
        if self.predictor:
            await self._batcher.close()
        self._tokenizer_thread.shutdown(wait=False, cancel_futures=True)

    def ready(self) -> Predictor:
        """The model.

        Raises:
            RefusedError: While it is loaded or if it cannot be, and while the service shuts down.
        """
        if self.draining:
            raise RefusedError(
                503, "the service is shutting down", "ask another one, or again", Retry_After="5"
            )
        if self.failure is not None:
            why = getattr(self.failure, "message", type(self.failure).__name__)
            raise RefusedError(
                503,
                f"the model cannot be loaded: {why}",
                "the log of the service says more; mend it, and start the service again",
            )
        if self.predictor is None:
            raise RefusedError(503, "the model is being loaded", "ask again soon", Retry_After="1")
        return self.predictor

    async def predict(
        self, predictor: Predictor, inputs: Sequence[Any], names: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """Answers the inputs of one request, as lines of `outshine predict`.

        An output of which a text was cut has `"truncated": true`.

        Raises:
            UserError: For what `Predictor.predict` refuses.
            RefusedError: If a text is too long, or the queue is full.
        """
        tasks = predictor.choose(names)
        wanted = [
            row_texts(row, tasks, number, strict=names is not None)
            for number, row in enumerate(inputs, start=1)
        ]
        _check_characters(wanted, self.limits.max_characters)
        heads = distinct_texts(wanted)
        with self._room(len(heads)):
            encoded = await asyncio.get_running_loop().run_in_executor(
                self._tokenizer_thread, predictor.tokenize, list(heads)
            )
            answers = await self._batcher.submit(
                list(zip(encoded, heads.values(), strict=True)), [len(ids) for ids, _, _ in encoded]
            )
        answer_of = dict(zip(heads, answers, strict=True))
        cut = cut_texts(heads, encoded)
        self.metrics.truncated.inc(len(cut))
        outputs = []
        for row, texts_of in zip(inputs, wanted, strict=True):
            answer = {name: answer_of[texts][name] for name, texts in texts_of.items()}
            outputs.append(row_id(row, tasks) | answer | flag(texts_of, cut))
        return outputs

    @contextmanager
    def _room(self, num_texts: int) -> Iterator[None]:
        """A place in the queue for so many texts."""
        if num_texts > self.limits.max_queue:
            raise RefusedError(
                413,
                f"cannot queue the request: {num_texts:,} texts, expected at most "
                f"{self.limits.max_queue:,}",
                "send them in several requests",
            )
        if self._num_texts + num_texts > self.limits.max_queue:
            raise RefusedError(
                503,
                f"the queue is full: {self._num_texts:,} texts wait, expected at most "
                f"{self.limits.max_queue:,} with this request's {num_texts:,}",
                "ask again in a moment",
                Retry_After="1",
            )
        self._num_texts += num_texts
        self.metrics.queue.set(self._num_texts)
        try:
            yield
        finally:
            self._num_texts -= num_texts
            self.metrics.queue.set(self._num_texts)


def _load_and_warm_up(load: Callable[[], Predictor]) -> Predictor:
    """Loads, and answers once, so that no client waits for what torch sets up on first use."""
    predictor = load()
    predictor.answer([{task.name: ("warm up",) for task in predictor.tasks}])
    return predictor


def _check_characters(wanted: Sequence[Mapping[str, tuple[str, ...]]], most: int) -> None:
    for number, texts_of in enumerate(wanted, start=1):
        longest = max(len(text) for texts in texts_of.values() for text in texts)
        if longest > most:
            raise RefusedError(
                413,
                f"cannot answer row {number}: a text of {longest:,} characters, expected at most "
                f"{most:,}",
                "the model reads only the beginning of a long text: cut it",
            )
