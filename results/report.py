"""Writes results/README.md, which has all results, and the results part of the project's README.

    python results/report.py

`make docs` runs it, and `.ci/run` fails when its output is not what is committed. It computes
nothing but means, standard deviations and counts of the rows in results/first-light, and copies
numbers from the JSON of studies and of the benchmarks (results/bench), and what the demo printed
from results/demo/output.txt: stderr of `outshine demo`, under a line `# COMMAND; MACHINE; commit
COMMIT`. What a study's numbers mean beside the paper's is written by hand, in the `verdict.md`
beside its `report.json`.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent
FIRST_LIGHT = RESULTS / "first-light"
README = RESULTS.parent / "README.md"
DEMO = RESULTS / "demo" / "output.txt"
# In the project's README: whole, and by their comparisons.
SHOWN = ("small-dev", "small-builtin")
COMPARED = ("small-ablations", "small-finetune", "small-rte")
SELECTION_SEED = 100
ARMS = ("single", "multi", "single->multi")
TITLES = {
    "a": "`builtin` (22.7 M parameters), four tasks, all train rows, 4 passes, no swapped pairs",
    "b": "splade-tiny (4.4 M parameters), eight tasks, 2,000 train rows each, 3 passes",
}
COMMANDS = {
    "a": "python results/first-light/run.py a --glue-dir GLUE",
    "b": "python results/first-light/run.py b --glue-dir GLUE --encoder SPLADE_TINY",
}
METRIC = {"cola": "Matthews", "stsb": "Spearman"}


def read(study: str) -> list[dict[str, Any]]:
    path = FIRST_LIGHT / f"rows-{study}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def reported(rows: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, float]]]:
    """arm -> seed -> task -> primary dev metric in percent, of complete seeds only."""
    scores: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in ARMS}
    for row in rows:
        if row["seed"] != SELECTION_SEED:
            for task in row["tasks"]:
                value = 100 * next(iter(row["metrics"][task]["dev"].values()))
                scores[row["arm"]].setdefault(row["seed"], {})[task] = value
    tasks = {task for row in rows for task in row["tasks"]}
    return {
        arm: {seed: by_task for seed, by_task in seeds.items() if by_task.keys() == tasks}
        for arm, seeds in scores.items()
    }


def shown(values: list[float]) -> str:
    """Mean over seeds, with their standard deviation where there are several."""
    if not values:
        return "-"
    mean = statistics.fmean(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ± {statistics.stdev(values):.1f}"


def table(rows: list[dict[str, Any]]) -> list[str]:
    tasks = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    scores = reported(rows)
    n_dev = {t: row["metrics"][t]["dev"]["n"] for row in rows for t in row["tasks"]}
    lines = ["| task | metric | dev rows | " + " | ".join(ARMS) + " |"]
    lines.append("| --- | --- | ---: | " + " | ".join("---:" for _ in ARMS) + " |")
    for task in tasks:
        cells = [shown([by[task] for by in scores[arm].values()]) for arm in ARMS]
        metric = METRIC.get(task, "accuracy")
        lines.append(f"| {task} | {metric} | {n_dev[task]:,} | " + " | ".join(cells) + " |")
    means = [shown([statistics.fmean(by.values()) for by in scores[arm].values()]) for arm in ARMS]
    lines.append("| **score** | mean | | " + " | ".join(means) + " |")
    return lines


def differences(rows: list[dict[str, Any]]) -> list[str]:
    """How the scores of the same seeds differ, arm by arm."""
    scores = reported(rows)
    lines = []
    for a, b in (("single->multi", "single"), ("single->multi", "multi"), ("multi", "single")):
        seeds = sorted(scores[a].keys() & scores[b].keys())
        values = [
            statistics.fmean(scores[a][s].values()) - statistics.fmean(scores[b][s].values())
            for s in seeds
        ]
        if values:
            above = sum(value > 0 for value in values)
            lines.append(
                f"* score of {a} minus {b}: {statistics.fmean(values):+.2f} on average over "
                f"{len(values)} seed{'s' if len(values) > 1 else ''}, above 0 in {above}"
            )
    return lines


def rates(rows: list[dict[str, Any]]) -> list[str]:
    """Learning rate of each arm, with the scores on the seed that chose it."""
    lines = []
    for arm in ARMS:
        chosen = sorted({row["lr"] for row in rows if row["arm"] == arm and row["seed"] < 100})
        tried: dict[float, list[float]] = {}
        for row in rows:
            if row["arm"] == arm and row["seed"] == SELECTION_SEED:
                values = [100 * next(iter(row["metrics"][t]["dev"].values())) for t in row["tasks"]]
                tried.setdefault(row["lr"], []).extend(values)
        grid = ", ".join(f"{lr:g}: {statistics.fmean(v):.1f}" for lr, v in sorted(tried.items()))
        used = f"lr {', '.join(f'{lr:g}' for lr in chosen)} " if chosen else ""
        lines.append(f"* {arm}: {used}(tried {grid})")
    return lines


def threads(number: int) -> str:
    return f"{number} thread{'s' if number != 1 else ''}"


def section(study: str) -> list[str]:
    rows = read(study)
    scores = reported(rows)
    if not all(scores.values()):
        return [
            f"**{TITLES[study]}**: not run to its end yet. Only learning rates were tried, in one "
            "pass over at most 1,500 rows per task:",
            "",
            *rates(rows),
            "",
            f"Command: `{COMMANDS[study]}`.",
            "",
        ]
    seeds = {arm: sorted(by) for arm, by in scores.items()}
    counts = ", ".join(f"{arm} {len(s)}" for arm, s in seeds.items())
    row = rows[-1]
    commits = sorted({str(r["git_commit"])[:10] for r in rows})
    return [
        f"**{TITLES[study]}.** Dev metrics of the final weights in percent, mean ± standard "
        f"deviation over seeds (number of seeds: {counts}).",
        "",
        *table(rows),
        "",
        *differences(rows),
        "",
        "Learning rates, chosen on seed 100, which is not in the table"
        + (" (one pass over at most 1,500 rows per task):" if study == "a" else ":"),
        "",
        *rates(rows),
        "",
        f"Command: `{COMMANDS[study]}` on {row['device']} ({threads(row['num_threads'])} per run, "
        f"{row['precision']}), torch {row['versions']['torch']}, transformers "
        f"{row['versions']['transformers']}, commit {', '.join(commits)}.",
        "",
    ]


def studies() -> dict[str, list[str]]:
    """A section for each study whose report is in results/."""
    return {path.parent.name: study_section(path) for path in sorted(RESULTS.glob("*/report.json"))}


def study_section(path: Path) -> list[str]:
    """Scores, verdict and conclusion of a study, from what `outshine study report` wrote."""
    found, name = json.loads(path.read_text()), path.parent.name
    arms, info = found["arms"], found["provenance"]
    counts = sorted({arm["score"]["n"] for arm in arms.values() if arm["score"]})
    finished = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else counts[0]
    lines = [
        f"**Study {name}**: {finished} of the {len(found['seeds'])} seeds of "
        f"`studies/{name}.toml`, with {listed(info['encoder'])}. Median ± standard deviation of "
        "dev metrics in percent (n: seeds).",
        "",
        "| task | metric | dev rows | " + " | ".join(arms) + " |",
        "| --- | --- | ---: | " + " | ".join("---:" for _ in arms) + " |",
    ]
    for task, metric in found["metrics"].items():
        cells = [cell(arm["tasks"].get(task)) for arm in arms.values()]
        lines.append(f"| {task} | {metric} | {found['dev_rows'][task]:,} | {' | '.join(cells)} |")
    lines.append(f"| **score** | mean | | {' | '.join(cell(a['score']) for a in arms.values())} |")
    return [
        *lines,
        "",
        path.with_name("verdict.md").read_text().strip(),
        "",
        *(f"* {sentence}" for sentence in found["conclusion"]),
        "",
        f"Tests: {found['methods']['test']}; {found['methods']['holm']}. Command, in `studies/`: "
        f"`{found['command']}` on {listed(info['device'])} ({listed(info['precision'])}), commit "
        f"{listed(commit[:10] for commit in info['git_commits'])}; all numbers and pictures in "
        f"`results/{name}`.",
        "",
    ]


def comparisons(names: Iterable[str]) -> list[str]:
    """The comparisons of scores of some studies, a line each."""
    lines = [
        "| study | arm | against | difference in points | p | p paired by seed | n |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name in names:
        path = RESULTS / name / "report.json"
        for found in json.loads(path.read_text())["comparisons"] if path.exists() else []:
            if found["task"] == "score":
                arms = f"{found['a']} | {found['b']} | {found['difference']:+.1f}"
                tests = f"{rounded(found)} | {rounded(found['paired'])}"
                n = ", ".join(map(str, found["n"]))
                lines.append(f"| {name} | {arms} | {tests} | {n} |")
    return lines


def rounded(test: dict[str, Any] | None) -> str:
    """Its p after Holm."""
    if test is None:
        return "-"
    return "< 0.0001" if test["p_holm"] < 0.0001 else f"{test['p_holm']:.2g}"


def listed(value: str | Iterable[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def cell(values: dict[str, Any] | None) -> str:
    if values is None:
        return "-"
    spread = "" if values["std"] is None else f" ± {values['std']:.1f}"
    marked = f", {values['degenerate']} degenerate" if values["degenerate"] else ""
    return f"{values['median']:.1f}{spread} (n = {values['n']}{marked})"


def speed() -> list[str]:
    """What bench/train.py and bench/memory.py printed."""
    found, memory = (
        json.loads((RESULTS / "bench" / f"{name}.json").read_text()) for name in ("train", "memory")
    )
    names = {
        "outshine": "Outshine",
        "defaults": "transformers.Trainer with its defaults",
        "tuned": "transformers.Trainer, group_by_length and bf16",
    }
    lines = [
        f"**Speed.** Training rows per second, `{found['encoder']}`, MNLI rows, dropout 0.1, "
        f"{threads(found['threads'])} of {found['machine']}, torch {found['versions']['torch']}; "
        f"median of {found['pairs']} alternating pairs of {found['runs'][0]['rows']} rows.",
        "",
        "| | batch | rows/s | Outshine is faster by | smallest and largest pair | loss |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in found["runs"]:
        for side, rows_per_s in run["rows_per_s"].items():
            ratio = run["ratio_to"].get(side)
            pairs = f"{min(ratio['pairs']):.2f}, {max(ratio['pairs']):.2f}" if ratio else ""
            faster = f"{ratio['median']:.2f} x" if ratio else ""
            lines.append(
                f"| {names[side]} | {run['batch_size']} | {rows_per_s:.1f} | {faster} | {pairs} "
                f"| {run['loss'][side]:.3f} |"
            )
    short, long = memory["training"]
    return [
        *lines,
        "",
        f"Training for {long['epochs']} epochs instead of {short['epochs']} changes the peak memory"
        f" from {short['peak_mb']:,.0f} to {long['peak_mb']:,.0f} MB.",
        "",
        f"Commands: `{found['command']}`, `python bench/memory.py`; "
        "[performance](docs/performance.md) has more.",
        "",
    ]


def demo() -> str:
    """What the demo printed from its table on, without the commands at its end."""
    text = DEMO.read_text()
    origin = re.match(r"# (.+); (.+); commit (\w+\+?)\n", text)
    assert origin, f"{DEMO}: the first line is not `# COMMAND; MACHINE; commit HASH`"
    command, machine, commit = origin.groups()
    shown, _, _ = text[text.index("Dev scores in percent") :].partition("\nAsk it yourself")
    shown = "\n".join(line.rstrip() for line in shown.strip().splitlines())
    return (
        f"```text\n{shown}\n```\n\n(`{command}` on {machine}, commit {commit[:10]}; from "
        "[its output](results/demo/output.txt).)"
    )


def filled(text: str, name: str, content: str) -> str:
    """A page with other content between the marks of a name."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{content}\n{end}{after}"


