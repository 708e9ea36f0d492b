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
from outshine.runs import Run
from outshine.tasks import Task

BENCH = Path(__file__).parent.parent / "bench"
MODULES = ("common", "logits", "pairs", "rate", "run", "scaling", "tables", "train", "trainer")


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
    assert sum("needs a GPU" in line for line in lines) == 7


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
    assert 0.3 < numbers["multiplied_of_formula"] < 3
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


def test_what_is_multiplied_counts_the_backward_pass(bench: Any) -> None:
    x, w = torch.randn(2, 3), torch.randn(3, 5, requires_grad=True)
    multiplied = bench("rate").multiplied
    assert multiplied(lambda: x @ w) == 2 * 2 * 3 * 5
    assert multiplied(lambda: (x @ w).sum().backward()) == 2 * (2 * 2 * 3 * 5)


def test_a_goal_says_whether_it_is_reached_and_what_was_really_multiplied(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tables = bench("tables")
    share = {"outshine": {"median": 0.62, "pairs": [0.6, 0.65]}}
    run = {
        "batch_size": 128,
        "precision": "bf16",
        "share_of_matrix_rate": share,
        "multiplied_of_formula": 0.9,
    }
    found = {"machine": "A, 2 cores", "threads": 2, "command": "python bench/x.py", "runs": [run]}
    (tmp_path / "train-glue.json").write_text(json.dumps(found))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    goal = "| share of the matrix rate, mixed GLUE, batch 128 | 60 % | 2 cores "
    (line,) = [line for line in tables.goals() if line.startswith(goal)]
    wanted = "| 62 % (60 to 65), 56 % as multiplied, bf16 | reached | A, 2 cores, 2 threads | "
    assert line == f"{goal}{wanted}`python bench/x.py` |"
    share["outshine"]["median"] = 0.59
    (tmp_path / "train-glue.json").write_text(json.dumps(found))
    (line,) = [line for line in tables.goals() if line.startswith(goal)]
    assert "| missed |" in line


def test_a_benchmark_that_fails_is_named_and_the_others_run(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = bench("run")
    (tmp_path / "bad.py").write_text("raise SystemExit(3)")
    (tmp_path / "good.py").write_text("print(1)")
    monkeypatch.setattr(run, "BENCHES", {"bad": "bad.py", "good": "good.py", "worse": "bad.py"})
    monkeypatch.setattr(run, "GPU_BENCHES", {})
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "__file__", str(tmp_path / "run.py"))
    monkeypatch.setattr(sys, "argv", ["bench/run.py"])
    with pytest.raises(SystemExit) as caught:
        run.main()
    assert caught.value.code == "failed: bad, worse; what each said stands above"
    assert [path.name for path in tmp_path.glob("*.json")] == ["good.json"]


def test_the_load_that_is_told_is_that_before_the_work(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import argparse
    import os

    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.0, 0.0))
    common = bench("common")
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 0.0, 0.0))
    found = common.conditions(argparse.Namespace(encoder="builtin", device="cpu"))
    assert found["load_average_before"] == 1.5


def test_the_two_processes_that_are_timed_train_one_model(
    bench: Any, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaling = bench("scaling")
    bench("pairs").task_file(tmp_path, 128)
    runs = []
    real = scaling.subprocess.run

    def watched(command: list[str], **options: Any) -> Any:
        done = real(command, **options)
        runs.append(Run(Path(command[command.index("--out") + 1])).info())
        return done

    monkeypatch.setattr(scaling.subprocess, "run", watched)
    assert scaling.steps_s(tmp_path, str(encoder), 2, 0) > 0
    assert [(run["num_processes"], run["steps"], run["rows"]) for run in runs] == [(2, 1, 128)]


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
