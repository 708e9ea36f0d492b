"""Rows without padding: all tokens of a micro-batch in one line, attention within segments.

Every dense operation of the encoder then works on real tokens only. Three things make a
Hugging Face encoder do this, and none of them changes its code:

* an attention function, registered with transformers, that reads the table of segments handed
  through the encoder's keyword arguments;
* position ids that begin anew in each segment;
* hooks in the last layer. Behind it only the first token of each segment is read, so its
  attention asks for these tokens alone, and as early as the family allows they are all that is
  kept, (1, T, D) to (B, 1, D): what follows sees B rows. (Mean pooling reads all tokens: it takes
  the means of segments instead.)

Whether an encoder allows this is tested, not assumed: `find_packing` compares two segments packed
with the same segments alone.

Shapes are those of `segments`; D features of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from outshine.dropout import keep_factors
from outshine.segments import Group, Rectangles, Segments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "outshine_packed"
TOLERANCE = 1e-4
# From so many tokens on, attention's probabilities are computed again for the backward pass.
LONG = 256


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
        heads_only: bool,
    ) -> Tensor:
        """q, k, v: (T, H, d); returns (T, H, d) in the same dtype."""
        tables = segments.rectangles
        parts, saved = [], []
        sides = (tables.folded(q, heads_only), tables.folded(k), tables.folded(v))
        with torch.autocast(q.device.type, enabled=False):
            for group, q_g, k_g, v_g in zip(tables.groups, *sides, strict=True):
                probs = _probabilities(q_g, k_g, group, scale, window)
                keep = keep_factors(probs.shape, dropout, probs) if dropout else None
                parts.append(torch.matmul(probs if keep is None else probs * keep, v_g))
                saved += [q_g, k_g, v_g, None if group.shape[1] >= LONG else probs, keep]
        ctx.save_for_backward(*saved)
        ctx.tables, ctx.scale, ctx.window, ctx.heads_only = tables, scale, window, heads_only
        return tables.unfolded(parts, v, heads_only)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tables: Rectangles = ctx.tables
        grad_q, grad_k, grad_v = [], [], []
        for i, (group, grad_g) in enumerate(
            zip(tables.groups, tables.folded(grads[0], ctx.heads_only), strict=True)
        ):
            q_g, k_g, v_g, probs, keep = ctx.saved_tensors[5 * i : 5 * i + 5]
            if probs is None:
                probs = _probabilities(q_g, k_g, group, ctx.scale, ctx.window)
            if group.bias is not None and not ctx.heads_only:
                # padding repeats real tokens, whose gradient must count once
                grad_g = grad_g * (group.bias == 0).squeeze(1).unsqueeze(-1)
            dropped = probs if keep is None else probs * keep
            grad_v.append(torch.matmul(dropped.transpose(-1, -2), grad_g))
            grad_p = torch.matmul(grad_g, v_g.transpose(-1, -2))
            if keep is not None:
                grad_p *= keep
            grad_s = torch._softmax_backward_data(grad_p, probs, -1, torch.float32)
            grad_s *= ctx.scale
            grad_q.append(torch.matmul(grad_s, k_g))
            grad_k.append(torch.matmul(grad_s.transpose(-1, -2), q_g))
        like = grads[0]
        return (
            tables.unfolded(grad_q, like, ctx.heads_only),
            tables.unfolded(grad_k, like),
            tables.unfolded(grad_v, like),
            *[None] * 5,
        )


def _probabilities(
    q_g: Tensor, k_g: Tensor, group: Group, scale: float, window: int | None
) -> Tensor:
    """(b, H, L or 1, L) of queries q_g (b, H, L or 1, d) and keys k_g (b, H, L, d)."""
    scores = torch.matmul(q_g, k_g.transpose(-1, -2)).mul_(scale)
    if group.bias is not None:
        scores += group.bias
    if window is not None and group.shape[1] > window:
        place = torch.arange(group.shape[1], device=q_g.device)
        far = (place[: scores.shape[2], None] - place[None, :]).abs() >= window
        # finite, for padding may see no token within its window
        scores.masked_fill_(far, torch.finfo(torch.float32).min)
    return scores.softmax(dim=-1)


def _varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    scale: float,
    window: int | None,
    heads_only: bool,
) -> Tensor:
    """The same without dropout by torch's kernel for rows of any length, in half precision."""
    from torch.nn.attention import varlen

    kernel: Any = varlen.varlen_attn
    q, k = q.to(v.dtype), k.to(v.dtype)  # some families normalise them, in float32
    bounds, longest = segments.bounds, segments.longest
    more = {} if window is None else {"window_size": (window - 1, window - 1)}
    if not heads_only or window is not None:  # it would count the window from the last token
        return kernel(q, k, v, bounds, bounds, longest, longest, scale=scale, **more)
    heads = bounds[:-1].long()
    each = torch.arange(len(bounds), dtype=bounds.dtype, device=bounds.device)
    out = kernel(q[heads], k, v, each, bounds, 1, longest, scale=scale, **more)
    return torch.zeros_like(v).index_copy(0, heads, out)


def _one_group(lengths: np.ndarray) -> list[np.ndarray]:
    return [np.arange(len(lengths))]


