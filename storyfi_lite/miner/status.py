"""The status page: one self-contained HTML document, written on the server, no script and no outside asset.

Pure: figures in, text out. Everything that is not a literal here goes through `html.escape`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING

from storyfi_lite import __version__
from storyfi_lite.loaders.base import Loader

if TYPE_CHECKING:
    from storyfi_lite.miner.metrics import Event, Metrics

Facts = Callable[[], Mapping[str, Mapping[str, str]]]  # card -> label -> value, e.g. Chain -> height -> 123

REFRESH_S = 5
FULL_MARKS_S = 30.0  # the subnet's full marks for speed; nothing after 60 s

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f5f2;--card:#fff;--ink:#1d1c1a;--soft:#6d6a64;--line:#e4e1da;--good:#1f8a5b;
--warn:#b7791f;--bad:#c0392b;--accent:#3b5bdb}
@media(prefers-color-scheme:dark){:root{--bg:#141517;--card:#1d1f22;--ink:#eceae6;--soft:#98958f;--line:#2e3135;
--good:#4cc38a;--warn:#e0a94a;--bad:#ef6b5f;--accent:#8ea2ff}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 60px}h1{font-size:22px;margin:0}h2{font-size:13px;margin:0 0 10px;
color:var(--soft);text-transform:uppercase;letter-spacing:.06em}header{display:flex;gap:14px;align-items:baseline;
flex-wrap:wrap;margin-bottom:20px}header span{color:var(--soft)}.state{padding:2px 12px;border-radius:99px;color:#fff}
header .good{background:var(--good);color:var(--card)}header .warn{background:var(--warn);color:var(--card)}
header .bad{background:var(--bad);color:var(--card)}.grid{display:grid;gap:14px;
grid-template-columns:repeat(auto-fit,minmax(300px,1fr));margin-bottom:14px}.tiles{display:grid;gap:14px;
grid-template-columns:repeat(auto-fit,minmax(150px,1fr));margin-bottom:14px}section{background:var(--card);
border:1px solid var(--line);border-radius:12px;padding:16px 18px;min-width:0}.tiles b{display:block;font-size:26px;
line-height:1.2;font-variant-numeric:tabular-nums}.tiles span{color:var(--soft)}dl{display:grid;
grid-template-columns:max-content 1fr;gap:4px 16px;margin:0}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto}table{width:100%;border-collapse:collapse;font-variant-numeric:tabular-nums}th{text-align:left;
color:var(--soft);font-weight:500}td,th{padding:5px 12px 5px 0;border-bottom:1px solid var(--line);white-space:nowrap}
td:last-child{white-space:normal}tr:last-child td{border-bottom:0}.bar{display:inline-block;height:8px;border-radius:4px;
background:var(--accent);min-width:2px;vertical-align:middle;margin-right:8px}.bar.warn{background:var(--warn)}
.bar.bad,.bar.no{background:var(--bad)}td.good{color:var(--good)}td.bad{color:var(--bad)}.empty{color:var(--soft);margin:0}
"""


def render(
    facts: Mapping[str, Mapping[str, str]], metrics: Metrics, loader: Loader, now_s: float, stopping: bool
) -> str:
    """The page at `now_s` (time.time())."""
    health = loader.health()
    state, colour = (
        ("stopping", "warn") if stopping else ("live", "good") if health.alive else ("down", "bad")
    )
    answered = metrics.outcomes.get("answered", 0)
    tiles = {
        "answered": answered,
        "not answered": sum(metrics.outcomes.values()) - answered,
        "refused": sum(metrics.refused_by_reason.values()),
        "being written": health.running,
        "waiting": health.queued,
    }
    cards = {"Loader": {"state": health.detail, **_claim(loader)}, **facts}
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="refresh" content="{REFRESH_S}"><title>storyfi-lite: {escape(state)}</title><style>{_STYLE}</style>
</head><body><main>
<header><h1>storyfi-lite miner</h1><span class="state {colour}">{escape(state)}</span>
<span>version {escape(__version__)}, up {_span(now_s - metrics.started_s)}</span></header>
<div class="tiles">{"".join(_tile(name, count) for name, count in tiles.items())}</div>
<div class="grid">{"".join(_card(name, rows) for name, rows in cards.items())}</div>
<section><h2>Last answers</h2>{_answers(metrics.answers, now_s)}</section><br>
<section><h2>Refusals by reason</h2>{_reasons(metrics.refused_by_reason)}</section><br>
<section><h2>Last refusals</h2>{_refusals(metrics.refusals, now_s)}</section>
</main></body></html>
"""


def _claim(loader: Loader) -> dict[str, str]:
    claim = loader.claim
    return {
        "mode": claim.miner_mode,
        "model": claim.model_name,
        "version": claim.model_info.version,
        "GPU memory": f"{claim.gpu_memory_gb:g} GB",
        "multiplier": f"{claim.multiplier:g}×",
    }


def _tile(name: str, count: int) -> str:
    return f"<section><b>{count:,}</b><span>{escape(name)}</span></section>"


def _card(name: str, rows: Mapping[str, str]) -> str:
    body = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in rows.items())
    return f"<section><h2>{escape(name)}</h2><dl>{body}</dl></section>"


def _answers(events: Iterable[Event], now_s: float) -> str:
    rows = []
    for event in events:
        seconds = event.seconds or 0.0
        colour = "" if seconds <= FULL_MARKS_S else " warn" if seconds < 2 * FULL_MARKS_S else " bad"
        width = min(100, round(seconds / FULL_MARKS_S * 60))
        speed = f"{event.tokens_per_s:.0f}" if event.tokens_per_s else ""
        mark = "good" if event.outcome == "answered" else "bad"
        rows.append(
            f"<tr><td>{_span(now_s - event.at_s)} ago</td><td>{escape(event.what)}</td><td>{escape(event.who)}</td>"
            f'<td><i class="bar{colour}" style="width:{width}px"></i>{seconds:.1f} s</td>'
            f'<td>{event.tokens or ""}</td><td>{speed}</td><td class="{mark}">{escape(event.outcome)}</td></tr>'
        )
    return _table(("when", "task", "caller", "time of 30 s", "tokens", "tokens/s", "outcome"), rows)


def _reasons(counts: Mapping[str, int]) -> str:
    top = max(counts.values(), default=1)
    rows = [
        f'<tr><td>{escape(reason)}</td><td><i class="bar no" style="width:{round(count / top * 160)}px"></i>'
        f"{count:,}</td></tr>"
        for reason, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    return _table(("reason", "requests"), rows)


def _refusals(events: Iterable[Event], now_s: float) -> str:
    rows = [
        f"<tr><td>{_span(now_s - event.at_s)} ago</td><td>{escape(event.what)}</td><td>{escape(event.who)}</td>"
        f"<td>{escape(event.outcome)}</td></tr>"
        for event in events
    ]
    return _table(("when", "reason", "from", "detail"), rows)


def _table(heads: Iterable[str], rows: list[str]) -> str:
    if not rows:
        return '<p class="empty">none yet</p>'
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _span(seconds: float) -> str:
    """A duration for people: the two largest units."""
    if seconds < 60:
        return f"{max(0, seconds):.0f} s"
    if seconds < 3_600:
        return f"{seconds / 60:.0f} min"
    if seconds < 86_400:
        return time.strftime("%-H h %-M min", time.gmtime(seconds))
    return f"{seconds / 86_400:.0f} days"
