"""The loss of one micro-batch, as its share of the whole optimizer step's loss."""

from __future__ import annotations

from torch import Tensor

from outshine.batches import MicroBatch, Mixture
from outshine.devices import to_device
from outshine.forward import Forward
from outshine.tasks import kind_of


def micro_batch_loss(
    forward: Forward, mixture: Mixture, micro_batch: MicroBatch, denominator: float
) -> tuple[Tensor, dict[int, Tensor]]:
    """Loss of a micro-batch: weighted sum over its rows / denominator of the whole step.

    With the step's total row weight as denominator the gradients of its micro-batches add up to
    that of the mean over all rows of the step, however it is cut.

    Args:
        forward: The model; the encoder runs in the forward's precision, heads and loss in float32.
        mixture: Says which task a slice belongs to.
        micro_batch: Rows grouped by task.
        denominator: The step's total weight, or 1 for a sum.

    Returns:
        The scalar loss, and per part its unweighted sum of row losses, detached.
    """
    pooled = forward.pooled(micro_batch.rows)
    loss = pooled.new_zeros(())
    sums: dict[int, Tensor] = {}
    for (part, start, stop), target, weight in zip(
        micro_batch.slices, micro_batch.targets, micro_batch.weights, strict=True
    ):
        task = mixture.parts[part].table.task
        logits = forward.model.head(task.name)(pooled[start:stop])
        goal = to_device(target, logits.device)
        total = kind_of(task).loss(logits, goal).sum()
        if weight:  # rows that only keep a process busy count nowhere
            sums[part] = total.detach()
        loss = loss + total * (weight / denominator)
    return loss, sums
