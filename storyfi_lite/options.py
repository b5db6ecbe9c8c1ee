"""Holds what a user wants: which model (`ModelOptions`), through which API (`ApiOptions`), on which chain (`ChainOptions`).

The command line, the environment and code fill the same objects; each checks itself once, when it is made. A field that is None
leaves the decision to the program. Nothing here knows a registry, a device or a network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from storyfi_lite.errors import BadInput

PlacementPolicy = Literal["reward", "fastest", "largest"]
Provider = Literal["gemini", "openai"]
KVType = Literal["f16", "q8_0", "q4_0"]  # how an attention's keys and values are held

MIN_QUANT = "Q3_K_M"


@dataclass(frozen=True, kw_only=True)
class ApiOptions:
    """Says how APIs may be used. `fallback`: the API that answers if no local model can. `model`: an API's model, which answers
    alone if there is no `fallback`. `daily_*`: caps on the cost. `prices`: (model, prompt, completion), in US dollars for a
    million tokens."""

    fallback: Provider | None = None
    model: str | None = None
    base_url: str | None = None
    key_file: Path | None = None
    daily_tokens: int | None = None
    prices: tuple[tuple[str, float, float], ...] = ()
    daily_usd: float | None = None

    def __post_init__(self) -> None:
        if self.daily_usd is not None and not self.prices:
            raise BadInput(
                "--api.daily-usd needs the vendor's prices, in US dollars for a million tokens\n"
                "  --api.price MODEL=PROMPT,COMPLETION"
            )
        if self.model is not None and not re.fullmatch(r"[!-~]{1,200}", self.model):
            raise BadInput("--api.model is no name of a model\n  storyfi-lite models")
        if self.base_url is not None and not is_url(self.base_url, ("http", "https")):
            raise BadInput("--api.base-url is no address of a server\n  --api.base-url http://127.0.0.1:8000/v1")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Says which model writes, and how it is laid out. `n_ctx`: tokens of context for each answer. `kv_type` is for replays,
    which must hold keys and values as the answer's claim says; `mapped` too: the weights stay in the file (EngineSettings).
    `think_tokens`: how many a local model may think before it writes. `traffic`: a file of what validators ask, in place of the
    network's figures (placement/traffic.py)."""

    name: str | None = None
    path: Path | None = None
    quant: str | None = None
    n_ctx: int | None = None
    n_threads: int | None = None
    kv_type: KVType | None = None
    mapped: bool = False
    think_tokens: int | None = None
    policy: PlacementPolicy = "reward"
    min_quant: str | None = None
    traffic: Path | None = None
    api: ApiOptions = field(default_factory=ApiOptions)

    def __post_init__(self) -> None:
        if self.path and (self.name or self.quant):
            raise BadInput("--model.path names one file: --model.name and --quant do not go with it")

    @property
    def is_explicit(self) -> bool:
        return bool(self.name or self.path or self.quant)


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """Says which subnet, and whose wallet signs. `network`: a name, an endpoint, several with commas, or dev. `known_subnet`: the
    name of the subnet that the user means, if that is not StoryFi's."""

    netuid: int
    network: str
    wallet: str
    hotkey: str
    wallet_path: Path | None = None
    known_subnet: str | None = None


def is_url(text: str, schemes: tuple[str, ...]) -> bool:
    """Return whether a text is the address of a server, with one of these schemes."""
    try:
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", text)
    except ValueError:  # malformed brackets or port
        return False
