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


def as_multiplied(found: Found) -> str:
    """The share of the matrix rate that was really multiplied; early files do not tell."""
    share = found["share_of_matrix_rate"]
    median = share.get("outshine", share)["median"]
    fraction = found.get("multiplied_of_formula")
    return "" if fraction is None else f", {100 * median * fraction:.0f} % as multiplied"


# A cell of the goals' table is a text, and whether the goal is reached (by the medians).
Cell = tuple[str, bool]


def against(batch_size: int, **wanted: float) -> Callable[[Found], Cell | None]:
    def cell(found: Found) -> Cell | None:
        run = run_of(found, batch_size)
        if run is None:
            return None
        ratio = {side: run["ratio_to"][side] for side in wanted}
        reached = all(ratio[side]["median"] >= least for side, least in wanted.items())
        return "; ".join(f"{shown(ratio[side])} {side}" for side in wanted), reached

    return cell


def train_share(batch_size: int, wanted: float) -> Callable[[Found], Cell | None]:
    def cell(found: Found) -> Cell | None:
        run = run_of(found, batch_size)
        if run is None:
            return None
        share = run["share_of_matrix_rate"]["outshine"]
        text = f"{percent(share)}{as_multiplied(run)}, {run['precision']}"
        return text, share["median"] >= wanted

    return cell


def logits_share(found: Found) -> Cell:
    share = found["share_of_matrix_rate"]
    text = f"{percent(share)}{as_multiplied(found)}, {found['precision']}"
    return f"{text}, {found['rows_per_s']:,.0f} rows/s", share["median"] >= 0.6


def encoded(found: Found) -> Cell:
    seconds, added_mb = found["seconds"], found["added_mb"]
    text = f"{found['rows']:,} pairs: {seconds:.1f} s, {added_mb:,.0f} MB"
    return text, seconds < 60 and added_mb * 2**20 < 1e9


def row_costs(found: Found) -> Cell:
    table = found["times_rows"]
    text = "; ".join(
        f"{times} x: {shown(row['per_row'])} per row, {row['peak_mb']:,.0f} MB"
        for times, row in table.items()
    )
    first = table["1"]
    return text, all(
        row["per_row"]["median"] <= 1.1 and row["peak_mb"] <= int(times) * first["peak_mb"]
        for times, row in table.items()
    )


def task_costs(found: Found) -> Cell:
    ratio = found["tasks"]["50"]["per_row"]
    return f"{shown(ratio)} per row, processor time", ratio["median"] < 1.1


def at_least(wanted: float) -> Callable[[Found], Cell]:
    def cell(found: Found) -> Cell:
        ratio = found["processes"]["gain"] if "processes" in found else found["ratio"]
        return shown(ratio), ratio["median"] >= wanted

    return cell


def onnx_cost(found: Found) -> Cell:
    return shown(found["ratio"]), found["ratio"]["median"] <= 1.2


def heads_cost(found: Found) -> Cell:
    heads = found["heads"]
    ratio = {"median": heads["five_to_one"], "pairs": heads["five_to_one_of_pairs"]}
    text = f"{shown(ratio)}, {heads['texts_per_s']['five']:,.0f} texts/s"
    return text, ratio["median"] < 1.1


def grows(first_mb: float, last_mb: float) -> bool:
    """Whether memory grew by more than the allocator may keep without need."""
    return last_mb > 1.05 * first_mb


def served(found: Found) -> Cell:
    many = found["many"]
    first_mb, last_mb = many["memory_mb"][1], many["memory_mb"][-1]
    text = (
        f"{many['errors']} errors of {many['requests']:,}; {found['throughput_ratio']:.2f} x one; "
        f"p99 {many['p99_ms']:,.0f} ms of {found['p99_limit_ms']:,.0f}; "
        f"memory {first_mb:,.0f} to {last_mb:,.0f} MB"
    )
    return text, all(found["targets"].values()) and not grows(first_mb, last_mb)


