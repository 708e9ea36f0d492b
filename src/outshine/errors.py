"""The two errors that a user can meet, and the wording that all of them share.

A message reads `<what failed>: <what was found>, expected <what> (<file:line or key>)`; the
command line prints it with a `hint:` line and no traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

MAX_PROBLEMS_SHOWN = 20


class OutshineError(Exception):
    """An error with a message for people, a hint how to go on, and the process's exit code."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UserError(OutshineError):
    """Something that the user gave is wrong: a file, a name, a setting. Exit code 2.

    Attributes:
        problems: Each of those that it lists, if it was made by `raise_problems`.
    """

    exit_code = 2
    problems: Sequence[str] = ()


class WorldError(OutshineError):
    """The world failed: a full disk, a read-only folder, a silent hub. Exit code 1."""

    exit_code = 1


class MemoryFullError(WorldError):
    """A device has not as much free memory as the work needs."""


class OtherRunError(UserError):
    """What is on disk was made with other settings, data, teachers or precision."""


class DivergedError(OutshineError):
    """A loss or a logit is no finite number."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ` (did you mean 'x'?)` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def raise_problems(what: str, problems: list[str], hint: str) -> None:
    """Raises one UserError that lists all problems of one file, if there are any.

    Args:
        what: What failed, such as `cannot read train.csv`.
        problems: One line each; at most 20 are shown, the rest is counted.
        hint: How to mend them.
    """
    if not problems:
        return
    shown = problems[:MAX_PROBLEMS_SHOWN]
    more = len(problems) - len(shown)
    lines = [f"{what}: {len(problems)} problems", *(f"  {problem}" for problem in shown)]
    if more:
        lines.append(f"  and {more} more")
    error = UserError("\n".join(lines) if len(problems) > 1 else f"{what}: {problems[0]}", hint)
    error.problems = problems
    raise error
