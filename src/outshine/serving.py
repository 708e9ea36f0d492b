"""The HTTP service: routes, statuses, and a shutdown that finishes what was accepted.

Every refusal is `{"detail": what was found and expected, "hint": the fix}` with the status code
that fits.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from outshine import __version__
from outshine.console import say
from outshine.errors import UserError, WorldError
from outshine.limits import KEEP_ALIVE_S, Limits
from outshine.predicting import Predictor
from outshine.service import RefusedError, Service
from outshine.service_docs import DESCRIPTION, PREDICT, READY, TASKS
from outshine.service_requests import parse_query, read_body, unless_gone

TEMPLATES = Path(__file__).parent / "templates"
PAGE = {
    "/": ("try.html", "text/html"),
    "/try.css": ("try.css", "text/css"),
    "/try.js": ("try.js", "text/javascript"),
}
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
LOGGER = logging.getLogger(__name__)
# A client that was answered just before the signal has asked again by then.
DRAIN_AT_LEAST_S = 0.25
# How long clients may take to read the last answers.
FLUSH_S = 5.0


def create_app(
    load: Callable[[], Predictor], *, run: str, limits: Limits | None = None, api_key: str = ""
) -> FastAPI:
    """The service as an ASGI application; `app.state.service` is its state.

    Args:
        load: Loads the model; called in a thread when the application starts.
        run: What is served, for people.
        limits: Default: those of `Limits()`.
        api_key: What clients must send as `Authorization: Bearer KEY`; "" for no key.
    """
    service = Service(limits or Limits())
    limits = service.limits

    def tell(loading: asyncio.Task[None]) -> None:
        if not loading.cancelled() and (error := loading.exception()):
            service.failure = error
            LOGGER.error("the model cannot be loaded", exc_info=error)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.loading = asyncio.create_task(service.start(load))
        app.state.loading.add_done_callback(tell)
        yield
        app.state.loading.cancel()
        await service.close()

    app = FastAPI(
        title="Outshine",
        description=DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,  # both load their scripts from elsewhere
    )
    app.state.service = service
    app.add_middleware(_Watch, service=service)
    app.add_exception_handler(RefusedError, _refusal_response)
    app.add_exception_handler(HTTPException, _route_response)
    app.add_exception_handler(Exception, _bug_response)
    with_key = [Depends(_key_check(api_key))] if api_key else None

    @app.post("/predict", dependencies=with_key, **PREDICT)
    async def predict(request: Request) -> Response:
        begin = time.perf_counter()
        predictor = service.ready()
        body = None
        try:
            async with asyncio.timeout(limits.timeout_s):
                body = await read_body(request, limits.max_body_bytes)
                inputs, names = parse_query(body, limits.max_inputs)
                outputs = await unless_gone(request, service.predict(predictor, inputs, names))
        except UserError as error:
            raise RefusedError(422, error.message, error.hint) from None
        except TimeoutError:
            raise _late(limits.timeout_s, has_body=body is not None) from None
        milliseconds = 1000 * (time.perf_counter() - begin)
        return JSONResponse(
            {"outputs": outputs}, headers={"Server-Timing": f"total;dur={milliseconds:.1f}"}
        )

    @app.get("/tasks", dependencies=with_key, **TASKS)
    async def tasks() -> dict[str, Any]:
        predictor = service.ready()
        fields = {"name", "kind", "text", "labels", "range"}
        return {
            "run": run,
            "max_length": predictor.max_length,
            "calibrated": bool(predictor.temperatures),
            "tasks": [task.model_dump(include=fields) for task in predictor.tasks],
        }

    @app.get("/metrics", dependencies=with_key, summary="Counts and times, for Prometheus")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="Whether the process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", **READY)
    async def readyz() -> dict[str, str]:
        service.ready()
        return {"status": "ready"}

    for path, (name, media_type) in PAGE.items():
        respond = _file_response(name, media_type)
        app.add_api_route(path, respond, methods=["GET", "HEAD"], include_in_schema=False)
    return app


class _Watch:
    """Counts the requests under way, and adds to each answer what all of them carry."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.perf_counter()
        status = 500

        async def send_watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [(b"x-content-type-options", b"nosniff")]
                if self.service.draining:  # or the client would ask again on a closing connection
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        self.service.num_requests += 1
        try:
            await self.app(scope, receive, send_watched)
        finally:
            self.service.num_requests -= 1
            route = getattr(scope.get("route"), "path", "other")
            metrics = self.service.metrics
            metrics.requests.labels(route, status).inc()
            metrics.seconds.labels(route).observe(time.perf_counter() - begin)


def _key_check(api_key: str) -> Callable[..., Awaitable[None]]:
    """A dependency that lets pass who sends the key."""

    async def check(
        given: HTTPAuthorizationCredentials | None = Depends(HTTPBearer(auto_error=False)),  # noqa: B008
    ) -> None:
        if given and hmac.compare_digest(given.credentials.encode(), api_key.encode()):
            return
        found = "another API key" if given else "no API key"
        raise RefusedError(
            401,
            f"cannot answer: {found}, expected the one that the service was started with",
            "send the header `Authorization: Bearer KEY`",
            WWW_Authenticate="Bearer",
        )

    return check


