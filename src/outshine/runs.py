"""A run's folder: its names, whether it is complete, and who may write to it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outshine.errors import UserError
from outshine.files import read_json, world_errors, write_json
from outshine.hub import asking_the_hub
from outshine.tasks import Task, stored_tasks

FORMAT = 1
# Of an export's repository, without the folders that are for transformers alone.
_OF_A_RUN = ["config.json", "run.json", "metrics.json", "calibration.json", "model/*"]


@dataclass(frozen=True)
class Run:
    """One training run on disk; complete if and only if `run.json`, written last, exists.

    Attributes:
        path: Its folder.
        hub: Its name on the hub, in whose cache the folder is then: it is only read.
    """

    path: Path
    hub: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether training, evaluation and saving have all ended."""
        return (self.path / "run.json").is_file()

    @property
    def model_dir(self) -> Path:
        """Encoder, heads, tasks and tokenizer."""
        return self.path / "model"

    @property
    def checkpoint_path(self) -> Path:
        """State of an interrupted training; exists only until the run is complete."""
        return self.path / "checkpoint" / "state.safetensors"

    @property
    def log_path(self) -> Path:
        """One JSON line per logged step."""
        return self.path / "log.jsonl"

    @property
    def calibration_path(self) -> Path:
        """One temperature per task with classes; exists once the run is calibrated."""
        return self.path / "calibration.json"

    def check_own(self, what: str) -> None:
        """Refuses to write to a run of the hub.

        Args:
            what: What cannot be done, such as `keep the logits`.

        Raises:
            UserError: If it is one.
        """
        if self.hub:
            raise UserError(
                f"cannot {what} of {self.hub}: a run of the hub, expected a folder of yours",
                f"`hf download {self.hub} --local-dir FOLDER`, and give that folder",
            )

    def predictions_path(self, task: str, split: str) -> Path:
        """The file with one task's logits on one split."""
        return self.path / "predictions" / f"{task}-{split}.safetensors"

    def info(self) -> dict[str, Any]:
        """Content of `run.json`."""
        return read_json(self.path / "run.json", "format", "id")

    def config(self) -> dict[str, Any]:
        """Content of `config.json`: `settings`, `tasks`, `teachers`."""
        return read_json(self.path / "config.json", "settings", "tasks")

    def max_length(self) -> int:
        """Tokens of a row in training; longer texts are cut.

        Raises:
            UserError: If `config.json` is damaged.
        """
        settings = self.config()["settings"]
        found = settings.get("max_length") if isinstance(settings, dict) else None
        if not isinstance(found, int):
            raise UserError(
                f"cannot load the run {self.path}: max_length {found!r}, expected a number "
                f"({self.path / 'config.json'}: settings)",
                "the file was changed: train the run again",
            )
        return found

    def metrics(self) -> dict[str, dict[str, dict[str, float]]]:
        """Content of `metrics.json`: task -> split -> metric -> fraction."""
        return read_json(self.path / "metrics.json")

    def add_metrics(self, scores: dict[str, dict[str, dict[str, float]]]) -> None:
        """Merges task -> split -> metric into `metrics.json`."""
        path = self.path / "metrics.json"
        known = self.metrics() if path.exists() else {}
        write_json(path, known | {t: known.get(t, {}) | splits for t, splits in scores.items()})

    def tasks(self) -> tuple[Task, ...]:
        """The tasks that the run was trained on, with their files.

        Raises:
            UserError: If `config.json` is damaged.
        """
        return stored_tasks(self.path / "config.json")


def is_run_config(path: Path) -> bool:
    """Whether a `config.json` is that of a run, not of a Hugging Face model."""
    content = read_json(path) if path.is_file() else None
    return isinstance(content, dict) and {"settings", "tasks"} <= content.keys()


def open_run(path: str | Path | Run) -> Run:
    """Returns a complete run: a folder, or a student that was pushed to the hub (`org/name`).

    The hub is asked where neither the folder nor the one around it exists.

    Raises:
        UserError: If there is no run at `path`, or it is incomplete, or of a newer format.
        WorldError: If the hub does not answer and the run was not downloaded before.
    """
    run = path if isinstance(path, Run) else _found(Path(path))
    if not run.path.is_dir():
        raise UserError(f"cannot open the run {run.path}: no such folder", "check the path")
    if not run.is_complete:
        begun = is_run_config(run.path / "config.json")
        found = "it is incomplete" if begun else "no run.json in it"
        raise UserError(
            f"cannot open the run {run.path}: {found}, expected a finished run",
            "give the same `outshine train` command again to resume it" if begun else "check it",
        )
    found_format = run.info()["format"]
    if found_format != FORMAT:
        raise UserError(
            f"cannot open the run {run.path}: format {found_format}, expected {FORMAT} "
            f"({run.path / 'run.json'})",
            "it was made by another version of outshine: update outshine, or train again",
        )
    return run


def _found(path: Path) -> Run:
    """The folder itself, or the one of the hub client's cache with what a run of the hub needs."""
    if path.is_absolute() or len(path.parts) != 2 or path.parent.exists():
        return Run(path)
    from huggingface_hub import snapshot_download

    with asking_the_hub(f"cannot open the run {path}", tried="no such folder, and "):
        return Run(Path(snapshot_download(str(path), allow_patterns=_OF_A_RUN)), hub=str(path))


def check_new(path: Path, force: bool) -> None:
    """Refuses an output folder that is a complete run (without `force`) or is no run at all."""
    run = Run(path)
    if run.is_complete and not force:
        raise UserError(
            f"cannot write the run {path}: it is already complete",
            "choose another --out, or replace it with --force",
        )
    if path.exists() and not path.is_dir():
        raise UserError(f"cannot write the run {path}: a file, expected a folder", "choose another")
    if path.is_dir() and not is_run_config(path / "config.json"):
        # a process that was killed at once has left its lock, or half of the file
        own = (".lock", ".config.json.")
        foreign = [entry.name for entry in path.iterdir() if not entry.name.startswith(own)]
        if foreign:
            raise UserError(
                f"cannot write the run {path}: the folder holds other files "
                f"({', '.join(sorted(foreign)[:3])}), expected none",
                "choose a new --out",
            )


def start_anew(run: Run) -> None:
    """Removes what a complete run holds, and the checkpoint of an incomplete one."""
    if run.is_complete:
        (run.path / "run.json").unlink()  # first: without it the rest counts for nothing
        for name in ("predictions", "model"):
            shutil.rmtree(run.path / name, ignore_errors=True)
    shutil.rmtree(run.path / "checkpoint", ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a folder for one writing process; the lock goes with the process."""
    with world_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"cannot write the run {path}: another process is writing it",
                "wait for it, or choose another --out",
            ) from None
        try:
            yield
        finally:
            (path / ".lock").unlink(missing_ok=True)
            with suppress(OSError):  # a folder in which nothing could be written goes, too
                path.rmdir()
    finally:
        os.close(handle)
