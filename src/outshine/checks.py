"""What a task's rows look like before training, as plain data for `outshine tasks check`."""

from __future__ import annotations

import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from outshine.cells import Tally
from outshine.data import ROWS_PER_CALL, tokenize
from outshine.readers import Row, is_labelled, read_rows, source_split
from outshine.tasks import Task, kind_of

NO_LIMIT = 2**31 - 1
QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}


def check_task(task: Task, tokenizer: Any = None, max_length: int = 128) -> dict[str, Any]:
    """Reads all splits of a task and describes their rows.

    Args:
        task: The task.
        tokenizer: A fast tokenizer of transformers; without one, lengths are left out.
        max_length: Tokens per row above which a row counts as truncated.

    Returns:
        {"task", "kind", "max_length" (None without a tokenizer), "splits": {split: see
        `check_split`}, "absent": {split: file that does not exist}}. Every split but `train`
        has `in_train`: its rows whose texts also stand in train.

    Raises:
        UserError: For everything that `readers.read_rows` refuses, and if `train` is not given.
        WorldError: If the hub does not answer.
    """
    absent = {
        split: path
        for split, path in task.files.items()
        if not task.hub and split not in ("train", *task.dev_splits) and not Path(path).exists()
    }
    source_split(task, "train")
    splits: dict[str, dict[str, Any]] = {}
    train: set[int] = set()
    for split in ("train", *(name for name in task.splits if name not in {"train", *absent})):
        texts, splits[split] = check_split(task, split, tokenizer, max_length)
        if split == "train":
            train = set(texts)
        else:
            splits[split]["in_train"] = sum(text in train for text in texts)
    return {
        "task": task.name,
        "kind": task.kind,
        "max_length": max_length if tokenizer is not None else None,
        "splits": splits,
        "absent": absent,
    }


def check_split(
    task: Task, split: str, tokenizer: Any, max_length: int
) -> tuple[array.array, dict[str, Any]]:
    """Describes the rows of one split, in a few numbers of memory per row.

    Returns:
        The hash of each row's texts, and {"rows", "skipped" (ragged or empty), "unlabelled",
        "duplicates" (rows whose texts stood before), "balance" (see `kinds.Kind`; {} without
        labels), "lengths" (name -> tokens; {} without a tokenizer), "truncated" (or None)}.
    """
    tally = Tally()
    hashes, gold, lengths = array.array("q"), array.array("f"), array.array("q")
    for rows in _batches(read_rows(task, split, tally)):
        hashes.extend(hash(row.texts) for row in rows)
        gold.extend(row.gold for row in rows)
        if tokenizer is not None:
            encoded = tokenize(tokenizer, [row.texts for row in rows], NO_LIMIT)
            lengths.extend(len(ids) for ids, _, _ in encoded)
    tokens = np.asarray(lengths)
    balance = kind_of(task).balance(task, np.asarray(gold)) if is_labelled(split) else {}
    return hashes, {
        "rows": len(hashes),
        "skipped": tally.skipped,
        "unlabelled": tally.unlabelled,
        "duplicates": len(hashes) - len(set(hashes)),
        "balance": balance,
        "lengths": {name: round(float(np.quantile(tokens, q))) for name, q in QUANTILES.items()}
        if lengths
        else {},
        "truncated": int((tokens > max_length).sum()) if lengths else None,
    }


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, ROWS_PER_CALL)):
        yield batch


def warnings_of(report: dict[str, Any]) -> list[str]:
    """The sentences that a person should read in what `check_task` returned."""
    found = []
    for split, facts in report["splits"].items():
        rows = facts["rows"]
        place = f"{split} rows of {report['task']}"
        if facts.get("in_train"):
            found.append(f"{facts['in_train']:,} of {rows:,} {place} also stand in train")
        if facts["duplicates"]:
            found.append(f"{facts['duplicates']:,} of {rows:,} {place} repeat an earlier row")
        if facts["truncated"]:
            limit = report["max_length"]
            found.append(f"{facts['truncated']:,} of {rows:,} {place} have over {limit} tokens")
        if facts["skipped"]:
            found.append(f"{facts['skipped']:,} damaged {place} are skipped")
        if facts["unlabelled"]:
            found.append(f"{facts['unlabelled']:,} {place} have no label and are left out")
    if not any(split.startswith("dev") for split in report["splits"]):
        found.append(f"{report['task']} has no dev split: it is not evaluated")
    for split, path in report["absent"].items():
        found.append(f"no file for split {split} of {report['task']}: {path}")
    return found
