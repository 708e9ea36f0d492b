"""Data sets of the hub, one revision of each per process, and the hub's errors in our words."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from outshine.errors import UserError, WorldError
from outshine.files import world_errors

# Of a disk, not of a network.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)


@contextmanager
def asking_the_hub(what: str, tried: str = "") -> Iterator[None]:
    """Turns the errors of the hub client into our own.

    Args:
        what: What fails, such as `cannot load the encoder org/name`.
        tried: What was found before the hub was asked, such as `no such folder, and `.

    Raises:
        UserError: If the hub has no such repository, or does not show it to us.
        WorldError: If the hub does not answer, or its answer cannot be kept on the disk.
    """
    from huggingface_hub import constants, is_offline_mode
    from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars, get_session

    if not sys.stderr.isatty():
        disable_progress_bars()
    hooks = get_session().event_hooks["request"]
    if _limit_waiting not in hooks:
        hooks.append(_limit_waiting)
    try:
        yield
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise UserError(
            f"{what}: {tried}no such repository on the hub",
            "check the spelling; private and gated repositories need `hf auth login`",
        ) from error
    except (HTTPError, OSError) as error:
        cause = error.__cause__ or error
        first_line = str(cause).split("\n")[0] or type(cause).__name__
        if isinstance(cause, OSError) and cause.errno in _DISK:
            if cause.errno == errno.EACCES and not cause.filename:  # of a file, or of a connection
                raise WorldError(
                    f"{what}: {tried}{first_line}",
                    f"check that {constants.HF_HOME} can be written, and that nothing forbids the "
                    "network",
                ) from error
            with world_errors(Path(cause.filename or constants.HF_HOME)):
                raise cause from None
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"{what}: {tried}the hub does not allow it (status {status})",
                "log in with `hf auth login`, with a token that may do this",
            ) from error
        if is_offline_mode():
            raise WorldError(
                f"{what}: {tried}not downloaded before, and the hub client is offline",
                "unset HF_HUB_OFFLINE, or give local files",
            ) from error
        raise WorldError(
            f"{what}: {tried}the hub does not answer ({first_line})",
            "check the network and HF_ENDPOINT, or give local files; "
            "HF_HUB_OFFLINE=1 uses what was downloaded before",
        ) from error


def _limit_waiting(request: Any) -> None:
    """Limits the questions that the client asks without a limit: a silent hub would hold them."""
    from huggingface_hub import constants

    limits = request.extensions["timeout"]
    if request.method in ("GET", "HEAD"):
        request.extensions["timeout"] = {
            key: constants.HF_HUB_ETAG_TIMEOUT if limit is None else limit
            for key, limit in limits.items()
        }


@cache
def data_set_split(repository: str, config: str, split: str) -> Any:
    """Downloads one split of a data set, or finds it in the cache of the package `datasets`.

    Args:
        repository: Id of the data set.
        config: Its configuration, or "" for the only one.
        split: Its split, by the hub's name.

    Returns:
        A `datasets.Dataset`.

    Raises:
        UserError: If the data set, configuration or split does not exist or cannot be decoded,
            or the package `datasets` is missing.
        WorldError: If the hub does not answer.
    """
    what = f"cannot read {repository} from the hub"
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{what}: the package `datasets` is missing", "pip install 'outshine[hub]'"
        ) from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    with asking_the_hub(what):
        revision = _revision(repository)
        try:
            return datasets.load_dataset(repository, config or None, split=split, revision=revision)
        except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in _DISK:
                raise cause from None
            raise UserError(
                f"{what}: {error}", "check the id, the configuration and the split"
            ) from error


@cache
def _revision(repository: str) -> str | None:
    """The commit of a data set that this process reads, or None when the client is offline.

    A single question, because `load_dataset` asks a silent hub again for half a minute.
    """
    from huggingface_hub import HfApi, is_offline_mode

    if is_offline_mode():
        return None  # then load_dataset takes what was downloaded last
    return HfApi().dataset_info(repository).sha
