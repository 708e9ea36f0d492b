"""A study's report for a terminal, in Markdown, LaTeX, CSV, JSON and HTML.

All formats show one dict. Rendering computes nothing: what a reader sees stands in the dict.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from outshine.console import table
from outshine.errors import UserError, did_you_mean
from outshine.files import replacing
from outshine.report_tables import Section, Table, sections, stats_of, summary, tasks_of

BRIEF = ("scores", "comparisons", "degenerate")
PAPER = (*BRIEF, "mixture", "statistics")
SUFFIXES = {"markdown": ".md", "latex": ".tex", "csv": ".csv", "json": ".json", "html": ".html"}


def render(data: Mapping[str, Any], format: str) -> str:
    """The report as text that ends with a newline.

    Args:
        data: Plain JSON data, scores in percent: what `analysis.analyse` returns, and
            {"study": name, "metrics": {task: name}, "dev_rows": {task: count}, "seeds": [number],
            "teachers": policy, "file": text of the study file, "command": text, "made": date,
            "arms_info": {arm: {"chain", "tasks", "set"}}, "provenance": {"versions", "device",
            "precision", "num_threads", "encoder", "git_commits", "data": {task: {split:
            fingerprint}}, "train_s", "runs"}, "curves": [{"arm", "seed", "task" (None for
            several), "points": [[step, loss, gold_weight, lr]]}], "mixture": {arm: {task: {"rows",
            "probability", "passes", "weight"}}}, "degenerate": [{"arm", "seed", "task", "reason",
            "value"}]}.
        format: terminal, markdown, latex, csv, json or html.

    Raises:
        UserError: If there is no such format.
    """
    if format not in FORMATS:
        raise UserError(
            f"cannot render the report: format {format!r}{did_you_mean(format, FORMATS)}, "
            f"expected {', '.join(FORMATS)} (format)",
            "choose one of these",
        )
    return FORMATS[format](data)


def write_report(data: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes report.md, .tex, .csv, .json and .html into a folder, each whole or not at all."""
    texts = {folder / f"report{SUFFIXES[name]}": render(data, name) for name in SUFFIXES}
    for path, text in texts.items():
        with replacing(path) as file:
            file.write(text.encode())
    return list(texts)


def _terminal(data: Mapping[str, Any]) -> str:
    """The conclusion and the tables that carry it; the other formats have the rest."""
    from rich.console import Console

    # Without markup, since `[red]` may be the name of an arm; as wide as the tables are.
    out = io.StringIO()
    console = Console(
        file=out, width=10_000, markup=False, highlight=False, emoji=False, color_system=None
    )
    console.print(f"Study {data['study']}: {summary(data)}\n")
    for sentence in data["conclusion"]:
        console.print(sentence)
    for warning in data["warnings"]:
        console.print(f"warning: {warning}")
    for section in _chosen(data, BRIEF):
        console.print(f"\n{section.title}")
        for sentence in section.method:
            console.print(f"  {sentence}")
        for shown in section.tables:
            if shown.title:  # without one, a table begins with an empty line
                console.print()
            console.print(table(_title(shown), shown.header, shown.rows, shown.num_text))
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return "\n".join(lines) + "\n"


def _title(shown: Table) -> str:
    return ", ".join(filter(None, (shown.title, shown.note)))


