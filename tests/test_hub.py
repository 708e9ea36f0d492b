"""The hub's real clients against a hub of our own on the loopback."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import hub
import outshine
from outshine import encoders, readers
from outshine.calibration import calibrate
from outshine.errors import OutshineError, UserError, WorldError
from outshine.exporting import push_to_hub
from outshine.hub import asking_the_hub
from outshine.runs import Run, open_run
from outshine.tasks import Task
from outshine.teachers import teacher_cache

# Configuration of nyu-mll/glue -> its two text columns, its classes, and split -> labels.
GLUE_CONFIGS: dict[str, tuple[tuple[str, str], list[str], dict[str, list[int]]]] = {
    "rte": (
        ("sentence1", "sentence2"),
        ["entailment", "not_entailment"],
        {"train": [0, 1, 1, 0], "validation": [1, 0], "test": [-1, -1]},
    ),
    "mnli": (
        ("premise", "hypothesis"),
        ["entailment", "neutral", "contradiction"],
        {
            "train": [0, 1, 2],
            "validation_matched": [1, 2],
            "validation_mismatched": [2, 0, 1],
            "test_matched": [-1],
            "test_mismatched": [-1],
        },
    ),
    "ax": (
        ("premise", "hypothesis"),
        ["entailment", "neutral", "contradiction"],
        {"test": [-1, -1]},
    ),
}


def write_glue(folder: Path) -> None:
    """Some rows of GLUE, with the card that says which file is what, as on the real hub."""
    infos, configs = [], []
    for config, (texts, classes, splits) in GLUE_CONFIGS.items():
        for split, labels in splits.items():
            columns = {
                texts[0]: [f"the {split} invoice {i}" for i in range(len(labels))],
                texts[1]: ["a refund"] * len(labels),
                "label": labels,
                "idx": list(range(len(labels))),
            }
            write_parquet(folder / config / f"{split}-00000-of-00001.parquet", columns)
        names = {"class_label": {"names": {str(i): name for i, name in enumerate(classes)}}}
        types = dict.fromkeys(texts, "string") | {"label": names, "idx": "int32"}
        features = [{"name": name, "dtype": dtype} for name, dtype in types.items()]
        infos.append({"config_name": config, "features": features})
        files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
        configs.append({"config_name": config, "data_files": files})
    # JSON is YAML
    card = json.dumps({"dataset_info": infos, "configs": configs})
    (folder / "README.md").write_text(f"---\n{card}\n---\n")


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


@pytest.fixture
def server(tmp_path: Path, encoder: Path) -> Iterator[hub.Hub]:
    """A hub with an encoder, three sets of GLUE as the real hub has them, and a plain data set."""
    root = tmp_path / "hub"
    shutil.copytree(encoder, root / "models/org/tiny")
    write_glue(root / "datasets/nyu-mll/glue")
    own = {
        "body": ["my login", "an invoice"],
        "team": ["tech", None],
        "key": ["a", "b"],
        "words": [["my", "login"], ["an", "invoice"]],
    }
    write_parquet(root / "datasets/org/tickets/data/train-00000-of-00001.parquet", own)
    with hub.serving(root) as running:
        yield running


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Points this process's hub client, with an empty cache, at an address."""
    from huggingface_hub import constants

    def point(url: str, offline: bool = False) -> None:
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))

    return point


