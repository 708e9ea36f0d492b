"""A served run under load: many clients against one, in a closed loop.

    python bench/serve.py [RUN] [--clients 50] [--seconds 60] [--serve "--max-wait-ms 0"]

Without RUN it serves an untrained student of five tasks. It starts `outshine serve RUN` (with the
options given) and asks it, each client over one connection and again as soon as it is answered.
Every text is asked once; lengths are mixed, from 3 to 96 words. One client asks for at most a
minute, many for the seconds given. Prints one JSON object: requests per second, latencies and
errors of one client and of many, the server's memory, and whether the targets are met: no error,
at least twice the throughput of one client, p99 at most 2.5 times the mean latency that this
throughput means.

The clients are on the same machine and take their share of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import arguments, conditions, five_heads

from outshine.runs import open_run

WORDS = "the my your this camera order refund invoice update login offline again since today"
NUM_WORDS = (3, 6, 12, 24, 48, 96)
WARM_UP_S = 3.0


def texts() -> Any:
    """Yields distinct texts of mixed length."""
    rng = random.Random(0)
    number = 0
    while True:
        number += 1
        yield f"{number} {' '.join(rng.choices(WORDS.split(), k=rng.choice(NUM_WORDS)))}"


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str, body: bytes
) -> tuple[int, bytes]:
    """Status and body of one request over an open connection."""
    writer.write(f"{head} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    writer.write(body)
    answer = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", answer)
    assert length, answer
    return int(answer.split()[1]), await reader.readexactly(int(length[1]))


async def metrics(port: int) -> dict[str, float]:
    """Numbers of /metrics without labels."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    _, text = await exchange(reader, writer, "GET /metrics", b"")
    writer.close()
    lines = (line.split() for line in text.decode().splitlines() if line[0] not in "#")
    return {name: float(value) for name, value in lines if "{" not in name}


async def load(port: int, clients: int, seconds: float, source: Any) -> dict[str, Any]:
    """Asks in a closed loop; what it took from the warm-up to the end."""
    latencies: list[float] = []
    errors: list[str] = []
    memory: list[float] = []
    begin = time.perf_counter() + WARM_UP_S
    end = begin + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (start := time.perf_counter()) < end:
            body = json.dumps({"inputs": [{"text": next(source)}]}).encode()
            try:
                status, answer = await exchange(reader, writer, "POST /predict", body)
            except (OSError, EOFError) as error:
                errors.append(repr(error))
                return
            if status != 200:
                errors.append(f"{status} {answer[:200]!r}")
            done = time.perf_counter()
            if begin <= done <= end:
                latencies.append(done - start)
        writer.close()

    async def watch() -> dict[str, float]:
        await asyncio.sleep(WARM_UP_S)
        first = await metrics(port)
        while time.perf_counter() < end - 1:
            await asyncio.sleep(1)
            memory.append((await metrics(port))["process_resident_memory_bytes"] / 1e6)
        last = await metrics(port)
        return {name: last[name] - first[name] for name in last}

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client() for _ in range(clients)))
    grown = await watching
    ordered = sorted(latencies)
    return {
        "clients": clients,
        "requests": len(latencies),
        "errors": len(errors),
        "first_error": errors[0] if errors else None,
        "per_s": len(latencies) / seconds,
        "tokens_per_s": grown["outshine_tokens_total"] / seconds,
        "requests_per_pass": grown["outshine_pass_requests_sum"]
        / max(1, grown["outshine_pass_requests_count"]),
        "model_busy": grown["outshine_pass_seconds_sum"] / seconds,
        "p50_ms": 1000 * statistics.median(ordered),
        "p99_ms": 1000 * ordered[int(0.99 * len(ordered))],
        "max_ms": 1000 * ordered[-1],
        "memory_mb": [memory[i * (len(memory) - 1) // 8] for i in range(9)],  # at equal distances
    }


def measure(run: str, options: list[str], clients: int, seconds: float) -> dict[str, Any]:
    """One client, and then many."""
    code = "from outshine.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", run, "--port", "0", *options]
    source = texts()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        line = server.stderr.readline()
        found = re.match(r"Ready on http://127\.0\.0\.1:(\d+)", line)
        if not found:
            sys.exit(line + server.stderr.read())
        port = int(found[1])
        one = asyncio.run(load(port, 1, min(seconds, 60), source))
        many = asyncio.run(load(port, clients, seconds, source))
        server.terminate()
    ratio = many["per_s"] / one["per_s"]
    most_ms = 2500 * clients / many["per_s"]
    return {
        "one": one,
        "many": many,
        "throughput_ratio": ratio,
        "p99_limit_ms": most_ms,
        "targets": {
            "no error": one["errors"] + many["errors"] == 0,
            "throughput at least 2 x one client": ratio >= 2,
            "p99 at most 2.5 x clients / throughput": many["p99_ms"] <= most_ms,
            "exit 0 after SIGTERM": server.returncode == 0,
        },
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--serve", default="", metavar="OPTIONS", type=shlex.split)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(args.run) if args.run else five_heads(Path(folder), args.encoder)
        args.encoder = run.config()["settings"]["encoder"]
        about = conditions(args)
        found = measure(str(run.path), args.serve, args.clients, args.seconds)
        content = {
            "tasks": [task.name for task in run.tasks()],
            "options": args.serve,
            "seconds": args.seconds,
            "cores": os.cpu_count(),
        }
    print(json.dumps({"bench": "serve"} | about | content | found, indent=2))


if __name__ == "__main__":
    main()
