"""One request as it comes in: its body, its query, and a client that may go away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from outshine.errors import did_you_mean
from outshine.inputs import parse_json
from outshine.service import RefusedError

if TYPE_CHECKING:
    from fastapi import Request

CLIENT_GONE = 499  # nginx's number; nobody reads it but the metrics


def gone() -> RefusedError:
    """What becomes of a request whose client has gone away."""
    return RefusedError(CLIENT_GONE, "the client has gone", "")


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        RefusedError: If it has more than `most` bytes, or the client goes away.
    """

    def too_large(found: str) -> RefusedError:
        message = f"cannot read the request: {found} bytes, expected at most {most:,}"
        return RefusedError(413, message, "send fewer inputs at once")

    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large(f"{int(declared):,}")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_large(f"over {most:,}")
    except ClientDisconnect:
        raise gone() from None
    return bytes(body)


def parse_query(body: bytes, max_inputs: int) -> tuple[list[Any], list[str] | None]:
    """Inputs and names of tasks of a request's body.

    Raises:
        RefusedError: If it is no JSON, has another shape, or too many inputs.
    """
    form = 'for example {"inputs": [{"text": "..."}], "tasks": ["..."]}'
    try:
        query = parse_json(body.decode("utf-8-sig"))
    except ValueError as error:
        what = "UTF-8" if isinstance(error, UnicodeDecodeError) else "JSON"
        raise RefusedError(
            400, f"cannot read the request: {error}, expected {what}", form
        ) from None

    def refuse(found: str, expected: str) -> RefusedError:
        return RefusedError(422, f"cannot read the request: {found}, expected {expected}", form)

    if not isinstance(query, dict):
        raise refuse(f"{type(query).__name__}", 'an object with "inputs"')
    known = ("inputs", "tasks")
    for key in query:
        if key not in known:
            raise refuse(f"key {key!r}{did_you_mean(key, known)}", '"inputs" and "tasks"')
    inputs, tasks = query.get("inputs"), query.get("tasks")
    if not isinstance(inputs, list) or not inputs:
        found = "an empty list" if inputs == [] else type(inputs).__name__
        raise refuse(f'"inputs": {found}', "a list of one or more inputs")
    if len(inputs) > max_inputs:
        raise RefusedError(
            413,
            f"cannot read the request: {len(inputs):,} inputs, expected at most {max_inputs:,}",
            "send them in several requests",
        )
    if tasks is not None and not (
        isinstance(tasks, list) and tasks and all(isinstance(name, str) for name in tasks)
    ):
        raise refuse(f'"tasks": {tasks!r}'[:200], "a list of one or more names")
    return inputs, tasks


async def unless_gone(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """Awaits work whose request has been read; cancels it when the client goes away.

    Raises:
        RefusedError: When the client has gone.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.ensure_future(request.receive())  # its body is read: a disconnect comes next
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise gone()
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
