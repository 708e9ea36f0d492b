"""The pictures of a study's report: inline SVG by matplotlib, one small panel per task or arm.

A panel is as wide as a phone shows it, so that its text is legible on any screen; the page puts
as many side by side as fit. Text stays text. Colours are the page's, which has them twice, for
light and for dark.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outshine.report_tables import (
    MINUS,
    arms_by_mixture,
    percent,
    plural,
    short,
    stats_of,
    tasks_of,
    whole,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 340  # CSS pixels, of which matplotlib has 72 an inch
NUM_COLOURS = 9
# Colours that stand for the page's variables --c0 to --c8 and these, until the SVG is written.
ROLES = ("ink", "muted", "grid", "alert")
INK, MUTED, GRID, ALERT = (f"#c0ff{NUM_COLOURS + i:02x}" for i in range(len(ROLES)))
STYLE: dict[str, Any] = {
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": MUTED,
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.titlesize": 12,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "grid.color": GRID,
    "lines.linewidth": 0.9,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.color": GRID,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
}
# What matplotlib writes around a picture, and what differs from the page's own style.
LEAVE_OUT = re.compile(
    r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<style.*?</style>"
    r"| xmlns(:xlink)?=\"[^\"]*\"| (width|height)=\"[^\"]*pt\"| version=\"1.1\""
    r"| id=\"[A-Za-z0-9.]+_\d+\"|font-family: [^;\"]*;? ?"
    r"| transform=\"rotate\(-0 [^\"]*\)\"",
    re.S,
)


@dataclass(frozen=True)
class Picture:
    """One panel.

    Attributes:
        title: What it shows.
        note: What stands beside the title; may be empty.
        alt: What it shows, for those who do not see it.
        legend: (number of the colour, its meaning) where colours need one.
        svg: An `<svg>` element.
    """

    title: str
    note: str
    alt: str
    svg: str
    legend: tuple[tuple[int, str], ...] = ()


def score_pictures(data: Mapping[str, Any]) -> Iterator[Picture]:
    """Every seed of every arm, one panel per task and one for the score."""
    arms = list(data["arms"])
    marked = {(found["arm"], found["task"], str(found["seed"])) for found in data["degenerate"]}
    for task in tasks_of(data):
        found = {arm: stats_of(data, arm, task) for arm in arms}
        shown = {arm: stats for arm, stats in found.items() if stats is not None}
        if not shown:
            continue
        labels = {arm: _label(stats) for arm, stats in shown.items()}
        with _panel(34 + 40 * len(shown), f"scores {task}") as (figure, written):
            axes = figure.subplots(gridspec_kw=_margins(figure, 1, 1, 4, 26))
            for row, (arm, stats) in enumerate(shown.items()):
                crosses = {s for a, t, s in marked if (a, t) == (arm, task)}
                _strip(axes, row, arms.index(arm), stats, crosses)
                _texts(axes, row, arm, labels[arm])
            axes.set_ylim(len(shown) - 0.45, -0.5)
            axes.set_yticks([])
            axes.margins(x=0.06)
            _ticks(axes.xaxis, 5)
        said = "; ".join(f"{arm}: {label}" for arm, label in labels.items())
        metric, rows = data["metrics"].get(task), data["dev_rows"].get(task)
        note = f"{metric}, {whole(rows)} dev rows" if metric else "mean over tasks"
        yield Picture(task, f"{note}, percent", f"{task} per seed and arm. {said}", written())


def _label(stats: Mapping[str, Any]) -> str:
    mark = f", {stats['degenerate']} degenerate" if stats["degenerate"] else ""
    return f"{percent(stats['median'])}, n {stats['n']}{mark}"


def _strip(axes: Axes, row: int, colour: int, stats: Mapping[str, Any], crosses: set[str]) -> None:
    """A dot per seed, the same seed at the same height in all rows, and a bar at the median."""
    if stats["median"] is not None:
        ends = [row - 0.06, row + 0.38]
        axes.plot([stats["median"]] * 2, ends, color=INK, linewidth=2.4, solid_capstyle="butt")
    for is_cross in (False, True):
        seeds = [seed for seed in stats["values"] if (seed in crosses) is is_cross]
        heights = [row + 0.16 + 0.36 * (int(seed) * 0.618034 % 1 - 0.5) for seed in seeds]
        style: dict[str, Any] = {"marker": "o", "ms": 6.5, "alpha": 0.7, "mew": 0}
        style["color"] = _colour(colour)
        if is_cross:
            style = {"marker": "x", "ms": 7, "mew": 2.2, "color": ALERT}
        axes.plot([stats["values"][seed] for seed in seeds], heights, linestyle="", **style)


def _texts(axes: Axes, row: int, name: str, label: str) -> None:
    """A row's name and label on a line above it, so that no name is too long for a margin."""
    at: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "baseline"}
    axes.text(0, row - 0.2, _shorter(name, 50 - len(label)), **at)
    axes.text(1, row - 0.2, label, ha="right", color=MUTED, **at)


