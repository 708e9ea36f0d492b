"""The state of a training run on disk, from which it goes on as if it had never stopped.

One safetensors file holds weights, moments and counters. Random streams are functions of the seed
and the step, so they need no state. Where one side trains the rows of occurring words alone
(`embedding.train_rows`) and the other the whole table, the state of the embedding is made into that
of the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from outshine import batches
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
        energy_j: Joules so far, per part of the machine that counts them (`energy`).
        average: Exponential moving average of the parameters, if one is kept.
        resumed: How often the run was taken up again.
        unlogged: What the steps since the last line of the log add to the next one.
    """

    step: int = 0
    rows: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    energy_j: dict[str, float] = field(default_factory=dict)
    average: list[torch.Tensor] | None = None
    resumed: int = 0
    unlogged: dict[str, Any] = field(default_factory=dict)


def first_state(plan: Plan) -> State:
    """The state before the first step; with the setting `ema` it has a copy of the weights."""
    state = State()
    if plan.cfg.ema:
        state.average = [p.detach().clone() for p in plan.forward.model.parameters()]
    return state


def save_checkpoint(
    run: Run, plan: Plan, optimizer: torch.optim.Optimizer, state: State, team: Team = ALONE
) -> None:
    """Writes the state of a run after `state.step` steps; all processes of a team call it."""
    arrays = {}
    for i, (name, parameter) in enumerate(plan.forward.model.named_parameters()):
        arrays[f"weight/{name}"] = whole(parameter).cpu().numpy()
        moments = optimizer.state.get(parameter, {})
        for key in _MOMENTS:
            if key in moments:
                arrays[f"{key}/{name}"] = whole(moments[key]).cpu().numpy()
        if state.average is not None:
            arrays[f"average/{name}"] = whole(state.average[i]).cpu().numpy()
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
            "energy_j": state.energy_j,
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
    arrays = _fitted(arrays, plan)

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
    state.energy_j = header.get("energy_j", {})
    state.unlogged = header["unlogged"]
    if not team.is_first:  # sums over processes must hold them once
        state.unlogged = state.unlogged | {"sums": {}}
    else:
        _shorten_log(run, state)
        say(f"resuming {run.path} at step {state.step:,} of {plan.mixture.num_steps:,}")


def _fitted(arrays: Mapping[str, np.ndarray], plan: Plan) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, with the word embedding in rows or whole as the model has it.

    From whole to rows, a moving average of words that do not occur is kept but for what their decay
    changes in second order.
    """
    model, found = plan.forward.model, dict(arrays)
    words = model.encoder.get_input_embeddings()
    prefix = next((name for name, module in model.named_modules() if module is words), "")
    wanted = f"{prefix}.rows" in dict(model.named_parameters())
    if wanted == (f"weight/{prefix}.rows" in arrays):
        return found
    used = batches.used_tokens(plan.mixture, plan.forward.pad_id, words.num_embeddings)
    for section in ("weight", "average", *_MOMENTS):
        table, rows, decay = (f"{section}/{prefix}.{key}" for key in ("weight", "rows", "decay"))
        is_moment = section in _MOMENTS
        if (table if wanted else rows) not in arrays:
            continue
        if section == "step":
            found |= dict.fromkeys((table, rows, decay), arrays[table if wanted else rows])
        elif wanted:
            found[rows] = arrays[table][used]
            found[decay] = np.full((1, 1), 0 if is_moment else 1, np.float32)
        else:
            like_table = arrays[f"weight/{prefix}.weight"]
            found[table] = like_table * 0 if is_moment else arrays[table] * arrays[decay]
            found[table][used] = arrays[rows]
        if wanted and is_moment:  # the optimizer does not see the table
            del found[table]
    return found


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
            was = "not recorded" if before is None else f"{_brief(before)}, is {_brief(value)}"
            differences = f"{section} was {was}"
        raise OtherRunError(
            f"cannot go on with the run {run.path}: {differences}",
            "give the settings and data that it was made with, or --force to start anew",
        )


def _brief(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
