"""Reads what a user calls a model: a registry's name, a GGUF file's path, or a place on the hub. Looks nothing up there.

llama-3-8b[:Q4_K_M]                                    a key, an alias or a repository of the registry
./model.gguf                                           a file
OWNER/REPO[:QUANT][@REVISION]                          a repository on the hub; hf.co/… and hf://… mean the same
OWNER/REPO/FILE.gguf[@REVISION]                        one file of it
https://huggingface.co/OWNER/REPO[/tree/REVISION | /resolve/REVISION/FILE.gguf | /blob/REVISION/FILE.gguf]
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from storyfi_lite.errors import BadInput

HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
FORMS = "OWNER/REPO[:QUANT][@REVISION], OWNER/REPO/FILE.gguf, a path or a key: storyfi-lite models"
_PART = r"[A-Za-z0-9][\w.-]*"
_ON_HUB = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?P<file>/[^:@]+\.gguf)?(?::(?P<quant>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?", re.A
)
_KEY = re.compile(r"(?P<key>[^/\\:]+):(?P<quant>[\w.-]+)", re.A)


@dataclass(frozen=True)
class ModelName:
    """Holds a name in its parts. Exactly one of `key`, `path` and `repo` is set; `file` is a path inside `repo`."""

    key: str | None = None
    path: Path | None = None
    repo: str | None = None
    file: str | None = None
    quant: str | None = None
    revision: str | None = None

    @property
    def repo_and_revision(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo or ""


def parse(text: str) -> ModelName:
    """Read a name. Raises BadInput for an address that is no model's on the hub."""
    if os.path.isfile(text):
        return ModelName(path=Path(text))
    plain = text.strip()
    if "://" in plain or plain.partition("/")[0] in HUB_HOSTS:
        return _from_address(plain)
    if (match := _ON_HUB.fullmatch(plain)) and not match["repo"].endswith(".gguf"):
        file = match["file"]
        return ModelName(repo=match["repo"], file=file and file[1:], quant=match["quant"], revision=match["revision"])
    if plain.endswith(".gguf") or plain.startswith((".", "~", "/")):
        return ModelName(path=Path(plain).expanduser())
    if match := _KEY.fullmatch(plain):
        return ModelName(key=match["key"], quant=match["quant"])
    return ModelName(key=plain)


def _from_address(address: str) -> ModelName:
    """Read an address of the hub, or of the mirror that HF_ENDPOINT names."""
    from huggingface_hub import constants

    scheme, _, rest = address.rpartition("://")
    parts = urlsplit(f"https://{rest}")
    if scheme == "hf":
        return parse(rest)
    if parts.hostname not in HUB_HOSTS and parts.netloc != urlsplit(constants.ENDPOINT).netloc:
        raise BadInput(f"{address} is no address of the hub; a mirror: export HF_ENDPOINT=https://{parts.netloc}")
    path = unquote(parts.path).strip("/")
    match = re.fullmatch(
        rf"({_PART}/{_PART})/(?:resolve|blob|raw|tree)/(refs/(?:pr|convert)/[^/]+|[^/]+)(?:/(.+))?", path
    )
    if match is None:
        name = parse(path)
        if name.repo is None:
            raise BadInput(f"{address} names no model: give {FORMS}")
        return name
    file = match[3] if match[3] and match[3].endswith(".gguf") else None
    return ModelName(repo=match[1], file=file, revision=None if match[2] == "main" else match[2])
