"""Verifiable constraints made for training: like those of IFBench in kind, and none of its 58 test types.

Our own types and rules, in the spirit of the training constraints that were published along with IFBench
(arXiv 2507.02833), so that a model may learn to follow more than IFEval's 25 while IFBench stays unseen.

Words stand between white space and lose the ASCII marks at their ends; they are compared in any case. Sentences are
`english.rule_sentences` with a word in them. Lines and paragraphs (between blank lines) are the non-blank ones.
"""

from __future__ import annotations

import re
from typing import Any

from hir_jax.checks import english
from hir_jax.checks.ifbench.counts import POSITION, bare, ordinal, plural
from hir_jax.checks.registry import COUNT, TEXT, Argument, one_of, register

_SPACES = re.compile(r"[ \t]+")
_BLANK_LINES = re.compile(r"\n[ \t]*\n")


def _word(value: Any) -> str:
    word = TEXT.parse(value)
    if not re.fullmatch(r"\w+", word):
        raise ValueError
    return word


def _letter(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch("[A-Za-z]", value):
        raise ValueError
    return value


WORD = Argument("one word of letters and digits", _word)
LETTER = Argument("a letter from a to z", _letter)


def _words(text: str) -> list[str]:
    return [word for word in map(bare, text.lower().split()) if word]


def _sentences(text: str) -> list[list[str]]:
    """The words of each sentence."""
    return [words for words in map(_words, english.rule_sentences(text)) if words]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in _BLANK_LINES.split(text) if part.strip()]


def occurrences(word: str, text: str) -> int:
    """How often a word occurs as a whole word, whatever stands around it."""
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


@register("training:first_word", lambda word: f'The first word of the answer must be "{word}".', word=WORD)
def first_word(response: str, word: str) -> bool:
    return _words(response)[:1] == [word.lower()]


@register("training:last_word", lambda word: f'The last word of the answer must be "{word}".', word=WORD)
def last_word(response: str, word: str) -> bool:
    return _words(response)[-1:] == [word.lower()]


@register("training:same_ends", lambda: "The answer must end with the very word that it begins with.")
def same_ends(response: str) -> bool:
    words = _words(response)
    return len(words) > 1 and words[0] == words[-1]


@register(
    "training:sentence_letter",
    lambda letter: f"Begin every sentence with the letter {letter.upper()}.",
    letter=LETTER,
)
def sentence_letter(response: str, letter: str) -> bool:
    sentences = _sentences(response)
    return bool(sentences) and all(words[0].startswith(letter.lower()) for words in sentences)


@register("training:varied_starts", lambda: "Write at least two sentences, and begin no two with the same word.")
def varied_starts(response: str) -> bool:
    starts = [words[0] for words in _sentences(response)]
    return len(starts) > 1 and len(set(starts)) == len(starts)


@register(
    "training:sentence_length",
    lambda most: f"Write no sentence of more than {plural(most, 'word')}.",
    most=POSITION,
)
def sentence_length(response: str, most: int) -> bool:
    sentences = _sentences(response)
    return bool(sentences) and all(len(words) <= most for words in sentences)


@register("training:questions", lambda number: f"Use exactly {plural(number, 'question mark')}.", number=COUNT)
def questions(response: str, number: int) -> bool:
    return response.count("?") == number


@register(
    "training:word_times",
    lambda word, times: f'Use the word "{word}" exactly {plural(times, "time")}.',
    word=WORD,
    times=COUNT,
)
def word_times(response: str, word: str, times: int) -> bool:
    return occurrences(word, response) == times


def _within(number: int, word: str, paragraphs: int) -> str | None:
    return f"there is no paragraph {number} of {paragraphs}" if number > paragraphs else None


@register(
    "training:paragraph_keyword",
    lambda number, word, paragraphs: (
        f"Write {plural(paragraphs, 'paragraph')} with blank lines between them, "
        f'and use the word "{word}" in the {ordinal(number)} one and in no other.'
    ),
    together=_within,
    number=POSITION,
    word=WORD,
    paragraphs=POSITION,
)
def paragraph_keyword(response: str, number: int, word: str, paragraphs: int) -> bool:
    parts = _paragraphs(response)
    holds = [index for index, part in enumerate(parts, start=1) if occurrences(word, part)]
    return len(parts) == paragraphs and holds == [number]


@register(
    "training:paragraph_end",
    lambda paragraphs, ending: (
        f"Write {plural(paragraphs, 'paragraph')} with blank lines between them, "
        f'each of which ends with "{ending.strip()}".'
    ),
    paragraphs=POSITION,
    ending=TEXT,
)
def paragraph_end(response: str, paragraphs: int, ending: str) -> bool:
    parts = _paragraphs(response)
    return len(parts) == paragraphs and all(part.endswith(ending.strip()) for part in parts)


@register(
    "training:line_count",
    lambda lines: f"Write exactly {plural(lines, 'line')}; blank ones do not count.",
    lines=POSITION,
)
def line_count(response: str, lines: int) -> bool:
    return len(_lines(response)) == lines


_ITEM = re.compile(r"^[ \t]*(\d{1,9})[.)][ \t]+\S", re.MULTILINE)


@register(
    "training:numbered_list",
    lambda items: (
        f"Give a numbered list of exactly {plural(items, 'item')}, in lines that begin with 1., 2. and so on."
    ),
    items=POSITION,
)
def numbered_list(response: str, items: int) -> bool:
    return [int(number) for number in _ITEM.findall(response)] == list(range(1, items + 1))


_COMPOUND = re.compile(r"(?<![\w-])[^\W\d_]+(?:-[^\W\d_]+)+(?![\w-])")


@register(
    "training:hyphenated",
    lambda number: f"Use at least {plural(number, 'different hyphenated word')}, such as well-known.",
    number=POSITION,
)
def hyphenated(response: str, number: int) -> bool:
    return len(set(_COMPOUND.findall(response.lower()))) >= number


@register(
    "training:long_words",
    lambda number, letters: f"Use at least {plural(number, 'different word')} of {letters} or more letters.",
    number=POSITION,
    letters=POSITION,
)
def long_words(response: str, number: int, letters: int) -> bool:
    # A run of letters: a link or a row of dashes is no word.
    words = {word for word in re.findall(r"[^\W\d_]+", response.lower()) if len(word) >= letters}
    return len(words) >= number


_SIGNS = {
    "digits": "0123456789",
    "exclamation marks": "!",
    "question marks": "?",
    "semicolons": ";",
    "colons": ":",
    "hyphens": "-",
    "parentheses": "()",
    "double quotation marks": '"“”',
    "apostrophes": "'’",
}


@register("training:without", lambda signs: f"Do not use any {signs}.", signs=one_of(*_SIGNS))
def without(response: str, signs: str) -> bool:
    return not set(_SIGNS[signs]) & set(response)


def signs_of(name: str) -> str:
    """The characters that `training:without` takes for "colons" and its like. KeyError for an unknown name."""
    return _SIGNS[name]


@register(
    "training:copy_span",
    lambda span, times: f'Write the words "{span.strip()}" exactly {plural(times, "time")}, just as they stand here.',
    span=TEXT,
    times=POSITION,
)
def copy_span(response: str, span: str, times: int) -> bool:
    return _runs(_SPACES.sub(" ", response), _SPACES.sub(" ", span.strip())) == times


def _runs(text: str, span: str) -> int:
    """Occurrences of a span in its own case that do not overlap and do not begin or end inside a word."""
    pattern = (r"(?<!\w)" if span[0].isalnum() else "") + re.escape(span) + (r"(?!\w)" if span[-1].isalnum() else "")
    return len(re.findall(pattern, text))
