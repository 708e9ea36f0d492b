"""Word embeddings whose gradient is written only where there is one.

A step of short rows touches a few hundred of the word embedding's tens of thousands of rows, but
torch makes a fresh dense gradient of zeros for each backward pass: 47 MB for a vocabulary of
30,522 words, 10 % of a small step on a CPU. Here one buffer is kept, and before a new step only
the rows that the last one touched are set to zero again. The gradient that the optimizer sees has
the same values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Lookup(torch.autograd.Function):
    """weight[ids], whose backward pass adds to `weight.grad` itself."""

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

    The gradient is no output of autograd: hooks on the weight do not see it.
    """

    def __init__(self, original: nn.Embedding) -> None:
        """Shares the weight of `original`."""
        super().__init__(
            original.num_embeddings,
            original.embedding_dim,
            original.padding_idx,
            _weight=original.weight.data,
        )
        self.weight = original.weight
        self._buffer: Tensor | None = None
        self._touched: list[Tensor] = []

    def forward(self, ids: Tensor) -> Tensor:
        """ids of any shape to vectors (..., D)."""
        if not (self.training and torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(ids)
        return _Lookup.apply(self.weight, ids, self)

    def add_gradient(self, ids: Tensor, gradient: Tensor) -> None:
        """Adds (n, D) gradients of the rows `ids` (n,), after `weight.grad = None` to zeros."""
        if self._buffer is None:
            self._buffer = torch.zeros_like(self.weight)
        if self.weight.grad is None:
            for touched in self._touched:
                self._buffer.index_fill_(0, touched, 0.0)
            self._touched = []
            self.weight.grad = self._buffer
        if self.padding_idx is not None:
            kept = ids != self.padding_idx
            ids, gradient = ids[kept], gradient[kept]
        self.weight.grad.index_add_(0, ids, gradient.to(self.weight.dtype))
        self._touched.append(ids)


def use_row_gradients(module: nn.Module, embedding: nn.Module) -> None:
    """Replaces a plain `nn.Embedding` inside a module that will run on the CPU."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if child is embedding and type(child) is nn.Embedding:
                setattr(parent, name, Embedding(child).train(child.training))
