"""Stops every command in one way: SIGINT ends the process with exit code 130, SIGTERM with 143, within a second.

A signal wakes a thread, which ends the process there and then. So nothing is raised into code that cannot bear it (llama.cpp's
callbacks, an import, a lock), a main thread that is inside llama.cpp for minutes is not waited for, and no destructor runs
under threads that still compute, which is a segmentation fault in llama.cpp. Files must survive this as they survive a kill:
see files.py, and SQLite.

What has to be said or finished first is registered with `at_stop`. This module imports nothing heavy: it is installed before
anything else is imported.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

LAST_WORDS_S = 0.7  # for actions before the end
ONE_SIGNAL_S = 0.5  # `timeout` and other wrappers send a signal twice; a person's second Ctrl-C comes later

Action = Callable[[], bool | None]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_actions: list[Action] = []
_installed = False
_terminal: list[Any] | None = None
_received: int | None = None
_goes_on = threading.Event()  # a signal came, and an action has taken it upon itself to end the program
_writing = threading.RLock()


def install() -> None:
    """Heed signals from now on. Call it on the main thread, first thing; a second call does nothing."""
    global _installed, _terminal
    if _installed:
        return
    _installed = True
    with contextlib.suppress(OSError, termios.error):
        _terminal = termios.tcgetattr(0)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)  # the byte in the pipe is all that counts
    threading.Thread(target=_watch, args=(reader,), name="stopping", daemon=True).start()


@contextlib.contextmanager
def at_stop(action: Action) -> Iterator[None]:
    """Call `action` at the first signal that falls inside, on a thread of its own. If it returns True the process goes on and has to
    end by itself soon; a second signal ends it at once. Else the process ends after `action`, or after LAST_WORDS_S."""
    _actions.append(action)
    try:
        yield
    finally:
        _actions.remove(action)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Keep a stop from falling inside, for the moment that it takes to write a small file."""
    with _writing:
        yield


def exit_code(of_command: int) -> int:
    """Return what the process ends with when its command is done: a signal's code if one came meanwhile."""
    return of_command if _received is None else 128 + _received


def finish() -> None:
    """Let a stop that is under way have its say and end the process; else heed no signal from now on. Call this last, when a command
    is done or has failed.

    Without it the main thread would report what the stop took from under it, or Python, which puts the defaults back while it
    ends, would die of the signal itself."""
    if _received is not None:
        _goes_on.wait(LAST_WORDS_S + 1.0)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(128 + _received)  # Python's own end takes longer than all before it: 1.7 s of 2.7 s on a busy machine
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _watch(reader: int) -> None:
    global _received
    first_s = 0.0
    while True:
        number = os.read(reader, 1)[0]
        if number not in _SIGNALS:
            continue
        if _received is None:
            _received, first_s = number, time.monotonic()
            threading.Thread(target=_stop, args=(number,), name="stop", daemon=True).start()
        elif time.monotonic() - first_s >= ONE_SIGNAL_S:
            _end(number)


def _stop(number: int) -> None:
    def act() -> None:
        for action in reversed(_actions):
            if action():
                _goes_on.set()

    acting = threading.Thread(target=act, name="last-words", daemon=True)
    acting.start()
    acting.join(LAST_WORDS_S)
    if not _goes_on.is_set():
        _end(number)


def _end(number: int) -> NoReturn:
    """End the process, with the terminal as it was: what is typed shows again, as before a password's prompt."""
    _writing.acquire(timeout=0.2)
    with contextlib.suppress(OSError, ValueError, termios.error):
        if select.select([], [2], [], 0)[1]:  # a full pipe would keep us
            if _terminal is not None and os.tcgetpgrp(0) == os.getpgrp():
                termios.tcsetattr(0, termios.TCSANOW, _terminal)
            tidied = b"\r\x1b[K\x1b[?25h" if os.isatty(2) else b""  # no spinner's line, and the cursor is back
            os.write(2, tidied + b"stopped\n")
    os._exit(128 + number)
