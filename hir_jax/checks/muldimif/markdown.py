"""Reads MulDimIF's wordings on Markdown as rules: heading levels, titles, block quotes."""

from __future__ import annotations

import re
from collections.abc import Callable

from hir_jax.checks.muldimif.text import NUMBER, Rule, limits, number

HEADING = re.compile(r"^[ \t]*(#+)[ \t]+(.*)$", re.MULTILINE)  # also in code blocks
_BLOCK_QUOTE = re.compile(r"^[ \t]*>", re.MULTILINE)
_BULLET = re.compile(r"^[ \t]*[-*•][ \t]", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*")

# Wordings that ask for a level. The scorer knows no others: "formatted using heading level 2" asks for nothing.
_LEVEL = re.compile(
    r"(?:\b(?:include|includes|including|incorporate|feature|use|using|is|(?:formatted|presented|identified) (?:as|with|in)"
    r"|presented under|markdown with) a (?:level (\d) heading|heading level (\d))"
    r"|(?:must|should) begin with a level (\d) heading|\buse heading level (\d)|\bat least one level (\d) heading"
    r"|\ba level (\d) heading should be used|heading level (\d) for section titles)"
)
_LEVELS = (
    re.compile(r"\buse heading levels (\d) and (\d)"),
    re.compile(r"(?<!such )\b(?:as|with|use|using)(?: a)? level (\d).*?\blevel (\d)"),
)
_H_LEVELS = re.compile(r"(?:(?<!such )\bas|\bas a heading level|\bheading levels|\bdenotes) h\d")
_ANY_HEADING = re.compile(r"\b(?:use|using) heading levels|\binclud(?:e|es|ing) headings|\bwith headings")
_TITLE = re.compile(r"level \d heading titled (?:'([^']+)'|\"([^\"]+)\")")

LevelTest = Callable[[list[int]], bool]  # of the levels of the headings, in order


def has_block_quote(response: str) -> bool:
    return _BLOCK_QUOTE.search(response) is not None


def _asked_levels(part: str) -> set[int]:
    asked: set[int] = set()
    if found := _LEVEL.search(part):
        asked.add(int(found[found.lastindex]))
    for wording in _LEVELS:
        if found := wording.search(part):
            asked |= set(map(int, found.groups()))
    if _H_LEVELS.search(part):
        asked |= set(map(int, re.findall(r"\bh(\d)", part)))
    return asked


def _level_tests(part: str) -> list[LevelTest]:
    """The tests of the levels that one part of a wording, in lower case, asks for."""
    tests: list[LevelTest] = []
    asked = _asked_levels(part)
    if asked:
        tests.append(asked.issubset)
    if (found := re.search(r"must begin with a level (\d) heading", part)) and "titled" not in part:
        first = int(found[1])
        tests.append(lambda levels: levels[:1] == [first])
    if found := re.search(r"must not exceed level (\d)", part):
        highest = int(found[1])
        tests.append(lambda levels: max(levels, default=0) <= highest)
    # "utilize" is a verb the scorer does not know.
    bounds = None if "utilize" in part else limits(part, r"(?:heading levels?|levels?(?: of headings?)?)")
    if bounds:
        tests.append(lambda levels: bounds.hold(len(set(levels))))
    if found := re.search(rf"include headings (?:at|with) {NUMBER} levels", part):
        least = number(found[1])
        tests.append(lambda levels: len(set(levels)) >= least)
    if _ANY_HEADING.search(part):
        tests.append(bool)
    return tests


def markdown(wording: str) -> Rule:
    """All tests that the parts of the wording ask for: levels that are present, their number, the highest, a title.

    "each" or "any" (also inside words: "company") tests every heading by itself, and there has to be one. Bold text, bullet
    points and block quotes add tests of their own. A wording in which the scorer recognises nothing is met.
    """
    low = wording.lower()
    alone = "each" in low or "any" in low
    tests = [test for part in re.split(r",(?!\s)", low) for test in _level_tests(part)]
    found = _TITLE.search(wording)
    title = found and (found[1] or found[2])
    features = [
        pattern
        for name, pattern in (("block quotes", _BLOCK_QUOTE), ("bold", _BOLD), ("bullet points", _BULLET))
        if name in low
    ]

    def rule(response: str) -> bool:
        headings = HEADING.findall(response)
        levels = [len(marks) for marks, _ in headings]
        if title and title not in (name.strip() for _, name in headings):
            return False
        groups = [[level] for level in levels] if alone else [levels]
        return (
            bool(groups)
            and all(test(group) for group in groups for test in tests)
            and all(pattern.search(response) for pattern in features)
        )

    return rule
