"""Encodes constraints as arrays for the device: each is a comparison of a value of the response with a number.

Seventeen types of IFEval and five of our own are such comparisons; their meaning, quirks included, is documented where they
are registered. Keywords become patterns of symbols that `device.verify` matches with bit operations. This module runs on the
host, in NumPy, once per data set. Letters in shapes: N prompts, C constraints of a prompt, M patterns of a prompt, W symbols
of a pattern.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hir_jax.checks import registry
from hir_jax.checks.ifeval.format import ANSWERS, POSTSCRIPTS
from hir_jax.types import Array, Constraint

MAX_SYMBOLS = 96  # of a pattern
MAX_PATTERNS = 64  # patterns of a prompt; constraints that exceed either limit are left to the host

# ---- Patterns: each place of a text is a word of bits; a symbol (mask, value) matches the places with word & mask == value

_LOWER = 0x007F  # seven bits: the character in lower case
_UPPER = 0x0080  # a capital letter
_TEXT = 0x0100  # any character
_SPACE, _DIGIT, _OTHER = 0x0200, 0x0400, 0x0800  # \s, \d, anything but a line feed
EDGE_AFTER, EDGE_BEFORE = 0x1000, 0x2000  # a boundary (\b) between this place and the next; and the one before
BODY = 0x4000  # inside the text, after white space and then quotation marks are stripped from its ends
END = 0x8000  # the first place behind the body

Symbol = tuple[int, int]
IS_SPACE = np.isin(np.arange(256), [*range(9, 14), *range(28, 33)])  # ASCII white space as `re` and `str` see it
_IS_DIGIT = np.isin(np.arange(256), list(b"0123456789"))
_IS_CAPITAL = np.isin(np.arange(256), list(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
_IS_LETTER = np.isin(np.arange(256) | 32, list(b"abcdefghijklmnopqrstuvwxyz")) & (np.arange(256) < 128)
# Verdicts are for ASCII alone, where \w is the same for `re` and for NLTK's engine (see `english`).
IS_WORD = _IS_LETTER | _IS_DIGIT | (np.arange(256) == ord("_"))
CHARACTER = (
    (np.where(_IS_CAPITAL, np.arange(256) | 32, np.arange(256)) & _LOWER | _IS_CAPITAL * _UPPER | _TEXT)
    | (IS_SPACE * _SPACE | _IS_DIGIT * _DIGIT | (np.arange(256) != 10) * _OTHER)
).astype(np.uint16)  # u16[256]: the bits that depend on the character alone

_MAX_ALTERNATIVES = 4
_CLASSES = {r"\s": _SPACE, r"\d": _DIGIT, ".": _OTHER}
_PART = re.compile(r"\\s\??|\\[db]|\\[^a-zA-Z0-9]|[^\\^$*+?{}\[\]()|]", re.DOTALL)


class _HostOnlyError(Exception):
    """This constraint cannot be encoded; the host decides it."""


@functools.lru_cache(4096)  # the words of many rows are the same
def _symbols(pattern: str, *, exact: bool = False, body: bool = False) -> tuple[tuple[Symbol, ...], ...]:
    r"""The alternatives (of `\s?`) of a regular expression of literals, `.`, `\s`, `\d` and, at its ends, `\b`.

    Letter case counts if `exact`. With `body` the symbols match only inside the text stripped of its ends (BODY).
    """
    parts = _PART.findall(pattern)
    if "".join(parts) != pattern or not pattern.isascii():
        raise _HostOnlyError
    found: list[tuple[Symbol, ...]] = [()]
    for i, part in enumerate(parts):
        if part == r"\b":
            first, last = i == 0, i == len(parts) - 1
            if first == last:
                raise _HostOnlyError
            bits = value = EDGE_AFTER if first else EDGE_BEFORE  # matches the neighbouring place
        elif part in (*_CLASSES, r"\s?"):
            bits = value = _CLASSES[part.rstrip("?")]
        else:
            bits = _LOWER | _TEXT | _UPPER * exact | BODY * body
            value = (int(CHARACTER[ord(part[-1])]) | BODY) & bits
        choices = [((bits, value),), ()] if part == r"\s?" else [((bits, value),)]
        found = [s + t for s in found for t in choices]
        if len(found) > _MAX_ALTERNATIVES:
            raise _HostOnlyError
    return tuple(found)


def _overlaps(patterns: Sequence[Sequence[Symbol]]) -> list[list[Symbol]]:
    """Patterns of two overlapping matches, or slightly more general ones: in a text without any of them, every match counts."""

    def together(a: Symbol, b: Symbol) -> bool:
        if (a[0] | b[0]) & (EDGE_AFTER | EDGE_BEFORE):
            return True
        return bool((((CHARACTER[:128] & a[0]) == a[1]) & ((CHARACTER[:128] & b[0]) == b[1])).any())

    return [
        [*a[:shift], *b]
        for i, a in enumerate(patterns)
        for j, b in enumerate(patterns)
        for shift in range(int(i == j), len(a))
        if all(map(together, a[shift:], b))
    ]


# ---- Conditions: constraints as data --------------------------------------------------------------------------------

# Values of a response: the first two are counts of the constraint's own patterns, the others depend on the text alone.
MATCHES, FOUND, WORDS, PARAGRAPHS, BULLETS, HIGHLIGHTS, PLACEHOLDERS, TITLES, QUOTATION, TWO_RESPONSES = range(10)
AT_LEAST, LESS_THAN, EXACTLY = range(3)


class Condition(NamedTuple):
    """One constraint: met if `value` of the response is in `relation` to `number`; unknown where one of `doubts` occurs."""

    value: int
    relation: int
    number: int
    patterns: Sequence[Sequence[Symbol]] = ()
    doubts: Sequence[Sequence[Symbol]] = ()


def _occurs(patterns: Sequence[Sequence[Symbol]]) -> Condition:
    return Condition(MATCHES, AT_LEAST, 1, patterns)


def _never(patterns: Sequence[Sequence[Symbol]]) -> Condition:
    return Condition(MATCHES, LESS_THAN, 1, patterns)


def _counted(patterns: Sequence[Sequence[Symbol]], number: int, relation: str) -> Condition:
    return Condition(MATCHES, _relation(relation), number, patterns, _overlaps(patterns))


def _sections(splitter: str, number: int) -> Condition:
    # A match also takes the digits and white space that follow, so no other match may begin with them.
    patterns = _symbols(rf"{splitter}\s?\d", exact=True)
    if _overlaps(patterns):
        raise _HostOnlyError
    return Condition(MATCHES, AT_LEAST, number, patterns)


def _relation(relation: str) -> int:
    return {"at least": AT_LEAST, "less than": LESS_THAN}[relation]


def _existence(keywords: Sequence[str]) -> Condition:
    patterns = [_symbols(keyword) for keyword in keywords]
    if any(len(alternatives) > 1 for alternatives in patterns):
        raise _HostOnlyError
    return Condition(FOUND, AT_LEAST, len(patterns), _joined(patterns))


def _joined(patterns: Sequence[Sequence[Sequence[Symbol]]]) -> list[Sequence[Symbol]]:
    return [alternative for alternatives in patterns for alternative in alternatives]


def _begins_with(phrase: str) -> Condition:
    # Only one place outside the body is followed by a place inside it: the one before the body.
    return _occurs([[(BODY, 0), *symbols] for symbols in _symbols(re.escape(phrase.strip()) + r"\b", body=True)])


def _one_of(word: str, others: Sequence[str]) -> Condition:
    # The word's pattern is repeated once more than there are others, so that only the word without any of them gives the sum.
    patterns = _joined([_symbols(rf"\b{each}\b") for each in (*[word] * (len(others) + 1), *others)])
    return Condition(FOUND, EXACTLY, len(others) + 1, patterns)


# Constraint id -> its condition, given the arguments by name.
_CONDITIONS: dict[str, Callable[..., Condition]] = {
    "punctuation:no_comma": lambda: _never(_symbols(",")),
    "keywords:existence": _existence,
    "keywords:forbidden_words": lambda forbidden_words: _never(
        _joined([_symbols(rf"\b{word}\b") for word in forbidden_words])
    ),
    "keywords:frequency": lambda keyword, frequency, relation: _counted(_symbols(keyword.strip()), frequency, relation),
    "keywords:letter_frequency": lambda letter, let_frequency, let_relation: _counted(
        _symbols(letter.strip()), let_frequency, let_relation
    ),
    "length_constraints:number_words": lambda num_words, relation: Condition(WORDS, _relation(relation), num_words),
    "length_constraints:number_paragraphs": lambda num_paragraphs: Condition(PARAGRAPHS, EXACTLY, num_paragraphs),
    "detectable_content:number_placeholders": lambda num_placeholders: Condition(
        PLACEHOLDERS, AT_LEAST, num_placeholders
    ),
    "detectable_content:postscript": lambda postscript_marker: _occurs(
        _symbols(POSTSCRIPTS.get(postscript_marker.strip(), postscript_marker.strip().lower()))
    ),
    "detectable_format:number_bullet_lists": lambda num_bullets: Condition(BULLETS, EXACTLY, num_bullets),
    "detectable_format:constrained_response": lambda: _occurs(
        _joined([_symbols(re.escape(a), exact=True) for a in ANSWERS])
    ),
    "detectable_format:number_highlighted_sections": lambda num_highlights: Condition(
        HIGHLIGHTS, AT_LEAST, num_highlights
    ),
    "detectable_format:multiple_sections": lambda section_spliter, num_sections: _sections(
        section_spliter.strip(), num_sections
    ),
    "detectable_format:title": lambda: Condition(TITLES, AT_LEAST, 1),
    "combination:two_responses": lambda: Condition(TWO_RESPONSES, AT_LEAST, 1),
    "startend:end_checker": lambda end_phrase: _occurs(
        [[*symbols, (END, END)] for symbols in _symbols(re.escape(end_phrase.strip()), body=True)]
    ),
    "startend:quotation": lambda: Condition(QUOTATION, AT_LEAST, 1),
    "training:questions": lambda number: Condition(MATCHES, EXACTLY, number, _symbols(r"\?")),
    "training:word_times": lambda word, times: Condition(MATCHES, EXACTLY, times, _symbols(rf"\b{word}\b")),
    "tiny:begins_with": _begins_with,
    "tiny:one_of": _one_of,
    "tiny:no_postscript": lambda: _never(_symbols(POSTSCRIPTS["P.S."])),
}
IDS = tuple(_CONDITIONS)  # types that can be decided on the device, unless their arguments are unusual


def _condition(constraint: Constraint) -> Condition | None:
    """The constraint's condition; None if it is left to the host."""
    if constraint.id not in _CONDITIONS:
        return None
    try:
        registry.validate(constraint)
        condition = _CONDITIONS[constraint.id](**constraint.arguments)
    except (_HostOnlyError, registry.ConstraintError):
        return None
    patterns = (*condition.patterns, *condition.doubts)
    fits = len(patterns) <= MAX_PATTERNS and all(len(p) <= MAX_SYMBOLS for p in patterns)
    return condition if fits else None