@pytest.fixture
def closed_port() -> str:
    """An address on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code in a new process whose hub is set by environment variables alone."""

    def run(url: str, code: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        settings = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        kept = {k: v for k, v in os.environ.items() if k != "OUTSHINE_GLUE_DIR"}
        return subprocess.run(
            [sys.executable, "-c", code, *args],
            env=kept | settings | env,
            cwd=tmp_path,
            text=True,
            capture_output=True,
        )

    return run


def on_hub(**changes: Any) -> Task:
    """A task over the data set org/tickets."""
    fields = {
        "name": "tickets",
        "text": ("body",),
        "label": "team",
        "labels": ("billing", "tech"),
        "hub": "org/tickets",
        "files": {"train": "train"},
    }
    return Task(**(fields | changes))


# --- encoders -------------------------------------------------------------------------------


def test_an_encoder_is_downloaded_once_and_then_found(server: hub.Hub, client: Callable) -> None:
    client(server.url)
    extra = server.folder / "models/org/tiny/onnx/model.json"
    extra.parent.mkdir()
    extra.write_text("{}")
    folder = Path(encoders.locate("org/tiny"))
    assert (folder / "model.safetensors").is_file()
    assert not (folder / "onnx").exists()
    server.requests.clear()
    encoders.load_tokenizer(str(folder))
    assert server.requests == []
    assert encoders.locate("org/tiny") == str(folder)
    assert not [line for line in server.requests if "resolve" in line]


def test_an_encoder_that_was_downloaded_needs_no_hub(
    server: hub.Hub, client: Callable, closed_port: str
) -> None:
    client(server.url)
    folder = encoders.locate("org/tiny")
    client(closed_port)
    assert encoders.locate("org/tiny") == folder
    client(server.url, offline=True)
    assert encoders.locate("org/tiny") == folder


def test_weights_in_the_older_format_are_downloaded_where_there_are_no_others(
    server: hub.Hub, client: Callable
) -> None:
    client(server.url)
    model = server.folder / "models/org/tiny"
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert (Path(encoders.locate("org/tiny")) / "pytorch_model.bin").is_file()


def test_a_repository_without_weights_is_refused(server: hub.Hub, client: Callable) -> None:
    client(server.url)
    (server.folder / "models/org/tiny/model.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        encoders.locate("org/tiny")
    assert str(caught.value) == (
        "cannot load the encoder org/tiny: no weights, expected model.safetensors or "
        "model.safetensors.index.json or pytorch_model.bin in it\n"
        "hint: expected a folder in Hugging Face layout, a hub id, or `builtin`"
    )


# --- a hub that says no, or nothing ---------------------------------------------------------


def locate_encoder() -> None:
    encoders.locate("org/nothing")


def locate_teacher() -> None:
    encoders.locate("org/nothing", "the teacher")


def read_data_set() -> None:
    list(readers.read_rows(on_hub(hub="org/nothing"), "train"))


NO_ANSWER = (
    "check the network and HF_ENDPOINT, or give local files; "
    "HF_HUB_OFFLINE=1 uses what was downloaded before"
)
ASKING = {
    "cannot load the encoder org/nothing: no such folder, and ": locate_encoder,
    "cannot load the teacher org/nothing: no such folder, and ": locate_teacher,
    "cannot read org/nothing from the hub: ": read_data_set,
}


def refusal(ask: Callable[[], None]) -> OutshineError:
    """The error that asking ends in, without a pause between questions.

    The clients sleep before they ask again, up to 23 s in all; counting the pauses says the same
    on a busy machine, where a clock does not.
    """
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OutshineError) as caught:
        pauses: list[float] = []
        patch.setattr(time, "sleep", pauses.append)
        ask()
    assert pauses == []
    return caught.value


@pytest.mark.parametrize("what", ASKING)
def test_an_unknown_repository_is_the_users_mistake(
    server: hub.Hub, client: Callable, what: str
) -> None:
    client(server.url)
    error = refusal(ASKING[what])
    assert isinstance(error, UserError)
    assert error.message == what + "no such repository on the hub"
    assert error.hint == ("check the spelling; private and gated repositories need `hf auth login`")


@pytest.mark.parametrize("what", ASKING)
def test_a_hub_behind_a_closed_port_is_not_asked_again(
    client: Callable, closed_port: str, what: str
) -> None:
    client(closed_port)
    error = refusal(ASKING[what])
    assert isinstance(error, WorldError)
    assert error.message == what + "the hub does not answer ([Errno 111] Connection refused)"
    assert error.hint == NO_ANSWER


@pytest.mark.parametrize("what", ASKING)
def test_a_hub_that_stays_silent_is_given_up(
    server: hub.Hub, client: Callable, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    server.silent = True
    client(server.url)
    error = refusal(ASKING[what])
    assert isinstance(error, WorldError)
    assert error.message == what + "the hub does not answer (timed out)"
    assert error.hint == NO_ANSWER


def test_an_encoder_that_was_downloaded_is_found_while_the_hub_stays_silent(
    server: hub.Hub, client: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    client(server.url)
    folder = encoders.locate("org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    server.silent = True
    assert encoders.locate("org/tiny") == folder


@pytest.mark.parametrize("what", ASKING)
def test_a_hub_that_answers_500_is_not_asked_again(
    server: hub.Hub, client: Callable, what: str
) -> None:
    server.status = 500
    client(server.url)
    error = refusal(ASKING[what])
    assert isinstance(error, WorldError)
    asked = {read_data_set: "datasets/org/nothing"}
    address = asked.get(ASKING[what], "models/org/nothing/revision/main")
    assert error.message == (
        f"{what}the hub does not answer (Server error '500 Internal Server Error' for url "
        f"'{server.url}/api/{address}')"
    )
    assert error.hint == NO_ANSWER


@pytest.mark.parametrize("what", ASKING)
def test_an_offline_client_says_that_it_is_offline(
    server: hub.Hub, client: Callable, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    client(server.url, offline=True)
    error = refusal(ASKING[what])
    assert isinstance(error, WorldError)
    assert error.message == what + "not downloaded before, and the hub client is offline"
    assert error.hint == "unset HF_HUB_OFFLINE, or give local files"
    assert not [line for line in server.requests if "nothing" in line]


def test_a_missing_datasets_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError) as caught:
        list(readers.read_rows(on_hub(hub="org/absent"), "train"))
    assert str(caught.value) == (
        "cannot read org/absent from the hub: the package `datasets` is missing\n"
        "hint: pip install 'outshine[hub]'"
    )


# --- a disk that is full or read-only ---------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "No space left on device"),
        (errno.EDQUOT, "Disk quota exceeded"),
        (errno.EFBIG, "File too large"),
    ],
)
def test_a_full_disk_is_no_silent_hub(number: int, reason: str) -> None:
    from huggingface_hub import constants

    with pytest.raises(WorldError) as caught, asking_the_hub("cannot load the encoder org/tiny"):
        raise OSError(number, reason)
    assert str(caught.value) == (
        f"cannot write {constants.HF_HOME}: {reason}\n"
        "hint: free some space, or choose a folder on another disk"
    )


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.EACCES, "Permission denied"), (errno.EROFS, "Read-only file system")],
)
def test_a_read_only_cache_is_no_silent_hub(number: int, reason: str) -> None:
    with pytest.raises(WorldError) as caught, asking_the_hub("cannot load the encoder org/tiny"):
        raise OSError(number, reason, "/cache/hub")
    assert str(caught.value) == (
        f"cannot write /cache/hub: {reason}\nhint: choose a folder that can be written"
    )


