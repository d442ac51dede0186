"""The groups of FollowBench (ACL 2024) that rules decide: by source, by example in format, and all of type example.

Texts of English and Chinese are measured in different ways. Source: the published scorer, whose oddities stay: a sentence
is a non-empty piece between . ! ? (Chinese 。！？), so white space after the last stop is one more; the "1" of a marker "1."
is one too, so that format 22 cannot be met from level 4 on in English; the Chinese gigaword group wants 在 at level 5, where
its instruction forbids it.
"""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

Check = Callable[[str], bool]

# Sources whose answers are compared with the row's target
_EQUAL = ("E2E", "text_editing")
_LAST = {"BBH_logical": r"\([A-Z]\)", "BBH_time": r"\d{2}/\d{2}/\d{4}"}
_BY_TARGET = (*_EQUAL, *_LAST, "WIKIEVENTS", "CONLL2003", "self_made_space", "gsm_8k")


class _Language(NamedTuple):
    """How texts of a language are measured, and what its rules look for."""

    stop: str  # pattern of what ends a sentence
    marks: str
    in_words: bool  # sizes are counted in words; else in characters
    dollars: str  # pattern of an amount
    formats: tuple[int, ...]  # the examples of type format that a rule decides
    ending: str  # of format 22

    def sentences(self, text: str) -> list[str]:
        return [piece for piece in re.split(self.stop, text) if piece]

    def has(self, text: str, word: str) -> bool:
        """Whether a word occurs in its case; in English at word boundaries."""
        return bool(re.search(rf"\b{re.escape(word)}\b", text)) if self.in_words else word in text

    def count_marks(self, text: str) -> int:
        return sum(character in self.marks for character in text)

    def size(self, text: str) -> int:
        """The size of a whole text: the pieces between single spaces, or the characters."""
        return len(text.split(" ")) if self.in_words else len(text)

    def sentence_size(self, text: str) -> int:
        return len(text.split()) if self.in_words else len(text)


_LANGUAGES = {
    "en": _Language("[.!?]", string.punctuation, True, r"\$\d+", (22, 30), "Those are suggestions"),
    "zh": _Language("[。！？]", string.punctuation + "，。：’“”", False, r"\d+美元", (22,), "这些是建议"),
}


def _levels(
    of: _Language, *, names: Sequence[str], lavish: str, place: str, operation: str, stuff: str, bus: str, inside: str, we: str,
    activations: str, plain: Check, finite: Check, no_delay: Check, ongoing: Check,
) -> dict[str, list[Check]]:  # fmt: skip
    """Source -> the check that each level, 1 to 5, adds. The texts are words of the language, named after the English ones; the
    checks look for its grammar."""

    def has(word: str) -> Check:
        return lambda text: of.has(text, word)

    def lacks(word: str) -> Check:
        return lambda text: not of.has(text, word)

    def sentences(count: int) -> Check:
        return lambda text: len(of.sentences(text)) == count

    def smaller(limit: int) -> Check:
        return lambda text: of.size(text) < limit

    def in_sentence(number: int, check: Check) -> Check:
        return lambda text: any(map(check, of.sentences(text)[number - 1 : number]))

    def short_sentences(text: str) -> bool:
        return all(of.sentence_size(one) < 15 for one in of.sentences(text))

    def names_in_order(text: str) -> bool:
        """The n-th name is in the n-th sentence."""
        return all(in_sentence(n, has(name))(text) for n, name in enumerate(names, start=1))

    return {
        "cnn_dailymail": [
            sentences(3), short_sentences, names_in_order, lambda text: not in_sentence(2, has(lavish))(text),
            in_sentence(3, finite),
        ],
        "xsum": [sentences(1), smaller(20), lacks(place), ongoing, has(operation)],
        "samsum": [sentences(1), smaller(15), has(stuff), no_delay, lambda text: of.count_marks(text) == 1],
        "gigaword": [
            lambda text: of.size(text) == 8, lambda text: not of.count_marks(text), plain, lacks(bus), has(inside),
        ],
        "arxiv": [sentences(1), smaller(21), lambda text: text.startswith(we), has(activations), lacks("transformer")],
    }  # fmt: skip


_BY_LEVEL = {
    "en": _levels(
        _LANGUAGES["en"], names=("Potter", "actor", "films"), lavish="lavish", place="Newton Stewart", operation="operation",
        stuff="stuff", bus="bus", inside="in", we="We", activations="activations", plain=str.islower,
        finite=lambda text: re.search(r"\b(has|have)\s+\w+", text), no_delay=lambda text: not re.search("(?i)procrast", text),
        ongoing=lambda text: re.search(r"\b(am|is|are)\s+\w+ing\b", text),
    ),
    "zh": _levels(
        _LANGUAGES["zh"], names=("波特", "演员", "电影"), lavish="奢侈", place="牛顿斯图尔特", operation="操作",
        stuff="琐碎的", bus="公交车", inside="在", we="我们", activations="激活",
        plain=lambda text: not any(map(str.isnumeric, text)), finite=lambda text: "了" in text,
        no_delay=lambda text: "拖沓的" not in text, ongoing=lambda text: "在" in text,
    ),
}  # fmt: skip


def has_rule(constraint_type: str, example_id: int, source: str, language: str) -> bool:
    """Whether a rule decides the group, and no judge."""
    if constraint_type == "example":  # its sources have the names of data sets of other types
        return True
    if constraint_type == "format" and example_id in _LANGUAGES[language].formats:
        return True
    return source in _BY_TARGET or source in _BY_LEVEL[language]


def check(
    constraint_type: str, example_id: int, source: str, level: int, target: str, response: str, language: str
) -> bool:
    """Whether the response, as it is, meets the instruction of a level 1 to 5 with all its constraints."""
    of = _LANGUAGES[language]
    if constraint_type == "example":
        return matches_template(target, response)
    if constraint_type == "format" and example_id == 22:
        return _format_22(response, level, of)
    if constraint_type == "format" and example_id == 30:
        return all(one(response) for one in _FORMAT_30[:level])
    if source in _BY_TARGET:
        return _meets_target(source, target, response, of)
    return all(one(response) for one in _BY_LEVEL[language][source][:level])


def matches_template(target: str, response: str) -> bool:
    """Whether the whole response is the target without its "{instruction}" line, with single for double braces and any
    characters but a newline for {answer}."""
    template = target.replace("{instruction}\n", "").replace("{{", "{").replace("}}", "}")
    return bool(re.fullmatch(".*".join(map(re.escape, template.split("{answer}"))), response))


def _meets_target(source: str, target: str, response: str, of: _Language) -> bool:
    if source in _EQUAL:
        return response == target
    if source == "WIKIEVENTS":
        return set(response.split("\n")) <= set(target.split("\n"))
    if source == "CONLL2003":
        return response in ast.literal_eval(target)
    if source == "self_made_space":
        return target in response
    found = re.findall(of.dollars if source == "gsm_8k" else _LAST[source], response)
    return bool(found) and found[-1] == target


def _format_22(text: str, level: int, of: _Language) -> bool:
    blocks = text.split("\n\n")
    numbered = all(re.match(r"\d+\.", block.lstrip()) for block in blocks if block.strip())
    met = [
        len(blocks) == (4 if level == 5 else 3),
        all(len(of.sentences(block)) < 3 for block in blocks[:3]),
        all(of.sentence_size(one) > 20 for one in of.sentences(text)),
        numbered,
        text.endswith(of.ending),
    ]
    return all(met[:level])


def _split_30(text: str) -> list[str]:
    """A text, split at white space after . or ?, but not in "e.g. " or after a title such as "Mr."."""
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
