"""Writes the status page: one self-contained HTML document with no script and no outside asset.

Everything that is not a literal in this module goes through `html.escape`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from storyfi_lite import __version__
from storyfi_lite.loaders.base import Loader
from storyfi_lite.protocol.limits import FULL_MARKS_S

if TYPE_CHECKING:
    from storyfi_lite.miner.metrics import Event, Metrics

Facts = Callable[[], Mapping[str, Mapping[str, str]]]  # card -> label -> value, e.g. Chain -> height -> 123

REFRESH_S = 5

_STYLE = Path(__file__).with_name("status.css").read_text(encoding="utf-8")


def render(
    facts: Mapping[str, Mapping[str, str]], metrics: Metrics, loader: Loader, now_s: float, stopping: bool
) -> str:
    """Return the page as of `now_s` (time.time())."""
    health = loader.health()
    live = ("live", "good") if health.alive else ("down", "bad")
    state, colour = ("stopping", "warn") if stopping else live
    answered = metrics.outcomes.get("answered", 0)
    tiles = {
        "answered": answered,
        "not answered": sum(metrics.outcomes.values()) - answered,
        "refused": sum(metrics.refused_by_reason.values()),
        "being written": health.running,
        "waiting": health.queued,
    }
    claim = loader.claim
    told = {
        "state": health.detail,
        "writer": claim.writer,
        "model": claim.model_name,
        "version": claim.model_info.version,
        "GPU memory": f"{claim.gpu_memory_gb:g} GB",
        "multiplier": f"{claim.multiplier:g}×",
    }
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="refresh" content="{REFRESH_S}">
<title>storyfi-lite: {escape(state)}</title><style>{_STYLE}</style></head><body><main>
<header><h1>storyfi-lite miner</h1><span class="state {colour}">{escape(state)}</span>
<span>version {escape(__version__)}, up {_span(now_s - metrics.started_s)}</span></header>
<div class="tiles">{"".join(f"<section><b>{count:,}</b><span>{name}</span></section>" for name, count in tiles.items())}</div>
<div class="cards">{"".join(_card(name, rows) for name, rows in {"Loader": told, **facts}.items())}</div>
<section><h2>Last answers</h2>{_answers(list(metrics.answers), now_s)}</section>
<section><h2>Refusals by reason</h2>{_reasons(dict(metrics.refused_by_reason))}</section>
<section><h2>Last refusals</h2>{_refusals(list(metrics.refusals), now_s)}</section>
</main></body></html>
"""


def _card(name: str, rows: Mapping[str, str]) -> str:
    body = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in rows.items())
    return f"<section><h2>{escape(name)}</h2><dl>{body}</dl></section>"


def _answers(events: Iterable[Event], now_s: float) -> str:
    heads = (
        "when",
        "task",
        "caller",
        "seconds, of 30 for full marks",
        "tokens",
        "tokens/s",
        "our own verify and score",
    )
    return _table(heads, [_answer(event, now_s) for event in events])


def _answer(event: Event, now_s: float) -> str:
    seconds = event.seconds or 0.0
    colour = "" if seconds <= FULL_MARKS_S else "warn" if seconds < 2 * FULL_MARKS_S else "bad"
    width_px = round(min(1.0, seconds / FULL_MARKS_S) * 100)
    outcome, mark = _outcome(event)
    speed = "" if event.tokens_per_s is None else f"{event.tokens_per_s:.0f}"
    return (
        f"<tr><td>{_span(now_s - event.at_s)} ago</td><td>{escape(event.what)}</td>"
        f"<td>{escape(event.who)}</td>"
        f'<td><i class="bar {colour}" style="width:{width_px}px"></i>{seconds:.1f}</td>'
        f"<td>{event.tokens or ''}</td><td>{speed}</td>"
        f'<td class="{mark}">{escape(outcome)}</td></tr>'
    )


def _outcome(event: Event) -> tuple[str, str]:
    """Return the answer's validity and base score, with the parts that cost points, and a CSS class."""
    score = event.score
    if score is None:
        return event.outcome, "bad"
    if score.zeroed:
        return f"not valid: {score.zeroed}", "bad"
    lost = [f"{part.name} {part.points:.1f} of {part.of:g}" for part in score.parts if part.points < part.of - 0.05]
    valid = all(part.points == part.of for part in score.parts if part.name in ("json", "schema"))
    words = f"{'valid' if valid else 'not valid'}, base score {score.total:.0f} of 100"
    return f"{words}; {', '.join(lost)}" if lost else words, "good" if valid else "bad"


def _reasons(counts: Mapping[str, int]) -> str:
    top = max(counts.values(), default=1)
    rows = [
        f"<tr><td>{escape(reason)}</td>"
        f'<td><i class="bar bad" style="width:{round(count / top * 160)}px"></i>{count:,}</td></tr>'
        for reason, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    return _table(("reason", "requests"), rows)


def _refusals(events: Iterable[Event], now_s: float) -> str:
    rows = [
        f"<tr><td>{_span(now_s - event.at_s)} ago</td><td>{escape(event.what)}</td>"
        f"<td>{escape(event.who)}</td><td>{escape(event.outcome)}</td></tr>"
        for event in events
    ]
    return _table(("when", "reason", "from", "detail"), rows)


def _table(heads: Iterable[str], rows: list[str]) -> str:
    if not rows:
        return '<p class="empty">none yet</p>'
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _span(seconds: float) -> str:
    """Write a duration for people."""
    if seconds < 60:
        return f"{max(0, seconds):.0f} s"
    if seconds < 3_600:
        return f"{seconds / 60:.0f} min"
    if seconds < 86_400:
        return f"{seconds // 3_600:.0f} h {seconds % 3_600 / 60:.0f} min"
    return f"{seconds / 86_400:.0f} days"
