"""What this machine has: versions, device, caches, and whether the hub answers."""

from __future__ import annotations

import importlib.util
import os
import platform
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from outshine.encoders import BUILTIN_PACKAGE
from outshine.files import cache_dir

PACKAGES = ("outshine", "torch", "transformers", "tokenizers", "safetensors", "numpy", "datasets")
HUB_TIMEOUT_S = 3.0


def examine() -> dict[str, Any]:
    """Returns what `outshine doctor` tells, as plain data.

    Returns:
        {"versions": {name: version or None}, "device": `cpu` or `cuda`, "device_name", "bf16":
        whether it computes in bf16, "num_threads", "cache": {"path", "bytes"},
        "builtin_encoder": whether its package is installed, "glue_dir": {"path" or None,
        "exists"}, "hub": see `hub_answer`}.
    """
    import torch

    from outshine.devices import has_bf16, pick_device
    from outshine.provenance import device_name

    device = pick_device("auto")
    folder = cache_dir()
    glue = os.environ.get("OUTSHINE_GLUE_DIR") or None
    return {
        "versions": {"python": platform.python_version()}
        | {package: _version(package) for package in PACKAGES},
        "device": device.type,
        "device_name": device_name(device),
        "bf16": has_bf16(device),
        "num_threads": torch.get_num_threads(),
        "cache": {"path": str(folder), "bytes": folder_bytes(folder)},
        "builtin_encoder": importlib.util.find_spec(BUILTIN_PACKAGE) is not None,
        "glue_dir": {"path": glue, "exists": glue is not None and Path(glue).is_dir()},
        "hub": hub_answer(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except FileNotFoundError:  # another process has just removed it
            continue
    return total


def hub_answer(timeout_s: float = HUB_TIMEOUT_S) -> dict[str, Any]:
    """Asks the hub once.

    Args:
        timeout_s: Longest wait, the look-up of its name included.

    Returns:
        {"address", "answers": True, False, or None where HF_HUB_OFFLINE forbids to ask,
        "detail": what came back}.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answer = {"address": constants.ENDPOINT, "answers": False}
    if constants.HF_HUB_OFFLINE:
        return answer | {"answers": None, "detail": "not asked: HF_HUB_OFFLINE is set"}
    found: list[dict[str, Any]] = []

    def ask() -> None:
        begin = time.monotonic()
        try:
            status = get_session().head(constants.ENDPOINT, timeout=timeout_s).status_code
        except Exception as error:  # whatever the client raises, the hub did not answer
            found.append({"detail": f"{type(error).__name__}: {error}"})
        else:
            milliseconds = 1000 * (time.monotonic() - begin)
            detail = f"HTTP {status} after {milliseconds:.0f} ms"
            found.append({"answers": status < 500, "detail": detail})  # a proxy answers 502

    # in a thread, because no client bounds the time that the look-up of a name takes
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    silent = {"detail": f"nothing within {timeout_s:g} seconds"}
    return answer | (found[0] if found else silent)
