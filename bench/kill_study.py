"""Kills a study with SIGKILL at moments spread evenly over its duration, and compares what it says.

    python bench/kill_study.py [FILE] [--kills 20] [--set KEY=VALUE ...]

Without FILE it is a study of two demo tasks whose four runs train for 40 s or more on two cores
with bf16. It is run once undisturbed, and once killed so many times, each time after as much
further work as the undisturbed study does in that share of its duration. The second writes
checkpoints all the time (`save_every_s` is small), so that some kills fall into writes. Prints
whether both have the same rows, and how long the first took beyond the training of its runs.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import arguments, conditions

from outshine.demo import SUITE
from outshine.results import Row, read_rows
from outshine.runs import Run

ALIKE = ("metrics", "degenerate", "steps", "rows", "tokens", "curve", "mixture", "data", "teachers")


def study_text(encoder: str, single_epochs: int = 40, multi_epochs: int = 16) -> str:
    tasks = [str(SUITE / f"{name}.toml") for name in ("intent", "sentiment")]
    return (
        f'name = "kill"\nencoder = "{encoder}"\ntasks = {json.dumps(tasks)}\n'
        'seeds = 1\narms = ["single", "multi", "single->multi"]\n'
        f'[stage.single]\npreset = "small-single"\nepochs = {single_epochs}\n'
        f'[stage.multi]\npreset = "small-multi"\nepochs = {multi_epochs}\n'
    )


def start(file: Path, out: Path, settings: list[str]) -> subprocess.Popen[bytes]:
    words = ["study", "run", str(file), "--out", str(out), *settings]
    code = "from outshine.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, *words])


def alike(rows: dict[str, Row]) -> dict[str, list[Any]]:
    return {run: [getattr(row, key) for key in ALIKE] for run, row in rows.items()}


def wait_for_work(process: subprocess.Popen[bytes], out: Path) -> None:
    """Waits until the process trains or has ended."""

    def newest() -> float:
        return max((p.stat().st_mtime for p in out.glob("runs/*/log.jsonl")), default=0.0)

    begin = time.time()
    while process.poll() is None and newest() < begin:
        time.sleep(0.05)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    args = parser.parse_args()
    settings = [word for setting in args.settings for word in ("--set", setting)]
    often = [*settings, "--set", "save_every_s=0.5"]
    with tempfile.TemporaryDirectory() as folder:
        file = args.file or Path(folder) / "kill.toml"
        if args.file is None:
            file.write_text(study_text(args.encoder))
        calm, killed = Path(folder) / "calm", Path(folder) / "killed"
        begin = time.monotonic()
        assert start(file, calm, settings).wait() == 0
        duration = time.monotonic() - begin
        times = [row.train_s for row in read_rows([calm]).values()]
        share = duration / (args.kills + 1)
        made = 0
        while made < args.kills:
            process = start(file, killed, often)
            wait_for_work(process, killed)
            try:
                process.wait(share)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                made += 1
        assert start(file, killed, often).wait() == 0
        infos = [Run(path.parent).info() for path in killed.glob("runs/*/run.json")]
        print(
            json.dumps(
                {
                    "bench": "kill_study",
                    **conditions(args),
                    "runs": len(times),
                    "duration_s": round(duration, 1),
                    "train_s": round(sum(times), 1),
                    "shortest_run_s": round(min(times), 1),
                    "overhead": round(duration / sum(times) - 1, 3),
                    "kills": made,
                    "resumed": sum(info.get("resumed", 0) for info in infos),
                    "identical": alike(read_rows([calm])) == alike(read_rows([killed])),
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
