"""Reads MulDimIF's wordings on content and language as rules: keywords, punctuation, identifiers, English, Chinese."""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from hir_jax.checks import english as nltk_english
from hir_jax.checks.muldimif.counts import count_words, word_limits
from hir_jax.checks.muldimif.text import CJK, NUMBER, Rule, elements, json_document, number, quoted, table_cells


def _counter(keyword: str) -> Callable[[str], int]:
    """Counts a keyword: as a whole word and in any case, a Chinese one anywhere."""
    if CJK.search(keyword):
        return lambda text: text.count(keyword)
    pattern = re.compile(rf"(?<!\w){re.escape(keyword)}(?!\w)", re.IGNORECASE)
    return lambda text: len(pattern.findall(text))


def _least(wording: str) -> int:
    if re.search(r"\bmultiple times\b", wording, re.IGNORECASE):
        return 2
    found = re.search(rf"\bat least (?:(once|twice)|{NUMBER} times?)", wording, re.IGNORECASE)
    if not found:
        return 1
    return {"once": 1, "twice": 2}[found[1].lower()] if found[1] else number(found[2])


_INCLUDE_AND_AVOID = re.compile(r"includes the keyword '([^']+)'.*?avoids the keyword '([^']+)'")
_IF_DISCUSSING = re.compile(r"[Ii]f discussing (.+?), the summary must include the keyword '([^']+)'")


def _special_keywords(wording: str) -> Rule | None:
    """Two wordings with rules of their own, which compare strings anywhere and in their own case."""
    if found := _INCLUDE_AND_AVOID.search(wording):
        include, avoid = found.groups()
        return lambda response: include in response and avoid not in response
    if found := _IF_DISCUSSING.search(wording):
        topic, keyword = found.groups()
        return lambda response: topic not in response or keyword in response
    return None


def _side_conditions(wording: str) -> list[Rule]:
    """Further demands of a keyword constraint: a number of words, a final period, capital letters."""
    conditions: list[Rule] = []
    bounds = word_limits(wording) if re.search(r"\bwords?\b", wording, re.IGNORECASE) else None
    if bounds:
        conditions.append(lambda text: bounds.hold(count_words(text)))
    if re.search(r"\b(?:ends?|concludes?) with a period", wording, re.IGNORECASE):
        conditions.append(lambda text: text.rstrip().endswith("."))
    if re.search(r"\bcapitalized letters for each word", wording, re.IGNORECASE):
        conditions.append(is_title_case)
    return conditions


def keywords(wording: str) -> Rule:
    """All quoted strings occur often enough; any of them, where the wording has an "or"; none, where it avoids a term.

    "each" or "every" makes it a rule for every element if a "must" or similar verb follows; without one it fails.
    """
    special = _special_keywords(wording)
    if special:
        return special
    counters = [_counter(keyword) for keyword in quoted(wording)]
    if re.search(r"\bavoid using the term", wording, re.IGNORECASE):
        return lambda response: not any(count(response) for count in counters)
    least = _least(wording)
    enough = any if re.search(r"\bor\b", wording, re.IGNORECASE) else all
    conditions = _side_conditions(wording)

    def rule(text: str) -> bool:
        return enough(count(text) >= least for count in counters) and all(holds(text) for holds in conditions)

    each = re.search(r"\b(?:each|every)\b", wording, re.IGNORECASE)
    if not each:
        return rule
    if not re.search(r"\b(?:must|should|needs to|has to)\b", wording[each.end() :], re.IGNORECASE):
        return lambda response: False

    def every_element_fits(response: str) -> bool:
        found = elements(response, wording, between_rulers=True)
        return bool(found) and all(map(rule, found))

    return every_element_fits


_MARKS = {
    "period": ".",
    "full stop": ".",
    "question mark": "?",
    "exclamation mark": "!",
    "exclamation point": "!",
    "semicolon": ";",
    "colon": ":",
    "comma": ",",
    "punctuation mark": string.punctuation,
}
_NEGATION = re.compile(r"must not|avoid|exclude|do not use")


def punctuation(wording: str) -> Rule:
    """The last character of each unit is (or, negated, is not) one of the named marks.

    Units: lines for "paragraph" or "section"; Punkt sentences for "each", "any", "all" (also inside words); cells
    after the second line for "table" or "cell", if there are any; sentences of bullets for "bullet point"; else the
    response. Blank units are ignored; a blank response meets only negated constraints and those about sentences.
    """
    low = wording.lower()
    marks = {mark for name, marks in _MARKS.items() if re.search(rf"\b{name}", low) for mark in marks}
    split = _punctuation_units(low)

    def ends(response: str) -> list[bool]:
        units = (unit.strip() for unit in split(response))
        return [unit[-1] in marks for unit in units if unit]

    if _NEGATION.search(low):
        return lambda response: not any(ends(response))
    if split is nltk_english.sentences:
        return lambda response: all(ends(response))
    return lambda response: all(found := ends(response)) and bool(found)


