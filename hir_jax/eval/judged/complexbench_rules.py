"""The rule questions of ComplexBench (NeurIPS 2024): a model extracts the part of a response that a question is about, and
a rule `name:value` checks it.

Values are texts or lists in brackets, split at commas. `pieces` takes an extraction apart: a `model_` rule looks at the
first piece, an `_each` rule at every piece that is not empty, a plain rule at the first one with or without its outer
quotes. Source: the published scorer, whose oddities stay: ASCII marks become full-width ones before texts are compared
(which texts, the tables below say), and no piece, or a single empty one, meets only a rule that forbids something.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence

from hir_jax.eval.judged.base import UNDECIDED

Forms = tuple[Callable[[str], str], ...]  # ways to change a text before a check
HEADING = "【模型回复中评分问题的评测对象】\n"
OBJECTS = ("评分对象：", "评测对象：", "：")
NOTES = ("\n\n请注意", "\n\n**注意", "\n\n注意")

_WIDE = str.maketrans("!#$%&()*,.:;?\\^“”", '！＃＄％＆（）＊，。：；？＼＾""')
_MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~".translate(_WIDE)  # ASCII's punctuation, widened


def pieces(extraction: str, response: str) -> list[str]:
    """The parts of the response that an extraction names; [] if it says that there is none."""
    text = extraction.rsplit(HEADING, 1)[-1]
    for note in NOTES:
        text = text.rsplit(note, 1)[0]
    text = text.rsplit(next((one for one in OBJECTS if one in text), OBJECTS[0]), 1)[-1]
    if text.startswith("all"):
        return [response]
    return [] if "None" in text else [piece.strip() for piece in text.split("||")]


def check(rule: str, found: Sequence[str], published_quirks: bool = False) -> bool | int:
    """Whether the pieces meet the rule; UNDECIDED for a rule of no known kind, or whose value lacks the form of its kind.

    With `published_quirks` also UNDECIDED for a plain rule in which "model" or "each" occurs anywhere.
    """
    names, values = _parts(rule)
    name, first = names[0], found[0] if found else ""
    empty = not found or list(found) == [""]
    forbids = len(names) == 1 and ("forbidden" in name or _negated(name))
    try:
        if name in _PLAIN:
            if published_quirks and ("model" in rule or "each" in rule):
                return UNDECIDED
            texts = (unquoted(first), first)
            return any(_meets(_PLAIN, names, values, one) if one and "None" not in one else forbids for one in texts)
        if name in _FIRST:
            return forbids if empty else _meets(_FIRST, names, values, first)
        if name in _EACH:
            return forbids if empty else all(_meets(_EACH, names, values, one) for one in found if one)
        if name in _ALL:
            return not empty and _ALL[name](found, *values)
    except (ValueError, SyntaxError, TypeError):  # a value without the form of its kind
        pass
    return UNDECIDED


def _parts(rule: str) -> tuple[list[str], list[str]]:
    """The names and values of a rule: one of each, or two of each for kinds that are written as one rule."""
    name, _, value = rule.removesuffix("\n").partition(":")
    name = name.strip()
    second = _SECOND.get(name)
    if second and f"\n{second}:" in value:
        value, _, other = value.partition(f"\n{second}:")
        return [name, second], [value, other]
    return [name], [value]


_SECOND = {
    "keyword": "forbidden_word",
    "startswith": "endswith",
    "model_startswith": "model_endswith",
    "model_keyword_num_each": "model_forbidden_word_each",
}


def _negated(name: str) -> bool:
    return re.search(r"\bnot |_not_", name) is not None


def _meets(kinds: Mapping[str, Forms], names: Sequence[str], values: Sequence[str], text: str) -> bool:
    """Whether one of the text's forms meets the check of each name."""
    checks = [_CHECKS[re.sub(r"^model_|_each$", "", name).replace("not_", "").replace("not ", "")] for name in names]
    wanted = [not _negated(name) for name in names]
    return any(
        all(one(form(text), value) == right for one, value, right in zip(checks, values, wanted, strict=True))
        for form in kinds[names[0]]
    )


# ---- values and texts


def wide(text: str) -> str:
    return text.translate(_WIDE)


def unquoted(text: str) -> str:
    """The text without newlines at its start and without one pair of outer quotes or backticks."""
    text = text.lstrip("\n")
    return text[1:-1] if text[:1] in ('"', "“", "`") and text[-1:] in ('"', "”", "`") and text else text


