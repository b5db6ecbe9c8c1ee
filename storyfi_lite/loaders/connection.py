"""Controls the connection under one API call, for both HTTP libraries that vendors' packages use: another thread can cut it,
it follows no redirect, and a proxy or web page that stands in the way is named.

Not here: what a vendor's own errors mean (gemini.py, openai.py).
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from storyfi_lite.errors import DeadlineExceeded
from storyfi_lite.proxies import proxy_fault

_here = threading.local()  # .line: the line that is open on this thread


class Line:
    """Holds the sockets of the one HTTP call that a job may have open. `cut`, from any thread, ends this and all later calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_cut = threading.Event()
        self._sockets: list[socket.socket] = []
        self.is_connected = False  # in the last call: what was sent may be charged for

    @contextmanager
    def open(self) -> Iterator[None]:
        """Open a call on this thread. Afterwards its sockets are forgotten: others may use them."""
        if self._is_cut.is_set():
            raise DeadlineExceeded("the request ended before the API was called")
        _here.line, self.is_connected = self, False
        try:
            yield
        finally:
            with self._lock:
                self._sockets.clear()

    def hold(self, connection: socket.socket) -> None:
        """Add a socket of the open call."""
        with self._lock:
            self.is_connected = True
            self._sockets.append(connection)
            if self._is_cut.is_set():
                _shut(connection)

    def cut(self) -> None:
        with self._lock:
            self._is_cut.set()
            for connection in self._sockets:
                _shut(connection)

    def wait(self, seconds: float) -> bool:
        """Sleep. Returns True as soon as the line is cut."""
        return self._is_cut.wait(seconds)


def _shut(connection: socket.socket) -> None:
    """Shut a socket down, which, unlike closing, wakes the thread that reads from it."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def hold(connection: socket.socket) -> None:
    """Give a new socket to the line that is open on this thread."""
    _here.line.hold(connection)


class WebPage(Exception):
    """Holds the words of a web page that came instead of JSON: a wrong address, or a network that wants a sign-in."""


def refuse_web_page(status: int, content_type: str, page: str) -> None:
    """Raise WebPage if a page came with status 200. An error's page is left to the vendor's package: its status says more."""
    if status == 200 and "html" in content_type.lower():
        title = re.search(r"<title[^>]*>(.*?)</title>", page, re.DOTALL | re.IGNORECASE)
        raise WebPage(title.group(1) if title and title.group(1).strip() else re.sub(r"<[^>]*>", " ", page))


def httpx_client(kind: Any) -> Any:
    """Make a client of httpx, or of a package like it. Each call has a connection of its own, so that it can be cut. Raises
    ConfigError for proxy settings that the library cannot use."""

    def trace(event: str, info: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            hold(info["return_value"].get_extra_info("socket"))

    def prepare(request: Any) -> None:
        request.headers["connection"] = "close"
        request.extensions = {**request.extensions, "trace": trace}

    def check(response: Any) -> None:
        content_type = response.headers.get("content-type", "")
        if "html" in content_type:
            response.read()
            refuse_web_page(response.status_code, content_type, response.text)

    try:
        return kind(follow_redirects=False, event_hooks={"request": [prepare], "response": [check]})
    except (ValueError, ImportError) as error:
        raise proxy_fault(error) from None


def own_requests_session(session: Any, workers: int) -> None:
    """Change a session of `requests` that a package made: no retries, no redirects (which would carry the key to another host),
    and each call's socket can be cut."""
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool

    def holding(kind: Any) -> Any:
        class Holding(kind):  # type: ignore[misc]
            def request(self, *args: Any, **options: Any) -> None:
                super().request(*args, **options)
                hold(self.sock)

        return Holding

    class Adapter(HTTPAdapter):
        def get_connection_with_tls_context(self, *args: Any, **options: Any) -> HTTPConnectionPool:
            pool = super().get_connection_with_tls_context(*args, **options)
            if "ConnectionCls" not in vars(pool):
                pool.ConnectionCls = holding(pool.ConnectionCls)
            return pool

    def check(response: Any, **options: Any) -> None:
        refuse_web_page(response.status_code, response.headers.get("content-type", ""), response.text)

    session.mount("https://", Adapter(pool_maxsize=workers))
    session.mount("http://", Adapter(pool_maxsize=workers))
    session.hooks["response"].append(check)
    session.max_redirects = 0
    session._max_refresh_attempts = 0  # google.auth would send a refused request twice more
