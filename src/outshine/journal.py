"""The log of a run: one line of `log.jsonl` per so many steps, and trackers on request."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from outshine.checkpoints import State
from outshine.distributed import ALONE, Team, divided_again
from outshine.energy import Meter
from outshine.evaluation import predict_table, table_metrics
from outshine.files import world_errors
from outshine.planning import Plan
from outshine.runs import Run


class Log:
    """Sums over the steps since the last line of `log.jsonl`."""

    def __init__(self, run: Run, plan: Plan, state: State, team: Team = ALONE) -> None:
        self.run, self.plan, self.state, self.team = run, plan, state, team
        self.begin = time.monotonic() - state.elapsed_s
        self.last_save = time.monotonic()
        alone = team.size == 1  # of several, each would have to add up its machine's parts once
        used = state.energy_j if state.step else None
        self.meter = Meter(plan.forward.device, used) if alone else None
        self.trackers = _trackers(run, plan) if team.is_first else []
        self._reset()
        self._take_up(state.unlogged, plan.forward.device)

    def _reset(self) -> None:
        self.since, self.first = time.monotonic(), (self.state.rows, self.state.tokens)
        self.losses: list[torch.Tensor] = []
        self.sums: dict[int, list[torch.Tensor]] = {}
        self.counts: dict[int, int] = {}

    def _take_up(self, unlogged: dict[str, Any], device: torch.device) -> None:
        """Goes on with what `note` wrote down, to the last bit."""

        def tensors(values: Sequence[float]) -> list[torch.Tensor]:
            return list(torch.tensor(values, device=device))

        self.losses = tensors(unlogged.get("losses", []))
        self.sums = {int(part): tensors(v) for part, v in unlogged.get("sums", {}).items()}
        self.counts = {int(part): n for part, n in unlogged.get("counts", {}).items()}

    def note(self, state: State) -> None:
        """Writes the clock, and what no line of the log holds yet, into the state."""
        state.elapsed_s = self.elapsed_s()
        state.energy_j = self.meter.look() if self.meter else {}
        state.unlogged = {
            "losses": [float(loss) for loss in self.losses],
            "sums": {str(part): [float(x) for x in v] for part, v in self.sums.items()},
            "counts": {str(part): count for part, count in self.counts.items()},
        }

    def elapsed_s(self) -> float:
        return time.monotonic() - self.begin

    def seconds_since_save(self) -> float:
        return time.monotonic() - self.last_save

    def saved(self) -> None:
        self.last_save = time.monotonic()

    def add(self, sums: dict[int, torch.Tensor]) -> None:
        for part, value in sums.items():
            self.sums.setdefault(part, []).append(value)

    def is_due(self) -> bool:
        """Whether a line is: each `log_every` steps, at the last one, and with dev metrics."""
        done, cfg = self.state.step, self.plan.cfg
        return not done % cfg.log_every or self._is_last() or self._is_dev_due()

    def _is_last(self) -> bool:
        return self.state.step == self.plan.mixture.num_steps

    def _is_dev_due(self) -> bool:
        every = self.plan.cfg.eval_every
        return bool(every) and self.state.step % every == 0 and not self._is_last()

    def step(
        self,
        drawn: Sequence[np.ndarray],
        loss: torch.Tensor,
        lr: float,
        weight: float,
        note: Callable[[str], None],
    ) -> bool:
        """Counts one step, and writes a line if one is due.

        Returns:
            Whether it was such a step. Processes add up their numbers then.
        """
        if self.meter:
            self.meter.look_in_time()
        self.losses.append(loss)
        for part, positions in enumerate(drawn):
            self.counts[part] = self.counts.get(part, 0) + len(positions)
        if not self.is_due():
            return False
        state = self.state
        sums = self._sums()
        seconds = time.monotonic() - self.since
        names = [part.table.task.name for part in self.plan.mixture.parts]
        line = {
            "step": state.step,
            "elapsed_s": round(self.elapsed_s(), 3),
            "rows": state.rows,
            "tokens": state.tokens,
            "loss": float(torch.stack(self.losses).mean()),
            "lr": lr,
            "gold_weight": weight if self.plan.teachers else 1.0,
            "rows_per_s": round((state.rows - self.first[0]) / seconds, 2),
            "tokens_per_s": round((state.tokens - self.first[1]) / seconds, 1),
            "task_loss": {
                name: value / self.counts[part]
                for part, (name, value) in enumerate(zip(names, sums, strict=True))
                if self.counts[part]
            },
        }
        if self._is_dev_due():
            line["dev"] = _dev_metrics(self.plan, self.meter)
        note(
            f"loss {line['loss']:.3f}, {line['rows_per_s']:.0f} rows/s, "
            f"{line['tokens_per_s']:.0f} tokens/s, lambda {line['gold_weight']:.2f}"
        )
        if self.team.is_first:
            with world_errors(self.run.log_path), self.run.log_path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        self.track({key: value for key, value in line.items() if key != "step"})
        self._reset()
        return True

    def track(self, numbers: Mapping[str, Any]) -> None:
        """Hands numbers to the trackers, under names such as `dev/rte/accuracy` where nested."""
        flat = dict(_flat(numbers))
        for tracker in self.trackers:
            tracker.log(flat, step=self.state.step)

    def close(self) -> None:
        """Ends the run in the trackers, which would take the next one for the same."""
        for tracker in self.trackers:  # Accelerator.end_training would end the other processes, too
            tracker.finish()

    def _sums(self) -> list[float]:
        """Of each part's row losses, over all processes."""
        none = [torch.zeros((), device=self.plan.forward.device)]
        own = [
            torch.stack(self.sums.get(part, none)).sum()
            for part in range(len(self.plan.mixture.parts))
        ]
        return self.team.total(torch.stack(own)).tolist()


def _flat(numbers: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    for key, value in numbers.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}/")
        else:
            yield above + key, value


def _trackers(run: Run, plan: Plan) -> list[Any]:
    """accelerate's trackers that are asked for, each with a new run that has its folder's name."""
    if not plan.cfg.track:
        return []
    from accelerate import Accelerator

    accelerator = Accelerator(
        log_with=list(plan.cfg.track), project_dir=run.path, cpu=plan.forward.device.type == "cpu"
    )
    flat = {k: v for k, v in plan.cfg.model_dump().items() if isinstance(v, int | float | str)}
    names = {"wandb": {"name": run.path.name}, "mlflow": {"run_name": run.path.name}}
    accelerator.init_trackers("outshine", config=flat, init_kwargs=names)
    return accelerator.trackers


def _dev_metrics(plan: Plan, meter: Meter | None) -> dict[str, dict[str, float]]:
    """Metrics on every task's dev split, in the middle of training."""
    results = {}

    def look(_: int) -> None:
        if meter:
            meter.look_in_time()

    # what runs out of memory here must not change how training goes on
    forward = replace(plan.forward, budget=replace(plan.forward.budget))
    for (name, split), table in plan.dev.items():
        if split == "dev":
            logits = predict_table(forward, table, "", on_rows=look).logits
            results[name] = table_metrics(table, logits)
    divided_again(forward)
    return results
