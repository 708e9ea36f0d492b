"""The whole story in a few minutes: five tasks of a support desk, one student for all of them."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from outshine.console import say
from outshine.distillation import STUDENT, Distillation, distill
from outshine.predicting import load
from outshine.tasks import Task

SUITE = Path(__file__).parent / "demo_suite"
TASKS = ("intent", "sentiment", "urgency", "duplicate", "answers")

# Passes as in the paper: three for one task, six for several. Chosen for single-task scores above
# 60 and less than 5 minutes on 2 cores with bf16; LOG.md, 2026-11-25 and 27, has what was tried.
_SINGLE = {"preset": "small-single", "lr": 3e-4, "epochs": 3.0, "batch_size": 16}
_MULTI = {"preset": "small-multi", "lr": 4e-4, "layer_decay": 0.8, "epochs": 6.0, "batch_size": 16}

_FRESH = (
    {"text": "Water drips from the ceiling onto your hub and it sparks, what do I do?"},
    {"text": "You billed me for Pro in March although I have been on Basic since January."},
    {
        "text": "Is there a way to see last winter's temperatures again?",
        "reply": "Yes: open the chart of a room and choose the year at the top.",
    },
)


def demo_tasks() -> list[Task]:
    """The five tasks of the suite that is shipped with the package (CC0)."""
    return [Task.load(SUITE / f"{name}.toml") for name in TASKS]


def demo_settings(seed: int) -> dict[str, Any]:
    """The settings of every stage, as `distill` takes them."""
    common = {"encoder": "builtin", "seed": seed}
    return {"settings": common, "single": _SINGLE, "multi": _MULTI, "student": {}}


def run_demo(out: str | Path = "outshine-demo", seed: int = 1, force: bool = False) -> Distillation:
    """Trains five teachers, a plain multi-task model and their student on the built-in encoder.

    Prints the table of scores and costs, three answers of the student, how to use it, and what
    one seed can show. Given the same folder again it takes seconds.

    Args:
        out: Folder of all the runs.
        seed: Of every run.
        force: Whether complete runs are trained anew.
    """
    made = distill(demo_tasks(), out=out, force=force, **demo_settings(seed))
    say("\nWhat the student says to texts that it has never seen:")
    for row, answer in zip(_FRESH, load(made.student).predict(_FRESH), strict=True):
        say("\n".join(["", *(f'{key}: "{text}"' for key, text in row.items())]))
        say(f"  {', '.join(map(_in_words, answer.items()))}")
    question = '{"text": "My card was charged twice"}'
    say(f"\nAsk it yourself:\n  echo '{question}' | {_as_called()} predict {made.student.path}")
    say(_what_one_seed_shows(made))
    return made


def _as_called() -> str:
    """The command `outshine` so that this shell finds it, also where its folder is not on PATH."""
    called, found = Path(sys.argv[0]), shutil.which("outshine")
    if called.name != "outshine" or (found and Path(found).resolve() == called.resolve()):
        return "outshine"
    return shlex.quote(str(called))


def _in_words(answer: tuple[str, dict[str, Any]]) -> str:
    name, content = answer
    if "value" in content:
        return f"{name} {content['value']:.1f}"
    return f"{name} {content['label']} ({content['probs'][content['label']]:.0%})"


def _what_one_seed_shows(made: Distillation) -> str:
    score = made.results["score"]
    gain = 100 * (score[STUDENT]["value"] - score["single"]["value"])
    error = 100 * max(score[arm]["standard_error"] for arm in (STUDENT, "single"))
    return f"""
What this shows: one model answers all five tasks, at the cost in the table. Its score is
{abs(gain):.1f} points {"above" if gain >= 0 else "below"} that of five models; so many dev rows \
tell each score to about ± {error:.1f}
(one standard error).

What it cannot show: which way of training is better. Each column is one run per model. Another
seed moves every cell, often by as much as the columns differ here: see for yourself with
`{_as_called()} demo --seed 2 --out {made.path}-2`. A claim needs many seeds and a test."""
