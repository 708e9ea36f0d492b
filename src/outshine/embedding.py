"""Word embeddings of which only the rows that can get a gradient are trained.

A task's training data use some thousands of the tens of thousands of words. `train_rows` makes a
parameter of their rows alone, so that gradient, clipping, and AdamW with its moments pass over
these: of a small encoder most weights are word embeddings. The gradient of a word that never occurs
is zero, and so are its moments: AdamW only decays it, by one factor that all such words have in
common. That factor is a parameter, too, with a gradient of zero, so that AdamW itself computes it.
`merge_rows` puts everything back; but for rounding the result is that of AdamW on the whole table.

A step touches a few hundred rows of these, but torch makes a fresh dense gradient of zeros for each
backward pass. Here one buffer is kept, and before a new step only the rows that the last one
touched are set to zero again. The gradient that the optimizer sees has the same values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class _Lookup(torch.autograd.Function):
    """weight[ids], whose backward pass adds to the gradient of the trained weight itself."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, owner: Embedding) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.owner = owner
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        ctx.owner.add_gradient(ids.flatten(), grads[0].flatten(0, -2))
        return None, None, None


class Embedding(nn.Embedding):
    """Takes the place of an `nn.Embedding` on the CPU.

    Where the gradient is `direct`, it is no output of autograd: hooks on the weight, and DDP, do
    not see it.
    """

    def __init__(self, original: nn.Embedding, direct: bool = True) -> None:
        """Shares the weight of `original`."""
        super().__init__(
            original.num_embeddings,
            original.embedding_dim,
            original.padding_idx,
            _weight=original.weight.data,
        )
        self.weight = original.weight
        self.direct = direct
        self.rows: nn.Parameter | None = None
        self.decay: nn.Parameter | None = None
        self._place = torch.empty(0, dtype=torch.int64)
        self._buffer: Tensor | None = None
        self._touched: list[Tensor] = []

    def forward(self, ids: Tensor) -> Tensor:
        """ids of any shape to vectors (..., D)."""
        learns = self.training and torch.is_grad_enabled() and self.trained.requires_grad
        if learns and self.direct:
            return _Lookup.apply(self.trained, self._places(ids), self)
        if self.rows is None or self.decay is None:
            return super().forward(ids)
        places = self._places(ids)
        if learns:
            padding = None if self.padding_idx is None else int(self._place[self.padding_idx])
            found = nn.functional.embedding(places, self.rows, None if padding == -1 else padding)
            return found + 0.0 * self.decay  # a gradient of zero, as `add_gradient` gives
        others = self.decay * nn.functional.embedding(ids, self.weight)
        own = nn.functional.embedding(places.clamp(min=0), self.rows)
        return torch.where((places >= 0).unsqueeze(-1), own, others)

    @property
    def trained(self) -> Tensor:
        """What the optimizer changes: the (n, D) rows that are trained, or the (V, D) weight."""
        return self.weight if self.rows is None else self.rows

    def _places(self, ids: Tensor) -> Tensor:
        """Where ids are in `trained`, -1 for those that are not."""
        return ids if self.rows is None else self._place[ids]

    def train_rows(self, used: Tensor) -> None:
        """Trains the rows of the (n,) distinct ids `used`; no others may be looked up in training.

        The gradient of a padding id is zero still.
        """
        assert self.rows is None
        self._buffer, self._touched = None, []
        self._place = torch.full((self.num_embeddings,), -1)
        self._place[used] = torch.arange(len(used))
        self.rows = nn.Parameter(self.weight.detach()[used])
        self.decay = nn.Parameter(self.weight.new_ones(1, 1))  # a matrix, for vectors do not decay
        self.weight.requires_grad_(False)

    def merge_rows(self) -> None:
        """Puts the trained rows back into the weight, which is whole again."""
        if self.rows is None or self.decay is None:
            return
        with torch.no_grad():
            self.weight *= self.decay
            self.weight[self._place >= 0] = self.rows[self._place[self._place >= 0]]
        self.rows, self.decay, self._buffer, self._touched = None, None, None, []
        self.weight.requires_grad_(True)

    def add_gradient(self, places: Tensor, gradient: Tensor) -> None:
        """Adds (n, D) gradients of rows of `trained`, after `trained.grad = None` to zeros."""
        weight = self.trained
        if self._buffer is None:
            self._buffer = torch.zeros_like(weight)
        if weight.grad is None:
            for touched in self._touched:
                self._buffer.index_fill_(0, touched, 0.0)
            self._touched = []
            weight.grad = self._buffer
            if self.decay is not None:
                self.decay.grad = torch.zeros_like(self.decay)
        if self.padding_idx is not None:
            kept = places != self._places(torch.tensor(self.padding_idx))
            places, gradient = places[kept], gradient[kept]
        weight.grad.index_add_(0, places, gradient.to(weight.dtype))
        self._touched.append(places)


def use_row_gradients(module: nn.Module, embedding: nn.Module, *, direct: bool = True) -> None:
    """Replaces a plain `nn.Embedding` inside a module that will run on the CPU.

    One that shares its weight with other modules (T5's) stays: they would see no training.
    """
    every = module.named_parameters(remove_duplicate=False)
    if sum(parameter is embedding.weight for _, parameter in every) != 1:
        return
    for parent in module.modules():
        for name, child in parent.named_children():
            if child is embedding and type(child) is nn.Embedding:
                setattr(parent, name, Embedding(child, direct).train(child.training))


def train_rows(module: nn.Module, used: Callable[[int], np.ndarray]) -> None:
    """Has the `Embedding` inside a module, if there is one, train the rows of some words alone.

    Args:
        module: Before its optimizer is made.
        used: Size of the vocabulary -> (n,) int64 distinct ids, all that training will look up.
    """
    for child in [*module.modules()]:
        if isinstance(child, Embedding):
            child.train_rows(torch.from_numpy(used(child.num_embeddings)))


def merge_rows(module: nn.Module) -> None:
    """Undoes `train_rows` after training; the optimizer is of no more use then."""
    for child in module.modules():
        if isinstance(child, Embedding):
            child.merge_rows()
