"""Made-up pairs of texts in a file, and processes of their own to measure memory in.

It imports no torch, whose memory would hide that of others.
"""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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
    """A task of such pairs, with 50 dev rows."""
    write_pairs(folder / "train.csv", rows, 1)
    write_pairs(folder / "dev.csv", 50, 2)
    path = folder / "pairs.toml"
    path.write_text(
        'name = "pairs"\ntext = ["a", "b"]\nlabel = "label"\nlabels = ["no", "yes"]\n'
        '[files]\ntrain = "train.csv"\ndev = "dev.csv"\n'
    )
    return path


def peak_mb() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fresh(script: str, *arguments: str | int) -> dict[str, Any]:
    """What `script --child ARGUMENTS` prints, in a new process with an empty cache of tables."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, script, "--child", *map(str, arguments)],
            check=True,
            stdout=subprocess.PIPE,
            env=os.environ | {"OUTSHINE_CACHE_DIR": cache},
        )
    return json.loads(done.stdout)
