"""The tables of a study's report as text, from the one dict that holds all of its numbers.

Nothing is computed here: a number is written with fewer digits, or left out, never made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outshine.console import clock

ABSENT = "-"
MINUS = "\N{MINUS SIGN}"
DEGENERATE = "*"
# Columns, and names of methods, that are not written like the keys of the dict.
TITLES = {
    "ci": "95 % interval",
    "p_holm": "p after Holm",
    "effect_size": "effect size",
    "smallest_p": "smallest p",
    "seeds_needed": "seeds needed",
}


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: What it is about; empty where the section's title says it all.
        header: Name per column.
        rows: Text per cell.
        num_text: So many first columns are text, the others numbers.
        num_remarks: So many last columns are words after all, which a page may set as notes.
        note: What its title leaves open; may be empty.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_text: int = 1
    num_remarks: int = 0
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A titled part of the report.

    Attributes:
        key: Name for links and for leaving it out.
        title: Its heading.
        method: How its numbers were made, and what its marks mean: sentences.
        tables: At least one, unless the text says that there is nothing to show.
    """

    key: str
    title: str
    method: tuple[str, ...]
    tables: tuple[Table, ...]


def percent(value: float | None) -> str:
    """A number in percent, or of points, with two digits."""
    return ABSENT if value is None else f"{value:.2f}"


def short(value: float | None) -> str:
    """A number with three significant digits: a p-value, a probability."""
    return ABSENT if value is None else f"{value:.3g}"


def whole(value: float | None) -> str:
    """A count."""
    return ABSENT if value is None else f"{value:,}"


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def tasks_of(data: Mapping[str, Any]) -> list[str]:
    """All rows of the table of scores: the tasks, then the score over them."""
    return [*data["metrics"], "score"]


def stats_of(data: Mapping[str, Any], arm: str, task: str) -> Mapping[str, Any] | None:
    """Statistics of an arm on a task, or of its score; None where it has none."""
    found = data["arms"][arm]
    return found["score"] if task == "score" else found["tasks"].get(task)


def _measured(data: Mapping[str, Any], arm: str) -> dict[str, Mapping[str, Any]]:
    """Statistics of an arm by task, and of its score, where there are any."""
    found = {task: stats_of(data, arm, task) for task in tasks_of(data)}
    return {task: stats for task, stats in found.items() if stats is not None}


def arms_by_mixture(data: Mapping[str, Any]) -> list[tuple[list[str], Mapping[str, Any]]]:
    """The different mixtures, each with the arms that draw their rows in that way."""
    groups: list[tuple[list[str], Mapping[str, Any]]] = []
    for arm, mixture in data["mixture"].items():
        if not mixture:  # no run of the arm is finished
            continue
        known = next((arms for arms, other in groups if other == mixture), None)
        if known is None:
            groups.append(([arm], mixture))
        else:
            known.append(arm)
    return groups


def summary(data: Mapping[str, Any]) -> str:
    """One line on what was run."""
    provenance = data["provenance"]
    return (
        f"{plural(provenance['runs'], 'run')}, seeds {_words(data['seeds'])}, "
        f"teachers {data['teachers']}, {clock(provenance['train_s'])} of training; "
        f"made {data['made']}"
    )


def sections(data: Mapping[str, Any]) -> list[Section]:
    """All sections of the report in reading order."""
    return [
        _scores(data),
        _comparisons(data),
        _degenerate(data),
        _mixture(data),
        _statistics(data),
        _values(data),
        _arms(data),
        _provenance(data),
    ]


def _scores(data: Mapping[str, Any]) -> Section:
    arms = list(data["arms"])
    rows: list[tuple[str, ...]] = []
    for task in tasks_of(data):
        cells = [_cell(stats_of(data, arm, task)) for arm in arms]
        rows.append((task, data["metrics"].get(task, "mean"), _rows(data, task), *cells))
    return Section(
        "scores",
        "Dev scores",
        (
            "Median over seeds in percent ± standard deviation, in brackets the number of seeds.",
            *_methods(data, "values"),
            f"{DEGENERATE} marks a number that counts degenerate runs.",
        ),
        (Table("", ("task", "metric", "dev rows", *arms), tuple(rows), num_text=2),),
    )


