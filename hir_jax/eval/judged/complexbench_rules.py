"""The rule questions of ComplexBench (NeurIPS 2024): a model extracts the part of a response that a question is about, and
a rule `name:value` checks it.

Values are texts or lists in brackets, split at commas. The pieces of an extraction are what `pieces` gives; a `model_` rule
looks at the first one, an `_each` rule at every one that is not empty, a plain rule at the first one with or without its
outer quotes. Source: the published scorer, whose oddities stay: ASCII marks become full-width ones before texts are
compared (which texts, each function says), and no piece, or a single empty one, meets a rule only if it forbids.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence

from hir_jax.eval.judged.base import UNDECIDED

HEADING = "【模型回复中评分问题的评测对象】\n"
OBJECTS = ("评分对象：", "评测对象：", "：")
NOTES = ("\n\n请注意", "\n\n**注意", "\n\n注意")

_WIDE = str.maketrans("!#$%&()*,.:;?\\^“”", '！＃＄％＆（）＊，。：；？＼＾""')
# What ASCII's punctuation is after that.
_MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~".translate(_WIDE)


def pieces(extraction: str, response: str) -> list[str]:
    """The parts of the response that an extraction names: [] where it says there is none."""
    text = extraction.rsplit(HEADING, 1)[-1]
    for note in NOTES:
        text = text.rsplit(note, 1)[0]
    text = text.rsplit(next((one for one in OBJECTS if one in text), OBJECTS[0]), 1)[-1]
    if text.startswith("all"):
        return [response]
    return [] if "None" in text else [piece.strip() for piece in text.split("||")]


def check(rule: str, found: Sequence[str], published_quirks: bool = False) -> bool | int:
    """Whether the pieces meet the rule; UNDECIDED for a rule of no known kind or a value that has not its kind's form.

    With `published_quirks` also for a plain rule in which "model" or "each" occurs anywhere.
    """
    names, values = _parts(rule)
    empty = not found or list(found) == [""]
    try:
        if names in _PLAIN:
            if published_quirks and ("model" in rule or "each" in rule):
                return UNDECIDED
            first = found[0] if found else ""
            return any(_plain(names, values, text) for text in (unquoted(first), first))
        if names in _FIRST:
            return _forbids(names) if empty else _FIRST[names](found[0], *values)
        if names in _EACH:
            return _forbids(names) if empty else all(_EACH[names](one, *values) for one in found if one)
        if names in _ALL:
            return not empty and _ALL[names](found, *values)
    except (ValueError, SyntaxError, TypeError):  # of the value
        pass
    return UNDECIDED


def _parts(rule: str) -> tuple[tuple[str, ...], list[str]]:
    """Names and values: one pair, or two of a pair that goes together."""
    name, _, value = rule.removesuffix("\n").partition(":")
    name = name.strip()
    second = _SECOND.get(name)
    if second and f"\n{second}:" in value:
        value, _, other = value.partition(f"\n{second}:")
        return (name, second), [value, other]
    return (name,), [value]


_SECOND = {
    "keyword": "forbidden_word",
    "startswith": "endswith",
    "model_startswith": "model_endswith",
    "model_keyword_num_each": "model_forbidden_word_each",
}


def _forbids(names: tuple[str, ...]) -> bool:
    return len(names) == 1 and ("forbidden" in names[0] or re.search(r"\bnot |_not_", names[0]) is not None)


# ---- values and texts


def wide(text: str) -> str:
    return text.translate(_WIDE)


def unquoted(text: str) -> str:
    """Without one pair of outer quotes or backticks, and the newlines before it."""
    text = text.lstrip("\n")
    return text[1:-1] if text[:1] in ('"', "“", "`") and text[-1:] in ('"', "”", "`") and text else text


def _items(value: str) -> list[str]:
    return [one.strip() for one in value.strip().strip("[]").split(",")]


def _range(value: str) -> tuple[float, float]:
    low, high = ast.literal_eval(value.strip())
    return low, high


def _within(count: int, value: str) -> bool:
    low, high = _range(value)
    return low <= count <= high


# ---- checks of one text; `text` is compared as it is given, values with wide marks


def keywords(text: str, value: str) -> bool:
    return all(wide(one) in text for one in _items(value))


def forbidden(text: str, value: str) -> bool:
    return not any(wide(one) in text for one in _items(value))


def starts(text: str, value: str) -> bool:
    return text.startswith(wide(value))


def ends(text: str, value: str) -> bool:
    return text.endswith(tuple(wide(value) + mark for mark in ("", "。", "？")))


def length(text: str, value: str) -> bool:
    return _within(len(text), value)


def words(text: str, value: str) -> bool:
    return _within(len(text.split()), value)


def only_marks(text: str, value: str) -> bool:
    """No mark but those listed; of the full-width forms those that ASCII marks become."""
    allowed = [wide(one) for one in _items(value)]
    return all(mark in allowed for mark in _MARKS if mark in text)


def keyword_count(text: str, value: str) -> bool:
    low, high, *words = _items(value)
    return int(low) <= sum(wide(one) in text for one in words) <= int(high)


def is_json(text: str, value: str) -> bool:
    """The first balanced {...} is an object with exactly these keys; any, if the list is empty."""
    wanted = {one for one in ast.literal_eval(value.strip()) if one != ""}
    try:
        found = json.loads(_braces(text))
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and (not wanted or set(found) == wanted)


def _braces(text: str) -> str:
    depth = start = 0
    for index, character in enumerate(text):
        if character == "{":
            start = index if depth == 0 else start
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start : index + 1]
    return ""


Check = Callable[..., bool]


def _either(one: Check) -> Check:
    """Of the text, or of it without its outer quotes."""
    return lambda text, value: one(text, value) or one(unquoted(text), value)


def _widened(one: Check) -> Check:
    return lambda text, *values: one(wide(text), *values)


def _negated(one: Check) -> Check:
    return lambda text, value: not one(text, value)


def _both(first: Check, second: Check) -> Check:
    return lambda text, value, other: first(text, value) and second(text, other)


def _plain(names: tuple[str, ...], values: Sequence[str], text: str) -> bool:
    return _forbids(names) if not text or "None" in text else _PLAIN[names](text, *values)


# ---- kinds of rules: names -> check

_PLAIN: dict[tuple[str, ...], Check] = {
    ("keyword",): _widened(keywords),
    ("forbidden_word",): _widened(forbidden),
    ("keyword", "forbidden_word"): _widened(_both(keywords, forbidden)),
    ("startswith",): _widened(starts),
    ("endswith",): _widened(ends),
    ("not endswith",): _widened(_negated(ends)),
    ("startswith", "endswith"): _widened(_both(starts, ends)),
    ("length",): length,
    ("length_word",): words,
    ("match",): _widened(lambda text, value: text in (value, value + "。")),  # the value's marks stay as they are
    ("Json",): is_json,
    ("constraint_punc",): _widened(only_marks),
}
_FIRST: dict[tuple[str, ...], Check] = {
    ("model_keyword",): keywords,
    ("model_forbidden_word",): forbidden,
    ("model_keyword_num",): keyword_count,
    ("model_length",): _either(length),
    ("model_length_word",): _either(words),
    ("model_startswith",): _widened(starts),
    ("model_endswith",): _widened(ends),
    ("model_startswith", "model_endswith"): _widened(_both(starts, ends)),
    ("model_not_startswith",): _widened(_negated(starts)),
    ("model_not_endswith",): _widened(_negated(ends)),
    ("model_constraint_punc",): lambda text, value: only_marks(unquoted(text), value),
}
_EACH: dict[tuple[str, ...], Check] = {
    ("model_keyword_each",): _widened(keywords),
    ("model_forbidden_word_each",): _widened(forbidden),
    ("model_keyword_num_each",): keyword_count,
    ("model_keyword_num_each", "model_forbidden_word_each"): _both(keyword_count, forbidden),
    ("model_length_each",): _either(length),
    ("model_length_word_each",): _either(words),
    ("model_startswith_each",): _widened(starts),
    ("model_not_endswith_each",): _widened(_negated(ends)),
    ("model_constraint_punc_each",): _widened(_either(only_marks)),
}


def _starts_in_order(found: Sequence[str], value: str) -> bool:
    items = _items(value)
    return len(found) == len(items) and all(
        starts(wide(one), item) for one, item in zip(found, items, strict=True) if one
    )


def _ends_but_the_last(found: Sequence[str], value: str) -> bool:
    """Of several pieces the last is not looked at."""
    return all(_either(ends)(wide(one), value) for one in (found[:-1] if len(found) > 1 else found) if one)


_ALL: dict[tuple[str, ...], Check] = {
    ("model_number_each",): lambda found, value: _within(len(found), value),
    ("model_starts_with_list_each",): _starts_in_order,
    ("model_endswith_each",): _ends_but_the_last,
}
