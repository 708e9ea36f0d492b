"""What is left of a study, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outshine.analysis import seed_warnings
from outshine.graph import Node
from outshine.study import Study, chosen_seeds, seconds_left, to_make


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
