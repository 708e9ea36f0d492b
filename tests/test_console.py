"""Progress as a log has it, without a terminal."""

from __future__ import annotations

import pytest

from outshine import console


def test_slow_work_says_how_it_goes_and_that_it_ended_and_quick_work_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    for total, seconds in ((20, 24.0), (20, 8.0), (0, 12.0)):
        with console.progress("training", total) as bar:
            for unit in range(20):
                now[0] += seconds / 20
                bar.note(f"loss {20 - unit}")
                bar.advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "training: 45%, 0:13 left, loss 12",
        "training: 90%, 0:02 left, loss 3",
        "training: 100%, took 0:24, loss 1",
        "training, loss 4",
        "training, loss 1",
    ]


def test_work_that_stops_in_the_middle_does_not_say_that_it_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PLAIN_LINE_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt), console.progress("training", 4) as bar:
        bar.advance(1)
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "training: 25%, 0:00 left\n"