def _rows(data: Mapping[str, Any], task: str) -> str:
    """Rows of a task's dev set; nothing for a score, or before the task's first run."""
    return whole(data["dev_rows"][task]) if task in data["dev_rows"] else ""


def _cell(stats: Mapping[str, Any] | None) -> str:
    if stats is None:
        return ABSENT
    spread = "" if stats["std"] is None else f" ± {stats['std']:.2f}"
    mark = DEGENERATE if stats["degenerate"] else ""
    return f"{percent(stats['median'])}{spread} ({stats['n']}{mark})"


def _comparisons(data: Mapping[str, Any]) -> Section:
    keys = ("difference", "ci", "p", "p_holm", "effect_size", "n", "smallest_p", "seeds_needed")
    header = ("task", *(TITLES.get(key, key) for key in keys), "test")
    tables = []
    for a, b in dict.fromkeys((c["a"], c["b"]) for c in data["comparisons"]):
        found = [c for c in data["comparisons"] if (c["a"], c["b"]) == (a, b)]
        shared = [f"score over {_words(c['tasks'])}" for c in found if c["task"] == "score"]
        rows = tuple(row for comparison in found for row in _tests(comparison))
        title = f"{a} against {b}"
        tables.append(Table(title, header, rows, num_remarks=1, note="".join(shared)))
    if not tables:  # what was chosen is told all the same
        chosen = _methods(data, *(name for name in data["methods"] if name == "selection"))
        return Section("comparisons", "Comparisons", ("No arms are compared.", *chosen), ())
    names = (name for name in data["methods"] if name not in ("values", "degenerate"))
    return Section("comparisons", "Comparisons", _methods(data, *names), tuple(tables))


