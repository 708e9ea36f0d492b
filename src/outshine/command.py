"""What all commands share: options, errors as exit codes, printing to stdout."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outshine.errors import OutshineError

if TYPE_CHECKING:
    from outshine.tasks import Task

INTERRUPTED = 130


class Precision(StrEnum):
    """Number formats of a forward pass."""

    fp32 = "fp32"
    bf16 = "bf16"
    auto = "auto"


Tasks = Annotated[
    list[str],
    typer.Argument(metavar="TASK...", help="Names (`outshine tasks ls`) or paths to task files."),
]
RunDir = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a finished run, or its export on the hub.")
]
Encoder = Annotated[
    str | None, typer.Option(help="A folder in Hugging Face layout, a hub id, or `builtin`.")
]
GlueDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the GLUE files; else OUTSHINE_GLUE_DIR, else the hub."),
]
Teacher = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TASK=TEACHER",
        help="A run, a transformers classifier, or a table of probabilities; several for one "
        "task are an ensemble. Repeatable.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the resolved mixture and train nothing.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as lr=1e-4. Repeatable."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of init, order and dropout.  [default: 1]")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is complete.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Calibrated = Annotated[
    bool, typer.Option("--calibrated", help="Use the temperatures of `outshine calibrate`.")
]
Format = Annotated[Precision, typer.Option(help="Number format of the encoder.")]

SHARED = {
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
    "quiet": Annotated[bool, typer.Option("--quiet", help="Only data and errors.")],
}


def command(to: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command, with `--debug` and `--quiet`, whose errors become message and exit code.

    Raises (inside the command): nothing but typer.Exit: 2 for the user's mistakes, 1 when the
    world failed, 130 when interrupted. Other exceptions are bugs and keep their traceback.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*, debug: bool, quiet: bool, **arguments: Any) -> None:
            from outshine.console import set_quiet
            from outshine.processes import process_number, want_one_process

            set_quiet(quiet)
            try:
                if name != "train":
                    want_one_process(f"run `outshine {name}`")
                function(**arguments)
                sys.stdout.flush()
            except BrokenPipeError:  # the reader of stdout has seen enough; typer ends quietly
                raise
            except (OutshineError, OSError, KeyboardInterrupt) as error:
                if debug:
                    traceback.print_exc()
                which = f"process {process_number()}: " if process_number() else ""
                # at once: print writes the line's end by itself, behind what another process says
                sys.stderr.write(f"{which}{_message(error)}\n")
                code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
                raise typer.Exit(getattr(error, "exit_code", code)) from None

        own = inspect.signature(function, eval_str=True)
        keyword = inspect.Parameter.KEYWORD_ONLY
        shared = [
            inspect.Parameter(key, keyword, default=False, annotation=option)
            for key, option in SHARED.items()
        ]
        signature = own.replace(parameters=[*own.parameters.values(), *shared])
        vars(guarded)["__signature__"] = signature
        to.command(name)(guarded)
        return function

    return register


def _message(error: BaseException) -> str:
    """What a person reads of an error."""
    if isinstance(error, OSError):
        place = f" {error.filename}" if error.filename else ""
        reason = error.strerror or str(error)
        return f"cannot read or write{place}: {reason}\nhint: check the disk and its permissions"
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    return str(error)


def find_tasks(names: Sequence[str], glue_dir: Path | None) -> list[Task]:
    from outshine.glue_tasks import find_task

    return [find_task(name, glue_dir) for name in names]


def print_json(content: Any) -> None:
    import json

    print(json.dumps(content, indent=2, ensure_ascii=False))


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], num_text: int = 1
) -> None:
    """Prints a table on stdout, its first columns as text; wide where stdout is no terminal."""
    from rich.console import Console

    from outshine.console import table

    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False, soft_wrap=True).print(
        table(title, header, rows, num_text)
    )
