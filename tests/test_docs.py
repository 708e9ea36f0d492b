"""The README and the docs: their commands run, their links lead somewhere.

Each page's `sh` and `python` blocks, and the cells of the notebook, run in order in a folder of
their own. Two things differ from
what a reader does: `builtin` is a tiny random encoder and training ends after three steps, so that
a page takes seconds; and `outshine` runs within this process, which spares its imports. A comment
on the line before a block leaves it out (`<!-- not run: reason -->`), or says that it needs the
GLUE files (`<!-- needs GLUE -->`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from outshine.cli import app
from reports import report
from test_layers import LAYERS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOK = ROOT / "docs" / "from-csv-to-served.ipynb"
FENCE = re.compile(
    r"(?P<mark><!--[^\n]*-->\n)?^```(?P<kind>sh|python)\n(?P<text>.*?)^```$", re.M | re.S
)
HEREDOC = re.compile(r"<<'(\w+)'")
FEW_STEPS = ["--set", "max_steps=3", "--set", "max_train_rows=64"]


@dataclass(frozen=True)
class Block:
    """One block of a page that is run."""

    line: int
    kind: str
    text: str
    needs_glue: bool


def blocks(page: Path) -> Iterator[Block]:
    content = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(content):
        mark = found["mark"] or ""
        if "not run:" not in mark:
            line = content.count("\n", 0, found.start("text")) + 1
            yield Block(line, found["kind"], found["text"], "needs GLUE" in mark)


def cells(kind: str) -> list[dict[str, Any]]:
    """The cells of the notebook that are `code` or `markdown`."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def prose(page: Path) -> str:
    """A page or the notebook without what is code."""
    if page == NOTEBOOK:
        return "\n\n".join("".join(cell["source"]) for cell in cells("markdown"))
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def with_tiny_encoder(code: str, encoder: Path) -> str:
    small = f'encoder="{encoder}", max_steps=3, max_train_rows=64'
    return code.replace('encoder="builtin"', small)


def commands(text: str) -> Iterator[str]:
    """The commands of a shell block, each with its continuation lines and here-document."""
    lines = iter(text.splitlines())
    for line in lines:
        command = line
        while command.endswith(("\\", "|")):
            command = command.removesuffix("\\") + next(lines)
        if heredoc := HEREDOC.search(line):
            while not command.endswith(f"\n{heredoc[1]}"):
                command += "\n" + next(lines)
        if command.strip() and not command.startswith("#"):
            yield command


def run_shell(text: str, encoder: Path) -> None:
    """Runs a block; what stands before `| outshine` is run by bash and becomes its input."""
    for command in commands(text):
        before, is_outshine, arguments = command.rpartition("outshine ")
        source, pipe, rest = before.rpartition("|")
        if is_outshine and not (rest if pipe else before).strip():
            given = bash(source) if pipe else ""
            words = shlex.split(arguments.replace("builtin", str(encoder)), comments=True)
            takes = ("train", "distill") if words[0] != "study" else ("plan", "run")
            short = words[0] in takes or (words[1] in takes and words[2].endswith(".toml"))
            words += FEW_STEPS if short else []
            result = CliRunner().invoke(app, words, input=given)
            assert result.exit_code == 0, f"{command}\n{result.output}"
        else:
            bash(command.replace('"builtin"', f'"{encoder}"'))