def _whole(response: str) -> list[str]:
    return [response]


def _cells_below_header(response: str) -> list[str]:
    cells = [cell for line in response.split("\n")[2:] for cell in line.split("|")]
    return cells if any(map(str.strip, cells)) else [response]


def _bullet_sentences(response: str) -> list[str]:
    bullets = (line for line in response.split("\n") if line.lstrip().startswith(("-", "*", "•")))
    return [sentence for bullet in bullets for sentence in nltk_english.sentences(bullet)]


def _punctuation_units(low: str) -> Callable[[str], list[str] | tuple[str, ...]]:
    if "paragraph" in low or "section" in low:
        return str.splitlines
    if "table" in low or "cell" in low:
        return _cells_below_header
    if "bullet point" in low:
        return _bullet_sentences
    if any(word in low for word in ("each", "any", "all")):
        return nltk_english.sentences
    return _whole


_START_LETTER = re.compile(r"start with the letter '(\w)'")
_START_TEXT = re.compile(r"start with the (?:word|identifier) '([^']+)'")


def identifiers(wording: str) -> Rule:
    """A word starts with the letter; the response, heading marks aside, starts with the text, in any case."""
    if found := _START_LETTER.search(wording):
        pattern = re.compile(rf"\b{found[1]}")
        return lambda response: pattern.search(response) is not None
    if found := _START_TEXT.search(wording):
        start = found[1].lower()
        return lambda response: response.lstrip("# \t\n").lower().startswith(start)
    return lambda response: False


def is_title_case(text: str) -> bool:
    """No word between white space begins with a letter from a to z."""
    return not any("a" <= word[0] <= "z" for word in text.split())


def _is_upper(text: str) -> bool:
    return text == text.upper()


def _is_lower(text: str) -> bool:
    return text == text.lower()


def _letter_case(low: str) -> Rule | None:
    if "all uppercase" in low or "in capitalized form" in low:
        return _is_upper
    if "capitalized" in low or re.search(r"capital.*\beach|\beach.*capital", low):
        return is_title_case
    return _is_lower if "lowercase" in low else None


def english(wording: str) -> Rule:
    """Upper, title or lower case of the part that the wording names, or of the whole response if it has no such part.

    A blank response fails. So does every response if the scorer knows no case in the wording ("entirely in uppercase", for
    example).
    """
    low = wording.lower()
    fits = _letter_case(low)
    if fits is None:
        return lambda response: False
    return lambda response: bool(response.strip()) and all(map(fits, _named_parts(response, low) or [response]))


def _named_parts(response: str, low: str) -> list[str]:
    if "table" in low:
        rows = table_cells(response)
        if "header" in low:
            return rows[0] if rows else []
        return [cell for row in rows[1 if "entr" in low else 0 :] for cell in row]
    if "json" in low:
        try:
            return _keys(json_document(response))
        except (ValueError, RecursionError):
            return []
    if "heading" in low:
        return re.findall(r"^[ \t]*#+[ \t]+(.*)$", response, re.MULTILINE)
    return []


def _keys(document: object) -> list[str]:
    if isinstance(document, dict):
        return [name for key, value in document.items() for name in (key, *_keys(value))]
    return [name for value in document for name in _keys(value)] if isinstance(document, list) else []


def chinese(wording: str) -> Rule:
    """Simplified (traditional) Chinese: some character changes in the script of Taiwan (of the mainland).

    "must use" or "convert into" Traditional wants all of it in that script, and no Latin letter. Other wordings fail.
    """
    if re.search(r"must use Traditional|convert\w* into Traditional", wording, re.IGNORECASE):
        return lambda response: response == _in_script(response, "zh-tw") and not re.search("[A-Za-z]", response)
    for name, other in (("Simplified|简体|簡體", "zh-tw"), ("Traditional|繁體|繁体", "zh-cn")):
        if re.search(name, wording, re.IGNORECASE):
            return lambda response, other=other: response != _in_script(response, other)
    return lambda response: False


def _in_script(text: str, script: str) -> str:
    from zhconv import convert

    return convert(text, script)


def load() -> None:
    """Makes zhconv read its tables."""
    _in_script("汉", "zh-tw")
    _in_script("漢", "zh-cn")
