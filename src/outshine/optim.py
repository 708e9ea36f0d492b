"""AdamW with one learning rate per depth, with or without bias correction; no update that is not
finite."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from outshine.errors import DivergedError

BETAS = (0.9, 0.999)


def parameter_groups(
    model: nn.Module, depths: Mapping[str, int] | None, layer_decay: float, weight_decay: float
) -> list[dict]:
    """Parameters by depth and weight decay.

    Args:
        model: The model; parameters that need no gradient are left out.
        depths: Parameter name -> depth from the output; None puts all at depth 0.
        layer_decay: Factor on the learning rate per depth.
        weight_decay: For matrices; biases and normalisation weights (vectors) get none.

    Returns:
        Groups for AdamW with the keys `params`, `lr_scale` and `decay`.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # what `embedding.train_rows` has made is as deep as the weight that it is of
            known = re.sub(r"\.(rows|decay)$", ".weight", name)
            depth = depths[known] if depths is not None else 0
            groups[depth, parameter.ndim > 1].append(parameter)
    return [
        {
            "params": parameters,
            "lr_scale": layer_decay**depth,
            "decay": weight_decay if decays else 0.0,
        }
        for (depth, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def adamw(groups: list[dict], eps: float) -> torch.optim.AdamW:
    """torch's fused AdamW over groups from `parameter_groups`."""
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=eps, fused=True)


def set_step(
    optimizer: torch.optim.Optimizer, lr: float, step: int, eps: float, bias_correction: bool
) -> None:
    """Sets each group's learning rate, epsilon and weight decay for the next update.

    Without bias correction the update is p -= lr * m / (sqrt(v) + eps) + lr * decay * p. torch
    divides m by c1 = 1 - beta1**t and sqrt(v) by c2 = sqrt(1 - beta2**t); this is undone by
    lr' = lr * c1 / c2, eps' = eps / c2 and decay' = decay * c2 / c1.

    Args:
        optimizer: From `adamw`.
        lr: Learning rate at depth 0.
        step: Updates done so far; the next one is t = step + 1.
        eps: Adam's epsilon.
        bias_correction: Whether moments are corrected.

    Source: Adam (Kingma and Ba 2015), AdamW (Loshchilov and Hutter 2019); without correction,
    the optimizer of google-research bert.
    """
    c1, c2 = 1.0, 1.0
    if not bias_correction:
        c1 = 1.0 - BETAS[0] ** (step + 1)
        c2 = math.sqrt(1.0 - BETAS[1] ** (step + 1))
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] * c1 / c2
        group["eps"] = eps / c2
        group["weight_decay"] = group["decay"] * c2 / c1


class Watch:
    """Ends training at the first step whose loss or gradient is not finite; its update is not made.

    That is seen at once, or, so that a GPU is not waited for, when the next step has been handed to
    it. The optimizer then leaves out the updates by itself, as it does for a GradScaler.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, waits: bool) -> None:
        """Watches the updates of `adamw`; sees at once if it `waits`."""
        self.optimizer, self.waits = optimizer, waits
        self.unread: tuple[int, Tensor, torch.cuda.Event | None] | None = None

    def look(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Before the update of a step: its loss, and the norm of its gradient, both scalars.

        Raises:
            DivergedError: If one of them, or of those of the step before, is not finite.
        """
        numbers = torch.stack([loss.detach().float(), norm.detach().float()])
        before = self.unread
        on_gpu = numbers.device.type == "cuda"
        here = torch.empty(2, pin_memory=on_gpu).copy_(numbers, non_blocking=True)
        self.unread = step, here, torch.cuda.Event() if on_gpu else None
        if self.unread[2] is not None:
            self.unread[2].record()
        if self.waits:
            self.settle()
            return
        bad = (~torch.isfinite(numbers).all()).float()
        found = getattr(self.optimizer, "found_inf", bad)
        self.optimizer.found_inf = torch.maximum(found, bad)  # type: ignore[attr-defined]
        if before is not None:
            _check_finite(*before)

    def settle(self) -> None:
        """Reads what is still unread, as `look` does."""
        if self.unread is not None:
            _check_finite(*self.unread)
        self.unread = None


def _check_finite(step: int, numbers: Tensor, copied: torch.cuda.Event | None) -> None:
    if copied is not None:
        copied.synchronize()
    for what, value in zip(("loss", "norm of the gradient"), numbers.tolist(), strict=True):
        if not math.isfinite(value):
            raise DivergedError(
                f"training stopped at step {step}: the {what} is {value}",
                'the update was not made; try a lower lr, or precision = "fp32"',
            )
