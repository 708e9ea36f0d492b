"""Writes the tables of docs/performance.md from what the benchmarks printed into results/bench.

`make docs` runs it; it computes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from run import BENCHES, GPU_BENCHES, RESULTS

PAGE = RESULTS.parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- tables:begin -->", "<!-- tables:end -->"
EVERY = BENCHES | GPU_BENCHES
Found = dict[str, Any]


def read(name: str) -> Found | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def shown(ratio: Found, unit: str = " x") -> str:
    """The median, with the smallest and the largest pair."""
    return f"{ratio['median']:.2f}{unit} ({min(ratio['pairs']):.2f} to {max(ratio['pairs']):.2f})"


def percent(ratio: Found) -> str:
    low, high = 100 * min(ratio["pairs"]), 100 * max(ratio["pairs"])
    return f"{100 * ratio['median']:.0f} % ({low:.0f} to {high:.0f})"


def run_of(found: Found, batch_size: int) -> Found | None:
    return next((run for run in found["runs"] if run["batch_size"] == batch_size), None)


def against(batch_size: int, *sides: str) -> Callable[[Found], str | None]:
    def cell(found: Found) -> str | None:
        run = run_of(found, batch_size)
        return run and "; ".join(f"{shown(run['ratio_to'][side])} {side}" for side in sides)

    return cell


def train_share(batch_size: int) -> Callable[[Found], str | None]:
    def cell(found: Found) -> str | None:
        run = run_of(found, batch_size)
        return run and f"{percent(run['share_of_matrix_rate']['outshine'])}, {run['precision']}"

    return cell


def logits_share(found: Found) -> str:
    share = percent(found["share_of_matrix_rate"])
    return f"{share}, {found['precision']}, {found['rows_per_s']:,.0f} rows/s"


def encoded(found: Found) -> str:
    return f"{found['rows']:,} pairs: {found['seconds']:.1f} s, {found['added_mb']:.0f} MB"


def row_costs(found: Found) -> str:
    table = found["times_rows"]
    return "; ".join(f"{n} x: {shown(row['per_row'])} per row" for n, row in table.items())


def task_costs(found: Found) -> str:
    return f"{shown(found['tasks']['50']['per_row'])} per row, processor time"


def gain(found: Found) -> str:
    return shown(found["processes"]["gain"] if "processes" in found else found["ratio"])


def heads_cost(found: Found) -> str:
    heads = found["heads"]
    ratio = {"median": heads["five_to_one"], "pairs": heads["five_to_one_of_pairs"]}
    return f"{shown(ratio)}, {heads['texts_per_s']['five']:,.0f} texts/s"


def served(found: Found) -> str:
    many = found["many"]
    return (
        f"{many['errors']} errors of {many['requests']:,}; {found['throughput_ratio']:.2f} x one; "
        f"p99 {many['p99_ms']:,.0f} ms of {found['p99_limit_ms']:,.0f}; "
        f"memory {many['memory_mb'][1]:,.0f} to {many['memory_mb'][-1]:,.0f} MB"
    )


def streamed(found: Found) -> str:
    calm = found["undisturbed"]
    memory = calm["memory_mb"]
    same = "the same" if found["killed"]["identical"] else "OTHER"
    return (
        f"{found['rows']:,} rows at {calm['rows_per_s']:,.0f} rows/s; {memory[1]:,} to "
        f"{memory[-1]:,} MB; {same} bytes after kill -9"
    )


TRAIN = "training, MNLI rows, batch"
BASE = "training, BERT-base shape, mixed GLUE, batch"
GOALS: list[tuple[str, str, str, Callable[[Found], str | None]]] = [
    (f"{TRAIN} 32", "6 x defaults, 1.5 x tuned", "train", against(32, "defaults", "tuned")),
    (f"{TRAIN} 128", "6 x defaults, 1.5 x tuned", "train", against(128, "defaults", "tuned")),
    ("share of the matrix rate, mixed GLUE, batch 128", "60 %", "train-glue", train_share(128)),
    (f"{BASE} 128", "3 x tuned, 1.5 x compiled", "train-cuda", against(128, "tuned", "compiled")),
    ("its share of the matrix rate, batch 128", "30 %", "train-cuda", train_share(128)),
    ("its share of the matrix rate, batch 1,024", "45 %", "train-cuda", train_share(1024)),
    ("20 seeds of RTE, BERT-base shape", "4 x", "seeds-cuda", gain),
    ("predictions of five heads, five pipelines", "10 x", "pipelines", gain),
    ("teacher logits, share of the matrix rate", "60 %", "logits", logits_share),
    ("the same, BERT-base shape", "60 %", "logits-cuda", logits_share),
    ("encoding 400,000 distinct pairs", "60 s, 1 GB", "encode", encoded),
    ("1, 4 and 16 times the rows", "linear", "scaling", row_costs),
    ("50 tasks instead of 1", "1.10 x", "scaling", task_costs),
    ("2 processes of one thread against 1, batch 128", "1.7 x", "scaling", gain),
    ("five tasks of one text against one task", "1.10 x", "predict", heads_cost),
    ("ONNX Runtime against the packed path, batch 1", "1.20 x", "onnx", gain),
    ("50 clients, 10 minutes", "no error, 2 x one, p99, memory", "serve", served),
    ("`predict` streams a file", "memory does not grow", "stream", streamed),
]


def missing(name: str) -> str:
    return "not measured (needs a GPU)" if name in GPU_BENCHES else "not measured yet"


def goals() -> Iterator[str]:
    yield from ("| what | to reach | measured | machine | command |", "| --- " * 5 + "|")
    for what, goal, name, cell in GOALS:
        found = read(name)
        value = found and cell(found)
        about = f"{found['machine']}, {found['threads']} threads" if found and value else ""
        command = found["command"] if found and value else f"python bench/{EVERY[name]}"
        yield f"| {what} | {goal} | {value or missing(name)} | {about} | `{command}` |"


def training() -> Iterator[str]:
    columns = (
        "rows | batch | side | rows/s | Outshine is faster by | share of the matrix rate | loss"
    )
    yield from (f"| {columns} |", "| --- " * 7 + "|")
    for name in ("train", "train-glue", "train-cuda"):
        found = read(name)
        if found is None:
            yield f"| `bench/{EVERY[name]}` | | | {missing(name)} | | | |"
            continue
        for run in found["runs"]:
            for side, speed in run["rows_per_s"].items():
                ratio = shown(run["ratio_to"][side]) if side in run["ratio_to"] else ""
                share = run.get("share_of_matrix_rate", {}).get(side)
                yield (
                    f"| {run['rows']:,} of {', '.join(found['tasks'])} | {run['batch_size']} "
                    f"| {side} | {speed:,.1f} | {ratio} | {percent(share) if share else ''} "
                    f"| {run['loss'][side]:.3f} |"
                )


def scaling() -> Iterator[str]:
    columns = "work | rows | s | processor s | ms per row | relative | by the clock | peak MB"
    yield from (f"| {columns} |", "| --- " * 8 + "|")
    found = read("scaling")
    if found is None:
        yield f"| {missing('scaling')} | | | | | | | |"
        return
    for key, what in (("times_rows", "{} x the rows"), ("tasks", "{} tasks")):
        for count, row in found[key].items():
            yield (
                f"| {what.format(count)} | {row['rows']:,} | {row['seconds']:.1f} "
                f"| {row['cpu_s']:.1f} | {row['cpu_ms_per_row']:.2f} "
                f"| {shown(row['per_row'])} | {shown(row['per_row_by_clock'])} "
                f"| {row['peak_mb']:,.0f} |"
            )


def profiles() -> Iterator[str]:
    for name in ("profile", "profile-cuda"):
        found = read(name)
        if found is None:
            yield f"`python bench/{EVERY[name]}`: {missing(name)}.\n"
            continue
        sides = found["sides"]
        yield f"`{found['command']}` on {found['machine']}:\n"
        yield f"| share of a step | {' | '.join(sides)} |"
        yield "| --- " * (1 + len(sides)) + "|"
        for group in dict.fromkeys(g for side in sides.values() for g in side["share"]):
            cells = [f"{100 * side['share'].get(group, 0):.1f} %" for side in sides.values()]
            yield f"| {group} | {' | '.join(cells)} |"
        for key in ("formula", "multiplied"):
            cells = [f"{side['gflop_per_step'][key]:.1f}" for side in sides.values()]
            yield f"| GFLOP per step, {key} | {' | '.join(cells)} |"
        cells = [f"{side['ms_per_step']:.0f}" for side in sides.values()]
        yield f"| ms per step | {' | '.join(cells)} |\n"


def origins() -> Iterator[str]:
    yield from ("| benchmark | command | machine | versions | commit |", "| --- " * 5 + "|")
    for name in EVERY:
        found = read(name)
        if found and "machine" in found:  # early files do not tell
            versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
            commit = (found["git_commit"] or "not recorded")[:12]
            machine = f"{found['machine']}, {found['threads']} threads, {found['encoder']}"
            yield f"| {name} | `{found['command']}` | {machine} | {versions} | {commit} |"


def page() -> str:
    """The whole page with its tables made anew."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    sections = {
        "Goals": goals,
        "Training": training,
        "Cost against work": scaling,
        "Profile of a training step": profiles,
        "Where the numbers come from": origins,
    }
    body = "\n\n".join(
        f"## {title}\n\n" + "\n".join(make()).strip() for title, make in sections.items()
    )
    return f"{before}{BEGIN}\n{body.strip()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