def _shorter(name: str, limit: int) -> str:
    name = " ".join(name.split())
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def training_pictures(data: Mapping[str, Any]) -> Iterator[Picture]:
    """Loss, lambda and learning rate by step, one panel per arm with a line per run."""
    tasks = list(data["metrics"])
    drawable = [curve for curve in data["curves"] if curve["points"]]
    for arm in dict.fromkeys(curve["arm"] for curve in drawable):
        curves = [curve for curve in drawable if curve["arm"] == arm]
        named = [task for task in tasks if any(curve["task"] == task for curve in curves)]
        with _panel(290, f"training {arm}") as (figure, written):
            margins = _margins(figure, 48, 10, 20, 38)
            rows = figure.subplots(3, sharex=True, gridspec_kw=margins | RATIOS)
            drawn = set()
            for curve in curves:
                colour = _colour(tasks.index(curve["task"])) if curve["task"] in tasks else INK
                steps, *lines = zip(*curve["points"], strict=True)
                for axes, line in zip(rows, lines, strict=True):
                    # all seeds have the same schedules: one line of many that lie on each other
                    if (axes, colour, steps, line) not in drawn:
                        drawn.add((axes, colour, steps, line))
                        values = [float("nan") if value is None else value for value in line]
                        axes.plot(steps, values, color=colour, alpha=0.5)
            for axes, title in zip(rows, ("loss", "lambda", "learning rate"), strict=True):
                axes.set_title(title)
                _ticks(axes.yaxis, 4 if title == "loss" else 2)
            rows[1].set(ylim=(-0.1, 1.1), yticks=(0, 1))
            rows[2].set_ylim(bottom=0)
            rows[2].set_xlabel("step")
            _ticks(rows[2].xaxis, 5)
        runs = plural(len(curves), "run")
        yield Picture(
            arm,
            runs,
            f"{arm}: loss, lambda and learning rate by step of {runs}",
            written(),
            tuple((tasks.index(task) % NUM_COLOURS, task) for task in named),
        )


RATIOS = {"height_ratios": [3, 1, 1], "hspace": 0.62}


def mixture_pictures(data: Mapping[str, Any]) -> Iterator[Picture]:
    """Rows, probability and passes per task, one panel per mixture."""
    columns: dict[str, Callable[[Any], str]] = {
        "rows": whole,
        "probability": short,
        "passes": short,
    }
    for arms, mixture in arms_by_mixture(data):
        with _panel(31 + 36 * len(mixture), f"mixture {arms}") as (figure, written):
            margins = _margins(figure, 1, 1, 20, 4) | {"wspace": 0.08}
            for axes, (name, text) in zip(
                figure.subplots(1, len(columns), sharey=True, gridspec_kw=margins),
                columns.items(),
                strict=True,
            ):
                values = [part[name] for part in mixture.values()]
                axes.barh(range(len(values)), values, height=0.3, color=_colour(0))
                for row, value in enumerate(values):
                    axes.annotate(
                        text(value), (value, row), (4, 0), textcoords="offset points", va="center"
                    )
                axes.set_title(name)
                # room for the number behind the longest bar
                axes.set_xlim(0, 1.8 * max(values))
                axes.axis("off")
            first = figure.axes[0]
            first.set_ylim(len(mixture) - 0.5, -0.7)
            for row, task in enumerate(mixture):
                first.text(0, row - 0.28, _shorter(task, 50), color=INK, clip_on=False)
        title = ", ".join(arms)
        said = "; ".join(
            f"{task}: " + ", ".join(f"{name} {text(part[name])}" for name, text in columns.items())
            for task, part in mixture.items()
        )
        yield Picture(title, "", f"Mixture of {title}. {said}", written())


def _colour(number: int) -> str:
    return f"#c0ff{number % NUM_COLOURS:02x}"


def _margins(
    figure: Figure, left: float, right: float, top: float, bottom: float
) -> dict[str, float]:
    """Margins in pixels, as a grid wants them."""
    width, height = 72 * figure.get_size_inches()
    return {
        "left": left / width,
        "right": 1 - right / width,
        "top": 1 - top / height,
        "bottom": bottom / height,
    }


def _ticks(axis: Any, count: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", MINUS)))


@contextmanager
def _panel(height: float, name: str) -> Iterator[tuple[Figure, Callable[[], str]]]:
    """A figure, whatever the user's matplotlibrc says, and what makes SVG of it.

    Args:
        height: In CSS pixels.
        name: Of the panel; the ids within the SVG are made of it, so that they are the page's only
            ones and always the same.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        # the page's font, not matplotlib's, has to have the letters of a name
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | {"svg.hashsalt": name})
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        svg: list[str] = []

        def written() -> str:
            return svg[0]

        yield figure, written
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        svg.append(_inline(out.getvalue()))


def _inline(svg: str) -> str:
    """SVG as a part of a page: without what is around it, in the page's colours."""
    names = [f"c{i}" for i in range(NUM_COLOURS)] + list(ROLES)
    svg = LEAVE_OUT.sub("", svg).replace("xlink:href", "href")
    svg = re.sub(r"(?<=: )#c0ff(\w\w)", lambda found: f"var(--{names[int(found[1], 16)]})", svg)
    svg = re.sub(r'(?<= )(d|x|y)="([^"]*)"', _rounded, svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def _rounded(attribute: re.Match[str]) -> str:
    numbers = re.sub(r"-?\d+\.\d+", lambda n: f"{float(n[0]):.1f}", attribute[2])
    return f'{attribute[1]}="{" ".join(numbers.split())}"'
