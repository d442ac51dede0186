"""The groups of FollowBench (ACL 2024) that rules decide: by source, by example in format, and all of type example.

English and Chinese have rules of their own where texts are measured. Source: the published scorer, whose oddities stay:
a sentence is a non-empty piece between . ! ? (Chinese 。！？), so white space after the last stop is one more; the "1" of
a marker "1." is one too, so that format 22 cannot be met from level 4 on in English; the Chinese gigaword group wants
在 at level 5, where its instruction forbids it.
"""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Callable, Sequence

Check = Callable[[str], bool]

# Whose answers are compared with the row's target.
_EQUAL = ("E2E", "text_editing")
_LAST = {"BBH_logical": r"\([A-Z]\)", "BBH_time": r"\d{2}/\d{2}/\d{4}"}
_DOLLARS = {"en": r"\$\d+", "zh": r"\d+美元"}
_BY_TARGET = (*_EQUAL, *_LAST, "WIKIEVENTS", "CONLL2003", "self_made_space", "gsm_8k")

_MARKS = {"en": string.punctuation, "zh": string.punctuation + "，。：’“”"}


def sentences(text: str, language: str) -> list[str]:
    return [piece for piece in re.split("[.!?]" if language == "en" else "[。！？]", text) if piece]


def has(text: str, word: str, language: str) -> bool:
    """A word at word boundaries, in its case; Chinese: anywhere."""
    return bool(re.search(rf"\b{re.escape(word)}\b", text)) if language == "en" else word in text


def marks(text: str, language: str) -> int:
    return sum(character in _MARKS[language] for character in text)


def _size(text: str, language: str) -> int:
    """Of a whole text: pieces between single spaces; Chinese: characters."""
    return len(text.split(" ")) if language == "en" else len(text)


def _sentence_size(text: str, language: str) -> int:
    return len(text.split()) if language == "en" else len(text)


def _sentences(count: int, language: str) -> Check:
    return lambda text: len(sentences(text, language)) == count


def _word(word: str, language: str, wanted: bool = True) -> Check:
    return lambda text: has(text, word, language) == wanted


def _words_in_order(words: Sequence[str], language: str) -> Check:
    """The n-th word in the n-th sentence."""

    def check(text: str) -> bool:
        pieces = sentences(text, language)
        return len(pieces) >= len(words) and all(has(one, word, language) for one, word in zip(pieces, words))

    return check


def _in_sentence(number: int, check: Check, language: str) -> Check:
    """`check` of the number-th sentence, from 1; False if there is none."""

    def whole(text: str) -> bool:
        pieces = sentences(text, language)
        return len(pieces) >= number and check(pieces[number - 1])

    return whole


def _not(check: Check) -> Check:
    return lambda text: not check(text)


def _pattern(pattern: str) -> Check:
    return lambda text: bool(re.search(pattern, text))


def _smaller(limit: int, language: str) -> Check:
    return lambda text: _size(text, language) < limit


def _no_marks(language: str) -> Check:
    return lambda text: not marks(text, language)


# Per source and language: the check that each level adds, 1 to 5. A level is met if all up to it are.
_EN: dict[str, list[Check]] = {
    "cnn_dailymail": [
        _sentences(3, "en"),
        lambda text: all(_sentence_size(one, "en") < 15 for one in sentences(text, "en")),
        _words_in_order(("Potter", "actor", "films"), "en"),
        _not(_in_sentence(2, _word("lavish", "en"), "en")),
        _in_sentence(3, _pattern(r"\b(has|have)\s+\w+"), "en"),
    ],
    "xsum": [
        _sentences(1, "en"),
        _smaller(20, "en"),
        _word("Newton Stewart", "en", False),
        _pattern(r"\b(am|is|are)\s+\w+ing\b"),
        _word("operation", "en"),
    ],
    "samsum": [
        _sentences(1, "en"),
        _smaller(15, "en"),
        _word("stuff", "en"),
        _not(_pattern("(?i)procrast")),
        lambda text: marks(text, "en") == 1,
    ],
    "gigaword": [
        lambda text: _size(text, "en") == 8,
        _no_marks("en"),
        str.islower,
        _word("bus", "en", False),
        _word("in", "en"),
    ],
    "arxiv": [
        _sentences(1, "en"),
        _smaller(21, "en"),
        lambda text: text.startswith("We"),
        _word("activations", "en"),
        _word("transformer", "en", False),
    ],
}
_ZH: dict[str, list[Check]] = {
    "cnn_dailymail": [
        _sentences(3, "zh"),
        lambda text: all(_sentence_size(one, "zh") < 15 for one in sentences(text, "zh")),
        _words_in_order(("波特", "演员", "电影"), "zh"),
        _not(_in_sentence(2, _word("奢侈", "zh"), "zh")),
        _in_sentence(3, _word("了", "zh"), "zh"),
    ],
    "xsum": [
        _sentences(1, "zh"),
        _smaller(20, "zh"),
        _word("牛顿斯图尔特", "zh", False),
        _word("在", "zh"),
        _word("操作", "zh"),
    ],
    "samsum": [
        _sentences(1, "zh"),
        _smaller(15, "zh"),
        _word("琐碎的", "zh"),
        _word("拖沓的", "zh", False),
        lambda text: marks(text, "zh") == 1,
    ],
    "gigaword": [
        lambda text: _size(text, "zh") == 8,
        _no_marks("zh"),
        lambda text: not any(map(str.isnumeric, text)),
        _word("公交车", "zh", False),
        _word("在", "zh"),
    ],
    "arxiv": [
        _sentences(1, "zh"),
        _smaller(21, "zh"),
        lambda text: text.startswith("我们"),
        _word("激活", "zh"),
        _word("transformer", "zh", False),
    ],
}
_BY_LEVEL = {"en": _EN, "zh": _ZH}
_ENDING = {"en": "Those are suggestions", "zh": "这些是建议"}
_FORMATS = {"en": (22, 30), "zh": (22,)}


