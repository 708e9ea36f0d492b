"""Tokenised splits on disk: ragged arrays, memory-mapped, made once per content.

A table's key covers all that changes its content: the bytes of the data file, how it is read,
the tokenizer, the length limit and this format. Nothing is padded on disk.
"""

from __future__ import annotations

import array
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from outshine.cells import Tally
from outshine.errors import UserError
from outshine.files import (
    cache_dir,
    digest,
    map_arrays,
    pack_strings,
    unpack_strings,
    world_errors,
    write_arrays,
)
from outshine.readers import Row, data_fingerprint, read_rows
from outshine.seeds import stream
from outshine.tasks import Task

FORMAT = 1
ROWS_PER_CALL = 1024
SWAP_SUFFIX = "/swap"


@dataclass(frozen=True)
class TokenTable:
    """One tokenised (task, split). N rows, T tokens in all; arrays are memory-mapped.

    Attributes:
        task: The task.
        split: The split's name.
        tokens: (T,) int32 token ids, special tokens included.
        types: (T,) uint8 segment of each token: 1 in the second text of a pair where the
            tokenizer tells segments apart, else 0.
        offsets: (N + 1,) int64; row i is tokens[offsets[i]:offsets[i + 1]].
        gold: (N,) float32 class index or value; NaN without a label.
        ids: N example ids; a swapped pair's id ends in `/swap`.
        num_originals: Rows before the swapped ones, which follow in the same order.
        data: Fingerprint of the rows and gold (`readers.data_fingerprint`).
        truncated: (N,) uint8, 1 where a row was cut to the length limit.
        skipped: Ragged or empty rows left out (GLUE files only).
        unlabelled: Rows left out because their label cell is empty.
    """

    task: Task
    split: str
    tokens: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    gold: np.ndarray
    ids: list[str]
    num_originals: int
    data: str
    truncated: np.ndarray
    skipped: int
    unlabelled: int

    def __len__(self) -> int:
        return len(self.gold)

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64 tokens of the given rows."""
        return self.offsets[rows + 1] - self.offsets[rows]

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64 tokens per row."""
        return np.diff(self.offsets)

    def selection(self, max_rows: int, swapped: bool) -> np.ndarray:
        """Indices of the rows that a run trains on, sorted, int64.

        Args:
            max_rows: How many originals, 0 for all; a smaller number gives a subset of a larger
                one, and no seed has a part in it.
            swapped: Whether the swapped order of each chosen pair is taken too.
        """
        rows = np.arange(self.num_originals)
        if 0 < max_rows < self.num_originals:
            rows = np.sort(np.random.default_rng(0).permutation(self.num_originals)[:max_rows])
        if swapped and len(self) > self.num_originals:
            rows = np.concatenate([rows, rows + self.num_originals])
        return rows


def folds(ids: Sequence[str], count: int) -> np.ndarray:
    """(n,) int64 fold of each row, from 1 to `count`, in nearly equal parts.

    The originals are dealt out in an order that depends on their ids alone; a swapped pair is in
    the fold of its original, so that no row is predicted by a model that has seen its texts.
    """
    originals = dict.fromkeys(example_id.removesuffix(SWAP_SUFFIX) for example_id in ids)
    order = sorted(originals, key=lambda example_id: stream(0, "fold", example_id))
    fold_of = {example_id: place % count + 1 for place, example_id in enumerate(order)}
    return np.array([fold_of[i.removesuffix(SWAP_SUFFIX)] for i in ids], np.int64)


def encode(
    task: Task, split: str, tokenizer: Any, max_length: int, *, swapped: bool = False
) -> TokenTable:
    """Tokenises one split, or opens the table that an earlier call made.

    Args:
        task: The task.
        split: One of `task.splits`.
        tokenizer: A fast tokenizer of transformers.
        max_length: Longest row in tokens, special tokens included; pairs are cut longest-first.
        swapped: Whether each pair follows once more in swapped order.

    Raises:
        UserError: For everything that `read_rows` refuses, and for a slow tokenizer.
    """
    data = data_fingerprint(task, split)
    key = digest(
        {
            "format": FORMAT,
            "data": data,
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "max_length": max_length,
            "swapped": swapped,
        }
    )
    path = cache_dir() / "tokens" / f"{task.name}-{split}-{key[:24]}.safetensors"
    if not path.exists():
        with world_errors(path):
            _write_table(path, task, split, tokenizer, max_length, swapped)
    arrays, metadata = map_arrays(path)
    fields: dict[str, Any] = {**arrays, **metadata}
    try:
        return TokenTable(
            task=task,
            split=split,
            ids=unpack_strings(fields.pop("id_characters"), fields.pop("id_offsets")),
            data=data,
            **fields,
        )
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"cannot read {path}: other arrays, expected an encoded table ({path})",
            "the file is damaged: remove it and let it be made again",
        ) from None


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 of a fast tokenizer's whole state, without padding and truncation settings."""
    return _fingerprint(backend(tokenizer).to_str())


