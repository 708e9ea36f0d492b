"""One encoder with its family's own pooling, a head per task: exact, seeded, saved to the last bit.

B rows, L tokens per padded row, C outputs of a head.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import outshine
from conftest import FILLERS, TEAMS
from families import FAMILIES
from outshine.classifiers import classifier_model
from outshine.data import tokenize
from outshine.encoders import load_tokenizer, locate
from outshine.errors import UserError
from outshine.model import build_model, load_model, save_model
from outshine.tasks import Task

Checkpoint = Callable[[str], Path]

TEAM = Task(name="team", text=("a",), label="y", labels=("billing", "tech", "other"))
SAME = Task(name="same.pair", text=("a", "b"), label="y", labels=("no", "yes"))
URGENCY = Task(name="urgency", kind="regression", text=("a",), label="y", range=(1.0, 5.0))

# The last linear layer of each family's sequence-classification class.
LAST = {
    "bert": "classifier",
    "distilbert": "classifier",
    "roberta": "classifier.out_proj",
    "electra": "classifier.out_proj",
    "mpnet": "classifier.out_proj",
    "deberta-v2": "classifier",
    "modernbert": "classifier",
}
# A weight of the transform before it, by its name in that class.
TRANSFORM = {
    "bert": "bert.pooler.dense.weight",
    "distilbert": "pre_classifier.weight",
    "roberta": "classifier.dense.weight",
    "electra": "classifier.dense.weight",
    "mpnet": "classifier.dense.weight",
    "deberta-v2": "pooler.dense.weight",
    "modernbert": "head.dense.weight",
}

each_family = pytest.mark.parametrize("family", FAMILIES)


def padded_rows(lengths: tuple[int, ...] = (9, 4, 6)) -> dict[str, Tensor]:
    """(B, L) random token ids with padding behind the shorter rows."""
    generator = torch.Generator().manual_seed(3)
    inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 150, inside.shape, generator=generator)
    return {"input_ids": ids * inside, "attention_mask": inside.long()}


@torch.no_grad()
def logits(model: Any, task: Task, rows: dict[str, Tensor] | None = None) -> Tensor:
    return model.head(task.name)(model.pooled(rows or padded_rows()))


def without(folder: Path, out: Path, *keys: str) -> Path:
    """A copy of a checkpoint that lacks the weights whose names hold one of the keys."""
    shutil.copytree(folder, out)
    weights = load_file(out / "model.safetensors")
    kept = {name: x for name, x in weights.items() if not any(key in name for key in keys)}
    assert len(kept) < len(weights)
    save_file(kept, out / "model.safetensors", {"format": "pt"})
    return out


# --- pooling --------------------------------------------------------------------------------


@each_family
def test_auto_pooling_is_what_the_family_puts_before_its_last_layer(
    family: str, checkpoint: Checkpoint
) -> None:
    model = build_model(str(checkpoint(family)), [TEAM])
    config = AutoConfig.from_pretrained(checkpoint(family), num_labels=3)
    classifier = AutoModelForSequenceClassification.from_config(config).eval()
    last = classifier.get_submodule(LAST[family])
    result = classifier.load_state_dict(model.network.state_dict(), strict=False)
    assert sorted(result.missing_keys) == [f"{LAST[family]}.bias", f"{LAST[family]}.weight"]
    assert result.unexpected_keys == []
    last.load_state_dict(model.head("team").state_dict())
    seen = []
    last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        wanted = classifier(**padded_rows()).logits
        pooled = model.pooled(padded_rows())
    torch.testing.assert_close(pooled, seen[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(logits(model, TEAM), wanted, atol=1e-6, rtol=0)
    assert wanted.std() > 1e-4


def test_cls_and_mean_pooling_are_the_first_token_and_the_mean_of_all(
    checkpoint: Checkpoint,
) -> None:
    location = str(checkpoint("bert"))
    rows = padded_rows()
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(location).eval()(**rows).last_hidden_state
        mean = torch.stack([hidden[0, :9].mean(0), hidden[1, :4].mean(0), hidden[2, :6].mean(0)])
        for pooling, wanted in (("cls", hidden[:, 0]), ("mean", mean)):
            model = build_model(location, [TEAM], pooling=pooling)
            torch.testing.assert_close(model.pooled(rows), wanted, atol=1e-6, rtol=0)


# --- what a checkpoint lacks ----------------------------------------------------------------


@each_family
def test_pooling_weights_that_the_checkpoint_lacks_come_from_the_seed(
    family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = checkpoint(family)
    if family == "bert":  # its pooler belongs to the encoder, and is in the checkpoint
        folder = without(folder, tmp_path / "bare", "pooler.")
    torch.manual_seed(1)
    first = build_model(str(folder), [TEAM], seed=1)
    torch.manual_seed(2)
    same, other = (build_model(str(folder), [TEAM], seed=seed) for seed in (1, 2))
    stored = AutoModel.from_pretrained(folder).state_dict()
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], weight, rtol=0, atol=0)
    for model in (first, other):
        for name, weight in model.encoder.state_dict().items():
            if "pooler." not in name:
                torch.testing.assert_close(weight, stored[name], rtol=0, atol=0)
    new = TRANSFORM[family]
    assert not torch.equal(first.network.state_dict()[new], other.network.state_dict()[new])
    assert not torch.equal(first.head("team").weight, other.head("team").weight)
    assert not first.head("team").bias.any()


def test_pooling_weights_of_the_checkpoint_are_kept(checkpoint: Checkpoint) -> None:
    stored = load_file(checkpoint("bert") / "model.safetensors")["pooler.dense.weight"]
    for seed in (1, 2):
        model = build_model(str(checkpoint("bert")), [TEAM], seed=seed)
        assert torch.equal(model.encoder.pooler.dense.weight, stored)


def test_random_weights_come_from_the_seed(checkpoint: Checkpoint) -> None:
    one, same, other = (
        build_model(str(checkpoint("bert")), [TEAM], seed=seed, random_weights=True).state_dict()
        for seed in (1, 1, 2)
    )
    name = "network.bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])


def test_a_missing_encoder_weight_is_an_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = without(checkpoint("bert"), tmp_path / "bert", "layer.1.output.dense")
    with pytest.raises(UserError) as caught:
        build_model(str(folder), [TEAM])
    assert str(caught.value) == (
        f"cannot load the encoder {folder}: 2 problems\n"
        "  weight bert.encoder.layer.1.output.dense.bias is missing\n"
        "  weight bert.encoder.layer.1.output.dense.weight is missing\n"
        "hint: the folder holds no complete encoder of this family: check config.json and the "
        "weights"
    )
    with pytest.raises(UserError, match=r"weight encoder\.layer\.1\.output\.dense\.bias"):
        build_model(str(folder), [TEAM], pooling="cls")


@each_family
def test_dropout_zero_leaves_no_randomness_in_training_mode(
    family: str, checkpoint: Checkpoint
) -> None:
    location = str(checkpoint(family))
    model = build_model(location, [TEAM], dropout=0.0, attention_dropout=0.0)
    wanted = logits(model, TEAM)
    torch.testing.assert_close(logits(model.train(), TEAM), wanted, atol=1e-6, rtol=0)
    noisy = build_model(location, [TEAM], dropout=0.3, attention_dropout=0.3).train()
    assert (logits(noisy, TEAM) - wanted).abs().max() > 1e-3


# --- heads ----------------------------------------------------------------------------------


def test_several_heads_of_one_pass_equal_single_heads(checkpoint: Checkpoint) -> None:
    location = str(checkpoint("bert"))
    together = build_model(location, [TEAM, SAME, URGENCY], seed=4)
    with torch.no_grad():
        pooled = together.pooled(padded_rows())
        for task, width in ((TEAM, 3), (SAME, 2), (URGENCY, 1)):
            alone = build_model(location, [task], seed=4)
            found = together.head(task.name)(pooled)
            assert found.shape == (3, width)
            assert torch.equal(found, logits(alone, task))


# --- on disk --------------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_loaded_run_gives_same_logits_to_the_last_bit(
    family: str, pooling: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = checkpoint(family)
    tasks = (TEAM, SAME, URGENCY)
    model = build_model(str(folder), tasks, pooling=pooling, seed=7)
    with torch.no_grad():  # as training would, so that no weight is the checkpoint's
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    save_model(model, AutoTokenizer.from_pretrained(folder), tasks, tmp_path / "model")
    loaded, tokenizer, loaded_tasks = load_model(tmp_path / "model")
    assert not loaded.training
    assert [task.name for task in loaded_tasks] == ["team", "same.pair", "urgency"]
    assert tokenizer("my invoice") == AutoTokenizer.from_pretrained(folder)("my invoice")
    for task in tasks:
        assert torch.equal(logits(loaded, task), logits(model, task))
    assert AutoConfig.from_pretrained(tmp_path / "model").id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_a_saved_model_holds_an_encoder_that_transformers_loads(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = build_model(str(checkpoint("roberta")), [TEAM])
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("roberta"))
    save_model(model, tokenizer, [TEAM], tmp_path / "model")
    rows = padded_rows()
    with torch.no_grad():
        found = AutoModel.from_pretrained(tmp_path / "model").eval()(**rows).last_hidden_state
        wanted = model.encoder(**rows).last_hidden_state
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda w: w.pop("heads.task-team.bias"), "heads.task-team.bias is missing"),
        (lambda w: w.pop("network.classifier.dense.bias"), "dense.bias is missing"),
        (lambda w: w.update(stray=torch.ones(1)), "stray is unknown"),
    ],
)
def test_heads_that_lack_or_add_weights_are_refused(
    change: Callable[[dict], Any], problem: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = build_model(str(checkpoint("roberta")), [TEAM])
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("roberta"))
    save_model(model, tokenizer, [TEAM], tmp_path / "model")
    weights = load_file(tmp_path / "model" / "heads.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model" / "heads.safetensors")
    with pytest.raises(UserError, match=problem) as caught:
        load_model(tmp_path / "model")
    assert caught.value.hint == "the run is damaged: train it again"


def test_an_encoder_that_has_a_sentencepiece_model_alone_trains_and_predicts(
    checkpoint: Checkpoint, tickets: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "deberta"
    shutil.copytree(checkpoint("deberta-v2"), folder)
    (folder / "tokenizer.json").unlink()
    # the files of DeBERTa-v3 on the hub
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join([*TEAMS, *chain(*TEAMS.values()), *FILLERS])]),
        model_writer=trained,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        minloglevel=2,
    )
    (folder / "spm.model").write_bytes(trained.getvalue())
    tokenizer = load_tokenizer(locate(str(folder)))
    ((ids, _, _),) = tokenize(tokenizer, [("my invoice again",)], 32)
    reference = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    assert ids == [1, *reference.encode("my invoice again"), 2]
    cfg = outshine.TrainConfig(encoder=str(folder), max_steps=1, batch_size=4, device="cpu")
    run = outshine.train([Task.load(tickets)], cfg, out=tmp_path / "run")
    (answer,) = outshine.load(run.path).predict(["my invoice again"])
    assert answer["tickets"]["label"] in TEAMS


# --- transformers classifiers as teachers ---------------------------------------------------


def save_classifier(folder: Path, out: Path, **config: Any) -> Any:
    """Writes a random sequence classifier of the family in `folder`, and returns it."""
    torch.manual_seed(0)
    settings = AutoConfig.from_pretrained(folder, **config)
    classifier = AutoModelForSequenceClassification.from_config(settings).eval()
    with torch.no_grad():
        for parameter in classifier.get_submodule(LAST[settings.model_type]).parameters():
            parameter.normal_()
    classifier.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return classifier


@each_family
def test_a_classifier_teaches_in_the_order_of_the_tasks_labels(
    family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    names = {0: "other", 1: "billing", 2: "tech"}
    classifier = save_classifier(checkpoint(family), tmp_path / "c", id2label=names)
    with torch.no_grad():
        wanted = classifier(**padded_rows()).logits[:, [1, 2, 0]]
    found = logits(classifier_model(str(tmp_path / "c"), TEAM), TEAM)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_a_regressor_teaches_on_the_unit_range(checkpoint: Checkpoint, tmp_path: Path) -> None:
    classifier = save_classifier(checkpoint("bert"), tmp_path / "c", num_labels=1)
    with torch.no_grad():
        wanted = (classifier(**padded_rows()).logits - 1.0) / 4.0
    found = logits(classifier_model(str(tmp_path / "c"), URGENCY), URGENCY)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_a_classifier_without_its_last_layer_is_no_teacher(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    save_classifier(checkpoint("bert"), tmp_path / "c", num_labels=3)
    folder = without(tmp_path / "c", tmp_path / "cut", "classifier.weight")
    with pytest.raises(UserError) as caught:
        classifier_model(str(folder), TEAM)
    assert str(caught.value) == (
        f"cannot load the classifier {folder}: weight classifier.weight is missing\n"
        "hint: a teacher must be a complete sequence-classification checkpoint"
    )
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
