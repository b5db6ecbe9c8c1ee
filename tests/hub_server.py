"""A loopback server that speaks the hub's download protocol and a package index's, with faults on demand.

/api/models/<repo>[/revision/<rev>] what the repository holds, as JSON
/<repo>/resolve/<revision>/<path>   HEAD and GET: size, hash and commit in headers, then a redirect to the storage
/storage/<path>?ticket=<n>          the bytes, by range; an address that is good once, as the hub's storage signs it
/simple/<package>/                  the package index, PEP 691 JSON or PEP 503 HTML
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" * 6 + "c0ff"


@dataclass
class Hub:
    """What the server holds and how it misbehaves; `log` is every request, `sent` the byte ranges that went out."""

    files: dict[str, bytes] = field(default_factory=dict)
    wheels: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # package -> (file name, bytes)
    status: dict[str, list[int]] = field(default_factory=dict)  # path suffix -> statuses to answer first
    cut_after_bytes: list[int] = field(default_factory=list)  # one for each of the next transfers
    bytes_per_s: float | None = None
    ranges: bool = True
    gated: bool = False
    bad_token: bool = False
    html_index: bool = False
    repos: tuple[str, ...] = ()  # other names than these are unknown; () for any
    commit: str = COMMIT  # of every branch and tag
    revisions: tuple[str, ...] = ("main", "v1")
    licence: str | None = None
    git_files: dict[str, bytes] = field(default_factory=dict)  # listed without Git LFS metadata
    mirror: str = ""  # nolen, weak, noetag, nocommit, moved, html: /resolve/ answers with the bytes, as mirrors do
    wait: str = "0"  # what a passing fault's Retry-After says
    wrong_bytes: bool = False
    tickets: set[str] = field(default_factory=set)
    log: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    sent: list[tuple[str, int, int]] = field(default_factory=list)
    url: str = ""
    storage_url: str = ""

    def starts(self, name: str) -> list[int]:
        """Where each transfer of `name` was asked to begin."""
        gets = [
            headers for method, path, headers in self.log if method == "GET" and path.startswith(f"/storage/{name}")
        ]
        return [int(headers.get("range", "bytes=0-")[6:-1]) for headers in gets]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Two ports: the hub's, and its storage's, which is another host to a client."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) for _ in range(2)]
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    hub.url, hub.storage_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.log.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
            path, _, ticket = self.path.replace("?blobs=", "?ticket=").partition("?ticket=")
            for suffix, statuses in hub.status.items():
                if path.endswith(suffix) and statuses:
                    return self.reply(statuses.pop(0), {"Retry-After": hub.wait})
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", path):
                return self.listing(match[1], match[2] or "main")
            if match := re.fullmatch(r"(?:/moved)?/[^/]+/[^/]+/resolve/[^/]+/(.+)", self.path):
                return self.mirrored(match[1]) if hub.mirror else self.resolve(match[1])
            if match := re.fullmatch(r"/simple/([^/]+)/", self.path):
                return self.index(match[1])
            if path.startswith("/storage/"):
                if ticket not in hub.tickets:
                    return self.reply(403, {})
                hub.tickets.remove(ticket)
            name = path.removeprefix("/storage/") if path.startswith("/storage/") else path.rpartition("/")[2]
            found = hub.files.get(name) or next((data for file, data in hub.wheels.values() if file == name), None)
            return self.reply(404, {}) if found is None else self.storage(name, found)

        def listing(self, repo: str, revision: str) -> None:
            if hub.repos and repo not in hub.repos:
                return self.reply(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            if hub.bad_token:
                return self.reply(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
            if revision not in (*hub.revisions, hub.commit):
                return self.reply(404, {"X-Error-Code": "RevisionNotFound"})
            siblings: list[dict[str, Any]] = [
                {"rfilename": name, "size": len(data)} for name, data in hub.git_files.items()
            ]
            for name, data in hub.files.items():
                lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 135}
                siblings.append({"rfilename": name, "size": len(data), "blobId": "0" * 40, "lfs": lfs})
            page = {"id": repo, "sha": hub.commit, "siblings": siblings, "cardData": {"license": hub.licence}}
            self.reply(200, {"Content-Type": "application/json"}, json.dumps(page).encode())

        def mirrored(self, name: str) -> None:
            """As the mirrors do that people use: the bytes at once, and headers of their own."""
            if hub.mirror == "html":
                return self.reply(200, {"Content-Type": "text/html"}, b"<html>sign in</html>")
            if hub.mirror == "moved" and not self.path.startswith("/moved/"):
                return self.reply(308, {"Location": "/moved" + self.path})
            data = hub.files[name]
            etag = hashlib.sha256(data).hexdigest()
            headers = {"ETag": f'W/"{etag}"' if hub.mirror == "weak" else f'"{etag}"', "X-Repo-Commit": hub.commit}
            headers.pop({"noetag": "ETag", "nocommit": "X-Repo-Commit"}.get(hub.mirror, ""), None)
            if hub.mirror == "nolen" and self.command == "HEAD":
                self.send_response(200)
                for key, value in headers.items():
                    self.send_header(key, value)
                return self.end_headers()
            self.storage(name, data, headers)

        def resolve(self, name: str) -> None:
            if hub.gated:
                return self.reply(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
            if hub.bad_token:
                return self.reply(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
            if name not in hub.files:
                return self.reply(404, {"X-Error-Code": "EntryNotFound"})
            data = hub.files[name]
            etag = hashlib.sha256(data).hexdigest()
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{etag}"', "X-Repo-Commit": hub.commit}
            ticket = str(len(hub.log))
            hub.tickets.add(ticket)
            self.reply(302, {**linked, "Location": f"{hub.storage_url}/storage/{name}?ticket={ticket}"})

        def index(self, package: str) -> None:
            if package not in hub.wheels:
                return self.reply(404, {})
            name, data = hub.wheels[package]
            url, sha256 = f"{hub.url}/files/{name}", hashlib.sha256(data).hexdigest()
            if hub.html_index:
                return self.reply(
                    200, {"Content-Type": "text/html"}, f'<a href="{url}#sha256={sha256}">{name}</a>'.encode()
                )
            page = {"files": [{"filename": name, "url": url, "hashes": {"sha256": sha256}}]}
            self.reply(200, {"Content-Type": "application/vnd.pypi.simple.v1+json"}, json.dumps(page).encode())

        def storage(self, name: str, data: bytes, more: dict[str, str] | None = None) -> None:
            start, end = 0, len(data)
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if hub.ranges else None
            if match:
                start, end = int(match[1]), min(int(match[2] or len(data)) + 1, len(data))
            body = data[start:end]
            if hub.wrong_bytes:
                body = bytes(byte ^ 1 for byte in body)
            headers = {**(more or {}), "Content-Length": str(len(body))}
            partial = match is not None and (start > 0 or bool(match[2]))
            if partial:
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            self.send_response(206 if partial else 200)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.transfer(name, start, body)

        def transfer(self, name: str, start: int, body: bytes) -> None:
            limit = hub.cut_after_bytes.pop(0) if hub.cut_after_bytes else len(body)
            sent = 0
            try:
                while sent < min(limit, len(body)):
                    piece = body[sent : min(sent + 65_536, limit)]
                    self.wfile.write(piece)
                    sent += len(piece)
                    if hub.bytes_per_s:
                        time.sleep(len(piece) / hub.bytes_per_s)
            except OSError:
                pass  # the client went away
            hub.sent.append((name, start, start + sent))
            if sent < len(body):
                self.close_connection = True

        def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler
