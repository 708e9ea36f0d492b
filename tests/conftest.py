"""A tiny random encoder, and tiny tasks over csv files, for tests without network or GPU."""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before any test imports the hub client, which reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

pytest_plugins = ["families"]

TEAMS = {
    "billing": ["invoice", "charged", "refund", "payment"],
    "tech": ["error", "crash", "login", "screen"],
    "other": ["thanks", "question", "hours", "office"],
}
FILLERS = ["my", "the", "please", "today", "again", "about", "help", "with", "a", "very"]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Encoded tables go to a temporary folder, which subprocesses inherit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTSHINE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        yield


def sentence(rng: random.Random, team: str, length: int = 6) -> str:
    """Filler words around one word that tells the team."""
    words = rng.choices(FILLERS, k=length - 1)
    words.insert(rng.randrange(length), rng.choice(TEAMS[team]))
    return " ".join(words)


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    """Writes one csv file and returns its path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_task(folder: Path, name: str, toml: str, header: list[str], make: Callable) -> Path:
    """Writes `<name>.toml` with 48 train, 24 dev and 8 test rows that `make(rng)` gives."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(name)
    for split, count in (("train", 48), ("dev", 24), ("test", 8)):
        write_csv(folder / f"{name}-{split}.csv", header, [make(rng) for _ in range(count)])
    files = "\n".join(f'{split} = "{name}-{split}.csv"' for split in ("train", "dev", "test"))
    path = folder / f"{name}.toml"
    path.write_text(f'name = "{name}"\n{toml}\n[files]\n{files}\n', encoding="utf-8")
    return path


def write_tickets(folder: Path) -> Path:
    """One text, three classes."""

    def row(rng: random.Random) -> list[str]:
        team = rng.choice(list(TEAMS))
        return [sentence(rng, team), team]

    toml = 'text = ["body"]\nlabel = "team"\nlabels = ["billing", "tech", "other"]'
    return write_task(folder, "tickets", toml, ["body", "team"], row)


def write_urgency(folder: Path) -> Path:
    """One text, a value from 0 to 5."""

    def row(rng: random.Random) -> list[Any]:
        value = rng.randrange(6)
        return [f"{sentence(rng, 'tech')} {'now ' * value}".strip(), value]

    toml = 'kind = "regression"\ntext = ["body"]\nlabel = "urgency"\nrange = [0, 5]'
    return write_task(folder, "urgency", toml, ["body", "urgency"], row)


def write_duplicate(folder: Path) -> Path:
    """A symmetric pair, two classes."""

    def row(rng: random.Random) -> list[str]:
        first, second = rng.choices(list(TEAMS), k=2)
        label = "same" if first == second else "different"
        return [sentence(rng, first), sentence(rng, second), label]

    toml = (
        'text = ["left", "right"]\nlabel = "verdict"\nlabels = ["different", "same"]\n'
        'metrics = ["accuracy", "f1"]\nsymmetric = true'
    )
    return write_task(folder, "duplicate", toml, ["left", "right", "verdict"], row)


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    """Task file of one text and three classes."""
    return write_tickets(tmp_path / "tasks")


@pytest.fixture
def urgency(tmp_path: Path) -> Path:
    """Task file of one text and a value from 0 to 5."""
    return write_urgency(tmp_path / "tasks")


@pytest.fixture
def duplicate(tmp_path: Path) -> Path:
    """Task file of a symmetric pair and two classes."""
    return write_duplicate(tmp_path / "tasks")


def tiny_tokenizer() -> Any:
    """A fast uncased word-piece tokenizer that knows the words of the tiny tasks, and letters.

    Its vocabulary is written out, for training one gives another order in every process.
    """
    from string import ascii_lowercase

    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*TEAMS, *(word for team in TEAMS.values() for word in team), *FILLERS, "now"]
    pieces = [*special, *ascii_lowercase, *(f"##{c}" for c in ascii_lowercase), *words]
    tokens = dict.fromkeys([*pieces, *(f"[unused{i}]" for i in range(160))])
    vocabulary = {token: i for i, token in enumerate(list(tokens)[:160])}
    fast = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, fast.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def make_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder with a random encoder of a family, 2 layers and 32 wide, and a tokenizer.

    Call it as `make_encoder("bert")`, with changes to the configuration as keywords.
    """

    def make(family: str = "bert", **changes: Any) -> Path:
        import torch
        from transformers import AutoConfig, AutoModel

        tokenizer = tiny_tokenizer()
        settings = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 130,
            "pad_token_id": tokenizer.pad_token_id,
        }
        config = AutoConfig.for_model(family, **(settings | changes))
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model = AutoModel.from_config(config)
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def encoder(make_encoder: Callable[..., Path]) -> Path:
    """Folder of the tiny random BERT."""
    return make_encoder("bert")


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """Folder of a finished run on tickets, urgency and duplicate; copy it before changing it."""
    import outshine

    folder = tmp_path_factory.mktemp("student")
    makers = (write_tickets, write_urgency, write_duplicate)
    tasks = [outshine.Task.load(make(folder / "tasks")) for make in makers]
    cfg = outshine.TrainConfig(encoder=str(encoder), max_steps=3, batch_size=8, device="cpu")
    return outshine.train(tasks, cfg, out=folder / "run").path


@pytest.fixture(scope="session")
def varied(make_encoder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run on tickets, urgency and duplicate whose answers differ from row to row."""
    import outshine

    folder = tmp_path_factory.mktemp("varied")
    makers = (write_tickets, write_urgency, write_duplicate)
    tasks = [outshine.Task.load(make(folder / "tasks")) for make in makers]
    encoder = str(make_encoder("bert", initializer_range=0.2))
    cfg = outshine.TrainConfig(encoder=encoder, max_steps=3, batch_size=8, device="cpu")
    return outshine.train(tasks, cfg, out=folder / "run")


@pytest.fixture(scope="session")
def model(varied: Any) -> Any:
    """That run, ready to be asked."""
    from outshine.predicting import load

    return load(varied, device="cpu")


@pytest.fixture
def glue_dir() -> str:
    """Folder of the real GLUE files; the test is skipped where there is none."""
    folder = os.environ.get("OUTSHINE_GLUE_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("OUTSHINE_GLUE_DIR names no folder: this test needs the real GLUE files")
    return folder
