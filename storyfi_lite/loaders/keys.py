"""Reads API keys, and holds them in a type that does not show them.

A key comes from the environment, or from a file that only its owner can read; never from the command line, where every user of
the machine could see it. This is no vault: the key is in this process's memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from pydantic import SecretStr

from storyfi_lite.errors import ConfigError
from storyfi_lite.options import Provider

API_KEYS: dict[Provider, str] = {"gemini": "GEMINI_API_KEY", "openai": "OPENAI_API_KEY"}  # the environment's names
MAX_KEY_FILE_BYTES = 65_536


class Secret(SecretStr):
    """Holds a key, and masks it wherever it is shown. Only the line that hands it to a client library calls `get_secret_value`."""

    def scrub(self, text: str) -> str:
        """Mask the key in a text that a vendor or a client library wrote."""
        return text.replace(self.get_secret_value(), str(self))

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written anywhere")


def load_key(variable: str, key_file: Path | None = None, environment: Mapping[str, str] = os.environ) -> Secret | None:
    """Read the key named `variable` from the environment, else from a line `NAME=key` of `key_file` (mode 600); None if neither
    has it. Raises ConfigError for a file that others can read, or for a key that cannot be sent."""
    value = environment.get(variable, "").strip()
    if not value and key_file is not None:
        value = _read_key_file(key_file).get(variable, "")
    if not value:
        return None
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise ConfigError(f"{variable} holds a space, a line break or a character that no API key has: copy it again")
    return Secret(value)


def _read_key_file(path: Path) -> dict[str, str]:
    try:
        # opened before it is looked at, so that what was checked is what is read; a FIFO must not block
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"the key file {path} is not a plain file")
        mode = stat.S_IMODE(status.st_mode)
        if mode != 0o600:
            raise ConfigError(f"the key file {path} has mode {mode:o}, it must be 600\nchmod 600 {path}")
        text = os.read(descriptor, MAX_KEY_FILE_BYTES).decode("utf-8", "replace")
    finally:
        os.close(descriptor)
    keys = {}
    for line in map(str.strip, text.splitlines()):
        if line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            if not equals:
                raise ConfigError(f"the key file {path} has a line that is not NAME=key, for example GEMINI_API_KEY=…")
            keys[name.strip()] = value.strip().strip("\"'")
    return keys
