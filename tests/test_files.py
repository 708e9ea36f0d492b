"""Files are whole or absent, and a damaged one is told from a good one at every byte."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outshine import files
from outshine.errors import UserError, WorldError
from outshine.files import (
    digest,
    map_arrays,
    pack_strings,
    read_json,
    replacing_folder,
    unpack_strings,
    write_arrays,
    write_json,
)

ARRAYS = {
    "logits": np.arange(6, dtype=np.float32).reshape(3, 2),
    "offsets": np.arange(4),
    "nothing": np.zeros((0, 5), np.int32),
    "number": np.array(2.5),
    "flags": np.array([1, 0], np.uint8),
}


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    place = tmp_path / "place"
    for exists in (False, True):
        if exists:
            place.mkdir()
            (place / "old").touch()
        with monkeypatch.context() as patch, pytest.raises(WorldError) as e:
            patch.setattr(Path, "rename", busy)
            with replacing_folder(place) as made:
                (made / "new").touch()
        assert e.value.message == f"cannot write {place}: Device or resource busy"
        found = sorted(path.name for path in tmp_path.rglob("*"))
        assert found == (["old", "place"] if exists else [])


def test_a_folder_is_made_beside_its_place_however_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    (place / "old").mkdir(parents=True)
    (tmp_path / "link").symlink_to(place)
    for number, name in enumerate((".", "../place", "old/..", str(tmp_path / "link"))):
        monkeypatch.chdir(place)
        (place / "old").mkdir(exist_ok=True)
        with replacing_folder(Path(name)) as made:
            assert made.parent == tmp_path
            (made / str(number)).touch()
        assert [path.name for path in place.iterdir()] == [str(number)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "place"]


def test_arrays_come_back_memory_mapped_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.safetensors"
    write_arrays(path, ARRAYS, {"run": "é", "step": 3})
    arrays, metadata = map_arrays(path)
    assert metadata == {"run": "é", "step": 3}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)
    assert isinstance(arrays["logits"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        arrays["logits"][0, 0] = 1.0


def test_safetensors_itself_reads_what_is_written_and_the_other_way_round(tmp_path: Path) -> None:
    import safetensors.numpy

    write_arrays(tmp_path / "ours.safetensors", ARRAYS, {})
    theirs = safetensors.numpy.load_file(tmp_path / "ours.safetensors")
    safetensors.numpy.save_file(theirs, tmp_path / "theirs.safetensors")
    ours, metadata = map_arrays(tmp_path / "theirs.safetensors")
    assert metadata == {}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(theirs[name], array)
        np.testing.assert_array_equal(ours[name], array)


def test_an_array_that_is_not_contiguous_is_written_in_its_order(tmp_path: Path) -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_arrays(tmp_path / "a.safetensors", {"turned": turned}, {})
    np.testing.assert_array_equal(map_arrays(tmp_path / "a.safetensors")[0]["turned"], turned)


def test_every_truncation_of_a_safetensors_file_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays(path, ARRAYS, {"step": 3})
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(UserError) as caught:
            map_arrays(path)
        assert caught.value.message.startswith(f"cannot read {path}: ")
        assert caught.value.message.endswith(f", expected safetensors ({path})")
        assert caught.value.hint == "the file is damaged: remove it and let it be made again"


def test_no_changed_byte_of_the_header_ends_in_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays(path, {"logits": ARRAYS["logits"]}, {"step": 3})
    content = path.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for place in range(header_end):
        for value in (0, 0x39, 0x7B):
            path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            try:
                map_arrays(path)
            except UserError:
                refused += 1
    assert refused > header_end


def test_a_failing_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": True})

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(WorldError) as caught:
        write_json(path, {"new": True})
    assert str(caught.value) == (
        f"cannot write {path}: No space left on device\n"
        "hint: free some space, or choose a folder on another disk"
    )
    assert read_json(path) == {"old": True}
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert read_json(path) == 1
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_json_cannot_say_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not os.listdir(tmp_path)


# Arrays of every size around the buffers' sizes: the last bytes must not get lost.
LIMITED = """
import resource, sys, numpy as np
from pathlib import Path
from outshine.errors import WorldError
from outshine.files import write_arrays
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
path = Path(sys.argv[1]) / "a.safetensors"
for count in (480, 1100, 3000, 100_000):
    try:
        write_arrays(path, {"a": np.ones(count, np.float64)}, {})
    except WorldError as error:
        print(count, error.message.replace(sys.argv[1], ""), "|", error.hint)
    else:
        print(count, "written")
"""


def test_a_file_that_finds_no_space_is_never_cut_short(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    refused = (
        "cannot write /a.safetensors: File too large | "
        "free some space, or choose a folder on another disk"
    )
    assert result.stdout.splitlines() == [
        "480 written",
        *(f"{count} {refused}" for count in (1100, 3000, 100_000)),
    ]
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_read_json_names_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=f"^cannot read {path}: no such file\nhint: check the"):
        read_json(path)
    path.write_text('{"settings": 1}')
    assert read_json(path, "settings") == {"settings": 1}
    damaged = "hint: the file is damaged: make it again, or remove its folder"
    for text, found in (
        ('{"settings": 1}', "key 'tasks' missing"),
        ("[]", "no object"),
        ('{"sett', "Unterminated string starting at: line 1 column 2 (char 1)"),
        ("", "Expecting value: line 1 column 1 (char 0)"),
    ):
        path.write_text(text)
        with pytest.raises(UserError) as caught:
            read_json(path, "settings", "tasks")
        assert str(caught.value) == (
            f"cannot read {path}: {found}, expected JSON with 'settings', 'tasks' ({path})\n"
            f"{damaged}"
        )
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="can't decode byte 0xff in position 7"):
        read_json(path)
    with pytest.raises(UserError) as caught:
        read_json(tmp_path)
    assert str(caught.value) == (
        f"cannot read {tmp_path}: Is a directory\nhint: check the path and its permissions"
    )


@given(st.lists(st.text()))
def test_strings_come_back_from_their_packed_form(strings: list[str]) -> None:
    strings = [s.encode("utf-8", "ignore").decode() for s in strings]  # lone surrogates
    assert unpack_strings(*pack_strings(strings)) == strings


def test_digest_knows_content_and_not_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSHINE_CACHE_DIR", "/x/own")
    assert files.cache_dir() == Path("/x/own")
    monkeypatch.delenv("OUTSHINE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x/cache")
    assert files.cache_dir() == Path("/x/cache/outshine")