def decides(constraint: Constraint) -> bool:
    """Whether this constraint is decided on the device (for any response in ASCII that is not too long).

    Its type is one of IDS, its arguments are usable and its keywords are plain: ASCII, and no regular expressions except
    dots, classes and escapes. (The rare text in which counted keywords overlap is still left to the host.)
    """
    return _condition(constraint) is not None


class Conditions(NamedTuple):
    """The constraints of N prompts as arrays; NumPy on the host, indexed by prompt to make a batch."""

    value: Array  # i32[N, C]: MATCHES to TWO_RESPONSES
    relation: Array  # i32[N, C]
    number: Array  # i32[N, C]
    present: Array  # bool[N, C]
    decidable: Array  # bool[N, C]
    owner: Array  # i32[N, M]: the constraint that the pattern belongs to, -1 for none
    doubt: Array  # bool[N, M]: the pattern is one of its doubts
    mask: Array  # u16[N, M, W]: symbols; padded with (0, 0), which matches anything
    wanted: Array  # u16[N, M, W]


def encode(rows: Sequence[Sequence[Constraint]], width: int) -> Conditions:
    """Encodes the constraints of N prompts, padded to C = `width`; M and W are the smallest that hold their patterns.

    Raises ValueError for a prompt of more than `width` constraints.
    """
    shape = (len(rows), width)
    value, relation, number = (np.zeros(shape, np.int32) for _ in range(3))
    present, decidable = (np.zeros(shape, bool) for _ in range(2))
    patterns: list[list[tuple[int, bool, Sequence[Symbol]]]] = [[] for _ in rows]
    for n, constraints in enumerate(rows):
        if len(constraints) > width:
            raise ValueError(f"prompt {n} has {len(constraints)} constraints, more than the {width} columns")
        present[n, : len(constraints)] = True
        for c, constraint in enumerate(constraints):
            found = _condition(constraint)
            if found is None or len(patterns[n]) + len(found.patterns) + len(found.doubts) > MAX_PATTERNS:
                continue
            decidable[n, c] = True
            value[n, c], relation[n, c] = found.value, found.relation
            number[n, c] = min(int(found.number), np.iinfo(np.int32).max)  # no count comes near
            patterns[n] += [(c, False, p) for p in found.patterns] + [(c, True, p) for p in found.doubts]
    slots = max([1, *map(len, patterns)])
    longest = max((len(p) for row in patterns for *_, p in row), default=1)
    owner, doubt = np.full((len(rows), slots), -1, np.int32), np.zeros((len(rows), slots), bool)
    symbols = np.zeros((len(rows), slots, longest, 2), np.uint16)
    for n, row in enumerate(patterns):
        for m, (c, doubtful, pattern) in enumerate(row):
            owner[n, m], doubt[n, m] = c, doubtful
            symbols[n, m, : len(pattern)] = pattern
    return Conditions(value, relation, number, present, decidable, owner, doubt, *np.moveaxis(symbols, -1, 0))
