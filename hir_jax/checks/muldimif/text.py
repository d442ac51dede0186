"""Finds numbers, quotes and elements in the wordings of MulDimIF's constraints and in responses.

See `muldimif.rules` for the source. Patterns that are matched with a response take time linear in its length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Rule = Callable[[str], bool]  # of an unchanged response

_ONE_TO_TWELVE = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBERS = {word: value for value, word in enumerate(_ONE_TO_TWELVE, start=1)}
_NUMBERS |= {"fifteen": 15, "twenty": 20, "thirty": 30, "fifty": 50}
NUMBER = rf"(\d{{1,9}}|\b(?:{'|'.join(_NUMBERS)})\b)"

CJK = re.compile(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")  # Chinese characters and full-width marks


def number(text: str) -> int:
    """The value of what `NUMBER` matched, in any case."""
    text = text.lower()
    return _NUMBERS[text] if text in _NUMBERS else int(text)


class Limits(NamedTuple):
    """Inclusive bounds of a count; None: no bound."""

    low: int | None = None
    high: int | None = None

    def hold(self, count: int) -> bool:
        return (self.low is None or count >= self.low) and (self.high is None or count <= self.high)


_LOW = r"(?:at least|minimum (?:length )?of|no fewer than)"
_HIGH = r"(?:at most|no more than|no longer than|not exceed(?:ing)?|maximum (?:length )?of|limited to|within)"


def limits(wording: str, unit: str, total: str = "") -> Limits | None:
    """The stated bounds on `unit` (a pattern); of several the first in the order below counts.

    `total` is a pattern of the words allowed between an upper bound and its number ("a total of").
    """
    of = rf"{NUMBER}\s+{unit}"
    kinds: dict[str, Callable[..., Limits]] = {
        rf"\bexactly {of}": lambda count: Limits(count, count),
        rf"{NUMBER}\s*(?:-|–|to|and)\s*{of}": lambda *ends: Limits(min(ends), max(ends)),
        rf"\b{_LOW}:? {of}": lambda low: Limits(low, None),
        rf"\b{_HIGH}:? (?:(?:a )?maximum of )?{total}{of}": lambda high: Limits(None, high),
    }
    for pattern, bounds in kinds.items():
        if found := re.search(pattern, wording, re.IGNORECASE):
            return bounds(*map(number, found.groups()))
    return None


_QUOTED = re.compile(r"'([^']+)'|\"([^\"]+)\"|「([^」]+)」")


def quoted(wording: str) -> list[str]:
    """The quoted strings, pairs of quotes taken from the left: an apostrophe shifts the pairs behind it."""
    return ["".join(groups) for groups in _QUOTED.findall(wording)]


def fenced(response: str, language: str) -> str:
    """The content of the first code block of this language; the whole response if there is none."""
    start = response.find(f"```{language}")
    end = response.find("```", start + 3)
    return response[start + 3 + len(language) : end] if 0 <= start < end else response


def json_document(response: str) -> Any:
    """The first ```json block, else the whole response, parsed; ValueError where it is not JSON."""
    try:
        return json.loads(fenced(response, "json"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def table_cells(response: str) -> list[list[str]]:
    """The cells of each line that begins with a bar, except rulers (|---|)."""
    lines = (line.strip() for line in response.split("\n"))
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|") and line.strip("|-: \t")
    ]


def _named_values(document: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of each scalar of a JSON document."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield from _named_values(value, key)
    elif isinstance(document, list):
        for value in document:
            yield from _named_values(value, name)
    else:
        yield name, str(document)


def _json_elements(response: str, wanted: set[str]) -> list[str] | None:
    if not fenced(response, "json").lstrip().startswith(("{", "[")):
        return None
    try:
        values = list(_named_values(json_document(response)))
    except (ValueError, RecursionError):
        return None
    named = [value for key, value in values if _words(key) & wanted]
    return named or [value for _, value in values]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


_EACH = re.compile(
    r"\b(?:each|every)\b(.*?)(?:\b(?:must|should|needs?|has|have|is|are|contains?|consists?)\b|$)", re.IGNORECASE
)
_NUMBERED = re.compile(r"^[ \t]*\d+[.)][ \t]*(.+)$", re.MULTILINE)
_BULLET = re.compile(r"^[ \t]*[-*•][ \t]+(.+)$", re.MULTILINE)
_RULER = re.compile(r"^[ \t]*(?:-{3,}|\*{3,}|={3,})[ \t]*$", re.MULTILINE)
_HEADING_MARKS = re.compile(r"^[ \t]*#+[ \t]+")


def elements(response: str, wording: str, *, between_rulers: bool) -> list[str]:
    """The elements of the response that "each" in `wording` refers to.

    JSON values (those under a key that shares a word with the noun after "each", or is an entry, if there are any); the table
    column whose header shares most words with it, else all cells; numbered items; bullets; else the parts `between_rulers`
    (lines of --- *** ===) or the lines.
    """
    subject = _EACH.search(wording)
    wanted = _words(subject[1]) if subject else set()
    values = _json_elements(response, wanted | {"entry"})
    if values is not None:
        return values
    rows = table_cells(response)
    if len(rows) > 1:
        shared = [len(_words(name) & wanted) for name in rows[0]]
        best = shared.index(max(shared))
        return (
            [row[best] for row in rows[1:] if best < len(row)]
            if shared[best]
            else [cell for row in rows for cell in row]
        )
    items = _NUMBERED.findall(response) or _BULLET.findall(response)
    if items:
        return items
    pieces = _RULER.split(response) if between_rulers else response.split("\n")
    return [_HEADING_MARKS.sub("", piece) for piece in pieces if piece.strip()]
