"""Where the rows of a packed line are, and the rectangles in which their attention is computed.

Shapes: B rows, S segments (the rows, and more where the line is filled up), T tokens of all
segments, H heads, d features of a head. Attention is computed in groups of segments of similar
length: a group of b segments is a rectangle of b x L places, and all groups have P places.

A line that goes into a CUDA graph is *rounded*: it is filled up so that many lines have the same T
and S, for a graph is recorded anew for every other shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from outshine.devices import to_device

# T and S of rounded lines: multiples of these, at most eight from a power of two to the next.
TOKENS, SEGMENTS = 64, 32


def rounded(lengths: np.ndarray) -> np.ndarray:
    """(B,) lengths of rows to the (S,) lengths of the segments of their rounded line.

    So many segments follow the rows that each has a token and none more than `TOKENS`: how long
    the longest segment is depends on the rows.
    """
    tokens = int(lengths.sum())
    # the filler is under two of the steps at `tokens`, for its own tokens may double the step
    least = len(lengths) + -(-_step(tokens, TOKENS) // (TOKENS // 2 - 1))
    extra = _round_up(least, SEGMENTS) - len(lengths)
    filler = _round_up(tokens + extra, TOKENS) - tokens
    return np.concatenate([lengths, np.diff(np.arange(extra + 1) * filler // extra)])


def _round_up(size: int, multiple: int) -> int:
    step = _step(size, multiple)
    return -(-size // step) * step


def _step(size: int, multiple: int) -> int:
    """From one permitted size to the next."""
    return max(multiple, 1 << max(size.bit_length() - 4, 0))


@dataclass(frozen=True)
class Group:
    """Segments of similar length.

    Attributes:
        shape: (b, L).
        bias: (b, 1, 1, L) float32, 0 for tokens and -inf for padding; None without padding.
    """

    shape: tuple[int, int]
    bias: Tensor | None


@dataclass(frozen=True)
class Rectangles:
    """Where the places of all groups are in the line, and back.

    Attributes:
        groups: Segments of similar length.
        tokens: (P,) int64 token of each place, group after group; padding repeats the segment's
            first token.
        places: (T,) int64 place of each token.
        heads: (S,) int64 first token of each segment, group after group.
    """

    groups: tuple[Group, ...]
    tokens: Tensor
    places: Tensor
    heads: Tensor

    def folded(self, x: Tensor, heads_only: bool = False) -> Iterator[Tensor]:
        """(T, H, d) to (b, H, L, d) float32 of each group, or (b, H, 1, d) of first tokens."""
        taken = x.index_select(0, self.heads if heads_only else self.tokens)
        start = 0
        for group in self.groups:
            count, width = group.shape[0], 1 if heads_only else group.shape[1]
            piece = taken[start : start + count * width].view(count, width, *x.shape[1:])
            yield piece.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
            start += count * width

    def unfolded(self, parts: Sequence[Tensor], like: Tensor, heads_only: bool = False) -> Tensor:
        """What `folded` gave back to (T, H, d) in the dtype of `like`; zeros where it gave none."""
        flat = like.new_empty(len(self.heads if heads_only else self.tokens), *like.shape[1:])
        start = 0
        for part in parts:
            count, heads, width, size = part.shape
            stop = start + count * width
            flat[start:stop].view(count, width, heads, size).copy_(part.transpose(1, 2))
            start = stop
        if heads_only:
            return torch.zeros_like(like).index_copy_(0, self.heads, flat)
        return flat.index_select(0, self.places)


@dataclass(frozen=True)
class Segments:
    """Where the segments of a packed line begin; its tables are made when they are needed.

    Attributes:
        lengths: (S,) int64 tokens per segment.
        num_rows: B; segments behind them fill the line up.
        device: Where the tables are needed.
        groups: Lengths (S,) to the indices of the segments of each group.
        is_rounded: Whether the line goes into a CUDA graph, which reads `bounds`, `first` and
            `longest` alone.
    """

    lengths: np.ndarray
    num_rows: int
    device: torch.device
    groups: Callable[[np.ndarray], list[np.ndarray]]
    is_rounded: bool = False

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest segment, in a rounded line the next power of two."""
        longest = int(self.lengths.max())
        return max(TOKENS, 1 << (longest - 1).bit_length()) if self.is_rounded else longest

    @cached_property
    def bounds(self) -> Tensor:
        """(S + 1,) int32 first token of each segment, and the end of the last."""
        return self._table(np.append(0, np.cumsum(self.lengths)).astype(np.int32))

    @cached_property
    def first(self) -> Tensor:
        """(B,) int64 position of each row's first token; in a rounded line of all segments'."""
        return self._table(self.starts[: None if self.is_rounded else self.num_rows])

    def make_tables(self) -> None:
        """Makes what a graph reads of a rounded line, for it cannot."""
        _ = self.bounds, self.first, self.longest

    @cached_property
    def rectangles(self) -> Rectangles:
        """The groups, for attention without a kernel for segments of any length."""
        made, tokens, heads = [], [], []
        places = np.empty(self.lengths.sum(), np.int64)
        begin = 0
        for members in self.groups(self.lengths):
            lengths = self.lengths[members]
            offsets = np.arange(lengths.max())
            inside = offsets[None, :] < lengths[:, None]
            line = self.starts[members][:, None] + np.where(inside, offsets[None, :], 0)
            places[line[inside]] = begin + np.flatnonzero(inside)
            begin += line.size
            tokens.append(line.ravel())
            heads.append(self.starts[members])
            bias = np.where(inside, np.float32(0), np.float32(-np.inf))[:, None, None, :]
            made.append(Group(inside.shape, None if inside.all() else self._table(bias)))
        return Rectangles(
            tuple(made),
            self._table(np.concatenate(tokens)),
            self._table(places),
            self._table(np.concatenate(heads)),
        )

    @property
    def starts(self) -> np.ndarray:
        """(S,) int64 first token of each segment."""
        return np.cumsum(self.lengths) - self.lengths

    def means(self, hidden: Tensor) -> Tensor:
        """(T, D) vectors of tokens to the (B, D) float32 means of the rows."""
        lengths = self._table(self.lengths[: self.num_rows])
        tokens = int(self.lengths[: self.num_rows].sum())  # else a GPU is asked, and waited for
        owner = torch.arange(self.num_rows, device=hidden.device)
        owner = owner.repeat_interleave(lengths, output_size=tokens)
        sums = hidden.new_zeros(self.num_rows, hidden.shape[1], dtype=torch.float32)
        sums = sums.index_add(0, owner, hidden[: len(owner)].float())
        return sums / lengths.unsqueeze(1)

    def _table(self, x: np.ndarray) -> Tensor:
        return to_device(x, self.device)
