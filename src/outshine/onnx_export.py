"""One ONNX graph with all heads, compared with its run by ONNX Runtime.

N rows, B rows of a call, L tokens of its longest row, C outputs of a head. Needs the extra `onnx`.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from outshine.classifiers import output_layer
from outshine.console import progress
from outshine.encoders import load_tokenizer
from outshine.errors import UserError
from outshine.metrics import compute
from outshine.model import MultiTaskModel, write_tasks
from outshine.readers import Row, read_rows
from outshine.tasks import Task, kind_of
from outshine.texts import Texts
from outshine.verification import Sample

GRAPH = "model.onnx"
INT8_GRAPH = "model.int8.onnx"
# Rows of each call in the comparison: several sizes, 64 rows in all.
CALL_SIZES = (1, 2, 5, 8, 16, 32)
ROWS_PER_CALL = 16
# A file of protobuf holds at most 2 GiB; the weights of a larger model go beside it.
MAX_BYTES = 2**31 - 2**24


def check_packages() -> None:
    """Refuses to begin without the packages of the extra `onnx`."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(
                f"cannot export to onnx: the package `{package}` is missing",
                "pip install 'outshine[onnx]'",
            ) from None


def write_onnx(
    model: MultiTaskModel, tokenizer: Any, samples: Sequence[Sample], folder: Path, *, int8: bool
) -> dict[str, Any]:
    """Writes `model.onnx`, the tokenizer and `tasks.json`, and compares them with the run.

    Args:
        model: On the CPU, with attention as the family has it.
        tokenizer: Gives what the model takes.
        samples: One for each task to export.
        folder: Where to write.
        int8: Whether to write `model.int8.onnx`, too, and to measure on dev what it costs.

    Returns:
        {"differences": {task: largest}}, and with `int8` {"int8": {task: {"metric", "float32",
        "int8", "n"}}} in fractions.

    Raises:
        UserError: If dev rows are needed and cannot be read.
        WorldError: If the graph does not answer as the run does.
    """
    tasks = [sample.task for sample in samples]
    dev = {task.name: [*read_rows(task, "dev")] for task in tasks} if int8 else {}
    tokenizer.save_pretrained(folder)
    write_tasks(folder, model.pooling, tasks)
    _write_graph(model, tokenizer, tasks, folder / GRAPH)
    graph = Graph(folder, GRAPH)
    facts: dict[str, Any] = {
        "differences": {
            sample.task.name: sample.difference(
                graph.outputs(sample.task, sample.texts, CALL_SIZES), "cannot export to onnx"
            )
            for sample in samples
        }
    }
    if int8:
        _write_int8(folder)
        facts["int8"] = _int8_scores(graph, Graph(folder, INT8_GRAPH), tasks, dev)
    return facts


# --- the graph --------------------------------------------------------------------------------


class _AllHeads(nn.Module):
    """The encoder and the heads of some tasks, as one function of what the tokenizer gives."""

    def __init__(self, model: MultiTaskModel, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.model = model
        self.layers = nn.ModuleList(output_layer(model, task) for task in tasks)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        pooled = self.model.pooled(inputs)
        return tuple(layer(pooled) for layer in self.layers)


def _write_graph(model: MultiTaskModel, tokenizer: Any, tasks: Sequence[Task], path: Path) -> None:
    names = tokenizer.model_input_names
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with _quiet():
        torch.onnx.export(
            _AllHeads(model, tasks).eval(),
            kwargs={name: torch.ones(2, 7, dtype=torch.int64) for name in names},
            f=path,
            input_names=names,
            output_names=[task.name for task in tasks],
            dynamic_shapes=dict.fromkeys(names, axes),
            external_data=sum(4 * p.numel() for p in model.parameters()) > MAX_BYTES,
            verbose=False,
            dynamo=True,
        )


def _write_int8(folder: Path) -> None:
    """Dynamic quantisation: eight-bit weights, activations quantised call by call."""
    from onnxruntime.quantization import quantize_dynamic

    with _quiet():
        quantize_dynamic(folder / GRAPH, folder / INT8_GRAPH, per_channel=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what exporters tell their developers; what matters is compared afterwards."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


# --- using it ---------------------------------------------------------------------------------


class Graph:
    """An exported graph in ONNX Runtime, with its tokenizer, as a program would use them."""

    def __init__(self, folder: Path, name: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.tokenizer = load_tokenizer(str(folder))
        self.session = onnxruntime.InferenceSession(
            folder / name, options, providers=["CPUExecutionProvider"]
        )

    def outputs(self, task: Task, texts: Sequence[Texts], sizes: Sequence[int]) -> np.ndarray:
        """(N, C) outputs of one task.

        Args:
            task: Its name is that of the output.
            texts: N rows of one or two texts.
            sizes: Rows of each call; the last size goes on to the end.
        """
        found = []
        start = call = 0
        while start < len(texts):
            size = sizes[min(call, len(sizes) - 1)]
            columns = [list(c) for c in zip(*texts[start : start + size], strict=True)]
            inputs = self.tokenizer(*columns, truncation=True, padding=True, return_tensors="np")
            found += self.session.run([task.name], {k: np.int64(v) for k, v in inputs.items()})
            start, call = start + size, call + 1
        return np.concatenate(found)


def _int8_scores(
    graph: Graph, int8: Graph, tasks: Sequence[Task], dev: dict[str, list[Row]]
) -> dict[str, Any]:
    """Each task's primary metric on dev, by both graphs."""
    scores = {}
    with progress("measuring int8", 2 * sum(map(len, dev.values()))) as bar:
        for task in tasks:
            values = []
            for each in (graph, int8):
                values.append(_score(each, task, dev[task.name]))
                bar.advance(len(dev[task.name]))
            scores[task.name] = {
                "metric": task.primary_metric,
                "float32": values[0],
                "int8": values[1],
                "n": len(dev[task.name]),
            }
    return scores


def _score(graph: Graph, task: Task, rows: Sequence[Row]) -> float:
    kind = kind_of(task)
    factor, shift = kind.output_scale(task)
    logits = (graph.outputs(task, [row.texts for row in rows], [ROWS_PER_CALL]) - shift) / factor
    gold = kind.gold_values(task, np.array([row.gold for row in rows], np.float32))
    return compute((task.primary_metric,), gold, kind.decode(task, logits))[task.primary_metric]
