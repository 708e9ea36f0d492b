"""The commands that ask a finished run: `outshine predict` and `outshine calibrate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from outshine.command import (
    Calibrated,
    Device,
    Format,
    Json,
    Precision,
    RunDir,
    print_json,
    print_table,
)


class InputFormat(StrEnum):
    """As in `inputs.FORMATS`."""

    jsonl = "jsonl"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"
    lines = "lines"


class OutputFormat(StrEnum):
    """As in `outputs.FORMATS`."""

    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"


class OnError(StrEnum):
    """What a bad row does."""

    stop = "stop"
    skip = "skip"


def predict(
    run: RunDir,
    task: Annotated[
        list[str] | None, typer.Option(help="Answer with this task only. Repeatable.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help="Rows; their format goes by ending.  [stdin]"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Answers: .jsonl, .csv or .parquet (a folder of part files).  [stdout]",
        ),
    ] = None,
    input_format: Annotated[
        InputFormat | None, typer.Option(help="Instead of by ending or first line.")
    ] = None,
    output_format: Annotated[
        OutputFormat | None, typer.Option(help="Instead of by ending.")
    ] = None,
    on_error: Annotated[
        OnError, typer.Option(help="Whether a bad row stops, or is skipped and counted.")
    ] = OnError.stop,
    calibrated: Calibrated = False,
    precision: Format = Precision.fp32,
    device: Device = "auto",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check run, first rows and output; answer nothing."),
    ] = False,
) -> None:
    """Answer rows of text with a run.

    All tasks answer from one encoder pass.

    A row has the tasks' text columns by name, or `text`, or `text_a` and `text_b`.

    From file to file, the same command goes on where it was interrupted.
    """
    from outshine import predicting
    from outshine.bulk import predict_file
    from outshine.console import say
    from outshine.runs import open_run

    opened = open_run(run)
    predictor = predicting.load(
        opened, precision=precision.value, device=device, calibrated=calibrated
    )
    counts = predict_file(
        predictor,
        source,
        output,
        tasks=task or None,
        input_format=input_format,
        output_format=output_format,
        skip_bad_rows=on_error is OnError.skip,
        run_id=opened.info()["id"],
        dry_run=dry_run,
    )
    if dry_run:
        behind = f", behind row {counts.rows:,}" if counts.rows else ""
        say(f"The answers would go to {output or 'standard output'}{behind}")
        return
    total = _rows(counts.rows)
    for name, count in sorted(counts.unanswered.items()):
        say(f"note: {name} did not answer {count:,} of {total}, which lack its texts")
    if counts.truncated:
        say(
            f"note: {_of(counts.truncated, total)} cut to {predictor.max_length} tokens "
            '("truncated" in the output)'
        )
    if counts.skipped:
        more = counts.skipped - len(counts.problems)
        lines = [f"note: {_of(counts.skipped, total)} skipped:", *counts.problems]
        say("\n  ".join(lines + [f"and {more:,} more"] * (more > 0)))


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count != 1 else ''}"


def _of(count: int, total: str) -> str:
    return f"{count:,} of {total} {'was' if count == 1 else 'were'}"


def calibrate(
    run: RunDir,
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the temperatures and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fit a temperature per task on dev, for `predict --calibrated`.

    The errors are of dev rows that had no part in the temperature: each half is judged by that of
    the other. What is kept is fitted on both, and is 1 where that does not help.
    """
    from outshine import calibration
    from outshine.console import say
    from outshine.runs import open_run

    found = calibration.calibrate(run, device=device, dry_run=dry_run)
    say(f"The temperatures {'would be' if dry_run else 'are'} in {open_run(run).calibration_path}")
    if as_json:
        print_json(found)
        return
    header = ["task", "temperature", "of the halves", "error before", "after", "n"]
    rows = [
        [
            name,
            f"{x['temperature']:.2f}",
            " ".join(f"{value:.2f}" for value in x["halves"]),
            # what was tried on the halves and is not kept changes no answer
            *(
                f"{100 * x['calibration_error'][when]:.1f}"
                for when in ("before", "before" if x["temperature"] == 1.0 else "after")
            ),
            str(x["n"]),
        ]
        for name, x in found["tasks"].items()
    ]
    bins = found["bins"]
    print_table(f"Expected calibration error on dev in percent, {bins} bins", header, rows)
