"""What the HTTP service allows, with its defaults."""

from __future__ import annotations

from dataclasses import dataclass

# Longer than the 60 s for which proxies keep a connection to ask on: nobody asks on a closed one.
KEEP_ALIVE_S = 65


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them, may cost.

    Attributes:
        max_body_bytes: Of one request.
        max_inputs: Of one request.
        max_characters: Of one text.
        max_queue: Texts accepted and not answered yet, of all requests.
        timeout_s: From the first byte of a request to its answer.
        max_batch_tokens: Of one pass through the encoder.
        max_wait_ms: Longest wait behind a pass for the next requests of those it answered.
    """

    max_body_bytes: int = 2_000_000
    max_inputs: int = 1000
    max_characters: int = 20_000
    max_queue: int = 2000
    timeout_s: float = 30.0
    max_batch_tokens: int = 2048
    max_wait_ms: float = 2.0
