"""Measures text in any script: folding, terms, sentences, passages. Pure; it knows no task and no score.

Words are counted where a script writes spaces between them. Where it does not (Chinese, Japanese, Thai, Lao, Khmer, Burmese,
Tibetan), runs of characters are counted. Texts are compared folded, so that case, accents, full-width forms, common look-alike
letters, invisible characters, punctuation and spacing make no difference. Paraphrase, translation, and simplified against
traditional Chinese still make one. All functions take time in proportion to the text's length.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

SEPARATOR = "\0"  # between the strings of one answer; no passage or bigram reaches over it
PASSAGE_SYMBOLS = 12  # about two and a half English words, or six Chinese characters

# Unicode's Default_Ignorable_Code_Point, and the blanks that are not white space.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_WHITE_SPACE = re.compile(r"\s+")
# Scripts that write no space between words.
_UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED_GAP = re.compile(f"(?<=[{_UNSPACED}]) | (?=[{_UNSPACED}])")
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
KANA = re.compile("[\u3041-\u30ff]")
_SPACES = re.compile(" +")
# Of a folded text: marks beyond 30 in a row, as in Unicode's Stream-Safe Text Format (UAX 15). To put marks in order takes
# the square of their number.
_MARKS_TOO_MANY = re.compile(r"([^\w \0]{30})[^\w \0]+")
# Marks that no writing system puts there: on letters of scripts that need none (from Hebrew to Vedic, and the later Indic
# blocks, do).
_STRAY_MARKS = re.compile(r"(^|[^\u0590-\u1cff\ua800-\uabff])[^\w \0]+")
_SMALL_CAPITAL = "LATIN LETTER SMALL CAPITAL "
_SENTENCE_END = re.compile(r"[.!?。！？…।؟۔։።\n\0]+")
_LAST_SENTENCE_END = re.compile(r"[.!?。！？…।؟۔։።][\s\"'”’»」』)）\]】》〉]*\Z")

# Letters that look like another, as they are after case folding: a small part of Unicode's confusables.txt.
_LOOK_ALIKES = {
    **dict(zip("авеһікмнорсѕтухјԛԝьӏ", "abehlkmhopcstyxjqwbl", strict=True)),  # Cyrillic
    **dict(zip("αβγεζηικμνορσςτυχω", "abyeznlkmvopootuxw", strict=True)),  # Greek
    **dict(zip("օսհոցյ", "ouhngj", strict=True)),  # Armenian
    **dict(zip("iı1łɩ0øđħŧɑɡʋ", "llllloodhtagv", strict=True)),  # Latin: a capital I is an l to the eye
    **dict(zip("ロカタニハエトー", "口力夕二八工卜一", strict=True)),  # kana that look like Han
}

_STOP_HAN = re.compile(
    "[\u3000-\u30ff的了是在和与一个有这那我你他她它们不之也就都而及着或被把从到为以其于上下中里请写关故事]+"
)


class _Folding(dict[int, str]):
    """Serves `str.translate` as a table, which is filled as characters are met."""

    def __missing__(self, code: int) -> str:
        folded = "".join(map(_folded, unicodedata.normalize("NFKD", chr(code)).casefold()))
        if len(self) < 50_000:  # more than any honest traffic holds
            self[code] = folded
        return folded


def _folded(char: str) -> str:
    """Fold one decomposed character: an accent or point goes, and what is no letter, mark or digit becomes a space."""
    kind, place = unicodedata.category(char), unicodedata.combining(char)
    if kind in ("Cf", "Me") or place == 1 or 10 <= place <= 36 or place >= 200:
        return ""
    if kind[0] in "LM" or kind == "Nd":
        name = unicodedata.name(char, "")
        letter = name.removeprefix(_SMALL_CAPITAL).lower()
        char = letter if name.startswith(_SMALL_CAPITAL) and len(letter) == 1 else char
        return _LOOK_ALIKES.get(char, char)
    return SEPARATOR if char == SEPARATOR else " "


_FOLDING = _Folding()


def strings(value: Any, limit_chars: int) -> Iterator[str]:
    """Yield every string in `value`, keys apart, in order, up to `limit_chars` in all. Without recursion."""
    stack = [value]
    while stack and limit_chars > 0:
        item = stack.pop()
        if isinstance(item, str):
            yield item[:limit_chars]
            limit_chars -= len(item)
        elif isinstance(item, dict):
            stack.extend(reversed(item.values()))
        elif isinstance(item, list):
            stack.extend(reversed(item))


def visible(text: str) -> str:
    """Return the text without invisible characters, and each run of white space as one space."""
    return _WHITE_SPACE.sub(" ", _INVISIBLE.sub("", text))


def fold(text: str) -> str:
    """Return the form in which texts are compared. SEPARATOR stays; spaces stay only where the script uses them."""
    text = _MARKS_TOO_MANY.sub(r"\1", _INVISIBLE.sub("", text).translate(_FOLDING))
    text = unicodedata.normalize("NFC", text)  # Hangul and kana together again
    return _UNSPACED_GAP.sub("", _SPACES.sub(" ", _STRAY_MARKS.sub(r"\1", text)))


# Function words tell nothing of a topic. English only: elsewhere short words are left out by their length.
_STOP_WORDS = frozenset(
    fold(
        """about after again all also and any are because been before being between both but can could did does down
