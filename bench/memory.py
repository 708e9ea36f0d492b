"""Memory: what encoding adds to a process, and whether training grows with the epochs.

    python bench/memory.py [--pairs 100000] [--encoder builtin]

Encodes that many distinct made-up pairs in a fresh process and reports how much its peak memory
rises above that before encoding; then trains the same short run for 1 and for 8 epochs, each in a
fresh process, and reports both peaks. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [
    "the",
    "a",
    "this",
    "that",
    "my",
    "our",
    "lamp",
    "hub",
    "door",
    "sensor",
    "camera",
    "plug",
    "thermostat",
    "app",
    "invoice",
    "parcel",
    "code",
    "password",
    "letter",
    "window",
    "garden",
    "winter",
    "battery",
    "cable",
    "screen",
    "order",
    "driver",
    "street",
    "office",
    "phone",
    "is",
    "was",
    "lost",
    "broken",
    "late",
    "new",
    "old",
    "open",
    "closed",
    "quick",
    "slow",
    "red",
    "green",
    "loud",
    "never",
    "always",
    "often",
    "twice",
    "again",
    "today",
    "tomorrow",
    "upstairs",
    "outside",
    "because",
    "although",
    "while",
    "before",
    "after",
    "with",
    "without",
]


def write_pairs(path: Path, count: int, seed: int) -> None:
    """Distinct random pairs of about 20 words in all, with a label."""
    chance = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "label"])
        for number in range(count):
            texts = [" ".join(chance.choices(WORDS, k=chance.randint(5, 15))) for _ in range(2)]
            writer.writerow([f"{texts[0]} {number}", texts[1], chance.choice(["no", "yes"])])


def task_file(folder: Path, rows: int) -> Path:
    write_pairs(folder / "train.csv", rows, 1)
    write_pairs(folder / "dev.csv", 50, 2)
    path = folder / "pairs.toml"
    path.write_text(
        'name = "pairs"\ntext = ["a", "b"]\nlabel = "label"\nlabels = ["no", "yes"]\n'
        '[files]\ntrain = "train.csv"\ndev = "dev.csv"\n'
    )
    return path


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def encode_child(folder: Path, encoder: str) -> dict[str, float]:
    from outshine.data import encode
    from outshine.encoders import load_tokenizer, locate
    from outshine.tasks import Task

    tokenizer = load_tokenizer(locate(encoder))
    tokenizer("one row, so that the tokenizer is loaded whole")
    before = peak_mb()
    start = time.perf_counter()
    table = encode(Task.load(folder / "pairs.toml"), "train", tokenizer, 128)
    seconds = time.perf_counter() - start
    return {"rows": len(table), "seconds": round(seconds, 1), "added_mb": round(peak_mb() - before)}


def train_child(folder: Path, encoder: str, epochs: int) -> dict[str, float]:
    import outshine
    from outshine.console import set_quiet

    set_quiet(True)
    run = outshine.train(
        [outshine.Task.load(folder / "pairs.toml")],
        outshine.TrainConfig(encoder=encoder, epochs=epochs, batch_size=32, keep="metrics"),
        out=folder / f"run-{epochs}",
    )
    return {"epochs": epochs, "steps": run.info()["steps"], "peak_mb": round(peak_mb())}


def child(*arguments: str) -> dict[str, float]:
    environment = os.environ | {"OUTSHINE_CACHE_DIR": tempfile.mkdtemp(dir=arguments[1])}
    done = subprocess.run(
        [sys.executable, __file__, "--child", *arguments],
        check=True, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--child", nargs="+")
    args = parser.parse_args()
    if args.child:
        what, folder, *rest = args.child
        run = encode_child if what == "encode" else train_child
        print(json.dumps(run(Path(folder), rest[0], *map(int, rest[1:]))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task_file(folder, args.pairs)
        encoding = child("encode", name, args.encoder)
        task_file(folder, 320)
        training = [child("train", name, args.encoder, str(epochs)) for epochs in (1, 8)]
    print(json.dumps({"bench": "memory", "encoding": encoding, "training": training}, indent=2))


if __name__ == "__main__":
    main()
