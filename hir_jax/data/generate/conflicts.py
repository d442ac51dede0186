"""Which IFEval-type constraints may stand in one instruction.

Two constraints conflict where no response meets both, where one makes the other empty (met by every response that
meets the first), or where meeting both would need a reading that a user would not expect (a postscript and an end
phrase both want the last words). The rules follow what the checks of `constraints` look at and what the constraint
texts say; where the two differ the stricter counts, e.g. a postscript marker "P.S." is refused beside "all lower case"
although the check ignores case.

Three layers:
1. `EXCLUSIVE`: pairs of ids that never go together, with the reason.
2. Rules on arguments of a pair: literal texts that one constraint demands (keywords, an end phrase, ...) against what
   the other one limits, ranges of the same quantity, languages, paragraphs.
3. Budgets over the whole set: words, sentences and letters that are demanded against the limits.

Conservative on purpose: it may refuse a pair that some contrived response would meet.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hir_jax.types import Constraint

CAPITAL = "change_case:english_capital"
LOWER = "change_case:english_lowercase"
CAPITAL_WORDS = "change_case:capital_word_frequency"
REPEAT = "combination:repeat_prompt"
TWO = "combination:two_responses"
PLACEHOLDERS = "detectable_content:number_placeholders"
POSTSCRIPT = "detectable_content:postscript"
CHOICE = "detectable_format:constrained_response"
JSON = "detectable_format:json_format"
SECTIONS = "detectable_format:multiple_sections"
BULLETS = "detectable_format:number_bullet_lists"
HIGHLIGHTS = "detectable_format:number_highlighted_sections"
TITLE = "detectable_format:title"
EXISTENCE = "keywords:existence"
FORBIDDEN = "keywords:forbidden_words"
FREQUENCY = "keywords:frequency"
LETTER = "keywords:letter_frequency"
LANGUAGE = "language:response_language"
NTH = "length_constraints:nth_paragraph_first_word"
PARAGRAPHS = "length_constraints:number_paragraphs"
SENTENCES = "length_constraints:number_sentences"
WORDS = "length_constraints:number_words"
NO_COMMA = "punctuation:no_comma"
END = "startend:end_checker"
QUOTATION = "startend:quotation"

_STRUCTURE = (TWO, PLACEHOLDERS, POSTSCRIPT, CHOICE, SECTIONS, BULLETS, HIGHLIGHTS, TITLE, NTH, PARAGRAPHS, REPEAT)
_RULES = (
    (JSON, (*_STRUCTURE, END, QUOTATION), "a JSON value leaves no room for it"),
    (JSON, (NO_COMMA,), "JSON separates its members by commas"),
    (CAPITAL, (LOWER,), "all upper case against all lower case"),
    (CAPITAL, (CAPITAL_WORDS,), "all words are in upper case already"),
    (LOWER, (CAPITAL_WORDS,), "no word may be in upper case"),
    (CAPITAL, (REPEAT, CHOICE), "the wording to give back unchanged is in mixed case"),
    (LOWER, (REPEAT, CHOICE), "the wording to give back unchanged is in mixed case"),
    (LANGUAGE, (CAPITAL, LOWER), "the case constraint demands English"),
    (LANGUAGE, (REPEAT, CHOICE), "the wording to give back unchanged is English"),
    (REPEAT, (QUOTATION,), "the response would start with both a quotation mark and the request"),
    (REPEAT, (TWO,), "it is open which of the two responses holds the repeated request"),
    (TWO, (PARAGRAPHS,), "the six asterisks between the responses read as two paragraph dividers"),
    (TWO, (NTH, BULLETS, CHOICE), "it is open whether the count is for each response or for both"),
    (NTH, (PARAGRAPHS,), "two different ways to divide paragraphs"),
    (NTH, (SECTIONS,), "a paragraph would start with both its section mark and the given word"),
    (END, (POSTSCRIPT,), "both claim the last words"),
    (QUOTATION, (POSTSCRIPT, END), "both claim the end of the response"),
)
EXCLUSIVE: dict[frozenset[str], str] = {frozenset((a, b)): why for a, others, why in _RULES for b in others}

# Ids that an instruction may hold twice: their arguments say something different each time.
REPEATABLE = frozenset((CAPITAL_WORDS, FREQUENCY, LETTER, SENTENCES, WORDS))

# Languages in Latin letters: only there do counts of words, sentences, capitals and ASCII marks mean what they say.
LATIN_LANGUAGES = frozenset({
    "af", "ca", "cs", "cy", "da", "de", "en", "es", "et", "fi", "fr", "hr", "hu", "id", "it", "lt",
    "lv", "nl", "no", "pl", "pt", "ro", "sk", "sl", "so", "sq", "sv", "sw", "tl", "tr", "vi",
})  # fmt: skip

# Frequencies of letters in English text, % of all letters (R. E. Lewand, Cryptological Mathematics, 2000).
_LETTER_PERCENT = {
    "a": 8.2, "b": 1.5, "c": 2.8, "d": 4.3, "e": 12.7, "f": 2.2, "g": 2.0, "h": 6.1, "i": 7.0, "j": 0.15, "k": 0.77,
    "l": 4.0, "m": 2.4, "n": 6.7, "o": 7.5, "p": 1.9, "q": 0.095, "r": 6.0, "s": 6.3, "t": 9.1, "u": 2.8, "v": 0.98,
    "w": 2.4, "x": 0.15, "y": 2.0, "z": 0.074,
}  # fmt: skip
_LETTERS_PER_WORD = 4.7
_MOST_WORDS_PER_SENTENCE = 30
# The least words that one item of a structure takes to be worth having.
_WORDS_EACH = {
    (PARAGRAPHS, "num_paragraphs"): 6,
    (NTH, "num_paragraphs"): 6,
    (SECTIONS, "num_sections"): 6,
    (BULLETS, "num_bullets"): 3,
    (HIGHLIGHTS, "num_highlights"): 3,
    (PLACEHOLDERS, "num_placeholders"): 3,
}
_SENTENCES_EACH = {(PARAGRAPHS, "num_paragraphs"), (NTH, "num_paragraphs"), (SECTIONS, "num_sections")}
# (id, argument of the number, argument of the relation, argument that says of what, least width of a range)
_RANGES = {
    WORDS: ("num_words", "relation", None, 15),
    SENTENCES: ("num_sentences", "relation", None, 2),
    CAPITAL_WORDS: ("capital_frequency", "capital_relation", None, 2),
    FREQUENCY: ("frequency", "relation", "keyword", 1),
    LETTER: ("let_frequency", "let_relation", "letter", 3),
}


class Besides(NamedTuple):
    """What else a response has to hold: text that is demanded, and words and sentences that this and more takes."""

    text: str = ""
    words: int = 0
    sentences: int = 0


_NOTHING = Besides()


def is_upper_bound(constraint: Constraint) -> bool:
    """Whether it is a "less than" constraint; everything else that counts is "at least" (or exact)."""
    _, relation, _, _ = _RANGES.get(constraint.id, (None, "relation", None, 0))
    return constraint.arguments.get(relation) == "less than"


def literal_text(constraint: Constraint) -> str:
    """Words that every response which meets the constraint holds, as often as it must; "" if there are none."""
    arguments = constraint.arguments
    if constraint.id == EXISTENCE:
        return " ".join(arguments["keywords"])
    if constraint.id == FREQUENCY and not is_upper_bound(constraint):
        return " ".join([arguments["keyword"]] * int(arguments["frequency"]))
    if constraint.id == SECTIONS:
        return " ".join(f"{arguments['section_spliter']} {i + 1}" for i in range(int(arguments["num_sections"])))
    named = {END: "end_phrase", POSTSCRIPT: "postscript_marker", NTH: "first_word", REPEAT: "prompt_to_repeat"}
    if constraint.id in named:
        return str(arguments[named[constraint.id]])
    return "My answer is no." if constraint.id == CHOICE else ""


def _count_words(text: str) -> int:
    return len(re.findall(r"\w+", text))


def _count_sentences(text: str) -> int:
    return len(re.findall(r"\w[.?!]+(?=\s|$)", text))


def _count_capital_words(text: str) -> int:
    return sum(word.isupper() for word in text.split())


def _counted(constraint: Constraint, text: str) -> tuple[int, int] | None:
    """(what `text` holds of that which the constraint counts, the constraint's number); None if it does not count."""
    if constraint.id not in _RANGES:
        return None
    number, _, subject, _ = _RANGES[constraint.id]
    if constraint.id == WORDS:
        held = _count_words(text)
    elif constraint.id == SENTENCES:
        held = _count_sentences(text)
    elif constraint.id == CAPITAL_WORDS:
        held = _count_capital_words(text)
    else:
        held = text.lower().count(str(constraint.arguments[subject]).lower())
    return held, int(constraint.arguments[number])


def _against_text(limit: Constraint, text: str) -> str | None:
    """Why a response that holds `text` cannot meet `limit`, or meets it without any doing; None if neither."""
    if not text:
        return None
    lowered = text.lower()
    if limit.id == FORBIDDEN:
        hits = [word for word in limit.arguments["forbidden_words"] if word.lower() in lowered]
        return f"the forbidden {hits[0]!r} is part of the demanded {text!r}" if hits else None
    if limit.id == EXISTENCE:
        hits = [word for word in limit.arguments["keywords"] if word.lower() in lowered]
        return f"the keyword {hits[0]!r} is part of the demanded {text!r}" if hits else None
    if limit.id == NO_COMMA and "," in text:
        return f"the demanded {text!r} holds a comma"
    counted = _counted(limit, text)
    if counted and counted[0] >= counted[1]:
        what = "more than is allowed" if is_upper_bound(limit) else "already what is asked for"
        return f"the demanded {text!r} holds {counted[0]} of what {limit.id} counts: {what}"
    return None


def _against_case(limit: Constraint, other: Constraint) -> str | None:
    # Keywords and a first word are looked for in any case; the texts below are quoted to the model as they stand.
    text = literal_text(other) if other.id in (END, POSTSCRIPT, SECTIONS) else ""
    if (limit.id == CAPITAL and text != text.upper()) or (limit.id == LOWER and text != text.lower()):
        return f"the demanded {text!r} is not in the case that {limit.id} asks for"
    return None


def _against_language(language: Constraint, other: Constraint) -> str | None:
    if language.id != LANGUAGE or language.arguments["language"] == "en":
        return None
    if other.id in (EXISTENCE, FREQUENCY, FORBIDDEN, END, NTH):
        return f"an English word in a response in {language.arguments['language']!r}"
    if other.id == LETTER:
        return "a letter that is rare or common in English may be the opposite elsewhere"
    latin = language.arguments["language"] in LATIN_LANGUAGES
    if other.id in (CAPITAL_WORDS, WORDS, SENTENCES, NO_COMMA) and not latin:
        return f"{other.id} counts in Latin script, {language.arguments['language']!r} has another"
    return None


def _against_paragraphs(first: Constraint, other: Constraint) -> str | None:
    if first.id == NTH and first.arguments["nth_paragraph"] == 1 and other.id in (TITLE, REPEAT):
        return f"the first paragraph starts with {first.arguments['first_word']!r}, not with the other text"
    sections = other.arguments["num_sections"] if other.id == SECTIONS else 0
    if first.id == PARAGRAPHS and sections > first.arguments["num_paragraphs"]:
        return "more sections than paragraphs"
    return None


def _same_quantity(a: Constraint, b: Constraint) -> str | None:
    """Two constraints of one id: allowed are a lower and an upper bound with room between, or different subjects."""
    if a.id not in REPEATABLE:
        return f"{a.id} twice"
    number, _, subject, width = _RANGES[a.id]
    if subject and str(a.arguments[subject]).lower() != str(b.arguments[subject]).lower():
        return None
    if is_upper_bound(a) == is_upper_bound(b):
        return f"two bounds of {a.id} on the same side, the looser one is empty"
    low, high = (b, a) if is_upper_bound(a) else (a, b)
    if high.arguments[number] - low.arguments[number] < width:
        return f"{a.id}: fewer than {width} values from {low.arguments[number]} to below {high.arguments[number]}"
    return None


def _upper(constraints: Sequence[Constraint], id: str, argument: str) -> int | None:
    limits = [c.arguments[argument] - 1 for c in constraints if c.id == id and is_upper_bound(c)]
    return min(limits, default=None)


def _least_words(constraints: Sequence[Constraint]) -> int:
    """Words that a natural response needs: the demanded literals, and the largest structure around them."""
    literal = sum(_count_words(literal_text(c)) for c in constraints)
    structures = [n * c.arguments[key[1]] for c in constraints for key, n in _WORDS_EACH.items() if key[0] == c.id]
    structures += [6 * c.arguments["num_sentences"] for c in constraints if c.id == SENTENCES and not is_upper_bound(c)]
    structures += [
        3 * c.arguments["capital_frequency"] for c in constraints if c.id == CAPITAL_WORDS and not is_upper_bound(c)
    ]
    structures += [20 for c in constraints if c.id == TWO]
    return literal + max(structures, default=0)


def _letters(constraint: Constraint, words: float) -> float:
    """The expected count of its letter in so many English words."""
    return words * _LETTERS_PER_WORD * _LETTER_PERCENT.get(constraint.arguments["letter"].lower(), 1.0) / 100


def _over_budget(constraints: Sequence[Constraint], besides: Besides) -> str | None:
    """Counts demanded by the whole set against its limits."""
    most_sentences = _upper(constraints, SENTENCES, "num_sentences")
    most_words = _upper(constraints, WORDS, "num_words")
    asked_words = [c.arguments["num_words"] for c in constraints if c.id == WORDS and not is_upper_bound(c)]
    needed_words = _least_words(constraints) + besides.words
    if most_words is not None and needed_words > most_words:
        return f"about {needed_words} words are needed, at most {most_words} allowed"
    if most_sentences is not None:
        items = [c.arguments[key[1]] for c in constraints for key in _SENTENCES_EACH if key[0] == c.id]
        needed = max(items, default=0) + sum(_count_sentences(literal_text(c)) for c in constraints)
        needed += besides.sentences
        if needed > most_sentences:
            return f"{needed} sentences are needed, at most {most_sentences} allowed"
        longest = max([*asked_words, needed_words])
        if longest > _MOST_WORDS_PER_SENTENCE * most_sentences:
            return f"{longest} words in at most {most_sentences} sentences"
    for c in constraints:
        if c.id == LETTER:
            number, letter = c.arguments["let_frequency"], c.arguments["letter"]
            if is_upper_bound(c) and _letters(c, max([*asked_words, needed_words])) > number:
                return f"fewer than {number} of {letter!r} in so long a text"
            if not is_upper_bound(c) and most_words is not None and number > 1.5 * _letters(c, most_words):
                return f"{number} of {letter!r} in at most {most_words} words"
    for limit in constraints:
        own = " ".join(filter(None, map(literal_text, constraints))) if is_upper_bound(limit) else ""
        reason = _against_text(limit, f"{own} {besides.text}".strip())
        if reason:
            return reason
    return None


def _pair_rules(a: Constraint, b: Constraint) -> Iterator[str | None]:
    yield EXCLUSIVE.get(frozenset((a.id, b.id)))
    if a.id == b.id:
        yield _same_quantity(a, b)
    for one, other in ((a, b), (b, a)):
        yield _against_language(one, other)
        yield _against_paragraphs(one, other)
        yield _against_case(one, other)
        # "less than n of X" beside an own literal "at least m of X" is a range, judged by `_same_quantity`.
        if one.id != other.id or _subject(one) != _subject(other):
            yield _against_text(one, literal_text(other))


def _subject(constraint: Constraint) -> str | None:
    _, _, subject, _ = _RANGES.get(constraint.id, (None, None, None, 0))
    return str(constraint.arguments[subject]).lower() if subject else None


def clash(constraints: Sequence[Constraint], besides: Besides = _NOTHING) -> str | None:
    """Why these constraints do not go together in one instruction, or None if they do.

    `besides` is what constraints of other families demand. Arguments must be valid for their ids (`registry.validate`):
    a missing one raises KeyError.
    """
    for a, b in itertools.combinations(constraints, 2):
        reason = next((why for why in _pair_rules(a, b) if why), None)
        if reason:
            return f"{a.id} and {b.id}: {reason}"
    return _over_budget(constraints, besides)


def conflict(a: Constraint, b: Constraint) -> str | None:
    """Why `a` and `b` do not go together, or None. Symmetric in whether there is a reason."""
    return clash((a, b))


def compatible(constraints: Sequence[Constraint]) -> bool:
    """Whether the constraints may stand in one instruction: all pairs and the budgets of the whole set."""
    return clash(constraints) is None
