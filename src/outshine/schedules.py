"""Pure functions of the step: learning-rate factors and the weight on the gold label."""

from __future__ import annotations

import math

LR_SCHEDULES = ("linear", "bam", "constant")
ANNEALS = ("linear", "cosine", "exponential", "step", "constant")

# Sharpness of the exponential schedule: exp(5 (p - 1)), as in Unsupervised Data Augmentation
# (Xie et al. 2020, training signal annealing), rescaled here so that it starts at 0.
EXPONENTIAL_RATE = 5.0


def lr_factor(schedule: str, step: int, num_steps: int, warmup_fraction: float) -> float:
    """Factor on the base learning rate at one optimizer step.

    Args:
        schedule: `linear`: rises to 1 over the warm-up, then falls in a line to 0. `bam`: the
            reference's clock, a line from 1 at step 0 to 0 at the end, over whose start the
            warm-up is laid, so that the factor drops to `1 - warmup_fraction` when it ends.
            `constant`: 1 after the warm-up.
        step: Optimizer steps done before this one, 0 <= step < num_steps.
        num_steps: Optimizer steps of the whole run.
        warmup_fraction: Share of the steps that warm up, in [0, 1].

    Returns:
        The factor, in [0, 1].

    Source: linear, transformers' get_linear_schedule_with_warmup; bam, google-research bert
    optimization.py, which BAM! uses.
    """
    warmup_steps = int(warmup_fraction * num_steps)
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    if schedule == "bam":
        return 1.0 - step / num_steps
    if schedule == "linear":
        return (num_steps - step) / max(1, num_steps - warmup_steps)
    raise ValueError(f"unknown learning-rate schedule: {schedule!r}")


def gold_weight(anneal: str, progress: float, constant: float = 0.5) -> float:
    """Weight of the gold label in the target (lambda); the teacher has the rest.

    Args:
        anneal: `linear` p; `cosine` (1 - cos(pi p)) / 2; `exponential`
            (exp(5p) - 1) / (exp(5) - 1), long with the teacher; `step` 0 then 1 from p = 0.5;
            `constant` the given value.
        progress: step / num_steps, in [0, 1].
        constant: The value for `constant`, in [0, 1].

    Returns:
        The weight, in [0, 1]. All but `constant` go from 0 at the start to 1 at the end.

    Source: linear, BAM! (Clark et al. 2019), section 2; the others are variations.
    """
    if anneal == "linear":
        return progress
    if anneal == "cosine":
        return (1.0 - math.cos(math.pi * progress)) / 2.0
    if anneal == "exponential":
        return math.expm1(EXPONENTIAL_RATE * progress) / math.expm1(EXPONENTIAL_RATE)
    if anneal == "step":
        return 0.0 if progress < 0.5 else 1.0
    if anneal == "constant":
        return constant
    raise ValueError(f"unknown annealing: {anneal!r}")
