"""The benchmarks: what their tables and shares are made of."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from outshine import console
from outshine.model import build_model
from outshine.tasks import Task

BENCH = Path(__file__).parent.parent / "bench"
MODULES = ("common", "logits", "pairs", "rate", "run", "tables", "train", "trainer")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of bench/ by name."""
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(console, "_state", dict(console._state))  # benchmarks are quiet

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield module
    for name in MODULES:
        sys.modules.pop(name, None)


def test_the_performance_page_shows_what_the_benchmarks_printed(bench: Any) -> None:
    tables = bench("tables")
    assert tables.PAGE.read_text(encoding="utf-8") == tables.page()


def test_a_goal_without_a_measurement_says_so_with_its_command(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tables = bench("tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    lines = [*tables.goals()][2:]
    assert len(lines) == len(tables.GOALS)
    assert all("not measured" in line and "`python bench/" in line for line in lines)
    assert sum("needs a GPU" in line for line in lines) == 5


def test_every_benchmark_that_is_run_exists(bench: Any) -> None:
    run = bench("run")
    scripts = {words.split()[0] for words in (run.BENCHES | run.GPU_BENCHES).values()}
    assert [name for name in scripts if not (BENCH / name).is_file()] == []


@pytest.mark.parametrize(
    ("name", "words"), [("train", ["--batch-size", "12", "--rows", "24"]), ("logits", [])]
)
def test_a_benchmark_of_the_engine_runs_to_its_end(
    name: str,
    words: list[str],
    bench: Any,
    encoder: Path,
    tickets: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = bench(name)
    monkeypatch.setattr(module, "glue", lambda *_names, data_dir: (Task.load(tickets),))
    given = ["--encoder", str(encoder), "--tasks", "tickets", "--pairs", "1"]
    monkeypatch.setattr(sys, "argv", [f"bench/{name}.py", *given, *words])
    module.main()
    found = json.loads(capsys.readouterr().out)
    assert found["bench"] == name
    (numbers,) = found.get("runs", [found])
    share = numbers["share_of_matrix_rate"]
    assert (share["outshine"] if name == "train" else share)["median"] > 0
    if name == "train":
        assert numbers["rows"] == 24
        assert {*numbers["rows_per_s"]} == {"outshine", "defaults", "tuned"}
        assert abs(numbers["loss_difference"]["defaults"]) < 0.05


def test_operations_are_those_of_linear_layers_and_attention_on_real_tokens(
    bench: Any, encoder: Path, tickets: Path
) -> None:
    model = build_model(str(encoder), [Task.load(tickets)])
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 64)  # 2 layers, 32 wide, 64 in between
    lengths = np.array([3, 5])
    attention = 2 * 4 * 32 * (3**2 + 5**2)  # scores and mixing, 2 operations each
    rate = bench("rate")
    assert rate.operations(model, lengths, False) == 2 * weights * 8 + attention
    assert rate.operations(model, lengths, True) == 3 * (2 * weights * 8 + attention)


def test_the_operations_of_one_padded_row_are_those_that_torch_counts(
    bench: Any, encoder: Path, tickets: Path
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model(str(encoder), [Task.load(tickets)]).eval()
    model.network.set_attn_implementation("eager")
    ids = torch.randint(5, 100, (1, 24))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encoder(input_ids=ids)
    pooler = 2 * 32 * 32
    wanted = bench("rate").operations(model, np.array([24]), False)
    assert counter.get_total_flops() - pooler == wanted


def test_ratios_are_taken_pair_by_pair(bench: Any) -> None:
    found = bench("common").ratios([2.0, 9.0, 4.0], [1.0, 3.0, 1.0])
    assert found == {"median": 3.0, "pairs": [2.0, 3.0, 4.0]}


def test_sides_take_turns_in_an_order_that_is_turned_round(bench: Any) -> None:
    calls: list[tuple[str, int]] = []

    def side(name: str) -> Any:
        return lambda pair: calls.append((name, pair)) or pair

    found = bench("common").in_turn({"a": side("a"), "b": side("b")}, 3)
    assert found == {"a": [0, 1, 2], "b": [0, 1, 2]}
    assert calls == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]


def test_a_command_that_is_kept_names_no_folder_of_the_machine(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import argparse

    words = ["bench/train.py", "--glue-dir", "/data/sets/glue", "--encoder", "/models/splade-tiny"]
    monkeypatch.setattr(sys, "argv", words)
    args = argparse.Namespace(encoder="/models/splade-tiny", device="cpu")
    found = bench("common").conditions(args)
    assert found["command"] == "python bench/train.py --glue-dir GLUE --encoder SPLADE_TINY"
    assert found["encoder"] == "splade-tiny"