def _chosen(data: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[Section]:
    return (section for section in sections(data) if section.key in keys)


def _markdown(data: Mapping[str, Any]) -> str:
    parts = [f"# Study {_md(data['study'])}", _md(summary(data))]
    parts.append(_md_list(data["conclusion"]))
    if data["warnings"]:
        parts += ["## Warnings", _md_list(data["warnings"])]
    for section in sections(data):
        parts += [f"## {section.title}", _md_list(section.method)]
        for shown in section.tables:
            parts += [f"### {_md(shown.title)}"] if shown.title else []
            parts += [_md(shown.note), _md_table(shown)]
    longest = max((len(run) for run in re.findall("`+", data["file"])), default=0)
    fence = "`" * max(3, longest + 1)
    parts += ["## Study file", f"{fence}toml\n{data['file'].rstrip()}\n{fence}"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _md_list(sentences: Sequence[str]) -> str:
    return "\n".join(f"* {_md(sentence)}" for sentence in sentences)


def _md_table(shown: Table) -> str:
    ruler = ["---" if i < shown.num_text else "---:" for i in range(len(shown.header))]
    lines = [[_md(name) for name in shown.header], ruler]
    lines += [[_md(cell) for cell in row] for row in shown.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md(text: str) -> str:
    r"""Text that Markdown shows as it is: `c_d` becomes `c\_d`."""
    return re.sub(r"([\\`*_<&|\[\]~$]|^[#>+=-](?=\s))", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


LATEX = {
    **{character: f"\\{character}" for character in "{}$&#_%"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
}


# Columns that are no wider than a page's text, and the size for them; the last for more.
LATEX_SIZES = (
    (4, r"\small"),
    (6, r"\footnotesize\setlength{\tabcolsep}{3pt}"),
    (9, r"\scriptsize\setlength{\tabcolsep}{2pt}"),
)


def _latex(data: Mapping[str, Any]) -> str:
    """Tables for \\input in a paper, each kind after a paragraph on how it was made."""
    parts = [
        f"% Study {_one_line(data['study'])}: {summary(data)}",
        f"% {_one_line(data['command'])}",
        r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}.",
    ]
    for section in _chosen(data, PAPER):
        method = " ".join(f"{sentence.removesuffix('.')}." for sentence in section.method)
        parts.append(rf"{{\sloppy\paragraph{{{section.title}.}} {_tex(method)}\par}}")
        parts += [_latex_table(section, shown) for shown in section.tables]
    return "\n".join(parts) + "\n"


def _latex_table(section: Section, shown: Table) -> str:
    """A table whose remarks, such as the tests, are notes below it."""
    width = len(shown.header) - shown.num_remarks
    columns = "l" * shown.num_text + "r" * (width - shown.num_text)
    size = next((size for most, size in LATEX_SIZES if width <= most), LATEX_SIZES[-1][1])
    title = f"{section.title}: {_title(shown)}" if shown.title else section.title
    sides = zip(columns, shown.header, strict=False)  # names of remarks are left out
    head = " & ".join(_stacked(name, side) for side, name in sides)
    marks: dict[str, str] = {}
    body = []
    for line in shown.rows:
        first, *others = map(_tex, line[:width])
        remark = ", ".join(line[width:])
        if remark:
            mark = marks.setdefault(remark, ascii_lowercase[len(marks)])
            first += rf"\textsuperscript{{{mark}}}"
        body.append(" & ".join([first, *others]))
    return "\n".join(
        [
            r"\begin{table}",
            rf"\centering{size}",
            rf"\caption{{{_tex(title)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *(rf"{line} \\" for line in body),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\textsuperscript{{{mark}}} {_tex(text)}" for text, mark in marks.items()),
            r"\end{table}",
        ]
    )


def _stacked(name: str, side: str) -> str:
    """A column's name, its last word below the others."""
    above, space, last = name.rpartition(" ")
    return rf"\shortstack[{side}]{{{_tex(above)}\\{_tex(last)}}}" if space else _tex(name)


def _tex(text: str) -> str:
    escaped = "".join(LATEX.get(character, character) for character in _one_line(text))
    # a minus sign, not a hyphen, before a number
    return re.sub(r"(?<![\w)}])-(?=\d)", "$-$", escaped)


def _csv(data: Mapping[str, Any]) -> str:
    """One number a line, with all of its digits: what a spreadsheet or a data frame pivots."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "arm", "against", "task", "seed", "quantity", "value"])
    writer.writerows(_csv_rows(data))
    return out.getvalue()


def _csv_rows(data: Mapping[str, Any]) -> Iterator[list[Any]]:
    for arm in data["arms"]:
        for task in tasks_of(data):
            stats = stats_of(data, arm, task) or {"values": {}}
            for name, value in stats.items():
                if name != "values":
                    yield ["statistics", arm, "", task, "", name, value]
            for seed, value in stats["values"].items():
                yield ["values", arm, "", task, seed, "percent", value]
    for found in data["comparisons"]:
        for name, value in _flat(found):
            if name not in ("a", "b", "task"):
                yield ["comparisons", found["a"], found["b"], found["task"], "", name, value]
    for found in data["degenerate"]:
        for name in ("reason", "value"):
            place = found["arm"], "", found["task"], found["seed"]
            yield ["degenerate", *place, name, found[name]]
    for arm, mixture in data["mixture"].items():
        for task, part in mixture.items():
            yield from (["mixture", arm, "", task, "", name, part[name]] for name in part)
    yield from (["methods", "", "", "", "", *method] for method in data["methods"].items())


def _flat(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested objects and lists, named like `paired.p` and `ci.0`."""
    for name, value in found.items():
        if isinstance(value, list):
            value = {str(i): item for i, item in enumerate(value)}
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _html(data: Mapping[str, Any]) -> str:
    from outshine.report_html import page

    return page(data)


FORMATS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "terminal": _terminal,
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "json": _json,
    "html": _html,
}
