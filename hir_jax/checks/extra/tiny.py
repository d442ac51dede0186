"""Three constraint types of the tiny environment that have no counterpart in IFEval.

Each excludes the other values of the same feature of a text (`data.generate.tiny.grammar`), so that no text meets two of them.
They are decided on the device too. The environment generates them itself, so they are registered without `generated`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hir_jax.checks.arguments import WORD, Argument
from hir_jax.checks.extra.training import occurrences
from hir_jax.checks.ifeval.format import postscript
from hir_jax.checks.registry import register


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError
    return tuple(WORD.parse(item) for item in value)


@register("tiny:begins_with", lambda phrase: f'Begin the answer with "{phrase.strip()}".')
def begins_with(response: str, phrase: str) -> bool:
    """The counterpart of IFEval's end_checker: in any case, without the white space and quotation marks around the text."""
    text = response.strip().strip('"').lower()
    return re.match(re.escape(phrase.strip().lower()) + r"\b", text) is not None


def _not_among(word: str, others: Sequence[str]) -> str | None:
    same = word.lower() in (other.lower() for other in others)
    return f"{word!r} is both the word that is wanted and one of the others" if same else None


@register(
    "tiny:one_of",
    lambda word, others: f'Use the word "{word}" and none of the words {", ".join(others)}.',
    together=_not_among,
    word=WORD,
    others=Argument("a non-empty list of words of letters and digits", _words),
)
def one_of(response: str, word: str, others: Sequence[str]) -> bool:
    return occurrences(word, response) > 0 and not any(occurrences(other, response) for other in others)


@register("tiny:no_postscript", lambda: 'Add no postscript that begins with "P.S.".')
def no_postscript(response: str) -> bool:
    """Whatever does not meet IFEval's detectable_content:postscript with the marker "P.S."."""
    return not postscript(response, "P.S.")
