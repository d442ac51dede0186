"""Constraints of `checks.extra.training` for a base task: arguments, wordings, claims.

Numbers are drawn from ranges that a small model meets now and then within some 250 tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from hir_jax.checks import registry
from hir_jax.checks.extra import training
from hir_jax.data.generate.claims import Claims, things
from hir_jax.data.generate.tasks import BaseTask
from hir_jax.types import Constraint

# Beside the registry's own wording of each. Slots are the arguments.
WORDINGS: dict[str, tuple[str, ...]] = {
    "first_word": (
        'Make "{word}" the very first word of the reply.',
        'Your reply has to open with the word "{word}".',
    ),
    "last_word": (
        'Make "{word}" the very last word of the reply.',
        'Your reply has to close with the word "{word}".',
    ),
    "same_ends": (
        "The first and the last word of the reply must be the same.",
        "Let the reply close with the same word as it opens with.",
    ),
    "sentence_letter": (
        'Each sentence has to start with "{letter}".',
        "The letter {letter} must stand at the beginning of every sentence.",
    ),
    "varied_starts": (
        "Start each sentence with a different word, in at least two sentences.",
        "There should be two sentences or more, none of which starts with the same word as another.",
    ),
    "sentence_length": (
        "Keep every sentence to at most {most} words.",
        "No sentence may be longer than {most} words.",
    ),
    "questions": (
        "The reply should contain the question mark exactly {number} times.",
        "Put exactly {number} question marks into the reply.",
    ),
    "word_times": (
        'The word "{word}" has to occur exactly {times} times.',
        'Mention "{word}" {times} times, neither more nor less.',
    ),
    "paragraph_keyword": (
        'Separate {paragraphs} paragraphs by blank lines; only paragraph {number} of them may and must use "{word}".',
        'Answer in {paragraphs} paragraphs (blank lines in between). "{word}" belongs in paragraph {number} alone.',
    ),
    "paragraph_end": (
        'Answer in {paragraphs} paragraphs (blank lines in between) that each end with "{ending}".',
        'Separate {paragraphs} paragraphs by blank lines and let each of them end with "{ending}".',
    ),
    "line_count": (
        "The reply must have exactly {lines} lines, not counting blank ones.",
        "Spread the reply over exactly {lines} lines (blank lines do not count).",
    ),
    "numbered_list": (
        "Include one list of exactly {items} items, numbered 1., 2. and so on, each on a new line.",
        "The reply needs a list with {items} items, each on its own line, numbered from 1. to {items}.",
    ),
    "hyphenated": (
        "At least {number} different hyphenated words, like long-term, have to occur.",
        "Use {number} or more different words with a hyphen, for example self-made.",
    ),
    "long_words": (
        "At least {number} different words should be {letters} letters long or longer.",
        "Use {number} or more different words that have {letters} letters or more.",
    ),
    "without": ("The reply must be free of {signs}.", "Write without {signs}."),
    "copy_span": (
        'Copy the phrase "{span}" into the reply exactly {times} times, letter by letter.',
        'The phrase "{span}" must occur exactly {times} times in the reply, unchanged.',
    ),
}

_OPENERS = ("today", "imagine", "perhaps", "once", "however", "remember", "yes", "when", "every", "although")
_CLOSERS = ("always", "forever", "tomorrow", "indeed", "together", "soon", "enough", "anyway", "finally", "done")
_SIGNS = ("digits", "exclamation marks", "question marks", "semicolons", "colons", "hyphens", "parentheses")


def _paragraph_keyword(base: BaseTask, rng: random.Random) -> dict[str, Any]:
    paragraphs = rng.randint(2, 4)
    return {"number": rng.randint(1, paragraphs), "word": rng.choice(base.keywords), "paragraphs": paragraphs}


def _copy_span(base: BaseTask, rng: random.Random) -> dict[str, Any]:
    words = re.findall(r"\w+(?:['-]\w+)*", base.task)
    starts = [i for i in range(len(words) - 2) if " ".join(words[i : i + 3]) in base.task]
    first = rng.choice(starts) if starts else 0
    return {"span": " ".join(words[first : first + 3]), "times": rng.randint(2, 3)}


ARGUMENTS: dict[str, Callable[[BaseTask, random.Random], dict[str, Any]]] = {
    "first_word": lambda base, rng: {"word": rng.choice((*_OPENERS, *base.keywords))},
    "last_word": lambda base, rng: {"word": rng.choice((*_CLOSERS, *base.keywords))},
    "same_ends": lambda base, rng: {},
    "sentence_letter": lambda base, rng: {"letter": rng.choice("ABCFHILMPSTW")},
    "varied_starts": lambda base, rng: {},
    "sentence_length": lambda base, rng: {"most": rng.randint(10, 20)},
    "questions": lambda base, rng: {"number": rng.randint(2, 4)},
    "word_times": lambda base, rng: {"word": rng.choice(base.keywords), "times": rng.randint(2, 4)},
    "paragraph_keyword": _paragraph_keyword,
    "paragraph_end": lambda base, rng: {"paragraphs": rng.randint(2, 4), "ending": rng.choice(("!", "...", "?"))},
    "line_count": lambda base, rng: {"lines": rng.randint(3, 8)},
    "numbered_list": lambda base, rng: {"items": rng.randint(3, 6)},
    "hyphenated": lambda base, rng: {"number": rng.randint(2, 3)},
    "long_words": lambda base, rng: {"number": rng.randint(2, 5), "letters": rng.randint(9, 11)},
    "without": lambda base, rng: {"signs": rng.choice(_SIGNS)},
    "copy_span": _copy_span,
}


def _draw(name: str) -> Callable[[BaseTask, random.Random], Constraint]:
    id = f"training:{name}"

    def draw(base: BaseTask, rng: random.Random) -> Constraint:
        arguments = ARGUMENTS[name](base, rng)
        wording = rng.choice((None, *WORDINGS[name]))
        return Constraint(id, arguments, wording.format_map(arguments) if wording else registry.describe(id, arguments))

    return draw


# Registry id -> a constraint of it, with its text, that suits the task.
DRAWS = {f"training:{name}": _draw(name) for name in ARGUMENTS}

_ENGLISH = things("english")
_SENTENCES = things("english", "sentences")
_LINES = things("lines")


def _holds(word: str) -> Callable[[str], bool]:
    pattern = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
    return lambda text: pattern.search(text) is not None


def _word_times(word: str, times: int) -> Claims:
    return Claims(uses=_ENGLISH, shows=" ".join([word] * times), refuses=_holds(word), words=2 * times)


def _paragraph_claims(number: int, word: str, paragraphs: int) -> Claims:
    return Claims(
        things("layout"), _ENGLISH, _LINES, (), word, _holds(word), words=6 * paragraphs, sentences=paragraphs
    )


def _without(signs: str) -> Claims:
    barred = set(training.signs_of(signs))
    return Claims(uses=_ENGLISH, refuses=lambda text: not barred.isdisjoint(text))


CLAIMS: dict[str, Callable[..., Claims]] = {
    "first_word": lambda word: Claims(things("start"), _ENGLISH, shows=word),
    "last_word": lambda word: Claims(things("end"), _ENGLISH, shows=word),
    "same_ends": lambda: Claims(things("start", "end"), _ENGLISH),
    "sentence_letter": lambda letter: Claims(
        things("start", "starts"), _SENTENCES, _LINES | things("verbatim", "starts")
    ),
    "varied_starts": lambda: Claims(things("starts"), _SENTENCES, _LINES, sentences=2),
    "sentence_length": lambda most: Claims(things("length"), _SENTENCES, _LINES | things("brief", "verbatim")),
    "questions": lambda number: Claims(
        uses=_ENGLISH, shows="? " * number, refuses=lambda text: "?" in text, sentences=number + 1
    ),
    "word_times": _word_times,
    "paragraph_keyword": _paragraph_claims,
    "paragraph_end": lambda paragraphs, ending: Claims(
        things("layout", "end"), _ENGLISH, _LINES, (), f"{ending} " * paragraphs, words=6 * paragraphs,
        sentences=paragraphs,
    ),
    "line_count": lambda lines: Claims(
        things("layout"), bars=_LINES, words=3 * lines, sentences=lines
    ),
    "numbered_list": lambda items: Claims(
        things("list"), things("lines", "dots"), shows="1. 2. 3.", words=4 * items
    ),
    "hyphenated": lambda number: Claims(uses=_ENGLISH, shows="long-term", words=2 * number),
    "long_words": lambda number, letters: Claims(uses=_ENGLISH | things("long"), words=2 * number),
    "without": _without,
    "copy_span": lambda span, times: Claims(
        uses=things("english", "verbatim"), shows=" ".join([span] * times), refuses=lambda text: span in text,
        words=times * (len(span.split()) + 1),
    ),
}  # fmt: skip


def claims(constraint: Constraint) -> Claims:
    """The claims of a "training:" constraint."""
    return CLAIMS[constraint.id.removeprefix("training:")](**constraint.arguments)
