"""The multi-task model: one encoder with its family's own pooling, one linear head per task.

Shapes: B rows, L tokens per padded row, D features of the pooled vector, C outputs of a head.

`pooling = auto` takes the family's sequence-classification class and removes its last linear
layer, so that what remains is exactly the transform which that class applies before it. Each
head is that last layer for one task, which makes every task exportable as that class.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from outshine.encoders import loading
from outshine.errors import UserError, raise_problems
from outshine.files import read_json, write_json
from outshine.seeds import stream
from outshine.tasks import Task, kind_of, stored_tasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# An unusual number of labels, by which the family's last layer is recognised.
_MARK = 7

_DROPOUT_KEYS = (
    "hidden_dropout_prob",
    "dropout",
    "embedding_dropout",
    "mlp_dropout",
    "hidden_dropout",
    "seq_classif_dropout",
    "classifier_dropout",
    "pooler_dropout",
)
_ATTENTION_DROPOUT_KEYS = ("attention_probs_dropout_prob", "attention_dropout")
# Of config.json, what changes no number, and differs between copies of one encoder.
_WITHOUT_EFFECT = frozenset(
    {"architectures", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id"}
    | {"_name_or_path", "_num_labels", "problem_type"}
)


class MultiTaskModel(nn.Module):
    """An encoder with pooling (`network`) and a dictionary of linear heads by task name."""

    def __init__(
        self, network: PreTrainedModel, width: int, pooling: str, tasks: Sequence[Task]
    ) -> None:
        """Puts untrained heads on a network.

        Args:
            network: The family's class without its last layer, or the bare encoder.
            width: D.
            pooling: `auto`, `cls` or `mean`.
            tasks: One head each.
        """
        super().__init__()
        self.network: PreTrainedModel = network
        self.pooling = pooling
        # Names of modules may hold no dots, names of tasks may.
        # no other name becomes the same, and none is an attribute of the dictionary
        self.names = {task.name: f"task-{task.name.replace('.', '%2E')}" for task in tasks}
        self.heads = nn.ModuleDict(
            {
                self.names[task.name]: nn.Linear(width, kind_of(task).num_outputs(task))
                for task in tasks
            }
        )

    @property
    def encoder(self) -> PreTrainedModel:
        """The encoder without pooling transform, what `AutoModel` loads."""
        return self.network.base_model

    def head(self, task: str) -> nn.Linear:
        """The head of one task."""
        head = self.heads[self.names[task]]
        assert isinstance(head, nn.Linear)
        return head

    def freeze_unused(self) -> None:
        """Leaves a pooler out of training that nothing is computed with."""
        pooler = getattr(self.network, "pooler", None)
        if self.pooling != "auto" and pooler is not None:
            pooler.requires_grad_(False)

    def pooled(self, inputs: Mapping[str, Any]) -> Tensor:
        """(B, D) pooled vectors.

        Args:
            inputs: Of padded rows `input_ids`, `attention_mask` and what else the encoder takes,
                each (B, L); of packed rows what `packing` says.
        """
        if self.pooling == "auto":
            return self.network(**inputs).logits
        hidden = self.network(**inputs).last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        if "segments" in inputs:
            return inputs["segments"].means(hidden[0])
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)

    forward = pooled


def build_model(
    location: str,
    tasks: Sequence[Task],
    *,
    pooling: str = "auto",
    seed: int = 1,
    random_weights: bool = False,
    dropout: float | None = None,
    attention_dropout: float | None = None,
) -> MultiTaskModel:
    """Loads an encoder and gives it freshly initialised heads.

    Args:
        location: From `encoders.locate`.
        tasks: One head each.
        pooling: `auto`, `cls` or `mean`.
        seed: Its stream `init` fills the heads, and the pooling weights that the checkpoint lacks.
        random_weights: Whether the encoder's weights are random, too.
        dropout: Replaces the hidden dropout, None keeps the encoder's own.
        attention_dropout: Replaces the attention dropout, None keeps the encoder's own.

    Returns:
        A float32 model on the CPU.

    Raises:
        UserError: If the encoder cannot be loaded, lacks weights, or its family has no
            sequence-classification class (with `pooling="auto"`).
    """
    config = _config(location)
    _set_dropout(config, _DROPOUT_KEYS, dropout)
    _set_dropout(config, _ATTENTION_DROPOUT_KEYS, attention_dropout)
    init_seed = stream(seed, "init", "encoder")
    network, width = _network(location, config, pooling, init_seed, random_weights)
    model = MultiTaskModel(network, width, pooling, tasks)
    deviation = float(getattr(config, "initializer_range", None) or 0.02)
    for task in tasks:
        generator = torch.Generator().manual_seed(stream(seed, "init", task.name))
        head = model.head(task.name)
        nn.init.normal_(head.weight, 0.0, deviation, generator=generator)
        nn.init.zeros_(head.bias)
    return model


def _config(location: str) -> Any:
    from transformers import AutoConfig

    with loading(f"the encoder {location}"):
        return AutoConfig.from_pretrained(location)


def _set_dropout(config: Any, keys: Sequence[str], value: float | None) -> None:
    for key in keys:
        if value is not None and hasattr(config, key):
            setattr(config, key, value)


def _network(
    location: str, config: Any, pooling: str, init_seed: int, random_weights: bool
) -> tuple[PreTrainedModel, int]:
    """The family's sequence-classification class without its last layer, or the bare encoder.

    Returns:
        The module in eval mode, and the number of features D that it gives per row.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification

    family = AutoModelForSequenceClassification if pooling == "auto" else AutoModel
    labels = config.id2label
    config.num_labels = _MARK
    devices = [*range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), loading(f"the encoder {location}"):
        torch.manual_seed(init_seed)
        if random_weights:
            network = family.from_config(config, dtype=torch.float32)
        else:
            # a classifier has a last layer of another size, which is removed here
            network, info = family.from_pretrained(
                location,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
            _check_loaded(location, network, info)
    network.eval()
    network.config.id2label = labels
    if pooling == "auto":
        return network, remove_last_layer(network, location, _MARK).in_features
    return network, int(config.hidden_size)


def _check_loaded(location: str, network: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that lacks encoder weights; pooling weights may be missing."""
    prefix = f"{network.base_model_prefix}."
    whole = network.base_model is network

    def in_encoder(keys: Iterable[str]) -> list[str]:
        return [key for key in sorted(keys) if whole or key.startswith(prefix)]

    missing = [key for key in in_encoder(info["missing_keys"]) if "pooler." not in key]
    mismatched = in_encoder(name for name, *_ in info["mismatched_keys"])
    raise_problems(
        f"cannot load the encoder {location}",
        [f"weight {key} is missing" for key in missing]
        + [f"weight {key} has another shape than the configuration says" for key in mismatched],
        "the folder holds no complete encoder of this family: check config.json and the weights",
    )


def remove_last_layer(network: PreTrainedModel, location: str, num_labels: int) -> nn.Linear:
    """Replaces the last linear layer by the identity and returns it."""
    inside = {id(module) for module in network.base_model.modules()}
    last = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        and id(module) not in inside
        and module.out_features == num_labels
    ]
    if len(last) != 1:
        raise UserError(
            f"cannot tell the last layer of {type(network).__name__} ({location}): "
            f"{len(last)} candidates, expected one",
            "use `--set pooling=cls` or `--set pooling=mean`",
        )
    name, module = last[0]
    network.set_submodule(name, nn.Identity())
    return module


def num_positions(model: MultiTaskModel) -> int | None:
    """Tokens of the longest row that the encoder's table of positions has room for, if any."""
    tables = [
        module
        for name, module in model.encoder.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]
    if not tables:  # relative or rotary positions
        return None
    # RoBERTa and its kin keep the places up to the padding id free
    free = tables[0].padding_idx + 1 if tables[0].padding_idx is not None else 0
    return tables[0].num_embeddings - free


def weights_digest(model: nn.Module) -> str:
    """sha256 of all weights, as hexadecimal text."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().contiguous().cpu().numpy().data)
    return total.hexdigest()


def architecture(model: MultiTaskModel, location: str) -> dict[str, Any]:
    """How an encoder computes, beside its weights: what its config.json says, as the model has it.

    Args:
        model: From `build_model`, with its dropout.
        location: Whose.
    """
    own = json.loads(model.network.config.to_json_string(use_diff=False))
    written = read_json(Path(location) / "config.json")
    # what a release of transformers adds to it by itself is no other encoder
    return {k: own.get(k, v) for k, v in written.items() if k not in _WITHOUT_EFFECT}


def add_weights(module: nn.Module, other: nn.Module, count: int) -> None:
    """Adds 1/count of another module's weights, within `torch.no_grad()`."""
    for parameter, given in zip(module.parameters(), other.parameters(), strict=True):
        parameter.add_(given.to(parameter.device), alpha=1 / count)


def token_inputs(tokenizer: Any, model: MultiTaskModel) -> bool:
    """Whether the encoder takes segment ids; checks that it knows all of the tokenizer's tokens.

    Raises:
        UserError: If the tokenizer has more tokens than the encoder has embeddings.
    """
    embedded = model.encoder.get_input_embeddings().num_embeddings
    if len(tokenizer) > embedded:
        raise UserError(
            f"cannot use this tokenizer with this encoder: {len(tokenizer)} tokens, "
            f"expected at most {embedded}, the rows of the word embedding",
            "the folder holds the tokenizer of another model: copy the right tokenizer.json",
        )
    return (
        "token_type_ids" in tokenizer.model_input_names
        and getattr(model.network.config, "type_vocab_size", 0) > 1
    )


# --- on disk ----------------------------------------------------------------------------------


def save_model(model: MultiTaskModel, tokenizer: Any, tasks: Sequence[Task], folder: Path) -> None:
    """Writes encoder (Hugging Face layout), heads and pooling, tasks, and tokenizer files."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    model.encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    in_encoder = {id(tensor) for tensor in model.encoder.state_dict(keep_vars=True).values()}
    rest = {
        name: tensor.detach().contiguous().cpu()
        for name, tensor in model.state_dict(keep_vars=True).items()
        if id(tensor) not in in_encoder
    }
    save_file(rest, folder / "heads.safetensors", {"pooling": model.pooling})
    write_tasks(folder, model.pooling, tasks)


def write_tasks(folder: Path, pooling: str, tasks: Sequence[Task]) -> None:
    """Writes `tasks.json`: what each head answers, without the places of its data."""
    content = [task.without("files", "hub", "hub_config", "columns", "holdout") for task in tasks]
    write_json(folder / "tasks.json", {"pooling": pooling, "tasks": content})


def load_model(folder: Path) -> tuple[MultiTaskModel, Any, tuple[Task, ...]]:
    """Reads what `save_model` wrote: the model (eval mode), the tokenizer and the tasks.

    Raises:
        UserError: If a file is missing or damaged, or a weight is not finite.
    """
    from safetensors.torch import load_file
    from transformers import AutoModel

    from outshine.encoders import load_tokenizer

    saved = read_json(folder / "tasks.json", "pooling", "tasks")
    if saved["pooling"] not in ("auto", "cls", "mean"):
        raise UserError(
            f"cannot read {folder / 'tasks.json'}: {saved['pooling']!r}, "
            f"expected auto, cls or mean ({folder / 'tasks.json'}: pooling)",
            "the file was changed: train the run again",
        )
    tasks = stored_tasks(folder / "tasks.json")
    config = _config(str(folder))
    network, width = _network(str(folder), config, saved["pooling"], 0, random_weights=True)
    with loading(f"the encoder in {folder}"):
        encoder, info = AutoModel.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        _check_loaded(str(folder), encoder, info)
        rest = load_file(folder / "heads.safetensors")
    model = MultiTaskModel(network, width, saved["pooling"], tasks)
    model.encoder.load_state_dict(encoder.state_dict(), strict=False)
    in_encoder = {id(tensor) for tensor in model.encoder.state_dict(keep_vars=True).values()}
    known = model.state_dict(keep_vars=True)
    needed = {name for name, tensor in known.items() if id(tensor) not in in_encoder}
    raise_problems(
        f"cannot load {folder / 'heads.safetensors'}",
        [f"{key} is missing" for key in sorted(needed - rest.keys())]
        + [f"{key} is unknown" for key in sorted(rest.keys() - known.keys())]
        + [
            f"{key} has shape {tuple(rest[key].shape)}, expected {tuple(known[key].shape)}"
            for key in sorted(rest.keys() & known.keys())
            if rest[key].shape != known[key].shape
        ],
        "the run is damaged: train it again",
    )
    model.load_state_dict(rest, strict=False)
    raise_problems(
        f"cannot load the weights in {folder}",
        [
            f"{name} holds what is no finite number"
            for name, weights in model.named_parameters()
            # the least and the largest tell; a look at each weight would make copies
            if not torch.stack(weights.detach().aminmax()).isfinite().all()
        ],
        "the run is damaged: copy it again, or train it again",
    )
    return model.eval(), load_tokenizer(str(folder)), tasks
