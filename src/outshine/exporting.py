"""A run for other programs: plain transformers folders, one ONNX graph, the hub.

Every export is compared with the run on 64 rows of each task before it takes its place; one that
differs leaves nothing behind.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outshine.classifiers import to_classifier
from outshine.console import show
from outshine.encoders import loading
from outshine.errors import UserError, did_you_mean
from outshine.files import read_json, replacing_folder, write_json
from outshine.hub import asking_the_hub
from outshine.model import MultiTaskModel, load_model, token_inputs
from outshine.model_card import public_name, write_card
from outshine.onnx_export import check_packages, write_onnx
from outshine.predicting import Predictor, load
from outshine.runs import Run, open_run
from outshine.tasks import Task
from outshine.texts import Texts
from outshine.verification import Sample, draw_sample, run_outputs

FORMATS = ("hf", "onnx")
FORMAT = 1
MARK = "export.json"
ROWS_PER_CALL = 16


def export(
    run: Run | str | Path,
    out: str | Path,
    *,
    format: str = "hf",
    task: str | None = None,
    int8: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Writes a finished run in a form that other programs load.

    `hf`: a folder per task that transformers' `AutoModelForSequenceClassification` loads, in
    `out`, which itself is the whole student, loadable by `outshine.load`, with a model card. With
    `task`, `out` is the folder of that task.
    `onnx`: `model.onnx` with one output per task, the tokenizer, and `tasks.json`.

    Args:
        run: The run or its folder.
        out: The folder to write; whole, or not at all.
        format: `hf` or `onnx`.
        task: The only task to export.
        int8: Also write `model.int8.onnx`, its weights in eight bits, and measure what that
            costs on dev (onnx).
        force: Whether an earlier export in `out` is replaced.
        dry_run: Whether to check what can be checked, and to write nothing; `verified` then
            has the tasks that would be, with nothing measured.

    Returns:
        The content of `export.json`: {"format", "kind", "run", "outshine", "verified": {task:
        {"rows", "dev_rows", "largest_difference"}}}, and with `int8` {"int8": {task: {"metric",
        "float32", "int8", "n"}}}.

    Raises:
        UserError: If the run is incomplete or damaged, the task or format unknown, the folder
            taken, or transformers has no class for the model (hf).
        WorldError: If the disk is full, or the export does not answer as the run does.
    """
    out = Path(out)
    if format not in FORMATS:
        raise UserError(
            f"cannot export: format {format!r}{did_you_mean(format, FORMATS)}, "
            f"expected {' or '.join(FORMATS)}",
            "`hf` is for transformers, `onnx` for ONNX Runtime",
        )
    if int8 and format != "onnx":
        raise UserError(
            f"cannot export to {format} with int8: expected format onnx", "add `--format onnx`"
        )
    opened = open_run(run)
    if format == "onnx":
        check_packages()
    _check_target(out, force)
    whole = format == "hf" and task is None
    predictor = load(opened, device="cpu", calibrated=whole and opened.calibration_path.exists())
    tasks = predictor.choose([task] if task else None)
    if whole and "model" in {task.name for task in tasks}:
        raise UserError(
            "cannot export task 'model' with the whole student: its folder is the student's own",
            "export each task by itself with --task",
        )
    model, tokenizer, _ = load_model(opened.model_dir)
    _set_inputs(tokenizer, model, predictor.max_length)
    if dry_run:
        if format == "hf":
            for each in tasks:
                to_classifier(model, each)
        return _facts(opened, format) | {"verified": {each.name: {} for each in tasks}}
    samples = [draw_sample(predictor, task) for task in tasks]
    with replacing_folder(out) as folder:
        if format == "hf":
            facts = _write_hf(opened, predictor, model, tokenizer, samples, folder, whole)
        else:
            facts = write_onnx(model, tokenizer, samples, folder, int8=int8)
            write_card(folder, opened, tasks, "onnx")
        content = _facts(opened, format) | _verified(samples, facts.pop("differences")) | facts
        write_json(folder / MARK, content)
    _show(content)
    return content


def _check_target(out: Path, force: bool) -> None:
    """Refuses a folder in use, but an earlier export with `force`."""
    what = f"cannot export to {out}"
    place = out.resolve()
    if Path.cwd().is_relative_to(place) or place.is_mount():
        raise UserError(
            f"{what}: the current folder, one above it or a mount point, expected a folder that "
            "can be replaced",
            "name a folder in it",
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MARK).is_file():
        found = "the folder holds other files" if out.is_dir() else "a file"
        raise UserError(f"{what}: {found}, expected none, or an earlier export", "choose another")
    if not force:
        raise UserError(
            f"{what}: it holds an export already",
            "choose another --out, or replace it with --force",
        )


def _set_inputs(tokenizer: Any, model: MultiTaskModel, max_length: int) -> None:
    """Makes the tokenizer give what the model takes, cut where the run cuts."""
    names = ["input_ids", "attention_mask"]
    if token_inputs(tokenizer, model):
        names.insert(1, "token_type_ids")
    tokenizer.model_input_names = names
    tokenizer.model_max_length = max_length
    tokenizer.init_kwargs |= {"model_input_names": names, "model_max_length": max_length}


