"""The command `outshine serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from outshine.command import Calibrated, Device, Format, Precision, RunDir, command
from outshine.errors import UserError
from outshine.limits import KEEP_ALIVE_S, Limits

KEY_VARIABLE = "OUTSHINE_API_KEY"
DEFAULTS = Limits()


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "serve")(serve)


def serve(
    run: RunDir,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Holds the key that clients must send.  [default: {KEY_VARIABLE}, if set]",
        ),
    ] = None,
    max_batch_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of one encoder pass.")
    ] = DEFAULTS.max_batch_tokens,
    max_wait_ms: Annotated[
        float,
        typer.Option(min=0, help="Longest wait, behind a pass, for requests to share the next."),
    ] = DEFAULTS.max_wait_ms,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Most bytes of one request.")] = (
        DEFAULTS.max_body_bytes
    ),
    max_inputs: Annotated[int, typer.Option(min=1, help="Most inputs of one request.")] = (
        DEFAULTS.max_inputs
    ),
    max_characters: Annotated[int, typer.Option(min=1, help="Most characters of one text.")] = (
        DEFAULTS.max_characters
    ),
    max_queue: Annotated[
        int, typer.Option(min=1, help="Most texts under way, of all requests.")
    ] = DEFAULTS.max_queue,
    timeout_s: Annotated[
        float, typer.Option(min=0.001, help="Most seconds from a request to its answer.")
    ] = DEFAULTS.timeout_s,
    keep_alive_s: Annotated[
        int, typer.Option(min=0, help="Seconds until a connection without a request is closed.")
    ] = KEEP_ALIVE_S,
    calibrated: Calibrated = False,
    precision: Format = Precision.fp32,
    device: Device = "auto",
) -> None:
    """Answer HTTP requests with a run.

    POST /predict {"inputs": [{"text": "..."}]}; / is a page to try it. SIGTERM finishes what was
    accepted.
    """
    from outshine.console import say
    from outshine.predicting import Predictor, load
    from outshine.runs import open_run

    try:
        from outshine import serving
    except ModuleNotFoundError as error:
        raise UserError(
            f"cannot serve: the package `{error.name}` is missing", "pip install 'outshine[serve]'"
        ) from None
    api_key = read_key(api_key_file)
    opened = open_run(run)
    listening = serving.listen(host, port)
    if not api_key and host not in ("127.0.0.1", "localhost", "::1"):
        say(f"warning: whoever reaches {host} can ask: no API key ({KEY_VARIABLE}) is set")

    def load_run() -> Predictor:
        return load(opened, device=device, precision=precision.value, calibrated=calibrated)

    limits = Limits(
        max_body_bytes=max_body_bytes,
        max_inputs=max_inputs,
        max_characters=max_characters,
        max_queue=max_queue,
        timeout_s=timeout_s,
        max_batch_tokens=max_batch_tokens,
        max_wait_ms=max_wait_ms,
    )
    name = opened.path.resolve().name
    app = serving.create_app(load_run, run=name, limits=limits, api_key=api_key)
    serving.run_app(app, listening, keep_alive_s)


def read_key(path: Path | None) -> str:
    """The API key of a file, else of the environment, else "".

    Raises:
        UserError: If it cannot be sent in a header.
    """
    place = str(path) if path else KEY_VARIABLE
    try:
        key = path.read_text(encoding="utf-8") if path else os.environ.get(KEY_VARIABLE, "")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "invalid UTF-8"
        raise UserError(
            f"cannot read the API key: {reason}, expected a file with one key ({place})",
            "check the path",
        ) from None
    key = key.strip()
    if (path and not key) or not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(
            f"cannot read the API key: {'empty' if not key else 'blanks or other characters'}, "
            f"expected printable ASCII characters without a blank ({place})",
            "make one with `openssl rand -hex 32`",
        )
    return key
