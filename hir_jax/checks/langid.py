"""The language of a text: the answers of langdetect 1.0.9 (Apache-2.0) with seed 0, about ten times as fast.

The method is naive Bayes over n-grams of 1 to 3 letters (Shuyo Nakatani's language-detection): seven trials multiply the
likelihoods of n-grams drawn from the text until one language is all but certain, and the mean of the trials decides. The
answers are equal, not close: profiles and letter tables are those of the installed package, random numbers are drawn in the
same order, and floating point operations are the same in the same order. It is faster because n-grams are looked up once a
word, the 55 languages are one array, and trials that cannot change the answer are left out.
"""

from __future__ import annotations

import functools
import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_SEED = 0
_TRIALS = 7
_ALPHA, _ALPHA_WIDTH = 0.5, 0.05  # smoothing, drawn anew for each trial: mean and standard deviation
_BASE_FREQUENCY = 10000
_CHECK_EVERY = 5  # draws between normalisations
_LAST_DRAW = 1000  # index of a trial's last draw
_CERTAIN = 0.99999  # probability that ends a trial
_LEAST = 0.1  # a mean probability must be above this to name a language
_LONGEST_TEXT = 10000  # characters

_CHUNK = 50  # draws made at once
_KEPT_LENGTH = 30  # letters; longer words are rarely repeated and would fill the cache
_WORDS = 16384  # random 32-bit words: a text takes at most 7 * 1,001 draws, and at least half of the words are usable

_URL = re.compile(r"https?://[-_.?&~;+=/#0-9A-Za-z]{1,2076}")
_MAIL = re.compile(r"[-_.0-9A-Za-z]{1,64}@[-_0-9A-Za-z]{1,255}[-_.0-9A-Za-z]{1,255}")
_LATIN = re.compile("[A-z]")  # including the six signs between Z and a, as in langdetect
_FOREIGN = re.compile("[\u0300-\U0010ffff]")

UNKNOWN = "unknown"


class _Profiles(NamedTuple):
    languages: tuple[str, ...]
    rows: dict[str, int]  # n-gram -> row
    likelihood: np.ndarray  # f64[n-grams, languages]


class _Letters(dict[int, str]):
    """For str.translate: langdetect's normalised form of each character, computed once."""

    def __missing__(self, code: int) -> str:
        from langdetect.utils.ngram import NGram

        self[code] = NGram.normalize(chr(code))
        return self[code]


_LETTERS = _Letters()


@functools.cache
def _profiles() -> _Profiles:
    from langdetect.detector_factory import PROFILES_DIRECTORY

    # Sorted, since sums over languages are taken in this order and a directory listing differs between machines.
    files = sorted(path for path in Path(PROFILES_DIRECTORY).iterdir() if not path.name.startswith((".", "_")))
    profiles = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    grams = dict.fromkeys(gram for profile in profiles for gram in profile["freq"])
    rows = {gram: row for row, gram in enumerate(grams)}
    likelihood = np.zeros((len(rows), len(profiles)))
    for language, profile in enumerate(profiles):
        counts = profile["freq"]
        totals = np.array(profile["n_words"], np.float64)[[len(gram) - 1 for gram in counts]]
        likelihood[[rows[gram] for gram in counts], language] = np.array(list(counts.values()), np.float64) / totals
    return _Profiles(tuple(profile["name"] for profile in profiles), rows, likelihood)


def load() -> None:
    """Read the profiles (55 JSON files, a 38 MB table)."""
    _profiles()


def _cleaned(text: str) -> str:
    """The text without addresses, and without Latin letters if most of its letters are of other scripts."""
    if "://" in text:
        text = _URL.sub(" ", text)
    if "@" in text:
        text = _MAIL.sub(" ", text)
    if text.isascii():
        return text[:_LONGEST_TEXT]
    from langdetect.utils.ngram import NGram

    text = NGram.normalize_vi(text)[:_LONGEST_TEXT]
    if len(_LATIN.findall(text)) * 2 < len(_FOREIGN.findall(text)):
        text = _LATIN.sub("", text)
    return text


def _word_rows(word: str) -> tuple[int, ...]:
    """Rows of a word's known n-grams, by their last letter, then by length. `word` ends in a space unless it ends the text.
    N-grams reach back to the space before the word; none ends in the second of two capitals."""
    rows = _profiles().rows
    text = " " + word
    found = []
    for end in range(2, len(text) + 1):
        if text[end - 1].isupper() and text[end - 2].isupper():
            continue
        for start in range(end - 1, max(end - 4, -1), -1):
            gram = text[start:end]
            if gram != " " and gram in rows:
                found.append(rows[gram])
    return tuple(found)


