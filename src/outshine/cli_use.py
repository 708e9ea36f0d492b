"""The commands that take a finished run elsewhere: `outshine export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outshine.command import Force, Json, RunDir, print_json


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
    as_json: Json = False,
) -> None:
    """Write a run for other programs.

    Each task's outputs are compared with the run's on 64 rows before the export counts as done.
    """
    from outshine import exporting
    from outshine.console import say

    content = exporting.export(run, out, format=format, task=task, int8=int8, force=force)
    say(f"The export is in {out}")
    if push:
        say(f"Uploaded to {exporting.push_to_hub(out, push)}")
    if as_json:
        print_json(content)
