"""Outshine: born-again multi-task learning for any Hugging Face encoder.

The public names are imported when they are first used, so that `import outshine` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outshine.config import TrainConfig as TrainConfig
    from outshine.distillation import distill as distill
    from outshine.errors import OutshineError as OutshineError
    from outshine.errors import UserError as UserError
    from outshine.errors import WorldError as WorldError
    from outshine.evaluation import evaluate as evaluate
    from outshine.exporting import export as export
    from outshine.findings import compare as compare
    from outshine.glue_tasks import glue as glue
    from outshine.launch import run_study as run_study
    from outshine.predicting import Predictor as Predictor
    from outshine.predicting import load as load
    from outshine.runs import Run as Run
    from outshine.soups import soup as soup
    from outshine.submission import submit as submit
    from outshine.tasks import Task as Task
    from outshine.training import train as train

_HOME = {
    "OutshineError": "errors",
    "Predictor": "predicting",
    "Run": "runs",
    "Task": "tasks",
    "TrainConfig": "config",
    "UserError": "errors",
    "WorldError": "errors",
    "compare": "findings",
    "distill": "distillation",
    "evaluate": "evaluation",
    "export": "exporting",
    "glue": "glue_tasks",
    "load": "predicting",
    "run_study": "launch",
    "soup": "soups",
    "submit": "submission",
    "train": "training",
}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'outshine' has no attribute {name!r}")
    return getattr(importlib.import_module(f"outshine.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
