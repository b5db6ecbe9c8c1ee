"""A loopback HTTP server that plays a script, one step a request; the last step repeats. Both vendors'
servers build on it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Step:
    """What the server does with one request. `sent` below 1.0 cuts the connection inside the body;
    `drip_s` sends a byte at a time with that pause, for ever; `hang` answers nothing until the server
    ends."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent: float = 1.0
    drip_s: float = 0.0
    hang: bool = False


@dataclass
class Script:
    url: str
    steps: list[Any]  # Step, or a function from the request's body to a Step
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    look_up: Step = Step(501)  # what a GET gets: the description of a model
    looked_up: list[str] = field(default_factory=list)  # their paths
    gone: threading.Event = field(default_factory=threading.Event)  # a client hung up on a drip or a hang
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(steps: list[Any]) -> Iterator[Script]:
    script = Script("", list(steps))
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                script.requests.append(body)
                script.headers.append(dict(self.headers))
                script.paths.append(self.path)
                step = script.steps.pop(0) if len(script.steps) > 1 else script.steps[0]
            self.play(step(body) if isinstance(step, Callable) else step)  # type: ignore[arg-type]

        def do_GET(self) -> None:
            script.looked_up.append(self.path)
            self.play(script.look_up)

        def play(self, step: Step) -> None:
            if step.hang or step.drip_s:
                return self.stall(step)
            self.send_response(step.status)
            for name, value in {"content-type": "application/json", **step.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(step.body)))
            self.end_headers()
            self.wfile.write(step.body[: int(len(step.body) * step.sent)])
            self.close_connection = step.sent < 1.0

        def stall(self, step: Step) -> None:
            self.close_connection = True
            self.connection.settimeout(0.01)
            if step.drip_s:
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999\r\n\r\n")
            try:
                while not script.over.is_set():
                    if step.drip_s:
                        self.wfile.write(b" ")
                        time.sleep(step.drip_s)
                    try:
                        if not self.connection.recv(1):
                            break
                    except TimeoutError:
                        pass
            except OSError:
                pass
            script.gone.set()

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # clients hang up here on purpose

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield script
    finally:
        script.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