def _methods(data: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    """What the analysis says on how it made its numbers."""
    return tuple(f"{TITLES.get(name, name)}: {data['methods'][name]}" for name in names)


def _tests(comparison: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The row of a comparison, and one more of the paired test where seeds pair."""
    interval = comparison["ci"]
    rows: list[tuple[str, ...]] = [
        (
            comparison["task"],
            ABSENT if comparison["difference"] is None else f"{comparison['difference']:+.2f}",
            ABSENT if interval is None else " to ".join(map(percent, interval)),
            short(comparison["p"]),
            short(comparison["p_holm"]),
            percent(comparison["effect_size"]),
            ", ".join(map(str, comparison["n"])),
            short(comparison["smallest_p"]),
            whole(comparison["seeds_needed"]),
            comparison["test"],
        )
    ]
    paired = comparison["paired"]
    if paired is not None:
        p, holm = short(paired["p"]), short(paired["p_holm"])
        name, pairs = f"{comparison['task']}, paired", plural(paired["n"], "pair")
        rows.append((name, "", "", p, holm, "", pairs, "", "", paired["test"]))
    return rows


def _degenerate(data: Mapping[str, Any]) -> Section:
    rows = tuple(
        (found["arm"], found["task"], found["reason"], str(found["seed"]), percent(found["value"]))
        for found in data["degenerate"]
    )
    if not rows:
        return Section("degenerate", "Degenerate runs", ("No run is degenerate.",), ())
    return Section(
        "degenerate",
        "Degenerate runs",
        _methods(data, "degenerate"),
        (Table("", ("arm", "task", "reason", "seed", "percent"), rows, num_text=3),),
    )


def _mixture(data: Mapping[str, Any]) -> Section:
    header = ("task", "rows", "probability", "passes", "weight")
    tables = []
    for arms, mixture in arms_by_mixture(data):
        rows = tuple(
            (
                task,
                whole(part["rows"]),
                short(part["probability"]),
                short(part["passes"]),
                short(part["weight"]),
            )
            for task, part in mixture.items()
        )
        tables.append(Table(_words(arms), header, rows))
    return Section(
        "mixture",
        "Mixture",
        (
            "Of the last stage: train rows, the chance that a drawn row comes from the task, how "
            "often each row is seen, and the weight of the task's loss.",
        ),
        tuple(tables),
    )


def _statistics(data: Mapping[str, Any]) -> Section:
    names = ("n", "median", "mean", "std", "q25", "q75", "min", "max", "degenerate")
    tables = []
    for arm in data["arms"]:
        rows = []
        for task, stats in _measured(data, arm).items():
            numbers = [percent(stats[name]) for name in names[1:-1]]
            rows.append((task, str(stats["n"]), *numbers, str(stats["degenerate"])))
        if rows:
            tables.append(Table(arm, ("task", *names), tuple(rows)))
    return Section(
        "statistics",
        "All statistics",
        (*_methods(data, "values", "degenerate"), "q25 and q75 are the quartiles."),
        tuple(tables),
    )


def _values(data: Mapping[str, Any]) -> Section:
    marked = {(found["arm"], found["task"], str(found["seed"])) for found in data["degenerate"]}
    tables = []
    for arm in data["arms"]:
        found = _measured(data, arm)
        rows = []
        for seed in sorted({s for stats in found.values() for s in stats["values"]}, key=int):
            marks = (DEGENERATE if (arm, task, seed) in marked else "" for task in found)
            numbers = (percent(stats["values"].get(seed)) for stats in found.values())
            rows.append((seed, *map(str.__add__, numbers, marks)))
        if rows:
            tables.append(Table(arm, ("seed", *found), tuple(rows)))
    return Section(
        "values",
        "Every run",
        (*_methods(data, "values"), f"{DEGENERATE} marks a degenerate run."),
        tuple(tables),
    )


def _arms(data: Mapping[str, Any]) -> Section:
    rows = tuple(
        (arm, info["chain"], info["teachers"], _words(info["tasks"]), _settings(info["set"]))
        for arm, info in data["arms_info"].items()
    )
    header = ("arm", "chain", "teachers", "tasks", "settings of the last stage")
    method = "An arrow means: teaches. Settings are those that differ from the study's stages."
    return Section("arms", "Arms", (method,), (Table("", header, rows, num_text=5),))


def _provenance(data: Mapping[str, Any]) -> Section:
    found = data["provenance"]
    facts = {
        "command": data["command"],
        "made": data["made"],
        "seeds": data["seeds"],
        "teachers": data["teachers"],
        "runs": found["runs"],
        "training time": clock(found["train_s"]),
        "encoder": found["encoder"],
        "device": found["device"],
        "precision": found["precision"],
        "threads": found["num_threads"],
        "commits": found["git_commits"],
        **found["versions"],
    }
    rows = tuple((name, _words(fact)) for name, fact in facts.items())
    fingerprints = tuple(
        (task, split, fingerprint)
        for task, splits in found["data"].items()
        for split, fingerprint in splits.items()
    )
    return Section(
        "provenance",
        "Provenance",
        (
            "As the runs recorded it; training time is the sum over all runs.",
            "A fingerprint is that of a split's rows and gold.",
        ),
        (
            Table("Runs", ("fact", "value"), rows, num_text=2),
            Table("Data", ("task", "split", "fingerprint"), fingerprints, num_text=3),
        ),
    )


def _settings(settings: Mapping[str, Any]) -> str:
    pairs = (f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items())
    return ", ".join(pairs)


def _words(value: Any) -> str:
    """A value, or several, in one line."""
    several = isinstance(value, Iterable) and not isinstance(value, str | Mapping)
    parts: Sequence[Any] = list(value) if several else [value]
    return ", ".join(ABSENT if part is None else str(part) for part in parts) or ABSENT
