"""Several processes train one model: they divide each step by tokens and add up its gradients.

`accelerate launch -m outshine train ...` or `torchrun -m outshine train ...` start them, on one or
several machines. Every process draws the same steps, computes its share of the rows, and makes the
same update; with FSDP (`accelerate launch --use_fsdp --fsdp_version 2`) weights, gradients and
moments are divided among them, too. Rank 0 alone writes files.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from outshine.depths import find_layers
from outshine.devices import pick_device
from outshine.errors import UserError
from outshine.forward import Forward
from outshine.processes import num_processes

if TYPE_CHECKING:
    from accelerate import PartialState

Division = Callable[[np.ndarray], list[np.ndarray]]

# Others wait that long for rank 0, which tokenises, asks teachers and evaluates.
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Team:
    """The processes of one training run.

    Attributes:
        rank: Number of this process, from 0.
        size: Of how many.
        state: accelerate's, None for a process alone.
    """

    rank: int = 0
    size: int = 1
    state: PartialState | None = None

    @property
    def is_sharded(self) -> bool:
        """Whether weights are divided among the processes, too (FSDP)."""
        return self.state is not None and _wants_fsdp()

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when all processes are here."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def first(self) -> AbstractContextManager[None]:
        """Lets rank 0 go before the others, who then find what it has cached."""
        return nullcontext() if self.state is None else self.state.main_process_first()

    def divided(self, division: Division) -> Division:
        """Wraps a division of a step's rows into micro-batches: this process gets its own.

        Every process gets equally many, or FSDP would wait for ever: where rows are too few, the
        micro-batch is empty.
        """
        if self.state is None:
            return division

        def own(lengths: np.ndarray) -> list[np.ndarray]:
            cuts = [[rows[part] for part in division(lengths[rows])] for rows in self.deal(lengths)]
            missing = max(map(len, cuts)) - len(cuts[self.rank])
            return cuts[self.rank] + [np.zeros(0, np.int64)] * missing

        return own

    def deal(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Rows of each process, so that all have about equally many tokens.

        Args:
            lengths: (B,) tokens per row; the longest goes first, to who has fewest tokens.
        """
        rows: list[list[int]] = [[] for _ in range(self.size)]
        hands = [(0, rank) for rank in range(self.size)]
        for row in np.argsort(-lengths, kind="stable").tolist():
            tokens, rank = hands[0]
            rows[rank].append(row)
            heapq.heapreplace(hands, (tokens + int(lengths[row]), rank))
        return [np.array(hand, np.int64) for hand in rows]

    def total(self, values: Tensor) -> Tensor:
        """Sum over all processes of a tensor."""
        if self.state is not None:
            torch.distributed.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether a process has set it."""
        if self.state is None:
            return list(flags)
        counts = torch.tensor(flags, dtype=torch.int32, device=self.state.device)
        return (self.total(counts) > 0).tolist()

    @contextmanager
    def gradients(self, forward: Forward, last: bool) -> Iterator[None]:
        """Around the passes of one micro-batch: gradients are added up with the step's last."""
        network = forward.wrapped
        if network is None or last:
            yield
        elif isinstance(network, nn.parallel.DistributedDataParallel):
            with network.no_sync():
                yield
        else:
            network.set_requires_gradient_sync(False)  # type: ignore[operator]
            yield
            network.set_requires_gradient_sync(True)  # type: ignore[operator]


ALONE = Team()


def find_team(device: str) -> Team:
    """The processes that a launcher has started, joined to a group; a process alone without one.

    Args:
        device: The setting; `cuda` means one GPU per process, `auto` too where there are GPUs.

    Raises:
        UserError: If the device is not there, or the launcher wants what is not supported.
    """
    if num_processes() == 1:
        return ALONE
    place = pick_device(device)
    if place.index is not None:
        raise UserError(
            f"cannot train on {device} in {num_processes()} processes: expected auto, cpu or cuda",
            "each process takes the GPU of its number on its machine",
        )
    wanted = os.environ.get("FSDP_VERSION", "2") if _wants_fsdp() else "2"
    if wanted != "2":
        raise UserError(
            f"cannot train with FSDP version {wanted}: expected 2",
            "use `accelerate launch --use_fsdp --fsdp_version 2`",
        )
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise UserError(
            "cannot train with DeepSpeed: expected DDP or FSDP",
            "use `accelerate launch --use_fsdp --fsdp_version 2`",
        )
    # else transformers fills the weights in the first process of a machine alone, but every one
    # tests by itself whether the encoder packs
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    from accelerate import PartialState

    state = PartialState(cpu=place.type == "cpu", timeout=PATIENCE)
    return Team(state.process_index, state.num_processes, state)


def _wants_fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def wrap(team: Team, forward: Forward) -> Forward:
    """Makes a model train together with its copies in the other processes, with DDP or FSDP.

    With FSDP its parameters become distributed tensors: make the optimizer afterwards.
    """
    model = forward.model
    if team.state is None:
        return forward
    model.freeze_unused()  # DDP would wait for its gradient
    if not team.is_sharded:
        places = [forward.device] if forward.device.type == "cuda" else None
        wrapped = nn.parallel.DistributedDataParallel(model, places, gradient_as_bucket_view=True)
        return replace(forward, wrapped=wrapped)
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(forward.device.type, (team.size,))
    reshard = FullyShardedDataParallelPlugin(fsdp_version=2).reshard_after_forward
    try:
        _, layers = find_layers(model.encoder, model.network.config)
    except UserError:  # all parameters in one group then
        layers = nn.ModuleList()
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)
    # the heads are called after the model's forward pass
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    return replace(forward, wrapped=model)


def divided_again(forward: Forward) -> None:
    """Ends what an evaluation with FSDP has begun: it leaves weights in one piece, but checkpoints
    and the optimizer know them by their parts."""
    from torch.distributed.fsdp import FSDPModule

    for module in forward.model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gathered(
    team: Team, forward: Forward, rebuild: Callable[[Mapping[str, Any]], Forward]
) -> Forward:
    """The trained model in one piece again; with FSDP only rank 0 gets it.

    Args:
        team: All processes of it call this.
        forward: From `wrap`, after training.
        rebuild: Weights by name -> a model that has them.
    """
    if forward.wrapped is not forward.model:
        return replace(forward, wrapped=None)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(forward.model, options=options)
    return rebuild(weights) if team.is_first else forward


def touched(forward: Forward, loss: Tensor) -> Tensor:
    """The same loss, with a gradient for all heads: DDP waits for heads that got no row."""
    if forward.wrapped is None:
        return loss
    return loss + 0.0 * sum(p.sum() for p in forward.model.heads.parameters())


def without_rows(forward: Forward, tasks: Sequence[str], drawn: Sequence[np.ndarray]) -> None:
    """Takes the gradient away from heads that no process had a row for, as if alone.

    AdamW changes a parameter whose gradient is zero, but not one that has none.
    """
    for task, rows in zip(tasks, drawn, strict=True):
        if not len(rows):
            forward.model.head(task).zero_grad()


def whole(tensor: Tensor) -> Tensor:
    """A tensor without its history; one that is divided among processes is put together in all."""
    full = getattr(tensor.detach(), "full_tensor", None)
    return full() if full else tensor.detach()


def like(values: Tensor, parameter: Tensor) -> Tensor:
    """Values placed (and divided) as a parameter is; a scalar is placed alone."""
    values = values.to(parameter.device)
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None or values.shape != parameter.shape:
        return values
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values, mesh, parameter.placements)  # type: ignore[attr-defined]
