"""Rows without padding: all tokens of a micro-batch in one line, attention within segments.

Every dense operation of the encoder then works on real tokens only. Three things make a
Hugging Face encoder do this, and none of them changes its code:

* an attention function, registered with transformers, that reads the table of segments handed
  through the encoder's keyword arguments;
* position ids that begin anew in each segment;
* a hook in the last layer that keeps the first token of each segment, (1, T, D) to (B, 1, D), so
  that all that follows sees B rows: the pooler and classification transform in any case, and where
  the family normalises behind its attention, the last layer's feed-forward network, too. (Mean
  pooling reads all tokens: it takes the means of segments instead.)

Whether an encoder allows this is tested, not assumed: `find_packing` compares two segments packed
with the same segments alone.

Shapes: B rows, T tokens of all rows, H heads, d features of a head, D features of a token;
a group of b rows of similar length is a rectangle of b x L places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from outshine.dropout import keep_factors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "outshine_packed"
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Group:
    """Rows of similar length, whose attention is computed as one rectangle.

    Attributes:
        places: (b * L,) int64 position in the packed line of each place; padding repeats the
            row's first token.
        shape: (b, L).
        bias: (b, 1, 1, L) float32, 0 for tokens and -inf for padding; None without padding.
        valid: (n,) int64 places of the rectangle that hold tokens; None without padding.
        tokens: (n,) int64 their positions in the packed line.
    """

    places: Tensor
    shape: tuple[int, int]
    bias: Tensor | None
    valid: Tensor | None
    tokens: Tensor


@dataclass(frozen=True)
class Segments:
    """Where the rows of a packed line begin, and how attention groups them.

    Attributes:
        groups: Rows of similar length.
        first: (B,) int64 position of each row's first token.
        lengths: (B,) int64 tokens per row; what follows them fills the line up.
    """

    groups: tuple[Group, ...]
    first: Tensor
    lengths: Tensor

    def means(self, hidden: Tensor) -> Tensor:
        """(T, D) vectors of tokens to the (B, D) float32 means of the rows."""
        rows = torch.arange(len(self.lengths), device=hidden.device)
        owner = rows.repeat_interleave(self.lengths)
        sums = hidden.new_zeros(len(rows), hidden.shape[1], dtype=torch.float32)
        sums = sums.index_add(0, owner, hidden[: len(owner)].float())
        return sums / self.lengths.unsqueeze(1)


def make_segments(
    lengths: np.ndarray, groups: Sequence[np.ndarray], device: torch.device, num_rows: int
) -> Segments:
    """Index tables for rows that stand one after another.

    Args:
        lengths: Tokens per row.
        groups: Rows of each group, from `batches.cut`.
        device: Where the tables are needed.
        num_rows: B, the rows that are wanted; what follows them only fills the line up.
    """
    starts = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    made = []
    for rows in groups:
        width = int(lengths[rows].max())
        offsets = np.arange(width)
        inside = offsets[None, :] < lengths[rows][:, None]
        places = starts[rows][:, None] + np.where(inside, offsets[None, :], 0)
        full = bool(inside.all())
        bias = np.where(inside, np.float32(0), np.float32(-np.inf))[:, None, None, :]
        made.append(
            Group(
                places=torch.from_numpy(places.ravel()).to(device),
                shape=(len(rows), width),
                bias=None if full else torch.from_numpy(bias).to(device),
                valid=None if full else torch.from_numpy(np.flatnonzero(inside)).to(device),
                tokens=torch.from_numpy(places[inside]).to(device),
            )
        )
    first, own = (torch.from_numpy(x[:num_rows]).to(device) for x in (starts, lengths))
    return Segments(tuple(made), first, own)


class _SegmentAttention(torch.autograd.Function):
    """Softmax attention within segments, in float32, with dropout on the probabilities.

    One node for all groups: on a CPU the dispatch of many small differentiable operations costs
    more than their arithmetic.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        segments: Segments,
        scale: float,
        dropout: float,
        window: int | None,
    ) -> Tensor:
        """q, k, v: (T, H, d); returns (T, H, d) in the same dtype."""
        out = torch.empty_like(v)
        saved = []
        with torch.autocast(q.device.type, enabled=False):
            for group in segments.groups:
                q_g, k_g, v_g = (_rectangle(x, group) for x in (q, k, v))
                scores = torch.matmul(q_g, k_g.transpose(-1, -2)).mul_(scale)
                if group.bias is not None:
                    scores += group.bias
                if window is not None and group.shape[1] > window:
                    place = torch.arange(group.shape[1], device=q.device)
                    far = (place[:, None] - place[None, :]).abs() >= window
                    # finite, for padding may see no token within its window
                    scores.masked_fill_(far, torch.finfo(torch.float32).min)
                probs = scores.softmax(dim=-1)
                keep = keep_factors(probs.shape, dropout, probs) if dropout else None
                dropped = probs * keep if keep is not None else probs
                _put(out, torch.matmul(dropped, v_g), group)
                saved += [q_g, k_g, v_g, probs, keep]
        ctx.save_for_backward(*saved)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_out = grads[0]
        grad_q, grad_k, grad_v = (torch.empty_like(grad_out) for _ in range(3))
        saved = ctx.saved_tensors
        for i, group in enumerate(ctx.segments.groups):
            q_g, k_g, v_g, probs, keep = saved[5 * i : 5 * i + 5]
            grad_g = _rectangle(grad_out, group)
            if group.valid is not None:
                # padding repeats real tokens, whose gradient must count once
                grad_g = grad_g * (group.bias == 0).squeeze(1).unsqueeze(-1)
            dropped = probs * keep if keep is not None else probs
            _put(grad_v, torch.matmul(dropped.transpose(-1, -2), grad_g), group)
            grad_p = torch.matmul(grad_g, v_g.transpose(-1, -2))
            if keep is not None:
                grad_p *= keep
            grad_s = torch._softmax_backward_data(grad_p, probs, -1, torch.float32)
            grad_s *= ctx.scale
            _put(grad_q, torch.matmul(grad_s, k_g), group)
            _put(grad_k, torch.matmul(grad_s.transpose(-1, -2), q_g), group)
        return grad_q, grad_k, grad_v, None, None, None, None


