"""The state of a training run on disk, from which it goes on as if it had never stopped.

One safetensors file holds weights, moments and counters. Random streams are functions of the seed
and the step, so they need no state.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from outshine.console import say
from outshine.distributed import ALONE, Team, like, whole
from outshine.errors import OtherRunError
from outshine.files import map_arrays, replacing, write_arrays
from outshine.planning import Plan
from outshine.runs import Run

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class State:
    """What changes while a run trains, beside model and optimizer.

    Attributes:
        step: Optimizer steps done.
        rows, tokens: Seen so far.
        elapsed_s: Training seconds, those before an interruption included.
        average: Exponential moving average of the parameters, if one is kept.
        resumed: How often the run was taken up again.
        unlogged: What the steps since the last line of the log add to the next one.
    """

    step: int = 0
    rows: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    average: list[torch.Tensor] | None = None
    resumed: int = 0
    unlogged: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    run: Run, plan: Plan, optimizer: torch.optim.Optimizer, state: State, team: Team = ALONE
) -> None:
    """Writes the state of a run after `state.step` steps; all processes of a team call it."""
    arrays = {}
    for i, (name, parameter) in enumerate(plan.forward.model.named_parameters()):
        arrays[f"weight/{name}"] = whole(parameter).numpy()
        moments = optimizer.state.get(parameter, {})
        for key in _MOMENTS:
            if key in moments:
                arrays[f"{key}/{name}"] = whole(moments[key]).numpy()
        if state.average is not None:
            arrays[f"average/{name}"] = whole(state.average[i]).numpy()
    if not team.is_first:
        return
    write_arrays(
        run.checkpoint_path,
        arrays,
        {
            "identity": plan.identity,
            "step": state.step,
            "rows": state.rows,
            "tokens": state.tokens,
            "elapsed_s": state.elapsed_s,
            "resumed": state.resumed,
            "unlogged": state.unlogged,
        },
    )


def restore(
    run: Run, plan: Plan, optimizer: torch.optim.Optimizer, state: State, team: Team = ALONE
) -> None:
    """Takes a run up from its checkpoint, after checking that it is the same run."""
    arrays, header = map_arrays(run.checkpoint_path)
    same_identity(run, header["identity"], plan.identity)
    model = plan.forward.model

    def stored(key: str, parameter: torch.Tensor) -> torch.Tensor:
        return like(torch.from_numpy(np.array(arrays[key])), parameter)

    with torch.no_grad():
        for i, (name, parameter) in enumerate(model.named_parameters()):
            parameter.copy_(stored(f"weight/{name}", parameter))
            if f"step/{name}" in arrays:
                optimizer.state[parameter] = {
                    key: stored(f"{key}/{name}", parameter) for key in _MOMENTS
                }
            if state.average is not None:
                state.average[i].copy_(stored(f"average/{name}", parameter))
    state.step, state.rows, state.tokens = header["step"], header["rows"], header["tokens"]
    state.elapsed_s, state.resumed = header["elapsed_s"], header["resumed"] + 1
    state.unlogged = header["unlogged"]
    if not team.is_first:  # sums over processes must hold them once
        state.unlogged = state.unlogged | {"sums": {}}
    else:
        _shorten_log(run, state)
        say(f"resuming {run.path} at step {state.step:,} of {plan.mixture.num_steps:,}")


def _shorten_log(run: Run, state: State) -> None:
    """Takes away the lines of the log that were written after the checkpoint."""
    text = run.log_path.read_text() if run.log_path.exists() else ""
    lines = text.splitlines()[: text.count("\n")]  # a process that was killed may leave half a line
    kept = [line for line in lines if json.loads(line)["step"] <= state.step]
    with replacing(run.log_path) as file:
        file.write("".join(f"{line}\n" for line in kept).encode())


def same_identity(run: Run, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuses a run that was made with other settings, data or teachers, and names what differs."""
    for section, value in wanted.items():
        before = found.get(section)
        if before == value:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            keys = [k for k in sorted({*before, *value}) if before.get(k) != value.get(k)]
            differences = ", ".join(
                f"{section}.{k} was {_brief(before.get(k))}, is {_brief(value.get(k))}"
                for k in keys
            )
        else:
            differences = f"{section} was {before}, is {value}"
        raise OtherRunError(
            f"cannot go on with the run {run.path}: {differences}",
            "give the settings and data that it was made with, or --force to start anew",
        )


def _brief(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
