"""The HTTP service: answers, refusals with their status, shutdown, and the command."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from outshine import service, serving
from outshine.cli import app as command_line
from outshine.errors import UserError
from outshine.limits import Limits
from outshine.predicting import Predictor, load

TEXT = {"text": "refund my invoice"}
PAIR = {"id": 7, "left": "the login", "right": "a crash"}
EXAMPLE = 'for example {"inputs": [{"text": "..."}], "tasks": ["..."]}'
NEEDS = "tickets: body; urgency: body; duplicate: left + right"


@pytest.fixture(scope="module")
def predictor(student: Path) -> Predictor:
    return load(student, device="cpu")


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    """A client of a service with small limits."""
    limits = Limits(max_body_bytes=5000, max_inputs=20, max_characters=1000, max_queue=10)
    with client_of(predictor, limits=limits) as made:
        yield made


@contextmanager
def client_of(predictor: Predictor, **options: Any) -> Iterator[TestClient]:
    """A client of a service that is ready."""
    app = serving.create_app(lambda: predictor, run="student", **options)
    with TestClient(app) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        yield client


@asynccontextmanager
async def async_client_of(
    predictor: Predictor, **options: Any
) -> AsyncIterator[tuple[httpx2.AsyncClient, Any]]:
    """The same within an event loop, with the state of the service."""
    app = serving.create_app(lambda: predictor, run="student", **options)
    async with app.router.lifespan_context(app):
        await app.state.loading
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client, app.state.service


def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def slow(predictor: Predictor, wait: Callable[[], Any]) -> Predictor:
    """The same model, which waits for something in each pass after the first, the warm-up."""
    warm = threading.Event()

    class Slow(Predictor):
        def answer_texts(self, *args: Any) -> list[dict[str, Any]]:
            if warm.is_set():
                wait()
            warm.set()
            return super().answer_texts(*args)

    return Slow(predictor.forward, predictor.tokenizer, predictor.tasks, predictor.max_length)


# --- answers ----------------------------------------------------------------------------------


def test_outputs_are_the_lines_of_predict(client: TestClient, predictor: Predictor) -> None:
    inputs = [TEXT, PAIR, {"body": "ünïcode 漢字", "left": "one", "right": "two"}]
    answered = client.post("/predict", json={"inputs": inputs})
    assert answered.status_code == 200
    expected = predictor.predict(inputs)
    outputs = answered.json()["outputs"]
    assert [list(line) for line in outputs] == [list(line) for line in expected]
    for found, line in zip(outputs, expected, strict=True):
        assert flat(found) == pytest.approx(flat(line), abs=1e-5)
    assert outputs[1]["id"] == 7
    assert re.fullmatch(r"total;dur=\d+\.\d", answered.headers["server-timing"])


def flat(line: dict[str, Any], place: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{".a.b": 1}`."""
    found: dict[str, Any] = {}
    for key, value in line.items():
        here = f"{place}.{key}"
        found |= flat(value, here) if isinstance(value, dict) else {here: value}
    return found


def test_named_tasks_alone_answer(client: TestClient) -> None:
    query = {"inputs": [TEXT, "a text"], "tasks": ["urgency"]}
    outputs = client.post("/predict", json=query).json()["outputs"]
    assert [list(line) for line in outputs] == [["urgency"], ["urgency"]]
    pair = {"inputs": [["one", "two"]], "tasks": None}
    assert list(client.post("/predict", json=pair).json()["outputs"][0]) == ["duplicate"]


def test_a_text_longer_than_the_encoder_takes_is_cut_and_flagged(client: TestClient) -> None:
    outputs = client.post("/predict", json={"inputs": ["now " * 200, TEXT]}).json()["outputs"]
    assert [line.get("truncated") for line in outputs] == [True, None]
    assert outputs[0].keys() == {"tickets", "urgency", "truncated"}


def test_the_same_text_in_one_request_is_encoded_once(client: TestClient) -> None:
    def tokens() -> float:
        found = re.search(r"^outshine_tokens_total (.*)$", client.get("/metrics").text, re.M)
        assert found
        return float(found[1])

    counts = []
    for inputs in ([TEXT], [TEXT] * 9):
        before = tokens()
        assert client.post("/predict", json={"inputs": inputs}).status_code == 200
        until(lambda before=before: tokens() > before)  # type: ignore[misc]
        counts.append(tokens() - before)
    assert counts[0] == counts[1]