def _late(timeout_s: float, *, has_body: bool) -> RefusedError:
    if has_body:
        return RefusedError(
            504,
            f"no answer within {timeout_s:g} seconds",
            "send fewer inputs at once, or ask again later",
            Retry_After="1",
        )
    return RefusedError(
        408,
        f"cannot read the request: no end of its body within {timeout_s:g} seconds",
        "send it at once",
        Connection="close",
    )


def _file_response(name: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    content = (TEMPLATES / name).read_bytes()

    async def respond() -> Response:
        return Response(content, media_type=media_type, headers=PAGE_HEADERS)

    return respond


def _refusal_response(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    content = {"detail": error.message, "hint": error.hint}
    return JSONResponse(content, error.status, error.headers)


def _route_response(request: Request, error: Exception) -> JSONResponse:
    """Of what the framework refuses: a route that does not exist (404), another method (405)."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow")
    found = f"{request.method} {request.url.path}"[:200]
    expected = f"the method {allowed}" if allowed else "another path"
    content = {
        "detail": f"cannot answer {found}: {error.detail.lower()}, expected {expected}",
        "hint": "GET /openapi.json describes the routes",
    }
    return JSONResponse(content, error.status_code, error.headers)


def _bug_response(_: Request, __: Exception) -> JSONResponse:
    content = {"detail": "internal error", "hint": "the log of the service has its traceback"}
    return JSONResponse(content, 500)


# --- the process ------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any free one.

    Raises:
        WorldError: If the port is in use, or the address cannot be had.
    """
    try:
        listening = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise WorldError(
                f"cannot serve on {host}:{port}: the port is in use, expected a free one",
                "choose another with --port, or stop the process that has it",
            ) from None
        # without what create_server adds; the look-up of a name has numbers of its own, below 0
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise WorldError(
            f"cannot serve on {host}:{port}: {reason}, expected an address of this machine",
            "127.0.0.1 is this machine alone, 0.0.0.0 all of its addresses",
        ) from None
    # Accepted connections inherit it. asyncio would set it, were this socket not made by itself;
    # without it the body of an answer waits 40 ms for the client to acknowledge the head.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


class _Connection(H11Protocol):
    """Closes also connections on which no request has begun, which uvicorn keeps for ever.

    Neither a part of a head nor the rest of a body that was refused early is a request.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive or KEEP_ALIVE_S, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        timer, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        super().data_received(data)
        if timer and (self.cycle is None or self.cycle.response_complete):
            self.timeout_keep_alive_task = timer
        elif timer:
            timer.cancel()


def server_config(app: FastAPI, keep_alive_s: int = KEEP_ALIVE_S) -> uvicorn.Config:
    """How uvicorn serves the application: HTTP/1.1 alone, and on stderr only what is wrong."""
    return uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="on",
        timeout_keep_alive=keep_alive_s,
        log_level="warning",
        access_log=False,
        server_header=False,
    )


def run_app(app: FastAPI, listening: socket.socket, keep_alive_s: int = KEEP_ALIVE_S) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what was accepted; a second one ends at once.

    Args:
        app: What `create_app` made.
        listening: What `listen` made.
        keep_alive_s: Seconds after which a connection without a request is closed.

    Raises:
        OutshineError: If the model cannot be loaded.
        KeyboardInterrupt: After SIGINT.
    """
    LOGGER.addHandler(logging.NullHandler())  # the error that is raised tells it already
    server = uvicorn.Server(server_config(app, keep_alive_s))
    if asyncio.run(_run(server, app, listening)) == signal.SIGINT:
        raise KeyboardInterrupt


async def _run(server: uvicorn.Server, app: FastAPI, listening: socket.socket) -> int | None:
    """Returns the signal that ended the service."""
    service: Service = app.state.service
    serving = asyncio.create_task(server.serve([listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()

    # not uvicorn's force_exit, which cancels the application and logs that as a bug
    hurried = asyncio.Event()

    def stop(number: int) -> None:
        if stopped.done():
            hurried.set()
        else:
            stopped.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn's own would close before draining
        loop.add_signal_handler(number, stop, number)
    loading: asyncio.Task[None] = app.state.loading
    try:
        ends: set[asyncio.Future[Any]] = {stopped, serving}
        await asyncio.wait({loading, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            host, port = listening.getsockname()[:2]
            say(f"Ready on http://{f'[{host}]' if ':' in host else host}:{port}")
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        service.draining = True
        await asyncio.sleep(DRAIN_AT_LEAST_S)
        end = loop.time() + service.limits.timeout_s  # by then all have an answer, or 504
        while service.num_requests and not hurried.is_set() and loop.time() < end:
            await asyncio.sleep(0.02)
    finally:
        server.should_exit = True
        end = loop.time() + FLUSH_S
        while not serving.done() and not hurried.is_set() and loop.time() < end:
            await asyncio.sleep(0.02)
        await _cut_off(server)
        await serving
    return stopped.result() if stopped.done() else None


async def _cut_off(server: uvicorn.Server) -> None:
    """Ends the connections of clients that do not read: uvicorn would wait for them for ever."""
    left = list(server.server_state.connections)
    for connection in left:
        connection.transport.abort()
    if left:
        say(f"note: connections cut off before all of their answers were read: {len(left)}")
    if tasks := server.server_state.tasks:
        await asyncio.wait(tasks, timeout=1)  # cancelled instead, they would be logged as bugs
    server.force_exit = bool(server.server_state.tasks)
