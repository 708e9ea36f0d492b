"""A model on a device, ready for forward passes over rows of any length.

B rows of a pass, T tokens of all of them, L of the longest, D features of a pooled vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from outshine.batches import Rows, cut, fill
from outshine.console import say
from outshine.depths import find_layers
from outshine.devices import autocast, pick_device, pick_precision, to_device
from outshine.dropout import use_fast_dropout
from outshine.embedding import use_row_gradients
from outshine.errors import UserError
from outshine.model import MultiTaskModel, load_model, token_inputs
from outshine.packing import Packing, find_packing, has_varlen
from outshine.runs import Run
from outshine.segments import Segments, rounded
from outshine.tasks import Task, kind_of

# Most tokens of one pass: bounds memory, and on CPUs keeps activations near the caches.
MAX_TOKENS = {"cpu": 8192, "cuda": 65536}
# The fixed cost of one padded micro-batch, in units of the work for one more padded token; measured
# with bench/train.py.
MICRO_BATCH_PRICE = {"cpu": 128, "cuda": 4096}
# The same of one attention call over a group of packed rows.
GROUP_PRICE = 64
# A packed line is filled up to a multiple of so many tokens. In bf16 oneDNN compiles a kernel for
# every new shape and keeps the last 1,024: without this a run on a CPU spends a tenth of a small
# encoder's step on compiling, and 600 MB on what it compiled (bench/memory.py).
LINE_MULTIPLE = {"fp32": 8, "bf16": 64}


@dataclass
class Budget:
    """Most tokens of one pass, padding included; `passes` halves it when memory runs out."""

    tokens: int


@dataclass(frozen=True)
class Forward:
    """A model with what its forward pass needs.

    Attributes:
        model: The model, on `device`.
        pad_id: The tokenizer's padding token.
        takes_types: Whether the encoder takes segment ids.
        device: Where the model is.
        precision: `fp32` or `bf16`, of the encoder; heads and losses are float32.
        budget: Most tokens per pass.
        packing: How rows are packed; None where they are padded.
        wrapped: The model in DDP or FSDP, which pooled vectors come from where several processes
            train it.
        rounds: Whether packed lines are rounded (`segments`), for CUDA graphs.
    """

    model: MultiTaskModel
    pad_id: int
    takes_types: bool
    device: torch.device
    precision: str
    budget: Budget
    packing: Packing | None
    wrapped: nn.Module | None = None
    rounds: bool = False

    def divide(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Indices of the rows of each pass, longest rows first.

        Args:
            lengths: (N,) tokens per row.
        """
        if self.packing is not None:
            return fill(lengths, self.budget.tokens)
        price = MICRO_BATCH_PRICE.get(self.device.type, MICRO_BATCH_PRICE["cpu"])
        pieces = np.array_split(np.argsort(-lengths, kind="stable"), -(-len(lengths) // 512) or 1)
        return [
            piece[members]
            for piece in pieces
            for members in cut(lengths[piece], self.budget.tokens, price)
        ]

    def pooled(self, rows: Rows) -> Tensor:
        """(B, D) float32 pooled vectors of rows."""
        inputs = self._padded(rows) if self.packing is None else self._packed(rows, self.packing)
        if self.rounds:
            torch.compiler.cudagraph_mark_step_begin()
        with autocast(self.device, self.precision):
            found = (self.wrapped or self.model)(inputs).float()
        return found[: len(rows.lengths)]  # rounded lines have more

    def passes(
        self, lengths: np.ndarray, take: Callable[[np.ndarray], Rows]
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Pooled vectors of any number of rows, a pass at a time, longest rows first.

        Where the device has too little memory for a pass, the budget is halved for good (but not
        in DDP or FSDP, where all processes must make the same passes).

        Args:
            lengths: (N,) tokens per row.
            take: Indices of the rows of a pass -> the rows.

        Yields:
            (B,) indices of rows, and their (B, D) float32 pooled vectors.
        """
        todo = self.divide(lengths)
        while todo:
            pooled = self._pooled_if_it_fits(take(todo[0]))
            if pooled is not None:
                yield todo.pop(0), pooled
                continue
            rest = np.concatenate(todo)
            todo = [rest[members] for members in self.divide(lengths[rest])]

    def _pooled_if_it_fits(self, rows: Rows) -> Tensor | None:
        """Pooled vectors, or None after the budget was halved; a row alone cannot be halved."""
        try:
            return self.pooled(rows)
        except torch.OutOfMemoryError:
            if len(rows.lengths) == 1 or self.wrapped is not None:
                raise
        self.budget.tokens = max(1, min(self.budget.tokens, int(rows.lengths.sum())) // 2)
        say(f"note: {self.device} is out of memory: {self.budget.tokens} tokens per pass from here")
        return None

    def _padded(self, rows: Rows) -> dict[str, Any]:
        inside = np.arange(rows.lengths.max())[None, :] < rows.lengths[:, None]
        ids = np.full(inside.shape, self.pad_id, np.int64)
        ids[inside] = rows.tokens
        inputs = {"input_ids": ids, "attention_mask": inside.astype(np.int64)}
        if self.takes_types:
            types = np.zeros(inside.shape, np.int64)
            types[inside] = rows.types
            inputs["token_type_ids"] = types
        return {name: to_device(x, self.device) for name, x in inputs.items()}

    def _packed(self, rows: Rows, packing: Packing) -> dict[str, Any]:
        num_rows, num_tokens = len(rows.lengths), len(rows.tokens)
        filler = -num_tokens % LINE_MULTIPLE[self.precision]
        if self.rounds:
            lengths = rounded(rows.lengths)
            filler = int(lengths[num_rows:].sum())
        else:
            lengths = np.append(rows.lengths, filler) if filler else rows.lengths
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(num_tokens + filler) - np.repeat(starts, lengths)
        inputs = {
            "input_ids": np.pad(rows.tokens, (0, filler), constant_values=self.pad_id),
            # RoBERTa's positions begin behind the padding id
            "position_ids": np.minimum(positions, rows.lengths.max() - 1) + packing.first_position,
        }
        if self.takes_types:
            inputs["token_type_ids"] = np.pad(rows.types, (0, filler))
        tensors: dict[str, Any] = {
            name: to_device(x, self.device).unsqueeze(0) for name, x in inputs.items()
        }
        groups = partial(cut, max_tokens=self.budget.tokens, price=GROUP_PRICE)
        segments = Segments(lengths, num_rows, self.device, groups, self.rounds)
        if self.rounds:
            segments.make_tables()
        return tensors | {"segments": segments}


def make_forward(
    model: MultiTaskModel,
    tokenizer: Any,
    device: torch.device,
    precision: str,
    *,
    max_tokens: int = 0,
    plain: bool = False,
    replayed: bool = False,
    wrapped: bool = False,
) -> Forward:
    """Moves a model to a device and prepares its forward pass.

    Args:
        model: From `build_model`, `load_model` or `classifier_model`.
        tokenizer: Its tokenizer; checked against the word embedding.
        device: Where to compute.
        precision: `fp32` or `bf16`.
        max_tokens: Most tokens per pass, 0 for the device's default.
        plain: Leaves embedding, dropout and attention as the family has them (for torch.compile
            and gradient checkpointing, which replay torch's random numbers).
        replayed: Packs for CUDA graphs where torch's kernel allows it, in spite of `plain`.
        wrapped: Leaves the embedding's gradient to autograd, for DDP and FSDP must see it.

    Raises:
        UserError: If the tokenizer has more tokens than the encoder has embeddings.
    """
    pad_id = tokenizer.pad_token_id or 0
    takes_types = token_inputs(tokenizer, model)
    rounds = replayed and has_varlen(model.network, device, precision)
    if device.type == "cpu" and not plain:
        use_fast_dropout(model)
        use_row_gradients(model, model.encoder.get_input_embeddings(), direct=not wrapped)
    model.to(device)
    packing = _packing(model, pad_id) if rounds or not plain else None
    return Forward(
        model=model,
        pad_id=pad_id,
        takes_types=takes_types,
        device=device,
        precision=precision,
        budget=Budget(max_tokens or MAX_TOKENS.get(device.type, MAX_TOKENS["cpu"])),
        packing=packing,
        rounds=rounds and packing is not None,
    )


def compile_encoder(forward: Forward) -> None:
    """Has torch.compile translate the encoder; rounded lines are replayed as CUDA graphs.

    A graph's own memory is used again by the next one: gradients must be added to tensors that are
    there before the first pass (`clear_gradients` keeps them).
    """
    network = forward.model.network
    network.compile(dynamic=True, mode="reduce-overhead" if forward.rounds else None)
    if not forward.rounds:
        return
    from torch._inductor import config

    config.triton.cudagraph_dynamic_shape_warn_limit = None  # some dozens are meant to be recorded
    forward.model.freeze_unused()
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None


def clear_gradients(forward: Forward, optimizer: torch.optim.Optimizer) -> None:
    """Before a step. A head without rows must have no gradient, or AdamW would change it."""
    optimizer.zero_grad(set_to_none=not forward.rounds)
    forward.model.heads.zero_grad()


def load_forward(run: Run, device: str, precision: str) -> tuple[Forward, Any]:
    """Loads a run's model onto a device; returns it with its tokenizer.

    Raises:
        UserError: If the run kept no weights, or is damaged.
    """
    if not (run.model_dir / "tasks.json").exists():
        raise UserError(
            f"cannot load the run {run.path}: no weights, expected {run.model_dir}",
            'it was trained with keep = "predictions" or "metrics": train again with keep = "all"',
        )
    model, tokenizer, heads = load_model(run.model_dir)
    told, answered = _described(run.tasks()), _described(heads)
    if told != answered:
        raise UserError(
            f"cannot load the run {run.path}: tasks {told}, expected those of its model, "
            f"{answered} ({run.path / 'config.json'})",
            "the file was changed: train the run again",
        )
    place = pick_device(device)
    return make_forward(model, tokenizer, place, pick_precision(precision, place)), tokenizer


def _described(tasks: Sequence[Task]) -> str:
    """Each task with what its head answers: its kind and labels or range."""
    return "; ".join(f"{task.name} ({kind_of(task).describe_gold(task)})" for task in tasks)


def _packing(model: MultiTaskModel, pad_id: int) -> Packing | None:
    try:
        _, layers = find_layers(model.encoder, model.network.config)
    except UserError:
        return None
    model.eval()
    all_tokens = model.pooling == "mean"
    return find_packing(model.network, layers[-1], model.pooled, pad_id, all_tokens=all_tokens)