def test_a_permission_of_nothing_named_is_not_blamed_on_the_cache() -> None:
    from huggingface_hub import constants

    with pytest.raises(WorldError) as caught, asking_the_hub("cannot load the encoder org/tiny"):
        raise OSError(errno.EACCES, "Permission denied")
    assert str(caught.value) == (
        "cannot load the encoder org/tiny: [Errno 13] Permission denied\n"
        f"hint: check that {constants.HF_HOME} can be written, and that nothing forbids the network"
    )


READ_WITH_SMALL_FILES = """
import resource, sys
import datasets
import pyarrow.parquet
from outshine import Task, encoders, errors, readers
task = Task.load("tickets.toml")
resource.setrlimit(resource.RLIMIT_FSIZE, (800, 800))
for ask in (lambda: encoders.locate("org/tiny"), lambda: list(readers.read_rows(task, "train"))):
    try:
        ask()
    except errors.WorldError as error:
        print(error.message)
"""


def test_files_that_the_cache_cannot_hold_are_told(
    server: hub.Hub, python: Callable, tmp_path: Path
) -> None:
    (tmp_path / "tickets.toml").write_text(
        'name = "tickets"\ntext = "body"\nlabel = "team"\nlabels = ["billing", "tech"]\n'
        '[files]\nhub = "org/tickets"\ntrain = "train"\n'
    )
    done = python(server.url, READ_WITH_SMALL_FILES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"cannot write {tmp_path / 'hf'}: File too large"] * 2


