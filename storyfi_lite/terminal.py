"""Makes text of others harmless to a terminal. Whatever prints or logs what a peer or a file says goes through here."""

from __future__ import annotations

import unicodedata

_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control characters, reordering ones, halves of characters, line ends


def printable(text: str) -> str:
    """Escape every character that a terminal would obey instead of showing it, but the line feed.

    >>> printable("model \\x1b[2J of 灯塔")
    'model \\\\x1b[2J of 灯塔'
    """
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if char != "\n" and unicodedata.category(char) in _OBEYED
        else char
        for char in text
    )
