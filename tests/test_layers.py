"""Rules that hold for every source file: layers, length, kinds, and what may be imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import outshine
from outshine.kinds import KINDS

SOURCE = Path(outshine.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
MAX_LINES = 400

# A file imports only from lower layers, also inside functions; types alone may come from anywhere.
LAYERS = (
    "errors kinds limits metrics micro_batching schedules seeds service_docs stats",
    "processes",
    "console files",
    "analysis chains hub margin report_tables",
    "encoders report_figures tasks",
    "cells config glue_tasks predictions report_html runs",
    "inputs outputs readers report texts",
    "data degenerate study_source",
    "results study_file",
    "graph",
    "study",
    "findings plan",
    # Only from here on is torch imported.
    "devices",
    "batches checks dropout embedding energy model model_card optim segments",
    "classifiers depths packing",
    "forward",
    "distributed evaluation losses predicting",
    "bulk calibration greedy service submission teachers verification",
    "onnx_export planning service_requests",
    "checkpoints exporting serving",
    "journal provenance",
    "soups training",
    "comparison costs doctor jobs workers",
    "distillation ray_executor",
    "launch",
    "demo preview",
    "command",
    "cli_predict cli_serve cli_study cli_tasks cli_use",
    "cli __init__",
    "__main__",
)
NUM_TORCH_FREE = 12
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
PICKLING_CALLS = {"torch.save", "torch.load", "np.load", "numpy.load"}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from nodes(child)


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every module that a file imports, anywhere in it."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def own_imports(tree: ast.Module) -> dict[str, int]:
    """Module of outshine -> line of its import."""
    parts = ((line, name.split(".")) for line, name in imported(tree))
    return {p[1]: line for line, p in parts if p[0] == "outshine" and p[1:2] and p[1] in LAYER_OF}


def constants(node: ast.AST) -> set[object]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}


def test_every_file_has_a_layer() -> None:
    found = {path.relative_to(SOURCE).with_suffix("").as_posix() for path in FILES}
    assert found == set(LAYER_OF)


def test_files_import_only_from_lower_layers() -> None:
    violations = [
        f"{path.name}:{line}: {path.stem} (layer {LAYER_OF[path.stem]}) imports "
        f"{name} (layer {LAYER_OF[name]})"
        for path in FILES
        for name, line in own_imports(tree_of(path)).items()
        if LAYER_OF[name] >= LAYER_OF[path.stem]
    ]
    assert violations == []


def test_a_violation_of_the_layers_is_found_inside_functions() -> None:
    tree = ast.parse("def f():\n    from outshine.training import train\n")
    assert own_imports(tree) == {"training": 2}
    assert own_imports(ast.parse("from outshine import batches, encoders")).keys() == {
        "batches",
        "encoders",
    }
    hidden = "if TYPE_CHECKING:\n    from outshine.tasks import Task\n"
    assert own_imports(ast.parse(hidden)) == {}


@pytest.mark.parametrize(
    "names",
    [["outshine"], [f"outshine.{name}" for name, n in LAYER_OF.items() if n < NUM_TORCH_FREE]],
    ids=["the package", "the low layers"],
)
def test_importing_does_not_import_torch(names: list[str]) -> None:
    code = (
        f"import sys, {', '.join(names)}\n"
        "slow = {'torch', 'transformers', 'datasets', 'sklearn', 'scipy', 'matplotlib', 'jinja2'}\n"
        "print(*(slow & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def kind_questions(tree: ast.Module) -> list[str]:
    """Comparisons with the name of a kind, and tables keyed by it."""
    asked: list[str] = []
    for node in nodes(tree):
        keys = [key for key in node.keys if key] if isinstance(node, ast.Dict) else []
        parts = [node] if isinstance(node, ast.Compare | ast.MatchValue) else keys
        if any(KINDS.keys() & constants(part) for part in parts):
            asked.append(f"line {node.lineno}: {ast.unparse(node)}")
    return asked


def test_no_file_outside_kinds_asks_for_the_name_of_a_kind() -> None:
    asked = {path.name: kind_questions(tree_of(path)) for path in FILES if path.stem != "kinds"}
    assert {name: lines for name, lines in asked.items() if lines} == {}


@pytest.mark.parametrize(
    "code",
    [
        "if task.kind == 'classification': pass",
        "x = 1 if task.kind not in ('regression',) else 2",
        "match kind:\n  case 'regression': pass",
        "f = {'classification': 1}[kind]",
    ],
)
def test_a_question_for_a_kind_is_found(code: str) -> None:
    assert len(kind_questions(ast.parse(code))) == 1


def test_no_source_file_is_long() -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_nothing_is_pickled() -> None:
    violations = []
    for path in FILES:
        tree = tree_of(path)
        violations += [
            f"{path.name}:{line}: imports {name}"
            for line, name in imported(tree)
            if name.split(".")[0] in PICKLES or name in PICKLING_CALLS
        ]
        violations += [
            f"{path.name}:{node.lineno}: {ast.unparse(node)}"
            for node in nodes(tree)
            if (isinstance(node, ast.Attribute) and ast.unparse(node) in PICKLING_CALLS)
            or (isinstance(node, ast.keyword) and node.arg == "allow_pickle")
        ]
    assert violations == []