_kept_word_rows = functools.lru_cache(maxsize=1 << 15)(_word_rows)


def _text_rows(text: str) -> list[int]:
    """Rows of the text's known n-grams in langdetect's order."""
    *closed, last = _cleaned(text).translate(_LETTERS).split(" ")
    found: list[int] = []
    for word in closed:
        if word:
            look_up = _kept_word_rows if len(word) <= _KEPT_LENGTH else _word_rows
            found += look_up(word + " ")
    return found + list(_word_rows(last))


# The trials. Random numbers come from a table of the generator's output, used in the same way as random.Random does.


@functools.cache
def _random_words() -> np.ndarray:
    """u32[_WORDS]: the generator's output from the seed on."""
    rng = random.Random(_SEED)
    return np.array([rng.getrandbits(32) for _ in range(_WORDS)], np.uint32)


def _normals(position: int) -> list[float]:
    """The results of two calls of random.gauss(0, 1) with the four words from `position` on, the second one first."""
    pairs = _random_words()[position : position + 4].reshape(2, 2).tolist()
    first, second = (((a >> 5) * 2**26 + (b >> 6)) / 2**53 for a, b in pairs)
    angle, radius = first * (2 * math.pi), math.sqrt(-2.0 * math.log(1.0 - second))
    return [math.sin(angle) * radius, math.cos(angle) * radius]


def _draws(count: int, size: int, position: int) -> tuple[list[int], np.ndarray]:
    """`size` draws of random.choice from `count` items with the words from `position` on, and the position after each.

    A draw takes as many leading bits of a word as `count` has, and the next word if that is not below `count`.
    """
    numbers = _random_words()[position : position + 5 * size] >> (32 - count.bit_length())
    places = np.flatnonzero(numbers < count)[:size]
    if len(places) < size:
        raise RuntimeError(f"no {size} random numbers below {count} from word {position} on")
    return numbers[places].tolist(), places + (position + 1)


def _trial(rows: Sequence[int], weight: float, position: int) -> tuple[np.ndarray, int]:
    """Probabilities f64[languages] after one trial with the words from `position` on, and the position after it."""
    likelihood = _profiles().likelihood
    chance = np.full(likelihood.shape[1], 1.0 / likelihood.shape[1])
    for chunk in range(_LAST_DRAW // _CHUNK):
        size = _CHUNK + (chunk == 0)  # the first probabilities are normalised after 1 draw, then after 6, 11, ...
        indices, after = _draws(len(rows), size, position)
        factors = likelihood.take([rows[i] for i in indices], 0)
        factors += weight
        begin = 0
        for end in range(1 if chunk == 0 else _CHECK_EVERY, size + 1, _CHECK_EVERY):
            factors[begin] *= chance
            np.multiply.reduce(factors[begin:end], 0, out=chance)  # from the first row to the last
            values = chance.tolist()
            total = sum(values)  # Python's sum, which rounds differently in 3.11 and 3.12, as langdetect then does too
            chance /= total
            if max(values) / total > _CERTAIN:
                return chance, int(after[end - 1])
            begin = end
        position = int(after[-1])
    return chance, position


@functools.lru_cache(maxsize=512)
def detect(text: str) -> str | None:
    """langdetect's code of the language ("en", "zh-cn", ..., or "unknown"); None for text without letters it knows.

    The last answers are cached, because several constraints of a row ask about one response.
    """
    rows = _text_rows(text)
    return _best(rows) if rows else None


def _best(rows: Sequence[int]) -> str:
    languages = _profiles().languages
    mean = np.zeros(len(languages))
    position = 0
    normals: list[float] = []
    for trial in range(1, _TRIALS + 1):
        if not normals:
            normals, position = _normals(position), position + 4
        chance, position = _trial(rows, (_ALPHA + normals.pop() * _ALPHA_WIDTH) / _BASE_FREQUENCY, position)
        mean += chance / _TRIALS
        second, first = np.partition(mean, -2)[-2:]
        if first - second > (_TRIALS - trial) / _TRIALS + 1e-9:  # more than the remaining trials could make up for
            break
    best = int(mean.argmax())
    return languages[best] if mean[best] > _LEAST else UNKNOWN
