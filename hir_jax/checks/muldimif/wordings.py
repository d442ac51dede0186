"""Generated constraints of MulDimIF's families: wordings of our own (`wordings.json`), which the published rules read as meant.

The rules (`muldimif.rules`) look for certain words, so a wording is more than style here: "fewer than" asks for nothing, an
"or" makes any keyword do, and "all" is also found in "finally". The tests hold each wording against texts on both sides of
its limit.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from hir_jax.checks.compatibility import NO_DOCUMENT, WHOLE, Demands, between
from hir_jax.checks.generation import Arguments, Generated, Task
from hir_jax.checks.ifeval.keywords import demand_absence, demand_frequency, demand_keywords
from hir_jax.checks.muldimif.text import Limits, limits, quoted

# Family -> what it asks -> wordings, in the order in which families are registered. {n}, {a} and {b} are numbers, a < b;
# {word} and {other} are keywords.
WORDINGS: dict[str, dict[str, list[str]]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

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