@cache
def _has_varlen(
    device: torch.device, dtype: torch.dtype, size: int = 64, window: int | None = None
) -> bool:
    """Whether that kernel takes heads of this size and agrees with the rectangles."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    q, k, v = torch.arange(24.0 * size, device=device).sin().to(dtype).view(3, 8, 1, size)
    segments = Segments(np.array([5, 3]), 2, device, _one_group)
    try:
        with torch.no_grad():
            found = [_varlen(q, k, v, segments, 0.125, window, heads) for heads in (False, True)]
    except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    wanted = [
        _SegmentAttention.apply(q, k, v, segments, 0.125, 0.0, window, heads)
        for heads in (False, True)
    ]
    return all(
        bool((a.float() - b.float()).abs().max() < 0.02) for a, b in zip(found, wanted, strict=True)
    )


def has_varlen(network: PreTrainedModel, device: torch.device, precision: str) -> bool:
    """Whether that kernel can do all attention of an encoder; only then does it go into a graph."""
    config = network.config
    dropped = ("attention_probs_dropout_prob", "attention_dropout")
    heads = getattr(config, "num_attention_heads", 0)  # some encoders have none
    if precision != "bf16" or not heads or any(getattr(config, key, 0.0) for key in dropped):
        return False
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    windows = {None, getattr(config, "sliding_window", None)}
    return all(_has_varlen(device, torch.bfloat16, size, window) for window in windows)


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
    heads_only: bool = False,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: (1, H, T, d) in, (1, T, H, d) out.

    Without `segments` it is transformers' own scaled-dot-product attention. With `heads_only` the
    result is 0 but at the first token of each segment. With a sliding window (ModernBERT's local
    layers) a token sees those less than `sliding_window` places away.
    """
    if segments is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return out, None
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    assert not (segments.is_rounded and dropout), "a graph's attention knows no dropout"
    if segments.is_rounded or (
        not dropout and _has_varlen(q.device, q.dtype, q.shape[-1], sliding_window)
    ):
        out = _varlen(q, k, v, segments, scale, sliding_window, heads_only)
    else:
        out = _SegmentAttention.apply(q, k, v, segments, scale, dropout, sliding_window, heads_only)
    return out.unsqueeze(0), None


class _FirstTokens:
    """Hooks that keep the first token of each segment, when rows are packed."""

    def __init__(self, last_layer: nn.Module, place: nn.Module, before: bool) -> None:
        """Cuts the inputs of `place` if `before`, else its output; it is in `last_layer`."""
        self.first: Tensor | None = None
        entering = last_layer.register_forward_pre_hook(self._enter, with_kwargs=True)
        if before:
            cutting = place.register_forward_pre_hook(lambda _module, args: self._cut(args))
        else:
            cutting = place.register_forward_hook(lambda _module, _args, out: self._cut(out))
        self.handles = (entering, cutting)

    def _enter(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        segments = kwargs.get("segments")
        self.first = None if segments is None else segments.first
        return None if segments is None else (args, kwargs | {"heads_only": True})

    def _cut(self, given: Any) -> Any:
        """(1, T, D) to (B, 1, D), of one tensor or all of a tuple."""
        if self.first is None:
            return None
        if isinstance(given, tuple):
            return tuple(self._cut(x) if isinstance(x, Tensor) else x for x in given)
        return given.squeeze(0).index_select(0, self.first).unsqueeze(1)

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
    device = network.device
    ids = torch.tensor([[7, 8, 9, 10, 11, 12, 13, 14]], device=device)
    places = [None] if all_tokens else [*_ways_out(last_layer)]
    AttentionInterface.register(ATTENTION, attention)
    with torch.no_grad():
        alone = (
            {"input_ids": row, "attention_mask": torch.ones_like(row)}
            for row in (ids[:, :5], ids[:, 5:])
        )
        wanted = torch.cat([pooled(inputs) for inputs in alone])
        network.set_attn_implementation(ATTENTION)
        segments = Segments(np.array([5, 3]), 2, device, _one_group)
        for place in places:
            hooks = _FirstTokens(last_layer, *place) if place is not None else None
            for first in (0, pad_id + 1):
                positions = first + torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]], device=device)
                inputs = {"input_ids": ids, "position_ids": positions, "segments": segments}
                try:
                    found = pooled(inputs)
                    if found.shape == wanted.shape and (found - wanted).abs().max() < TOLERANCE:
                        return Packing(first)
                except (AttributeError, TypeError, RuntimeError, ValueError, IndexError):
                    pass  # the family takes no such argument or shape: it cannot pack
            if hooks is not None:
                hooks.remove()
        network.set_attn_implementation(before)
    return None


def _ways_out(last_layer: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """Where first tokens may be kept alone (and whether before or behind), the earliest first.

    Before the module with the first normalisation (in BERT's family it begins with the
    projection of attention's output), behind that normalisation, behind the layer.
    """
    for parent in last_layer.modules():
        for child in parent.children():
            if isinstance(child, nn.LayerNorm):
                yield parent, True
                yield child, False
                yield last_layer, False
                return
    yield last_layer, False
