"""Draws the status page's chart of the last hour as SVG: seconds of the answers, and requests without one, minute by minute.

Figures and fixed words only, so nothing here needs escaping; the words around it are HTML, which keeps their size on every
screen.
"""

from __future__ import annotations

from collections.abc import Iterable

from storyfi_lite.miner.metrics import Minute
from storyfi_lite.miner.words import Words
from storyfi_lite.protocol.limits import FULL_MARKS_S, NO_MARKS_S

MINUTES = 60


def last_hour(minutes: Iterable[Minute], now_s: float, say: Words) -> str:
    """Return HTML with two charts, one column a minute: the mean and the slowest answer, of 60 s; what got no answer."""
    this = int(now_s // 60)
    columns = [(MINUTES - 1 - (this - one.at), one) for one in minutes if this - one.at < MINUTES]
    answered = sum(one.answered for _, one in columns)
    without = sum(one.lost + one.refused for _, one in columns)
    parts = [say("{} answer in the last hour" if answered == 1 else "{} answers in the last hour", f"{answered:,}")]
    if answered:
        mean_s = sum(one.seconds for _, one in columns) / answered
        slowest_s = max(one.slowest_s for _, one in columns)
        parts.append(say("{} s on average, {} s the slowest", f"{mean_s:.1f}", f"{slowest_s:.1f}"))
    got_none = "{} request refused or not answered" if without == 1 else "{} requests refused or not answered"
    parts.append(say(got_none, f"{without:,}"))
    said = say("; ").join(parts)
    most = max((one.lost + one.refused for _, one in columns), default=0)
    times = refusals = ""
    for at, one in columns:
        if one.answered:
            mean_s = one.seconds / one.answered
            colour = "good" if mean_s <= FULL_MARKS_S else "warn" if mean_s < NO_MARKS_S else "bad"
            figures = (str(one.answered), f"{mean_s:.1f}", f"{one.slowest_s:.1f}")
            tip = say("{} answers, {} s on average, {} s the slowest", *figures)
            times += _bar(at, one.slowest_s, NO_MARKS_S, "slow", tip) + _bar(at, mean_s, NO_MARKS_S, colour, tip)
        if one.lost + one.refused:
            tip = say("{} refused, {} not answered", str(one.refused), str(one.lost))
            refusals += _bar(at, (one.refused + one.lost) / most * 10, 10, "bad", tip)
    return f"""<p>{said}</p><div class="chart"><div class="scale"><span>{say("{} s", f"{NO_MARKS_S:.0f}")}</span>
<span>{say("{} s", f"{FULL_MARKS_S:.0f}")}</span><span>0</span></div>
<svg viewBox="0 0 {MINUTES} {NO_MARKS_S:.0f}" preserveAspectRatio="none" role="img" aria-label="{said}">
<line x1="0" x2="{MINUTES}" y1="{FULL_MARKS_S:.0f}" y2="{FULL_MARKS_S:.0f}"/>{times}</svg>
<div class="scale"><span>{most or ""}</span></div>
<svg class="low" viewBox="0 0 {MINUTES} 10" preserveAspectRatio="none" aria-hidden="true">{refusals}</svg>
<div></div><div class="hours"><span>{say("an hour ago")}</span><span>{say("30 min")}</span>
<span>{say("now")}</span></div></div><p class="note">{_key("good", say("mean of a minute"))}
{_key("slow", say("its slowest"))} {_key("bad", say("refused or not answered"))}</p>"""


def _key(colour: str, meaning: str) -> str:
    return f'<span class="one"><i class="key {colour}"></i>{meaning}</span>'


def _bar(at: int, height: float, of: float, colour: str, tip: str) -> str:
    height = min(of, max(of / 20, height))
    box = f'x="{at + 0.1:.1f}" width="0.8" y="{of - height:.1f}" height="{height:.1f}"'
    return f'<rect class="{colour}" {box}><title>{tip}</title></rect>'
