"""Operations of a model, and the machine's rate of bare matrix products on its shapes.

Operations of the model are counted by the usual formula, over real tokens alone:

    6 x weights of the linear layers in the encoder's layers x tokens
      + 12 x layers x width x sum of squared row lengths (attention)

for training (forward 2, backward 4; attention likewise 4 and 8), a third of it for a forward pass.
Embeddings, pooler, heads, norms and the optimizer count nothing. What a program leaves out counts
as done: Outshine's last attention asks for the first token of each row alone, and behind it there
is one token per row. `multiplied` counts what is really multiplied, padding with it. The share of
the matrix rate is operations per second over the rate of bare products, measured in turn with the
rest on the shapes of the model's linear layers, in the precision of the run.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import synchronize
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from outshine.depths import find_layers
from outshine.forward import Forward
from outshine.model import MultiTaskModel


def linear_layers(model: MultiTaskModel) -> list[nn.Linear]:
    """The linear layers within the encoder's layers."""
    _, layers = find_layers(model.encoder, model.network.config)
    return [m for layer in layers for m in layer.modules() if isinstance(m, nn.Linear)]


def operations(model: MultiTaskModel, lengths: np.ndarray, training: bool) -> float:
    """Floating-point operations for rows of these lengths, by the formula above."""
    _, layers = find_layers(model.encoder, model.network.config)
    weights = sum(m.in_features * m.out_features for m in linear_layers(model))
    attention = 2 * len(layers) * model.network.config.hidden_size * float((lengths**2).sum())
    return (6 if training else 2) * (weights * float(lengths.sum()) + attention)


def multiplied(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products that `work` runs, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matrix_rate(forward: Forward, tokens: int, training: bool) -> float:
    """Operations per second of bare matrix products of `tokens` lines on the model's shapes."""
    dtype = torch.bfloat16 if forward.precision == "bf16" else torch.float32
    shapes = Counter((m.in_features, m.out_features) for m in linear_layers(forward.model))
    seconds = done = 0.0
    for (width, out), count in shapes.items():
        x, w, g = (
            torch.randn(shape, device=forward.device).to(dtype)
            for shape in ((tokens, width), (out, width), (tokens, out))
        )
        products = [(x, w.T), (g, w), (g.T, x)] if training else [(x, w.T)]
        for a, b in products:
            seconds += count * _product_seconds(a, b)
            done += count * 2.0 * tokens * width * out
    return done / seconds


def _product_seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    """Median of 5; on a GPU each is the mean of 20 in a row."""
    repeats = 20 if a.device.type == "cuda" else 1
    times = []
    for _ in range(6):  # the first one compiles or allocates
        synchronize(a.device)
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, b)
        synchronize(a.device)
        times.append((time.perf_counter() - start) / repeats)
    return statistics.median(times[1:])