def _items(value: str) -> list[str]:
    return [one.strip() for one in value.strip().strip("[]").split(",")]


def _within(count: int, value: str) -> bool:
    low, high = ast.literal_eval(value.strip())
    return low <= count <= high


# ---- checks of one text: values are compared with wide marks, the text as it is given


def ends(text: str, value: str) -> bool:
    return text.endswith(tuple(wide(value) + mark for mark in ("", "。", "？")))


def only_marks(text: str, value: str) -> bool:
    """Whether the text has no marks but those listed, of the full-width marks that ASCII ones become."""
    allowed = [wide(one) for one in _items(value)]
    return all(mark in allowed for mark in _MARKS if mark in text)


def keyword_count(text: str, value: str) -> bool:
    low, high, *words = _items(value)
    return int(low) <= sum(wide(one) in text for one in words) <= int(high)


def is_json(text: str, value: str) -> bool:
    """Whether the first balanced {...} is an object with exactly these keys, or with any if the list is empty."""
    wanted = {one for one in ast.literal_eval(value.strip()) if one != ""}
    try:
        found = json.loads(_braces(text))
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and (not wanted or set(found) == wanted)


def _braces(text: str) -> str:
    """The first {...} whose braces balance; "" if there is none."""
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


_CHECKS: dict[str, Callable[[str, str], bool]] = {
    "keyword": lambda text, value: all(wide(one) in text for one in _items(value)),
    "keyword_num": keyword_count,
    "forbidden_word": lambda text, value: not any(wide(one) in text for one in _items(value)),
    "startswith": lambda text, value: text.startswith(wide(value)),
    "endswith": ends,
    "length": lambda text, value: _within(len(text), value),
    "length_word": lambda text, value: _within(len(text.split()), value),
    "match": lambda text, value: text in (value, value + "。"),  # the value's marks stay as they are
    "Json": is_json,
    "constraint_punc": only_marks,
}

# ---- kinds of rules: name -> the forms of a text, one of which is to meet the check. Of a pair the first name counts.

_AS_IS: Forms = (str,)
_WIDE_MARKS: Forms = (wide,)
_WITH_OR_WITHOUT_QUOTES: Forms = (str, unquoted)
_PLAIN = {
    **dict.fromkeys(("keyword", "forbidden_word", "startswith", "endswith", "not endswith"), _WIDE_MARKS),
    **dict.fromkeys(("match", "constraint_punc"), _WIDE_MARKS),
    **dict.fromkeys(("length", "length_word", "Json"), _AS_IS),
}
_FIRST = {
    **dict.fromkeys(("model_keyword", "model_forbidden_word", "model_keyword_num"), _AS_IS),
    **dict.fromkeys(("model_length", "model_length_word"), _WITH_OR_WITHOUT_QUOTES),
    **dict.fromkeys(("model_startswith", "model_endswith"), _WIDE_MARKS),
    **dict.fromkeys(("model_not_startswith", "model_not_endswith"), _WIDE_MARKS),
    "model_constraint_punc": (unquoted,),
}
_EACH = {
    **dict.fromkeys(("model_keyword_each", "model_forbidden_word_each"), _WIDE_MARKS),
    **dict.fromkeys(("model_startswith_each", "model_not_endswith_each"), _WIDE_MARKS),
    **dict.fromkeys(("model_length_each", "model_length_word_each"), _WITH_OR_WITHOUT_QUOTES),
    "model_keyword_num_each": _AS_IS,
    "model_constraint_punc_each": (wide, lambda text: unquoted(wide(text))),
}


def _starts_in_order(found: Sequence[str], value: str) -> bool:
    items = _items(value)
    starts = [wide(one).startswith(wide(item)) for one, item in zip(found, items) if one]
    return len(found) == len(items) and all(starts)


def _ends_but_the_last(found: Sequence[str], value: str) -> bool:
    """Whether every piece ends with the value; the last of several pieces is not checked."""
    texts = [wide(one) for one in (found[:-1] if len(found) > 1 else found) if one]
    return all(ends(text, value) or ends(unquoted(text), value) for text in texts)


_ALL: dict[str, Callable[[Sequence[str], str], bool]] = {
    "model_number_each": lambda found, value: _within(len(found), value),
    "model_starts_with_list_each": _starts_in_order,
    "model_endswith_each": _ends_but_the_last,
}
