"""Defines every error that this project raises on purpose, by reason.

    LiteError                     70
    ├── BadInput                   2   the user or a peer gave something wrong
    │   └── RegistryError          2   models.yaml, or another YAML file, is wrong; says the line
    ├── ConfigError               78   wallet, key, build or setting missing, or a place that cannot be written: restarting will not help
    ├── DoesNotFit                73   memory or disk: says need and have
    ├── Unavailable               69   network, hub, chain or API cannot be reached
    ├── GrammarError              70   a text is not what its grammar writes
    ├── EngineError               70   llama.cpp failed
    ├── Busy                      75   the queue is full or the deadline cannot be met; try again later
    └── DeadlineExceeded          75   the answer was not ready in time

The number is the process's exit code (sysexits.h). A message is one or more lines for the *operator*: what is
wrong, then the command that mends it. What a stranger on the network may read is `wire.http_status`, never this text.
"""

from __future__ import annotations


class LiteError(Exception):
    """Is the base of all errors here. `exit_code` is what the command line exits with."""

    exit_code = 70


class BadInput(LiteError):
    """Says that the input is wrong; nothing was changed."""

    exit_code = 2


class RegistryError(BadInput):
    """Says what is wrong in `models.yaml`, or in a reward policy, and on which line."""


class ConfigError(LiteError):
    """Says that something is missing or wrong that only the operator can supply."""

    exit_code = 78


class DoesNotFit(LiteError):
    """Says that memory or disk is too small."""

    exit_code = 73


class Unavailable(LiteError):
    """Says that something on the network cannot be reached, or refused to answer."""

    exit_code = 69


class GrammarError(LiteError):
    """Says that a text is not what its grammar writes."""


class EngineError(LiteError):
    """Says that llama.cpp failed in a way that this request cannot survive."""


class Busy(LiteError):
    """Says that there is no room now. `retry_after_s`: the wait that is expected, seconds, or None if not known."""

    exit_code = 75

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(LiteError):
    """Says that the request's deadline passed before the answer was whole."""

    exit_code = 75
