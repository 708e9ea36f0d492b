"""Learning-rate factors and the weight on gold, as tables computed by hand."""

from __future__ import annotations

import pytest

from outshine.schedules import ANNEALS, LR_SCHEDULES, gold_weight, lr_factor


@pytest.mark.parametrize(
    ("schedule", "table"),
    [
        ("linear", {0: 0.0, 5: 0.5, 9: 0.9, 10: 1.0, 55: 0.5, 99: 1 / 90}),
        ("bam", {0: 0.0, 5: 0.5, 9: 0.9, 10: 0.9, 50: 0.5, 99: 0.01}),
        ("constant", {0: 0.0, 5: 0.5, 10: 1.0, 99: 1.0}),
    ],
)
def test_lr_factor_matches_hand_table(schedule: str, table: dict[int, float]) -> None:
    found = {step: lr_factor(schedule, step, 100, 0.1) for step in table}
    assert found == pytest.approx(table, abs=1e-12)


def test_bam_schedule_falls_to_nine_tenths_when_the_warm_up_ends() -> None:
    before, after = lr_factor("bam", 9_999, 100_000, 0.1), lr_factor("bam", 10_000, 100_000, 0.1)
    assert before == pytest.approx(1.0, abs=1e-3)
    assert after == pytest.approx(0.9)


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_lr_factor_stays_between_zero_and_one(schedule: str, warmup: float, num_steps: int) -> None:
    factors = [lr_factor(schedule, step, num_steps, warmup) for step in range(num_steps)]
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    if warmup == 0.0:
        assert factors[0] == 1.0


def test_linear_lr_equals_that_of_transformers() -> None:
    import torch
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, 3, 30)
    for step in range(30):
        assert lr_factor("linear", step, 30, 0.1) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("anneal", "quarter", "half", "three_quarters"),
    [
        ("linear", 0.25, 0.5, 0.75),
        ("cosine", 0.146447, 0.5, 0.853553),
        # (exp(1.25) - 1) / (exp(5) - 1) and so on
        ("exponential", 0.016894, 0.075858, 0.281665),
        ("step", 0.0, 1.0, 1.0),
        ("constant", 0.3, 0.3, 0.3),
    ],
)
def test_gold_weight_matches_hand_table(
    anneal: str, quarter: float, half: float, three_quarters: float
) -> None:
    found = [gold_weight(anneal, progress, 0.3) for progress in (0.25, 0.5, 0.75)]
    assert found == pytest.approx([quarter, half, three_quarters], abs=1e-6)


@pytest.mark.parametrize("anneal", [name for name in ANNEALS if name != "constant"])
def test_annealing_goes_from_the_teacher_to_gold_and_never_back(anneal: str) -> None:
    weights = [gold_weight(anneal, step / 50) for step in range(51)]
    assert weights[0] == 0.0
    assert weights[-1] == pytest.approx(1.0)
    assert weights == sorted(weights)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown learning-rate schedule: 'cosine'"):
        lr_factor("cosine", 50, 100, 0.1)
    with pytest.raises(ValueError, match="unknown annealing: 'lniear'"):
        gold_weight("lniear", 0.5)
