"""A tiny random checkpoint, and a run, of every family that is tested, made once per session."""

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


# Rows of the tasks of `trained`; the last one of each is longer than it takes.
ROWS = {
    "tickets": [("refund my invoice",), ("the login",), ("a very " * 100,)],
    "urgency": [("help now now",), ("office",), ("a very " * 100,)],
    "duplicate": [("the login", "a crash"), ("thanks", "payment"), ("the " * 90, "a " * 90)],
}


@pytest.fixture(scope="session")
def checkpoint(make_encoder: Callable[..., Path]) -> Callable[[str], Path]:
    """Folder of a family's bare encoder (no classification weights) and tokenizer."""
    return cache(lambda family: make_encoder(family, **FAMILIES[family]))


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]
) -> Callable[..., Path]:
    """Folder of a finished run on tickets, urgency and duplicate with an encoder of a family."""

    from safetensors.torch import load_file, save_file

    import outshine
    from conftest import write_duplicate, write_tickets, write_urgency
    from outshine.tasks import Task

    @cache
    def make(family: str, **settings: Any) -> Path:
        folder = tmp_path_factory.mktemp(f"run-{family}")
        makers = (write_tickets, write_urgency, write_duplicate)
        tasks = [Task.load(maker(folder / "tasks")) for maker in makers]
        cfg = outshine.TrainConfig(
            encoder=str(checkpoint(family)), max_steps=2, batch_size=8, device="cpu", **settings
        )
        run = outshine.train(tasks, cfg, out=folder / "run")
        # so that the outputs of two rows differ by far more than the tolerance
        path = run.model_dir / "heads.safetensors"
        weights = load_file(path)
        heads = {name: 100 * x for name, x in weights.items() if name.startswith("heads.")}
        save_file(weights | heads, path)
        return run.path

    return make
