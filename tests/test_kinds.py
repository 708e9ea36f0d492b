"""Each kind's targets, losses, decoding, tables and ensembles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax as reference_softmax

from outshine.batches import Part, targets
from outshine.data import TokenTable
from outshine.kinds import CLASSIFICATION, KINDS, REGRESSION, softmax
from outshine.tasks import Task, kind_of

TEAMS = Task(name="teams", text=("body",), label="team", labels=("billing", "tech", "other"))
URGENCY = Task(name="urgency", kind="regression", text=("body",), label="u", range=(-1.0, 3.0))
LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0], [-4.0, 1.0, 1.0]], np.float32)


def part(task: Task, gold: list[float], soft_targets: np.ndarray | None) -> Part:
    """A part of a mixture of which only gold and teacher matter."""
    nothing: Any = np.zeros(0)
    table = TokenTable(
        task=task,
        split="train",
        tokens=nothing,
        types=nothing,
        offsets=nothing,
        gold=np.array(gold, np.float32),
        ids=[str(i) for i in range(len(gold))],
        num_originals=len(gold),
        data="",
        truncated=nothing,
        skipped=0,
        unlabelled=0,
    )
    return Part(table, np.arange(len(gold)), 1.0, 1.0, soft_targets)


def test_gold_weight_one_is_plain_cross_entropy() -> None:
    gold = [0, 2, 1]
    teacher = CLASSIFICATION.soft_target(np.flip(LOGITS, axis=1), 1.0)
    target = targets(part(TEAMS, gold, teacher), np.arange(3), 1.0)
    loss = CLASSIFICATION.loss(torch.from_numpy(LOGITS), torch.from_numpy(target))
    plain = torch.nn.functional.cross_entropy(
        torch.from_numpy(LOGITS), torch.tensor(gold), reduction="none"
    )
    torch.testing.assert_close(loss, plain, rtol=0, atol=1e-6)


def test_gold_weight_one_is_plain_squared_error_on_the_unit_range() -> None:
    target = targets(part(URGENCY, [-1.0, 0.0, 3.0], np.full((3, 1), 9.0)), np.arange(3), 1.0)
    np.testing.assert_allclose(target[:, 0], [0.0, 0.25, 1.0])
    outputs = torch.tensor([[0.5], [0.0], [1.5]])
    loss = REGRESSION.loss(outputs, torch.from_numpy(target))
    assert loss.tolist() == pytest.approx([0.25, 0.0625, 0.25])


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5])
def test_targets_are_the_mix_of_gold_and_teacher(weight: float) -> None:
    teacher = CLASSIFICATION.soft_target(LOGITS, 1.0)
    found = targets(part(TEAMS, [0, 2, 1], teacher), np.array([2, 0]), weight)
    gold = np.eye(3)[[1, 0]]
    expected = weight * gold + (1 - weight) * reference_softmax(LOGITS[[2, 0]], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)


def test_without_a_teacher_the_target_is_gold_whatever_the_weight() -> None:
    for weight in (0.0, 0.5, 1.0):
        found = targets(part(TEAMS, [0, 2, 1], None), np.arange(3), weight)
        np.testing.assert_array_equal(found, np.eye(3, dtype=np.float32)[[0, 2, 1]])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_target_divides_logits_by_the_temperature(temperature: float) -> None:
    found = CLASSIFICATION.soft_target(LOGITS, temperature)
    expected = reference_softmax(LOGITS.astype(np.float64) / temperature, axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_soft_target_of_a_regression_knows_no_temperature() -> None:
    logits = np.array([[0.2], [0.9]], np.float32)
    np.testing.assert_array_equal(REGRESSION.soft_target(logits, 4.0), logits)


def test_softmax_survives_large_logits() -> None:
    np.testing.assert_allclose(softmax(np.array([1e4, 0.0, -1e4])), [1.0, 0.0, 0.0])


def test_distillation_gradient_is_student_minus_teacher_distribution() -> None:
    logits = torch.from_numpy(LOGITS.copy()).requires_grad_()
    teacher = CLASSIFICATION.soft_target(np.flip(LOGITS, axis=1), 1.0)
    CLASSIFICATION.loss(logits, torch.from_numpy(teacher)).sum().backward()
    assert logits.grad is not None
    expected = reference_softmax(LOGITS, axis=1) - teacher
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-6)


def test_ensemble_of_classifiers_averages_probabilities() -> None:
    other = np.flip(LOGITS, axis=1)
    mean = CLASSIFICATION.average([LOGITS, other])
    expected = (reference_softmax(LOGITS, axis=1) + reference_softmax(other, axis=1)) / 2
    np.testing.assert_allclose(CLASSIFICATION.soft_target(mean, 1.0), expected, atol=1e-6)
    assert mean.dtype == np.float32


def test_ensemble_of_regressors_averages_values() -> None:
    members = [np.array([[0.2], [0.4]], np.float32), np.array([[0.6], [0.0]], np.float32)]
    np.testing.assert_allclose(REGRESSION.average(members), [[0.4], [0.2]], atol=1e-7)


def test_table_of_probabilities_comes_back_from_its_logits() -> None:
    table = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    logits = CLASSIFICATION.logits_of_table(TEAMS, table)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(CLASSIFICATION.soft_target(logits, 1.0), table, atol=1e-6)


def test_table_of_values_comes_back_from_its_logits() -> None:
    table = np.array([[-1.0], [0.5], [3.0]])
    logits = REGRESSION.logits_of_table(URGENCY, table)
    np.testing.assert_allclose(logits[:, 0], [0.0, 0.375, 1.0])
    np.testing.assert_allclose(REGRESSION.decode(URGENCY, logits), table[:, 0])


def test_table_rows_must_be_distributions() -> None:
    problem = CLASSIFICATION.table_problem
    assert problem(np.array([0.5, 0.5, 0.0])) == ""
    assert problem(np.array([1.2, -0.2, 0.0])) == "a probability outside [0, 1]"
    assert problem(np.array([0.5, 0.4, 0.0])) == "probabilities that sum to 0.9, expected 1"


def test_classifier_outputs_are_put_into_the_order_of_the_task() -> None:
    assert CLASSIFICATION.classifier_rows(TEAMS, ["other", "billing", "tech"]) == (
        [1, 2, 0],
        1.0,
        0.0,
    )
    with pytest.raises(ValueError, match="labels LABEL_0, tech, expected billing, tech, other"):
        CLASSIFICATION.classifier_rows(TEAMS, ["LABEL_0", "tech"])


def test_regressor_outputs_are_put_on_the_unit_range() -> None:
    rows, factor, shift = REGRESSION.classifier_rows(URGENCY, ["LABEL_0"])
    assert rows == [0]
    assert [value * factor + shift for value in (-1.0, 1.0, 3.0)] == pytest.approx([0, 0.5, 1])
    with pytest.raises(ValueError, match="2 outputs, expected one, the value"):
        REGRESSION.classifier_rows(URGENCY, ["a", "b"])


def test_answers_are_labels_with_probabilities_and_values_in_the_range() -> None:
    answer = CLASSIFICATION.answer(TEAMS, LOGITS[1])
    assert answer["label"] == "other"
    assert list(answer["probs"]) == list(TEAMS.labels)
    assert sum(answer["probs"].values()) == pytest.approx(1.0)
    assert REGRESSION.answer(URGENCY, np.array([0.25], np.float32)) == {"value": 0.0}


def test_regression_labels_are_scaled_by_low_and_high() -> None:
    scaled = REGRESSION.gold_target(URGENCY, np.array([-1.0, 1.0, 3.0], np.float32))
    np.testing.assert_allclose(scaled, [[0.0], [0.5], [1.0]])
    np.testing.assert_allclose(REGRESSION.decode(URGENCY, scaled), [-1.0, 1.0, 3.0])


def test_gold_is_described_and_counted() -> None:
    assert CLASSIFICATION.describe_gold(TEAMS) == "billing, tech, other"
    assert REGRESSION.describe_gold(URGENCY) == "-1 to 3"
    assert CLASSIFICATION.balance(TEAMS, np.array([0.0, 0.0, 2.0, 0.0])) == {
        "billing": 0.75,
        "tech": 0.0,
        "other": 0.25,
    }
    assert REGRESSION.balance(URGENCY, np.array([0.0, 1.0, 2.0, 3.0, -1.0]))["median"] == 1.0


def test_every_kind_has_metrics_that_are_known() -> None:
    from outshine.metrics import METRICS

    assert {metric for kind in KINDS.values() for metric in kind.metrics} <= METRICS.keys()
    assert kind_of(TEAMS) is CLASSIFICATION
    assert kind_of(URGENCY) is REGRESSION


@pytest.mark.parametrize("task", [TEAMS, URGENCY], ids=lambda task: task.kind)
def test_output_scale_is_the_inverse_of_classifier_rows(task: Task) -> None:
    kind = kind_of(task)
    factor, shift = kind.output_scale(task)
    rows, back, back_shift = kind.classifier_rows(task, kind.table_columns(task))
    assert rows == list(range(kind.num_outputs(task)))
    logits = LOGITS[:, : len(rows)]
    np.testing.assert_allclose((logits * factor + shift) * back + back_shift, logits, atol=1e-6)


def test_cells_are_labels_or_values_within_the_range_that_are_read_again() -> None:
    assert CLASSIFICATION.cells(TEAMS, LOGITS) == ["billing", "other", "tech"]
    values = np.array([[-0.1], [0.123456], [1.2]], np.float32)
    assert REGRESSION.cells(URGENCY, values) == ["-1.000", "-0.506", "3.000"]
    for task, logits in ((TEAMS, LOGITS), (URGENCY, values)):
        for cell in kind_of(task).cells(task, logits):
            kind_of(task).parse_gold(task, cell)