def streamed(found: Found) -> Cell:
    calm = found["undisturbed"]
    first_mb, last_mb = calm["memory_mb"][1], calm["memory_mb"][-1]
    identical = found["killed"]["identical"]
    text = (
        f"{found['rows']:,} rows at {calm['rows_per_s']:,.0f} rows/s; {first_mb:,} to "
        f"{last_mb:,} MB; {'the same' if identical else 'OTHER'} bytes after kill -9"
    )
    return text, identical and not grows(first_mb, last_mb)


def epochs_memory(found: Found) -> Cell:
    few, many = found["training"]
    text = f"{few['peak_mb']:,} MB for {few['epochs']}, {many['peak_mb']:,} MB for {many['epochs']}"
    return text, not grows(few["peak_mb"], many["peak_mb"])


def table_memory(found: Found) -> Cell | None:
    if "tables" not in found:  # early files do not tell
        return None
    short, long = found["tables"]
    text = "; ".join(
        f"{table['tokens']:,} tokens ({table['table_mb']:,.0f} MB): {table['anonymous_mb']:,.0f} MB"
        for table in (short, long)
    )
    more, more_table = (long[key] - short[key] for key in ("anonymous_mb", "table_mb"))
    return text, more < more_table / 2  # a copy of the table would be as large as the table


def study_times(found: Found) -> Cell:
    text = ", ".join(f"{what} {found[what]['wall_s']:.1f} s" for what in found["target_s"])
    return text, all(found[what]["wall_s"] < goal for what, goal in found["target_s"].items())


def study_overhead(found: Found) -> Cell:
    text = f"{found['wall_s']:,.0f} s for {found['train_s']:,.0f} s of training in "
    shortest = f"{found['runs']} runs of {found['shortest_run_s']:.0f} s or more"
    return f"{100 * found['overhead']:.1f} %: {text}{shortest}", found["overhead"] < 0.05


def jobs_chosen(found: Found) -> Cell:
    seconds = dict(found["seconds"])
    auto = seconds.pop("auto")
    chosen = sorted({choice["jobs"] for choice in found["auto_chose"]})
    text = ", ".join(f"{jobs}: {s:.0f} s" for jobs, s in seconds.items())
    told = f"{text}; auto: {auto:.0f} s with its measuring, chose {' and '.join(chosen)}"
    return told, chosen == [min(seconds, key=lambda jobs: seconds[jobs])]


def survived(found: Found) -> Cell:
    text = f"{found['kills']} kills, {found['resumed']} resumed: "
    return text + ("the same" if found["identical"] else "others"), found["identical"]


