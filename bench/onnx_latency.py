"""Latency of one row: ONNX Runtime against the packed path, both in float32.

    python bench/onnx_latency.py [--encoder builtin] [--pairs 9] [--rows 32] [--threads 0]

Trains a model with five heads for one step, exports it to ONNX, and answers the same rows of mixed
length, one at a time, with both; the heads of all tasks answer each row. Both sides take turns in
one process with the same number of threads, and begin with the token ids: the tokenizer, which is
the same on both sides, is left out. Prints one JSON object; `ratio` is the time of ONNX Runtime
divided by that of the packed path, the median of the pairs.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import outshine
from outshine.batches import Rows
from outshine.console import set_quiet
from outshine.data import tokenize
from outshine.exporting import export
from outshine.onnx_export import Graph
from outshine.provenance import device_name

WORDS = ("the", "a", "my", "our", "lamp", "hub", "door", "app", "invoice", "code", "lost", "late")
HEADS = 5


def task_file(folder: Path, name: str) -> Path:
    """A task of one text whose rows say nothing; only speed is measured."""
    chance = random.Random(name)
    for split, count in (("train", 32), ("dev", 64)):
        with (folder / f"{name}-{split}.csv").open("w", newline="") as file:
            rows = [[text(chance), chance.choice(["no", "yes"])] for _ in range(count)]
            csv.writer(file).writerows([["text", "label"], *rows])
    path = folder / f"{name}.toml"
    path.write_text(
        f'name = "{name}"\ntext = ["text"]\nlabel = "label"\nlabels = ["no", "yes"]\n'
        f'[files]\ntrain = "{name}-train.csv"\ndev = "{name}-dev.csv"\n'
    )
    return path


def text(chance: random.Random) -> str:
    """Between 3 and 60 words."""
    return " ".join(chance.choices(WORDS, k=chance.randint(3, 60)))


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


def seconds(side: Callable[[], Any]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0, help="0 for torch's choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    set_quiet(True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = [outshine.Task.load(task_file(folder, f"task{i}")) for i in range(HEADS)]
        cfg = outshine.TrainConfig(
            encoder=args.encoder, max_steps=1, batch_size=8, device="cpu", num_threads=args.threads
        )
        run = outshine.train(tasks, cfg, out=folder / "run").path
        verified = export(run, folder / "onnx", format="onnx")["verified"]
        chance = random.Random(0)
        texts = [(text(chance),) for _ in range(args.rows)]
        tokenizer = outshine.load(run, device="cpu").tokenizer
        rows = [ids for ids, _, _ in tokenize(tokenizer, texts, 128)]
        sides = {"onnx": onnx_side(folder / "onnx", rows), "packed": packed_side(run, rows)}
        difference = max(
            float(np.abs(a - b).max())
            for a, b in zip(*(side() for side in sides.values()), strict=True)
        )
        pairs = [{side: seconds(sides[side]) for side in sides} for _ in range(args.pairs)]
    ratios = sorted(pair["onnx"] / pair["packed"] for pair in pairs)
    content = {
        "bench": "onnx_latency",
        "encoder": args.encoder,
        "heads": HEADS,
        "rows": args.rows,
        "mean_tokens": round(statistics.mean(map(len, rows)), 1),
        "pairs": args.pairs,
        "threads": torch.get_num_threads(),
        "device": device_name(torch.device("cpu")),
        "versions": {name: version(name) for name in ("torch", "onnxruntime")},
        "largest_difference": difference,
        "verified": max(facts["largest_difference"] for facts in verified.values()),
        "onnx_ms_per_row": round(1000 * statistics.median(p["onnx"] for p in pairs) / args.rows, 2),
        "packed_ms_per_row": round(
            1000 * statistics.median(p["packed"] for p in pairs) / args.rows, 2
        ),
        "ratio": round(statistics.median(ratios), 3),
        "smallest_ratio": round(ratios[0], 3),
        "largest_ratio": round(ratios[-1], 3),
    }
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