# --- whole ways, in processes of their own --------------------------------------------------

READ_GLUE = """
import json
from outshine import glue, readers
task, = glue("rte")
rows = {s: [(r.id, *r.texts, r.gold) for r in readers.read_rows(task, s)] for s in task.files}
keys = [readers.data_fingerprint(task, split) for split in task.files]
print(json.dumps({"rows": rows, "keys": keys}))
"""


def test_glue_is_read_from_the_hub_with_its_class_names(
    server: hub.Hub, python: Callable, closed_port: str
) -> None:
    first = python(server.url, READ_GLUE)
    assert first.returncode == 0, first.stderr
    read = json.loads(first.stdout)
    assert read["rows"]["dev"] == [
        ["0", "the validation invoice 0", "a refund", 1.0],
        ["1", "the validation invoice 1", "a refund", 0.0],
    ]
    assert [row[3] for row in read["rows"]["train"]] == [0.0, 1.0, 1.0, 0.0]
    assert [row[3] == row[3] for row in read["rows"]["test"]] == [False, False]
    assert len(set(read["keys"])) == 3
    asked = [line for line in server.requests if line.startswith("GET /api/datasets/nyu-mll/glue")]
    assert sum("glue/" not in line for line in asked) == 1, "one revision per process"
    offline = python(closed_port, READ_GLUE, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert json.loads(offline.stdout)["keys"] == read["keys"]


def test_mnli_of_the_hub_is_scored_on_both_dev_sets_and_has_the_diagnostic_texts(
    server: hub.Hub, python: Callable, tmp_path: Path
) -> None:
    words = "train mnli --encoder org/tiny --set max_steps=1 --out run"
    done = python(server.url, COMMAND, *words.split())
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "run/metrics.json").read_text())["mnli"]
    assert {split: found["n"] for split, found in scores.items()} == {
        "dev": 2,
        "dev_mismatched": 3,
    }
    done = python(server.url, READ_GLUE.replace("rte", "mnli"))
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row[3] for row in rows["dev_mismatched"]] == [2.0, 0.0, 1.0]
    assert [row[1] for row in rows["ax"]] == ["the test invoice 0", "the test invoice 1"]


READ_OWN = """
import sys
from outshine import Task, cells, readers, errors
task = Task.load(sys.argv[1])
tally = cells.Tally()
print([(row.id, row.texts, row.gold) for row in readers.read_rows(task, "train", tally)])
print(tally.unlabelled)
texts = ({"text": ("bdy",)}, {"text": ("words",)})
for change in ({"hub_config": "nope"}, {"files": {"train": "nope"}}, *texts):
    try:
        list(readers.read_rows(task.model_copy(update=change), "train"))
    except errors.UserError as error:
        print(error.message)
"""


def test_an_own_task_reads_a_data_set_of_the_hub(
    server: hub.Hub, python: Callable, tmp_path: Path
) -> None:
    path = tmp_path / "tickets.toml"
    path.write_text(
        'name = "tickets"\ntext = ["body"]\nlabel = "team"\nlabels = ["billing", "tech"]\n'
        'id = "key"\n[files]\nhub = "org/tickets"\ntrain = "train"\n'
    )
    done = python(server.url, READ_OWN, str(path))
    assert done.returncode == 0, done.stderr
    rows, unlabelled, config, split, column, *cells = done.stdout.splitlines()
    assert rows == "[('a', ('my login',), 1.0)]"
    assert unlabelled == "1"
    assert config == (
        "cannot read org/tickets from the hub: BuilderConfig 'nope' not found. "
        "Available: ['default']"
    )
    assert split == (
        "cannot read org/tickets from the hub: Unknown split \"nope\". Should be one of ['train']."
    )
    assert column == (
        "cannot read org/tickets:train: column 'bdy' missing (did you mean 'body'?), expected one "
        "of body, team, key, words (org/tickets:train:1)"
    )
    assert cells == [
        "cannot read org/tickets:train: 2 problems",
        "  column 'words': ['my', 'login'], expected a text or a number (org/tickets:train:1)",
        "  column 'words': ['an', 'invoice'], expected a text or a number (org/tickets:train:2)",
    ]


