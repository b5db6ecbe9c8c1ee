"""Counts what the APIs cost today, in tokens and, if the operator gave prices, in US dollars, under a daily cap.

A call is charged before it is made, with an estimate, and corrected by what the vendor counted. So a call whose end is not
known (time-out, crash) stays charged: the cap may close early, never late. The counts are in a file, so they survive a restart,
and all processes of one user share the cap. No prices are built in. The day is UTC's.
"""

from __future__ import annotations

import fcntl
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from storyfi_lite import files
from storyfi_lite.errors import Busy, ConfigError

DAY_S = 86_400
MOVED_BY = "XDG_STATE_HOME=DIRECTORY"


@dataclass(frozen=True)
class Prices:
    """Holds prices in US dollars for a million tokens, as the vendor's price list says."""

    prompt_usd: float
    completion_usd: float

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.prompt_usd + completion_tokens * self.completion_usd) / 1_000_000


@dataclass(frozen=True)
class Caps:
    """Holds a day's limits; None: no limit."""

    tokens: int | None = None
    usd: float | None = None


@dataclass(frozen=True)
class Usage:
    """Counts what was used on `day` (days since 1970-01-01 UTC)."""

    day: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Charge:
    """Remembers the estimate that a call was charged with."""

    day: int
    prompt_tokens: int
    completion_tokens: int
    prices: Prices | None


class Meter:
    """Keeps the day's count. Thread-safe. Raises ConfigError for a damaged file rather than starting the day again."""

    def __init__(self, path: Path, caps: Caps, clock: Callable[[], float] = time.time) -> None:
        self._path, self._caps, self._clock = path, caps, clock
        self._lock = threading.Lock()
        self._usage = self._load()

    @property
    def usage(self) -> Usage:
        """Return the count as of this process's last call."""
        with self._lock:
            return self._today()

    def check_prices(self, prices: Prices | None) -> None:
        """Raise ConfigError if there is a cap in dollars and no price."""
        if self._caps.usd is not None and prices is None:
            raise ConfigError(
                "a daily cap in US dollars needs the vendor's prices, in dollars for a million tokens\n"
                "  --api.price MODEL=PROMPT,COMPLETION"
            )

    def charge(self, prompt_tokens: int, completion_tokens: int, prices: Prices | None) -> Charge:
        """Charge an estimate. Raises Busy if it would go over a cap, ConfigError or DoesNotFit if it can't be written."""
        with self._shared():
            used = self._today()
            usd = used.usd + (prices.usd(prompt_tokens, completion_tokens) if prices else 0.0)
            wait_s = (used.day + 1) * DAY_S - self._clock()
            if self._caps.tokens is not None and used.tokens + prompt_tokens + completion_tokens > self._caps.tokens:
                raise Busy(
                    f"the daily cap of {self._caps.tokens:,} API tokens leaves no room for this request: "
                    f"{used.tokens:,} used today; it opens again at 00:00 UTC",
                    wait_s,
                )
            if self._caps.usd is not None and usd > self._caps.usd:
                raise Busy(
                    f"the daily API cap of ${self._caps.usd:.2f} leaves no room for this request: "
                    f"${used.usd:.4f} used today; it opens again at 00:00 UTC",
                    wait_s,
                )
            self._add(prompt_tokens, completion_tokens, prices)
            return Charge(used.day, prompt_tokens, completion_tokens, prices)

    def settle(self, charge: Charge, prompt_tokens: int, completion_tokens: int) -> None:
        """Replace the estimate by what the vendor counted; zeros for a call that cost nothing."""
        with self._shared():
            if self._today().day == charge.day:
                more = completion_tokens - charge.completion_tokens
                self._add(prompt_tokens - charge.prompt_tokens, more, charge.prices)

    @contextmanager
    def _shared(self) -> Iterator[None]:
        """Read what all processes used so far, and keep other processes from adding to it meanwhile."""
        with self._lock:
            with files.writing(self._path, MOVED_BY):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                lock = self._path.with_name(self._path.name + ".lock").open("w")
            with lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._usage = self._load()
                yield

    def _add(self, prompt_tokens: int, completion_tokens: int, prices: Prices | None) -> None:
        used = self._today()
        usd = prices.usd(prompt_tokens, completion_tokens) if prices else 0.0
        prompt_tokens, completion_tokens = (
            used.prompt_tokens + prompt_tokens,
            used.completion_tokens + completion_tokens,
        )
        self._usage = Usage(used.day, prompt_tokens, completion_tokens, max(0.0, used.usd + usd))
        files.write_text(self._path, json.dumps(asdict(self._usage)), MOVED_BY)

    def _today(self) -> Usage:
        day = int(self._clock() // DAY_S)
        # a clock set back does not give a fresh day
        return self._usage if day <= self._usage.day else Usage(day)

    def _load(self) -> Usage:
        try:
            data = json.loads(self._path.read_text())
            day, prompt, completion = (int(data[name]) for name in ("day", "prompt_tokens", "completion_tokens"))
            usage = Usage(day, prompt, completion, float(data["usd"]))
            if min(usage.day, usage.prompt_tokens, usage.completion_tokens, usage.usd) < 0:
                raise ValueError("negative")
            return usage
        except FileNotFoundError:
            return Usage(0)
        except OSError as error:
            raise ConfigError(f"the API meter {self._path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"the API meter {self._path} is damaged, so today's use is not known; "
                f"to start from zero: rm {self._path}"
            ) from None