def _facts(run: Run, format: str) -> dict[str, Any]:
    from outshine import __version__

    return {
        "format": FORMAT,
        "kind": format,
        "run": run.info()["id"],
        "outshine": __version__,
    }


def _verified(samples: Sequence[Sample], differences: dict[str, float]) -> dict[str, Any]:
    return {
        "verified": {
            sample.task.name: {
                "rows": len(sample.texts),
                "dev_rows": sample.num_dev,
                "largest_difference": differences[sample.task.name],
            }
            for sample in samples
        }
    }


# --- transformers -----------------------------------------------------------------------------


def _write_hf(
    run: Run,
    predictor: Predictor,
    model: MultiTaskModel,
    tokenizer: Any,
    samples: Sequence[Sample],
    folder: Path,
    whole: bool,
) -> dict[str, Any]:
    """Writes the classifiers, and the whole student around them; returns the differences."""
    what = "cannot export to hf"
    differences = {}
    for sample in samples:
        task = sample.task
        place = folder / task.name if whole else folder
        classifier = to_classifier(model, task)
        classifier.save_pretrained(place)
        tokenizer.save_pretrained(place)
        write_card(place, run, [task], "classifier")
        differences[task.name] = sample.difference(_hf_outputs(place, sample.texts), what)
    if whole:
        _write_student(run, predictor.tasks, folder)
        write_card(folder, run, predictor.tasks, "student")
        student = load(folder, device="cpu")
        for sample in samples:
            found = run_outputs(student, sample.task, sample.texts)
            differences[sample.task.name] = max(
                differences[sample.task.name], sample.difference(found, what)
            )
    return {"differences": differences}


@torch.no_grad()
def _hf_outputs(folder: Path, texts: Sequence[Texts]) -> np.ndarray:
    """(N, C) outputs of an exported folder, loaded as any program would load it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with loading(f"the exported model in {folder}"):
        classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    outputs = []
    for start in range(0, len(texts), ROWS_PER_CALL):
        rows = texts[start : start + ROWS_PER_CALL]
        columns = [list(column) for column in zip(*rows, strict=True)]
        inputs = tokenizer(*columns, truncation=True, padding=True, return_tensors="pt")
        outputs.append(classifier(**inputs).logits.double().numpy())
    return np.concatenate(outputs)


def _write_student(run: Run, tasks: Sequence[Task], folder: Path) -> None:
    """Copies what `outshine.load` reads, without the names of this machine's folders."""
    shutil.copytree(run.model_dir, folder / "model", dirs_exist_ok=True)
    config = run.config()
    settings = config["settings"]
    for key in ("encoder", "init"):
        settings[key] = public_name(settings[key])
    config["teachers"] = {
        name: [public_name(source) for source in sources]
        for name, sources in config.get("teachers", {}).items()
    }
    config["tasks"] = [_public_task(task) for task in tasks]
    write_json(folder / "config.json", config)
    info = {k: v for k, v in run.info().items() if k not in ("command", "identity")}
    write_json(folder / "metrics.json", run.metrics())
    if run.calibration_path.exists():
        shutil.copyfile(run.calibration_path, folder / run.calibration_path.name)
    write_json(folder / "run.json", info)


def _public_task(task: Task) -> dict[str, Any]:
    local = () if task.hub else ("files", "columns", "holdout")
    return task.without(*local)


# --- what people see --------------------------------------------------------------------------


def _show(content: dict[str, Any]) -> None:
    rows = [
        [name, str(facts["rows"]), str(facts["dev_rows"]), f"{facts['largest_difference']:.1e}"]
        for name, facts in content["verified"].items()
    ]
    show("Compared with the run", ["task", "rows", "of dev", "largest difference"], rows)
    if "int8" in content:
        rows = [
            [name, facts["metric"], *(f"{100 * facts[k]:.1f}" for k in ("float32", "int8")),
             f"{100 * (facts['int8'] - facts['float32']):+.1f}", str(facts["n"])]
            for name, facts in content["int8"].items()
        ]  # fmt: skip
        header = ["task", "metric", "float32", "int8", "difference", "n"]
        show("Dev scores of int8, in percent", header, rows)


# --- the hub ----------------------------------------------------------------------------------


def check_repository(folder: str | Path, repository: str) -> None:
    """Refuses an id that no repository of the hub can have; the hub itself is not asked.

    Raises:
        UserError: If it is none.
    """
    from huggingface_hub.utils import validate_repo_id

    with asking_the_hub(f"cannot push {folder} to {repository}"):
        validate_repo_id(repository)


def push_to_hub(folder: str | Path, repository: str) -> str:
    """Uploads an export to the hub as one commit; the repository is made when it is missing.

    What else the repository held, such as a task of an earlier export, is gone after that commit.

    Args:
        folder: What `export` wrote.
        repository: Its id, such as `org/name`.

    Returns:
        The address of the repository.

    Raises:
        UserError: If the folder is no export, or the repository's name is not allowed.
        WorldError: If the hub does not answer or does not let us write.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    read_json(folder / MARK, "format", "verified")
    with asking_the_hub(f"cannot push {folder} to {repository}"):
        api = HfApi()
        repository = api.create_repo(repository, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            delete_patterns="*",
            commit_message="Upload an export of Outshine",
        )
        return f"{api.endpoint}/{repository}"