COMMAND = "import sys; from outshine.cli import main; sys.exit(main())"


def save_classifier(encoder: Path, folder: Path) -> None:
    """A random classifier of rte whose labels stand in another order than the task's."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    shutil.copytree(encoder, folder)
    config = AutoConfig.from_pretrained(encoder)
    config.id2label = {0: "not_entailment", 1: "entailment"}
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


def test_encoder_teacher_and_rows_all_come_from_the_hub(
    server: hub.Hub, python: Callable, tmp_path: Path, encoder: Path
) -> None:
    save_classifier(encoder, server.folder / "models/org/classifier")
    words = "train rte --encoder org/tiny --teacher rte=org/classifier --set max_steps=2 --out run"
    done = python(server.url, COMMAND, *words.split())
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["rte"]["dev"]["n"] == 2
    assert "%|" not in done.stderr, "no progress bar of the hub's client without a terminal"
    asked = " ".join(server.requests)
    assert "/org/classifier/resolve/" in asked
    assert "/datasets/nyu-mll/glue/resolve/" in asked


@pytest.mark.parametrize(("status", "code"), [(200, 2), (500, 1)])
def test_the_command_ends_with_the_code_of_the_error(
    server: hub.Hub, python: Callable, tmp_path: Path, status: int, code: int
) -> None:
    server.status = status
    path = tmp_path / "absent.toml"
    path.write_text(
        'name = "absent"\ntext = "body"\nlabel = "team"\nlabels = ["billing", "tech"]\n'
        '[files]\nhub = "org/absent"\ntrain = "train"\ndev = "dev"\n'
    )
    done = python(server.url, COMMAND, "tasks", "check", str(path))
    assert done.returncode == code, done.stderr
    found, hint = {
        2: (
            "no such repository on the hub",
            "check the spelling; private and gated repositories need `hf auth login`",
        ),
        1: (
            "the hub does not answer (Server error '500 Internal Server Error' for url "
            f"'{server.url}/api/datasets/org/absent')",
            NO_ANSWER,
        ),
    }[code]
    assert done.stderr.splitlines()[-2:] == [
        f"cannot read org/absent from the hub: {found}",
        f"hint: {hint}",
    ]
    assert "Traceback" not in done.stderr


# --- writing ----------------------------------------------------------------------------------


@pytest.fixture
def exported(student: Path, tmp_path: Path) -> Path:
    outshine.export(student, tmp_path / "out", task="tickets")
    return tmp_path / "out"


def test_an_export_is_pushed_as_one_commit_and_loads_from_the_hub(
    server: hub.Hub, client: Callable, exported: Path
) -> None:
    client(server.url)
    assert push_to_hub(exported, "org/desk") == f"{server.url}/org/desk"
    pushed = server.folder / "models/org/desk"
    assert {path.name: path.read_bytes() for path in pushed.iterdir() if path.is_file()} == {
        path.name: path.read_bytes() for path in exported.iterdir()
    }
    assert sum("/commit/" in request for request in server.requests) == 1
    push_to_hub(exported, "org/desk")  # the repository exists by now
    assert encoders.locate("org/desk")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_whole_student_is_pushed_and_used_by_its_name(
    server: hub.Hub, client: Callable, student: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from transformers import AutoModelForSequenceClassification

    client(server.url)
    monkeypatch.chdir(tmp_path)
    outshine.export(student, tmp_path / "all")
    push_to_hub(tmp_path / "all", "org/desk")
    pushed = server.folder / "models/org/desk"
    assert contents(pushed) == contents(tmp_path / "all")
    rows = ["refund my invoice", ("the login", "a crash")]
    assert outshine.load("org/desk").predict(rows) == outshine.load(student).predict(rows)
    asked = " ".join(server.requests)
    assert "/resolve/" in asked and "/tickets/model.safetensors" not in asked
    name, labels = "org/desk", ["billing", "tech", "other"]
    loaded = AutoModelForSequenceClassification.from_pretrained(name, subfolder="tickets")
    assert [loaded.config.id2label[i] for i in range(3)] == labels


def test_a_run_of_the_hub_is_evaluated_and_never_written_to(
    server: hub.Hub, client: Callable, student: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    client(server.url)
    monkeypatch.chdir(tmp_path)
    outshine.export(student, tmp_path / "all")
    push_to_hub(tmp_path / "all", "org/desk")
    tasks = Run(student).tasks()
    cache = tmp_path / "hub-cache"
    opened = open_run("org/desk")
    before = contents(cache)
    assert outshine.evaluate("org/desk", tasks=tasks) == outshine.evaluate(student)
    said = "note: not recorded: org/desk is a run of the hub, which is only read\n"
    assert said in capsys.readouterr().err
    for what, write in {
        "keep the logits": lambda: teacher_cache("org/desk"),
        "keep the temperatures": lambda: calibrate(opened),
        "make a soup": lambda: outshine.soup(["org/desk", student], out=tmp_path / "soup"),
    }.items():
        with pytest.raises(UserError) as caught:
            write()
        assert str(caught.value) == (
            f"cannot {what} of org/desk: a run of the hub, expected a folder of yours\n"
            "hint: `hf download org/desk --local-dir FOLDER`, and give that folder"
        )
    assert contents(cache) == before


def test_what_an_earlier_push_left_is_gone_after_the_commit_of_the_next(
    server: hub.Hub, client: Callable, exported: Path
) -> None:
    client(server.url)
    pushed = server.folder / "models/org/desk"
    (pushed / "dropped").mkdir(parents=True)
    (pushed / "dropped" / "model.safetensors").write_bytes(b"old")
    (pushed / "README.md").write_bytes(b"old")
    push_to_hub(exported, "org/desk")
    assert contents(pushed) == contents(exported)
    assert sum("/commit/" in request for request in server.requests) == 1


def test_a_run_that_is_neither_here_nor_on_the_hub_is_refused(
    server: hub.Hub, client: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(server.url)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        outshine.load("org/desk")
    assert str(caught.value) == (
        "cannot open the run org/desk: no such folder, and no such repository on the hub\n"
        "hint: check the spelling; private and gated repositories need `hf auth login`"
    )
    (tmp_path / "runs").mkdir()
    server.requests.clear()
    for name in ("runs/desk", "desk", "no/such/run", str(tmp_path / "desk")):
        with pytest.raises(UserError) as caught:
            outshine.load(name)
        wanted = f"cannot open the run {name}: no such folder\nhint: check the path"
        assert str(caught.value) == wanted
    assert server.requests == []


def test_what_is_no_export_is_not_pushed(server: hub.Hub, client: Callable, student: Path) -> None:
    client(server.url)
    with pytest.raises(UserError) as caught:
        push_to_hub(student, "org/desk")
    assert str(caught.value) == (
        f"cannot read {student / 'export.json'}: no such file\nhint: check the path"
    )
    assert server.requests == []


def test_a_push_that_is_not_allowed_is_the_users_mistake(
    server: hub.Hub, client: Callable, exported: Path
) -> None:
    client(server.url)
    for status in (401, 403):
        server.status = status
        with pytest.raises(UserError) as caught:
            push_to_hub(exported, "org/desk")
        assert str(caught.value) == (
            f"cannot push {exported} to org/desk: the hub does not allow it (status {status})\n"
            "hint: log in with `hf auth login`, with a token that may do this"
        )
    with pytest.raises(UserError) as caught:
        push_to_hub(exported, "no/such/name")
    assert str(caught.value) == (
        f"cannot push {exported} to no/such/name: no such repository on the hub\n"
        "hint: check the spelling; private and gated repositories need `hf auth login`"
    )
