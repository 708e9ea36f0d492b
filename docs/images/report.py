"""Takes the README's picture of a study's report in a headless Chromium.

    python docs/images/report.py results/small-dev

It shows the top of `report.html`.
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "tests"))
from browser import browser_page  # noqa: E402

WIDTH, HEIGHT = 1180, 1330


def main() -> None:
    report = Path(sys.argv[1]).resolve() / "report.html"
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,  # Chromium ends late
        browser_page(Path(profile)) as page,
    ):
        page.open(report.as_uri(), WIDTH, HEIGHT)
        page.run("document.documentElement.style.overflow = 'hidden'")  # no scroll bar
        shot = page.call("Page.captureScreenshot")
        (HERE / "study-report.png").write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    main()
