"""A study's report as one self-contained HTML page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from outshine.report_figures import mixture_pictures, score_pictures, training_pictures
from outshine.report_tables import MINUS, sections, summary


def page(data: Mapping[str, Any]) -> str:
    """The page; the same data makes the same bytes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("outshine"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["minus"] = _minus
    return (
        environment.get_template("report.html").render(
            data=data,
            summary=summary(data),
            sections={section.key: section for section in sections(data)},
            pictures={
                "scores": list(score_pictures(data)),
                "training": list(training_pictures(data)),
                "mixture": list(mixture_pictures(data)),
            },
        )
        + "\n"
    )


def _minus(number: str) -> str:
    """A minus sign instead of the hyphen before a number."""
    return re.sub(r"(?<![\w)])-(?=\d)", MINUS, number)
