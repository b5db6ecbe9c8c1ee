"""Puts the status page into its reader's language: English as the code has it, Chinese by status.zh.yaml.

Logs, metrics and what a peer receives stay English; so do an error's own words on the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml


class Words:
    """Holds one language. `texts`: the page's own, whole; `phrases`: what stands inside the values that other modules write."""

    def __init__(self, tag: str, texts: Mapping[str, str], phrases: Mapping[str, str]) -> None:
        self.tag = tag
        self.texts, self._phrases = texts, phrases
        longest_first = sorted(phrases, key=len, reverse=True)
        self._known = re.compile("|".join(rf"(?<![a-z]){re.escape(one)}(?![a-z])" for one in longest_first))

    def __call__(self, text: str, *values: str) -> str:
        """Return a text of the page in this language, `values` in the place of its {}."""
        return self.texts.get(text, text).format(*values)

    def inside(self, value: str) -> str:
        """Return a value with the phrases that are known in this language."""
        return self._known.sub(lambda match: self._phrases[match[0]], value) if self._phrases else value


ENGLISH = Words("en", {}, {})
CHINESE = Words("zh-Hans", **yaml.safe_load(Path(__file__).with_name("status.zh.yaml").read_text(encoding="utf-8")))


def words_for(accept_language: str) -> Words:
    """Return the language that a browser likes best of those here, by its Accept-Language header; else English."""
    best, liked = ENGLISH, 0.0
    for one in accept_language.split(","):
        tag, _, quality = one.partition(";")
        found = {"en": ENGLISH, "zh": CHINESE}.get(tag.strip().lower().partition("-")[0])
        given = re.fullmatch(r"\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*", quality) if quality else None
        weight = float(given[1]) if given else 0.0 if quality else 1.0
        if found is not None and weight > liked:
            best, liked = found, weight
    return best
