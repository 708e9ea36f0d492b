"""Logits by example id for one (run, task, split). On `train` this is the teacher cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outshine.errors import UserError
from outshine.files import map_arrays, pack_strings, unpack_strings, write_arrays
from outshine.tasks import Task, kind_of

FORMAT = 1


@dataclass(frozen=True)
class Predictions:
    """Logits of N examples with one site each, and what they belong to.

    Attributes:
        logits: (N, C) float32.
        ids: N example ids.
        run: Id of the run that computed them.
        task: The task's name.
        version: The task's version.
        labels: The task's labels, () for regression.
        data: Fingerprint of the rows (`readers.data_fingerprint`).
    """

    logits: np.ndarray
    ids: list[str]
    run: str
    task: str
    version: str
    labels: tuple[str, ...]
    data: str

    def save(self, path: Path) -> None:
        """Writes one safetensors file: logits, offsets (N + 1) of each example's sites, ids."""
        characters, id_offsets = pack_strings(self.ids)
        write_arrays(
            path,
            {
                "logits": np.ascontiguousarray(self.logits, np.float32),
                "offsets": np.arange(len(self.ids) + 1, dtype=np.int64),
                "id_characters": characters,
                "id_offsets": id_offsets,
            },
            {
                "format": FORMAT,
                "run": self.run,
                "task": self.task,
                "version": self.version,
                "labels": list(self.labels),
                "data": self.data,
            },
        )

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Reads the file; the logits are memory-mapped.

        Raises:
            UserError: If it is missing, damaged, or of another format.
        """
        arrays, header = map_arrays(path)
        try:
            found = header.pop("format")
            if found != FORMAT:
                raise UserError(
                    f"cannot read {path}: format {found}, expected {FORMAT}",
                    "it was written by another version of outshine: remove it",
                )
            header["labels"] = tuple(header["labels"])
            ids = unpack_strings(arrays["id_characters"], arrays["id_offsets"])
            if arrays["logits"].ndim != 2 or len(arrays["logits"]) != len(ids):
                raise ValueError
            return cls(logits=arrays["logits"], ids=ids, **header)
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"cannot read {path}: other arrays, expected logits by example id ({path})",
                "no run has written this file, or it is damaged: remove it and let it be made "
                "again",
            ) from None

    def check(self, path: Path, task: Task, data: str) -> None:
        """Refuses logits of another task, labels, data or width, and names what differs."""
        wanted: dict[str, Any] = {
            "task": task.name,
            "version": task.version,
            "labels": task.labels,
            "data": data,
            "outputs": kind_of(task).num_outputs(task),
        }
        known = vars(self) | {"outputs": self.logits.shape[1]}
        for field, value in wanted.items():
            found = known[field]
            if found != value:
                if field == "data":
                    found, value = f"fingerprint {found[:12]}", value[:12]
                raise UserError(
                    f"cannot use the logits in {path}: {field} {_show(found)}, "
                    f"expected {_show(value)}",
                    "they were computed for something else: remove the file to have them "
                    "computed again, or choose another teacher",
                )

    def take(self, ids: Sequence[str]) -> tuple[np.ndarray, list[int]]:
        """Joins by example id.

        Returns:
            (n, C) float32 logits in the order of `ids`, NaN where an id is unknown, and the
            positions of those unknown ids.
        """
        places = {example_id: i for i, example_id in enumerate(self.ids)}
        rows = np.array([places.get(example_id, -1) for example_id in ids], np.int64)
        taken = np.full((len(rows), self.logits.shape[1]), np.nan, np.float32)
        taken[rows >= 0] = self.logits[rows[rows >= 0]]
        return taken, np.flatnonzero(rows < 0).tolist()


def _show(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
