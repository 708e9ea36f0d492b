"""Where a result comes from: versions, commit, data, machine, time and memory."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from outshine.checkpoints import State
from outshine.forward import Forward
from outshine.planning import Plan
from outshine.processes import num_processes
from outshine.runs import FORMAT


def provenance(plan: Plan, state: State, run_id: str, finish_s: float) -> dict[str, Any]:
    """Content of `run.json` for a finished run; `finish_s` went into evaluation and saving."""
    return {
        "format": FORMAT,
        "id": run_id,
        "seed": plan.cfg.seed,
        **surroundings(plan.forward),
        "data": {
            part.table.task.name: {
                "train": part.table.data,
                **{
                    split: table.data
                    for (name, split), table in plan.dev.items()
                    if name == part.table.task.name
                },
            }
            for part in plan.mixture.parts
        },
        "mixture": {
            part.table.task.name: {
                "rows": len(part.rows),
                "probability": part.probability,
                "passes": plan.mixture.passes(part),
                "weight": part.weight,
            }
            for part in plan.mixture.parts
        },
        "teachers": plan.identity["teachers"],
        "teacher_metrics": plan.taught,
        "identity": plan.identity,
        "steps": state.step,
        "rows": state.rows,
        "tokens": state.tokens,
        "train_s": round(state.elapsed_s, 3),
        "seconds": round(state.elapsed_s + finish_s, 3),
        "energy_j": {part: round(joules, 1) for part, joules in state.energy_j.items()},
        "resumed": state.resumed,
    }


def surroundings(forward: Forward) -> dict[str, Any]:
    """What a model was made with: software, command, machine, and memory at its peak so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("outshine", "torch", "transformers", "tokenizers")},
        },
        "git_commit": git_commit(),
        "command": sys.argv,
        "device": device_name(forward.device),
        "precision": forward.precision,
        "num_threads": torch.get_num_threads(),
        "num_processes": num_processes(),
        "num_parameters": sum(p.numel() for p in forward.model.parameters()),
        # Linux counts in KiB, macOS in bytes
        "peak_memory_bytes": peak if sys.platform == "darwin" else peak * 1024,
    }
    if forward.device.type == "cuda":
        content["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(forward.device)
    return content


def device_name(device: torch.device) -> str:
    """Name of the processor or GPU, with the number of CPU cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def git_commit() -> str | None:
    """Commit of outshine's source, when it is used from a git checkout; `+` when it is changed."""
    folder = Path(__file__).parent
    if not (folder.parent.parent / ".git").exists():
        return None
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--", "src"])
    try:
        commit, changed = (
            subprocess.run(
                command, cwd=folder.parent.parent, capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")
