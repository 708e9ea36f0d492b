"""A submission has all files as the GLUE server takes them, or is not written."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

import outshine
from outshine import submission
from outshine.errors import UserError
from outshine.files import read_json, write_json
from outshine.submission import PARTS, check_submission, submit
from test_cli import outshine as command

ROWS = 6
GET_AGAIN = "hint: rows are missing or moved: get the official file again\n"
NO_SUCH_ZIP = "the server takes no such zip: `outshine submit` makes one"

# Folder -> (columns of a test file, columns of a train file, labels of three train rows), as in
# the official files; texts are made up.
PAIR = ("sentence1", "sentence2")
LAYOUT = {
    "CoLA": (("index", "sentence"), ("source", "label", "mark", "sentence"), "110"),
    "SST-2": (("index", "sentence"), ("sentence", "label"), "001"),
    "MRPC": (
        ("index", "#1 ID", "#2 ID", "#1 String", "#2 String"),
        ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
        "110",
    ),
    "STS-B": (("index", "genre", *PAIR), ("index", "genre", *PAIR, "score"), ("1", "2", "4.5")),
    "QNLI": (
        ("index", "question", "sentence"),
        ("index", "question", "sentence", "label"),
        ("not_entailment", "entailment", "not_entailment"),
    ),
    "QQP": (
        ("id", "question1", "question2"),
        ("id", "question1", "question2", "is_duplicate"),
        "011",
    ),
    "RTE": (
        ("index", *PAIR),
        ("index", *PAIR, "label"),
        ("entailment", "not_entailment", "entailment"),
    ),
    "WNLI": (("index", *PAIR), ("index", *PAIR, "label"), "101"),
    "MNLI": (
        ("index", "promptID", *PAIR),
        ("index", "promptID", *PAIR, "gold_label"),
        ("neutral", "neutral", "entailment"),
    ),
}
LABEL_COLUMNS = ("label", "Quality", "score", "is_duplicate", "gold_label")


def write_tsv(path: Path, header: tuple[str, ...] | None, rows: list[list[str]]) -> None:
    lines = [*([header] if header else []), *rows]
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


def cells(columns: tuple[str, ...], number: int, label: str = "") -> list[str]:
    """One made-up row; a `"` is text in these files."""
    return [
        label if column in LABEL_COLUMNS else str(number) if column in ("index", "id")
        else f'the {column} "{number} invoice' for column in columns
    ]  # fmt: skip


@pytest.fixture
def glue_dir(tmp_path: Path) -> Path:
    """Small made-up GLUE files in the official layout."""
    root = tmp_path / "glue"
    for folder, (test, train, labels) in LAYOUT.items():
        (root / folder).mkdir(parents=True)
        rows = [cells(train, i, label) for i, label in enumerate(labels)]
        write_tsv(root / folder / "train.tsv", None if folder == "CoLA" else train, rows)
        names = ("matched", "mismatched") if folder == "MNLI" else ("",)
        for name in names:
            path = root / folder / f"test{'_' if name else ''}{name}.tsv"
            write_tsv(path, test, [cells(test, i) for i in range(ROWS)])
            dev = path.with_name(path.name.replace("test", "dev"))
            write_tsv(dev, None if folder == "CoLA" else train, rows)
    (root / "AX").mkdir()
    write_tsv(root / "AX" / "diagnostic.tsv", ("index", *PAIR), [
        cells(("index", *PAIR), i) for i in range(ROWS + 1)
    ])  # fmt: skip
    return root


def train(encoder: Path, glue_dir: Path, out: Path, *names: str) -> Path:
    cfg = outshine.TrainConfig(encoder=str(encoder), max_steps=2, batch_size=4, device="cpu")
    return outshine.train(outshine.glue(*names, data_dir=glue_dir), cfg, out=out).path


@pytest.fixture
def run(encoder: Path, glue_dir: Path, tmp_path: Path) -> Path:
    """A run on three of the tasks: two spellings of labels, and values."""
    return train(encoder, glue_dir, tmp_path / "run", "mnli", "mrpc", "stsb")


def files_of(path: Path) -> dict[str, list[list[str]]]:
    with zipfile.ZipFile(path) as archive:
        return {
            name: [line.split("\t") for line in archive.read(name).decode().splitlines()]
            for name in archive.namelist()
        }


def test_a_submission_has_eleven_files_with_ids_and_spellings_of_the_server(
    run: Path, glue_dir: Path, tmp_path: Path
) -> None:
    facts = submit(run, tmp_path / "glue.zip", glue_dir=glue_dir, fill="majority")
    files = files_of(tmp_path / "glue.zip")
    assert sorted(files) == sorted([
        "AX.tsv", "CoLA.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "MRPC.tsv", "QNLI.tsv", "QQP.tsv",
        "RTE.tsv", "SST-2.tsv", "STS-B.tsv", "WNLI.tsv",
    ])  # fmt: skip
    nli = {"entailment", "neutral", "contradiction"}
    spelled = {"MNLI-m": nli, "MNLI-mm": nli, "AX": nli, "MRPC": {"0", "1"}}
    for name, lines in files.items():
        count = ROWS + (name == "AX.tsv")
        assert lines[0] == ["index", "prediction"]
        assert [line[0] for line in lines[1:]] == [str(i) for i in range(count)]
        assert facts[name]["rows"] == count
        assert {line[1] for line in lines[1:]} <= spelled.get(
            name.removesuffix(".tsv"), {line[1] for line in lines[1:]}
        )


def test_predictions_are_those_of_predict(run: Path, glue_dir: Path, tmp_path: Path) -> None:
    submit(run, tmp_path / "glue.zip", glue_dir=glue_dir, fill="majority")
    files = files_of(tmp_path / "glue.zip")
    pairs = [tuple(cells(PAIR, i)) for i in range(ROWS + 1)]
    answers = outshine.load(run).predict(pairs, ["mnli"])
    assert [line[1] for line in files["AX.tsv"][1:]] == [a["mnli"]["label"] for a in answers]
    answers = outshine.load(run).predict(pairs[:ROWS], ["stsb"])
    for (_, found), answer in zip(files["STS-B.tsv"][1:], answers, strict=True):
        assert 0 <= float(found) <= 5
        assert float(found) == pytest.approx(min(max(answer["stsb"]["value"], 0), 5), abs=6e-4)
    strings = [tuple(cells(("#1 String", "#2 String"), i)) for i in range(ROWS)]
    answers = outshine.load(run).predict(strings, ["mrpc"])
    spelled = {"not_equivalent": "0", "equivalent": "1"}
    assert [line[1] for line in files["MRPC.tsv"][1:]] == [
        spelled[a["mrpc"]["label"]] for a in answers
    ]


def test_tasks_that_the_run_lacks_are_filled_with_what_is_commonest_in_train(
    encoder: Path, glue_dir: Path, tmp_path: Path
) -> None:
    run = train(encoder, glue_dir, tmp_path / "run", "rte")
    given = ("submit", run, "--out", tmp_path / "z.zip", "--glue-dir", glue_dir)
    result = command(*given, "--fill", "majority", "--json")
    files = files_of(tmp_path / "z.zip")
    wanted = {
        "CoLA": "1", "SST-2": "0", "MRPC": "1", "STS-B": "2.500", "MNLI-m": "neutral",
        "MNLI-mm": "neutral", "QNLI": "not_entailment", "QQP": "1", "WNLI": "1", "AX": "neutral",
    }  # fmt: skip
    facts = json.loads(result.stdout)
    for name, answer in wanted.items():
        assert {line[1] for line in files[f"{name}.tsv"][1:]} == {answer}
        assert facts[f"{name}.tsv"]["answered_by"] == answer
    assert facts["RTE.tsv"]["answered_by"] == "head"
    assert (
        "note: the run lacks cola, mnli, mrpc, qnli, qqp, sst2, stsb, wnli: these are filled with "
        "what is commonest in train, and say nothing about the model"
    ) in result.stderr


def test_a_dry_run_tells_what_would_answer_and_writes_nothing(
    run: Path, glue_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "glue.zip"
    given = ("submit", run, "--out", out, "--glue-dir", glue_dir, "--fill", "majority", "--json")
    wanted = command(*given).stdout
    out.unlink()
    monkeypatch.setattr(submission, "_all_answers", None)
    result = command(*given, "--dry-run")
    assert result.stdout == wanted
    assert f"The submission would be {out}" in result.stderr.splitlines()
    assert not out.exists()
    (glue_dir / "AX" / "diagnostic.tsv").unlink()
    assert "diagnostic.tsv is missing" in command(*given, "--dry-run", code=2).stderr


def test_the_command_of_the_docs_makes_a_submission(
    encoder: Path, glue_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parent.parent / "docs" / "exporting.md"
    found = re.search(r"^outshine (submit .*)$", page.read_text(encoding="utf-8"), re.M)
    assert found
    train(encoder, glue_dir, tmp_path / "runs" / "glue", "rte")
    monkeypatch.chdir(tmp_path)
    command(*found[1].split())
    assert len(files_of(tmp_path / "glue.zip")) == 11


def test_the_same_answers_give_the_same_bytes(run: Path, glue_dir: Path, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        submit(run, tmp_path / name, glue_dir=glue_dir, fill="majority")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_ax_may_stand_where_the_usual_download_has_it(glue_dir: Path) -> None:
    place = str(glue_dir / "AX" / "diagnostic.tsv")
    assert outshine.glue("mnli", data_dir=glue_dir)[0].files["ax"] == place
    usual = (glue_dir / "AX").rename(glue_dir / "diagnostic") / "diagnostic.tsv"
    (mnli, rte) = outshine.glue("mnli", "rte", data_dir=glue_dir)
    assert mnli.files["ax"] == str(usual)
    assert "ax" not in rte.files
    usual.unlink()
    assert outshine.glue("mnli", data_dir=glue_dir)[0].files["ax"] == place


def test_a_row_with_an_empty_text_is_answered(run: Path, glue_dir: Path, tmp_path: Path) -> None:
    path = glue_dir / "MRPC" / "test.tsv"
    lines = path.read_text().splitlines()
    lines[3] = lines[3].rsplit("\t", 1)[0] + "\t"
    path.write_text("\n".join(lines) + "\n")
    submit(run, tmp_path / "glue.zip", glue_dir=glue_dir, fill="majority")
    assert len(files_of(tmp_path / "glue.zip")["MRPC.tsv"]) == 1 + ROWS


def test_rows_of_the_hub_are_numbered_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def split_of(*names: str) -> Dataset:
        asked.append(names)
        return Dataset.from_dict(
            {"premise": ["a", "b"], "hypothesis": ["c", ""], "label": [-1] * 2}
        )

    monkeypatch.delenv("OUTSHINE_GLUE_DIR", raising=False)
    monkeypatch.setattr(submission, "data_set_split", split_of)
    (task,) = outshine.glue("mnli")
    found = [submission._read_test(part, task) for part in PARTS if part.task == "mnli"]
    assert found == [[("0", ("a", "c")), ("1", ("b", ""))]] * 3
    assert asked == [
        ("nyu-mll/glue", "mnli", "test_matched"),
        ("nyu-mll/glue", "mnli", "test_mismatched"),
        ("nyu-mll/glue", "ax", "test"),
    ]


# --- refusals ---------------------------------------------------------------------------------


@pytest.fixture
def refusal(run: Path, glue_dir: Path, tmp_path: Path) -> Callable[..., str]:
    """What `outshine submit` says on stderr; nothing is written."""

    def call(*args: str, run: Path = run) -> str:
        given = ("submit", run, "--out", tmp_path / "glue.zip", "--glue-dir", glue_dir)
        said = command(*given, *args, code=2).stderr
        assert not [*tmp_path.glob("*.zip")]
        return said.replace(str(tmp_path), "")

    return call


def test_lacking_tasks_are_refused_without_fill(refusal: Callable[..., str]) -> None:
    assert refusal() == (
        "cannot make a submission: the run lacks cola, sst2, qnli, qqp, rte, wnli, expected all "
        "of GLUE\nhint: `--fill majority` answers them with what is commonest in train\n"
    )


def test_an_unknown_fill_gets_a_did_you_mean(refusal: Callable[..., str]) -> None:
    assert refusal("--fill", "majorty") == (
        "cannot fill with 'majorty' (did you mean 'majority'?), expected majority\n"
        "hint: `--fill majority` answers with what is commonest in train\n"
    )


def test_all_missing_test_files_are_told_at_once(
    refusal: Callable[..., str], glue_dir: Path
) -> None:
    (glue_dir / "MNLI" / "test_mismatched.tsv").unlink()
    (glue_dir / "QQP" / "test.tsv").unlink()
    (glue_dir / "AX" / "diagnostic.tsv").unlink()
    assert refusal("--fill", "majority") == (
        "cannot make a submission: 3 problems\n"
        "  /glue/MNLI/test_mismatched.tsv is missing\n"
        "  /glue/QQP/test.tsv is missing\n"
        "  /glue/AX/diagnostic.tsv is missing\n"
        "hint: put the official files there; without --glue-dir and OUTSHINE_GLUE_DIR the hub is "
        "asked\n"
    )


def drop(lines: list[str]) -> list[str]:
    return lines[:3] + lines[4:]


def swap(lines: list[str]) -> list[str]:
    return [*lines[:2], lines[3], lines[2], *lines[4:]]


def tear(lines: list[str]) -> list[str]:
    return [*lines[:-1], lines[-1].split("\t")[0]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (drop, "cannot answer {}: index '3', expected '2' ({}:4)\n"),
        (swap, "cannot answer {}: index '2', expected '1' ({}:3)\n"),
        (tear, "cannot answer {}: 1 ragged rows, expected none ({})\n"),
        (lambda lines: lines[:1], "cannot answer {}: no row, expected 3,000 ({})\n"),
    ],
    ids=["dropped", "swapped", "torn", "empty"],
)
def test_test_files_with_rows_missing_are_refused(
    change: Callable[[list[str]], list[str]],
    problem: str,
    refusal: Callable[..., str],
    glue_dir: Path,
) -> None:
    path = glue_dir / "RTE" / "test.tsv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    place = "/glue/RTE/test.tsv"
    assert refusal("--fill", "majority") == problem.format(place, place) + GET_AGAIN


def test_a_shortened_official_file_is_refused_and_another_is_warned_about(
    refusal: Callable[..., str],
    run: Path,
    glue_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "glue.zip"
    given = ("submit", run, "--out", out, "--glue-dir", glue_dir, "--fill", "majority")
    said = command(*given).stderr
    assert "warning: not GLUE's own test rows, the server will refuse them: CoLA.tsv 6 of" in said
    assert "RTE.tsv 6 of 3,000" in said
    out.unlink()
    first = submission._digest(tuple(cells(PAIR, 0)))
    parts = [replace(part, first=first) if part.task == "rte" else part for part in PARTS]
    monkeypatch.setattr(submission, "PARTS", parts)
    assert refusal("--fill", "majority") == (
        "cannot answer /glue/RTE/test.tsv: 6 rows, expected 3,000 (/glue/RTE/test.tsv)\n"
        + GET_AGAIN
    )


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_official_file_is_told_by_its_first_row_and_refused_when_shortened(
    part: submission.Part, glue_dir: Path
) -> None:
    assert re.fullmatch(r"[0-9a-f]{12}", part.first)
    task = outshine.glue(part.task, data_dir=glue_dir)[0]
    path = task.files[part.split]
    made_up = submission._read_test(part, task)  # another first row: a file of the user's own
    assert part.first != submission._digest(made_up[0][1])
    official = replace(part, first=submission._digest(made_up[0][1]))
    with pytest.raises(UserError) as caught:
        submission._read_test(official, task)
    assert str(caught.value) == (
        f"cannot answer {path}: {len(made_up)} rows, expected {part.rows:,} ({path})\n"
        + GET_AGAIN.removesuffix("\n")
    )
    assert submission._read_test(replace(official, rows=len(made_up)), task) == made_up


def test_the_official_files_have_the_rows_that_are_expected() -> None:
    folder = os.environ.get("OUTSHINE_GLUE_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("OUTSHINE_GLUE_DIR names no folder: this test needs the real GLUE files")
    seen = 0
    for part in PARTS:
        task = outshine.glue(part.task, data_dir=folder)[0]
        if Path(task.files[part.split]).is_file():
            rows = submission._read_test(part, task)
            assert (len(rows), submission._digest(rows[0][1])) == (part.rows, part.first)
            seen += 1
    assert seen


def test_a_zip_that_exists_is_replaced_with_force_alone(
    run: Path, glue_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "glue.zip"
    out.write_text("mine")
    given = ("submit", run, "--out", out, "--glue-dir", glue_dir, "--fill", "majority")
    assert command(*given, code=2).stderr == (
        f"cannot write {out}: it exists already\n"
        "hint: choose another --out, or replace it with --force\n"
    )
    assert out.read_text() == "mine"
    command(*given, "--force")
    assert len(files_of(out)) == 11


@pytest.mark.parametrize("more", [(), ("--force",)])
def test_a_folder_is_refused_before_anything_is_answered(
    more: tuple[str, ...],
    run: Path,
    glue_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("outshine.submission.load", lambda *_, **__: pytest.fail("loaded"))
    given = ("submit", run, "--out", tmp_path, "--glue-dir", glue_dir, "--fill", "majority")
    assert command(*given, *more, code=2).stderr == (
        f"cannot write {tmp_path}: a folder, expected a file\nhint: name a file in it\n"
    )


def test_a_task_of_the_users_own_with_a_name_of_glue_is_refused(
    refusal: Callable[..., str], run: Path
) -> None:
    for path in (run / "config.json", run / "model" / "tasks.json"):
        content = read_json(path)
        for task in content["tasks"]:
            if task["name"] == "mrpc":
                task["labels"] = ["no", "yes"]
                task["label_values"] = {}
        write_json(path, content)
    assert refusal("--fill", "majority") == (
        "cannot answer GLUE's mrpc with the run's task of that name: labels no, yes, "
        "expected not_equivalent, equivalent\n"
        "hint: train on GLUE's own task, or give yours another name\n"
    )


def test_an_incomplete_run_is_refused(refusal: Callable[..., str], run: Path) -> None:
    (run / "run.json").unlink()
    assert "it is incomplete, expected a finished run" in refusal("--fill", "majority")


# --- the check --------------------------------------------------------------------------------

IDS = {part.name: ["0", "1", "2"] for part in PARTS}
GOOD = {
    "CoLA.tsv": "1", "SST-2.tsv": "0", "MRPC.tsv": "1", "STS-B.tsv": "2.500",
    "MNLI-m.tsv": "neutral", "MNLI-mm.tsv": "contradiction", "QNLI.tsv": "entailment",
    "QQP.tsv": "0", "RTE.tsv": "not_entailment", "WNLI.tsv": "1", "AX.tsv": "neutral",
}  # fmt: skip


def zip_with(changes: dict[str, str | None], header: str = "index\tprediction") -> io.BytesIO:
    """A good zip but for some files' contents (None: absent)."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, answer in GOOD.items():
            text = "".join(f"{line}\n" for line in [header, *(f"{i}\t{answer}" for i in range(3))])
            changed = changes.get(name, text)
            if changed is not None:
                archive.writestr(name, changed)
        for name in changes.keys() - GOOD.keys():
            archive.writestr(name, changes[name] or "")
    return content


