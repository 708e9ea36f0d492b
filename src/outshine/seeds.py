"""One seed gives many independent random streams, each a pure function of its name."""

from __future__ import annotations

import hashlib


def stream(seed: int, *names: str | int) -> int:
    """Seed of a named stream, such as `stream(1, "dropout", step)`.

    Streams are functions of their names alone: adding one changes no other, and a resumed run
    needs no generator state.

    Returns:
        An integer in [0, 2**63), fit for numpy and torch generators.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
