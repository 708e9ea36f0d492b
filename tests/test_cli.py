"""The command line: streams, exit codes, messages, and files that are whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from outshine.cli import _parse_stages, app
from outshine.runs import Run
from outshine.tasks import Task

COMMANDS = (
    "demo",
    "train",
    "distill",
    "eval",
    "logits",
    "predict",
    "calibrate",
    "export",
    "submit",
    "serve",
    "doctor",
    "tasks",
)
FEW_STEPS = ("--set", "max_steps=2", "--set", "batch_size=4", "--set", "device=cpu")


def outshine(*args: str | Path, stdin: str | bytes = "", code: int = 0) -> Result:
    """Runs a command in this process and checks its exit code."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def in_a_process(*args: str | Path, **options: Any) -> subprocess.Popen:
    """Starts a command in a process of its own."""
    code = "from outshine.cli import main; main()"
    command = [sys.executable, "-c", code, *(str(arg) for arg in args)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def answers_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Input that the tasks tickets and urgency (`body`) or duplicate can answer."""
    path = tmp_path / "rows.jsonl"
    lines = [
        {"id": "a", "body": "refund my invoice"},
        {"id": 7, "text_a": "the login", "text_b": "a crash"},
        {"body": "ünïcode 漢字", "left": "one", "right": "two"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


# --- help -------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    text = outshine("--help").stdout
    for command in COMMANDS:
        assert f"\n  {command} " in text
        assert "Usage: " in outshine(command, "--help").stdout


def test_help_imports_nothing_that_is_slow() -> None:
    code = (
        "import sys; from outshine.cli import main\n"
        "sys.argv[1:] = ['--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    slow = {"torch", "transformers", "numpy", "pydantic", "scipy", "rich.progress", "tokenizers"}
    assert not slow & set(done.stderr.split())


def test_version_is_data() -> None:
    from outshine import __version__

    assert outshine("--version").stdout == f"outshine {__version__}\n"


# --- errors -----------------------------------------------------------------------------------


def test_a_users_mistake_is_message_and_hint_on_stderr_and_exit_2() -> None:
    result = outshine("eval", "no/such/run", code=2)
    assert result.stdout == ""
    assert result.stderr == (
        "cannot open the run no/such/run: no such folder\nhint: check the path\n"
    )


def test_debug_shows_the_traceback() -> None:
    result = CliRunner().invoke(app, ["eval", "no/such/run", "--debug"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback (most recent call last)")
    assert result.stderr.endswith("hint: check the path\n")


def test_usage_errors_exit_2() -> None:
    assert "Did you mean 'train'?" in outshine("trian", code=2).stderr
    assert "Missing argument" in outshine("train", code=2).stderr
    assert "--max-length" in outshine("tasks", "check", "rte", "--max-length", "2", code=2).stderr


def test_an_unknown_task_is_met_with_a_name() -> None:
    assert (
        "unknown task 'colla' (did you mean 'cola'?)" in outshine("train", "colla", code=2).stderr
    )


def test_all_wrong_settings_are_told_at_once() -> None:
    result = outshine("train", "rte", "--set", "lrr=1", "--set", "epochs", code=2)
    assert result.stderr == (
        "cannot read the settings: 2 problems\n"
        "  --set 'lrr=1': unknown key 'lrr' (did you mean 'lr'?)\n"
        "  --set 'epochs', expected key=value\n"
        "hint: write for example `--set lr=1e-4`\n"
    )


def test_a_world_failure_is_message_and_hint_and_exit_1(student: Path, rows: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    result = outshine("predict", student, "--input", rows, "--output", "/dev/full", code=1)
    assert result.stderr.startswith("cannot write /dev/full: No space left on device\nhint: ")


def test_an_os_error_is_a_world_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device", "/some/file")

    monkeypatch.setattr("outshine.doctor.examine", fail)
    assert outshine("doctor", code=1).stderr == (
        "cannot read or write /some/file: No space left on device\n"
        "hint: check the disk and its permissions\n"
    )


def test_an_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("outshine.doctor.examine", interrupt)
    assert outshine("doctor", code=130).stderr == "interrupted\n"


# --- tasks ------------------------------------------------------------------------------------


def test_tasks_ls_lists_glue_and_the_demo() -> None:
    listed = json.loads(outshine("tasks", "ls", "--json").stdout)
    suites = {task["name"]: task["suite"] for task in listed}
    assert suites["rte"] == "GLUE"
    assert suites["trec"] == "TREC"
    assert "demo" in suites.values()
    table = outshine("tasks", "ls").stdout
    assert all(f" {name} " in table for name in suites)


def test_tasks_show_prints_a_task_file_that_reads_back(tmp_path: Path, duplicate: Path) -> None:
    for name in ("mnli", "stsb", "trec", "intent", str(duplicate)):
        path = tmp_path / "shown.toml"
        path.write_text(outshine("tasks", "show", name).stdout, encoding="utf-8")
        again = outshine("tasks", "show", path).stdout
        assert again == path.read_text(encoding="utf-8")
    assert Task.load(path) == Task.load(duplicate)


def test_tasks_check_counts_on_stdout_and_warns_on_stderr(tickets: Path, encoder: Path) -> None:
    result = outshine("tasks", "check", tickets, "--encoder", encoder, "--max-length", "6")
    assert "Rows of tickets" in result.stdout
    assert "Tokens per row" in result.stdout
    assert "warning: 48 of 48 train rows of tickets have over 6 tokens" in result.stderr
    report = json.loads(outshine("tasks", "check", tickets, "--json").stdout)
    assert {name: split["rows"] for name, split in report["splits"].items()} == {
        "train": 48,
        "dev": 24,
        "test": 8,
    }


# --- train ------------------------------------------------------------------------------------


def test_dry_run_shows_the_mixture_and_writes_no_run(
    tmp_path: Path, tickets: Path, student: Path, encoder: Path
) -> None:
    out = tmp_path / "run"
    cached = Run(student).predictions_path("tickets", "train")
    result = outshine(
        *("train", tickets, "--encoder", encoder, "--out", out, *FEW_STEPS, "--dry-run"),
        *("--json", "--teacher", f"tickets={student}"),
    )
    facts = json.loads(result.stdout)
    assert facts["steps"] == 2
    assert facts["tasks"]["tickets"]["rows"] == 48
    assert facts["tasks"]["tickets"]["teachers"] == [str(student)]
    assert "Mixture (preset bam-single, seed 1)" in result.stderr
    assert not out.exists()
    assert not cached.exists()


def test_dry_run_of_distill_shows_every_run_and_writes_none(
    tmp_path: Path, tickets: Path, duplicate: Path, encoder: Path
) -> None:
    out = tmp_path / "all"
    result = outshine(
        *("distill", tickets, duplicate, "--encoder", encoder, "--out", out, "--dry-run", "--json"),
        *("--set", "max_steps=2", "--set", "student.lr=3e-4"),
    )
    runs = json.loads(result.stdout)["runs"]
    assert [Path(run["out"]).name for run in runs] == ["tickets", "duplicate", "multi", "student"]
    assert [run["settings"]["lr"] for run in runs] == [5e-5, 5e-5, 1e-4, 3e-4]
    assert runs[-1]["tasks"]["tickets"]["teachers"] == [str(out / "teachers" / "tickets")]
    assert result.stderr.count("Mixture") == 4
    assert not out.exists()


def test_dry_run_refuses_what_train_would_refuse(tickets: Path, encoder: Path) -> None:
    args = ("train", tickets, "--encoder", encoder, "--dry-run", "--teacher")
    assert "no such file or folder" in outshine(*args, "tickets=/nowhere", code=2).stderr
    assert "expected TASK=TEACHER" in outshine(*args, "tickets", code=2).stderr
    assert "no such task, expected one of tickets" in outshine(*args, "rte=/x", code=2).stderr


def test_dry_run_takes_a_start_from_the_teachers_and_refuses_one_that_training_would(
    tmp_path: Path, tickets: Path, urgency: Path, student: Path, encoder: Path
) -> None:
    train = ("train", tickets, "--encoder", encoder, "--set", "init=teachers", "--dry-run")
    taught = (*train, "--json", "--teacher", f"tickets={student}")
    facts = json.loads(outshine(*taught).stdout)
    assert facts["settings"]["init"] == "teachers"
    assert facts["tasks"]["tickets"]["teachers"] == [str(student)]
    assert outshine(*train, code=2).stderr == (
        'cannot use init = "teachers": no teacher is given, expected one or more\n'
        "hint: give `--teacher TASK=RUN`, or start from the encoder\n"
    )
    other = outshine(*taught, "--set", "pooling=mean", code=2).stderr
    assert other.startswith(
        f"cannot start from the teacher {student} of 'tickets': pooling auto, expected mean\n"
    )
    distill = ("distill", tickets, urgency, "--encoder", encoder, "--out", tmp_path / "all")
    distill += ("--dry-run", "--json", "--set", "student.init=teachers")
    runs = json.loads(outshine(*distill).stdout)["runs"]
    assert [run["settings"]["init"] for run in runs] == ["encoder"] * 3 + ["teachers"]
    refused = outshine(*distill, "--set", "student.pooling=mean", code=2).stderr
    assert refused.startswith('cannot distil with init = "teachers": the teachers have pooling')


def test_set_wins_over_the_preset(tickets: Path, encoder: Path, tmp_path: Path) -> None:
    result = outshine(
        *("train", tickets, "--encoder", encoder, "--out", tmp_path / "run", "--dry-run"),
        *("--json", "--preset", "small-single", "--set", "batch_size=7", "--seed", "3"),
    )
    settings = json.loads(result.stdout)["settings"]
    assert (settings["lr"], settings["batch_size"], settings["seed"]) == (3e-4, 7, 3)


def test_train_eval_and_a_complete_run_is_not_overwritten(
    tmp_path: Path, tickets: Path, duplicate: Path, encoder: Path
) -> None:
    out = tmp_path / "run"
    train = ("train", tickets, duplicate, "--encoder", encoder, "--out", out, *FEW_STEPS)
    trained = outshine(*train, "--json")
    metrics = json.loads(trained.stdout)["metrics"]
    assert f"The run is in {out}" in trained.stderr
    result = json.loads(outshine("eval", out, "--json").stdout)
    assert result["tasks"] == {name: splits["dev"] for name, splits in metrics.items()}
    assert result["score"] == pytest.approx(
        (metrics["tickets"]["dev"]["accuracy"] + metrics["duplicate"]["dev"]["accuracy"]) / 2
    )
    shown = outshine("eval", out)
    assert shown.stderr == ""
    assert f"{100 * result['score']:.1f}" in shown.stdout

    before = (out / "run.json").read_bytes()
    refused = outshine(*train, code=2).stderr
    assert refused == (
        f"cannot write the run {out}: it is already complete\n"
        "hint: choose another --out, or replace it with --force\n"
    )
    assert (out / "run.json").read_bytes() == before
    quiet = outshine(*train, "--force", "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("", "")


def test_logits_writes_the_teacher_cache(tmp_path: Path, student: Path) -> None:
    copy = shutil.copytree(student, tmp_path / "run")
    written = json.loads(outshine("logits", copy, "--json").stdout)
    assert {name: entry["rows"] for name, entry in written.items()} == {
        "tickets": 48,
        "urgency": 48,
        "duplicate": 96,
    }
    assert all(Path(entry["path"]).is_file() for entry in written.values())


def test_logits_dry_run_counts_and_writes_nothing(tmp_path: Path, student: Path) -> None:
    copy = shutil.copytree(student, tmp_path / "run")
    before = sorted(copy.rglob("*"))
    done = outshine("logits", copy, "--dry-run")
    assert f"duplicate: logits of 96 rows would be in {copy}/predictions/dup" in done.stderr
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_exits_130_and_the_same_command_resumes(
    tmp_path: Path, tickets: Path, encoder: Path, asked: signal.Signals
) -> None:
    out = tmp_path / "run"
    log = out / "log.jsonl"
    train = ("train", tickets, "--encoder", encoder, "--out", out)
    train += ("--set", "max_steps=60", "--set", "epochs=60", "--set", "log_every=1")
    train += ("--set", "batch_size=4", "--set", "device=cpu")
    process = in_a_process(*train)
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(asked)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted at step" in stderr
    assert "Traceback" not in stderr
    assert Run(out).checkpoint_path.is_file()
    assert not Run(out).is_complete
    assert "it is incomplete" in outshine("eval", out, code=2).stderr
    assert f"resuming {out} at step " in outshine(*train).stderr
    assert Run(out).info()["steps"] == 60


# --- predict ----------------------------------------------------------------------------------


def test_predict_answers_with_all_heads_and_hands_ids_through(student: Path, rows: Path) -> None:
    result = outshine("predict", student, "--input", rows)
    first, second, third = answers_of(result)
    assert first.keys() == {"id", "tickets", "urgency"}
    assert first["id"] == "a"
    assert set(first["tickets"]) == {"label", "probs"}
    assert sum(first["tickets"]["probs"].values()) == pytest.approx(1.0)
    assert set(first["urgency"]) == {"value"}
    assert (second["id"], second.keys()) == (7, {"id", "duplicate"})
    assert third.keys() == {"tickets", "urgency", "duplicate"}
    assert result.stderr.splitlines() == [
        "note: duplicate did not answer 1 of 3 rows, which lack its texts",
        "note: tickets did not answer 1 of 3 rows, which lack its texts",
        "note: urgency did not answer 1 of 3 rows, which lack its texts",
    ]


def test_predict_reads_stdin_and_plain_lines_and_says_so(student: Path) -> None:
    plain = outshine("predict", student, "--task", "tickets", stdin="my login\nthe refund\n")
    objects = outshine(
        *("predict", student, "--task", "tickets"),
        stdin='{"id": 1, "text": "my login"}\n{"id": 2, "body": "the refund"}\n',
    )
    assert plain.stdout == objects.stdout
    assert len(answers_of(plain)) == 2
    assert "note: reading standard input as one text per line" in plain.stderr
    assert objects.stderr == ""


def test_predict_writes_the_file_that_it_would_print(
    tmp_path: Path, student: Path, rows: Path
) -> None:
    output = tmp_path / "deep" / "answers.jsonl"
    written = outshine("predict", student, "--input", rows, "--output", output)
    assert written.stdout == ""
    assert (
        output.read_text(encoding="utf-8") == outshine("predict", student, "--input", rows).stdout
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "x"}\n\n', "an empty line, expected a JSON object"),
        (b'{"text": "x"}\n[1]\n', "no JSON object, expected one JSON object a line"),
        (b'{"text": "x"}\n{"text": NaN}\n', "NaN is no JSON"),
        (b'{"text": "x"}\n{"id": 1e999, "text": "x"}\n', "1e999 is no finite number, expected"),
        (b'{"text": "x"}\n{"text": "\\ud800"}\n', "surrogates not allowed"),
        (b'{"text": "x"}\n{"text": "\xff"}\n', "invalid UTF-8, expected UTF-8"),
    ],
)
def test_predict_refuses_a_bad_line_with_its_place(
    tmp_path: Path, student: Path, content: bytes, message: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    stderr = outshine("predict", student, "--input", source, code=2).stderr
    assert stderr.startswith(f"cannot read {source}: ")
    assert message in stderr
    assert f"({source}:2)\nhint: " in stderr


def test_a_dry_run_of_predict_says_where_the_answers_would_go(
    tmp_path: Path, student: Path
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "my login"}\n', encoding="utf-8")
    given = ("predict", student, "--input", source, "--dry-run")
    result = outshine(*given, "--output", output)
    assert (result.stdout, result.stderr) == ("", f"The answers would go to {output}\n")
    assert outshine(*given).stderr == "The answers would go to standard output\n"
    assert [*tmp_path.iterdir()] == [source]
    outshine(*given, "--task", "duplicate", code=2)


def test_predict_refuses_missing_files_and_folders(tmp_path: Path, student: Path) -> None:
    missing = outshine("predict", student, "--input", tmp_path / "no.jsonl", code=2).stderr
    assert missing.startswith(f"cannot read {tmp_path / 'no.jsonl'}: no such file, expected")
    folder = outshine("predict", student, "--output", tmp_path, stdin="x\n", code=2).stderr
    assert f"\ncannot write {tmp_path}: a folder, expected a file\n" in folder


def test_predict_reads_and_writes_tables_by_ending_or_as_told(
    tmp_path: Path, student: Path
) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("id,body\na,my login\nb,the refund\n", encoding="utf-8")
    result = outshine("predict", student, "--input", source, "--output", output)
    told = outshine(
        *("predict", student, "--input-format", "csv", "--output-format", "csv"),
        stdin=source.read_bytes(),
    )
    assert told.stdout == output.read_text(encoding="utf-8")
    assert told.stdout.startswith("id,tickets.label,tickets.probs.billing,")
    assert result.stdout == ""
    outshine("predict", student, "--input", source, "--output", tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet" / "part-00000.parquet").is_file()
    assert "'xml'" in outshine("predict", student, "--input-format", "xml", code=2).stderr


def test_predict_tells_what_it_skipped_and_cut(tmp_path: Path, student: Path) -> None:
    source = tmp_path / "in.jsonl"
    lines = [*('{"body": ""}\n' * 22).splitlines(), json.dumps({"body": "now " * 200}), "{"]
    source.write_text("\n".join(lines), encoding="utf-8")
    args = ("predict", student, "--input", source, "--task", "tickets")
    assert "leave such rows out with `--on-error skip`" in outshine(*args, code=2).stderr
    result = outshine(*args, "--on-error", "skip")
    assert [answer["truncated"] for answer in answers_of(result)] == [True]
    notes = result.stderr.splitlines()
    assert notes[:3] == [
        'note: 1 of 24 rows was cut to 128 tokens ("truncated" in the output)',
        "note: 23 of 24 rows were skipped:",
        "  cannot answer row 1: column 'body' is '', expected a text that is not empty "
        f"({source}:1)",
    ]
    assert notes[-1] == "  and 3 more"
    source.write_text("{", encoding="utf-8")
    assert "note: 1 of 1 row was skipped:" in outshine(*args, "--on-error", "skip").stderr


def test_calibrate_prints_a_table_or_json_and_predict_uses_it(
    tmp_path: Path, student: Path, rows: Path
) -> None:
    run = Path(shutil.copytree(student, tmp_path / "run"))
    plain = answers_of(outshine("predict", run, "--input", rows))
    assert "calibrated: no temperatures" in outshine("predict", run, "--calibrated", code=2).stderr
    would = outshine("calibrate", run, "--dry-run")
    path = Run(run).calibration_path
    assert f"The temperatures would be in {path}" in would.stderr and not path.exists()
    table = outshine("calibrate", run)
    assert table.stdout == would.stdout
    assert "Expected calibration error on dev in percent, 15 bins" in table.stdout
    assert "note: urgency has no classes and is left as it is" in table.stderr
    found = json.loads(outshine("calibrate", run, "--json").stdout)
    assert found == json.loads(Run(run).calibration_path.read_text(encoding="utf-8"))
    found["tasks"]["tickets"]["temperature"] = 3.0  # of so small a run it may be 1
    Run(run).calibration_path.write_text(json.dumps(found), encoding="utf-8")
    warm = answers_of(outshine("predict", run, "--input", rows, "--calibrated"))
    assert warm[0]["tickets"]["label"] == plain[0]["tickets"]["label"]
    assert warm[0]["tickets"]["probs"] != plain[0]["tickets"]["probs"]


@pytest.mark.parametrize("damage", ["incomplete", "newer", "corrupted"])
def test_predict_refuses_a_run_that_is_not_sound(
    tmp_path: Path, student: Path, damage: str
) -> None:
    run = Path(shutil.copytree(student, tmp_path / "run"))
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    if damage == "incomplete":
        (run / "run.json").unlink()
        wanted = f"cannot open the run {run}: it is incomplete, expected a finished run\n"
    elif damage == "newer":
        (run / "run.json").write_text(json.dumps(info | {"format": 99}), encoding="utf-8")
        wanted = f"cannot open the run {run}: format 99, expected 1 ({run / 'run.json'})\n"
    else:
        weights = run / "model" / "heads.safetensors"
        os.truncate(weights, weights.stat().st_size - 8)
        wanted = f"cannot load the encoder in {run / 'model'}: "
    stderr = outshine("predict", run, stdin="x\n", code=2).stderr
    assert stderr.startswith(wanted) and "\nhint: " in stderr


def test_an_unmet_task_is_an_error(student: Path, rows: Path) -> None:
    unmet = outshine("predict", student, "--task", "duplicate", "--input", rows, code=2).stderr
    assert unmet.startswith("cannot answer row 1 for task 'duplicate': columns id, body, expected")
    unknown = outshine("predict", student, "--task", "ticket", "--input", rows, code=2).stderr
    assert unknown.startswith("unknown task 'ticket' (did you mean 'tickets'?)")


def test_a_closed_pipe_ends_predict_quietly(tmp_path: Path, student: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("my login\n" * 2100, encoding="utf-8")
    process = in_a_process("predict", student, "--input", source)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith('{"id": 1, "tickets"')
    process.stdout.close()
    assert "Error" not in process.stderr.read()
    assert process.wait(timeout=60) == 1


# --- doctor, distill --------------------------------------------------------------------------


def test_doctor_tells_and_does_not_ask_when_offline() -> None:
    facts = json.loads(outshine("doctor", "--json").stdout)
    assert facts["hub"]["answers"] is None
    assert facts["versions"]["torch"]
    assert facts["cache"]["path"] == os.environ["OUTSHINE_CACHE_DIR"]
    text = outshine("doctor").stdout
    assert "offline (not asked: HF_HUB_OFFLINE is set)" in text


def test_doctor_waits_no_longer_than_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.utils
    from huggingface_hub import constants

    from outshine.doctor import hub_answer

    class Silent:
        def head(self, *_args: Any, **_options: Any) -> None:
            time.sleep(5)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", Silent)
    begin = time.monotonic()
    assert hub_answer(0.2)["detail"] == "nothing within 0.2 seconds"
    assert time.monotonic() - begin < 2


def test_settings_are_told_apart_by_their_stage() -> None:
    given = ["single.lr=3e-4", "lr=1e-4", "student.anneal=constant", "task_weight={a=2.5}"]
    assert _parse_stages(given) == {
        "settings": {"lr": 1e-4, "task_weight": {"a": 2.5}},
        "single": {"lr": 3e-4},
        "multi": {},
        "student": {"anneal": "constant"},
    }


def test_distill_prints_the_results_as_json(
    tmp_path: Path, tickets: Path, duplicate: Path, encoder: Path
) -> None:
    out = tmp_path / "all"
    args = ("distill", tickets, duplicate, "--encoder", encoder, "--out", out, *FEW_STEPS)
    results = json.loads(
        outshine(*args, "--set", "single.max_steps=1", "--seed", "2", "--json").stdout
    )
    assert results["seed"] == 2
    assert Run(out / "teachers" / "tickets").info()["steps"] == 1
    assert Run(out / "student").info()["steps"] == 2
    assert Run(out / "student").config()["settings"]["seed"] == 2
    assert (
        "expected a folder, a hub id or `builtin`"
        in outshine(*("distill", tickets, duplicate, "--out", tmp_path / "x"), code=2).stderr
    )
