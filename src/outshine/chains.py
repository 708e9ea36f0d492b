"""Chains of training such as `single->multi+finetune`, and who teaches whom in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outshine.errors import did_you_mean

STAGES = ("single", "multi", "finetune")
POLICIES = ("same-seed", "first", "ensemble:k", "out-of-fold:k")


@dataclass(frozen=True)
class Stage:
    """One link of a chain: `single`, `multi` or `finetune`, with settings of its own if any."""

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """Who teaches the student of one seed: `same-seed`, `first`, `ensemble` or `out-of-fold`.

    Attributes:
        name: One of these.
        count: k teachers, 1 for the first two.
    """

    name: str
    count: int = 1

    def __str__(self) -> str:
        return self.name if self.count == 1 else f"{self.name}:{self.count}"


def parse_chain(chain: str, names: Sequence[str] = ()) -> list[str]:
    """The links of a chain such as `single->multi+finetune`: stages, or first an arm's name.

    Args:
        chain: As written; `->` reads "teaches", `+finetune` at the end goes on with the weights.
        names: Of other arms, one of which may be the first link.

    Raises:
        ValueError: With a second line that shows the chain and a third that points at the place.
    """
    body, plus, end = chain.partition("+")
    links: list[str] = []
    position = 0
    for part in body.split("->"):
        link = part.strip()
        place = position + len(part) - len(part.lstrip())
        if link in ("single", "multi") or (link in names and not links):
            links.append(link)
        elif not link:
            raise ValueError(_pointed("a stage is missing, expected single or multi", chain, place))
        elif link == "finetune":
            text = "finetune teaches nobody, expected `+finetune` at the end of the chain"
            raise ValueError(_pointed(text, chain, place))
        else:
            known = did_you_mean(link, ["single", "multi", *names])
            text = f"unknown stage {link!r}{known}, expected single or multi"
            raise ValueError(_pointed(text, chain, place))
        position += len(part) + len("->")
    if plus:
        last = end.strip()
        place = len(body) + len(plus) + len(end) - len(end.lstrip())
        if last.startswith("finetune") and last != "finetune":
            text = f"{last.removeprefix('finetune')!r} after finetune, expected the chain's end"
            raise ValueError(_pointed(text, chain, place + len("finetune")))
        if last != "finetune":
            known = did_you_mean(last, ["finetune"])
            text = f"{last!r} after `+`{known}, expected finetune at the end of the chain"
            raise ValueError(_pointed(text, chain, place))
        if links[-1] != "multi" and links[-1] not in names:
            text = f"finetune after {links[-1]}, expected after multi"
            raise ValueError(_pointed(text, chain, place))
        links.append("finetune")
    return links


def linked_stages(
    name: str, arms: Mapping[str, tuple[str, Mapping[str, Any]]], above: tuple[str, ...] = ()
) -> tuple[Stage, ...]:
    """The stages of an arm, whose chain may begin with the name of another arm.

    Args:
        name: Of the arm.
        arms: Name -> chain as written, and settings of its last stage.
        above: Arms that begin with this one.

    Raises:
        ValueError: If the chain does not parse, or comes back to itself.
    """
    if name in above:
        raise ValueError(f"a cycle: {' starts with '.join([*above[above.index(name) :], name])}")
    chain, settings = arms[name]
    others = [other for other, (its, _) in arms.items() if other != its]
    stages: list[Stage] = []
    for kind in parse_chain(chain, others):
        if kind in others:
            stages += linked_stages(kind, arms, (*above, name))
        else:
            stages.append(Stage(kind))
    parse_chain(chain_text(stages))  # another arm may end with what goes on with nothing
    # its settings are those of the last stage: the teachers stay the same runs
    stages[-1] = Stage(stages[-1].kind, {**stages[-1].settings, **settings})
    return tuple(stages)


def chain_text(stages: Sequence[Stage]) -> str:
    """Stages as a chain is written."""
    return "->".join(stage.kind for stage in stages).replace("->finetune", "+finetune")


def _pointed(text: str, chain: str, place: int) -> str:
    return f"{text}\n    {chain}\n    {' ' * place}^"


def parse_policy(text: str) -> Policy:
    """Reads `same-seed`, `first`, `ensemble:k` or `out-of-fold:k`.

    Raises:
        ValueError: If it is none of these.
    """
    found = re.fullmatch(r"(ensemble|out-of-fold):([0-9]+)", text)
    if text in POLICIES[:2]:
        return Policy(text)
    if not found or int(found[2]) < 2:
        known = did_you_mean(text, POLICIES)
        raise ValueError(f"teachers: {text!r}{known}, expected {', '.join(POLICIES)} with k from 2")
    return Policy(found[1], int(found[2]))
