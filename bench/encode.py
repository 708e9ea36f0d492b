"""Encoding: what so many distinct pairs take, in time and memory.

    python bench/encode.py [--pairs 400000] [--encoder builtin] [--repeats 3]

Encodes made-up pairs of about 20 words, each time in a fresh process with an empty cache, and
reports the seconds and how much the peak memory of the process rises above that before. Prints one
JSON object; `seconds` and `added_mb` are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pairs import fresh, peak_mb, task_file


def encode_child(folder: Path, encoder: str) -> dict[str, Any]:
    from outshine.data import encode
    from outshine.encoders import load_tokenizer, locate
    from outshine.tasks import Task

    tokenizer = load_tokenizer(locate(encoder))
    tokenizer("one row, so that the tokenizer is loaded whole")
    before = peak_mb()
    start = time.perf_counter()
    table = encode(Task.load(folder / "pairs.toml"), "train", tokenizer, 128)
    seconds = time.perf_counter() - start
    return {
        "rows": len(table),
        "tokens": len(table.tokens),
        "seconds": round(seconds, 2),
        "added_mb": round(peak_mb() - before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=400_000)
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(encode_child(Path(args.child[0]), args.child[1])))
        return
    from common import conditions

    with tempfile.TemporaryDirectory() as folder:
        task_file(Path(folder), args.pairs)
        found = [fresh(__file__, folder, args.encoder) for _ in range(args.repeats)]
    medians = {
        key: round(statistics.median(one[key] for one in found), 1)
        for key in ("seconds", "added_mb")
    }
    content = {"bench": "encode"} | conditions(args) | found[0] | medians | {"all": found}
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
