"""Writes the status page: one self-contained HTML document with no script and no outside asset, in its reader's language.

Everything that is not a literal in this module goes through `html.escape`; every word of English goes through `say` (words.py).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from html import escape
from pathlib import Path

from storyfi_lite import __version__
from storyfi_lite.loaders.base import Loader, LoaderHealth
from storyfi_lite.miner.metrics import KEPT_MINUTES, Event, Metrics, Minute
from storyfi_lite.miner.words import ENGLISH, Words
from storyfi_lite.protocol.limits import FULL_MARKS_S, NO_MARKS_S
from storyfi_lite.wire.http_status import REASONS

Facts = Callable[[], Mapping[str, Mapping[str, str]]]  # card -> label -> value, e.g. Chain -> height -> 123

REFRESH_S = 5
DETAIL = "detail"  # the label of what only the operator reads: an error's own words may name a path or a provider
AS_IT_IS = (DETAIL, "model", "file", "hotkey", "subnet")  # names, and what the logs say: in no reader's language

_STYLE = Path(__file__).with_name("status.css").read_text(encoding="utf-8")
# what each reason means: of refusals, and of errors (errors.py)
MEANING = {
    **{reason: meaning for reason, (_, meaning) in REASONS.items()},
    "Busy": "all slots taken, or it would have been late",
    "DeadlineExceeded": "not whole in time",
    "CallerGone": "the caller hung up first",
    "Unavailable": "the API or the loader was not there; the log says why",
    "EngineError": "llama.cpp failed; the log says why",
}


def render(
    facts: Mapping[str, Mapping[str, str]], metrics: Metrics, loader: Loader, now_s: float, stopping: bool,
    public: bool = False, say: Words = ENGLISH,
) -> str:  # fmt: skip
    """Return the page as of `now_s` (time.time()). `public`: strangers may read it, so callers' addresses and errors' own
    words are left out."""
    health = loader.health()
    live = ("live", "good") if health.alive else ("down", "bad")
    state, colour = ("stopping", "warn") if stopping else live
    answers = list(metrics.answers)
    cards = {**facts, "Model": _model(facts.get("Model", {}), answers, loader, say)}
    hidden = (DETAIL,) if public else ()
    counts = {**metrics.refused_by_reason, **metrics.outcomes}
    counts.pop("answered", None)
    refusals = "" if public else _section(say("Last refusals"), _refusals(list(metrics.refusals), now_s, say))
    return f"""<!doctype html>