@lru_cache(maxsize=4)  # every table asks for it, and reading the JSON of a vocabulary takes long
def _fingerprint(text: str) -> str:
    state = json.loads(text)
    state.pop("padding", None)
    state.pop("truncation", None)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def backend(tokenizer: Any) -> Any:
    """The tokenizers object behind a fast tokenizer.

    Raises:
        UserError: If the tokenizer is a slow one.
    """
    found = getattr(tokenizer, "backend_tokenizer", None)
    if found is None:
        raise UserError(
            f"cannot use the tokenizer {type(tokenizer).__name__}: it has no fast version, "
            "expected a tokenizer.json",
            "convert it with transformers, or choose another encoder",
        )
    return found


def tokenize(
    tokenizer: Any, texts: list[tuple[str, ...]], max_length: int
) -> Iterator[tuple[list[int], list[int], bool]]:
    """Yields (token ids, segment ids, whether it was truncated) for rows of one or two texts."""
    fast = backend(tokenizer)
    fast.no_padding()
    fast.enable_truncation(max_length, strategy="longest_first")
    rows = [row[0] if len(row) == 1 else row for row in texts]
    for encoding in fast.encode_batch_fast(rows):
        ids = encoding.ids
        cut = len(ids) == max_length and bool(encoding.overflowing)
        yield ids, encoding.type_ids, cut


def _write_table(
    path: Path, task: Task, split: str, tokenizer: Any, max_length: int, swapped: bool
) -> None:
    """Streams the rows through the tokenizer into one safetensors file.

    Tokens go to a nameless file beside it as they come, so that memory holds one batch of texts
    and a few numbers per row. The second pass over the rows, for swapped pairs, reads the file
    again.
    """
    ids: list[str] = []
    gold, truncated = array.array("f"), array.array("B")
    lengths = array.array("q")
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as tokens, tempfile.TemporaryFile(dir=folder) as types:
        tally = Tally()
        for swap in (False, True) if swapped else (False,):
            rows = read_rows(task, split, tally if not swap else None)
            while batch := list(islice(rows, ROWS_PER_CALL)):
                texts = [row.texts[::-1] if swap else row.texts for row in batch]
                for row, encoded in zip(batch, tokenize(tokenizer, texts, max_length), strict=True):
                    _append(row, swap, encoded, ids, gold, truncated, lengths)
                    array.array("i", encoded[0]).tofile(tokens)
                    array.array("B", encoded[1]).tofile(types)
        tokens.flush()
        types.flush()
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(np.asarray(lengths), out=offsets[1:])
        characters, id_offsets = pack_strings(ids)
        write_arrays(
            path,
            {
                "tokens": np.memmap(tokens, np.int32, "r"),
                "types": np.memmap(types, np.uint8, "r"),
                "offsets": offsets,
                "gold": np.asarray(gold),
                "truncated": np.asarray(truncated),
                "id_characters": characters,
                "id_offsets": id_offsets,
            },
            {
                "num_originals": len(ids) // 2 if swapped else len(ids),
                "skipped": tally.skipped,
                "unlabelled": tally.unlabelled,
            },
        )


def _append(
    row: Row,
    swap: bool,
    encoded: tuple[list[int], list[int], bool],
    ids: list[str],
    gold: array.array,
    truncated: array.array,
    lengths: array.array,
) -> None:
    ids.append(row.id + SWAP_SUFFIX if swap else row.id)
    gold.append(row.gold)
    truncated.append(encoded[2])
    lengths.append(len(encoded[0]))
