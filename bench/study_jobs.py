"""A study with one process after another, with several side by side, and with `--jobs auto`.

    python bench/study_jobs.py [--encoder bert-tiny-shape] [--jobs 1 2 auto] [--seeds 4]

Single-task, multi-task and student runs of two demo tasks, over so many seeds. A number of jobs is
timed from the start of `outshine study run` to its end, `auto` with its measuring. Prints seconds,
how many times as long as with `auto` each number took, and what `auto` chose from which rates.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import arguments, conditions, encoder_folder, in_turn, ratios
from kill_study import study_text

CHOICE = re.compile(
    r"note: --jobs (?P<jobs>\d+), measured in (?P<time>\S+) together: (?P<rates>.*)"
)


def timed(file: Path, out: Path, jobs: str, device: str) -> dict[str, Any]:
    """Makes the study in a new folder."""
    words = ["study", "run", str(file), "--out", str(out), "--jobs", jobs]
    code = "from outshine.cli import main; main()"
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--set", f"device={device}"],
        stderr=subprocess.PIPE,
        text=True,
    )
    seconds = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    found = CHOICE.search(done.stderr)
    return {"seconds": seconds, "choice": found.groupdict() if found else None}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--jobs", nargs="+", default=["1", "2", "auto"])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.toml"
        text = study_text(encoder_folder(args.encoder, folder), args.epochs, args.epochs)
        file.write_text(text.replace("seeds = 1\n", f"seeds = {args.seeds}\n"))
        sides = {
            jobs: lambda pair, jobs=jobs: timed(
                file, Path(folder) / f"{jobs}-{pair}", jobs, args.device
            )
            for jobs in args.jobs
        }
        found = in_turn(sides, args.pairs)
    seconds = {jobs: [each["seconds"] for each in times] for jobs, times in found.items()}
    content = {
        "seeds": args.seeds,
        "runs": 4 * args.seeds,
        "pairs": args.pairs,
        "seconds": {jobs: round(statistics.median(each), 1) for jobs, each in seconds.items()},
        "against_auto": {
            jobs: ratios(each, seconds["auto"])
            for jobs, each in seconds.items()
            if jobs != "auto" and "auto" in seconds
        },
        "auto_chose": [each["choice"] for each in found.get("auto", [])],
    }
    print(json.dumps({"bench": "study_jobs"} | conditions(args) | content, indent=2))


if __name__ == "__main__":
    main()