def test_tasks_tell_what_the_model_answers(client: TestClient) -> None:
    told = client.get("/tasks").json()
    assert (told["run"], told["max_length"], told["calibrated"]) == ("student", 128, False)
    assert told["tasks"][:2] == [
        {
            "name": "tickets",
            "kind": "classification",
            "text": ["body"],
            "labels": ["billing", "tech", "other"],
            "range": None,
        },
        {
            "name": "urgency",
            "kind": "regression",
            "text": ["body"],
            "labels": [],
            "range": [0.0, 5.0],
        },
    ]


def test_calibrated_answers_are_those_of_predict_and_tasks_say_so(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(student, tmp_path / "run"))
    apps: list[Any] = []

    def keep(app: Any, listening: socket.socket, _: int) -> None:
        listening.close()
        apps.append(app)

    monkeypatch.setattr(serving, "run_app", keep)
    for flags in ([], ["--calibrated"]):
        temperatures = {"tickets": {"temperature": 3.0}}
        content = {"run": json.loads((run / "run.json").read_text())["id"], "tasks": temperatures}
        (run / "calibration.json").write_text(json.dumps(content), encoding="utf-8")
        given = ["serve", str(run), "--port", "0", "--device", "cpu", *flags]
        assert CliRunner().invoke(command_line, given).exit_code == 0
        with TestClient(apps[-1]) as client:
            until(lambda client=client: client.get("/readyz").status_code == 200)  # type: ignore[misc]
            assert client.get("/tasks").json()["calibrated"] is bool(flags)
            (output,) = client.post("/predict", json={"inputs": [TEXT]}).json()["outputs"]
        (wanted,) = load(run, device="cpu", calibrated=bool(flags)).predict([TEXT])
        assert flat(output) == pytest.approx(flat(wanted), abs=1e-6)


def test_requests_that_arrive_together_share_a_pass(predictor: Predictor) -> None:
    async def main() -> str:
        may_run, begun = threading.Event(), threading.Event()
        held = slow(predictor, lambda: (begun.set(), may_run.wait()))
        async with async_client_of(held) as (client, service):

            def ask(text: str) -> asyncio.Task[httpx2.Response]:
                return asyncio.create_task(client.post("/predict", json={"inputs": [text]}))

            asked = [ask("first")]
            await asyncio.to_thread(begun.wait)
            asked += [ask(f"text {i}") for i in range(9)]
            while len(service._batcher._open) < 10:
                await asyncio.sleep(0.01)
            may_run.set()
            assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 10
            return str((await client.get("/metrics")).text)

    metrics = asyncio.run(main())
    assert "outshine_pass_requests_count 2.0" in metrics  # the first alone, then the other nine
    assert "outshine_pass_requests_sum 10.0" in metrics


