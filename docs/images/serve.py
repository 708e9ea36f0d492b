"""Takes the README's pictures of the served page, light and dark, in a headless Chromium.

    python docs/images/serve.py outshine-demo/student

The run is the student of `make demo`. Both pictures show one answer, and its times.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "tests"))
from browser import Page, browser_page  # noqa: E402

FIRST = "I was charged twice for one lamp and nobody answers my mails!"
SECOND = "The shop took the money for my lamp two times."
LEFT_OUT = "answers"  # it reads a reply where `duplicate` reads a second message
WIDTH, HEIGHT = 1100, 840


def ask(page: Page, url: str) -> None:
    """Opens the page and types both texts, until the answers are there."""
    page.open(url, WIDTH, HEIGHT)
    page.until("document.querySelectorAll('#tasks input').length")
    page.run(f"document.querySelector('[value={LEFT_OUT}]').click()")
    for field, text in (("first", FIRST), ("second", SECOND)):
        page.run(f"document.getElementById('{field}').focus()")
        page.type(text)
    for _ in range(4):  # the first passes allocate
        page.run("document.getElementById('send').click()")
        page.until("document.querySelectorAll('[aria-busy=false] article').length")
    page.run("document.activeElement.blur()")  # no blinking cursor


def main() -> None:
    code = "from outshine.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", sys.argv[1], "--port", "0"]
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,  # Chromium ends late
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server,
    ):
        assert server.stderr
        line = server.stderr.readline()
        ready = re.match(r"Ready on (\S+)", line)
        if not ready:
            sys.exit(line + server.stderr.read())
        try:
            with browser_page(Path(profile)) as page:
                ask(page, ready[1])
                for scheme in ("light", "dark"):
                    media = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
                    features = [{"name": name, "value": value} for name, value in media.items()]
                    page.call("Emulation.setEmulatedMedia", features=features)
                    page.screenshot(HERE / f"serve-{scheme}.png")
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
