"""Prediction: what five heads cost against one, and whether memory grows with the file.

    python bench/predict.py [--encoder builtin] [--small-encoder builtin] [--rows 6000]

First an untrained student with the heads of the five demo tasks, all on the same text, answers
the same texts by all heads and by one, in turn; the order within a pair alternates. CPU seconds
are told beside those of the clock, since other processes disturb them less (set OMP_NUM_THREADS=1:
threads that wait count as busy). Then a file of so many short rows, and one of four times as many,
go through `predict_file` with the small encoder, each in a fresh process, whose peak memory is
reported. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pairs import WORDS, fresh, peak_mb


def make_predictor(encoder: str, device: str = "cpu") -> Any:
    """An untrained student of the five demo tasks, which all read the column `text`."""
    import torch

    from outshine.console import set_quiet
    from outshine.demo import demo_tasks
    from outshine.encoders import load_tokenizer, locate
    from outshine.forward import make_forward
    from outshine.model import build_model
    from outshine.predicting import Predictor

    set_quiet(True)
    changes = {"text": ("text",), "symmetric": False}
    tasks = tuple(task.model_copy(update=changes) for task in demo_tasks())
    location = locate(encoder)
    tokenizer = load_tokenizer(location)
    forward = make_forward(
        build_model(location, tasks).eval(), tokenizer, torch.device(device), "fp32"
    )
    return Predictor(forward, tokenizer, tasks, 128)


def texts(count: int, seed: int, longest: int) -> list[str]:
    chance = random.Random(seed)
    return [
        f"{' '.join(chance.choices(WORDS, k=chance.randint(3, longest)))} {number}"
        for number in range(count)
    ]


def heads_child(encoder: str, pairs: int, count: int) -> dict[str, Any]:
    import torch

    from outshine.devices import pick_device
    from outshine.provenance import device_name

    model = make_predictor(encoder)
    asked = {"one": [model.tasks[0].name], "five": None}
    model.predict(texts(count, 0, 60))  # the first passes allocate
    spent: dict[str, list[tuple[float, float]]] = {side: [] for side in asked}
    for pair in range(pairs):
        rows = texts(count, pair + 1, 60)
        for side in list(asked)[:: 1 if pair % 2 else -1]:
            start = time.perf_counter(), time.process_time()
            model.predict(rows, tasks=asked[side])
            spent[side].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    clock, cpu = (
        [five[i] / one[i] for five, one in zip(spent["five"], spent["one"], strict=True)]
        for i in (0, 1)
    )
    return {
        "encoder": encoder,
        "texts": count,
        "pairs": pairs,
        "machine": device_name(pick_device("cpu")),
        "threads": torch.get_num_threads(),
        "texts_per_s": {
            side: round(count / statistics.median(seconds for seconds, _ in times), 1)
            for side, times in spent.items()
        },
        "five_to_one": round(statistics.median(clock), 3),
        "five_to_one_of_pairs": [round(ratio, 3) for ratio in clock],
        "five_to_one_cpu": round(statistics.median(cpu), 3),
        "five_to_one_cpu_of_pairs": [round(ratio, 3) for ratio in cpu],
    }


def memory_child(encoder: str, folder: str, count: int) -> dict[str, Any]:
    from outshine.bulk import predict_file

    source = Path(folder) / "rows.jsonl"
    chance = random.Random(1)
    with source.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = " ".join(chance.choices(WORDS, k=chance.randint(3, 20)))
            file.write(json.dumps({"id": number, "text": text}) + "\n")
    model = make_predictor(encoder)
    loaded = peak_mb()
    start = time.perf_counter()
    counts = predict_file(model, source, Path(folder) / "answers.jsonl")
    seconds = time.perf_counter() - start
    return {
        "rows": counts.rows,
        "rows_per_s": round(counts.rows / seconds, 1),
        "loaded_mb": round(loaded),
        "peak_mb": round(peak_mb()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--small-encoder", default="builtin")
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--texts", type=int, default=48)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--child", nargs="+")
    args = parser.parse_args()
    if args.child:
        what, encoder, *rest = args.child
        if what == "heads":
            print(json.dumps(heads_child(encoder, *map(int, rest))))
        else:
            print(json.dumps(memory_child(encoder, rest[0], int(rest[1]))))
        return
    heads = fresh(__file__, "heads", args.encoder, args.pairs, args.texts)
    with tempfile.TemporaryDirectory() as folder:
        streaming = [
            fresh(__file__, "memory", args.small_encoder, folder, rows)
            for rows in (args.rows, 4 * args.rows)
        ]
    from common import conditions

    about = {"bench": "predict"} | conditions(args)
    print(json.dumps(about | {"heads": heads, "streaming": streaming}, indent=2))


if __name__ == "__main__":
    main()