def has_rule(constraint_type: str, example_id: int, source: str, language: str) -> bool:
    """Whether a rule decides the group, and no judge."""
    if constraint_type == "example":  # whose source names are those of data sets of other types
        return True
    if constraint_type == "format" and example_id in _FORMATS[language]:
        return True
    return source in _BY_TARGET or source in _BY_LEVEL[language]


def check(
    constraint_type: str, example_id: int, source: str, level: int, target: str, response: str, language: str
) -> bool:
    """Whether the response, as it is, meets the instruction of a level 1 to 5 with all its constraints."""
    if constraint_type == "example":
        return matches_template(target, response)
    if constraint_type == "format" and example_id == 22:
        return _format_22(response, level, language)
    if constraint_type == "format" and example_id == 30:
        return all(one(response) for one in _FORMAT_30[:level])
    if source in _BY_TARGET:
        return _meets_target(source, target, response, language)
    return all(one(response) for one in _BY_LEVEL[language][source][:level])


def matches_template(target: str, response: str) -> bool:
    """The whole response is the target without its "{instruction}" line, double braces single, {answer} any characters
    but a newline."""
    template = target.replace("{instruction}\n", "").replace("{{", "{").replace("}}", "}")
    return bool(re.fullmatch(".*".join(map(re.escape, template.split("{answer}"))), response))


def _meets_target(source: str, target: str, response: str, language: str) -> bool:
    if source in _EQUAL:
        return response == target
    if source == "WIKIEVENTS":
        return set(response.split("\n")) <= set(target.split("\n"))
    if source == "CONLL2003":
        return response in ast.literal_eval(target)
    if source == "self_made_space":
        return target in response
    found = re.findall(_DOLLARS[language] if source == "gsm_8k" else _LAST[source], response)
    return bool(found) and found[-1] == target


def _format_22(text: str, level: int, language: str) -> bool:
    blocks = text.split("\n\n")
    numbered = all(re.match(r"\d+\.", block.lstrip()) for block in blocks if block.strip())
    met = [
        len(blocks) == (4 if level == 5 else 3),
        all(len(sentences(block, language)) < 3 for block in blocks[:3]),
        all(_sentence_size(one, language) > 20 for one in sentences(text, language)),
        numbered,
        text.endswith(_ENDING[language]),
    ]
    return all(met[:level])


def _split_30(text: str) -> list[str]:
    """At white space after . or ?, but not in "e.g. " or after a title such as "Mr."."""
    pieces, start = [], 0
    for space in re.finditer(r"\s", text):
        before = text[start : space.start()]
        abbreviated = re.search(r"(\w\.\w[.?]|[A-Z][a-z]\.)$", before)
        if before.endswith((".", "?")) and not abbreviated:
            pieces.append(before)
            start = space.end()
    return [*pieces, text[start:]]


_FORMAT_30: list[Check] = [
    lambda text: "**" in text,
    lambda text: len(re.findall(r"\*\*\d.+?:", text)) == 5,
    lambda text: all(
        len(one.split(".")) < 3 for one in _split_30(text) if any(f"{number}." in one for number in range(1, 6))
    ),
    lambda text: all(10 <= len(one.split()) <= 15 for one in _split_30(text)),
    lambda text: not any(word.endswith("-ly") for word in text.split()),
]
