"""A long file through `outshine predict`: speed, memory, and a kill -9 in the middle.

    python bench/stream.py [RUN] [--rows 1000000]

Writes a JSONL file of so many short texts: those of the demo suite in turn, each with a number, so
that no two are alike. The run answers it once undisturbed. Then the same command is killed when
half of the rows are done, and given again. Prints one JSON object: rows per second behind the first
tenth of the rows, the largest memory of the process seen within each tenth, its peak, and whether
both outputs have the same bytes. Without RUN an untrained student of five tasks answers; a run of
your own needs a task that reads one text. Give 100,000 rows or more, since they go through in
chunks of 2,048. Memory is read from /proc.
"""

from __future__ import annotations

import csv
import filecmp
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import arguments, conditions, five_heads

from outshine.demo import SUITE
from outshine.runs import open_run


def write_rows(path: Path, count: int) -> None:
    """Distinct texts with ids, of the demo's train rows in turn."""
    texts = []
    for source in sorted(SUITE.glob("*-train.csv")):
        with source.open(newline="", encoding="utf-8") as file:
            texts += [row["text"] for row in csv.DictReader(file)]
    with path.open("w", encoding="utf-8") as file:
        for number, text in zip(range(count), itertools.cycle(texts)):
            file.write(json.dumps({"id": number, "text": f"{text} {number}"}) + "\n")


def start(run: str, source: Path, output: Path) -> subprocess.Popen[bytes]:
    code = "from outshine.cli import main; main()"
    words = ["predict", run, "--input", str(source), "--output", str(output)]
    return subprocess.Popen([sys.executable, "-c", code, *words])


def rows_done(output: Path) -> int:
    """Rows whose answers are safe on disk, of a command that has not ended."""
    try:
        state = output.with_name(f"{output.name}.part.json").read_text()
    except FileNotFoundError:
        return 0
    return int(json.loads(state)["counts"]["rows"])


def memory_mb(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Memory now and at most so far; zeros when the process has ended."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB\nVmRSS:\s+(\d+) kB", status)
    return (int(found[2]) / 1024, int(found[1]) / 1024) if found else (0.0, 0.0)


def watch(process: subprocess.Popen[bytes], output: Path, count: int) -> dict[str, Any]:
    """Waits for the end; memory within each tenth of the rows, and the speed behind the first."""
    begin = time.perf_counter()
    states = [(0, begin)]
    tenths, peak = [0.0] * 10, 0.0
    while process.poll() is None:
        done = rows_done(output)
        if done > states[-1][0]:
            states.append((done, time.perf_counter()))
        now, most = memory_mb(process)
        tenth = min(9, 10 * states[-1][0] // count)
        tenths[tenth], peak = max(tenths[tenth], now), max(peak, most)
        time.sleep(0.05)
    assert process.returncode == 0, "outshine predict failed"
    first, last = next(state for state in states if state[0] >= count / 10), states[-1]
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "rows_per_s": round((last[0] - first[0]) / (last[1] - first[1]), 1),
        "memory_mb": [round(value) for value in tenths],
        "peak_mb": round(peak),
    }


def kill_and_go_on(run: str, source: Path, output: Path, count: int) -> int:
    """Kills the command at half of the rows, and gives it again; the rows that were kept."""
    process = start(run, source, output)
    while rows_done(output) < count / 2:
        assert process.poll() is None, "it ended before it could be killed: give it more rows"
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = rows_done(output)
    assert start(run, source, output).wait() == 0
    return kept


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = open_run(args.run) if args.run else five_heads(folder, args.encoder)
        if args.run:
            args.encoder = run.config()["settings"]["encoder"]
        about = conditions(args)
        source, calm, killed = (folder / f"{x}.jsonl" for x in ("rows", "calm", "killed"))
        write_rows(source, args.rows)
        where = str(run.path)
        undisturbed = watch(start(where, source, calm), calm, args.rows)
        kept = kill_and_go_on(where, source, killed, args.rows)
        content = {
            "tasks": [task.name for task in run.tasks()],
            "rows": args.rows,
            "input_mb": round(source.stat().st_size / 2**20, 1),
            "undisturbed": undisturbed,
            "killed": {
                "kept_rows": kept,
                "identical": filecmp.cmp(calm, killed, shallow=False),
            },
            "cores": os.cpu_count(),
        }
    print(json.dumps({"bench": "stream"} | about | content, indent=2))


if __name__ == "__main__":
    main()