each ever every for from had has have her here hers him his how however into its just like made make many more most much
must not now off once only other our out over own same she should some such than that the their them then there these they
this those through too under until upon very was were what when where which while who whom whose why will with without
would you your story write tale"""
    ).split()
)


# --- numbers for each place in a folded text ---------------------------------------------------------------------


def _codes(folded: str) -> npt.NDArray[np.uint64]:
    return np.frombuffer(folded.encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix bits with the finalizer of splitmix64: every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def bigrams(folded: str) -> npt.NDArray[np.uint32]:
    """Return a number for each pair of neighbouring characters, in order of the text, repeats included."""
    codes = _codes(folded)
    if len(codes) < 2:
        return np.empty(0, np.uint32)
    inside = (codes[1:] != 0) & (codes[:-1] != 0)
    pairs = (codes[:-1] << np.uint64(32)) | codes[1:]
    return (_mix(pairs[inside]) >> np.uint64(32)).astype(np.uint32)


def passages(folded: str) -> npt.NDArray[np.uint64]:
    """Return a number for each passage of PASSAGE_SYMBOLS, in order of the text, repeats included. Spaces do not count; a Han,
    kana or Hangul character counts as two symbols, because it says about as much as two letters."""
    codes = _codes(folded.replace(" ", ""))
    wide = (codes >= 0x2E80) & (codes <= 0xD7AF) | (codes >= 0x20000) | (codes >= 0xF900) & (codes <= 0xFAFF)
    symbols = np.repeat(codes, np.where(wide, 2, 1))
    count = len(symbols) - PASSAGE_SYMBOLS + 1
    if count < 1:
        return np.empty(0, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for offset in range(PASSAGE_SYMBOLS):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + symbols[offset : offset + count]
    ends = np.concatenate(([0], np.cumsum(symbols == 0)))
    whole = ends[PASSAGE_SYMBOLS:] == ends[:-PASSAGE_SYMBOLS]
    return _mix(hashes[whole])


def repeated_share(hashes: npt.NDArray[np.uint64]) -> float:
    """Return the share of a text's passages that stood in it before, 0 to 1. In prose it is near 0."""
    return 1 - len(np.unique(hashes)) / len(hashes) if len(hashes) else 0.0


def variety(folded: str) -> float:
    """Return the share of different words (or characters, where there are no spaces) among each hundred in a row, on average."""
    units = [unit for word in folded.replace(SEPARATOR, " ").split() for unit in _units(word)]
    hundreds = [units[at : at + 100] for at in range(0, max(1, len(units) - 99), 100)] if units else []
    return sum(len(set(some)) / len(some) for some in hundreds) / max(1, len(hundreds))


def _units(word: str) -> list[str]:
    if not _UNSPACED_RUN.search(word):
        return [word]
    letters = "".join(_UNSPACED_RUN.findall(word))
    if letters[0] >= "\u2e80":
        return list(letters)
    return [letters[at : at + 3] for at in range(0, len(letters), 3)]  # Thai and its neighbours: letters, not words


# --- what a text is about ----------------------------------------------------------------------------------------


