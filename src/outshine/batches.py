"""Which rows make up each optimizer step, and how a step is cut into micro-batches.

B rows of a micro-batch, L tokens of its longest row, C outputs of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from outshine.data import TokenTable
from outshine.errors import UserError
from outshine.seeds import stream
from outshine.tasks import kind_of

_PIECE = 65_536  # rows of a table that are read at a time


@dataclass(frozen=True)
class Part:
    """One task's share of a mixture.

    Attributes:
        table: Its encoded train split.
        rows: (n,) int64 rows of the table that are used, both orders of symmetric pairs.
        probability: Chance that one draw of a step comes from this task.
        weight: Factor on the loss of its rows.
        soft_targets: (n, C) float32 teacher distribution in the order of `rows`, or None.
    """

    table: TokenTable
    rows: np.ndarray
    probability: float
    weight: float
    soft_targets: np.ndarray | None = None


@dataclass(frozen=True)
class Mixture:
    """What a run draws from, and for how long."""

    parts: tuple[Part, ...]
    batch_size: int
    num_steps: int
    num_draws: int

    def passes(self, part: Part) -> float:
        """How many times each row of a part is seen, on average."""
        return self.num_draws * part.probability / len(part.rows)


def probabilities(
    sizes: Mapping[str, int],
    sampling: str,
    *,
    exponent: float = 0.75,
    temperature: float = 1.0,
    weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Chance of each task to be drawn; see `TrainConfig.sampling`.

    Source: p ~ |D|**0.75, BAM! section 3.1.
    """
    weights = weights or {}
    if sampling == "explicit":
        missing = [name for name in sizes if not weights.get(name, 0) > 0]
        if missing:
            raise UserError(
                f"cannot sample: no weight for {', '.join(missing)}, expected one above 0 for "
                "every task (sampling_weights)",
                "for example `--set 'sampling_weights={rte = 1.0, mrpc = 2.0}'`",
            )
    rule: dict[str, Callable[[str], float]] = {
        "exponent": lambda name: sizes[name] ** exponent,
        "proportional": lambda name: float(sizes[name]),
        "uniform": lambda name: 1.0,
        "temperature": lambda name: sizes[name] ** (1.0 / temperature),
        "explicit": lambda name: weights[name],
    }
    shares = {name: rule[sampling](name) for name in sizes}
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def num_draws(num_rows: int, epochs: float, batch_size: int, max_steps: int) -> tuple[int, int]:
    """Returns (draws, optimizer steps) of a run over so many rows; the last step may be short."""
    draws = max(1, round(num_rows * epochs))
    if max_steps:
        draws = min(draws, max_steps * batch_size)
    return draws, math.ceil(draws / batch_size)


def steps(mixture: Mixture, seed: int, start: int = 0) -> Iterator[list[np.ndarray]]:
    """Yields the rows of each optimizer step from `start` on, a pure function of the seed.

    How many rows each task gives to a step is a multinomial draw. Within a task rows come in
    shuffled passes without replacement, which run on from step to step.

    Yields:
        Per part, (n,) int64 positions in `part.rows`.
    """
    counts_generator = np.random.default_rng(stream(seed, "order", "counts"))
    chances = [part.probability for part in mixture.parts]
    orders = [_orders(part, seed) for part in mixture.parts]
    positions = np.zeros(len(mixture.parts), np.int64)
    for step in range(mixture.num_steps):
        size = min(mixture.batch_size, mixture.num_draws - step * mixture.batch_size)
        counts = counts_generator.multinomial(size, chances)
        if step >= start:
            yield [
                _pass_rows(part, order, int(first), int(count))
                for part, order, first, count in zip(
                    mixture.parts, orders, positions, counts, strict=True
                )
            ]
        positions += counts