TRAIN = "training, MNLI rows, batch"
BASE = "training, BERT-base shape, mixed GLUE, batch"
CORES, GPU = "2 cores", "H200"
GOALS: list[tuple[str, str, str, str, Callable[[Found], Cell | None]]] = [
    (
        f"{TRAIN} 32",
        "6 x defaults, 1.5 x tuned",
        CORES,
        "train",
        against(32, defaults=6, tuned=1.5),
    ),
    (
        f"{TRAIN} 128",
        "6 x defaults, 1.5 x tuned",
        CORES,
        "train",
        against(128, defaults=6, tuned=1.5),
    ),
    (
        "share of the matrix rate, mixed GLUE, batch 128",
        "60 %",
        CORES,
        "train-glue",
        train_share(128, 0.6),
    ),
    (
        f"{BASE} 128",
        "3 x tuned, 1.5 x compiled",
        GPU,
        "train-cuda",
        against(128, tuned=3, compiled=1.5),
    ),
    ("the same with CUDA graphs", "3 x tuned", GPU, "train-cuda-graphs", against(128, tuned=3)),
    ("its share of the matrix rate, batch 128", "30 %", GPU, "train-cuda", train_share(128, 0.3)),
    (
        "its share of the matrix rate, batch 1,024",
        "45 %",
        GPU,
        "train-cuda",
        train_share(1024, 0.45),
    ),
    ("20 seeds of RTE, BERT-base shape", "4 x", GPU, "seeds-cuda", at_least(4)),
    ("predictions of five heads, five pipelines", "10 x", CORES, "pipelines", at_least(10)),
    ("teacher logits, share of the matrix rate", "60 %", CORES, "logits", logits_share),
    ("the same, BERT-base shape", "60 %", GPU, "logits-cuda", logits_share),
    ("encoding 400,000 distinct pairs", "60 s, 1 GB", CORES, "encode", encoded),
    ("1, 4 and 16 times the rows", "linear in time and memory", CORES, "scaling", row_costs),
    ("50 tasks instead of 1", "1.10 x", CORES, "scaling", task_costs),
    (
        "2 processes of one thread (DDP) against 1, batch 128",
        "1.7 x",
        CORES,
        "ddp",
        at_least(1.7),
    ),
    ("training for 8 epochs instead of 1", "memory does not grow", CORES, "memory", epochs_memory),
    ("training from 4 times the tokens", "memory does not grow", CORES, "memory", table_memory),
    ("five tasks of one text against one task", "1.10 x", CORES, "predict", heads_cost),
    ("ONNX Runtime against the packed path, batch 1", "1.20 x", CORES, "onnx", onnx_cost),
    ("50 clients, 10 minutes", "no error, 2 x one, p99, memory", CORES, "serve", served),
    ("a study of 200 finished runs", "plan 2 s, report 10 s", CORES, "study-scale", study_times),
    ("time of a study beyond its training", "5 %", CORES, "study-overhead", study_overhead),
    ("`--jobs auto`, 16 runs", "the fastest number", CORES, "study-jobs", jobs_chosen),
    ("the same, 64 runs, BERT-base shape", "the fastest", GPU, "study-jobs-cuda", jobs_chosen),
    ("a study killed 20 times", "the undisturbed rows", CORES, "study-kill", survived),
    ("`predict` streams a file", "memory does not grow", CORES, "stream", streamed),
]


def missing(name: str) -> str:
    return "not measured (needs a GPU)" if name in GPU_BENCHES else "not measured yet"


def goals() -> Iterator[str]:
    columns = "what | to reach | on | measured | goal | machine | command"
    yield from (f"| {columns} |", "| --- " * 7 + "|")
    for what, goal, place, name, cell in GOALS:
        found = read(name)
        value = cell(found) if found else None
        text, verdict, about, command = missing(name), "", "", f"python bench/{EVERY[name]}"
        if found and value:
            text, verdict = value[0], "reached" if value[1] else "missed"
            about, command = machine(found), found.get("command", command)
        yield f"| {what} | {goal} | {place} | {text} | {verdict} | {about} | `{command}` |"


def machine(found: Found) -> str:
    """Where numbers are from; early files do not tell."""
    if "machine" not in found:
        return ""
    return f"{found['machine']}, {found['threads']} thread{'s' if found['threads'] != 1 else ''}"


def training() -> Iterator[str]:
    columns = (
        "rows | batch | side | rows/s | Outshine is faster by | share of the matrix rate | loss"
    )
    yield from (f"| {columns} |", "| --- " * 7 + "|")
    for name in ("train", "train-glue", "train-cuda", "train-cuda-graphs"):
        found = read(name)
        if found is None:
            yield f"| `bench/{EVERY[name]}` | | | {missing(name)} | | | |"
            continue
        for run in found["runs"]:
            for side, speed in run["rows_per_s"].items():
                ratio = shown(run["ratio_to"][side]) if side in run["ratio_to"] else ""
                share = run.get("share_of_matrix_rate", {}).get(side)
                cell = percent(share) if share else ""
                if share and side == "outshine":
                    cell += as_multiplied(run)
                yield (
                    f"| {run['rows']:,} of {', '.join(found['tasks'])} | {run['batch_size']} "
                    f"| {side} | {speed:,.1f} | {ratio} | {cell} "
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
            about = f"{machine(found)}, {found['encoder']}"
            yield f"| {name} | `{found['command']}` | {about} | {versions} | {commit} |"


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
