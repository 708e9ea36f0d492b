"""Energy that training uses, where the machine counts it: processors (RAPL) and an NVIDIA GPU.

The counters are the hardware's own and count whatever runs on it, other processes too. Those of
processors are not there in virtual machines, and Linux lets only root read them unless told
otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ZONES = Path("/sys/class/powercap")
LOOK_EVERY_S = 30.0  # 65 kJ, after which some begin again, are four minutes of 280 W


@dataclass
class Counter:
    """One counter of energy.

    Attributes:
        part: What it counts: `processors` or `gpu`; several processors have a counter each.
        read: Returns its state in joules; OSError if it cannot.
        range_j: Joules at which it begins at 0 again; 0 for never.
        last: Its state when it was read last.
    """

    part: str
    read: Callable[[], float]
    range_j: float = 0.0
    last: float = 0.0


class Meter:
    """Adds up the energy of a piece of work; call `look_in_time` more often than once a minute.

    Args:
        device: Where it computes.
        used: Joules per part of the work already done, for work that goes on; None for new work. A
            part that was not counted from the beginning is not told.
    """

    def __init__(self, device: torch.device, used: Mapping[str, float] | None = None) -> None:
        found = [*_processors(), *_gpu(device)]
        parts = {counter.part for counter in found}
        self.used = dict.fromkeys(parts, 0.0) if used is None else dict(used)
        self.used = {part: joules for part, joules in self.used.items() if part in parts}
        self._counters = [counter for counter in found if counter.part in self.used]
        self._looked = time.monotonic()

    def look_in_time(self) -> None:
        """Looks, if it was not done for a while: a counter must not go all the way round unseen."""
        if time.monotonic() - self._looked >= LOOK_EVERY_S:
            self.look()

    def look(self) -> dict[str, float]:
        """Joules per part since the beginning; {} where nothing is counted."""
        for counter in self._counters:
            try:
                now = counter.read()
            except OSError:
                self.used.pop(counter.part, None)
            if counter.part not in self.used:
                continue
            since = now - counter.last
            self.used[counter.part] += since + counter.range_j * (since < 0)
            counter.last = now
        self._looked = time.monotonic()
        return dict(self.used)


def _processors() -> list[Counter]:
    """RAPL's packages and memory; `core` and `uncore` are parts of a package."""
    found = []
    for zone in sorted(ZONES.glob("*-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            if not name.startswith("package-") and name != "dram":
                continue
            range_j = int((zone / "max_energy_range_uj").read_text()) / 1e6
            read = _file_reader(zone / "energy_uj")
            found.append(Counter("processors", read, range_j, read()))
        except OSError:
            return []  # a sum over some of the processors would mislead
    return found


def _file_reader(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_text()) / 1e6


def _gpu(device: torch.device) -> list[Counter]:
    """NVML's counter, with the package nvidia-ml-py; GPUs before Volta have none."""
    if device.type != "cuda":
        return []
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        handle: Any = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")

        def read() -> float:
            try:
                return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
            except pynvml.NVMLError as error:
                raise OSError(str(error)) from None

        return [Counter("gpu", read, last=read())]
    except (ImportError, OSError):
        return []
    except pynvml.NVMLError:
        return []
