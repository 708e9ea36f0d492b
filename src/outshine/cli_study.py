"""The commands `outshine study plan | run | report`, and `outshine compare`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outshine.command import GlueDir, Json, Settings, command, print_json, print_table
from outshine.errors import UserError

if TYPE_CHECKING:
    from outshine.study import Study

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Many runs over seeds as one experiment: what is planned, run and found.",
)

Place = Annotated[
    Path, typer.Argument(metavar="FILE_OR_DIR", help="A study file, or the folder of a study.")
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The study's folder.  [default: <folder of FILE>/<name>]"),
]
Seeds = Annotated[
    str | None, typer.Option(metavar="SEEDS", help="Some of its seeds, such as 1-5 or 1,3.")
]
Others = Annotated[
    list[Path] | None,
    typer.Option(
        "--rows",
        metavar="DIR",
        help="Folder of another study whose rows count for the runs that are the same. Repeatable.",
    ),
]


@command(app, "plan")
def plan(
    place: Place,
    out: Out = None,
    seeds: Seeds = None,
    settings: Settings = None,
    rows: Others = None,
    glue_dir: GlueDir = None,
    as_json: Json = False,
) -> None:
    """Show the runs of a study, what is done and what is left.

    The time is estimated from runs already measured.
    """
    study = _open(place, out, settings, rows, glue_dir)
    _show_plan(study, parse_seeds(seeds), as_json)


@command(app, "run")
def run(
    place: Place,
    out: Out = None,
    seeds: Seeds = None,
    jobs: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Processes that share the work, or auto: as many as, measured, get through most. "
            "Default: one per GPU, auto where each has 20 runs or more to make; 1 without a GPU.",
        ),
    ] = None,
    executor: Annotated[
        str, typer.Option(help="local: on this machine; ray: on the Ray cluster at RAY_ADDRESS.")
    ] = "local",
    settings: Settings = None,
    rows: Others = None,
    glue_dir: GlueDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and train nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the runs of a study that are left, seed by seed.

    It may be interrupted: the same command goes on. Several at once share the work.
    """
    if dry_run:
        _show_plan(_open(place, out, settings, rows, glue_dir), parse_seeds(seeds), as_json)
        return
    from outshine import launch
    from outshine.console import say

    study = launch.run_study(
        place,
        out=out,
        seeds=parse_seeds(seeds),
        jobs=_jobs(jobs),
        executor=executor,
        settings=_overrides(settings),
        glue_dir=glue_dir,
        others=rows or (),
    )
    say(f"The study is in {study.path}; `outshine study report {study.path}` shows what it found")
    if as_json:
        from outshine.plan import plan_facts

        print_json(plan_facts(study, parse_seeds(seeds)))


def _jobs(text: str | None) -> int | str | None:
    return int(text) if text and re.fullmatch(r"-?\d+", text) else text


@command(app, "report")
def report(
    place: Place,
    out: Out = None,
    settings: Settings = None,
    rows: Others = None,
    format: Annotated[
        str, typer.Option(help="terminal, markdown, latex, csv, json or html, on stdout.")
    ] = "terminal",
    as_json: Json = False,
) -> None:
    """Show what a study found, and write its report.

    The study's folder gets report.md, .tex, .csv, .json and .html.
    """
    from outshine.console import say
    from outshine.findings import report_data
    from outshine.report import render, write_report
    from outshine.study import read_study

    study = read_study(place, out=out, overrides=_overrides(settings), others=rows or ())
    data = report_data(study)
    text = render(data, "json" if as_json else format)
    written = write_report(data, study.path)
    print(text, end="")
    say(f"The report is in {', '.join(str(path) for path in written)}")


def compare(
    place: Annotated[
        Path,
        typer.Argument(metavar="STUDY_FILE_OR_DIR", help="A study file, or the folder of a study."),
    ],
    a: Annotated[str, typer.Argument(metavar="ARM")],
    b: Annotated[str, typer.Argument(metavar="ARM")],
    margin: Annotated[
        float | None,
        typer.Option(help="Points that the first may be worse: judged by dev rows and seeds."),
    ] = None,
    out: Out = None,
    settings: Settings = None,
    rows: Others = None,
    glue_dir: GlueDir = None,
    as_json: Json = False,
) -> None:
    """Compare two arms of a study.

    By tests over seeds, or, with --margin, by whether the first is as good as the second.
    """
    from outshine import findings
    from outshine.console import say
    from outshine.report_tables import TITLES
    from outshine.study import read_study

    study = read_study(place, out=out, overrides=_overrides(settings), others=rows or ())
    found = findings.compare(study, a, b, margin=margin, glue_dir=glue_dir)
    if as_json:
        print_json(found)
        return
    if margin is None:
        _show_tests(found)
    else:
        _show_margin(found)
    for sentence in found["conclusion"]:
        print(sentence)
    for warning in found["warnings"]:
        say(f"warning: {warning}")
    methods = {"method": found["method"]} if "method" in found else found["methods"]
    for name, method in methods.items():
        say(f"{TITLES.get(name, name)}: {method}")


