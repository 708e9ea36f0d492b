"""The page to try a model, in a headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import Page, browser_page
from outshine.predicting import load
from test_serving import server_of

CTRL = 2
ASK = "document.querySelectorAll('article').length"
LABELS = "[...document.querySelectorAll('article')].map((x) => x.querySelector('h2').textContent)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser_page(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture(scope="module")
def url(student: Path) -> Iterator[str]:
    with server_of(load(student, device="cpu")) as (host, port):
        yield f"http://{host}:{port}/"


def open_ready(page: Page, url: str, width: int = 1280, scheme: str = "light") -> None:
    page.problems.clear()
    page.open(url, width, scheme=scheme)
    page.until("document.querySelectorAll('#tasks input').length === 3")


def status(page: Page) -> str:
    return str(page.run("document.getElementById('status').textContent"))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_answers_with_all_tasks(page: Page, url: str, width: int, scheme: str) -> None:
    open_ready(page, url, width, scheme)
    page.run("document.getElementById('first').focus()")
    page.type("refund my invoice")
    page.run("document.getElementById('second').focus()")
    page.type("the login")
    page.run("document.getElementById('send').click()")
    page.until(f"{ASK} === 3")
    assert page.run(LABELS) == ["tickets", "urgency", "duplicate"]
    assert status(page).startswith("3 tasks, one encoder pass: ")
    shares = page.run(
        "[...document.querySelectorAll('article')[0].querySelectorAll('.pair')].map((x) => "
        "[x.querySelector('.percent').textContent, x.querySelector('i').style.width])"
    )
    numbers = [float(text.removesuffix(" %")) for text, _ in shares]
    assert len(numbers) == 3
    assert numbers == sorted(numbers, reverse=True)
    assert sum(numbers) == pytest.approx(100, abs=0.2)
    for number, (_, bar_width) in zip(numbers, shares, strict=True):
        assert float(bar_width.removesuffix("%")) == pytest.approx(number, abs=0.06)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(page: Page, url: str, scheme: str) -> None:
    open_ready(page, url, scheme=scheme)
    contrast = """((front, back) => {
      const probe = document.body.appendChild(document.createElement('i'));
      const light = [front, back].map((name) => {
        probe.style.color = `var(${name})`;
        return getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((x) => {
          const c = x / 255;
          return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        }).reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0.05);
      });
      probe.remove();
      return Math.max(...light) / Math.min(...light);
    })"""
    for front in ("--ink", "--soft", "--accent", "--wrong"):
        for back in ("--ground", "--card"):
            assert page.run(f"{contrast}('{front}', '{back}')") >= 4.5
    assert page.run(f"{contrast}('--on-accent', '--accent')") >= 4.5
    assert page.run(f"{contrast}('--border', '--ground')") >= 3


def test_the_keyboard_alone_is_enough(page: Page, url: str) -> None:
    open_ready(page, url)
    focus = "document.activeElement.id || document.activeElement.value"
    assert page.run(focus) == "first"
    page.type("refund my invoice")
    seen = []
    for _ in range(5):
        page.press("Tab", 9)
        seen.append(page.run(focus))
    assert seen == ["second", "tickets", "urgency", "duplicate", "send"]
    page.press("Tab", 9, 8)
    page.press(" ", 32)  # without duplicate no second text is needed
    assert page.run("document.getElementById('second-field').hidden") is True
    page.run("document.getElementById('first').focus()")
    page.press("Enter", 13, CTRL)
    page.until(f"{ASK} === 2")
    assert page.run(LABELS) == ["tickets", "urgency"]


def test_what_is_missing_is_said_and_gets_the_focus(page: Page, url: str) -> None:
    open_ready(page, url)
    page.press("Enter", 13, CTRL)
    page.until("document.getElementById('status').className === 'wrong'")
    assert status(page) == "The first text is empty."
    page.type("refund")
    page.press("Enter", 13, CTRL)
    page.until(f"{ASK} === 2")
    assert status(page).endswith(" 1 more with a second text.")


def test_a_cut_text_and_a_refusal_are_told(page: Page, url: str) -> None:
    open_ready(page, url)
    page.type("now " * 200)
    page.press("Enter", 13, CTRL)
    page.until(f"{ASK} === 2")
    assert "longer than the model reads" in status(page)
    page.type("now " * 5000)
    page.press("Enter", 13, CTRL)
    page.until("document.getElementById('status').className === 'wrong'")
    assert status(page).startswith("cannot answer row 1: a text of 20,800 characters")


def test_with_an_api_key_the_page_asks_for_it(page: Page, student: Path) -> None:
    with server_of(load(student, device="cpu"), api_key="secret") as (host, port):
        page.open(f"http://{host}:{port}/")
        page.until("document.activeElement.id === 'key'")
        assert status(page).startswith("cannot answer: no API key")
        page.type("secret")
        page.press("Enter", 13)
        page.until("document.querySelectorAll('#tasks input').length === 3")
        page.run("document.getElementById('first').focus()")
        page.type("refund")
        page.press("Enter", 13, CTRL)
        page.until(f"{ASK} === 2")
