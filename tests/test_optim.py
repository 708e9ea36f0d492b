"""AdamW by depth, and the reference's optimizer facts, against loops written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from outshine.config import PRESETS
from outshine.errors import DivergedError
from outshine.optim import BETAS, Watch, adamw, parameter_groups, set_step
from outshine.schedules import lr_factor

NUM_STEPS = 25


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Linear(4, 3).double()


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (3,))
    ]


def by_hand(
    start: list[torch.Tensor], lrs: list[float], eps: float, decay: float, corrected: bool
) -> list[np.ndarray]:
    """AdamW as its papers (or, without correction, google-research bert) write it."""
    values = [tensor.detach().numpy().copy() for tensor in start]
    first, second = ([np.zeros_like(value) for value in values] for _ in range(2))
    for t, lr in enumerate(lrs, start=1):
        for i, gradient in enumerate(gradients(t - 1)):
            g = gradient.numpy()
            first[i] = BETAS[0] * first[i] + (1 - BETAS[0]) * g
            second[i] = BETAS[1] * second[i] + (1 - BETAS[1]) * g * g
            m, v = first[i], second[i]
            if corrected:
                m, v = m / (1 - BETAS[0] ** t), v / (1 - BETAS[1] ** t)
            own_decay = decay if values[i].ndim > 1 else 0.0
            values[i] = values[i] - lr * (m / (np.sqrt(v) + eps) + own_decay * values[i])
    return values


@pytest.mark.parametrize(("corrected", "eps"), [(False, 1e-6), (True, 1e-8), (False, 0.1)])
def test_adamw_equals_a_loop_written_by_hand(corrected: bool, eps: float) -> None:
    network = model()
    lrs = [1e-2 * lr_factor("bam", step, NUM_STEPS, 0.2) for step in range(NUM_STEPS)]
    expected = by_hand(list(network.parameters()), lrs, eps, 0.01, corrected)
    optimizer = adamw(parameter_groups(network, None, 1.0, 0.01), eps)
    for step, lr in enumerate(lrs):
        for parameter, gradient in zip(network.parameters(), gradients(step), strict=True):
            parameter.grad = gradient
        set_step(optimizer, lr, step, eps, corrected)
        optimizer.step()
    for parameter, value in zip(network.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-9, atol=1e-12)


def test_first_step_without_correction_is_as_large_as_the_hand_table_says() -> None:
    # m = 0.1 g, sqrt(v) = sqrt(0.001) g: the step is lr * 0.1 / sqrt(0.001) = 3.162 lr; with
    # correction it would be lr
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = adamw([{"params": [weight], "lr_scale": 1.0, "decay": 0.0}], 1e-6)
    weight.grad = torch.ones(1, dtype=torch.float64)
    set_step(optimizer, 1.0, 0, 1e-6, bias_correction=False)
    optimizer.step()
    assert weight.item() == pytest.approx(-0.1 / (math.sqrt(0.001) + 1e-6), rel=1e-12)


def test_groups_decay_matrices_only_and_scale_the_rate_by_depth() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1))
    depths = {name: 3 if name.startswith("0.") else 1 for name, _ in network.named_parameters()}
    groups = parameter_groups(network, depths, 0.9, 0.01)
    found = {
        (round(group["lr_scale"], 6), group["decay"], tuple(p.shape))
        for group in groups
        for p in group["params"]
    }
    assert found == {
        (0.9, 0.0, (2,)),
        (0.9, 0.0, (1,)),
        (0.9, 0.01, (1, 2)),
        (0.729, 0.0, (2,)),
        (0.729, 0.01, (2, 2)),
    }


def test_parameters_without_gradient_are_left_out() -> None:
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    groups = parameter_groups(network, None, 0.9, 0.0)
    assert [tuple(p.shape) for group in groups for p in group["params"]] == [(2, 2)]


def test_reference_presets_switch_the_correction_off_and_use_a_larger_epsilon() -> None:
    for name in ("bam-reference-single", "bam-reference-multi"):
        assert PRESETS[name]["bias_correction"] is False
        assert PRESETS[name]["adam_eps"] == 1e-6
        assert PRESETS[name]["lr_schedule"] == "bam"


# --- updates that are not finite --------------------------------------------------------------


def update(watch: Watch, network: nn.Module, step: int, loss: float, gradient: float) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    watch.look(step, torch.tensor(loss), norm)
    set_step(watch.optimizer, 0.1, step - 1, 1e-6, True)
    watch.optimizer.step()


@pytest.mark.parametrize(
    ("loss", "gradient", "what"),
    [(math.nan, 1.0, "loss is nan"), (1.0, math.inf, "norm of the gradient is inf")],
)
def test_a_device_that_is_not_waited_for_makes_no_update_from_what_is_not_finite(
    loss: float, gradient: float, what: str
) -> None:
    network = model().float()
    watch = Watch(adamw(parameter_groups(network, None, 1.0, 0.01), 1e-6), waits=False)
    update(watch, network, 1, 1.0, 1.0)
    before = [p.detach().clone() for p in network.parameters()]
    update(watch, network, 2, loss, gradient)  # not seen yet
    with pytest.raises(DivergedError, match=f"^training stopped at step 2: the {what}\n"):
        watch.settle()
    with pytest.raises(DivergedError, match="at step 2"):
        update(watch, network, 3, 1.0, 1.0)
    watch.optimizer.step()  # nor any later one, whose gradient is finite
    for parameter, wanted in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, wanted)


def test_a_device_that_is_waited_for_tells_at_once() -> None:
    network = model().float()
    watch = Watch(adamw(parameter_groups(network, None, 1.0, 0.01), 1e-6), waits=True)
    update(watch, network, 1, 1.0, 1.0)
    watch.settle()
    with pytest.raises(DivergedError, match="at step 2: the loss is nan"):
        update(watch, network, 2, math.nan, 1.0)