<html lang="{say.tag}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="refresh" content="{REFRESH_S}">
<title>storyfi-lite: {escape(say(state))}</title><style>{_STYLE}</style></head><body><main>
<header><h1>{escape(say("storyfi-lite miner"))}</h1><span class="state {colour}">{escape(say(state))}</span>
<span>{escape(say("version {}, up {}", __version__, _span(now_s - metrics.started_s, say)))}</span></header>
<div class="tiles">{_tiles(metrics, health, say)}</div>
{_section(say("The last hour"), last_hour(list(metrics.minutes), now_s, say))}
{_section(say("Last answers"), _answers(answers, now_s, say))}
<div class="cards">{"".join(_card(name, rows, hidden, say) for name, rows in cards.items())}</div>
{_section(say("Refused and not answered, by reason"), _reasons(counts, say))}
{refusals}</main></body></html>
"""


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _tiles(metrics: Metrics, health: LoaderHealth, say: Words) -> str:
    answered = metrics.outcomes.get("answered", 0)
    tiles = {
        "answered": answered,
        "not answered": sum(metrics.outcomes.values()) - answered,
        "refused": sum(metrics.refused_by_reason.values()),
        "being written": health.running,
        "waiting": health.queued,
    }
    return "".join(
        f"<section><b>{count:,}</b><span>{escape(say(name))}</span></section>" for name, count in tiles.items()
    )


def _card(name: str, rows: Mapping[str, str], hidden: Container[str], say: Words) -> str:
    body = "".join(
        f"<dt>{escape(say(label))}</dt><dd>{escape(value if label in AS_IT_IS else say.inside(value))}</dd>"
        for label, value in rows.items()
        if label not in hidden
    )
    return _section(say(name), f"<dl>{body}</dl>")


def _model(facts: Mapping[str, str], answers: list[Event], loader: Loader, say: Words) -> dict[str, str]:
    """Say what writes and how fast, predicted beside measured. `facts` are of the model that was opened first; after a
    fallback another one answers."""
    claim = loader.claim
    told = {"model": claim.model_name, "writer": claim.writer, "multiplier": f"{claim.multiplier:g}"}
    if claim.gpu_memory_gb:
        told["GPU memory"] = f"{claim.gpu_memory_gb:g} GB"
    told |= facts if facts.get("model") == claim.model_name else {"version": claim.model_info.version}
    return told | {"measured": _measured(answers, say), DETAIL: loader.health().detail}


def _measured(answers: list[Event], say: Words) -> str:
    """Say how fast the last answers were, from the first header to the last byte."""
    seconds: dict[str, list[float]] = {}
    tokens = 0
    for one in answers:
        if one.story is not None and one.seconds is not None:
            seconds.setdefault(one.what, []).append(one.seconds)
            tokens += one.tokens or 0
    if not seconds:
        return say("nothing answered yet")
    means = ", ".join(f"{task} {sum(of_task) / len(of_task):.0f} s" for task, of_task in sorted(seconds.items()))
    all_s, count = sum(map(sum, seconds.values())), sum(map(len, seconds.values()))
    return say(
        "{} tokens/s; {}; mean of the last {}, waiting included", f"{tokens / max(all_s, 1e-6):.0f}", means, str(count)
    )


def _answers(events: Iterable[Event], now_s: float, say: Words) -> str:
    heads = ("when", "task", "caller", "seconds", "tokens", "score", "would earn")
    note = say(
        "Full points for time up to {} s (the mark in each bar), none from {} s. The score is our own validator's, without a "
        "look for copies; “would earn” is that × the multiplier of the shipped reward policy.",
        f"{FULL_MARKS_S:.0f}",
        f"{NO_MARKS_S:.0f}",
    )
    rows = []
    for event in events:
        outcome, mark = _outcome(event, say)
        speed = event.tokens_per_s
        written = "" if speed is None else _one(say("{} at {}/s", str(event.tokens), f"{speed:.0f}"))
        called = [
            _one(say("{} ago", _span(now_s - event.at_s, say))),
            escape(say.inside(event.what)),
            escape(event.who),
        ]
        score = f'<span class="{mark}">{escape(outcome)}</span>'
        seconds, earned = event.seconds or 0.0, "0"
        colour = "good" if seconds <= FULL_MARKS_S else "warn" if seconds < NO_MARKS_S else "bad"
        percent = min(100, round(seconds / NO_MARKS_S * 100))
        bar = f'<i class="window"><i class="{colour}" style="width:{percent}%"></i></i>'
        if event.rewards is not None:
            proven, unproven = event.rewards
            earned = _one(f"{proven.final:.1f} = {proven.base:.1f} × {proven.multiplier:g}")
            if proven.final != unproven.final:
                earned += " " + _one(say("{} until proven", f"{unproven.final:.1f}"))
        rows.append([*called, f'<span class="one">{bar}{seconds:.1f}</span>', written, score, earned])
    return f'{_table(heads, rows, say)}<p class="note">{escape(note)}</p>'


def _outcome(event: Event, say: Words) -> tuple[str, str]:
    """Return the answer's validity and base score, with the parts that cost points, and a CSS class."""
    score = event.score
    if score is None:
        return say(MEANING.get(event.outcome, event.outcome)), "bad"
    if score.zeroed:
        return say("not valid: {}", say.inside(score.zeroed)), "bad"
    lost = [
        say("{} {} of {}", say.inside(part.name), f"{part.points:.1f}", f"{part.of:g}")
        for part in score.parts
        if part.points < part.of - 0.05
    ]
    valid = all(part.points == part.of for part in score.parts if part.name in ("json", "schema"))
    said = "valid, base score {} of 100" if valid else "not valid, base score {} of 100"
    words = say(said, f"{score.total:.0f}")
    return say("; ").join([words, *lost]) if lost else words, "good" if valid else "bad"