def test_a_good_zip_passes() -> None:
    check_submission(zip_with({}), IDS)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"AX.tsv": None}, "AX.tsv is missing"),
        ({"notes.txt": "x"}, "notes.txt is unknown"),
        (
            {"RTE.tsv": "id\tlabel\n0\tentailment\n"},
            "header 'id\\tlabel', expected 'index\\tprediction' (RTE.tsv:1)",
        ),
        (
            {"RTE.tsv": "index\tprediction\n0\tentailment\n1\tentailment\n"},
            "2 rows, expected 3 (RTE.tsv)",
        ),
        (
            {"QQP.tsv": "index\tprediction\n0\t1\n2\t1\n1\t1\n"},
            "index '2', expected '1' (QQP.tsv:3)",
        ),
        (
            {"MRPC.tsv": "index\tprediction\n0\t1\n1\tequivalent\n2\t1\n"},
            "prediction 'equivalent', expected one of 0, 1 (MRPC.tsv:3)",
        ),
        (
            {"STS-B.tsv": "index\tprediction\n0\t5.2\n1\t1\n2\t1\n"},
            "label '5.2', expected a number from 0 to 5 (STS-B.tsv:2)",
        ),
    ],
)
def test_a_zip_that_the_server_would_not_take_is_refused(
    changes: dict[str, str | None], problem: str
) -> None:
    with pytest.raises(UserError) as caught:
        check_submission(zip_with(changes), IDS)
    assert str(caught.value) == f"cannot use the zip: {problem}\nhint: {NO_SUCH_ZIP}"


def test_all_problems_of_a_zip_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        check_submission(zip_with({"AX.tsv": None, "RTE.tsv": "x\n"}), IDS)
    assert str(caught.value).startswith("cannot use the zip: 2 problems\n  AX.tsv is missing\n  ")


def test_what_is_no_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "glue.zip"
    for make, found in (
        (lambda: path.write_text("hello"), "File is not a zip file"),
        (lambda: path.write_bytes(spoiled()), "Bad CRC-32 for file 'CoLA.tsv'"),
    ):
        make()
        with pytest.raises(UserError) as caught:
            check_submission(path, IDS)
        assert str(caught.value) == (
            f"cannot use {path}: {found}, expected a zip of text files\nhint: make it again"
        )
    path.unlink()
    with pytest.raises(UserError, match=r"^cannot read .*glue\.zip: no such file"):
        check_submission(path, IDS)


def spoiled() -> bytes:
    content = bytearray(zip_with({}).getvalue())
    place = content.index(b"index\tprediction")
    content[place : place + 5] = b"INDEX"
    return bytes(content)
