"""The rows of a study survive writers that are killed, and several at once."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from outshine import results
from outshine.errors import UserError, WorldError
from outshine.results import ROWS, Claims, Row, append_row, read_rows

ROW = Row(
    run="00000000000000aa",
    folder="runs/single-rte-seed1-00000000",
    stage="single",
    chain="single",
    tasks=("rte",),
    seed=1,
    metrics={"rte": {"dev": {"accuracy": 0.7, "f1": 0.5, "n": 277}}},
    degenerate={},
    settings={"lr": 1e-3},
    teachers={},
    steps=4,
    rows=32,
    tokens=320,
    train_s=1.5,
    seconds=2.0,
    curve=[[1, 0.7, 1.0, 1e-3]],
    mixture={"rte": {"rows": 48, "probability": 1.0, "passes": 0.7, "weight": 1.0}},
    versions={"outshine": "0.1.0"},
    git_commit=None,
    device="cpu",
    precision="fp32",
    num_threads=1,
    peak_memory_bytes=1,
    data={"rte": {"train": "a", "dev": "b"}},
)


def row(number: int) -> Row:
    return replace(ROW, run=f"{number:016x}", seed=number)


def test_a_row_comes_back_as_it_was_written(tmp_path: Path) -> None:
    append_row(tmp_path, ROW)
    found = read_rows([tmp_path])
    assert found == {ROW.run: ROW}
    assert found[ROW.run].home == tmp_path
    assert found[ROW.run].primary("rte") == 0.7
    line = json.loads((tmp_path / ROWS).read_text())
    assert list(line)[:2] == ["format", "run"]
    assert set(line) == set(asdict(ROW)) - {"home"}


def test_no_rows_are_no_error(tmp_path: Path) -> None:
    assert read_rows([tmp_path, tmp_path / "nowhere"]) == {}


@pytest.mark.parametrize("cut", [1, 20, 400])
def test_a_torn_last_line_is_passed_over_said_and_removed_by_the_next_writer(
    tmp_path: Path, cut: int, capsys: pytest.CaptureFixture[str]
) -> None:
    append_row(tmp_path, row(1))
    append_row(tmp_path, row(2))
    content = (tmp_path / ROWS).read_bytes()
    (tmp_path / ROWS).write_bytes(content[:-cut])
    assert list(read_rows([tmp_path])) == [row(1).run]
    assert "was cut off when its process died; passed over" in capsys.readouterr().err
    append_row(tmp_path, row(3))
    assert "was cut off when its process died; removed" in capsys.readouterr().err
    assert list(read_rows([tmp_path])) == [row(1).run, row(3).run]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["no keys", "no metrics"])
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    append_row(tmp_path, row(1))
    content = json.loads((tmp_path / ROWS).read_text()) | {"metrics": {}}
    with (tmp_path / ROWS).open("a") as file:
        file.write(json.dumps({"format": 1} if damage == "no keys" else content) + "\n")
    with pytest.raises(UserError) as caught:
        read_rows([tmp_path])
    assert caught.value.message == (
        f"cannot read the rows: a damaged line, expected one run's JSON ({tmp_path / ROWS}:2)"
    )


def test_rows_are_parsed_once_as_long_as_their_file_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_row(tmp_path, row(1))
    first = read_rows([tmp_path])
    with monkeypatch.context() as patch:
        patch.setattr(results, "_parsed", lambda *_: pytest.fail("parsed again"))
        assert read_rows([tmp_path]) == first
    append_row(tmp_path, row(2))
    assert list(read_rows([tmp_path])) == [row(1).run, row(2).run]
    assert list(first) == [row(1).run]


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / ROWS).write_text('{"format": 2}\n')
    with pytest.raises(UserError, match=r"cannot read the rows: format 2, expected 1 \(.*:1\)"):
        read_rows([tmp_path])


def test_rows_of_several_folders_merge_by_run(tmp_path: Path) -> None:
    here, there = tmp_path / "a", tmp_path / "b"
    for folder, numbers in ((here, (1, 2)), (there, (2, 3))):
        folder.mkdir()
        for number in numbers:
            append_row(folder, replace(row(number), device=folder.name))
    found = read_rows([here, there])
    assert {run: r.device for run, r in found.items()} == {
        row(1).run: "a",
        row(2).run: "a",
        row(3).run: "b",
    }
    assert found[row(3).run].home == there


_APPEND = """
import sys
from dataclasses import replace
from pathlib import Path
from test_results import row
from outshine.results import append_row
first, folder = int(sys.argv[1]), Path(sys.argv[2])
for number in range(first, first + 40):
    append_row(folder, replace(row(number), device="x" * 20_000))
"""


def test_processes_that_append_at_once_spoil_nothing(tmp_path: Path) -> None:
    here = Path(__file__).parent
    writers = [
        subprocess.Popen([sys.executable, "-c", _APPEND, str(first), str(tmp_path)], cwd=here)
        for first in (0, 100, 200)
    ]
    while any(writer.poll() is None for writer in writers):
        read_rows([tmp_path])
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len(read_rows([tmp_path])) == 120


_CLAIM = """
import sys
from pathlib import Path
from outshine.results import Claims
claims = Claims(Path(sys.argv[1]))
print(claims.take(sys.argv[2]), flush=True)
sys.stdin.readline()
"""


def test_a_claim_is_for_one_process_and_goes_with_it(tmp_path: Path) -> None:
    run, other = "ffffffffffffffff", "0000000000000003"
    holder = subprocess.Popen(
        [sys.executable, "-c", _CLAIM, str(tmp_path), run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    claims = Claims(tmp_path)
    assert not claims.take(run)
    assert claims.take(other)
    claims.release(other)
    holder.kill()
    holder.wait()
    assert claims.take(run)
    claims.close()


def test_a_file_system_without_locks_is_an_error_and_no_endless_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    claims = Claims(tmp_path)
    monkeypatch.setattr(results.fcntl, "lockf", no_locks)
    with pytest.raises(WorldError) as caught:
        claims.take(ROW.run)
    assert caught.value.message == (
        "cannot claim a run: No locks available, expected a file system with locks "
        f"({tmp_path / '.claims'})"
    )
    assert caught.value.hint == "choose a folder on a local disk, or on NFS 4"
    claims.close()