def bash(command: str) -> str:
    done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    "page", [page for page in PAGES if [*blocks(page)]], ids=lambda page: page.name
)
def test_the_commands_of_a_page_run(
    page: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    left_out = 0
    has_glue = Path(os.environ.get("OUTSHINE_GLUE_DIR") or "nowhere").is_dir()
    for block in blocks(page):
        if block.needs_glue and not has_glue:
            left_out += 1
            continue
        if block.kind == "sh":
            run_shell(block.text, encoder)
        else:
            text = with_tiny_encoder(block.text, encoder)
            exec(compile("\n" * (block.line - 1) + text, str(page), "exec"), names)
    if left_out:
        pytest.skip(f"all blocks ran but {left_out}, which read GLUE: set OUTSHINE_GLUE_DIR")


def test_the_notebook_runs_from_top_to_bottom_to_a_student_that_was_served(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells run in this process: a kernel and its client would bring 26 packages more."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    try:
        for number, cell in enumerate(cells("code"), start=1):
            code = with_tiny_encoder("".join(cell["source"]), encoder)
            exec(compile(code, f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    finally:
        server = names.get("server")
        if server and server.poll() is None:
            server.kill()
            server.communicate()
    assert names["server"].returncode == 0
    assert [sorted(answer) for answer in names["served"]] == [["id", "team", "urgency"]] * 2
    for served, answer in zip(names["served"], names["answers"], strict=True):
        assert served["team"]["probs"] == pytest.approx(answer["team"]["probs"], abs=1e-5)
        assert served["urgency"]["value"] == pytest.approx(answer["urgency"]["value"], abs=1e-4)


def test_the_notebook_is_committed_without_outputs() -> None:
    outputs = [(cell["outputs"], cell["execution_count"]) for cell in cells("code")]
    assert outputs == [([], None)] * len(outputs)


@pytest.mark.parametrize("page", [*PAGES, NOTEBOOK], ids=lambda page: page.name)
def test_the_links_of_a_page_lead_to_files_and_headings(page: Path) -> None:
    dead = []
    for target in re.findall(r"""(?:\]\(|src="|srcset=")([^)"\s]+)[)"]""", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize(
    "page",
    [page for page in (*PAGES, ROOT / "CHANGELOG.md") if page.name != "reference.md"],
    ids=lambda page: page.name,
)
def test_no_line_of_a_page_is_longer_than_100(page: Path) -> None:
    """But those of tables, of commands and of what scripts write between marks."""
    text = re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", "", prose(page), flags=re.S)
    assert [ln for ln in text.splitlines() if len(ln) > 100 and not ln.startswith("|")] == []


def anchors(page: Path) -> set[str]:
    """The names by which the headings of a page are linked."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def loaded(path: Path) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_reference_is_what_the_code_says() -> None:
    generate = loaded(ROOT / "docs" / "generate.py")
    assert generate.PAGE.read_text(encoding="utf-8") == generate.page()


def test_the_generated_results_are_what_the_reports_say() -> None:
    for path, text in loaded(ROOT / "results" / "report.py").pages().items():
        assert path.read_text(encoding="utf-8") == text


def test_the_results_have_every_study_with_its_encoder_command_and_verdict(tmp_path: Path) -> None:
    pages = loaded(ROOT / "results" / "report.py")
    pages.RESULTS = tmp_path
    for name in ("small-b", "small-a"):
        (tmp_path / name).mkdir()
        data = {**report(), "command": f"outshine study run {name}.toml --set num_threads=1"}
        data["provenance"] |= {"encoder": [name, "builtin"], "git_commits": ["5e0358e1aa7777"]}
        (tmp_path / name / "report.json").write_text(json.dumps(data))
        (tmp_path / name / "verdict.md").write_text(f"What {name} says.\n")
    found = {name: "\n".join(lines) for name, lines in pages.studies().items()}
    assert [*found] == ["small-a", "small-b"]
    for name, text in found.items():
        assert f"seeds of `studies/{name}.toml`, with {name}, builtin. Median" in text
        assert f"`studies/`: `outshine study run {name}.toml --set num_threads=1` on" in text
        assert text.index("| **score** |") < text.index(f"What {name} says.") < text.index("Tests:")
        assert "commit 5e0358e1aa;" in text
    (tmp_path / "small-a" / "verdict.md").unlink()
    with pytest.raises(FileNotFoundError, match=r"small-a/verdict\.md"):
        pages.studies()


def test_the_readme_shows_how_to_see_it_and_test_it() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^make demo\b", readme, re.M) and re.search(r"^make test\b", readme, re.M)
    marks = [f"<!-- {name}:{end} -->" for name in ("demo", "results") for end in ("begin", "end")]
    assert [readme.count(mark) for mark in marks] == [1, 1, 1, 1]


def test_the_output_in_the_readme_is_what_the_file_of_the_demo_says() -> None:
    spec = importlib.util.spec_from_file_location("report", ROOT / "results" / "report.py")
    assert spec and spec.loader
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    shown = report.demo()
    assert f"<!-- demo:begin -->\n{shown}\n<!-- demo:end -->" in report.README.read_text("utf-8")
    assert shown.startswith("```text\nDev scores in percent")
    assert "Ask it yourself" not in shown


def test_make_demo_and_the_readmes_pip_install_what_the_readmes_commands_need() -> None:
    readme, makefile = (
        ROOT.joinpath(name).read_text("utf-8") for name in ("README.md", "Makefile")
    )
    needed = {
        "demo": "--encoder builtin",
        "hub": "outshine distill mrpc",
        "onnx": "--format onnx",
        "serve": "outshine serve",
    }
    assert all(words in readme for words in needed.values())
    for text, before in ((readme, "pip install '."), (makefile, "-e '.")):
        extras = re.findall(re.escape(before) + r"\[([\w,]+)\]'", text)[0]
        assert set(extras.split(",")) == set(needed)


def test_the_design_lists_the_layers_that_are_tested() -> None:
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^    (\d+) +(.+)$", design, re.M)
    assert [(int(number), names) for number, names in rows] == list(enumerate(LAYERS))


def test_every_key_of_a_task_file_is_described() -> None:
    from outshine.tasks import Task

    page = (ROOT / "docs" / "own-tasks.md").read_text(encoding="utf-8")
    keys = {"hub_config": "config"}
    described = set(re.findall(r"`\[?(\w+)\]?`", page))
    missing = [key for key in Task.model_fields if keys.get(key, key) not in described]
    assert missing == []
