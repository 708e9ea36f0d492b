"""From raw text to answers: a finished run, ready to be asked.

N rows, C outputs of a head.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outshine.batches import Rows
from outshine.data import tokenize
from outshine.errors import UserError, did_you_mean
from outshine.files import read_json
from outshine.forward import Forward, load_forward
from outshine.runs import Run, open_run
from outshine.tasks import Task, kind_of
from outshine.texts import Texts, distinct_texts, row_id, row_texts, shown

# Rows are computed together in chunks that begin at fixed row numbers: what one answer is in its
# last bits depends on the rows of its chunk, but not on where a caller stopped and went on.
ROWS_PER_CHUNK = 2048

Encoded = tuple[list[int], list[int], bool]  # token ids, segment ids, whether it was cut


@dataclass(frozen=True)
class Predictor:
    """A model with its tokenizer and tasks, ready for raw text.

    Attributes:
        forward: The model on its device.
        tokenizer: Its fast tokenizer.
        tasks: The tasks that it answers.
        max_length: Tokens that the encoder takes; longer texts are cut, and their answers say so.
        temperatures: Task -> what its logits are divided by (`outshine calibrate`); 1 if absent.
    """

    forward: Forward
    tokenizer: Any
    tasks: tuple[Task, ...]
    max_length: int
    temperatures: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def _by_name(self) -> dict[str, Task]:
        return {task.name: task for task in self.tasks}

    def choose(self, names: str | Sequence[str] | None) -> tuple[Task, ...]:
        """The tasks of these names (one may stand alone), or all.

        Raises:
            UserError: If the model lacks one, or none is named.
        """
        if names is None:
            return self.tasks
        names = [names] if isinstance(names, str) else names
        if not names:
            raise UserError(
                f"no task named, expected some of {', '.join(self._by_name)}",
                "leave `tasks` out for all of them",
            )
        for name in names:
            if name not in self._by_name:
                raise UserError(
                    f"unknown task {name!r}{did_you_mean(name, self._by_name)}, "
                    f"expected some of {', '.join(self._by_name)}",
                    "these are the tasks that the model was trained on",
                )
        return tuple(self._by_name[name] for name in names)

    def predict(
        self,
        rows: Iterable[str | Sequence[str] | Mapping[str, Any]],
        tasks: str | Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Answers rows with all tasks that they have the columns for, from one encoder pass.

        Args:
            rows: A list, NumPy array, generator, ... of rows. A row is a text, a pair of texts,
                or a mapping with the tasks' text columns by name or `text` / `text_a`, `text_b`;
                its `id`, or else what stands in the column that a task's own files have it in,
                is handed through. An empty cell is as good as none.
            tasks: Names of the tasks to answer, each of which must be able to; default: all that
                a row has texts for.

        Returns:
            Per row a dictionary: task -> {"label", "probs"} or {"value"}; with "truncated": True
            where a text was longer than the encoder takes.

        Raises:
            UserError: If a named task is unknown or cannot be answered, a row fits no task, or
                a text is empty.
        """
        return [answer for answer, _ in self.stream(rows, tasks)]

    def stream(
        self, rows: Iterable[Any], tasks: str | Sequence[str] | None = None
    ) -> Iterator[tuple[dict[str, Any], frozenset[str]]]:
        """Yields (answer, names of tasks not answered) for each row, in bounded memory."""
        chosen = self.choose(tasks)
        for batch, wanted in _chunks(rows, chosen, strict=tasks is not None):
            for row, texts, answer in zip(batch, wanted, self.answer(wanted), strict=True):
                yield row_id(row, chosen) | answer, frozenset(t.name for t in chosen) - texts.keys()

    def predict_proba(self, rows: Iterable[Any], task: str | None = None) -> np.ndarray:
        """(N, C) float64 probabilities of one task's classes, in the order of its labels.

        Args:
            rows: As for `predict`.
            task: Name of a task with classes; default: the only one.

        Raises:
            UserError: As `predict`, and for a task without classes.
        """
        fit = [t.name for t in self.tasks if kind_of(t).probs]
        expected = "expected " + (f"one of {', '.join(fit)}" if fit else "a task with classes")
        if task is None and len(fit) != 1:
            raise UserError(
                f"cannot give probabilities: no task named, {expected}",
                "name it: model.predict_proba(rows, task)",
            )
        (chosen,) = self.choose(fit if task is None else task)
        task, kind = chosen.name, kind_of(chosen)
        if kind.probs is None:
            raise UserError(
                f"cannot give probabilities of task {task!r}: it has no classes, {expected}",
                "`predict` gives its values",
            )
        found = [np.empty((0, kind.num_outputs(chosen)))]
        for _, wanted in _chunks(rows, (chosen,), strict=True):
            logits = np.stack([row[task] for row in self.logits(wanted)])
            found.append(kind.probs(self._tempered(task, logits)))
        return np.concatenate(found)

    def answer(self, wanted: Sequence[Mapping[str, Texts]]) -> list[dict[str, Any]]:
        """Answers rows whose texts are known by task, each distinct text in one pass.

        Args:
            wanted: Per row, task -> the texts that it reads (`row_texts`).

        Returns:
            Per row what `predict` returns, without `id`.
        """
        heads = distinct_texts(wanted)
        encoded = self.tokenize(list(heads))
        answer_of = dict(zip(heads, self.answer_texts(encoded, [*heads.values()]), strict=True))
        cut = cut_texts(heads, encoded)
        return [
            {name: answer_of[texts][name] for name, texts in row.items()} | flag(row, cut)
            for row in wanted
        ]

    def logits(self, wanted: Sequence[Mapping[str, Texts]]) -> list[dict[str, np.ndarray]]:
        """Per row, task -> (C,) float32 logits, before any temperature.

        Args:
            wanted: Per row, task -> the texts that it reads.
        """
        heads = distinct_texts(wanted)
        logits = self._text_logits(self.tokenize(list(heads)), [*heads.values()])
        place = {texts: i for i, texts in enumerate(heads)}
        return [{name: logits[name][place[texts]] for name, texts in row.items()} for row in wanted]

    def tokenize(self, texts: Sequence[Texts]) -> list[Encoded]:
        """Tokens of texts or pairs, cut at `max_length`. Not for two threads at once."""
        return list(tokenize(self.tokenizer, list(texts), self.max_length))

    def answer_texts(
        self, encoded: Sequence[Encoded], heads: Sequence[Collection[str]]
    ) -> list[dict[str, Any]]:
        """Answers tokenized texts, all in one encoder pass if the device takes so many tokens.

        Args:
            encoded: N texts, from `tokenize`.
            heads: N times the names of the tasks to answer.

        Returns:
            Per text a dictionary: task -> {"label", "probs"} or {"value"}.
        """
        logits = {
            name: self._tempered(name, values)
            for name, values in self._text_logits(encoded, heads).items()
        }
        return [
            {
                name: kind_of(self._by_name[name]).answer(self._by_name[name], logits[name][i])
                for name in names
            }
            for i, names in enumerate(heads)
        ]

    def _tempered(self, name: str, logits: np.ndarray) -> np.ndarray:
        temperature = self.temperatures.get(name, 1.0)
        return logits if temperature == 1.0 else logits / np.float32(temperature)

    @torch.no_grad()
    def _text_logits(
        self, encoded: Sequence[Encoded], heads: Sequence[Collection[str]]
    ) -> dict[str, np.ndarray]:
        """Task -> (N, C) float32 logits, zeros for texts that it is not asked about."""
        asked = {
            name: np.array([name in names for names in heads])
            for name in dict.fromkeys(name for names in heads for name in names)
        }
        lengths = np.array([len(ids) for ids, _, _ in encoded], np.int64)
        # made before the passes: what they left behind would lie between their large blocks
        logits = {
            name: np.zeros((len(encoded), self.forward.model.head(name).out_features), np.float32)
            for name in asked
        }

        def take(members: np.ndarray) -> Rows:
            chosen = [encoded[i] for i in members]
            return Rows(
                np.concatenate([np.array(ids, np.int64) for ids, _, _ in chosen]),
                np.concatenate([np.array(types, np.int64) for _, types, _ in chosen]),
                lengths[members],
            )

        for members, pooled in self.forward.passes(lengths, take):
            for name, who in asked.items():
                places = np.flatnonzero(who[members])
                values = self.forward.model.head(name)(pooled[torch.from_numpy(places)])
                logits[name][members[places]] = values.cpu().numpy()
        return logits


