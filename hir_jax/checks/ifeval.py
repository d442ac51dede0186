"""The 25 instruction types of IFEval (arXiv 2311.07911), with the verdicts of the published scorer, quirks included.

Behaviour: google-research/instruction_following_eval as evaluated with HiR (arXiv 2512.23457), which adds five Chinese
answers to constrained_response and reads langdetect's "zh-cn" as "zh". A quirk is named where a reader would stumble on
it. Unlike there, unusable arguments are errors (see `registry`), and so are blank keywords, phrases and markers.

Engines: the patterns written out here are the scorer's own, for Python's `re` (keywords, dividers, markers and section
heads among them). Counts of words, sentences and capital words are NLTK's, with the `regex` package (see `english`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from hir_jax.checks import english, registry
from hir_jax.checks.registry import COUNT, TEXT, Argument, needs, one_of, pattern, patterns, register

needs(english.load)

_LESS_THAN = "less than"
RELATION = one_of(_LESS_THAN, "at least")


def _holds(number: int, relation: str, threshold: int) -> bool:
    return number < threshold if relation == _LESS_THAN else number >= threshold


def _amount(relation: str, threshold: int, noun: str) -> str:
    return ("fewer than " if relation == _LESS_THAN else "at least ") + _number(threshold, noun)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _quoted(items: Sequence[str]) -> str:
    return ", ".join(f'"{item}"' for item in items)


# Keywords are regular expressions, searched without regard to case.


@register(
    "keywords:existence",
    lambda keywords: (
        f"Use the word {_quoted(keywords)} at least once."
        if len(keywords) == 1
        else f"Use each of these words at least once: {_quoted(keywords)}."
    ),
    keywords=patterns(),
)
def existence(response: str, keywords: Sequence[str]) -> bool:
    return all(re.search(keyword, response, re.IGNORECASE) for keyword in keywords)


@register(
    "keywords:frequency",
    lambda keyword, frequency, relation: f'Use the word "{keyword.strip()}" {_amount(relation, frequency, "time")}.',
    keyword=pattern(str.strip),
    frequency=COUNT,
    relation=RELATION,
)
def frequency(response: str, keyword: str, frequency: int, relation: str) -> bool:
    return _holds(sum(1 for _ in re.finditer(keyword.strip(), response, re.IGNORECASE)), relation, frequency)


def _whole_word(word: str) -> str:
    return rf"\b{word}\b"


@register(
    "keywords:forbidden_words",
    lambda forbidden_words: (
        f"Do not use the word {_quoted(forbidden_words)}."
        if len(forbidden_words) == 1
        else f"Do not use any of these words: {_quoted(forbidden_words)}."
    ),
    forbidden_words=patterns(_whole_word),
)
def forbidden_words(response: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(_whole_word(word), response, re.IGNORECASE) for word in forbidden_words)


def _letter(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    letter = value.strip().lower()
    if len(letter) != 1 or not "a" <= letter <= "z":
        raise registry.DrawnValueError  # two published prompts ask for # and for !
    return letter


@register(
    "keywords:letter_frequency",
    lambda letter, let_frequency, let_relation: (
        f'The letter "{letter}" must occur {_amount(let_relation, let_frequency, "time")}, in upper or lower case.'
    ),
    letter=Argument("one letter from a to z", _letter),
    let_frequency=COUNT,
    let_relation=RELATION,
)
def letter_frequency(response: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(response.lower().count(letter), let_relation, let_frequency)


# What langdetect can name, under the names it has in the data ("zh" is its "zh-cn").
LANGUAGES = {
    "af": "Afrikaans", "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech",
    "cy": "Welsh", "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French", "gu": "Gujarati", "he": "Hebrew",
    "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese",
    "kn": "Kannada", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "mk": "Macedonian", "ml": "Malayalam",
    "mr": "Marathi", "ne": "Nepali", "nl": "Dutch", "no": "Norwegian", "pa": "Punjabi", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovene", "so": "Somali",
    "sq": "Albanian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai",
    "tl": "Tagalog", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese",
    "zh": "Simplified Chinese", "zh-tw": "Traditional Chinese",
}  # fmt: skip


def _is_language(response: str, code: str) -> bool:
    found = english.language(response)
    return found is None or ("zh" if found == "zh-cn" else found) == code  # undetectable text counts as met


@register(
    "language:response_language",
    lambda language: f"Write the whole answer in {LANGUAGES[language]} and in no other language.",
    language=one_of(*LANGUAGES),
)
def response_language(response: str, language: str) -> bool:
    return _is_language(response, language)


@register(
    "length_constraints:number_sentences",
    lambda num_sentences, relation: f"Write {_amount(relation, num_sentences, 'sentence')}.",
    num_sentences=COUNT,
    relation=RELATION,
)
def number_sentences(response: str, num_sentences: int, relation: str) -> bool:
    return _holds(len(english.sentences(response)), relation, num_sentences)


@register(
    "length_constraints:number_words",
    lambda num_words, relation: f"Use {_amount(relation, num_words, 'word')}.",
    num_words=COUNT,
    relation=RELATION,
)
def number_words(response: str, num_words: int, relation: str) -> bool:
    return _holds(len(english.word_runs(response)), relation, num_words)


def _pieces(response: str, divider: str) -> list[str] | None:
    """Non-blank pieces between matches of `divider`; a blank one is allowed at either end only, else None."""
    pieces = re.split(divider, response)
    if not all(piece.strip() for piece in pieces[1:-1]):
        return None
    return [piece for piece in pieces if piece.strip()]


@register(
    "length_constraints:number_paragraphs",
    lambda num_paragraphs: (
        f"Write exactly {_number(num_paragraphs, 'paragraph')}, dividing paragraphs by a line that holds only ***."
    ),
    num_paragraphs=COUNT,
)
def number_paragraphs(response: str, num_paragraphs: int) -> bool:
    pieces = _pieces(response, r"\s?\*{3}\s?")
    return pieces is not None and len(pieces) == num_paragraphs


def _nth_fits(num_paragraphs: int, nth_paragraph: int, first_word: str) -> str | None:
    if 1 <= nth_paragraph <= num_paragraphs:
        return None
    return f"nth_paragraph must be from 1 to num_paragraphs = {num_paragraphs}, not {nth_paragraph}"


@register(
    "length_constraints:nth_paragraph_first_word",
    lambda num_paragraphs, nth_paragraph, first_word: (
        f"Write exactly {_number(num_paragraphs, 'paragraph')}, with one blank line between paragraphs, "
        f'and begin paragraph {nth_paragraph} with the word "{first_word}".'
    ),
    together=_nth_fits,
    num_paragraphs=COUNT,
    nth_paragraph=COUNT,
    first_word=TEXT,
)
def nth_paragraph_first_word(response: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    pieces = response.split("\n\n")
    count = sum(1 for piece in pieces if piece.strip())
    # Quirk: blank pieces do not count, but they do shift which piece is the nth.
    if nth_paragraph > count or not pieces[nth_paragraph - 1].strip():
        return False
    word = re.split(r"[.,?!'\"]", pieces[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"'))[0]
    # Letter by letter, as there: a capital sigma at the end of a word would become another letter otherwise.
    return count == num_paragraphs and "".join(map(str.lower, word)) == first_word.lower()


@register(
    "detectable_content:number_placeholders",
    lambda num_placeholders: (
        f"Leave at least {_number(num_placeholders, 'placeholder')} in square brackets, such as [name]."
    ),
    num_placeholders=COUNT,
)
def number_placeholders(response: str, num_placeholders: int) -> bool:
    return sum(map(_bracketed, response.split("\n"))) >= num_placeholders


def _bracketed(line: str) -> int:
    r"""How many matches of \[.*?\] the line has, in time linear in its length."""
    count = end = 0
    while (start := line.find("[", end)) >= 0 and (close := line.find("]", start)) >= 0:
        count, end = count + 1, close + 1
    return count


_POSTSCRIPTS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}


def _postscript(marker: str) -> str:
    # Quirk: any other marker is a regular expression, so that the dots of "P.S" are any character.
    return r"\s*" + _POSTSCRIPTS.get(marker.strip(), marker.strip().lower())


@register(
    "detectable_content:postscript",
    lambda postscript_marker: f'End the answer with a postscript that begins with "{postscript_marker.strip()}".',
    postscript_marker=pattern(_postscript),
)
def postscript(response: str, postscript_marker: str) -> bool:
    return re.search(_postscript(postscript_marker), response.lower(), re.MULTILINE) is not None


@register(
    "detectable_format:number_bullet_lists",
    lambda num_bullets: (
        f'Include exactly {_number(num_bullets, "bullet point")}, each on a line of its own that begins with "* ".'
    ),
    num_bullets=COUNT,
)
def number_bullet_lists(response: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^*].*$", response, re.MULTILINE)
    dashes = [line for line in response.split("\n") if line.lstrip().startswith("-")]  # quirk: also "---"
    return len(stars) + len(dashes) == num_bullets


_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_CHINESE_ANSWERS = tuple("我的答案是" + answer for answer in ("肯定的", "否定的", "可能", "也许", "不确定"))


@register(
    "detectable_format:constrained_response",
    lambda: f"The answer must contain one of these sentences, word for word: {' / '.join(_ANSWERS)}",
)
def constrained_response(response: str) -> bool:
    return any(answer in response for answer in _ANSWERS + _CHINESE_ANSWERS)


@register(
    "detectable_format:number_highlighted_sections",
    lambda num_highlights: (
        f"Highlight at least {_number(num_highlights, 'passage')} in Markdown, by an asterisk on either side, "
        "*like this*."
    ),
    num_highlights=COUNT,
)
def number_highlighted_sections(response: str, num_highlights: int) -> bool:
    # Quirk: both patterns run over the whole text, so that ***x*** counts twice.
    single = [match for match in re.findall(r"\*[^\n*]*\*", response) if match.strip("*").strip()]
    double = [match for match in re.findall(r"\*\*[^\n*]*\*\*", response) if match[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


def _section_head(splitter: str) -> str:
    return rf"\s?{splitter.strip()}\s?\d+\s?"


@register(
    "detectable_format:multiple_sections",
    lambda section_spliter, num_sections: (
        f"Divide the answer into at least {_number(num_sections, 'section')} and head each with "
        f'"{section_spliter.strip()}" and its number, as in "{section_spliter.strip()} 1".'
    ),
    section_spliter=pattern(_section_head),  # spelt so in the data
    num_sections=COUNT,
)
def multiple_sections(response: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.split(_section_head(section_spliter), response)) - 1 >= num_sections


@register(
    "detectable_format:json_format",
    lambda: "The whole answer must be one valid JSON value; a Markdown code fence around it is allowed.",
)
def json_format(response: str) -> bool:
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    text = text.removesuffix("```").strip()
    if _nesting(text) > _MOST_LEVELS:
        raise registry.ScorerStopsError
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


_MOST_LEVELS = 800  # The scorer ends with a RecursionError near 1,000; the exact depth depends on the interpreter.
_JSON_MARK = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def _nesting(text: str) -> int:
    """The deepest level of brackets and braces outside JSON strings, which need not match."""
    level = deepest = 0
    for mark in _JSON_MARK.findall(text):
        if mark in ("[", "{"):
            level += 1
            deepest = max(deepest, level)
        elif mark in ("]", "}"):
            level -= 1
    return deepest


@register(
    "detectable_format:title",
    lambda: "Give the answer a title enclosed in double angle brackets, such as <<title>>.",
)
def title(response: str) -> bool:
    return any(match.lstrip("<").rstrip(">").strip() for match in re.findall(r"<<[^\n]+>>", response))


@register(
    "combination:two_responses",
    lambda: "Give two different answers, divided by a line that holds only six asterisks: ******.",
)
def two_responses(response: str) -> bool:
    pieces = _pieces(response, r"\*{6}")
    return pieces is not None and len(pieces) == 2 and pieces[0].strip() != pieces[1].strip()


@register(
    "combination:repeat_prompt",
    lambda prompt_to_repeat: (
        "Begin by repeating the following request word for word, with nothing before it, and only then answer it: "
        f'"{prompt_to_repeat.strip()}".'
    ),
    prompt_to_repeat=TEXT,
)
def repeat_prompt(response: str, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


@register(
    "startend:end_checker",
    lambda end_phrase: f'End the answer with exactly this phrase and nothing after it: "{end_phrase.strip()}".',
    end_phrase=TEXT,
)
def end_checker(response: str, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@register(
    "startend:quotation",
    lambda: 'Begin and end the whole answer with a straight double quotation mark (").',
)
def quotation(response: str) -> bool:
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


@register(
    "change_case:capital_word_frequency",
    lambda capital_frequency, capital_relation: (
        f"Write {_amount(capital_relation, capital_frequency, 'word')} entirely in capital letters."
    ),
    capital_frequency=COUNT,
    capital_relation=RELATION,
)
def capital_word_frequency(response: str, capital_frequency: int, capital_relation: str) -> bool:
    return _holds(english.capital_tokens(response), capital_relation, capital_frequency)  # also "A" and "I"


@register(
    "change_case:english_capital",
    lambda: "Write the whole answer in English and in capital letters only.",
)
def english_capital(response: str) -> bool:
    return response.isupper() and _is_language(response, "en")


@register(
    "change_case:english_lowercase",
    lambda: "Write the whole answer in English and in lowercase letters only, without any capital letter.",
)
def english_lowercase(response: str) -> bool:
    return response.islower() and _is_language(response, "en")


@register("punctuation:no_comma", lambda: "Do not use any commas.")
def no_comma(response: str) -> bool:
    return "," not in response
