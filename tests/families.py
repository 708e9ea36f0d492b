"""A tiny random checkpoint of every family that is tested, made once per session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# Changes to the configuration of `make_encoder`. The families that cannot pack compute positions
# from the whole row, which a packed line of rows would mislead.
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": {"hidden_dim": 64},
    "roberta": {"type_vocab_size": 1},
    "electra": {"embedding_size": 16},
    "mpnet": {},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": 32,
    },
    "modernbert": {"num_hidden_layers": 3, "global_attn_every_n_layers": 2, "local_attention": 8},
}
PADDED = ("mpnet", "deberta-v2")
PACKED = tuple(name for name in FAMILIES if name not in PADDED)


@pytest.fixture(scope="session")
def checkpoint(make_encoder: Callable[..., Path]) -> Callable[[str], Path]:
    """Folder of a family's bare encoder (no classification weights) and tokenizer."""
    return cache(lambda family: make_encoder(family, **FAMILIES[family]))
