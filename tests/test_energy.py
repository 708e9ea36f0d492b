"""The meter reads the counters that a machine has, here made-up ones."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from outshine import energy, journal, training
from outshine.config import TrainConfig
from outshine.energy import Meter
from outshine.exporting import export
from outshine.soups import _energy
from outshine.tasks import Task

CPU = torch.device("cpu")


@pytest.fixture
def zones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages of 100 J before they begin again, memory, and zones that are part of others."""
    monkeypatch.setattr(energy, "ZONES", tmp_path)
    names = {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "package-1", "2": "psys"}
    for number, name in names.items():
        zone = tmp_path / f"intel-rapl:{number}"
        zone.mkdir()
        (zone / "name").write_text(f"{name}\n")
        (zone / "max_energy_range_uj").write_text("100000000\n")
        (zone / "energy_uj").write_text("90000000\n")
    return tmp_path


def count(zones: Path, **joules: float) -> None:
    for number, value in joules.items():
        zone = zones / f"intel-rapl:{number[1:].replace('_', ':')}"
        (zone / "energy_uj").write_text(f"{value * 1e6:.0f}\n")


def test_packages_and_memory_are_added_up_over_the_end_of_their_range(zones: Path) -> None:
    meter = Meter(CPU)
    assert meter.look() == {"processors": 0.0}
    count(zones, z0=95, z0_0=94, z0_1=91, z1=90.5, z2=99)
    assert meter.look() == {"processors": pytest.approx(5 + 1 + 0.5)}
    count(zones, z0=2)
    assert meter.look() == {"processors": pytest.approx(6.5 + 7)}


def test_counters_are_looked_at_twice_a_minute(
    zones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 50.0
    monkeypatch.setattr(energy.time, "monotonic", lambda: now)
    meter = Meter(CPU)
    count(zones, z0=95)
    now += 29.0
    meter.look_in_time()
    assert meter.used == {"processors": 0.0}
    now += 1.0
    meter.look_in_time()
    assert meter.used == {"processors": 5.0}


def test_work_that_goes_on_is_told_if_counted_from_its_beginning(zones: Path) -> None:
    meter = Meter(CPU, {"processors": 40.0, "gpu": 7.0})  # the GPU was on another machine
    count(zones, z1=93)
    assert meter.look() == {"processors": pytest.approx(43.0)}
    assert Meter(CPU, {}).look() == {}


def test_a_machine_without_counters_or_rights_measures_nothing(
    zones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = Meter(CPU)
    (zones / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.look() == {}
    assert Meter(CPU).look() == {}  # and not package-0 alone
    monkeypatch.setattr(energy, "ZONES", zones / "none")
    assert Meter(CPU).look() == {}


def test_a_gpu_is_read_by_its_uuid(zones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    millijoules = [5000]
    asked = []

    def counter(handle: str) -> int:
        asked.append(handle)
        return millijoules[-1]

    monkeypatch.setitem(
        sys.modules,
        "pynvml",
        SimpleNamespace(
            NVMLError=RuntimeError,
            nvmlInit=lambda: None,
            nvmlDeviceGetHandleByUUID=str,
            nvmlDeviceGetTotalEnergyConsumption=counter,
        ),
    )
    properties = SimpleNamespace(uuid="1b4e")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    meter = Meter(torch.device("cuda", 0))
    millijoules.append(8500)
    assert meter.look() == {"processors": 0.0, "gpu": pytest.approx(3.5)}
    assert set(asked) == {"GPU-1b4e"}


def test_a_gpu_needs_the_package(zones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Meter(torch.device("cuda", 0)).look() == {"processors": 0.0}


def test_run_json_and_the_card_tell_it_also_after_an_interruption(
    zones: Path, tickets: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step and pass of an evaluation takes 36 J, of counters that begin again after 100."""
    used = [90.0]
    step, predict_table = training.set_step, journal.predict_table

    def use() -> None:
        used[0] = (used[0] + 36.0) % 100
        count(zones, z0=used[0])

    def evaluated(*args: Any, on_rows: Any) -> Any:
        for _ in range(3):
            use()
            on_rows(8)
        return predict_table(*args)

    def counted(*args: Any) -> None:
        use()
        if len(done) == 2 and not stopped:
            stopped.append(1)
            signal.raise_signal(signal.SIGINT)
        done.append(1)
        step(*args)

    done: list[int] = []
    stopped: list[int] = []
    monkeypatch.setattr(energy, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(training, "set_step", counted)
    monkeypatch.setattr(journal, "predict_table", evaluated)
    cfg = TrainConfig(encoder=str(encoder), max_steps=5, batch_size=8, device="cpu", eval_every=4)
    task = Task.load(tickets)
    with pytest.raises(KeyboardInterrupt):
        training.train([task], cfg, out=tmp_path / "run")
    run = training.train([task], cfg, out=tmp_path / "run")
    assert run.info()["energy_j"] == {"processors": (5 + 3) * 36.0}
    export(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "all else that ran on it: processors 0.08 Wh.\n\n## Intended use" in card
    assert _energy([run.info(), {"energy_j": {"processors": 2.0, "gpu": 1.0}}]) == {
        "processors": 290.0
    }