def parse_seeds(text: str | None) -> tuple[int, ...] | None:
    """Seeds written as `1-5`, `3` or `1-3,7`; None for None.

    Raises:
        UserError: If it is written in another way.
    """
    if text is None:
        return None
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(
                f"cannot read --seeds {text!r}: {part.strip()!r}, expected numbers or ranges",
                "write for example --seeds 1-5 or --seeds 1,3",
            )
        seeds += range(int(first), int(last if dash else first) + 1)
    if not seeds:
        raise UserError(
            f"cannot read --seeds {text!r}: no seed, expected at least one",
            "write for example --seeds 1-5 or --seeds 1,3",
        )
    return tuple(dict.fromkeys(seeds))


def _overrides(settings: Sequence[str] | None) -> dict[str, Any] | None:
    from outshine.config import parse_settings

    return parse_settings(settings) if settings else None


def _open(
    place: Path,
    out: Path | None,
    settings: Sequence[str] | None,
    rows: Sequence[Path] | None,
    glue_dir: Path | None,
) -> Study:
    from outshine.study import open_study

    return open_study(
        place, out=out, overrides=_overrides(settings), glue_dir=glue_dir, others=rows or ()
    )


def _show_plan(study: Study, seeds: Sequence[int] | None, as_json: bool) -> None:
    from outshine.console import clock, say
    from outshine.plan import plan_facts

    facts = plan_facts(study, seeds)
    if as_json:
        print_json(facts)
        return
    rows = [
        [
            kind["chain"],
            kind["tasks"],
            *(str(kind[key]) for key in ("runs", "done", "left")),
            "?" if kind["seconds_left"] is None else clock(kind["seconds_left"]),
        ]
        for kind in facts["kinds"]
    ]
    header = ["chain", "tasks", "runs", "done", "left", "time left"]
    print_table(f"Runs of {facts['study']} in {facts['path']}", header, rows, num_text=2)
    for choice in facts["choices"]:
        chosen = ", ".join(f"{key} = {value}" for key, value in choice["chosen"].items())
        say(
            f"{choice['chain']} on {len(choice['tasks'])} tasks: {chosen}, by seed {choice['seed']}"
        )
    unknown = facts["unmeasured"]
    known = clock(facts["seconds_left"])
    measured = f", about {known} in one process" if unknown < facts["left"] else ""
    say(
        f"{facts['left']} of {facts['runs']} runs are left{measured}"
        + (f"; {unknown} of kinds that were not measured yet" if unknown else "")
    )
    for warning in facts["warnings"]:
        say(f"warning: {warning}")


def _show_tests(found: Mapping[str, Any]) -> None:
    rows = [
        [
            row["task"],
            row["test"],
            *(_number(row[key]) for key in ("difference",)),
            " to ".join(_number(end) for end in row["ci"]) if row["ci"] else "",
            *(_number(row[key], 3) for key in ("p", "p_holm", "effect_size")),
            " + ".join(map(str, row["n"])),
            _number(row["smallest_p"], 3),
            str(row["seeds_needed"] or ""),
        ]
        for row in found["comparisons"]
    ]
    for row in found["comparisons"]:
        if paired := row["paired"]:
            p, p_holm = _number(paired["p"], 3), _number(paired["p_holm"], 3)
            pairs = f"{paired['n']} pairs"
            rows.append([row["task"], paired["test"], "", "", p, p_holm, "", pairs, "", ""])
    header = ["", "test", "points", "95 %", "p", "p Holm", "P(a > b)", "n", "least p", "needed"]
    print_table(f"{found['a']} against {found['b']}, in points", header, rows, num_text=2)


def _show_margin(found: Mapping[str, Any]) -> None:
    total = {**found, "metric": "mean", "seeds": [], "rows": ""}
    rows = [
        [
            name,
            row["metric"],
            row["verdict"],
            _number(row["difference"]),
            " to ".join(_number(end) for end in row["ci"]) if row["ci"] else "",
            " + ".join(map(str, row["seeds"])),
            str(row["rows"]),
        ]
        for name, row in [*found["tasks"].items(), ("score", total)]
    ]
    title = f"{found['a']} against {found['b']}, margin {found['margin']:g} points"
    header = ["", "metric", "verdict", "points", "95 %", "seeds", "dev rows"]
    print_table(title, header, rows, num_text=3)


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"
