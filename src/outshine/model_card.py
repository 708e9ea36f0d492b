"""The model card of an export: README.md with the metadata that the hub reads.

All of it comes from the run's own files; what a run does not measure, the card says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from outshine.encoders import BUILTIN
from outshine.runs import Run
from outshine.tasks import Task, kind_of

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
_LIBRARIES = {"student": "outshine", "classifier": "transformers", "onnx": "onnx"}
# What the hub calls our metrics.
_HUB_METRICS = {
    "f1_macro": "f1",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}


def write_card(folder: Path, run: Run, tasks: Sequence[Task], form: str) -> None:
    """Writes `README.md`.

    Args:
        folder: The export.
        run: Where it comes from.
        tasks: The tasks that the folder answers.
        form: `student` (all tasks, with a folder for each), `classifier` (one of them), `onnx`.
    """
    from huggingface_hub import ModelCard

    info, config, settings = run.info(), run.config(), run.config()["settings"]
    encoder = public_name(settings["encoder"])
    teachers = config.get("teachers", {})
    scores = list(_scores(run, tasks, info.get("teacher_metrics", {})))
    all_tasks = [task.name for task in run.tasks()]
    names = [task.name for task in tasks]
    card = ModelCard.from_template(
        _metadata(info, encoder, tasks, scores, form),
        template_path=str(TEMPLATE),
        title=f"Outshine: {', '.join(names)}",
        form=form,
        tasks=tasks,
        describe=lambda task: kind_of(task).describe_gold(task),
        others=[name for name in all_tasks if name not in names],
        all_tasks=all_tasks,
        scores=scores,
        taught=any(row["teacher"] is not None for row in scores),
        data={task.name: _data(task, info, teachers) for task in tasks},
        distilled=any(name in teachers for name in all_tasks),
        calibrated=run.calibration_path.exists(),
        settings=settings,
        encoder=encoder,
        builtin=encoder == BUILTIN,
        info=info,
        example=_example(tasks[0], "[{}]", "[({}, {})]"),
        pipeline_example=_example(tasks[0], "{}", '{{"text": {}, "text_pair": {}}}'),
        tokenizer_example=_example(tasks[0], "{}", "{}, {}"),
    )
    (folder / "README.md").write_text(card.content + "\n", encoding="utf-8")


def public_name(location: str) -> str:
    """The last part of a path on this machine; hub ids and `builtin` as they are."""
    local = location != BUILTIN and (Path(location).is_absolute() or Path(location).exists())
    return Path(location).name if local else location


def _metadata(
    info: dict[str, Any],
    encoder: str,
    tasks: Sequence[Task],
    scores: list[dict[str, Any]],
    form: str,
) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=row["task"],
            dataset_name=row["task"],
            dataset_split=row["split"],
            metric_type=_HUB_METRICS.get(row["metric"], row["metric"]),
            metric_name=row["metric"],
            metric_value=row["value"],
        )
        for row in scores
    ]
    return ModelCardData(
        model_name=f"outshine-{info['id']}",
        library_name=_LIBRARIES[form],
        pipeline_tag="text-classification",
        tags=["outshine", "multi-task-learning", "knowledge-distillation"],
        base_model=encoder if "/" in encoder else None,
        datasets=sorted({task.hub for task in tasks if task.hub}) or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        eval_results=results or None,
    )


def _scores(run: Run, tasks: Sequence[Task], taught: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per task, split and metric, with the number of rows behind it."""
    metrics = run.metrics()
    for task in tasks:
        for split, values in metrics.get(task.name, {}).items():
            for metric in task.metrics:
                row = {"task": task.name, "split": split, "metric": metric}
                yield row | {
                    "value": values[metric],
                    "teacher": taught.get(task.name, {}).get(split, {}).get(metric),
                    "n": values["n"],
                    "constant": "constant_prediction" in values,
                }


def _data(task: Task, info: dict[str, Any], teachers: dict[str, list[str]]) -> dict[str, str]:
    return {
        "source": f"{task.hub} {task.hub_config}".strip() or "local files",
        "fingerprint": info["data"][task.name]["train"][:12],
        "teachers": ", ".join(map(public_name, teachers.get(task.name, []))) or "gold alone",
    }


def _example(task: Task, single: str, pair: str) -> str:
    texts = [f'"{column} ..."' for column in task.text]
    return (single if len(texts) == 1 else pair).format(*texts)
