"""Verifiable constraints made for training: like those of IFBench in kind, and none of its 58 test types.

Types and rules of our own, in the spirit of the training constraints that were published along with IFBench
(arXiv 2507.02833), so that a model may learn to follow more than IFEval's 25 while IFBench remains unseen. Numbers are drawn
from ranges that a small model meets now and then within some 250 tokens.

Words are divided by white space and lose the ASCII marks at their ends; they are compared in any case. Sentences are
`english.rule_sentences` with a word in them. Lines and paragraphs (between blank lines) are the non-blank ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from hir_jax.checks import arguments, english
from hir_jax.checks.arguments import POSITION, WORD, Argument, one_of, ordinal, plural
from hir_jax.checks.compatibility import Demands
from hir_jax.checks.english import bare
from hir_jax.checks.generation import Arguments, Generated, Task
from hir_jax.checks.registry import register

_SPACES = re.compile(r"[ \t]+")
_BLANK_LINES = re.compile(r"\n[ \t]*\n")
LETTER = Argument("a letter from a to z", arguments.LETTER.parse)


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
    """The number of times that a word occurs as a whole word."""
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


def _generated(demands: Callable[..., Demands], *wordings: str, **options: Any) -> Generated:
    """In the registered wording or one of these."""
    return Generated(family="training", demands=demands, wordings=("", *wordings), **options)


_OPENERS = ("today", "imagine", "perhaps", "once", "however", "remember", "yes", "when", "every", "although")
_CLOSERS = ("always", "forever", "tomorrow", "indeed", "together", "soon", "enough", "anyway", "finally", "done")


@register(
    "training:first_word",
    lambda word: f'The first word of the answer must be "{word}".',
    generated=_generated(
        lambda word: Demands("start", uses="english", text=word),
        'Make "{word}" the very first word of the reply.',
        'Your reply has to open with the word "{word}".',
        draw=lambda task, rng: {"word": rng.choice((*_OPENERS, *task.keywords))},
    ),
    word=WORD,
)
def first_word(response: str, word: str) -> bool:
    return _words(response)[:1] == [word.lower()]


@register(
    "training:last_word",
    lambda word: f'The last word of the answer must be "{word}".',
    generated=_generated(
        lambda word: Demands("end", uses="english", text=word),
        'Make "{word}" the very last word of the reply.',
        'Your reply has to close with the word "{word}".',
        draw=lambda task, rng: {"word": rng.choice((*_CLOSERS, *task.keywords))},
    ),
    word=WORD,
)
def last_word(response: str, word: str) -> bool:
    return _words(response)[-1:] == [word.lower()]


@register(
    "training:same_ends",
    lambda: "The answer must end with the very word that it begins with.",
    generated=_generated(
        lambda: Demands("start end", uses="english"),
        "The first and the last word of the reply must be the same.",
        "Let the reply close with the same word as it opens with.",
    ),
)
def same_ends(response: str) -> bool:
    words = _words(response)
    return len(words) > 1 and words[0] == words[-1]


@register(
    "training:sentence_letter",
    lambda letter: f"Begin every sentence with the letter {letter.upper()}.",
    generated=_generated(
        lambda letter: Demands("start starts", uses="english sentences", bars="lines verbatim quoted starts"),
        'Each sentence has to start with "{letter}".',
        "The letter {letter} must stand at the beginning of every sentence.",
        draw=lambda task, rng: {"letter": rng.choice("ABCFHILMPSTW")},
    ),
    letter=LETTER,
)
def sentence_letter(response: str, letter: str) -> bool:
    sentences = _sentences(response)
    return bool(sentences) and all(words[0].startswith(letter) for words in sentences)


@register(
    "training:varied_starts",
    lambda: "Write at least two sentences, and begin no two with the same word.",
    generated=_generated(
        lambda: Demands("starts", uses="english sentences", bars="lines", sentences=2),
        "Start each sentence with a different word, in at least two sentences.",
        "There should be two sentences or more, none of which starts with the same word as another.",
    ),
)
def varied_starts(response: str) -> bool:
    starts = [words[0] for words in _sentences(response)]
    return len(starts) > 1 and len(set(starts)) == len(starts)


@register(
    "training:sentence_length",
    lambda most: f"Write no sentence of more than {plural(most, 'word')}.",
    generated=_generated(
        lambda most: Demands("length", uses="english sentences", bars="lines brief verbatim quoted"),
        "Keep every sentence to at most {most} words.",
        "No sentence may be longer than {most} words.",
        draw=lambda task, rng: {"most": rng.randint(10, 20)},
    ),
    most=POSITION,
)
def sentence_length(response: str, most: int) -> bool:
    sentences = _sentences(response)
    return bool(sentences) and all(len(words) <= most for words in sentences)


@register(
    "training:questions",
    lambda number: f"Use exactly {plural(number, 'question mark')}.",
    generated=_generated(
        lambda number: Demands(
            uses="english", text="? " * number, refuses=lambda text: "?" in text, sentences=number + 1
        ),
        "The reply should contain the question mark exactly {number} times.",
        "Put exactly {number} question marks into the reply.",
        draw=lambda task, rng: {"number": rng.randint(2, 4)},
    ),
)
def questions(response: str, number: int) -> bool:
    return response.count("?") == number


def _demand_times(word: str, times: int) -> Demands:
    text = " ".join([word] * times)
    return Demands(uses="english", text=text, refuses=lambda text: occurrences(word, text) > 0, words=2 * times)


@register(
    "training:word_times",
    lambda word, times: f'Use the word "{word}" exactly {plural(times, "time")}.',
    generated=_generated(
        _demand_times,
        'The word "{word}" has to occur exactly {times} times.',
        'Mention "{word}" {times} times, neither more nor less.',
        draw=lambda task, rng: {"word": rng.choice(task.keywords), "times": rng.randint(2, 4)},
    ),
    word=WORD,
)
def word_times(response: str, word: str, times: int) -> bool:
    return occurrences(word, response) == times


def _within(number: int, word: str, paragraphs: int) -> str | None:
    return f"there is no paragraph {number} of {paragraphs}" if number > paragraphs else None


def _draw_paragraph_keyword(task: Task, rng: random.Random) -> Arguments:
    paragraphs = rng.randint(2, 4)
    return {"number": rng.randint(1, paragraphs), "word": rng.choice(task.keywords), "paragraphs": paragraphs}


def _demand_paragraphs(paragraphs: int, text: str, **options: Any) -> Demands:
    return Demands(uses="english", bars="lines", text=text, words=6 * paragraphs, sentences=paragraphs, **options)


@register(
    "training:paragraph_keyword",
    lambda number, word, paragraphs: (
        f"Write {plural(paragraphs, 'paragraph')} with blank lines between them, "
        f'and use the word "{word}" in the {ordinal(number)} one and in no other.'
    ),
    together=_within,
    generated=_generated(
        lambda number, word, paragraphs: _demand_paragraphs(
            paragraphs, word, owns="layout", refuses=lambda text: occurrences(word, text) > 0
        ),
        'Separate {paragraphs} paragraphs by blank lines; only paragraph {number} of them may and must use "{word}".',
        'Answer in {paragraphs} paragraphs (blank lines in between). "{word}" belongs in paragraph {number} alone.',
        draw=_draw_paragraph_keyword,
    ),
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
    generated=_generated(
        lambda paragraphs, ending: _demand_paragraphs(paragraphs, f"{ending} " * paragraphs, owns="layout end"),
        'Answer in {paragraphs} paragraphs (blank lines in between) that each end with "{ending}".',
        'Separate {paragraphs} paragraphs by blank lines and let each of them end with "{ending}".',
        draw=lambda task, rng: {"paragraphs": rng.randint(2, 4), "ending": rng.choice(("!", "...", "?"))},
    ),
    paragraphs=POSITION,
)
def paragraph_end(response: str, paragraphs: int, ending: str) -> bool:
    parts = _paragraphs(response)
    return len(parts) == paragraphs and all(part.endswith(ending.strip()) for part in parts)


@register(
    "training:line_count",
    lambda lines: f"Write exactly {plural(lines, 'line')}; blank ones do not count.",
    generated=_generated(
        lambda lines: Demands("layout", bars="lines", words=3 * lines, sentences=lines),
        "The reply must have exactly {lines} lines, not counting blank ones.",
        "Spread the reply over exactly {lines} lines (blank lines do not count).",
        draw=lambda task, rng: {"lines": rng.randint(3, 8)},
    ),
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
    generated=_generated(
        lambda items: Demands("list", uses="lines item-dots", text="1. 2. 3.", words=4 * items),
        "Include one list of exactly {items} items, numbered 1., 2. and so on, each on a new line.",
        "The reply needs a list with {items} items, each on its own line, numbered from 1. to {items}.",
        draw=lambda task, rng: {"items": rng.randint(3, 6)},
    ),
    items=POSITION,
)
def numbered_list(response: str, items: int) -> bool:
    return [int(number) for number in _ITEM.findall(response)] == list(range(1, items + 1))


_COMPOUND = re.compile(r"(?<![\w-])[^\W\d_]+(?:-[^\W\d_]+)+(?![\w-])")


@register(
    "training:hyphenated",
    lambda number: f"Use at least {plural(number, 'different hyphenated word')}, such as well-known.",
    generated=_generated(
        lambda number: Demands(uses="english", text="long-term", words=2 * number),
        "At least {number} different hyphenated words, like long-term, have to occur.",
        "Use {number} or more different words with a hyphen, for example self-made.",
        draw=lambda task, rng: {"number": rng.randint(2, 3)},
    ),
    number=POSITION,
)
def hyphenated(response: str, number: int) -> bool:
    return len(set(_COMPOUND.findall(response.lower()))) >= number


@register(
    "training:long_words",
    lambda number, letters: f"Use at least {plural(number, 'different word')} of {letters} or more letters.",
    generated=_generated(
        lambda number, letters: Demands(uses="english long", words=2 * number),
        "At least {number} different words should be {letters} letters long or longer.",
        "Use {number} or more different words that have {letters} letters or more.",
        draw=lambda task, rng: {"number": rng.randint(2, 5), "letters": rng.randint(9, 11)},
    ),
    number=POSITION,
    letters=POSITION,
)
def long_words(response: str, number: int, letters: int) -> bool:
    # Runs of letters only: a link or a row of dashes is not a word.
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
_DRAWN_SIGNS = ("digits", "exclamation marks", "question marks", "semicolons", "colons", "hyphens", "parentheses")


@register(
    "training:without",
    lambda signs: f"Do not use any {signs}.",
    generated=_generated(
        lambda signs: Demands(uses="english", refuses=lambda text: not without(text, signs)),
        "The reply must be free of {signs}.",
        "Write without {signs}.",
        draw=lambda task, rng: {"signs": rng.choice(_DRAWN_SIGNS)},
    ),
    signs=one_of(*_SIGNS),
)
def without(response: str, signs: str) -> bool:
    return not set(_SIGNS[signs]) & set(response)


def _draw_span(task: Task, rng: random.Random) -> Arguments:
    words = re.findall(r"\w+(?:['-]\w+)*", task.task)
    starts = [i for i in range(len(words) - 2) if " ".join(words[i : i + 3]) in task.task]
    first = rng.choice(starts) if starts else 0
    return {"span": " ".join(words[first : first + 3]), "times": rng.randint(2, 3)}


def _demand_copies(span: str, times: int) -> Demands:
    text, words = " ".join([span] * times), times * (len(span.split()) + 1)
    return Demands(uses="english verbatim", text=text, refuses=lambda text: span in text, words=words)


@register(
    "training:copy_span",
    lambda span, times: f'Write the words "{span.strip()}" exactly {plural(times, "time")}, just as they stand here.',
    generated=_generated(
        _demand_copies,
        'Copy the phrase "{span}" into the reply exactly {times} times, letter by letter.',
        'The phrase "{span}" must occur exactly {times} times in the reply, unchanged.',
        draw=_draw_span,
    ),
    times=POSITION,
)
def copy_span(response: str, span: str, times: int) -> bool:
    return _runs(_SPACES.sub(" ", response), _SPACES.sub(" ", span.strip())) == times


def _runs(text: str, span: str) -> int:
    """Occurrences of a span in its own case that do not overlap and do not begin or end inside a word."""
    pattern = (r"(?<!\w)" if span[0].isalnum() else "") + re.escape(span) + (r"(?!\w)" if span[-1].isalnum() else "")
    return len(re.findall(pattern, text))
