"""Made-up pairs of texts in a file, and processes of their own to measure in.

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
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

# Read here, for every benchmark imports this before it works.
LOAD_BEFORE = round(os.getloadavg()[0], 2)
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


def write_pairs(path: Path, count: int, seed: int, longer: int = 1) -> None:
    """Distinct random pairs of about 20 words in all, or so many times 20, with a label."""
    chance = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "label"])
        for number in range(count):
            sizes = [longer * chance.randint(5, 15) for _ in range(2)]
            texts = [" ".join(chance.choices(WORDS, k=size)) for size in sizes]
            writer.writerow([f"{texts[0]} {number}", texts[1], chance.choice(["no", "yes"])])


def task_file(folder: Path, rows: int, longer: int = 1) -> Path:
    """A task of such pairs, with 50 dev rows."""
    write_pairs(folder / "train.csv", rows, 1, longer)
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


def together(script: str, works: Sequence[Mapping[str, Any]]) -> tuple[float, list[dict[str, Any]]]:
    """Runs `script --child WORK` for each work at once, in fresh processes.

    Returns:
        Seconds from the moment when all were ready to the end of the last, and what each found.
    """
    begun = []
    for work in works:
        threads = {"OMP_NUM_THREADS": str(work["threads"])} if work.get("threads") else {}
        command = [sys.executable, script, "--child", json.dumps(work)]
        begun.append(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | threads
            )
        )
    for process in begun:
        assert process.stdout and process.stdin
        assert process.stdout.readline() == b"ready\n", f"{command} failed"
    start = time.monotonic()
    for process in begun:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    answers = [json.loads(process.communicate()[0]) for process in begun]
    return max(answer.pop("end") for answer in answers) - start, answers


def as_child(work: Callable[[], dict[str, Any]]) -> None:
    """Within a child: says that it is ready, waits for the others, works, and prints the answer."""
    print("ready", flush=True)
    sys.stdin.readline()
    with redirect_stdout(sys.stderr):
        answer = work()
    print(json.dumps(answer | {"end": time.monotonic()}))
