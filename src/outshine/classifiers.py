"""Sequence classifiers of transformers, to and from models of our own."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from outshine.encoders import loading
from outshine.errors import UserError, raise_problems
from outshine.model import MultiTaskModel, remove_last_layer
from outshine.tasks import Task, kind_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def classifier_model(location: str, task: Task) -> MultiTaskModel:
    """Reads a transformers sequence classifier as a model with one head, for use as a teacher.

    Its last layer becomes the head: rows in the order of the task's labels, or for regression
    scaled so that the output is the label on [0, 1].

    Args:
        location: Folder or hub id of a sequence-classification checkpoint.
        task: What it should predict.

    Raises:
        UserError: If it cannot be loaded, or its labels are not the task's.
    """
    from transformers import AutoModelForSequenceClassification

    with loading(f"the classifier {location}"):
        network, info = AutoModelForSequenceClassification.from_pretrained(
            location, dtype=torch.float32, output_loading_info=True
        )
    raise_problems(
        f"cannot load the classifier {location}",
        [f"weight {key} is missing" for key in sorted(info["missing_keys"])],
        "a teacher must be a complete sequence-classification checkpoint",
    )
    network.eval()
    last = remove_last_layer(network, location, network.config.num_labels)
    model = MultiTaskModel(network, last.in_features, "auto", [task])
    names = [str(network.config.id2label[i]) for i in range(last.out_features)]
    rows, scale, shift = kind_of(task).classifier_rows(task, names)
    head = model.head(task.name)
    with torch.no_grad():
        head.weight.copy_(last.weight[rows] * scale)
        bias = last.bias if last.bias is not None else torch.zeros(last.out_features)
        head.bias.copy_(bias[rows] * scale + shift)
    return model


def output_layer(model: MultiTaskModel, task: Task) -> nn.Linear:
    """A task's head as a transformers classifier has it: values leave on the label's own scale."""
    head = model.head(task.name)
    factor, shift = kind_of(task).output_scale(task)
    layer = nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        layer.weight.copy_(head.weight * factor)
        layer.bias.copy_(head.bias * factor + shift)
    return layer


def to_classifier(model: MultiTaskModel, task: Task) -> PreTrainedModel:
    """The family's sequence classifier with a task's head as its last layer.

    It is the inverse of `classifier_model`.

    Args:
        model: On the CPU, with attention as the family has it.
        task: One of the model's tasks.

    Raises:
        UserError: If the pooling is not the family's own, or its last layer has no bias.
    """
    from transformers import AutoModelForSequenceClassification

    what = f"cannot make a transformers classifier of task {task.name!r}"
    hint = "`--format onnx` exports what transformers has no class for"
    if model.pooling != "auto":
        raise UserError(
            f"{what}: pooling {model.pooling!r}, expected 'auto', the family's own", hint
        )
    config = copy.deepcopy(model.network.config)
    names = kind_of(task).table_columns(task)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in config.id2label.items()}
    config.problem_type = kind_of(task).problem_type
    classifier = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    missing = classifier.load_state_dict(model.network.state_dict(), strict=False).missing_keys
    (name,) = {key.rpartition(".")[0] for key in missing}
    if classifier.get_submodule(name).bias is None:
        raise UserError(
            f"{what}: the last layer of {type(classifier).__name__} has no bias, expected one",
            hint,
        )
    classifier.set_submodule(name, output_layer(model, task))
    return classifier.eval()
