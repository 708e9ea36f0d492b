"""Where the time of an undisturbed study at --jobs 1 went, by what its folder records.

    python bench/study_overhead.py [--encoder builtin]

runs one of two demo tasks, whose four runs train for a minute or more on two cores with bf16.

    outshine study run FILE
    python bench/study_overhead.py FOLDER [--wall-s SECONDS]

looks at one that was run. Give what `time` said of the whole command as --wall-s; without it the
wall time is that from the claim of the first run to the last row, without the start of the process.
A row says how long its run took, `run.json` how much of it was training, and the times of files in
the run's folder divide the rest. Prints one JSON object in seconds. `overhead` is what the study
takes beyond the training of its runs, as a share of it; `overhead_beyond_runs` is what it takes
beyond the runs as a whole, with their reading, evaluation and saving.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import arguments, conditions
from kill_study import start, study_text

from outshine.errors import UserError
from outshine.results import ROWS, Row, read_rows
from outshine.runs import Run


def newest(paths: Iterable[Path], before: float) -> float:
    """The latest time, not after `before`, at which one of the files was written; else 0."""
    times = [path.stat().st_mtime for path in paths]
    return max((moment for moment in times if moment <= before), default=0.0)


def parts(row: Row, run: Run) -> dict[str, float]:
    """Seconds of each part of a run, in the order in which they happen."""
    info = run.info()
    end = (run.path / "run.json").stat().st_mtime
    trained = end - (info["seconds"] - info["train_s"])
    # of weights that nobody needed and that were removed, the time counts as that of evaluation
    saved = max(trained, newest(run.model_dir.glob("*"), end))
    evaluated = max(saved, newest(run.path.glob("predictions/*-dev*"), end))
    answered = max(evaluated, newest(run.path.glob("predictions/*-train*"), end))
    return {
        "read_and_load": row.seconds - info["seconds"],
        "train": info["train_s"],
        "save_weights": saved - trained,
        "evaluate_dev": evaluated - saved,
        "train_logits": answered - evaluated,
        "rest": end - answered,
    }


def account(folder: Path, wall_s: float | None) -> dict[str, Any]:
    """Where the time of the study in a folder went."""
    rows = list(read_rows([folder]).values())
    if not rows:
        raise UserError(f"cannot measure {folder}: no row in {ROWS}", "run the study first")
    first, last = (folder / name for name in (".claims", ROWS))
    wall = wall_s or last.stat().st_mtime - first.stat().st_mtime
    total: Counter[str] = Counter()
    for row in rows:
        total.update(parts(row, Run(folder / row.folder)))
    in_runs = sum(row.seconds for row in rows)
    total["between_runs" if wall_s is None else "start_and_between_runs"] = wall - in_runs
    trained = sum(row.train_s for row in rows)
    return {
        "runs": len(rows),
        "resumed": sum(Run(folder / row.folder).info()["resumed"] for row in rows),
        "trained_on": rows[0].device,
        "trained_with_threads": rows[0].num_threads,
        "wall_s": round(wall, 1),
        "train_s": round(trained, 1),
        "shortest_run_s": round(min(row.train_s for row in rows), 1),
        "seconds": {key: round(value, 1) for key, value in total.items()},
        "overhead": round(wall / trained - 1, 3),
        "overhead_beyond_runs": round(wall / in_runs - 1, 3),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--wall-s", type=float)
    args = parser.parse_args()
    about = {"bench": "study_overhead"} | conditions(args)
    if args.folder:
        found = account(args.folder, args.wall_s)
    else:
        with tempfile.TemporaryDirectory() as name:
            file, folder = Path(name) / "study.toml", Path(name) / "study"
            file.write_text(study_text(args.encoder, single_epochs=52, multi_epochs=20))
            begin = time.monotonic()
            assert start(file, folder, []).wait() == 0
            found = account(folder, time.monotonic() - begin)
    print(json.dumps(about | found, indent=2))


if __name__ == "__main__":
    main()
