"""Memory: whether training grows with the epochs, or with the tokens of its table.

    python bench/memory.py [--encoder builtin] [--rows 100000]

Trains the same short run of made-up pairs for 1 and for 8 epochs, each in a fresh process, and
tells both peaks. Then trains a few steps of one row from an encoded table of so many pairs, and
from one of as many pairs that are four times as long: its files are mapped into memory, from where
the system takes pages away as it likes, so what counts is the memory that is no file's (RssAnon of
/proc/self/status). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from pairs import fresh, peak_mb, task_file


def epochs_child(folder: str, encoder: str, epochs: str) -> dict[str, Any]:
    import outshine
    from outshine.console import set_quiet

    set_quiet(True)
    run = outshine.train(
        [outshine.Task.load(Path(folder, "pairs.toml"))],
        outshine.TrainConfig(encoder=encoder, epochs=epochs, batch_size=32, keep="metrics"),
        out=Path(folder, f"run-{epochs}"),
    )
    return {"epochs": int(epochs), "steps": run.info()["steps"], "peak_mb": round(peak_mb())}


def table_child(folder: str, encoder: str) -> dict[str, Any]:
    os.environ["OUTSHINE_CACHE_DIR"] = folder  # the table of the first call, which encodes
    from common import fit, plan_of

    from outshine.console import set_quiet
    from outshine.tasks import Task

    set_quiet(True)
    task = Task.load(Path(folder, "pairs.toml"))
    plan = plan_of([task], encoder=encoder, device="cpu", batch_size=1, max_steps=5)
    fit(plan)
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "no RssAnon in /proc/self/status"
    table = plan.mixture.parts[0].table
    files = Path(folder, "tokens").glob("pairs-train-*")
    return {
        "rows": len(table),
        "tokens": len(table.tokens),
        "table_mb": round(sum(path.stat().st_size for path in files) / 2**20, 1),
        "anonymous_mb": round(int(found[1]) / 1024, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--child", nargs="+")
    args = parser.parse_args()
    if args.child:
        what, *rest = args.child
        print(json.dumps({"epochs": epochs_child, "table": table_child}[what](*rest)))
        return
    with tempfile.TemporaryDirectory() as folder:
        task_file(Path(folder), 320)
        training = [fresh(__file__, "epochs", folder, args.encoder, epochs) for epochs in (1, 8)]
    tables = []
    for longer in (1, 4):
        with tempfile.TemporaryDirectory() as folder:
            task_file(Path(folder), args.rows, longer)
            tables.append([fresh(__file__, "table", folder, args.encoder) for _ in range(2)][1])
    from common import conditions

    content = {"training": training, "tables": tables}
    print(json.dumps({"bench": "memory"} | conditions(args) | content, indent=2))


if __name__ == "__main__":
    main()
