"""Latency of one row: ONNX Runtime against the packed path, both in float32.

    python bench/onnx_latency.py [--encoder builtin] [--pairs 9] [--rows 32]

Trains a model with five heads for one step, exports it to ONNX, and answers the same rows of mixed
length, one at a time, with both; the heads of all tasks answer each row. Both sides take turns in
one process with the same number of threads, and begin with the token ids: the tokenizer, which is
the same on both sides, is left out. Prints one JSON object; `ratio` is the time of ONNX Runtime
divided by that of the packed path, the median of the pairs.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, conditions, five_heads, in_turn, ratios
from predict import texts

import outshine
from outshine.batches import Rows
from outshine.data import tokenize
from outshine.exporting import export
from outshine.onnx_export import Graph


def packed_side(run: Path, rows: list[list[int]]) -> Callable[[], list[np.ndarray]]:
    predictor = outshine.load(run, device="cpu")
    forward = predictor.forward
    assert forward.packing is not None, "this encoder does not pack"

    @torch.no_grad()
    def answer() -> list[np.ndarray]:
        found = []
        for ids in rows:
            given = np.array(ids, np.int64)
            pooled = forward.pooled(Rows(given, np.zeros_like(given), np.array([len(ids)])))
            found += [forward.model.head(task.name)(pooled).numpy() for task in predictor.tasks]
        return found

    return answer


def onnx_side(folder: Path, rows: list[list[int]]) -> Callable[[], list[np.ndarray]]:
    graph = Graph(folder, "model.onnx")
    names = graph.tokenizer.model_input_names

    def answer() -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for ids in rows:
            given: dict[str, Any] = {"input_ids": np.array([ids], np.int64)}
            given["attention_mask"] = np.ones_like(given["input_ids"])
            given["token_type_ids"] = np.zeros_like(given["input_ids"])
            found += graph.session.run(None, {name: given[name] for name in names})
        return found

    return answer


def timed(answer: Callable[[], Any]) -> Callable[[int], float]:
    """Seconds that it takes."""

    def seconds(_: int) -> float:
        start = time.perf_counter()
        answer()
        return time.perf_counter() - start

    return seconds


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--rows", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = five_heads(folder, args.encoder).path
        verified = export(run, folder / "onnx", format="onnx")["verified"]
        tokenizer = outshine.load(run, device="cpu").tokenizer
        given = [(text,) for text in texts(args.rows, 0, 60)]
        rows = [ids for ids, _, _ in tokenize(tokenizer, given, 128)]
        sides = {"onnx": onnx_side(folder / "onnx", rows), "packed": packed_side(run, rows)}
        for answer in sides.values():
            answer()  # the first passes allocate
        found = in_turn({side: timed(answer) for side, answer in sides.items()}, args.pairs)
    content = {
        "heads": len(verified),
        "rows": args.rows,
        "tokens_per_row": round(statistics.mean(map(len, rows)), 1),
        "pairs": args.pairs,
        "verified": max(facts["largest_difference"] for facts in verified.values()),
        "ms_per_row": {
            side: round(1000 * statistics.median(times) / args.rows, 2)
            for side, times in found.items()
        },
        "ratio": ratios(found["onnx"], found["packed"]),
    }
    print(json.dumps({"bench": "onnx_latency"} | conditions(args) | content, indent=2))


if __name__ == "__main__":
    main()
