"""Generated constraints of MulDimIF's families: wordings of our own, each of which the published rules read as meant.

The rules (`muldimif.rules`) look for certain words, so a wording is more than style here: "fewer than" asks for nothing, an
"or" makes any keyword do, and "all" is also found in "finally". The tests hold each wording against texts on both sides of
its limit.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from hir_jax.checks.compatibility import NO_DOCUMENT, WHOLE, Demands, between
from hir_jax.checks.generation import Arguments, Generated, Task
from hir_jax.checks.ifeval.keywords import demand_absence, demand_frequency, demand_keywords
from hir_jax.checks.muldimif.text import Limits, limits, quoted

# Family -> what it asks -> wordings, in the order in which families are registered. {n}, {a} and {b} are numbers, a < b;
# {word} and {other} are keywords.
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
        "often": ("Use the keyword '{word}' at least {n} times.", "The term '{word}' must occur at least {n} times."),
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

_MARKS = {"a period": ".", "a question mark": "?", "an exclamation mark": "!"}
_STARTS = ("Today", "Imagine", "Perhaps", "Once", "Answer:", "Note:", "Here", "First")
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


def _draw_numbers(family: str, asked: str, rng: random.Random) -> dict[str, int]:
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


def _draw(family: str, task: Task, rng: random.Random) -> Arguments:
    asked = rng.choice(list(WORDINGS[family]))
    word, other = rng.sample(task.keywords, 2)
    if asked == "avoid":
        word = rng.choice([one for one in _AVOIDED if one not in task.task.lower()])
    slots = {
        "word": word,
        "other": other,
        "mark": rng.choice(list(_MARKS)[:1] if asked == "each end" else list(_MARKS)),
        "start": rng.choice(_STARTS),
        "letter": rng.choice("ABCDEFHILMNOPSTW"),
    }
    wording = rng.choice(WORDINGS[family][asked])
    return {"name": family, "wording": wording.format_map(slots | _draw_numbers(family, asked, rng))}


# The demands of a drawn wording, by the limits that the published rules read in it.


def _stated(wording: str, unit: str) -> Limits:
    stated = limits(wording, unit)
    if stated is None:
        raise ValueError(f"no limit on {unit!r} is stated in {wording!r}")
    return stated


def _words(wording: str) -> Demands:
    return Demands(uses="latin", bounds=between("words", *_stated(wording, "words")))


def _sentences(wording: str) -> Demands:
    low, high = _stated(wording, "sentences")
    if high is None:
        return Demands(uses="latin", bounds=between("sentences", low, None))
    # Marks are what is counted: those that other constraints demand must leave room.
    return Demands(
        uses="latin brief",
        bars="item-dots abbreviation",
        bounds=between("sentences", low, high),
        refuses=lambda text: sum(map(text.count, ".!?")) >= high,
    )


def _paragraphs(wording: str) -> Demands:
    low, high = _stated(wording, "paragraphs")
    return Demands("layout", bars="" if high is None else "lines", words=6 * (low or 1), sentences=low or 1)


def _keywords(wording: str) -> Demands:
    words = quoted(wording)
    if "avoid" in wording.lower():
        return demand_absence(words)
    times = re.search(r"(\d+) times", wording)
    return demand_frequency(words[0], int(times[1]), "at least") if times else demand_keywords(words)


def _punctuation(wording: str) -> Demands:
    if wording.startswith(("Each", "All")):
        return Demands(
            "end", uses="sentences", bars="lines", text=".", refuses=lambda text: not {"?", "!"}.isdisjoint(text)
        )
    return Demands("end", text="" if " not " in wording else next(_MARKS[name] for name in _MARKS if name in wording))


def _table(wording: str) -> Demands:
    names = quoted(wording)
    rows = limits(wording, "rows") or Limits()
    return Demands(
        "table",
        uses="lines verbatim" if names else "lines",
        bars="two",  # the bars of two tables read as one table
        text=" ".join(["|---|", *names]),
        words=6 * max(rows.low or 0, 3),
    )


def _chinese(wording: str) -> Demands:
    bars = "english latin verbatim quoted"
    return Demands("language case", bars=bars, refuses=lambda text: re.search("[A-Za-z]", text) is not None)


def _english(wording: str) -> Demands:
    if "capitalized" in wording:
        return Demands("case", uses="english", bars="verbatim quoted whole")
    return Demands("case language", uses="english", bars="verbatim quoted whole capitals")


_DEMANDS: dict[str, Callable[[str], Demands]] = {
    "Length_Words": _words,
    "Length_Sentences": _sentences,
    "Length_Paragraphs": _paragraphs,
    "Content_Keywords": _keywords,
    "Content_Punctuation": _punctuation,
    "Content_Identifiers": lambda wording: Demands("start", uses="english verbatim", text=quoted(wording)[0]),
    "Format_Json": lambda wording: Demands(
        WHOLE, bars=f"{NO_DOCUMENT} free-text", marks='{"a": {"b": "c", "d": "e"}}', words=6
    ),
    "Format_Markdown": lambda wording: Demands("headings start", uses="lines", text="# ", words=12),
    "Format_Table": _table,
    "Format_XML": lambda wording: Demands(WHOLE, bars=NO_DOCUMENT, text='<a b="c" d="e">f</a>', words=12),
    "Language_Chinese": _chinese,
    "Language_English": _english,
}


def generated(family: str) -> Generated:
    """How the constraints of a family are generated; their text is the drawn wording. Other wordings raise ValueError."""
    return Generated(
        family="muldimif",
        demands=lambda name, wording: _DEMANDS[family](wording),
        draw=lambda task, rng: _draw(family, task, rng),
    )
