"""The processes that a launcher, `torchrun` or `accelerate launch`, has started together."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from typing import NoReturn

from outshine.errors import UserError


def num_processes() -> int:
    """How many there are, 1 without a launcher."""
    launched = "RANK" in os.environ and "MASTER_ADDR" in os.environ
    return int(os.environ.get("WORLD_SIZE", "1")) if launched else 1


def process_number() -> int:
    """The number of this one among them, from 0; only the first speaks to people."""
    return int(os.environ["RANK"]) if num_processes() > 1 else 0


def want_one_process(what: str) -> None:
    """Refuses work that several processes would do several times.

    Raises:
        UserError: If a launcher has started several.
    """
    if num_processes() > 1:
        raise UserError(
            f"cannot {what} in {num_processes()} processes: expected 1",
            "torchrun and accelerate launch are for `outshine train`",
        )


def leave(code: int | str | None) -> NoReturn:
    """Ends this process, one of several, without taking its interpreter apart.

    gloo's threads may still hold tensors of the last sums, though these are done; a thread that
    gives one back while the interpreter is taken apart aborts the process, and the launcher then
    calls the whole run failed. Whatever is registered with `atexit` is done.

    Args:
        code: As `sys.exit` takes it: None is 0, and a text goes to stderr, with 1.
    """
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
        code = 1
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
