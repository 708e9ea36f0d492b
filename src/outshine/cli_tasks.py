"""The commands `outshine tasks ls | show | check`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from outshine.command import (
    Encoder,
    GlueDir,
    Json,
    command,
    find_tasks,
    print_json,
    print_table,
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List tasks, show one as a task file, check its rows.",
)


@command(app, "ls")
def list_tasks(as_json: Json = False) -> None:
    """List the tasks that have a name."""
    from outshine.glue_tasks import named_tasks
    from outshine.tasks import kind_of

    if as_json:
        print_json([{"suite": suite, **task.without("files")} for suite, task in named_tasks()])
        return
    rows = [
        [
            task.name,
            suite,
            ", ".join(task.metrics),
            kind_of(task).describe_gold(task),
            str(len(task.text)),
        ]
        for suite, task in named_tasks()
    ]
    print_table("Tasks", ["task", "suite", "metrics", "labels", "texts"], rows, num_text=4)


@command(app, "show")
def show_task(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE")],
    glue_dir: GlueDir = None,
    as_json: Json = False,
) -> None:
    """Print a task as a complete task file."""
    if as_json:
        print_json(find_tasks([name], glue_dir)[0].model_dump(mode="json"))
        return
    print(find_tasks([name], glue_dir)[0].to_toml(), end="")


@command(app, "check")
def check_task(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE")],
    encoder: Encoder = None,
    max_length: Annotated[int, typer.Option(min=4, help="Tokens per row.")] = 128,
    glue_dir: GlueDir = None,
    as_json: Json = False,
) -> None:
    """Read and count all rows of a task.

    Tells label balance, lengths, truncation, repeated rows, and dev rows that stand in train.
    """
    from outshine import checks, encoders
    from outshine.console import say

    task = find_tasks([name], glue_dir)[0]
    tokenizer = encoders.load_tokenizer(encoders.locate(encoder)) if encoder else None
    report = checks.check_task(task, tokenizer, max_length)
    if as_json:
        print_json(report)
    else:
        _print_check(report)
    if not encoder:
        say("note: lengths in tokens and truncation need --encoder")
    for warning in checks.warnings_of(report):
        say(f"warning: {warning}")


def _print_check(report: dict[str, Any]) -> None:
    splits = report["splits"]
    columns = {
        "rows": "rows",
        "skipped": "skipped",
        "unlabelled": "no label",
        "duplicates": "repeated",
        "in_train": "in train",
        "truncated": "truncated",
    }
    rows = [[split, *(_cell(facts.get(key)) for key in columns)] for split, facts in splits.items()]
    print_table(f"Rows of {report['task']}", ["split", *columns.values()], rows)
    for key, title in (("balance", "Labels"), ("lengths", "Tokens per row")):
        names = list(dict.fromkeys(name for facts in splits.values() for name in facts[key]))
        rows = [
            [split, *(_cell(facts[key].get(name)) for name in names)]
            for split, facts in splits.items()
            if facts[key]
        ]
        if rows:
            print_table(title, ["split", *names], rows)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
