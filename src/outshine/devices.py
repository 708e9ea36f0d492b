"""Device, threads and number format of a computation."""

from __future__ import annotations

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from outshine.errors import UserError


def set_up(num_threads: int, deterministic: bool) -> None:
    """Applies the settings that hold for the whole process.

    Args:
        num_threads: Of torch on the CPU; 0 leaves them.
        deterministic: Whether only algorithms that give the same bits each time are used.
    """
    if num_threads:
        torch.set_num_threads(num_threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
        torch.use_deterministic_algorithms(True)


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU, if there is one, else the CPU.

    Raises:
        UserError: If the device is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("it is not supported")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).split("\n")[0]
        raise UserError(
            f"cannot use the device {name!r}: {first_line}, expected auto, cpu or cuda (device)",
            "`outshine doctor` shows the devices of this machine",
        ) from None
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """Returns `bf16` or `fp32`; `auto` is bf16 where the processor has instructions for it."""
    if name != "auto":
        return name
    return "bf16" if has_bf16(device) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context around the encoder: bf16 autocast, or nothing for fp32."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def to_device(x: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on a device; a GPU fetches it in its turn, without being waited for."""
    tensor = torch.from_numpy(np.ascontiguousarray(x))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def trim_memory() -> None:
    """Gives freed memory back to the system.

    glibc keeps what torch frees between the small objects that live on: over passes of ever other
    lengths a process grows without end, though nothing leaks (bench/predict.py).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # other C libraries have none
        trim(0)