def _pass_rows(
    part: Part, order: Callable[[int], np.ndarray], first: int, count: int
) -> np.ndarray:
    """Positions first..first+count of the endless sequence of shuffled passes over a part."""
    num_rows = len(part.rows)
    pieces = [np.zeros(0, np.int64)]
    while count > 0:
        pass_number, offset = divmod(first, num_rows)
        taken = min(count, num_rows - offset)
        pieces.append(order(pass_number)[offset : offset + taken])
        first, count = first + taken, count - taken
    return np.concatenate(pieces)


def _orders(part: Part, seed: int) -> Callable[[int], np.ndarray]:
    """Pass number -> its order of a part's rows; that of one pass is kept for the next steps."""

    @lru_cache(maxsize=1)
    def order(pass_number: int) -> np.ndarray:
        chance = np.random.default_rng(stream(seed, "order", part.table.task.name, pass_number))
        return chance.permutation(len(part.rows))

    return order


def cut(lengths: np.ndarray, max_tokens: int, price: int) -> list[np.ndarray]:
    """Cuts rows into micro-batches of similar length at the least total cost.

    The cost of a micro-batch is its padded tokens plus a fixed price; the best cut of the rows
    in order of length is found by dynamic programming over them.

    Args:
        lengths: (N,) tokens per row.
        max_tokens: Most padded tokens in one micro-batch (a longer row comes alone).
        price: Of one micro-batch, in tokens.

    Returns:
        Indices of rows per micro-batch, longest first; every row in exactly one.
    """
    order = np.argsort(-lengths, kind="stable")
    longest = lengths[order].astype(np.float64)
    count = len(order)
    best = np.full(count + 1, np.inf)
    best[0] = 0.0
    previous = np.zeros(count + 1, np.int64)
    for stop in range(1, count + 1):
        # a micro-batch of rows first..stop-1 is as long as its first row
        padded = longest[:stop] * (stop - np.arange(stop))
        cost = best[:stop] + padded + price
        allowed = padded <= max_tokens
        allowed[stop - 1] = True
        cost[~allowed] = np.inf
        previous[stop] = int(cost.argmin())
        best[stop] = cost[previous[stop]]
    cuts = []
    stop = count
    while stop:
        cuts.append(order[previous[stop] : stop])
        stop = int(previous[stop])
    return cuts[::-1]


