"""The commands that make something of finished runs: `outshine soup`, `export` and `submit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outshine.command import Device, Force, GlueDir, Json, RunDir, print_json, print_table


def soup(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of finished runs, usually of other seeds."),
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the new run.")],
    device: Device = "auto",
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the runs, and average and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Average the weights of some runs, greedily chosen by dev score.

    The scores are of dev rows that had no part in the choice: each half is judged by what the
    other chose. What is written is chosen by both.
    """
    from outshine import soups
    from outshine.console import say

    if dry_run:
        facts = soups.preview_soup(runs, out=out, force=force)
    else:
        made = soups.soup(runs, out=out, device=device, force=force)
        facts = {"out": str(out)} | made.info()["soup"]
    if as_json:
        print_json(facts)
        return
    tried = [
        [
            run["run"],
            "yes" if run.get("weight") else "" if dry_run else "no",
            str(run["seed"]),
            f"{100 * run['score']:.1f}",
        ]
        for run in facts["runs"]
    ]
    title = "Runs in the order of trying, with their score on all of dev in percent"
    print_table(title, ["run", "taken", "seed", "score"], tried, num_text=2)
    if dry_run:
        say(f"The soup would be in {out}")
        return
    ways = ("soup", "best", "mean")
    rows = [
        [name, task["metric"], *(f"{100 * task[way]:.1f}" for way in ways), str(task["n"])]
        for name, task in facts["tasks"].items()
    ]
    rows.append(["score", "mean", *(f"{100 * facts['score'][way]:.1f}" for way in ways), ""])
    header = ["task", "metric", "soup", "best run", "mean of runs", "n"]
    print_table("Dev rows that had no part in the choice, in percent", header, rows, num_text=2)
    say(f"The soup is in {out}")


def export(
    run: RunDir,
    format: Annotated[str, typer.Option(help="hf (transformers) or onnx (ONNX Runtime).")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the export.")],
    task: Annotated[
        str | None,
        typer.Option(help="Export this task only; with hf, DIR itself is its folder."),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="REPOSITORY",
            help="Upload DIR to this repository of the hub, which is made when it is missing.",
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Also write an eight-bit graph; measures its loss on dev."),
    ] = False,
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, and write and upload nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a run for other programs.

    Each task's outputs are compared with the run's on 64 rows before the export counts as done.
    """
    from outshine import exporting
    from outshine.console import say

    if push:
        exporting.check_repository(out, push)
    content = exporting.export(
        run, out, format=format, task=task, int8=int8, force=force, dry_run=dry_run
    )
    if dry_run:
        say(f"The export would be in {out}, of {', '.join(content['verified'])}")
    else:
        say(f"The export is in {out}")
    if push and dry_run:
        say(f"It would be uploaded to {push}")
    elif push:
        say(f"Uploaded to {exporting.push_to_hub(out, push)}")
    if as_json:
        print_json(content)


def submit(
    run: RunDir,
    out: Annotated[Path, typer.Option(metavar="ZIP", help="The zip to write.")],
    glue_dir: GlueDir = None,
    fill: Annotated[
        str | None,
        typer.Option(
            metavar="majority",
            help="Answer tasks that the run lacks with the commonest label (stsb: mean) of train.",
        ),
    ] = None,
    device: Device = "auto",
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, and answer and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Answer GLUE's test sets for its server.

    Writes a zip of eleven files, MNLI's head answering AX, too.
    """
    from outshine import submission
    from outshine.console import say

    facts = submission.submit(
        run, out, glue_dir=glue_dir, fill=fill, device=device, force=force, dry_run=dry_run
    )
    say(f"The submission {'would be' if dry_run else 'is'} {out}")
    if as_json:
        print_json(facts)
