"""Constraints of MulDimIF's 12 families in wordings of our own, each of which the published rules read as meant.

The rules (`checks.muldimif.rules`) look for certain words, so a wording is more than style here: "fewer than" asks for
nothing, an "or" makes any keyword do, and "all" is also found in "finally". The tests hold each wording against texts
on both sides of its limit.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from hir_jax.checks.muldimif import rules as muldimif
from hir_jax.checks.muldimif.text import Limits, limits, quoted
from hir_jax.data.generate import conflicts as c
from hir_jax.data.generate.claims import NO_DOCUMENT, WHOLE, Claims, things
from hir_jax.data.generate.tasks import BaseTask
from hir_jax.types import Constraint

# Family -> what it asks -> wordings. {n}, {a} and {b}: numbers, a < b; {word} and {other}: keywords.
WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "Length_Words": {
        "at least": (
            "Write at least {n} words.",
            "The response must have a minimum of {n} words.",
            "Use no fewer than {n} words.",
        ),
        "at most": (
            "Write at most {n} words.",
            "The response must not exceed {n} words.",
            "Keep the length within {n} words.",
        ),
        "between": (
            "Write between {a} and {b} words.",
            "The length should be {a} to {b} words.",
            "Aim for {a}-{b} words in total.",
        ),
    },
    "Length_Sentences": {
        "at least": (
            "Use at least {n} sentences.",
            "There must be no fewer than {n} sentences.",
            "Answer in a minimum of {n} sentences.",
        ),
        "at most": (
            "Use at most {n} sentences.",
            "The response must be no more than {n} sentences.",
            "Answer in a maximum of {n} sentences.",
        ),
        "between": ("Use between {a} and {b} sentences.", "Answer in {a} to {b} sentences."),
    },
    "Length_Paragraphs": {
        "exactly": (
            "Write exactly {n} paragraphs with a blank line between them.",
            "The response must consist of exactly {n} paragraphs, set apart by blank lines.",
        ),
        "at least": (
            "Write at least {n} paragraphs with a blank line between them.",
            "Divide the response by blank lines into no fewer than {n} paragraphs.",
        ),
        "at most": (
            "Write at most {n} paragraphs with a blank line between them.",
            "Blank lines may divide the response into no more than {n} paragraphs.",
        ),
    },
    "Content_Keywords": {
        "one": (
            "The response must include the keyword '{word}'.",
            "Mention '{word}' in the response.",
            "Make use of the term '{word}'.",
        ),
        "both": (
            "The response must include the keywords '{word}' and '{other}'.",
            "Mention both '{word}' and '{other}'.",
        ),
        "often": (
            "Use the keyword '{word}' at least {n} times.",
            "The term '{word}' must occur at least {n} times.",
        ),
        "avoid": ("Avoid using the term '{word}'.", "Please avoid using the term '{word}' in the response."),
    },
    "Content_Punctuation": {
        "end": (
            "The response must end with {mark}.",
            "Close the response with {mark}.",
            "Let the last character of the response be {mark}.",
        ),
        "no end": (
            "The response must not end with {mark}.",
            "Do not use {mark} as the last character of the response.",
        ),
        "each end": ("Each sentence must end with {mark}.", "All sentences should end with {mark}."),
    },
    "Content_Identifiers": {
        "word": (
            "The response must start with the word '{start}'.",
            "Please start with the identifier '{start}'.",
            "Your answer should start with the identifier '{start}'.",
        ),
        "letter": (
            "The response must start with the letter '{letter}'.",
            "Your answer should start with the letter '{letter}'.",
        ),
    },
    "Format_Json": {
        "at least": (
            "Give the response as JSON with at least {n} levels of nesting.",
            "The response must be a JSON object that has at least {n} levels of nesting.",
        ),
        "exactly": ("Give the response as JSON with exactly {n} levels of nesting.",),
        "at most": (
            "Give the response as JSON whose depth of nesting must not exceed {n}.",
            "The response must be a JSON object with a nesting not exceeding {n} levels.",
        ),
    },
    "Format_Markdown": {
        "two levels": (
            "Use heading levels {a} and {b} to structure the response.",
            "In Markdown, use heading levels {a} and {b}.",
        ),
        "number of levels": (
            "Structure the response by at least {n} levels of headings in Markdown.",
            "Format the response in Markdown with at least {n} heading levels.",
        ),
        "first": (
            "The response must begin with a level {a} heading in Markdown.",
            "As Markdown, the response should begin with a level {a} heading.",
        ),
        "highest": (
            "Use Markdown with headings that must not exceed level {b}.",
            "Structure the response with headings in Markdown which must not exceed level {b}.",
        ),
        "block quotes": (
            "Use Markdown with headings and with block quotes.",
            "Structure the response with headings and put important remarks in block quotes.",
        ),
    },
    "Format_Table": {
        "rows at least": (
            "Include a table with at least {n} rows.",
            "Sum up the main points in a Markdown table of at least {n} rows.",
        ),
        "rows at most": (
            "Include a table with at most {n} rows.",
            "Sum up the main points in a Markdown table of no more than {n} rows.",
        ),
        "columns": (
            "Include a table with exactly {n} columns.",
            "Sum up the main points in a Markdown table of exactly {n} columns.",
        ),
        "named columns": (
            "Include a table with the columns: 'Topic' and 'Details'.",
            "Sum up the main points in a Markdown table with these columns: 'Topic' and 'Details'.",
        ),
    },
    "Format_XML": {
        "at least": (
            "Give the response as XML in which every tag has at least {n} attributes.",
            "The response must be XML with at least {n} attributes on every element.",
        ),
        "at most": (
            "Give the response as XML in which every tag has no more than {n} attributes.",
            "The response must be XML with at most {n} attributes on every element.",
        ),
    },
    "Language_Chinese": {
        "simplified": ("Answer in Simplified Chinese.", "Write the whole response in Simplified Chinese."),
        "traditional": ("The response must use Traditional Chinese only.",),
    },
    "Language_English": {
        "upper": ("Answer in English with all uppercase letters.", "Use English in all uppercase letters."),
        "lower": ("Answer in English and in lowercase letters only.", "Use English in lowercase throughout."),
        "title": (
            "Answer in English with the first letter of every word capitalized.",
            "Use English with all words capitalized.",
        ),
    },
}

MARKS = {"a period": ".", "a question mark": "?", "an exclamation mark": "!"}
STARTS = ("Today", "Imagine", "Perhaps", "Once", "Answer:", "Note:", "Here", "First")
_AVOIDED = ("very", "really", "important", "interesting", "amazing", "always", "never")
# (family, what it asks) -> (first, last, step) of n
_NUMBERS = {
    ("Length_Words", "at least"): (30, 120, 10),
    ("Length_Words", "at most"): (40, 200, 10),
    ("Length_Sentences", "at least"): (3, 8, 1),
    ("Length_Sentences", "at most"): (4, 12, 1),
    ("Length_Paragraphs", "exactly"): (2, 5, 1),
    ("Length_Paragraphs", "at least"): (2, 5, 1),
    ("Length_Paragraphs", "at most"): (2, 4, 1),
    ("Format_Json", "at least"): (2, 3, 1),
    ("Format_Json", "exactly"): (2, 3, 1),
    ("Format_Table", "rows at most"): (3, 6, 1),
}


def _numbers(family: str, asked: str, rng: random.Random) -> dict[str, int]:
    first, last, step = _NUMBERS.get((family, asked), (2, 4, 1))
    n = rng.randrange(first, last + 1, step)
    if family == "Format_Markdown":
        level = rng.randint(1, 2)
        return {"n": rng.randint(2, 3), "a": level, "b": level + rng.randint(1, 2)}
    if family == "Length_Words":
        low = rng.randrange(30, 130, 10)
        return {"n": n, "a": low, "b": low + rng.randrange(30, 80, 10)}
    low = rng.randint(3, 6)
    return {"n": n, "a": low, "b": low + rng.randint(2, 4)}


def _draw(family: str) -> Callable[[BaseTask, random.Random], Constraint]:
    first, second = family.split("_")

    def draw(base: BaseTask, rng: random.Random) -> Constraint:
        asked = rng.choice(list(WORDINGS[family]))
        word, other = rng.sample(base.keywords, 2)
        if asked == "avoid":
            word = rng.choice([one for one in _AVOIDED if one not in base.task.lower()])
        slots = {
            "word": word,
            "other": other,
            "mark": rng.choice(list(MARKS)[:1] if asked == "each end" else list(MARKS)),
            "start": rng.choice(STARTS),
            "letter": rng.choice("ABCDEFHILMNOPSTW"),
        }
        wording = rng.choice(WORDINGS[family][asked]).format_map(slots | _numbers(family, asked, rng))
        return muldimif.constraint(first, second, wording)

    return draw


# Registry id -> a constraint of it, with its text, that suits the task.
DRAWS = {f"muldimif:{family.lower()}": _draw(family) for family in WORDINGS}


# The claims of a drawn wording, by the limits that the published rules read in it.


def _bounds(wording: str, unit: str) -> Limits:
    stated = limits(wording, unit)
    if stated is None:
        raise ValueError(f"no limit on {unit!r} is stated in {wording!r}")
    return stated


def _same_counts(id: str, argument: str, bounds: Limits) -> tuple[Constraint, ...]:
    low, high = bounds
    at_least = () if low is None else (Constraint(id, {argument: low, "relation": "at least"}),)
    less_than = () if high is None else (Constraint(id, {argument: high + 1, "relation": "less than"}),)
    return (*at_least, *less_than)


def _words(wording: str) -> Claims:
    return Claims(uses=things("latin"), same=_same_counts(c.WORDS, "num_words", _bounds(wording, "words")))


def _sentences(wording: str) -> Claims:
    bounds = _bounds(wording, "sentences")
    same = _same_counts(c.SENTENCES, "num_sentences", bounds)
    if bounds.high is None:
        return Claims(uses=things("latin"), same=same)
    # Marks are what is counted: those that other constraints demand must leave room.
    return Claims(
        uses=things("latin", "brief"),
        bars=things("dots"),
        same=same,
        refuses=lambda text: sum(map(text.count, ".!?")) >= bounds.high,
    )


def _paragraphs(wording: str) -> Claims:
    bounds = _bounds(wording, "paragraphs")
    bars = frozenset() if bounds.high is None else things("lines")
    return Claims(things("layout"), bars=bars, words=6 * (bounds.low or 1), sentences=bounds.low or 1)


def _keywords(wording: str) -> Claims:
    words = quoted(wording)
    if "avoid" in wording.lower():
        return Claims(uses=things("english"), same=(Constraint(c.FORBIDDEN, {"forbidden_words": words}),))
    times = re.search(r"(\d+) times", wording)
    if times:
        same = Constraint(c.FREQUENCY, {"keyword": words[0], "frequency": int(times[1]), "relation": "at least"})
    else:
        same = Constraint(c.EXISTENCE, {"keywords": words})
    return Claims(uses=things("english"), same=(same,), shows=" ".join(words))


def _punctuation(wording: str) -> Claims:
    if not wording.startswith(("Each", "All")):
        marks = "" if " not " in wording else next(mark for name, mark in MARKS.items() if name in wording)
        return Claims(things("end"), shows=marks)
    return Claims(
        things("end"),
        things("sentences"),
        things("lines"),
        shows=".",
        refuses=lambda text: not {"?", "!"}.isdisjoint(text),
    )


def _identifiers(wording: str) -> Claims:
    return Claims(things("start"), things("english", "verbatim"), shows=quoted(wording)[0])


def _json(wording: str) -> Claims:
    same = (Constraint(c.JSON),)
    return Claims(things(*WHOLE), bars=things(*NO_DOCUMENT), same=same, shows='{"a": {"b": "c"}}', words=6)


def _markdown(wording: str) -> Claims:
    return Claims(things("headings", "start"), things("lines"), shows="# ", words=12)


def _table(wording: str) -> Claims:
    names = quoted(wording)
    rows = limits(wording, "rows") or Limits()
    # The bars of two tables read as one table.
    return Claims(
        things("table"),
        things("lines", "verbatim") if names else things("lines"),
        things("two"),
        shows=" ".join(["|---|", *names]),
        words=6 * max(rows.low or 0, 3),
    )


def _xml(wording: str) -> Claims:
    return Claims(things(*WHOLE), bars=things(*NO_DOCUMENT), shows='<a b="c" d="e">f</a>', words=12)


def _chinese(wording: str) -> Claims:
    same = Constraint(c.LANGUAGE, {"language": "zh"})
    return Claims(
        things("language", "case"),
        bars=things("english", "latin", "verbatim"),
        same=(same,),
        refuses=lambda text: re.search("[A-Za-z]", text) is not None,
    )


def _english(wording: str) -> Claims:
    bars = things("verbatim", "whole")
    if "capitalized" in wording:
        return Claims(things("case"), things("english"), bars)
    return Claims(
        things("case"), things("english"), bars, (Constraint(c.CAPITAL if "uppercase" in wording else c.LOWER),)
    )


_CLAIMS: dict[str, Callable[[str], Claims]] = {
    "length_words": _words,
    "length_sentences": _sentences,
    "length_paragraphs": _paragraphs,
    "content_keywords": _keywords,
    "content_punctuation": _punctuation,
    "content_identifiers": _identifiers,
    "format_json": _json,
    "format_markdown": _markdown,
    "format_table": _table,
    "format_xml": _xml,
    "language_chinese": _chinese,
    "language_english": _english,
}


def claims(constraint: Constraint) -> Claims:
    """The claims of a constraint that `DRAWS` made. ValueError for a length that is stated in another way."""
    return _CLAIMS[constraint.id.removeprefix("muldimif:")](constraint.arguments["wording"])
