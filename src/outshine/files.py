"""Files that are either whole or absent: JSON, and arrays in safetensors, memory-mapped.

Every write goes to a temporary file that is flushed to the disk and then renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from outshine.errors import UserError, WorldError

_DTYPES = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
_HEADER_LIMIT = 100_000_000


@contextmanager
def world_errors(path: Path) -> Iterator[None]:
    """Turns the system's error while writing `path` (full disk, ...) into a WorldError."""
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number is None:
            raise
        reason = os.strerror(number) if number else str(error)
        full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = (
            "free some space, or choose a folder on another disk"
            if full
            else "choose a folder that can be written"
        )
        raise WorldError(f"cannot write {path}: {reason}", hint) from error


def _error_number(error: Exception) -> int | None:
    """Number of a system error, 0 for one without number, None for other errors."""
    if isinstance(error, OSError):
        return error.errno or 0
    # safetensors and tokenizers tell it in the text of errors of their own
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that takes the place of `path` when the block ends without error."""
    with world_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            os.fchmod(handle, 0o644)
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Makes a temporary folder that takes the place of `path` when the block ends without error."""
    with world_errors(path):
        path = path.resolve()  # "." has no name, and would be its own parent
        path.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            made.chmod(0o755)
            yield made
            for file in made.rglob("*"):
                if file.is_file():
                    file.chmod(0o644)
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
            _take_place(made, path)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise


def _take_place(made: Path, path: Path) -> None:
    """Renames a folder, and removes what has had the name, but only after that."""
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        if path.exists():
            path.replace(old)
        made.rename(path)
    except BaseException:
        with suppress(OSError):
            old.rmdir()  # nothing was moved there
        if old.exists():
            old.replace(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_temporaries(folder: Path) -> None:
    """Removes what writers that were killed have left below a folder that nobody else writes."""
    for path in list(folder.rglob(".*")):
        if re.fullmatch(r"\..+\.[a-z0-9_]{8}", path.name):  # the names that tempfile makes
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    with replacing(path) as file:
        file.write(text.encode() + b"\n")


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turns an OSError while reading `path` into a UserError."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"cannot read {path}: no such file", "check the path") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(
            f"cannot read {path}: {reason}", "check the path and its permissions"
        ) from error


def read_json(path: Path, *keys: str) -> Any:
    """Reads JSON.

    Args:
        path: The file.
        *keys: What the file's object must have; without any, it may hold other JSON.

    Raises:
        UserError: If the file is missing or damaged, or lacks a key.
    """
    try:
        with read_errors(path):
            content = json.loads(path.read_text(encoding="utf-8"))
        if keys and not isinstance(content, dict):
            raise ValueError("no object")
        for key in keys:
            if key not in content:
                raise ValueError(f"key {key!r} missing")
    except ValueError as error:
        what = f"JSON with {', '.join(map(repr, keys))}" if keys else "JSON"
        raise UserError(
            f"cannot read {path}: {error}, expected {what} ({path})",
            "the file is damaged: make it again, or remove its folder",
        ) from None
    return content


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Writes named arrays as safetensors, whole or not at all, streaming from memory maps.

    Args:
        path: The file.
        arrays: Name -> array of float32, float64, int64, int32 or uint8.
        metadata: Put into the file's header as one JSON text.
    """
    names = {np.dtype(code): name for name, code in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"outshine": json.dumps(metadata)}}
    position = 0
    for name, array in arrays.items():
        end = position + array.nbytes
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            # not array.tofile, which does not notice when the last bytes find no space
            file.write(np.ascontiguousarray(array).data)


def map_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Opens a safetensors file as memory-mapped read-only arrays.

    Returns:
        The arrays by name, and the metadata given to `write_arrays` ({} for other files).

    Raises:
        UserError: If the file is missing, truncated or otherwise damaged.
    """
    hint = "the file is damaged: remove it and let it be made again"
    try:
        with read_errors(path), path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _HEADER_LIMIT):
                raise ValueError(f"{size} bytes with a header of {length}")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        arrays = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            dtype = np.dtype(_DTYPES[entry["dtype"]])
            shape = tuple(entry["shape"])
            if end - begin != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
                raise ValueError(f"array {name!r} has {end - begin} bytes for shape {shape}")
            if begin < 0 or 8 + length + end > size:
                raise ValueError(f"array {name!r} ends at byte {8 + length + end} of {size}")
            if begin == end:  # an empty file region cannot be mapped
                arrays[name] = np.zeros(shape, dtype)
            else:
                arrays[name] = np.memmap(path, dtype, "r", 8 + length + begin, shape)
        return arrays, json.loads(metadata.get("outshine", "{}"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = error if isinstance(error, ValueError) else "a damaged header"
        raise UserError(
            f"cannot read {path}: {found}, expected safetensors ({path})", hint
        ) from None


def pack_strings(strings: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Strings as one uint8 array and int64 offsets (N + 1), the form in which arrays hold them."""
    encoded = [string.encode() for string in strings]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(string) for string in encoded], out=offsets[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def unpack_strings(characters: np.ndarray, offsets: np.ndarray) -> list[str]:
    """The inverse of `pack_strings`."""
    content = characters.tobytes()
    bounds = offsets.tolist()
    return [content[start:stop].decode() for start, stop in pairwise(bounds)]


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """sha256 of plain data in canonical JSON, as hexadecimal text."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def cache_dir() -> Path:
    """Where encoded tables are kept: OUTSHINE_CACHE_DIR, else ~/.cache/outshine."""
    named = os.environ.get("OUTSHINE_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "outshine"
