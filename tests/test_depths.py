"""Depth from the output of every parameter, against tables written by hand for each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from families import FAMILIES
from outshine.depths import parameter_depths
from outshine.errors import UserError
from outshine.model import build_model
from outshine.tasks import Task

TEAM = Task(name="team", text=("a",), label="y", labels=("billing", "tech"))
DOTTED = Task(name="a.b", text=("a",), label="y", labels=("no", "yes"))

# Part of a parameter's name -> its depth; two layers, and three of ModernBERT.
HAND = {
    "bert": {
        "heads.": 0,
        "pooler.": 1,
        "encoder.layer.1.": 2,
        "encoder.layer.0.": 3,
        "embeddings.word_embeddings": 4,
        "embeddings.position_embeddings": 4,
        "embeddings.token_type_embeddings": 4,
        "embeddings.LayerNorm": 4,
    },
    "distilbert": {
        "heads.": 0,
        "pre_classifier.": 1,
        "transformer.layer.1.": 2,
        "transformer.layer.0.": 3,
        "distilbert.embeddings.": 4,
    },
    "roberta": {
        "heads.": 0,
        "classifier.dense.": 1,
        "encoder.layer.1.": 2,
        "encoder.layer.0.": 3,
        "roberta.embeddings.": 4,
    },
    "electra": {
        "heads.": 0,
        "classifier.dense.": 1,
        "encoder.layer.1.": 2,
        "encoder.layer.0.": 3,
        "embeddings_project.": 4,
        "electra.embeddings.": 4,
    },
    "mpnet": {
        "heads.": 0,
        "classifier.dense.": 1,
        "encoder.layer.1.": 2,
        "encoder.layer.0.": 3,
        "encoder.relative_attention_bias.": 4,
        "mpnet.embeddings.": 4,
    },
    "deberta-v2": {
        "heads.": 0,
        "network.pooler.": 1,
        "encoder.layer.1.": 2,
        "encoder.layer.0.": 3,
        "encoder.rel_embeddings.": 4,
        "encoder.LayerNorm.": 4,  # of the relative positions, before the first layer
        "deberta.embeddings.": 4,
    },
    "modernbert": {
        "heads.": 0,
        "network.head.": 1,
        "model.final_norm.": 2,  # behind the top layer
        "model.layers.2.": 2,
        "model.layers.1.": 3,
        "model.layers.0.": 4,
        "model.embeddings.": 5,
    },
}


def check(depths: dict[str, int], table: dict[str, int]) -> None:
    """Each parameter fits one line of the table, and each line is met."""
    met = set()
    for name, depth in depths.items():
        fitting = [part for part in table if part in name]
        assert len(fitting) == 1, name
        assert depth == table[fitting[0]], name
        met.update(fitting)
    assert met == table.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_decay_matches_hand_table(family: str, checkpoint: Callable[[str], Path]) -> None:
    model = build_model(str(checkpoint(family)), [TEAM, DOTTED])
    depths = parameter_depths(model)
    assert depths.keys() == dict(model.named_parameters()).keys()
    check(depths, HAND[family])


BARE = {
    "distilbert": {"heads.": 0, "transformer.layer.1.": 1, "layer.0.": 2, "k.embeddings.": 3},
    "modernbert": {
        "heads.": 0,
        "final_norm.": 1,
        "layers.2.": 1,
        "layers.1.": 2,
        "layers.0.": 3,
        "k.embeddings.": 4,
    },
}


@pytest.mark.parametrize("family", BARE)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_without_pooling_parameters_the_top_layer_has_depth_one(
    family: str, pooling: str, checkpoint: Callable[[str], Path]
) -> None:
    model = build_model(str(checkpoint(family)), [TEAM], pooling=pooling)
    check(parameter_depths(model), BARE[family])


def test_shared_layers_have_no_depth_and_are_refused(make_encoder: Callable[..., Path]) -> None:
    model = build_model(str(make_encoder("albert", embedding_size=16)), [TEAM])
    with pytest.raises(UserError) as caught:
        parameter_depths(model)
    assert str(caught.value) == (
        "cannot tell the layers of AlbertModel: 0 module lists of 2 layers, expected one\n"
        "hint: use `--set layer_decay=1.0`"
    )


def test_a_module_that_no_forward_pass_calls_is_refused(
    checkpoint: Callable[[str], Path],
) -> None:
    import torch

    model = build_model(str(checkpoint("bert")), [TEAM])
    model.encoder.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(UserError) as caught:
        parameter_depths(model)
    assert str(caught.value) == (
        "cannot tell the depth of the parameters of BertModel: where 'adapter.weight' belongs is "
        "unclear\nhint: use `--set layer_decay=1.0`"
    )