def test_freed_memory_is_given_back_every_so_many_passes(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr(service, "PASSES_PER_TRIM", 3)
    monkeypatch.setattr(service, "trim_memory", lambda: trimmed.append(len(asked)))
    asked: list[int] = []
    with client_of(predictor) as client:
        for number in range(8):
            asked.append(client.post("/predict", json={"inputs": [TEXT]}).status_code)
            assert asked[number] == 200
    assert trimmed == [2, 5]


def test_metrics_count_requests_times_passes_and_the_queue(predictor: Predictor) -> None:
    with client_of(predictor) as client:
        client.post("/predict", json={"inputs": [TEXT, "one more " * 200]})
        client.post("/predict", content=b"{")
        client.get("/nowhere")
        metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=")
    for line in (
        'outshine_requests_total{route="/predict",status="200"} 1.0',
        'outshine_requests_total{route="/predict",status="400"} 1.0',
        'outshine_requests_total{route="other",status="404"} 1.0',
        'outshine_request_seconds_count{route="/predict"} 2.0',
        "outshine_queue_texts 0.0",
        "outshine_pass_texts_sum 2.0",
        "outshine_truncated_texts_total 1.0",
    ):
        assert line in metrics.text
    assert "process_resident_memory_bytes" in metrics.text


# --- refusals ---------------------------------------------------------------------------------

REFUSED = {
    "no JSON": (
        b'{"inputs": [',
        400,
        "cannot read the request: Expecting value: line 1 column 13 (char 12), expected JSON",
        EXAMPLE,
    ),
    "no UTF-8": (
        b'{"inputs": ["\xff"]}',
        400,
        "cannot read the request: 'utf-8' codec can't decode byte 0xff in position 13: invalid "
        "start byte, expected UTF-8",
        EXAMPLE,
    ),
    "NaN": (
        b'{"inputs": [{"id": NaN, "text": "x"}]}',
        400,
        "cannot read the request: NaN is no JSON, expected JSON",
        EXAMPLE,
    ),
    "infinite": (
        b'{"inputs": [{"id": 1e999, "text": "x"}]}',
        400,
        "cannot read the request: 1e999 is no finite number, expected JSON",
        EXAMPLE,
    ),
    "half a surrogate pair": (
        b'{"inputs": [{"text": "\\ud83d"}]}',
        400,
        "cannot read the request: 'utf-8' codec can't encode character '\\ud83d' in position 22: "
        "surrogates not allowed, expected JSON",
        EXAMPLE,
    ),
    "no object": (
        b"[]",
        422,
        'cannot read the request: list, expected an object with "inputs"',
        EXAMPLE,
    ),
    "another key": (
        b'{"inputs": ["x"], "task": "tickets"}',
        422,
        "cannot read the request: key 'task' (did you mean 'tasks'?), expected "
        '"inputs" and "tasks"',
        EXAMPLE,
    ),
    "no inputs": (
        b"{}",
        422,
        'cannot read the request: "inputs": NoneType, expected a list of one or more inputs',
        EXAMPLE,
    ),
    "empty inputs": (
        b'{"inputs": []}',
        422,
        'cannot read the request: "inputs": an empty list, expected a list of one or more inputs',
        EXAMPLE,
    ),
    "inputs of another type": (
        b'{"inputs": {"text": "x"}}',
        422,
        'cannot read the request: "inputs": dict, expected a list of one or more inputs',
        EXAMPLE,
    ),
    "tasks of another type": (
        b'{"inputs": ["x"], "tasks": "tickets"}',
        422,
        "cannot read the request: \"tasks\": 'tickets', expected a list of one or more names",
        EXAMPLE,
    ),
    "no tasks": (
        b'{"inputs": ["x"], "tasks": []}',
        422,
        'cannot read the request: "tasks": [], expected a list of one or more names',
        EXAMPLE,
    ),
    "an unknown task": (
        b'{"inputs": ["x"], "tasks": ["ticket"]}',
        422,
        "unknown task 'ticket' (did you mean 'tickets'?), expected some of tickets, urgency, "
        "duplicate",
        "these are the tasks that the model was trained on",
    ),
    "a missing column": (
        b'{"inputs": ["x", {"txt": "x"}]}',
        422,
        f"cannot answer row 2: columns txt, expected those of a task ({NEEDS}), or text, or "
        "text_a and text_b",
        "rename the columns",
    ),
    "no column": (
        b'{"inputs": [{}]}',
        422,
        f"cannot answer row 1: columns none, expected those of a task ({NEEDS}), or text, or "
        "text_a and text_b",
        "rename the columns",
    ),
    "a missing column of a named task": (
        b'{"inputs": [{"left": "x"}], "tasks": ["duplicate"]}',
        422,
        "cannot answer row 1 for task 'duplicate': columns left, expected left and right or "
        "text_a and text_b",
        "rename the columns, or leave the task out",
    ),
    "an empty text": (
        b'{"inputs": [{"text": " "}]}',
        422,
        "cannot answer row 1: column 'text' is ' ', expected a text that is not empty",
        "mend or remove the row",
    ),
    "a number for a text": (
        b'{"inputs": [{"text": 1}]}',
        422,
        "cannot answer row 1: column 'text' is 1, expected a text that is not empty",
        "mend or remove the row",
    ),
    "a number for an input": (
        b'{"inputs": [1]}',
        422,
        "cannot answer row 1: int, expected a text, a pair of texts or an object",
        'for example {"text": "..."}',
    ),
    "too many inputs": (
        json.dumps({"inputs": ["x"] * 21}).encode(),
        413,
        "cannot read the request: 21 inputs, expected at most 20",
        "send them in several requests",
    ),
    "too long a text": (
        json.dumps({"inputs": ["x", "x" * 1001]}).encode(),
        413,
        "cannot answer row 2: a text of 1,001 characters, expected at most 1,000",
        "the model reads only the beginning of a long text: cut it",
    ),
    "too large a body": (
        b" " * 5001,
        413,
        "cannot read the request: 5,001 bytes, expected at most 5,000",
        "send fewer inputs at once",
    ),
    "more than the queue holds": (
        json.dumps({"inputs": [f"text {i}" for i in range(11)]}).encode(),
        413,
        "cannot queue the request: 11 texts, expected at most 10",
        "send them in several requests",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_request_is_refused(client: TestClient, name: str) -> None:
    body, status, detail, hint = REFUSED[name]
    answer = client.post("/predict", content=body)
    assert answer.json() == {"detail": detail, "hint": hint}
    assert answer.status_code == status
    assert client.post("/predict", json={"inputs": [TEXT]}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("GET", "/predicts", 404, "not found, expected another path"),
        ("GET", "/predict", 405, "method not allowed, expected the method POST"),
        ("DELETE", "/tasks", 405, "method not allowed, expected the method GET"),
    ],
)
def test_an_unknown_route_or_method_has_a_hint(
    client: TestClient, method: str, path: str, status: int, detail: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json() == {
        "detail": f"cannot answer {method} {path}: {detail}",
        "hint": "GET /openapi.json describes the routes",
    }
    assert answer.headers.get("allow") == (detail.split()[-1] if status == 405 else None)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/"])
def test_what_watches_the_service_may_ask_for_the_head_alone(client: TestClient, path: str) -> None:
    asked, whole = client.head(path), client.get(path)
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["content-length"] == str(len(whole.content))


def test_json_that_is_nested_too_deeply_is_refused(client: TestClient) -> None:
    answer = client.post("/predict", content=b'{"inputs": ' + b"[" * 4900)
    assert (answer.status_code, answer.json()["hint"]) == (400, EXAMPLE)


def test_a_body_of_unknown_length_is_refused_where_it_gets_too_large(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        yield from [b" " * 3000] * 3

    answer = client.post("/predict", content=chunks())
    assert answer.status_code == 413
    assert answer.json() == {
        "detail": "cannot read the request: over 5,000 bytes, expected at most 5,000",
        "hint": "send fewer inputs at once",
    }


def test_a_full_queue_refuses_until_there_is_room(predictor: Predictor) -> None:
    async def main() -> None:
        may_run = threading.Event()
        held = slow(predictor, may_run.wait)
        async with async_client_of(held, limits=Limits(max_queue=2)) as (client, service):
            asked = asyncio.create_task(client.post("/predict", json={"inputs": ["a", "b"]}))
            while not service._num_texts:
                await asyncio.sleep(0.01)
            refused = await client.post("/predict", json={"inputs": ["c"]})
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert refused.json() == {
                "detail": "the queue is full: 2 texts wait, expected at most 2 with this "
                "request's 1",
                "hint": "ask again in a moment",
            }
            may_run.set()
            assert (await asked).status_code == 200
            assert (await client.post("/predict", json={"inputs": ["c"]})).status_code == 200

    asyncio.run(main())


def test_a_late_answer_is_504_and_its_place_is_free_again(predictor: Predictor) -> None:
    async def main() -> None:
        may_run = threading.Event()
        held = slow(predictor, may_run.wait)
        async with async_client_of(held, limits=Limits(timeout_s=0.2)) as (client, service):
            late = await client.post("/predict", json={"inputs": ["a"]})
            assert late.status_code == 504
            assert late.json() == {
                "detail": "no answer within 0.2 seconds",
                "hint": "send fewer inputs at once, or ask again later",
            }
            assert service._num_texts == 0
            may_run.set()

    asyncio.run(main())


def test_while_the_model_is_loaded_the_service_lives_but_is_not_ready(
    predictor: Predictor,
) -> None:
    may_load = threading.Event()

    def load_slowly() -> Predictor:
        may_load.wait(10)
        return predictor

    with TestClient(serving.create_app(load_slowly, run="student")) as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.get("/").status_code == 200
        for answer in (
            client.get("/readyz"),
            client.get("/tasks"),
            client.post("/predict", json={"inputs": [TEXT]}),
        ):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.json() == {
                "detail": "the model is being loaded",
                "hint": "ask again soon",
            }
        may_load.set()
        until(lambda: client.get("/readyz").json() == {"status": "ready"})


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (UserError("cannot open the run desk: no such folder", "check the path"), None),
        (RuntimeError("a bug"), "RuntimeError"),
    ],
    ids=["a wrong run", "a bug"],
)
def test_a_model_that_cannot_be_loaded_is_told_and_logged(
    error: Exception, why: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    def load_nothing() -> Predictor:
        raise error

    with TestClient(serving.create_app(load_nothing, run="desk")) as client:
        until(lambda: "being loaded" not in client.get("/readyz").text)
        assert client.get("/healthz").json() == {"status": "alive"}
        for answer in (client.get("/readyz"), client.post("/predict", json={"inputs": [TEXT]})):
            assert answer.status_code == 503
            assert "retry-after" not in answer.headers
            assert answer.json() == {
                "detail": "the model cannot be loaded: "
                f"{why or 'cannot open the run desk: no such folder'}",
                "hint": "the log of the service says more; mend it, and start the service again",
            }
    (record,) = caplog.records
    assert record.getMessage() == "the model cannot be loaded"
    assert record.exc_info and record.exc_info[1] is error


def test_a_bug_is_500_with_a_body_and_the_next_request_is_answered(predictor: Predictor) -> None:
    problems = [RuntimeError("a bug")]

    def fail_once() -> None:
        if problems:
            raise problems.pop()

    app = serving.create_app(lambda: slow(predictor, fail_once), run="student")
    with TestClient(app, raise_server_exceptions=False) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        answer = client.post("/predict", json={"inputs": [TEXT]})
        assert answer.status_code == 500
        assert answer.json() == {
            "detail": "internal error",
            "hint": "the log of the service has its traceback",
        }
        assert client.post("/predict", json={"inputs": [TEXT]}).status_code == 200


def test_with_an_api_key_only_those_who_send_it_are_answered(predictor: Predictor) -> None:
    with client_of(predictor, api_key="secret") as client:
        for headers, found in (
            ({}, "no API key"),
            ({"Authorization": "Basic secret"}, "no API key"),
            ({"Authorization": "Bearer secrets"}, "another API key"),
            ({"Authorization": "Bearer sécret".encode()}, "another API key"),
        ):
            answer = client.post("/predict", json={"inputs": [TEXT]}, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json() == {
                "detail": f"cannot answer: {found}, expected the one that the service was "
                "started with",
                "hint": "send the header `Authorization: Bearer KEY`",
            }
        key = {"Authorization": "Bearer secret"}
        assert client.post("/predict", json={"inputs": [TEXT]}, headers=key).status_code == 200
        closed = {path: client.get(path).status_code for path in ("/tasks", "/metrics")}
        assert closed == {"/tasks": 401, "/metrics": 401}
        open_ = [client.get(path).status_code for path in ("/healthz", "/readyz", "/")]
        assert open_ == [200, 200, 200]


# --- what is told about it --------------------------------------------------------------------


def test_openapi_describes_every_route_and_its_examples_are_answered(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert described["paths"].keys() == {"/predict", "/tasks", "/metrics", "/healthz", "/readyz"}
    predict = described["paths"]["/predict"]["post"]
    assert {"200", "400", "401", "408", "413", "422", "503", "504"} == predict["responses"].keys()
    examples = predict["requestBody"]["content"]["application/json"]["examples"]
    assert len(examples) == 3
    for example in examples.values():
        assert client.post("/predict", json=example["value"]).status_code == 200


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    for path in serving.PAGE:
        answer = client.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"\son\w+=|style=|javascript:", answer.text)


# --- a real server ----------------------------------------------------------------------------


@contextmanager
def server_of(
    predictor: Predictor, *, keep_alive_s: int = 65, **options: Any
) -> Iterator[tuple[str, int]]:
    """Address of a server in a thread of this process."""
    app = serving.create_app(lambda: predictor, run="student", **options)
    listening = serving.listen("127.0.0.1", 0)
    server = uvicorn.Server(serving.server_config(app, keep_alive_s))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    host, port = listening.getsockname()
    try:
        until(lambda: server.started and app.state.loading.done())
        yield host, port
    finally:
        server.should_exit = True
        thread.join()


def metric(address: tuple[str, int], line: str) -> float:
    """The value of one line of /metrics; 0 where it is missing."""
    text = httpx2.get(f"http://{address[0]}:{address[1]}/metrics").text
    found = re.search(rf"^{re.escape(line)} (.*)$", text, re.M)
    return float(found[1]) if found else 0.0


def raw_request(body: bytes, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (length, body)


def test_a_client_that_goes_away_costs_nobody_else_anything(predictor: Predictor) -> None:
    may_run, begun = threading.Event(), threading.Event()
    held = slow(predictor, lambda: (begun.set(), may_run.wait(20)))
    with server_of(held, limits=Limits(max_queue=5)) as address:
        gone = 'outshine_requests_total{route="/predict",status="499"}'
        bodies = [b'{"inputs": ["a", "b"]}', b'{"inputs": ["c", "d"]}']
        with (
            socket.create_connection(address) as first,
            socket.create_connection(address) as second,
        ):
            first.sendall(raw_request(bodies[0]))  # leaves while its pass runs
            assert begun.wait(20)
            second.sendall(raw_request(bodies[1]))  # leaves while it waits
            until(lambda: metric(address, "outshine_queue_texts") == 4)
        until(lambda: metric(address, gone) == 2)
        assert metric(address, "outshine_queue_texts") == 0
        may_run.set()
        answer = httpx2.post(
            f"http://{address[0]}:{address[1]}/predict", json={"inputs": ["a", "b", "c", "d", "e"]}
        )
        assert answer.status_code == 200
        assert metric(address, "outshine_pass_texts_sum") == 7  # two of the first, five of the last


def test_a_client_that_leaves_during_its_upload_is_counted_and_forgotten(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    with server_of(predictor) as address:
        with socket.create_connection(address) as client:
            client.sendall(raw_request(b"{", length=100))
            time.sleep(0.1)
        gone = 'outshine_requests_total{route="/predict",status="499"}'
        until(lambda: metric(address, gone) == 1)
    assert caplog.records == []


def test_a_body_that_does_not_arrive_in_time_is_408(predictor: Predictor) -> None:
    with (
        server_of(predictor, limits=Limits(timeout_s=0.2)) as address,
        socket.create_connection(address) as client,
    ):
        client.sendall(raw_request(b"{", length=100))
        answer = client.makefile("rb").read()  # until the server closes the connection
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(
        b'{"detail":"cannot read the request: no end of its body within 0.2 seconds",'
        b'"hint":"send it at once"}'
    )


@pytest.mark.parametrize("begun", [b"", b"POST /pred"], ids=["silent", "half a head"])
@pytest.mark.parametrize("asked_before", [False, True])
def test_a_client_that_never_ends_a_request_does_not_keep_its_connection(
    asked_before: bool, begun: bytes, predictor: Predictor
) -> None:
    with (
        server_of(predictor, keep_alive_s=1) as address,
        socket.create_connection(address) as client,
    ):
        client.settimeout(20)
        if asked_before:
            client.sendall(raw_request(b'{"inputs": ["a"]}'))
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        client.sendall(begun)
        assert b"HTTP/1.1" not in client.makefile("rb").read()  # until it is closed


@pytest.mark.parametrize("more", [b"x", b"x" * 99], ids=["a part", "all but its end"])
def test_the_rest_of_a_body_that_was_refused_early_does_not_keep_a_connection(
    more: bytes, predictor: Predictor
) -> None:
    with (
        server_of(predictor, keep_alive_s=1, api_key="secret") as address,
        socket.create_connection(address) as client,
    ):
        client.settimeout(20)
        client.sendall(raw_request(b"", length=100))
        assert client.recv(65536).startswith(b"HTTP/1.1 401 ")
        client.sendall(more)
        assert b"HTTP/1.1" not in client.makefile("rb").read()  # until it is closed


def test_a_request_may_take_longer_than_a_connection_without_one_is_kept(
    predictor: Predictor,
) -> None:
    held = slow(predictor, lambda: time.sleep(1.5))
    with (
        server_of(held, keep_alive_s=1) as address,
        socket.create_connection(address) as client,
    ):
        client.settimeout(20)
        for part in (b"POST ", raw_request(b'{"inputs": ["a"]}')[5:]):
            client.sendall(part)
            time.sleep(0.1)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_ten_megabytes_and_100_000_texts_are_refused_and_the_connection_goes_on(
    predictor: Predictor,
) -> None:
    with (
        server_of(predictor) as address,
        httpx2.Client(base_url=f"http://{address[0]}:{address[1]}") as client,
    ):
        for body in (b"x" * 10_000_000, json.dumps({"inputs": ["refund"] * 100_000}).encode()):
            assert client.post("/predict", content=body).status_code == 413
        assert client.post("/predict", json={"inputs": [TEXT]}).status_code == 200


# --- the command ------------------------------------------------------------------------------


def serve(*args: str | Path, code: int, env: dict[str, str] | None = None) -> str:
    """What the command says on stderr until it ends."""
    result = CliRunner().invoke(command_line, ["serve", *map(str, args)], env=env)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return result.stderr


@contextmanager
def serving_process(run: Path, *args: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and the address that it tells."""
    code = "from outshine.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", str(run), "--port", "0", *args]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            ready = re.fullmatch(r"Ready on (http://127.0.0.1:\d+)\n", process.stderr.readline())
            assert ready
            yield process, ready[1]
        finally:
            process.kill()


def test_sigterm_under_load_answers_all_that_was_accepted(student: Path) -> None:
    statuses: list[int] = []
    broken: list[Exception] = []

    def ask_until_it_is_over(address: str, number: int) -> None:
        told_to_close = False
        with httpx2.Client(base_url=address, timeout=60) as client:
            while statuses[-1:] != [503]:
                query = {"inputs": [f"refund {number} " * (1 + len(statuses) % 20)]}
                try:
                    answer = client.post("/predict", json=query)
                except httpx2.TransportError as error:
                    if not told_to_close:  # a new connection may come too late, an open one not
                        broken.append(error)
                    return
                statuses.append(answer.status_code)
                told_to_close = answer.headers.get("connection") == "close"

    with serving_process(student) as (process, address):
        threads = [
            threading.Thread(target=ask_until_it_is_over, args=(address, number))
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(statuses) > 40)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert process.wait(30) == 0
    assert broken == []
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) > 40


def test_while_it_drains_it_is_not_ready_and_a_request_under_way_is_answered(
    predictor: Predictor,
) -> None:
    async def main() -> None:
        may_run, begun = threading.Event(), threading.Event()
        held = slow(predictor, lambda: (begun.set(), may_run.wait(20)))
        async with async_client_of(held) as (client, service):
            under_way = asyncio.create_task(client.post("/predict", json={"inputs": ["a"]}))
            await asyncio.to_thread(begun.wait)
            service.draining = True
            for refused in (
                await client.get("/readyz"),
                await client.post("/predict", json={"inputs": ["b"]}),
            ):
                assert refused.status_code == 503
                assert refused.headers["connection"] == "close"
                assert refused.headers["retry-after"] == "5"
                assert refused.json() == {
                    "detail": "the service is shutting down",
                    "hint": "ask another one, or again",
                }
            may_run.set()
            answered = await under_way
            assert answered.status_code == 200
            assert answered.headers["connection"] == "close"

    asyncio.run(main())


@pytest.mark.parametrize("signals", [1, 2])
def test_a_client_that_reads_no_answer_does_not_keep_the_service_alive(
    student: Path, signals: int
) -> None:
    request = raw_request(json.dumps({"inputs": ["refund"] * 1000}).encode())
    answered = 'outshine_requests_total{route="/predict",status="200"}'
    with serving_process(student, "--timeout-s", "1") as (process, url), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        client.connect(address)
        client.sendall(request * 120)
        until(lambda: metric(address, answered) > 0)
        count = 0.0
        while (now := metric(address, answered)) > count:  # until the system's buffers are full
            count = now
            time.sleep(1)
        assert count < 120
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert process.wait(1 + serving.FLUSH_S + 20) == 0  # machines are shared
        assert process.stderr
        told = "note: connections cut off before all of their answers were read: 1\n"
        assert process.stderr.read() == told


@pytest.mark.skipif(not shutil.which("curl"), reason="the command `curl` is missing")
def test_the_commands_of_the_docs_serve_and_ask(student: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    assert re.search(r"^outshine serve runs/desk$", page, re.M)
    ask = re.search(r"^curl http://127.0.0.1:8000(/predict .*)$", page, re.M)
    assert ask
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "desk").symlink_to(student)
    with serving_process(tmp_path / "runs" / "desk") as (process, address):
        told = subprocess.run(["sh", "-c", f"curl -s {address}{ask[1]}"], capture_output=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    (output,) = json.loads(told.stdout)["outputs"]
    assert output.keys() == {"id", "tickets", "urgency"} and output["id"] == "a1"


def test_ctrl_c_ends_with_130(student: Path) -> None:
    with serving_process(student) as (process, address):
        assert httpx2.get(f"{address}/healthz").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr
        assert process.stderr.read() == "interrupted\n"


def test_a_port_in_use_ends_with_1_before_the_model_is_loaded(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outshine.predicting.load", lambda *_, **__: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve(student, "--port", str(port), code=1) == (
            f"cannot serve on 127.0.0.1:{port}: the port is in use, expected a free one\n"
            "hint: choose another with --port, or stop the process that has it\n"
        )


def test_an_address_of_another_machine_is_refused(student: Path) -> None:
    assert serve(student, "--host", "192.0.2.1", code=1) == (
        "cannot serve on 192.0.2.1:8000: Cannot assign requested address, expected an address of "
        "this machine\nhint: 127.0.0.1 is this machine alone, 0.0.0.0 all of its addresses\n"
    )


def test_a_run_that_cannot_be_loaded_ends_the_command(student: Path, tmp_path: Path) -> None:
    assert serve(tmp_path / "no", code=2) == (
        f"cannot open the run {tmp_path}/no: no such folder\nhint: check the path\n"
    )
    copy = tmp_path / "copy"
    shutil.copytree(student, copy)
    (copy / "model" / "tasks.json").unlink()
    told = serve(copy, "--port", "0", code=2)
    assert told.startswith(f"cannot load the run {copy}: no weights, expected {copy}/model\n")


@pytest.mark.parametrize(("given", "seconds"), [((), 65), (("--keep-alive-s", "7"), 7)])
def test_a_connection_is_kept_longer_than_proxies_do_or_as_told(
    given: tuple[str, ...], seconds: int, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[uvicorn.Config] = []

    async def keep(server: uvicorn.Server, _: Any, listening: socket.socket) -> None:
        listening.close()
        configs.append(server.config)

    monkeypatch.setattr(serving, "_run", keep)
    serve(student, "--port", "0", *given, code=0)
    assert [config.timeout_keep_alive for config in configs] == [seconds]


def test_without_the_extra_it_says_what_to_install(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "outshine.serving")
    monkeypatch.delattr("outshine.serving")
    assert serve(student, code=2) == (
        "cannot serve: the package `fastapi` is missing\nhint: pip install 'outshine[serve]'\n"
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "empty"),
        (b"two words", "blanks or other characters"),
        ("schlüssel".encode(), "blanks or other characters"),
        (b"\xff", "invalid UTF-8"),
        (None, "No such file or directory"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused(
    student: Path, tmp_path: Path, content: bytes | None, found: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    told = serve(student, "--api-key-file", file, code=2)
    expected, hint = (
        "printable ASCII characters without a blank",
        "make one with `openssl rand -hex 32`",
    )
    if found in ("invalid UTF-8", "No such file or directory"):
        expected, hint = "a file with one key", "check the path"
    assert told == (
        f"cannot read the API key: {found}, expected {expected} ({file})\nhint: {hint}\n"
    )


def test_the_key_comes_from_the_file_else_the_environment_and_an_open_door_is_told(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []
    monkeypatch.setattr(serving, "run_app", lambda _, listening, __: listening.close())
    real = serving.create_app

    def create_app(*args: Any, **options: Any) -> Any:
        keys.append(options["api_key"])
        return real(*args, **options)

    monkeypatch.setattr(serving, "create_app", create_app)
    file = tmp_path / "key"
    file.write_text("of-the-file\n", encoding="utf-8")
    everywhere = ("--host", "0.0.0.0", "--port", "0")
    environment = {"OUTSHINE_API_KEY": "of-the-environment"}
    no_key = {"OUTSHINE_API_KEY": ""}
    assert serve(student, "--api-key-file", file, *everywhere, code=0, env=environment) == ""
    assert serve(student, *everywhere, code=0, env=environment) == ""
    assert serve(student, "--port", "0", code=0, env=no_key) == ""
    assert serve(student, *everywhere, code=0, env=no_key) == (
        "warning: whoever reaches 0.0.0.0 can ask: no API key (OUTSHINE_API_KEY) is set\n"
    )
    assert keys == ["of-the-file", "of-the-environment", "", ""]
