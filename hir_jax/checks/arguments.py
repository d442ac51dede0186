"""Kinds of constraint arguments, and the words for numbers, that families share."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class DrawnValueError(ValueError):
    """Raised by `Argument.parse` for a value that makes a DrawnArgumentError."""


@dataclass(frozen=True)
class Argument:
    """A kind of argument: `parse` returns the usable value or raises ValueError; `what` describes usable values."""

    what: str
    parse: Callable[[Any], Any]


def plural(count: int, noun: str) -> str:
    """ "1 word", "2 words"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def ordinal(number: int) -> str:
    """ "1st", "2nd", "11th"."""
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise ValueError
    return int(value)  # some published files write integers as 5.0


def _position(value: Any) -> int:
    number = _count(value)
    if number == 0:
        raise ValueError
    return number


def _drawn(value: Any) -> int:
    if value == 0:
        raise DrawnValueError
    return _position(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError
    return tuple(_text(item) for item in value)


def _word(value: Any) -> str:
    if not re.fullmatch(r"\w+", _text(value)):
        raise ValueError
    return value


def _letter(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    letter = value.strip().lower()
    if len(letter) != 1 or not "a" <= letter <= "z":
        raise DrawnValueError  # two published prompts ask for # and for !
    return letter


@functools.lru_cache(maxsize=4096)
def _pattern_error(pattern: str) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a pattern from data may be odd without being wrong
            re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        return f"invalid regular expression: {error}"
    return None


def require_pattern(pattern: str) -> None:
    """Raises ValueError with the reason unless `pattern` is a regular expression."""
    error = _pattern_error(pattern)
    if error:
        raise ValueError(error)


COUNT = Argument("an integer >= 0", _count)
POSITION = Argument("an integer >= 1", _position)
DRAWN_IF_0 = Argument(POSITION.what, _drawn)  # the published scorers take 0 for missing, and draw a number
TEXT = Argument("a non-blank string", _text)
WORD = Argument("one word of letters and digits", _word)
LETTER = Argument("one letter from a to z", _letter)


def pattern(used_as: Callable[[str], str] = str) -> Argument:
    """A string that the check searches as the regular expression `used_as(string)`."""

    def parse(value: Any) -> str:
        require_pattern(used_as(_text(value)))
        return value

    return Argument("a non-blank regular expression", parse)


def patterns(used_as: Callable[[str], str] = str) -> Argument:
    """A list of such strings."""

    def parse(value: Any) -> tuple[str, ...]:
        for item in _texts(value):
            require_pattern(used_as(item))
        return tuple(value)

    return Argument("a non-empty list of non-blank regular expressions", parse)


def one_of(*options: str) -> Argument:
    """One of a few strings, written exactly so."""

    def parse(value: Any) -> str:
        if value not in options:
            raise ValueError
        return value

    return Argument("one of " + ", ".join(map(repr, options)), parse)