def load(
    run: Run | str | Path,
    *,
    device: str = "auto",
    precision: str = "fp32",
    calibrated: bool = False,
) -> Predictor:
    """Loads a finished run for prediction.

    Args:
        run: The run or its folder.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `fp32` (default), `bf16` or `auto`. With bf16 the answers depend a little on
            which rows are computed together.
        calibrated: Whether probabilities use the temperatures that `outshine calibrate` found.

    Raises:
        UserError: If the run is incomplete, damaged, kept no weights, or is not calibrated, or
            its temperatures are damaged.
    """
    run = open_run(run)
    forward, tokenizer = load_forward(run, device, precision)
    temperatures = _temperatures(run) if calibrated else {}
    return Predictor(forward, tokenizer, run.tasks(), run.max_length(), temperatures)


def _temperatures(run: Run) -> dict[str, float]:
    path = run.calibration_path
    if not path.exists():
        raise UserError(
            f"cannot load the run {run.path} calibrated: no temperatures, expected {path}",
            f"make them: `outshine calibrate {run.path}`",
        )
    content = read_json(path, "run", "tasks")
    if content["run"] != run.info()["id"]:
        raise UserError(
            f"cannot load the run {run.path} calibrated: temperatures of run {content['run']}, "
            f"expected {run.info()['id']} ({path})",
            f"make them again: `outshine calibrate {run.path}`",
        )
    found = content["tasks"]
    for name, entry in found.items() if isinstance(found, dict) else [("tasks", found)]:
        value = entry.get("temperature") if isinstance(entry, dict) else None
        if not _can_divide(value):
            raise UserError(
                f"cannot load the run {run.path} calibrated: {name} {shown(entry)}, "
                f'expected {{"temperature": a finite number above 0}} ({path})',
                f"make them again: `outshine calibrate {run.path}`",
            )
    return {name: float(entry["temperature"]) for name, entry in found.items()}