def fill(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Divides rows into micro-batches of at most `max_tokens` real tokens, longest rows first.

    Args:
        lengths: (N,) tokens per row.
        max_tokens: Most tokens in one micro-batch (a longer row comes alone).

    Returns:
        Indices of rows per micro-batch; every row in exactly one.
    """
    order = np.argsort(-lengths, kind="stable")
    made: list[list[int]] = []
    room = 0
    for row in order.tolist():
        if lengths[row] > room:
            made.append([])
            room = max_tokens
        made[-1].append(row)
        room -= int(lengths[row])
    return [np.array(rows, np.int64) for rows in made]


def used_tokens(mixture: Mixture, pad_id: int, size: int) -> np.ndarray:
    """(n,) int64 sorted ids of all tokens that a run may draw, and of padding.

    Args:
        mixture: Its tables are read once, a piece at a time.
        pad_id: The tokenizer's padding token.
        size: Of the vocabulary.
    """
    used = np.zeros(size, bool)
    used[pad_id] = True
    for part in mixture.parts:
        drawn = np.zeros(len(part.table), bool)
        drawn[part.rows] = True
        offsets = part.table.offsets
        for start in range(0, len(drawn), _PIECE):
            stop = min(start + _PIECE, len(drawn))
            taken = np.repeat(drawn[start:stop], np.diff(offsets[start : stop + 1]))
            used[part.table.tokens[offsets[start] : offsets[stop]][taken]] = True
    return np.flatnonzero(used)


@dataclass(frozen=True)
class Rows:
    """Tokens of B rows, one after another, T in all.

    Attributes:
        tokens: (T,) int64 token ids.
        types: (T,) int64 segment ids.
        lengths: (B,) int64 tokens per row.
    """

    tokens: np.ndarray
    types: np.ndarray
    lengths: np.ndarray


def gather(tables: Sequence[TokenTable], rows: Sequence[np.ndarray]) -> Rows:
    """Takes rows of several tables; the rows of one table stand together, in this order."""
    places = [
        (table, slice(int(table.offsets[row]), int(table.offsets[row + 1])))
        for table, group in zip(tables, rows, strict=True)
        for row in group
    ]
    return Rows(
        np.concatenate([table.tokens[place] for table, place in places], dtype=np.int64),
        np.concatenate([table.types[place] for table, place in places], dtype=np.int64),
        np.array([place.stop - place.start for _, place in places], np.int64),
    )


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass, grouped by task.

    Attributes:
        rows: Their tokens.
        slices: Per task with rows here: (index of the part, first row, row after the last).
        targets: Per slice, (n, C) float32, gold mixed with the teacher.
        weights: Per slice, the weight of each of its rows in the loss.
    """

    rows: Rows
    slices: tuple[tuple[int, int, int], ...]
    targets: tuple[np.ndarray, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Batch:
    """One optimizer step: its micro-batches, rows, and the total weight of its rows."""

    micro_batches: tuple[MicroBatch, ...]
    num_rows: int
    num_tokens: int
    weight: float


def make_batch(
    mixture: Mixture,
    drawn: Sequence[np.ndarray],
    gold_weight: float,
    division: Callable[[np.ndarray], list[np.ndarray]],
) -> Batch:
    """Builds one step's micro-batches with their targets.

    Args:
        mixture: The mixture.
        drawn: From `steps`.
        gold_weight: Lambda; rows of parts without soft targets have gold alone.
        division: (B,) lengths of the step's rows -> indices of the rows of each micro-batch,
            some of which may be empty.
    """
    owner = np.repeat(np.arange(len(drawn)), [len(positions) for positions in drawn])
    position = np.concatenate(list(drawn))
    lengths = np.concatenate(
        [p.table.lengths_of(p.rows[at]) for p, at in zip(mixture.parts, drawn, strict=True)]
    )
    micro_batches = []
    for found in division(lengths):
        # a process without rows of its own joins in with one that has no weight
        idle = not len(found)
        members = np.zeros(1, np.int64) if idle else found
        members = members[np.argsort(owner[members], kind="stable")]
        present, starts = np.unique(owner[members], return_index=True)
        stops = [*starts[1:].tolist(), len(members)]
        parts = [mixture.parts[i] for i in present]
        positions = [position[members[a:b]] for a, b in zip(starts, stops, strict=True)]
        micro_batches.append(
            MicroBatch(
                rows=gather(
                    [part.table for part in parts],
                    [part.rows[at] for part, at in zip(parts, positions, strict=True)],
                ),
                slices=tuple(zip(present.tolist(), starts.tolist(), stops, strict=True)),
                targets=tuple(
                    targets(part, at, gold_weight)
                    for part, at in zip(parts, positions, strict=True)
                ),
                weights=tuple(0.0 if idle else part.weight for part in parts),
            )
        )
    weight = sum(p.weight * len(at) for p, at in zip(mixture.parts, drawn, strict=True))
    return Batch(tuple(micro_batches), len(position), int(lengths.sum()), weight)


def targets(part: Part, positions: np.ndarray, gold_weight: float) -> np.ndarray:
    """(n, C) float32 targets: gold_weight * gold + (1 - gold_weight) * teacher.

    Source: teacher annealing, BAM! section 2.3.
    """
    task = part.table.task
    gold = kind_of(task).gold_target(task, np.asarray(part.table.gold[part.rows[positions]]))
    if part.soft_targets is None:
        return gold
    weight = np.float32(gold_weight)
    return weight * gold + (np.float32(1) - weight) * part.soft_targets[positions]
