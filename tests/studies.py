"""Tiny studies for tests: a file beside the tiny tasks, and its graph."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conftest import write_duplicate, write_tickets, write_urgency
from outshine.graph import Graph, build_graph
from outshine.results import Row
from outshine.study_file import StudySpec, parse_study
from outshine.study_source import read_study_text, task_finder

STAGES = """
[stage.single]
max_steps = 4
batch_size = 8
lr = 1e-3
log_every = 1
[stage.multi]
max_steps = 4
batch_size = 8
lr = 1e-3
log_every = 1
[stage.finetune]
max_steps = 2
batch_size = 8
lr = 1e-4
"""


def study_text(
    encoder: str | Path, keys: str = "", *, arms: str = '["single", "multi", "single->multi"]'
) -> str:
    """A study of two tasks and two seeds.

    Args:
        encoder: Of all runs.
        keys: Further lines above or below the stages; those above end with a blank line.
        arms: In TOML.
    """
    above, _, below = keys.partition("\n\n") if "\n\n" in keys else (keys, "", "")
    head = f'name = "tiny"\nencoder = "{encoder}"\narms = {arms}\n'
    defaults = {"tasks": '["tickets.toml", "urgency.toml"]', "seeds": "2"}
    given = [f"{k} = {v}" for k, v in defaults.items() if f"{k} =" not in above]
    return "\n".join([head, *given, above, STAGES, below])


def write_study(folder: Path, text: str) -> Path:
    """Writes the tiny tasks and a study file beside them; returns the file."""
    for write in (write_tickets, write_urgency, write_duplicate):
        write(folder)
    path = folder / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return path


def read_spec(path: Path, overrides: Mapping[str, Any] | None = None) -> StudySpec:
    """The study of a file."""
    return parse_study(read_study_text(path), path, task_finder(path.parent), overrides or {})


def graph_of(folder: Path, text: str) -> Graph:
    """The graph of a study with this text."""
    return build_graph(read_spec(write_study(folder, text)))


def slow_text(encoder: str | Path) -> str:
    """A study of one seed with a checkpoint at every one of the 40 steps of its runs."""
    text = study_text(encoder, "seeds = 1", arms='["single->multi", "multi+finetune"]')
    text = text.replace("lr = 1e-3", "lr = 1e-3\nsave_every_s = 1e-9")
    return text.replace("max_steps = 4", "max_steps = 40\nepochs = 20")


ALIKE = ("metrics", "degenerate", "steps", "rows", "tokens", "curve", "mixture", "data", "teachers")


def alike(rows: dict[str, Row]) -> dict[str, list[Any]]:
    """What must be the same of every row, however often its run was stopped."""
    return {run: [getattr(row, key) for key in ALIKE] for run, row in rows.items()}


# A shell has what it starts with & ignore SIGINT, and so do their children.
_COMMAND = """
import signal
from outshine.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Starts `outshine WORDS` as a process."""
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for(
    condition: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None
) -> None:
    """Waits until something is so, two minutes at most, or as long as a process lives."""
    end = time.monotonic() + 120
    while not condition():
        if process is not None and process.poll() is not None:
            said = process.communicate()
            raise AssertionError(f"it ended before {what}: {process.returncode}, {said}")
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)