def _can_divide(value: Any) -> bool:
    """Whether it is a number that is neither 0 nor infinite as float32, which logits are."""
    limits = np.finfo(np.float32)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return float(limits.tiny) <= value <= float(limits.max)


def _chunks(
    rows: Iterable[Any], tasks: Sequence[Task], *, strict: bool
) -> Iterator[tuple[list[Any], list[dict[str, Texts]]]]:
    """Yields rows, with the texts that each task reads of them, in chunks."""
    if hasattr(rows, "columns"):  # a data frame would give the names of its columns
        raise UserError(
            f"cannot predict: a {type(rows).__name__}, expected texts, pairs or mappings",
            'give its rows: frame.to_dict("records"), or one column as a list',
        )
    one = isinstance(rows, str | Mapping) or not isinstance(rows, Iterable)
    if one or getattr(rows, "ndim", 1) == 0:
        raise UserError(
            f"cannot predict: one {type(rows).__name__}, expected a list of rows",
            "put it into a list: model.predict([...])",
        )
    iterator = enumerate(rows, start=1)
    while batch := list(islice(iterator, ROWS_PER_CHUNK)):
        wanted = [row_texts(row, tasks, number, strict=strict) for number, row in batch]
        yield [row for _, row in batch], wanted


def cut_texts(texts: Iterable[Texts], encoded: Iterable[Encoded]) -> set[Texts]:
    """Those of the tokenized texts that were longer than the encoder takes."""
    return {known for known, (_, _, was_cut) in zip(texts, encoded, strict=True) if was_cut}


def flag(row: Mapping[str, Texts], cut: Collection[Texts]) -> dict[str, bool]:
    """What an answer says of a row some text of which was cut; nothing of others."""
    return {"truncated": True} if any(texts in cut for texts in row.values()) else {}
