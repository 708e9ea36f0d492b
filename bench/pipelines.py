"""Predictions per second: one model with five heads against five transformers pipelines.

    python bench/pipelines.py [--encoder builtin] [--texts 64] [--pairs 5]

An untrained model answers texts of 3 to 60 words for five tasks in one encoder pass; five
single-task classifiers of the same encoder answer the same texts, one pipeline after the other,
with batches of 1, 8 and 32 (the best counts). Both sides tokenise, compute in float32 and take
turns. Prints one JSON object; `ratio` is taken pair by pair.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from typing import Any

from common import arguments, conditions, encoder_folder, in_turn, ratios
from predict import make_predictor, texts

from outshine.encoders import load_tokenizer, locate

BATCHES = (1, 8, 32)


def pipelines(location: str, count: int, device: str) -> list[Any]:
    """Classifiers of three classes with heads of their own."""
    import torch
    from transformers import AutoModelForSequenceClassification, TextClassificationPipeline

    return [
        TextClassificationPipeline(
            model=AutoModelForSequenceClassification.from_pretrained(
                location, num_labels=3, dtype=torch.float32
            ).eval(),
            tokenizer=load_tokenizer(location),
            device=device,
        )
        for _ in range(count)
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        location = locate(encoder_folder(args.encoder, folder))
        predictor = make_predictor(location, args.device)
        single = pipelines(location, len(predictor.tasks), args.device)

    def ours(pair: int) -> float:
        rows = texts(args.texts, pair, 60)
        start = time.perf_counter()
        predictor.predict(rows)
        return time.perf_counter() - start

    def theirs(batch_size: int, pair: int) -> float:
        rows = texts(args.texts, pair, 60)
        start = time.perf_counter()
        for pipeline in single:
            pipeline(rows, batch_size=batch_size, truncation=True, max_length=128)
        return time.perf_counter() - start

    sides = {f"pipelines, batch {b}": lambda pair, b=b: theirs(b, pair) for b in BATCHES}
    sides["outshine"] = ours
    for side in sides.values():
        side(args.pairs)  # the first passes allocate
    found = in_turn(sides, args.pairs)
    asked = args.texts * len(single)
    best = min(list(sides)[: len(BATCHES)], key=lambda name: statistics.median(found[name]))
    content = {
        "heads": len(single),
        "texts": args.texts,
        "pairs": args.pairs,
        "predictions_per_s": {n: round(asked / statistics.median(s), 1) for n, s in found.items()},
        "best": best,
        "ratio": ratios(found[best], found["outshine"]),
    }
    print(json.dumps({"bench": "pipelines"} | conditions(args) | content, indent=2))


if __name__ == "__main__":
    main()
