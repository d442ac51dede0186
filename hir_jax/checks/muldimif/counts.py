"""Reads MulDimIF's wordings on length as rules: words, sentences, paragraphs."""

from __future__ import annotations

import re

from hir_jax.checks.muldimif.text import CJK, NUMBER, Limits, Rule, elements, limits, number

_TOTAL = r"(?:a )?(?:(?:total|maximum)(?: length)? of )?"
_RANGE = re.compile(
    rf"\b(?:between|from) {NUMBER} (?:and|to) {NUMBER}|\b(\d{{1,9}})\s?[-–]\s?(\d{{1,9}})\b", re.IGNORECASE
)
_WORD_LIMIT = re.compile(rf"\blimit of {NUMBER} words?", re.IGNORECASE)
_QUOTED = re.compile(r"[\"'‘’“”]([^\"'‘’“”]+)[\"'‘’“”]")


def count_words(text: str) -> int:
    """Words between white space; if there are Chinese characters or full-width marks, the number of those instead."""
    return len(CJK.findall(text)) or len(text.split())


def word_limits(wording: str) -> Limits | None:
    """The stated bounds on words; None for a wording that the scorer does not know, such as "less than 50 words"."""
    stated = limits(wording, "words?", total=_TOTAL)
    if stated:
        return stated
    if found := _RANGE.search(wording):
        ends = [number(end) for end in found.groups() if end]
        return Limits(min(ends), max(ends))  # quirk: "fifty and one hundred" is read as 50 and 1
    found = _WORD_LIMIT.search(wording)
    return Limits(None, number(found[1])) if found else None


def _element_limits(wording: str) -> Limits | None:
    """`word_limits` for each element: here a range is "between a and b" only, and "less than" means at most."""
    if found := re.search(rf"\bless than {NUMBER} words?", wording, re.IGNORECASE):
        return Limits(None, number(found[1]))
    stated = word_limits(wording)
    is_range = stated is not None and None not in stated and not re.search(r"\bexactly\b", wording, re.IGNORECASE)
    return None if is_range and not re.search(rf"\bbetween {NUMBER} and", wording, re.IGNORECASE) else stated


def words(wording: str) -> Rule:
    """Words within the stated limits; also quoted strings and numbers of sentences, if the wording has any.

    With "each" every element has to fit, and there has to be one; a limit that is not understood is then not met,
    while without "each" it is.
    """
    sentence_bounds = limits(wording, "sentences?") or Limits()
    quotes = _QUOTED.findall(wording)

    def fits(text: str) -> bool:
        return sentence_bounds.hold(len(re.findall(r"[.!?]+", text))) and all(quote in text for quote in quotes)

    if not re.search(r"\beach\b", wording, re.IGNORECASE):
        bounds = word_limits(wording) or Limits()
        return lambda response: bounds.hold(count_words(response)) and fits(response)
    each_bounds = _element_limits(wording)

    def every_element_fits(response: str) -> bool:
        found = elements(response, wording, between_rulers=False)
        if each_bounds is None or not found:
            return False
        return all(each_bounds.hold(len(element.split())) and fits(element) for element in found)

    return every_element_fits


def _unit_limits(wording: str, unit: str) -> Limits | None:
    stated = limits(wording, unit)
    if stated is None and re.search(rf"\b(?:be|within) a single {unit}|\bonly one {unit}", wording, re.IGNORECASE):
        return Limits(1, 1)
    return stated


def sentences(wording: str) -> Rule:
    """Sentences are the marks . ! ? one by one ("..." is three); a limit that is not understood is met."""
    bounds = _unit_limits(wording, "sentences?") or Limits()
    return lambda response: bounds.hold(sum(map(response.count, ".!?")))


def paragraphs(wording: str) -> Rule:
    """Paragraphs are the non-blank parts between double newlines; a limit that is not understood is not met."""
    bounds = _unit_limits(wording, "(?:distinct )?paragraphs?")
    if bounds is None:
        return lambda response: False
    return lambda response: bounds.hold(sum(bool(part.strip()) for part in response.split("\n\n")))