def lined(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def pages() -> dict[Path, str]:
    found = {name: lined(lines) for name, lines in studies().items()}
    first = {study: lined(section(study)) for study in ("b", "a")}
    others = listed(f"`{name}`" for name in found if name not in SHOWN)
    note = (
        "SST-2, CoLA, MRPC, STS-B and RTE are the official files; MNLI, QNLI and QQP are samples "
        "of theirs, so their numbers are not full GLUE. WNLI is not part of the score."
    )
    own = (
        "# Results\n\nAll that was run on real data; this page is made by `report.py`. First the "
        "comparisons of scores: medians over seeds, p after Holm, n seeds of the arm and of the "
        "other."
    )
    paper = "The paper's other tables (medians, p after Holm, n seeds of the arm and of the other):"
    tables = f"{paper}\n\n{lined(comparisons(COMPARED))}\n"
    light = "## First light\n\nThe main job before there were studies, by `first-light/run.py`."
    more = f"More studies, {others}, and all seeds: [results](results/README.md)."
    fast = lined(speed())
    main = lined(found[name] for name in SHOWN)
    return {
        README: filled(
            filled(README.read_text(), "demo", demo()),
            "results",
            f"{fast}\n{main}\n{tables}\n{note}\n\n{more}",
        ),
        RESULTS / "README.md": "\n\n".join(
            text.strip()
            for text in (
                own,
                lined(comparisons(found)),
                note,
                *found.values(),
                light,
                *first.values(),
            )
        )
        + "\n",
    }


def main() -> None:
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


if __name__ == "__main__":
    main()
