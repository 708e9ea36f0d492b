"""Whether an exported model answers as its run does, on 64 rows of each task.

N rows, C outputs. Outputs are those of a transformers classifier: logits of the classes, or a
value on the label's own scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from outshine.errors import OutshineError, WorldError
from outshine.predicting import Predictor
from outshine.readers import read_rows
from outshine.tasks import Task, kind_of
from outshine.texts import Texts

NUM_ROWS = 64
TOLERANCE = 1e-4

Outputs = Callable[[Sequence[Texts]], np.ndarray]


@dataclass(frozen=True)
class Sample:
    """Rows of one task, and the run's outputs for them.

    Attributes:
        task: The task.
        texts: N rows of one or two texts.
        num_dev: How many of them, the first ones, are dev rows; the others are made up.
        outputs: (N, C) float64.
    """

    task: Task
    texts: list[Texts]
    num_dev: int
    outputs: np.ndarray

    def difference(self, exported: np.ndarray, what: str) -> float:
        """Largest absolute difference of an exported model's outputs from the run's.

        Args:
            exported: (N, C) its outputs.
            what: What fails, such as `cannot export to hf`.

        Raises:
            WorldError: If one differs by more than 1e-4 + 1e-4 * |the run's output|.
        """
        found = np.abs(exported - self.outputs)
        # written so that NaN is refused
        if not (found <= TOLERANCE + TOLERANCE * np.abs(self.outputs)).all():
            raise WorldError(
                f"{what}: outputs of task {self.task.name!r} differ from the run's by up to "
                f"{found.max():.2g} on {len(found)} rows, expected at most "
                f"{TOLERANCE:g} + {TOLERANCE:g} * |output|",
                "nothing was written; report it with what `outshine doctor` prints",
            )
        return float(found.max())


def draw_sample(predictor: Predictor, task: Task) -> Sample:
    """Takes a task's first 64 dev rows, made-up ones in place of those that cannot be read."""
    texts = _dev_texts(task)
    num_dev = len(texts)
    texts += _made_up_texts(predictor, len(task.text), NUM_ROWS - num_dev)
    return Sample(task, texts, num_dev, run_outputs(predictor, task, texts))


def run_outputs(predictor: Predictor, task: Task, texts: Sequence[Texts]) -> np.ndarray:
    """(N, C) float64 outputs of a run for rows of one task."""
    factor, shift = kind_of(task).output_scale(task)
    rows = predictor.logits([{task.name: row} for row in texts])
    return np.stack([row[task.name] for row in rows]).astype(np.float64) * factor + shift


def _dev_texts(task: Task) -> list[Texts]:
    """The first dev rows; none where the files have moved or changed since the training."""
    try:
        return [row.texts for row in islice(read_rows(task, "dev"), NUM_ROWS)]
    except OutshineError:
        return []


def _made_up_texts(predictor: Predictor, num_texts: int, count: int) -> list[Texts]:
    """Random tokens of the vocabulary as text, of all lengths, some longer than the model takes."""
    rng = np.random.default_rng(0)
    tokenizer: Any = predictor.tokenizer
    special = set(tokenizer.all_special_ids)
    vocabulary = [token for token in range(len(tokenizer)) if token not in special]

    def text() -> str:
        length = rng.integers(1, 1 + predictor.max_length * 3 // (2 * num_texts))
        return tokenizer.decode(rng.choice(vocabulary, length).tolist()).strip() or "a"

    return [tuple(text() for _ in range(num_texts)) for _ in range(count)]