def terms(folded: str) -> frozenset[str]:
    """Return what a text is about, roughly: stems of its longer words; pairs of Han characters; runs of katakana; four letters
    at a time of Thai and its neighbours. Function words are left out where they are known."""
    found: set[str] = set()
    for word in folded.replace(SEPARATOR, " ").split():
        for run in _UNSPACED_RUN.findall(word):
            if run[0] < "\u2e80":
                found.update(run[at : at + 4] for at in range(max(1, len(run) - 3)))
                continue
            found.update(re.findall("[\u30a1-\u30fc]{2,}", run))
            for han in _STOP_HAN.sub(" ", run).split():
                found.update(map("".join, pairwise(han)))
        for rest in _UNSPACED_RUN.split(word):
            # its beginning is enough for keeper and keepers, and for Hangul without its particles
            if "\uac00" <= rest[:1] <= "\ud7a3":
                found.update([rest[:2]] if len(rest) >= 2 else [])
            elif len(rest) >= (3 if rest.isascii() else 4) and rest not in _STOP_WORDS:
                found.add(rest.removesuffix("s")[:5])
    return frozenset(found)


def sentence_lengths(text: str) -> list[tuple[int, int]]:
    """Return, for each sentence of a text that was not folded, its length in words (in characters, where there are no spaces
    between words) and the greatest length that reads well."""
    found = []
    for sentence in _SENTENCE_END.split(text):
        unspaced = sum(map(len, _UNSPACED_RUN.findall(sentence)))
        if unspaced * 2 > len(sentence.strip()):
            spread = _UNSPACED_RUN.search(sentence)
            thai = spread is not None and spread[0][0] < "\u2e80"  # ends sentences with a space
            found += [(len(part), 300 if thai else 100) for part in (sentence.split() if thai else [sentence.strip()])]
        elif sentence.strip():
            found.append((len(sentence.split()), 50))
    return found


def ends_a_sentence(text: str) -> bool:
    """Return whether the text, not folded, stops where a sentence does; always in scripts that end a sentence with a space."""
    last = text.rstrip()[-1:]
    return "\u0e00" <= last <= "\u17ff" or bool(_LAST_SENTENCE_END.search(text))


# --- scripts -----------------------------------------------------------------------------------------------------

_SCRIPTS = {"CJK": "Han", "HIRAGANA": "kana", "KATAKANA": "kana", "HALFWIDTH": "kana"}


@lru_cache(maxsize=20_000)
def _script(char: str) -> str | None:
    """Return a letter's script, which is the first word of its Unicode name; None if it is no letter."""
    if not char.isalpha():
        return None
    word = unicodedata.name(char, "UNKNOWN").split(" ")[0]
    return _SCRIPTS.get(word, word.capitalize())


def script_shares(text: str) -> dict[str, float]:
    """Return the share of each script among the text's letters, the largest first."""
    counts: Counter[str] = Counter()
    for char, count in Counter(text).items():
        for script in filter(None, map(_script, unicodedata.normalize("NFKC", char))):
            counts[script] += count
    return {script: count / counts.total() for script, count in counts.most_common()}


def same_language_share(asked: str, answer: str) -> tuple[float, str]:
    """Return the share of the answer's letters in the scripts of the request, and the request's language by its script: "Han",
    "Japanese" (kana with Han) or the script's name. Languages of one script are not told apart. If the request has no letter,
    every script will do."""
    wanted = script_shares(asked)
    if not wanted:
        return 1.0, "any"
    found = script_shares(answer)
    if wanted.get("kana", 0) > 0.05:
        return (found.get("kana", 0) + found.get("Han", 0) if found.get("kana", 0) > 0.05 else 0.0), "Japanese"
    # Latin names in a Han text do not make it Latin, because a word takes many letters.
    main = "Han" if wanted.get("Han", 0) >= 0.2 else next(iter(wanted))
    if main == "Han" and found.get("kana", 0) > 0.05:
        return 0.0, "Han"  # Japanese is no answer in Chinese
    return found.get(main, 0.0), main


# --- from measures to marks --------------------------------------------------------------------------------------


def falling(value: float, full: float, none: float) -> float:
    """Return 1 at `full` and beyond, 0 at `none` and beyond, a line between; `none` may be the higher or the lower."""
    return min(1.0, max(0.0, (none - value) / (none - full)))
