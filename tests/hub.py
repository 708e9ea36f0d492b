"""A small hub on the loopback: serves folders by the part of the HTTP API that the clients call.

It also takes commits to models.

Layout of the folder: `models/<org>/<name>/...` and `datasets/<org>/<name>/...`. A repository has
one commit, named by its content.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Hub:
    """A running hub: its folder, its address, the requests that it saw, and its health."""

    folder: Path
    url: str = ""
    requests: list[str] = field(default_factory=list)
    status: int = 200  # any other: the answer to every request
    silent: bool = False  # whether it accepts requests and never answers
    closing: Event = field(default_factory=Event)


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Serves `folder` on a free port of the loopback while the block runs."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()


def _files(repository: Path) -> list[Path]:
    return sorted(path for path in repository.rglob("*") if path.is_file())


def _oid(*paths: Path) -> str:
    return hashlib.sha1(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _entry(repository: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
    return {"type": "file", "oid": _oid(path), "size": path.stat().st_size, "path": name}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *args: Any) -> None:
        """Silent: tests read `hub.requests`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())

    def _answer(self, body: str = "") -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.hub.silent:
            self.hub.closing.wait()
        if self.hub.status != 200:
            return self._send(self.hub.status, b"")
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[:2] == ["api", "repos"] or parts[-1] == "validate-yaml" or "commit" in parts:
            return self._write(parts[2:], body)
        if "preupload" in parts:
            files = [{"path": file["path"]} for file in json.loads(body)["files"]]
            facts = {"uploadMode": "regular", "shouldIgnore": False}
            return self._json({"files": [file | facts for file in files]})
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in ("models", "datasets"):
            return self._api(parts[1], parts[2:4], parts[4:], body)
        kind = "datasets" if parts[0] == "datasets" else "models"
        owner, name, *rest = parts[1:] if kind == "datasets" else [*parts, "", ""]
        rest = [part for part in rest if part]
        repository = self.hub.folder / kind / owner / name
        if len(rest) < 3 or rest[0] != "resolve" or not repository.is_dir():
            return self._missing("RepoNotFound")
        path = repository.joinpath(*rest[2:])
        if not path.is_file():
            return self._missing("EntryNotFound", _oid(*_files(repository)))
        return self._send(200, path.read_bytes(), _oid(*_files(repository)), _oid(path))

    def _write(self, parts: list[str], body: str) -> None:
        """A new repository, or a commit to one whose files all stand in the request."""
        if parts == ["create"]:
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.hub.folder.joinpath("models", name).mkdir(parents=True, exist_ok=True)
            return self._json({"url": f"{self.hub.url}/{name}", "id": name})
        if not parts:
            return self._json({"errors": [], "warnings": []})
        repository = self.hub.folder.joinpath("models", *parts[:2])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "deletedFile":
                (repository / line["value"]["path"]).unlink()
            if line["key"] == "file":
                path = repository / line["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(line["value"]["content"]))
        commit = _oid(*_files(repository))
        url = f"{self.hub.url}/{'/'.join(parts[:2])}/commit/{commit}"
        return self._json({"success": True, "commitOid": commit, "commitUrl": url})

    def _api(self, kind: str, repo: list[str], rest: list[str], body: str) -> None:
        repository = self.hub.folder.joinpath(kind, *repo)
        if not repository.is_dir():
            return self._missing("RepoNotFound")
        files = _files(repository)
        commit = _oid(*files)
        if not rest or rest[0] == "revision":
            names = [{"rfilename": path.relative_to(repository).as_posix()} for path in files]
            return self._json(
                {"id": "/".join(repo), "sha": commit, "private": False, "tags": []}
                | {"siblings": names, "downloads": 0, "likes": 0}
            )
        if rest[0] == "tree":
            folder = repository.joinpath(*rest[2:])
            if not folder.is_dir():
                return self._missing("EntryNotFound")
            recursive = "recursive=true" in self.path.lower()
            found = sorted(folder.rglob("*") if recursive else folder.iterdir())
            return self._json([_entry(repository, path) for path in found])
        if rest[0] == "paths-info":
            content = json.loads(body) if body.startswith("{") else parse_qs(body)
            paths = [repository / path for path in content["paths"]]
            return self._json([_entry(repository, path) for path in paths if path.exists()])
        return self._missing("EntryNotFound")

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode())

    def _missing(self, code: str, commit: str = "") -> None:
        self._send(404, b"", commit, error=code)

    def _send(
        self, status: int, content: bytes, commit: str = "", etag: str = "", error: str = ""
    ) -> None:
        total = len(content)
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        if wanted and status == 200 and self.command == "GET":
            first, _, last = wanted.partition("-")
            end = min(int(last) + 1 if last else total, total)
            content, status = content[int(first) : end], 206
        self.send_response(status)
        headers = {
            "Content-Length": str(len(content)),
            "Content-Range": f"bytes {wanted}/{total}" if status == 206 else "",
            "ETag": f'"{etag}"' if etag else "",
            "X-Repo-Commit": commit,
            "X-Error-Code": error,
        }
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
