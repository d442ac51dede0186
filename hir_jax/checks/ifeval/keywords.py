"""IFEval's types on keywords (regular expressions, searched without regard to case), letters and language. See `ifeval`."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from hir_jax.checks.arguments import LETTER, one_of, pattern, patterns
from hir_jax.checks.compatibility import Demands, literal
from hir_jax.checks.generation import Arguments, Task
from hir_jax.checks.ifeval.common import RELATION, amount, bound, draw_relation, generated, holds, is_language, quoted
from hir_jax.checks.registry import register


def demand_keywords(keywords: Sequence[str]) -> Demands:
    """The demands of words that have to occur. A text that holds one of them already makes it empty."""
    return Demands(owns="keywords", uses="english", refuses=_holds_one_of(keywords), **literal(" ".join(keywords)))


def demand_absence(forbidden_words: Sequence[str]) -> Demands:
    """The demands of words that must not occur."""
    return Demands(owns="forbidden", uses="english", refuses=_holds_one_of(forbidden_words))


def demand_frequency(keyword: str, frequency: int, relation: str) -> Demands:
    """The demands of a word that has to occur at least, or less than, this many times."""
    times = bound("word", frequency, relation, keyword)
    return Demands(uses="english", bounds=(times,), **literal("" if times.upper else " ".join([keyword] * frequency)))


def _holds_one_of(words: Sequence[str]):
    return lambda text: any(word.lower() in text.lower() for word in words)


@register(
    "keywords:existence",
    lambda keywords: (
        f"Use the word {quoted(keywords)} at least once."
        if len(keywords) == 1
        else f"Use each of these words at least once: {quoted(keywords)}."
    ),
    generated=generated(
        demand_keywords,
        "Include the keywords {keywords}.",
        "Make sure that the words {keywords} appear in the text.",
        "Mention {keywords} in your reply.",
        draw=lambda task, rng: {"keywords": rng.sample(task.keywords, rng.randint(2, 3))},
    ),
    keywords=patterns(),
)
def existence(response: str, keywords: Sequence[str]) -> bool:
    return all(re.search(keyword, response, re.IGNORECASE) for keyword in keywords)


def _draw_frequency(task: Task, rng: random.Random) -> Arguments:
    return {"keyword": rng.choice(task.keywords), "frequency": rng.randint(2, 4), "relation": draw_relation(rng)}


@register(
    "keywords:frequency",
    lambda keyword, frequency, relation: f'Use the word "{keyword.strip()}" {amount(relation, frequency, "time")}.',
    generated=generated(
        demand_frequency,
        'The word "{keyword}" should appear {amount} times.',
        'Mention the word "{keyword}" {amount} times.',
        'In your reply, "{keyword}" must occur {amount} times.',
        draw=_draw_frequency,
        repeatable=True,
    ),
    keyword=pattern(str.strip),
    relation=RELATION,
)
def frequency(response: str, keyword: str, frequency: int, relation: str) -> bool:
    return holds(sum(1 for _ in re.finditer(keyword.strip(), response, re.IGNORECASE)), relation, frequency)


def _whole_word(word: str) -> str:
    return rf"\b{word}\b"


_PLAIN_WORDS = (
    "very", "really", "just", "thing", "things", "good", "great", "nice", "important", "interesting", "amazing",
    "always", "never",
)  # fmt: skip


def _draw_forbidden(task: Task, rng: random.Random) -> Arguments:
    absent = [word for word in _PLAIN_WORDS if word not in task.task.lower()]
    return {"forbidden_words": rng.sample(task.keywords, rng.randint(1, 2)) + rng.sample(absent, rng.randint(1, 2))}


@register(
    "keywords:forbidden_words",
    lambda forbidden_words: (
        f"Do not use the word {quoted(forbidden_words)}."
        if len(forbidden_words) == 1
        else f"Do not use any of these words: {quoted(forbidden_words)}."
    ),
    generated=generated(
        demand_absence,
        "Do not include the words {forbidden_words}.",
        "Avoid the words {forbidden_words}.",
        "The words {forbidden_words} must not appear anywhere in the reply.",
        draw=_draw_forbidden,
    ),
    forbidden_words=patterns(_whole_word),
)
def forbidden_words(response: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(_whole_word(word), response, re.IGNORECASE) for word in forbidden_words)


def _draw_letter(task: Task, rng: random.Random) -> Arguments:
    if rng.random() < 0.5:
        rare = rng.choice("bfgjkpqvwxz")
        return {"letter": rare, "let_frequency": rng.randint(3, 6), "let_relation": "less than"}
    common = rng.choice("abcdefghilmnoprstuwy")
    return {"letter": common, "let_frequency": rng.randint(3, 15), "let_relation": "at least"}


@register(
    "keywords:letter_frequency",
    lambda letter, let_frequency, let_relation: (
        f'The letter "{letter}" must occur {amount(let_relation, let_frequency, "time")}, in upper or lower case.'
    ),
    generated=generated(
        # A letter that is rare or common in English may be the opposite in another language.
        lambda letter, let_frequency, let_relation: Demands(
            uses="english", bounds=(bound("letter", let_frequency, let_relation, letter),)
        ),
        "The letter {letter} should appear {amount} times.",
        'Use the letter "{letter}" {amount} times in the whole reply.',
        'Let the letter "{letter}" occur {amount} times.',
        draw=_draw_letter,
        repeatable=True,
    ),
    letter=LETTER,
    let_relation=RELATION,
)
def letter_frequency(response: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return holds(response.lower().count(letter), let_relation, let_frequency)


# The languages that langdetect can name, under their names in the data ("zh" is its "zh-cn").
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

# Languages in Latin letters: counts of words, sentences, capitals and ASCII marks are meaningful only in these.
_LATIN = frozenset({
    "af", "ca", "cs", "cy", "da", "de", "en", "es", "et", "fi", "fr", "hr", "hu", "id", "it", "lt",
    "lv", "nl", "no", "pl", "pt", "ro", "sk", "sl", "so", "sq", "sv", "sw", "tl", "tr", "vi",
})  # fmt: skip


def _demand_language(language: str) -> Demands:
    bars = "" if language == "en" else "english" if language in _LATIN else "english latin"
    return Demands(owns="language", bars=bars)


@register(
    "language:response_language",
    lambda language: f"Write the whole answer in {LANGUAGES[language]} and in no other language.",
    generated=generated(
        _demand_language,
        "Write in {language} only.",
        "Your entire reply should be in {language}, no other language is allowed.",
        "Answer in {language} and use no other language.",
        draw=lambda task, rng: {"language": rng.choice(("de", "es", "fr", "it", "pt"))},
        fill=lambda wording, arguments, rng: wording.format(language=LANGUAGES[arguments["language"]]),
    ),
    language=one_of(*LANGUAGES),
)
def response_language(response: str, language: str) -> bool:
    return is_language(response, language)
