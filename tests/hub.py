# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the Hugging Face Hub on the loopback: requests for data sets and models, answered from folders."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the stand-in holds and was asked."""

    folder: Path
    """A folder with one for each data set or model, which holds a README.md."""
    gated: set[str] = field(default_factory=set)
    """The names that ask for consent."""
    requests: list[str] = field(default_factory=list)
    """The paths that were asked for."""
    url: str = ""
    """Its address, for HF_ENDPOINT."""


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Serve the data sets below a folder inside the context."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.requests.append(path)
        if path.startswith(("/api/datasets/", "/api/models/")):
            self._api(path.split("/", 3)[3])
        elif "/resolve/" in path:
            self._file(path.lstrip("/").removeprefix("datasets/"))
        else:
            self._answer(404, b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        asked = urllib.parse.parse_qs(self.rfile.read(length).decode())
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.requests.append(path)
        name = path.removeprefix("/api/datasets/").partition("/paths-info/")[0]
        found = [entry for entry in self._entries(name) if entry["path"] in asked.get("paths", [])]
        self._json(found)

    def _api(self, rest: str) -> None:
        name = next((part for part in self._names() if rest == part or rest.startswith(f"{part}/")), None)
        moved = next((full for full in self._names() if full.endswith(f"/{rest.partition('/')[0]}")), None)
        if name is None and moved is not None:  # as the hub does for `squad`, which is now rajpurkar/squad
            owner = moved.partition("/")[0]
            kind = self.path.split("/")[2]
            self._answer(307, b"", {"Location": f"/api/{kind}/{owner}/{rest}"})
        elif name is None:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif name in self.hub.gated:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        else:
            self._about(name, rest)

    def _about(self, name: str, rest: str) -> None:
        what, _, more = rest.removeprefix(name).lstrip("/").partition("/")
        revision = more.partition("/")[0]
        if what in ("revision", "tree") and revision not in ("main", COMMIT):
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif what == "tree":
            below = more.partition("/")[2]
            self._json([entry for entry in self._entries(name) if entry["path"].startswith(below)])
        elif what in ("", "revision"):
            files = [entry for entry in self._entries(name) if entry["type"] == "file"]
            siblings = [{"rfilename": entry["path"], "size": entry["size"]} for entry in files]
            self._json({"_id": "1", "id": name, "sha": COMMIT, "private": False, "siblings": siblings, "tags": []})
        else:
            self._answer(404, b"")

    def _file(self, rest: str) -> None:
        name, _, more = rest.partition("/resolve/")
        inside = more.partition("/")[2]
        path = self.hub.folder / name / inside
        if not path.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = path.read_bytes()
        etag = hashlib.sha1(content).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if asked:
            first, _, last = asked.partition("-")
            start, end = int(first), min(int(last or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            self._answer(206, content[start : end + 1], headers)
        else:
            self._answer(200, content, headers)

    def _names(self) -> list[str]:
        return [str(path.parent.relative_to(self.hub.folder)) for path in self.hub.folder.glob("**/README.md")]

    def _entries(self, name: str) -> list[dict[str, Any]]:
        """Return the files and folders of a data set."""
        folder = self.hub.folder / name
        entries: list[dict[str, Any]] = []
        for path in sorted(folder.rglob("*")):
            kind = "directory" if path.is_dir() else "file"
            size = 0 if path.is_dir() else path.stat().st_size
            oid = hashlib.sha1(str(path).encode()).hexdigest()
            entries.append({"type": kind, "oid": oid, "size": size, "path": str(path.relative_to(folder))})
        return entries

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
