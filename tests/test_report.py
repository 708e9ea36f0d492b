import csv
import io
import json
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from outshine.console import clock
from outshine.errors import UserError
from outshine.report import FORMATS, render, write_report
from outshine.report_figures import mixture_pictures, score_pictures, training_pictures
from outshine.report_tables import MINUS
from reports import ARMS, renamed, report

HOSTILE = 'a<b & c_d% [red] $x$ "q" | {e} \\ ^~'
VOID = {"meta"}


class Page(HTMLParser):
    """The texts of a page and its attributes; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def named(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return report()


@pytest.fixture(scope="module")
def html(data: dict[str, Any]) -> str:
    return render(data, "html")


def leaves(content: Any) -> Iterator[Any]:
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from leaves(value)
    elif content is not None:
        yield content


def forms(value: Any) -> set[str]:
    """How a value may be written."""
    if not isinstance(value, int | float):
        return {str(value)}
    digits = {f"{value:.2f}", f"{value:+.2f}", f"{value:.3g}", f"{value:,}", clock(value)}
    return {text.replace("-", MINUS) for text in digits}


def test_every_value_of_the_dict_stands_on_the_page(data: dict[str, Any], html: str) -> None:
    shown = "\n".join(Page(html).texts)
    names = [*data["arms"], *data["metrics"], *data["provenance"]["versions"], "train", "dev"]
    tables = {key: value for key, value in data.items() if key != "curves"}
    missing = [
        value
        for value in (*names, *leaves(tables))
        if not any(form in shown for form in forms(value))
    ]
    assert missing == []


@pytest.mark.parametrize("format", ["terminal", "markdown", "latex"])
def test_text_formats_show_scores_comparisons_and_degenerate_runs(
    data: dict[str, Any], format: str
) -> None:
    text = render(data, format).replace("$-$", "-").replace("\\textgreater{}", ">")
    for arm, found in data["arms"].items():
        assert f"{arm} against single" in text or arm == "single"
        for stats in found["tasks"].values():
            assert f"{stats['median']:.2f}" in text and f"{stats['std']:.2f}" in text
    for comparison in data["comparisons"]:
        assert comparison["test"] in text and f"{comparison['difference']:+.2f}" in text
        assert f"{comparison['p_holm']:.3g}" in text
    assert "one class predicted" in text and "72.33 " in text
    assert all(method in text.replace("\\%", "%") for method in data["methods"].values())


@pytest.mark.parametrize("format", ["terminal", "markdown", "html"])
def test_the_conclusion_and_the_warnings_come_before_the_tables(
    data: dict[str, Any], format: str
) -> None:
    text = render(data, format)
    told = [data["conclusion"][0], "5 seeds cannot", "54.12", "0.0317"]
    assert sorted(told, key=text.index) == told


def test_every_table_names_its_method(data: dict[str, Any]) -> None:
    method = data["methods"]["holm"]
    told = render(data, "latex").split("\\paragraph{")[1:]
    assert [part[: part.index(".}")] for part in told if "\\begin{table}" in part] == [
        "Dev scores",
        "Comparisons",
        "Degenerate runs",
        "Mixture",
        "All statistics",
    ]
    assert all(len(part.splitlines()[0]) > 60 for part in told) and method in told[1]
    # in Markdown the sentences on the method stand below the heading of a section
    parts = render(data, "markdown").split("\n## ")[2:-1]
    assert len(parts) == 8 and all(part.split("\n\n")[1].startswith("* ") for part in parts)
    sections = re.findall(r"<section.*?</section>", render(data, "html"), re.S)
    assert all('class="method"' in part for part in sections if "<table" in part)
    assert sum(method in part.replace("&#39;", "'") for part in sections) == 1


@pytest.mark.parametrize("old", ["multi", "rte"], ids=["an arm", "a task"])
def test_names_are_text_in_every_format(data: dict[str, Any], old: str) -> None:
    hostile = renamed(data, old, HOSTILE)
    page = Page(render(hostile, "html"))
    assert any(HOSTILE in text for text in page.texts)
    assert any(HOSTILE in label for label in page.named("aria-label"))
    tex = (
        r"a\textless{}b \& c\_d\% [red] \$x\$ \textquotedbl{}q\textquotedbl{} \textbar{} \{e\} "
        r"\textbackslash{} \textasciicircum{}\textasciitilde{}"
    )
    assert tex in render(hostile, "latex")
    assert r'a\<b \& c\_d% \[red\] \$x\$ "q" \| {e} \\ ^\~' in render(hostile, "markdown")
    assert HOSTILE in render(hostile, "terminal")
    rows = csv.DictReader(io.StringIO(render(hostile, "csv")))
    assert any(HOSTILE in row.values() for row in rows)


def test_a_name_cannot_bring_an_element_into_the_page(data: dict[str, Any], html: str) -> None:
    attack = '"><script>alert(1)</script><img src=x>'
    for old in (
        "multi",
        "rte",
        "one class predicted",
        "outshine study report studies/support.toml",
    ):
        assert Page(render(renamed(data, old, attack), "html")).tags == Page(html).tags


def test_the_page_loads_nothing(html: str) -> None:
    page = Page(html)
    assert "http" not in html and "@import" not in html and "script" not in page.tags
    assert page.named("src") == [] and "link" not in page.tags
    assert all(target.startswith("#") for target in page.named("href"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_the_page_can_be_read_aloud(html: str) -> None:
    page = Page(html)
    ids = page.named("id")
    assert len(ids) == len(set(ids))
    assert set(page.named("aria-labelledby")) <= set(ids)
    assert html.count('role="img" aria-label="') == html.count("<svg") > 0
    assert html.count("<caption") == html.count("<table")
    levels = [int(level) for level in re.findall(r"<h(\d)", html)]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))
    used = {target.removeprefix("#") for target in page.named("href")}
    assert used | set(re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_dict_gives_the_same_bytes(data: dict[str, Any], format: str) -> None:
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        again = render(json.loads(json.dumps(data)), format)
    assert again == render(data, format)


def test_rendering_leaves_the_dict_and_the_users_matplotlib_as_they_were(
    data: dict[str, Any],
) -> None:
    before, settings = json.dumps(data), dict(matplotlib.rcParams)
    for format in FORMATS:
        render(data, format)
    assert json.dumps(data) == before and dict(matplotlib.rcParams) == settings


@pytest.mark.parametrize("format", FORMATS)
def test_a_changed_median_changes_only_what_shows_it(format: str) -> None:
    texts = []
    for median in (33.1234, 98.7654):
        data = report()
        data["arms"]["multi"]["tasks"]["mrpc"]["median"] = median
        # the place of the bar, and the numbers on the axis, follow from the numbers shown
        text = re.sub(r"<svg.*?</svg>", "", render(data, format), flags=re.S)
        assert f"{median:.2f}" in text or str(median) in text
        texts.append(text.replace(str(median), "MEDIAN").replace(f"{median:.2f}", "MEDIAN"))
    assert texts[0] == texts[1]


def test_csv_has_every_number_with_all_digits(data: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(render(data, "csv"))))
    found = {
        (row["table"], row["arm"], row["against"], row["task"], row["seed"], row["quantity"]): row
        for row in rows
    }
    assert len(found) == len(rows)
    for arm, results in data["arms"].items():
        for task, stats in {**results["tasks"], "score": results["score"]}.items():
            for name in ("n", "median", "std") if stats else ():
                row = found["statistics", arm, "", task, "", name]
                assert float(row["value"]) == stats[name]
            for seed, value in stats["values"].items() if stats else ():
                assert float(found["values", arm, "", task, seed, "percent"]["value"]) == value
    for c in data["comparisons"]:
        place = "comparisons", c["a"], c["b"], c["task"], ""
        assert float(found[*place, "ci.1"]["value"]) == c["ci"][1]
        assert found[*place, "test"]["value"] == c["test"]
        assert ((*place, "paired.p") in found) == (c["paired"] is not None)
    assert float(found["mixture", "multi", "", "rte", "", "rows"]["value"]) == 1939
    assert found["degenerate", "single", "", "rte", "5", "reason"]["value"] == "one class predicted"
    methods = {row["quantity"]: row["value"] for row in rows if row["table"] == "methods"}
    assert methods == data["methods"]


def test_latex_environments_and_braces_are_balanced(data: dict[str, Any]) -> None:
    text = render(renamed(data, "multi", HOSTILE), "latex")
    stack: list[str] = []
    for verb, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if verb == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    bare = re.sub(r"\\[{}]", "", re.sub(r"^%.*", "", text, flags=re.M))
    assert bare.count("{") == bare.count("}")
    for columns, body in re.findall(
        r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S
    ):
        rows = re.findall(r"^(.*) \\\\$", body, re.M)
        assert rows and all(len(re.split(r"(?<!\\)&", row)) == len(columns) for row in rows)


def test_latex_has_the_tests_as_notes(data: dict[str, Any]) -> None:
    text = render(data, "latex")
    for found in re.findall(r"\\begin\{table\}(.*?)\\end\{table\}", text, re.S):
        body, _, notes = found.partition(r"\end{tabular}")
        told = dict(re.findall(r"^\\par\\textsuperscript\{(\w)\} (.*)$", notes, re.M))
        marks = re.findall(r"^[^&]*\\textsuperscript\{(\w)\} &", body, re.M)
        assert set(marks) == set(told)
        assert len(set(told.values())) == len(told)
        if "Comparisons" in found:
            assert len(marks) == len(re.findall(r" \\\\$", body, re.M)) - 1  # but the header
            assert any(name.startswith("Mann-Whitney U, exact") for name in told.values())
            assert "Mann-Whitney" not in body


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no pdflatex")
@pytest.mark.parametrize("name", ["multi", HOSTILE])
def test_latex_compiles_to_tables_no_wider_than_the_text(
    data: dict[str, Any], tmp_path: Path, name: str
) -> None:
    (tmp_path / "tables.tex").write_text(render(renamed(data, "multi", name), "latex"))
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\usepackage[T1]{fontenc}\n"
        "\\begin{document}\\input{tables}\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert name == HOSTILE or "Overfull" not in done.stdout


def test_json_is_the_dict(data: dict[str, Any]) -> None:
    assert json.loads(render(data, "json")) == data


@pytest.mark.parametrize("format", FORMATS)
def test_one_arm_with_one_seed_and_no_comparison_renders(format: str) -> None:
    data = report(("single",), ("rte",), 1, fewer=False)
    assert data["comparisons"] == [] and data["arms"]["single"]["score"]["std"] is None
    text = render(data, format)
    median = data["arms"]["single"]["tasks"]["rte"]["median"]
    assert f"{median:.2f}" in text or str(median) in text
    assert "±" not in text.split("(1)")[0].rpartition("\n")[2]


@pytest.mark.parametrize("format", ["terminal", "markdown", "html"])
def test_what_there_is_none_of_is_said(format: str) -> None:
    text = render(report(("single",), ("rte",), 2, fewer=False), format)
    assert "No arms are compared." in text and "No run is degenerate." in text


@pytest.mark.parametrize("format", FORMATS)
def test_numbers_that_do_not_exist_are_shown_as_absent(format: str) -> None:
    data = report()
    data["comparisons"][0] |= {"difference": None, "ci": None, "p": None, "p_holm": None}
    data["degenerate"][0]["value"] = None
    data["curves"][0]["points"][3][1:] = [None, None, None]
    text = render(data, format)
    assert not re.search(r"\bnan\b|\bNone\b", text, re.I if format != "html" else 0)


def test_an_arm_without_a_task_or_score_has_a_dash_and_no_strip(data: dict[str, Any]) -> None:
    row = next(line for line in render(data, "markdown").splitlines() if "| cola |" in line)
    assert row.endswith("| - |")
    panels = {picture.title: picture for picture in score_pictures(data)}
    assert "single-&gt;multi" not in panels["cola"].svg + panels["score"].svg
    assert "single-&gt;multi" in panels["rte"].svg


def test_every_seed_is_a_dot_and_a_degenerate_one_a_cross(data: dict[str, Any]) -> None:
    for picture in score_pictures(data):
        found = [
            results["score"] if picture.title == "score" else results["tasks"].get(picture.title)
            for results in data["arms"].values()
        ]
        crosses = len(re.findall(r"<use [^>]*var\(--alert\)", picture.svg))
        dots = len(re.findall(r"<use [^>]*fill: var\(--c\d\)", picture.svg))
        assert dots + crosses == sum(stats["n"] for stats in found if stats)
        assert crosses == (picture.title == "rte")


@pytest.mark.parametrize("format", FORMATS)
def test_an_arm_that_has_not_run_yet_is_shown_as_absent(format: str) -> None:
    data = report(fewer=False)
    data["arms"]["multi"] = {"tasks": {}, "score": None}
    data["mixture"]["multi"] = {}
    data["comparisons"] = [c for c in data["comparisons"] if c["a"] != "multi"]
    for curve in data["curves"]:
        if curve["arm"] == "multi":
            curve["points"] = []
    text = render(data, format)
    if format == "markdown":
        assert re.search(r"^\| score \| mean \|  \| [\d.]+ .* \| - \| [\d.]+ .* \|$", text, re.M)
    elif format == "html":
        assert len(re.findall("<svg", text)) == 5 + 2 + 2
    else:
        assert text


@pytest.mark.parametrize("format", FORMATS)
def test_a_task_without_any_run_yet_is_shown_as_absent(format: str) -> None:
    data = report()
    task = next(iter(data["metrics"]))
    for table in (data["metrics"], data["dev_rows"]):
        del table[task]
    for arm in data["arms"].values():
        arm["tasks"].pop(task, None)
    assert task in data["arms_info"][next(iter(data["arms"]))]["tasks"]
    assert render(data, format)


def test_a_score_without_values_has_no_panel() -> None:
    data = report(("single",), ("rte",), 2, fewer=False)
    data["arms"]["single"]["score"] = None
    assert [picture.title for picture in score_pictures(data)] == ["rte"]


def test_learning_curves_have_a_line_per_run_and_equal_schedules_are_drawn_once(
    data: dict[str, Any],
) -> None:
    pictures = {picture.title: picture for picture in training_pictures(data)}
    assert list(pictures) == list(ARMS)
    # 5 seeds and 4 tasks; lambda and learning rate, once for each task
    assert pictures["single"].svg.count("stroke-opacity: 0.5") == 5 * 4 + 2 * 4
    assert pictures["single->multi"].svg.count("stroke-opacity: 0.5") == 5 + 2
    assert [name for _, name in pictures["single"].legend] == list(data["metrics"])
    assert pictures["multi"].legend == ()


def test_arms_with_the_same_mixture_share_its_picture() -> None:
    pictures = list(mixture_pictures(report(fewer=False)))
    assert [picture.title for picture in pictures] == ["single", "multi, single->multi"]
    assert "7,301" in pictures[1].svg


def test_a_name_too_long_for_a_picture_ends_in_dots_and_stands_whole_on_the_page() -> None:
    name = "single->multi->" * 5 + "multi"
    data = renamed(report(), "multi", name)
    assert any("…" in picture.svg for picture in score_pictures(data))
    assert name in "\n".join(Page(render(data, "html")).texts)


def test_letters_that_matplotlib_lacks_give_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "教師" in render(renamed(report(), "multi", "教師"), "html")


def test_every_colour_is_the_pages(html: str) -> None:
    svg = "".join(re.findall(r"<svg.*?</svg>", html, re.S))
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
    used, defined = set(re.findall(r"var\((--\w+)\)", html)), re.findall(r"(--\w+): #", html)
    assert used <= set(defined) and all(defined.count(name) == 2 for name in used)


def luminance(colour: str) -> float:
    digits = colour * 2 if len(colour) == 3 else colour
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_the_contrast_that_wcag_asks_for(html: str) -> None:
    for mode in re.findall(r":root \{(.*?)\}", html, re.S):
        colours = dict(re.findall(r"--(\w+): #(\w+)", mode))
        for name, colour in colours.items():
            low, high = sorted((luminance(colour), luminance(colours["page"])))
            wanted = 4.5 if name in ("ink", "muted", "alert") else 3
            if name not in ("page", "raised", "grid", "warn"):
                assert (high + 0.05) / (low + 0.05) >= wanted, (name, colour)


def test_write_report_writes_each_format_but_the_terminals(
    data: dict[str, Any], html: str, tmp_path: Path
) -> None:
    paths = write_report(data, tmp_path / "report")
    assert [path.name for path in paths] == [
        f"report.{suffix}" for suffix in ("md", "tex", "csv", "json", "html")
    ]
    assert paths[-1].read_bytes() == html.encode()
    assert paths[2].read_bytes() == render(data, "csv").encode()


def test_an_unknown_format_is_named_with_those_there_are(data: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        render(data, "markdow")
    assert str(caught.value) == (
        "cannot render the report: format 'markdow' (did you mean 'markdown'?), expected "
        "terminal, markdown, latex, csv, json, html (format)\nhint: choose one of these"
    )