def _reasons(counts: Mapping[str, int], say: Words) -> str:
    top = max(counts.values(), default=1)
    rows = []
    for reason, count in sorted(counts.items(), key=lambda item: -item[1]):
        bar = f'<i class="bar" style="width:{round(count / top * 100)}px"></i>{count:,}'
        meaning = say(MEANING.get(reason, "a fault of this miner; the log says why"))
        rows.append([escape(reason), bar, escape(meaning)])
    return _table(("reason", "requests", "what it means"), rows, say)


def _refusals(events: Iterable[Event], now_s: float, say: Words) -> str:
    rows = []
    for event in events:
        who = f'<span class="who">{escape(event.who)}</span>'
        when = _one(say("{} ago", _span(now_s - event.at_s, say)))
        rows.append([when, escape(event.what), who, escape(event.outcome)])
    return _table(("when", "reason", "from", "detail"), rows, say)


def _table(heads: tuple[str, ...], rows: list[list[str]], say: Words) -> str:
    """Lay out cells of HTML; on a narrow screen each row becomes a card, with the heads as labels (status.css)."""
    if not rows:
        return f'<p class="note">{escape(say("none yet"))}</p>'
    said = [escape(say(name)) for name in heads]
    head = "".join(f"<th>{name}</th>" for name in said)
    body = ""
    for cells in rows:
        named = zip(said, cells, strict=True)
        row = "".join(f'<td data-label="{name}"><div>{cell}</div></td>' for name, cell in named)
        body += f"<tr>{row}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _one(words: str) -> str:
    """Keep a few words on one line."""
    return f'<span class="one">{escape(words)}</span>'


def _span(seconds: float, say: Words) -> str:
    if seconds < 60:
        return say("{} s", f"{max(0, seconds):.0f}")
    if seconds < 3_600:
        return say("{} min", f"{seconds / 60:.0f}")
    if seconds < 86_400:
        return say("{} h {} min", f"{seconds // 3_600:.0f}", f"{seconds % 3_600 / 60:.0f}")
    return say("{} days", f"{seconds / 86_400:.0f}")


# The chart: figures and fixed words only, so nothing of it needs escaping ------------------------------------------


def last_hour(minutes: Iterable[Minute], now_s: float, say: Words) -> str:
    """Draw the last hour as HTML with two charts in SVG, one column a minute: the mean and the slowest answer, of 60 s; what
    got no answer."""
    this = int(now_s // 60)
    columns = [(KEPT_MINUTES - 1 - (this - one.at), one) for one in minutes if this - one.at < KEPT_MINUTES]
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
<svg viewBox="0 0 {KEPT_MINUTES} {NO_MARKS_S:.0f}" preserveAspectRatio="none" role="img" aria-label="{said}">
<line x1="0" x2="{KEPT_MINUTES}" y1="{FULL_MARKS_S:.0f}" y2="{FULL_MARKS_S:.0f}"/>{times}</svg>
<div class="scale"><span>{most or ""}</span></div>
<svg class="low" viewBox="0 0 {KEPT_MINUTES} 10" preserveAspectRatio="none" aria-hidden="true">{refusals}</svg>
<div></div><div class="hours"><span>{say("an hour ago")}</span><span>{say("30 min")}</span>
<span>{say("now")}</span></div></div><p class="note">{_key("good", say("mean of a minute"))}
{_key("slow", say("its slowest"))} {_key("bad", say("refused or not answered"))}</p>"""


def _key(colour: str, meaning: str) -> str:
    return f'<span class="one"><i class="key {colour}"></i>{meaning}</span>'


def _bar(at: int, height: float, of: float, colour: str, tip: str) -> str:
    height = min(of, max(of / 20, height))
    box = f'x="{at + 0.1:.1f}" width="0.8" y="{of - height:.1f}" height="{height:.1f}"'
    return f'<rect class="{colour}" {box}><title>{tip}</title></rect>'
