"""Depth from the output of every parameter, for layer-wise learning-rate decay.

Depths come from the model's modules: which module list holds the layers, and which modules a
forward pass calls before and after them. What cannot be told is an error, not a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from outshine.errors import UserError
from outshine.model import MultiTaskModel


def parameter_depths(model: MultiTaskModel) -> dict[str, int]:
    """Depth from the output of every parameter: heads 0, pooling 1, top layer 2, ...

    Embeddings have the greatest depth. Without pooling parameters the top layer has depth 1.
    Which modules belong before or after the layers is read off a forward pass of four tokens.

    Raises:
        UserError: If the encoder's layers, or where a module belongs, cannot be told.
    """
    encoder, config = model.encoder, model.network.config
    prefix, layers = find_layers(encoder, config)
    order = _first_calls(encoder)
    start, end = order.get(f"{prefix}.0", -1), order.get(f"{prefix}.{len(layers) - 1}", -1)
    if start < 0 or end < 0:
        raise _unknown_depth(model, f"its layers {prefix!r} are not called one by one")
    encoder_names = {id(p): name for name, p in encoder.named_parameters()}
    places = {
        full: _place(model, encoder, encoder_names.get(id(p)), prefix, order, start, end)
        for full, p in model.named_parameters()
        if not full.startswith("heads.")
    }
    with_pooling = int("pooling" in places.values())
    depths = {"pooling": 1, "top": 1 + with_pooling}
    depths["embeddings"] = len(layers) + 1 + with_pooling
    depths |= {str(i): len(layers) - i + with_pooling for i in range(len(layers))}
    heads = {f"heads.{name}": 0 for name, _ in model.heads.named_parameters()}
    return heads | {name: depths[place] for name, place in places.items()}


def _place(
    model: MultiTaskModel,
    encoder: nn.Module,
    name: str | None,
    prefix: str,
    order: Mapping[str, int],
    start: int,
    end: int,
) -> str:
    """pooling, top, embeddings, or the number of a layer, for one parameter of the network."""
    if name is None:
        return "pooling"
    if name.startswith(f"{prefix}."):
        return name.removeprefix(f"{prefix}.").split(".")[0]
    module = name.rpartition(".")[0]
    if module.split(".")[0] == "pooler":
        return "pooling"
    if isinstance(encoder.get_submodule(module), nn.Embedding):
        return "embeddings"
    call = order.get(module)
    if call is None or start < call < end:
        raise _unknown_depth(model, f"where {name!r} belongs is unclear")
    return "embeddings" if call < start else "top"


def find_layers(encoder: nn.Module, config: Any) -> tuple[str, nn.ModuleList]:
    """Name and list of an encoder's layers.

    Raises:
        UserError: If no module list, or more than one, has as many entries as the configuration
            says.
    """
    count = getattr(config, "num_hidden_layers", None)
    found = [
        (name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(found) != 1:
        raise UserError(
            f"cannot tell the layers of {type(encoder).__name__}: {len(found)} module lists of "
            f"{count} layers, expected one",
            "use `--set layer_decay=1.0`",
        )
    return found[0]


def _unknown_depth(model: MultiTaskModel, why: str) -> UserError:
    return UserError(
        f"cannot tell the depth of the parameters of {type(model.encoder).__name__}: {why}",
        "use `--set layer_decay=1.0`",
    )


def _first_calls(encoder: nn.Module) -> dict[str, int]:
    """Position of each module's first call in one forward pass of four tokens."""
    order: dict[str, int] = {}
    names = {module: name for name, module in encoder.named_modules()}

    def note(module: nn.Module, _args: Any) -> None:
        order.setdefault(names[module], len(order))

    hooks = [module.register_forward_pre_hook(note) for module in names]
    was_training = encoder.training
    try:
        encoder.eval()
        with torch.no_grad():
            device = next(encoder.parameters()).device
            encoder(input_ids=torch.tensor([[3, 4, 5, 6]], device=device))
    finally:
        encoder.train(was_training)
        for hook in hooks:
            hook.remove()
    return order
