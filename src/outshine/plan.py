"""What is left of a study, and for how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outshine.analysis import seed_warnings
from outshine.degenerate import DIVERGED
from outshine.graph import Node
from outshine.results import Row
from outshine.runs import Run
from outshine.study import Study, chosen_seeds


def plan_facts(study: Study, seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """The runs of a study as plain data.

    Args:
        study: As `study.open_study` gives it.
        seeds: Some of its seeds; default: all.

    Returns:
        {"study", "path", "seeds", "runs", "done", "left", "seconds_left" (in one process, of the
        kinds that were measured), "unmeasured" (runs of other kinds), "kinds": [{"chain",
        "tasks", "runs", "done", "left", "seconds_left" (None: not measured)}], "to_make": [{"run",
        "folder", "chain", "tasks", "seed"}] in order, "choices" (see `graph.Graph`), "pending"
        (whether settings are still to be chosen), "warnings": [text]}.
    """
    chosen, rows = chosen_seeds(study, seeds), study.rows()
    nodes = study.graph.needed(chosen)
    left = to_make(study, chosen, rows)
    left_ids = {node.id for node in left}
    kinds: dict[tuple[str, tuple[str, ...]], list[Node]] = {}
    for node in nodes:
        kinds.setdefault((node.chain, tuple(task.name for task in node.tasks)), []).append(node)
    described = []
    for (chain, tasks), members in kinds.items():
        waiting = [node for node in members if node.id in left_ids]
        known, unknown = seconds_left(waiting, rows)
        described.append(
            {
                "chain": chain,
                "tasks": ", ".join(tasks),
                "runs": len(members),
                "done": len(members) - len(waiting),
                "left": len(waiting),
                "seconds_left": None if unknown else round(known, 1),
            }
        )
    known, unknown = seconds_left(left, rows)
    num_seeds = (len(study.spec.seeds),) * 2
    pairs = study.spec.compare
    shared = sum(
        name in study.spec.arm(b).tasks for a, b in pairs for name in study.spec.arm(a).tasks
    )
    return {
        "study": study.spec.name,
        "path": str(study.path),
        "seeds": list(chosen),
        "runs": len(nodes),
        "done": len(nodes) - len(left),
        "left": len(left),
        "seconds_left": round(known, 1),
        "unmeasured": unknown,
        "kinds": described,
        "to_make": [
            {
                "run": node.id,
                "folder": node.folder,
                "chain": node.chain,
                "tasks": [task.name for task in node.tasks],
                "seed": node.cfg.seed,
            }
            for node in left
        ],
        "choices": list(study.graph.choices),
        "pending": study.graph.pending,
        "warnings": [
            *(
                ["settings are still to be chosen: the runs that depend on them are not listed"]
                if study.graph.pending
                else []
            ),
            *(seed_warnings(num_seeds, len(pairs), "scores") if pairs else []),
            *(seed_warnings(num_seeds, shared, "tasks") if pairs else []),
        ],
    }


def to_make(study: Study, seeds: Sequence[int], rows: Mapping[str, Row]) -> list[Node]:
    """The runs that are left for these seeds, teachers before students.

    A run that has its row is done, unless a run that is left needs more of it than there is.
    """
    graph = study.graph
    reported = graph.reported(seeds) | graph.trials
    left: set[str] = set()
    nodes = graph.needed(seeds)
    for node in reversed(nodes):  # students first
        students = [child for child in graph.children(node) if child.id in left]
        if node.id not in rows:
            wanted = node.id in reported or bool(students)
        else:
            wanted = not all(serving(study, node, student, rows) for student in students)
        if wanted:
            left.add(node.id)
    return [node for node in nodes if node.id in left]


def serving(study: Study, node: Node, child: Node, rows: Mapping[str, Row]) -> Run | None:
    """A run with all that one which it teaches, or starts, needs of it, wherever it is.

    Args:
        study: The study.
        node: The run.
        child: The one that needs it.
        rows: Run id -> row; the folder of its row counts after the study's own.
    """
    row = rows.get(node.id)
    taught = [name for name, runs in child.teachers.items() if node.id in runs]
    for place in (study.path / node.folder, *([row.home / row.folder] if row else [])):
        run = Run(place)
        if not run.is_complete:
            continue
        if (run.model_dir / "tasks.json").exists() or DIVERGED in run.info():
            return run
        if not study.graph.needs_weights(node, child) and all(
            run.predictions_path(name, "train").exists() for name in taught
        ):
            return run
    return None


def seconds_left(left: Sequence[Node], rows: Mapping[str, Row]) -> tuple[float, int]:
    """Seconds that runs will take, one after another, as `seconds_of` expects.

    Returns:
        The sum over the runs that are like a measured one, and the number of the others.
    """
    expected = seconds_of(left, rows)
    return sum(expected.values(), 0.0), len(left) - len(expected)


def seconds_of(left: Sequence[Node], rows: Mapping[str, Row]) -> dict[str, float]:
    """Run id -> seconds that the run will take by what runs like it took, if there are any.

    A run is like another with the same stage, tasks, encoder and amount of work that also had, or
    had not, teachers.
    """
    measured: dict[tuple[Any, ...], list[float]] = {}
    for row in rows.values():
        key = _kind(row.stage, row.tasks, bool(row.teachers), row.settings)
        measured.setdefault(key, []).append(row.seconds)
    expected = {}
    for node in left:
        tasks = tuple(task.name for task in node.tasks)
        key = _kind(node.stage, tasks, bool(node.teachers), node.cfg.model_dump())
        if times := measured.get(key):
            expected[node.id] = sum(times) / len(times)
    return expected


def _kind(
    stage: str, tasks: tuple[str, ...], taught: bool, settings: Mapping[str, Any]
) -> tuple[Any, ...]:
    """What runs that take the same time have in common."""
    work = [settings[key] for key in ("epochs", "max_steps", "max_train_rows", "batch_size")]
    # rows have the name of an encoder's folder alone
    return stage, tasks, taught, Path(settings["encoder"]).name, *work