def _rectangle(x: Tensor, group: Group) -> Tensor:
    """(T, H, d) to (b, H, L, d) float32, contiguous."""
    taken = x.index_select(0, group.places).view(*group.shape, *x.shape[1:])
    return taken.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)


def _put(target: Tensor, x: Tensor, group: Group) -> None:
    """Writes the tokens of (b, H, L, d) to their lines of (T, H, d)."""
    flat = x.transpose(1, 2).reshape(-1, *target.shape[1:])
    if group.valid is not None:
        flat = flat.index_select(0, group.valid)
    target.index_copy_(0, group.tokens, flat.to(target.dtype))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: (1, H, T, d) in, (1, T, H, d) out.

    Without `segments` it is transformers' own scaled-dot-product attention. With a sliding window
    (ModernBERT's local layers) a token sees those less than `sliding_window` places away.
    """
    if segments is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return out, None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    out = _SegmentAttention.apply(q, k, v, segments, scale, dropout, sliding_window)
    return out.unsqueeze(0), None


class _FirstTokens:
    """Hooks that keep the first token of each segment, when rows are packed."""

    def __init__(self, last_layer: nn.Module, place: nn.Module) -> None:
        """Cuts behind `place`, which is `last_layer` or inside it."""
        self.first: Tensor | None = None
        self.handles = (
            last_layer.register_forward_pre_hook(self._enter, with_kwargs=True),
            place.register_forward_hook(self._cut),
        )

    def _enter(self, _module: nn.Module, _args: Any, kwargs: Mapping[str, Any]) -> None:
        segments = kwargs.get("segments")
        self.first = None if segments is None else segments.first

    def _cut(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """(1, T, D) to (B, 1, D)."""
        if self.first is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        taken = hidden[0].index_select(0, self.first).unsqueeze(1)
        return (taken, *output[1:]) if isinstance(output, tuple) else taken

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


@dataclass(frozen=True)
class Packing:
    """How to call a packing encoder: what the first position id of a row is."""

    first_position: int


def find_packing(
    network: PreTrainedModel,
    last_layer: nn.Module,
    pooled: Callable[[Mapping[str, Any]], Tensor],
    pad_id: int,
    *,
    all_tokens: bool,
) -> Packing | None:
    """Prepares an encoder for packed rows, if it gives the same results with them.

    Two made-up segments are computed packed and alone. What makes them differ by more than 1e-4 is
    given up: first to leave the last layer early, which needs a family that normalises behind its
    attention and layers with weights of their own; when they differ with every way to count
    positions that is known, the encoder is left as it was.

    Args:
        network: A transformers model in eval mode.
        last_layer: The encoder's last layer.
        pooled: Inputs of the network -> (B, D) pooled vectors.
        pad_id: RoBERTa's positions begin behind it.
        all_tokens: Whether pooling reads all tokens of a row, not the first alone.

    Returns:
        How to call it, or None if its rows must be padded.
    """
    from transformers import AttentionInterface

    if not getattr(network, "_supports_attention_backend", False):
        return None
    before = network.config._attn_implementation
    lengths = np.array([5, 3])
    ids = torch.tensor([[7, 8, 9, 10, 11, 12, 13, 14]])
    norms = [module for module in last_layer.modules() if isinstance(module, nn.LayerNorm)]
    places = [None] if all_tokens else [*norms[:1], last_layer]
    AttentionInterface.register(ATTENTION, attention)
    with torch.no_grad():
        alone = (
            {"input_ids": row, "attention_mask": torch.ones_like(row)}
            for row in (ids[:, :5], ids[:, 5:])
        )
        wanted = torch.cat([pooled(inputs) for inputs in alone])
        network.set_attn_implementation(ATTENTION)
        segments = make_segments(lengths, [np.array([0, 1])], ids.device, 2)
        for place in places:
            hooks = _FirstTokens(last_layer, place) if place is not None else None
            for first in (0, pad_id + 1):
                positions = first + torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
                inputs = {"input_ids": ids, "position_ids": positions, "segments": segments}
                try:
                    found = pooled(inputs)
                    if found.shape == wanted.shape and (found - wanted).abs().max() < TOLERANCE:
                        return Packing(first)
                except (TypeError, RuntimeError, ValueError, IndexError):
                    pass  # the family takes no such argument or shape: it cannot pack
            if hooks is not None:
                hooks.remove()
        network.set_attn_implementation(before)
    return None
