"""Memory: whether training grows with the epochs.

    python bench/memory.py [--encoder builtin]

Trains the same short run of made-up pairs for 1 and for 8 epochs, each in a fresh process, and
prints both peaks in one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from pairs import fresh, peak_mb, task_file


def train_child(folder: Path, encoder: str, epochs: int) -> dict[str, Any]:
    import outshine
    from outshine.console import set_quiet

    set_quiet(True)
    run = outshine.train(
        [outshine.Task.load(folder / "pairs.toml")],
        outshine.TrainConfig(encoder=encoder, epochs=epochs, batch_size=32, keep="metrics"),
        out=folder / f"run-{epochs}",
    )
    return {"epochs": epochs, "steps": run.info()["steps"], "peak_mb": round(peak_mb())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    parser.add_argument("--child", nargs=3)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(train_child(Path(args.child[0]), args.child[1], int(args.child[2]))))
        return
    from common import conditions

    with tempfile.TemporaryDirectory() as folder:
        task_file(Path(folder), 320)
        training = [fresh(__file__, folder, args.encoder, epochs) for epochs in (1, 8)]
    print(json.dumps({"bench": "memory"} | conditions(args) | {"training": training}, indent=2))


if __name__ == "__main__":
    main()
