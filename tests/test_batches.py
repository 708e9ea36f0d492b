"""Draws and cuts: which rows make up a step, and that micro-batches lose and repeat none."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outshine import batches
from outshine.batches import (
    Mixture,
    Part,
    cut,
    fill,
    gather,
    make_batch,
    num_draws,
    probabilities,
    steps,
)
from outshine.data import TokenTable
from outshine.errors import UserError
from outshine.tasks import Task

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=9)


def table(name: str, lengths: list[int]) -> TokenTable:
    """A table whose row i has the tokens 1000 * i, 1000 * i + 1, ..."""
    rows = [1000 * i + np.arange(length) for i, length in enumerate(lengths)]
    return TokenTable(
        task=Task(name=name, text=("a",), label="y", labels=("p", "q")),
        split="train",
        tokens=np.concatenate(rows).astype(np.int32),
        types=np.concatenate([row % 2 for row in rows]).astype(np.uint8),
        offsets=np.cumsum([0, *lengths]),
        gold=(np.arange(len(lengths)) % 2).astype(np.float32),
        ids=[str(i) for i in range(len(lengths))],
        num_originals=len(lengths),
        data="",
        truncated=np.zeros(len(lengths), np.uint8),
        skipped=0,
        unlabelled=0,
    )


def mixture(sizes: dict[str, int], batch_size: int = 8, epochs: float = 3.0) -> Mixture:
    chances = probabilities(sizes, "exponent")
    draws, count = num_draws(sum(sizes.values()), epochs, batch_size, 0)
    parts = tuple(
        Part(table(name, [3 + i % 7 for i in range(size)]), np.arange(size), chances[name], 1.0)
        for name, size in sizes.items()
    )
    return Mixture(parts, batch_size, count, draws)


# --- how often each task is drawn -----------------------------------------------------------


def test_chances_follow_the_three_quarter_power_of_the_sizes() -> None:
    # 16 ** 0.75 = 8, 81 ** 0.75 = 27, 256 ** 0.75 = 64
    found = probabilities({"a": 16, "b": 81, "c": 256}, "exponent")
    assert found == pytest.approx({"a": 8 / 99, "b": 27 / 99, "c": 64 / 99})


@pytest.mark.parametrize(
    ("sampling", "options", "shares"),
    [
        ("proportional", {}, {"a": 16, "b": 81}),
        ("uniform", {}, {"a": 1, "b": 1}),
        ("exponent", {"exponent": 0.5}, {"a": 4, "b": 9}),
        ("temperature", {"temperature": 4.0}, {"a": 2, "b": 3}),
        ("explicit", {"weights": {"a": 5.0, "b": 1.0}}, {"a": 5, "b": 1}),
    ],
)
def test_other_samplings_match_hand_tables(sampling: str, options: dict, shares: dict) -> None:
    total = sum(shares.values())
    found = probabilities({"a": 16, "b": 81}, sampling, **options)
    assert found == pytest.approx({name: share / total for name, share in shares.items()})


def test_explicit_sampling_needs_a_weight_for_every_task() -> None:
    with pytest.raises(UserError) as caught:
        probabilities({"a": 16, "b": 81, "c": 1}, "explicit", weights={"a": 1.0, "c": 0.0})
    assert str(caught.value) == (
        "cannot sample: no weight for b, c, expected one above 0 for every task "
        "(sampling_weights)\n"
        "hint: for example `--set 'sampling_weights={rte = 1.0, mrpc = 2.0}'`"
    )


def test_an_epoch_is_as_many_draws_as_rows() -> None:
    assert num_draws(100, 3.0, 32, 0) == (300, 10)
    assert num_draws(100, 0.5, 32, 0) == (50, 2)
    assert num_draws(100, 3.0, 32, 4) == (128, 4)
    assert num_draws(100, 3.0, 32, 99) == (300, 10)
    assert num_draws(1, 0.001, 32, 0) == (1, 1)


# --- which rows -----------------------------------------------------------------------------

SIZES = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 40), min_size=1)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 17), st.integers(0, 2**40))
def test_each_pass_sees_every_row_once(sizes: dict[str, int], batch_size: int, seed: int) -> None:
    mix = mixture(sizes, batch_size)
    drawn = list(steps(mix, seed))
    assert len(drawn) == mix.num_steps
    assert sum(len(rows) for step in drawn for rows in step) == mix.num_draws
    assert {sum(map(len, step)) for step in drawn[:-1]} <= {batch_size}
    for i, part in enumerate(mix.parts):
        sequence = np.concatenate([step[i] for step in drawn])
        size = len(part.rows)
        for start in range(0, len(sequence), size):
            one_pass = sequence[start : start + size].tolist()
            assert len(set(one_pass)) == len(one_pass)
        counts = Counter(sequence.tolist())
        assert max(counts.values(), default=0) - min(counts[row] for row in range(size)) <= 1


@settings(max_examples=20, deadline=None)
@given(SIZES, st.integers(0, 100), st.data())
def test_a_run_resumed_at_step_k_sees_the_same_rows(
    sizes: dict[str, int], seed: int, data: st.DataObject
) -> None:
    mix = mixture(sizes)
    start = data.draw(st.integers(0, mix.num_steps))
    resumed, whole = list(steps(mix, seed, start)), list(steps(mix, seed))[start:]
    assert len(resumed) == len(whole)
    for one, other in zip(resumed, whole, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_order_of_a_pass_is_drawn_once_however_many_tasks_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mix = mixture({f"t{i}": 20 for i in range(80)}, batch_size=160, epochs=2.0)
    made = []
    real = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: made.append(seed) or real(seed))
    drawn = list(steps(mix, 0))
    assert len(drawn) == 20
    passes = [math.ceil(sum(len(step[i]) for step in drawn) / 20) for i in range(80)]
    assert len(made) == 1 + sum(passes)


def test_tasks_are_drawn_as_often_as_their_chances_say() -> None:
    mix = mixture({"a": 16, "b": 81, "c": 256}, batch_size=32, epochs=40.0)
    drawn = list(steps(mix, 5))
    for i, part in enumerate(mix.parts):
        count = sum(len(step[i]) for step in drawn)
        expected = mix.num_draws * part.probability
        assert abs(count - expected) < 5 * np.sqrt(expected)
        assert mix.passes(part) == pytest.approx(expected / len(part.rows))


def test_the_order_depends_on_the_seed_and_differs_from_pass_to_pass() -> None:
    mix = mixture({"a": 30})
    one, same, other = (np.concatenate([s[0] for s in steps(mix, seed)]) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert one.tolist() != other.tolist()
    assert one[:30].tolist() != one[30:60].tolist()


# --- how a step is cut ----------------------------------------------------------------------


def padded_cost(lengths: np.ndarray, pieces: list[np.ndarray], price: int) -> int:
    return sum(int(lengths[piece].max()) * len(piece) + price for piece in pieces)


def cheapest(lengths: np.ndarray, max_tokens: int, price: int) -> int:
    """The least cost of all ways to cut the rows in order of length, by trying every one."""
    order = np.argsort(-lengths, kind="stable")
    count = len(order)
    costs = []
    for choice in range(2 ** (count - 1)):
        bounds = [0, *(i + 1 for i in range(count - 1) if choice >> i & 1), count]
        pieces = [order[a:b] for a, b in pairwise(bounds)]
        if all(len(p) == 1 or lengths[p].max() * len(p) <= max_tokens for p in pieces):
            costs.append(padded_cost(lengths, pieces, price))
    return min(costs)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 200), st.integers(0, 100))
def test_cut_takes_each_row_once_within_the_budget_at_the_least_cost(
    row_lengths: list[int], max_tokens: int, price: int
) -> None:
    lengths = np.array(row_lengths)
    pieces = cut(lengths, max_tokens, price)
    assert sorted(np.concatenate(pieces).tolist()) == list(range(len(lengths)))
    for piece in pieces:
        assert len(piece) == 1 or lengths[piece].max() * len(piece) <= max_tokens
    assert padded_cost(lengths, pieces, price) == cheapest(lengths, max_tokens, price)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 200))
def test_fill_takes_each_row_once_within_the_budget(
    row_lengths: list[int], max_tokens: int
) -> None:
    lengths = np.array(row_lengths)
    pieces = fill(lengths, max_tokens)
    assert sorted(np.concatenate(pieces).tolist()) == list(range(len(lengths)))
    for piece in pieces:
        assert len(piece) == 1 or lengths[piece].sum() <= max_tokens
    # two neighbours would never fit into one
    for first, second in pairwise(pieces):
        assert lengths[first].sum() + lengths[second[0]] > max_tokens


def test_gather_puts_the_rows_of_tables_one_after_another() -> None:
    rows = gather([table("a", [2, 3, 1]), table("b", [4])], [np.array([2, 0]), np.array([0])])
    assert rows.tokens.tolist() == [2000, 0, 1, 0, 1, 2, 3]
    assert rows.types.tolist() == [0, 0, 1, 0, 1, 0, 1]
    assert rows.lengths.tolist() == [1, 2, 4]


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_used_tokens_are_those_of_the_rows_that_are_drawn(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_PIECE", piece)
    first = Part(table("a", [2, 3, 1, 4, 2, 5]), np.array([0, 3, 4]), 0.5, 1.0)
    second = Part(table("b", [1, 1, 2]), np.array([2]), 0.5, 1.0)
    found = batches.used_tokens(Mixture((first, second), 2, 1, 2), 7, 9000)
    # row i holds the tokens 1000 i, 1000 i + 1, ...
    wanted = {0, 1, 3000, 3001, 3002, 3003, 4000, 4001} | {2000, 2001} | {7}
    assert found.tolist() == sorted(wanted)
    assert found.dtype == np.int64


# --- targets of micro-batches ---------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(0, 1000), st.sampled_from([12, 40, 4096]), st.floats(0, 1))
def test_micro_batches_hold_the_drawn_rows_with_their_own_targets(
    sizes: dict[str, int], seed: int, max_tokens: int, weight: float
) -> None:
    mix = mixture(sizes, batch_size=13)
    rng = np.random.default_rng(seed)
    # a teacher for every second task, whose targets tell rows apart
    soft = [rng.dirichlet([1, 1], len(p.rows)).astype(np.float32) for p in mix.parts]
    parts = tuple(
        Part(p.table, p.rows, p.probability, 1.0 + i, soft[i] if i % 2 == 0 else None)
        for i, p in enumerate(mix.parts)
    )
    mix = Mixture(parts, mix.batch_size, mix.num_steps, mix.num_draws)
    drawn = next(steps(mix, seed))
    batch = make_batch(mix, drawn, weight, partial(fill, max_tokens=max_tokens))
    seen: list[list[int]] = [[] for _ in parts]
    for micro_batch in batch.micro_batches:
        starts = np.cumsum([0, *micro_batch.rows.lengths])
        assert micro_batch.slices[-1][2] == len(micro_batch.rows.lengths)
        for (i, first, stop), targets, own_weight in zip(
            micro_batch.slices, micro_batch.targets, micro_batch.weights, strict=True
        ):
            assert own_weight == 1.0 + i
            rows = micro_batch.rows.tokens[starts[first:stop]] // 1000
            seen[i] += rows.tolist()
            gold = np.eye(2, dtype=np.float32)[rows % 2]
            mixed = weight * gold + (1 - weight) * soft[i][rows] if i % 2 == 0 else gold
            np.testing.assert_allclose(targets, mixed, atol=1e-6)
            for row, length in zip(rows, micro_batch.rows.lengths[first:stop], strict=True):
                assert length == 3 + row % 7
    assert [sorted(rows) for rows in seen] == [sorted(rows.tolist()) for rows in drawn]
    assert batch.num_rows == sum(map(len, drawn))
    assert batch.weight == sum((1.0 + i) * len(rows) for i, rows in enumerate(drawn))
    assert batch.num_tokens == sum(int(m.rows.lengths.sum()) for m in batch.micro_batches)
