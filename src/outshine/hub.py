"""One revision per data set and process, and what can go wrong with the hub, in our words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from outshine.errors import UserError, WorldError


@contextmanager
def asking_the_hub(what: str, tried: str = "") -> Iterator[None]:
    """Turns the errors of the hub client into our own.

    Args:
        what: What fails, such as `cannot load the encoder org/name`.
        tried: What was found before the hub was asked, such as `no such folder, and `.

    Raises:
        UserError: If the hub has no such repository, or does not show it to us.
        WorldError: If the hub does not answer, or its answer cannot be kept.
    """
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise UserError(
            f"{what}: {tried}no such repository on the hub",
            "check the spelling; private and gated repositories need `hf auth login`",
        ) from error
    except (HTTPError, OSError) as error:
        if is_offline_mode():
            raise WorldError(
                f"{what}: {tried}not downloaded before, and the hub client is offline",
                "unset HF_HUB_OFFLINE, or give local files",
            ) from error
        cause = error.__cause__ or error
        first_line = str(cause).split("\n")[0] or type(cause).__name__
        raise WorldError(
            f"{what}: {tried}the hub does not answer ({first_line})",
            "check the network and HF_ENDPOINT, or give local files; "
            "HF_HUB_OFFLINE=1 uses what was downloaded before",
        ) from error


@cache
def data_set_revision(repository: str) -> str | None:
    """The commit of a data set that this process reads, or None when the client is offline.

    A single question: `datasets.load_dataset` asks a silent hub again for half a minute. Call it
    inside `asking_the_hub`.
    """
    from huggingface_hub import HfApi, is_offline_mode

    if is_offline_mode():
        return None  # then load_dataset takes what was downloaded last
    return HfApi().dataset_info(repository, timeout=10).sha
