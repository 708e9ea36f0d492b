"""The commands that take a finished run elsewhere: `outshine export` and `outshine submit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outshine.command import Device, Force, GlueDir, Json, RunDir, print_json


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
