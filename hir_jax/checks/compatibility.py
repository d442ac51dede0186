"""Decides which constraints may be combined in one instruction, from what each of them demands of a response.

Two constraints clash if no response meets both, if one makes the other empty (every response that meets the first meets the
second), or if meeting both needs a reading that a user would not expect (a postscript and an end phrase both claim the last
words). Each type states its `Demands` where it is registered, in the terms of this module, which knows no type itself. The
rules are conservative: they may refuse a pair that some contrived response would meet.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hir_jax.checks import registry
from hir_jax.checks.generation import Generated
from hir_jax.types import Constraint

# Things that a constraint may own, share, use or bar.
THINGS = {
    "start": "the first words or marks of the response",
    "first-word": "the first word of the first paragraph",
    "end": "the last words or marks",
    "quotation": "quotation marks around the whole response",
    "whole": "all of the response as one JSON or XML document",
    "layout": "how paragraphs or lines are divided",
    "dividers": "rows of asterisks between parts",
    "lines": "lines that are not prose: a list, a title, a postscript",
    "list": "a list",
    "headings": "Markdown headings",
    "table": "a table",
    "two": "two responses, so that a count may refer to either",
    "once": "something that occurs once in the response",
    "free-text": "text outside a document's structure",
    "case": "whether letters are capitals",
    "capitals": "words in capital letters beside others",
    "verbatim": "text in mixed case that is repeated letter by letter",
    "quoted": "a short text that the instruction quotes, in its own case",
    "language": "the language of the response",
    "english": "words or letters of English",
    "latin": "words and marks as in Latin script",
    "keywords": "the words that have to occur",
    "forbidden": "the words that must not occur",
    "stars": "asterisks",
    "markup": "emphasis within a line",
    "long": "long words",
    "sentences": "sentences as marks divide them",
    "starts": "how sentences or paragraphs start",
    "length": "how long sentences are",
    "brief": "few sentences",
    "item-dots": "full stops behind the numbers of a list, which end no sentence",
    "abbreviation": "full stops of an abbreviation, which end no sentence",
}
WHOLE = "whole start end layout"  # owned by constraints that turn the response into one document
NO_DOCUMENT = "lines sentences table headings list markup"  # barred by them


def count_words(text: str) -> int:
    """Runs of letters and digits."""
    return len(re.findall(r"\w+", text))


def count_sentences(text: str) -> int:
    """Words that are followed by sentence marks and then by white space or the end of the text."""
    return len(re.findall(r"\w[.?!]+(?=\s|$)", text))


def _occurrences(text: str, of: str) -> int:
    return text.lower().count(of.lower())


class _Quantity(NamedTuple):
    count: Callable[[str, str], int]  # (text, the letter or word that is counted) -> count in the text
    room: int  # the fewest values that a lower and an upper bound have to leave between them
    words_each: int = 0  # words that one of it takes


QUANTITIES = {
    "words": _Quantity(lambda text, of: count_words(text), 15),
    "sentences": _Quantity(lambda text, of: count_sentences(text), 2, words_each=6),
    "capital words": _Quantity(lambda text, of: sum(map(str.isupper, text.split())), 2, words_each=3),
    "word": _Quantity(_occurrences, 1),
    "letter": _Quantity(_occurrences, 3),
    "sections": _Quantity(lambda text, of: 0, 1),
}


@dataclass(frozen=True)
class Bound:
    """A bound on one of `QUANTITIES`: fewer than `number` if `upper`, else at least `number`."""

    quantity: str
    number: int
    upper: bool
    of: str = ""  # the word or letter that is counted


def between(quantity: str, low: int | None, high: int | None) -> tuple[Bound, ...]:
    """Bounds from `low` to `high`, both inclusive; None is no bound."""
    lower = () if low is None else (Bound(quantity, low, False),)
    return lower if high is None else (*lower, Bound(quantity, high + 1, True))


def _nothing(text: str) -> bool:
    return False


@functools.cache
def _things(names: str) -> frozenset[str]:
    return frozenset(names.split())


@dataclass(frozen=True)
class Demands:
    """The demands of a constraint on a response. `owns` to `bars` list some of `THINGS`, separated by spaces.

    Two constraints clash if one owns a thing that the other owns or shares, or bars a thing that the other owns, shares or
    uses. Raises ValueError for an unknown thing or quantity, which would never clash.
    """

    owns: str = ""
    shares: str = ""
    uses: str = ""
    bars: str = ""
    text: str = ""  # words that every response which meets it contains, repeated as often as required
    marks: str = ""  # an example of the signs that such a response contains
    refuses: Callable[[str], bool] = _nothing  # a text with which a response cannot meet it, or always does
    case: Callable[[str], str] = str  # its letter case: must not change the "quoted" text of another constraint
    bounds: tuple[Bound, ...] = ()
    words: int = 0  # the fewest words that it takes; those of all constraints are added
    sentences: int = 0
    frame_words: int = 0  # of paragraphs or list items, which other demands may fill: only the largest frame counts
    frame_sentences: int = 0

    def __post_init__(self):
        unknown = frozenset().union(*map(_things, (self.owns, self.shares, self.uses, self.bars))) - THINGS.keys()
        if unknown:
            raise ValueError(f"no such thing to demand: {', '.join(sorted(unknown))}")
        for bound in self.bounds:
            if bound.quantity not in QUANTITIES:
                raise ValueError(f"no such quantity to bound: {bound.quantity}")


def literal(text: str) -> dict[str, Any]:
    """Fields of `Demands` for a required text that takes no more than its own words and sentences."""
    return {"text": text, "words": count_words(text), "sentences": count_sentences(text)}


def _holds(bound: Bound, text: str) -> str | None:
    """A complaint if the text alone reaches the bound's number: it exceeds an upper bound, or makes a lower one empty."""
    held = QUANTITIES[bound.quantity].count(text, bound.of)
    if not text or held < max(bound.number, 1):
        return None
    what = "more than is allowed" if bound.upper else "already what is asked for"
    return f"the demanded {text!r} holds {held} of {bound.of or bound.quantity}: {what}"


def _same_quantity(a: Bound, b: Bound) -> str | None:
    """A complaint about two bounds on the same thing, unless they are a lower and an upper one with room between them."""
    if (a.quantity, a.of.lower()) != (b.quantity, b.of.lower()):
        return None
    if a.upper == b.upper:
        return f"two bounds on {a.of or a.quantity} on the same side, the looser one is empty"
    low, high = (b, a) if a.upper else (a, b)
    room = QUANTITIES[a.quantity].room
    if high.number - low.number < room:
        return f"fewer than {room} values of {a.of or a.quantity} from {low.number} to below {high.number}"
    return None


def _pair(a: Demands, b: Demands) -> Iterator[str | None]:
    for one, other in ((a, b), (b, a)):
        claimed = _things(other.owns) | _things(other.shares)
        if shared := _things(one.owns) & claimed:
            yield f"both claim {', '.join(sorted(shared))}"
        if shut_out := _things(one.bars) & (claimed | _things(other.uses)):
            yield f"one has no room for {', '.join(sorted(shut_out))}"
        for held in filter(None, (other.text, other.marks)):
            if one.refuses(held):
                yield f"one demands {held!r}, which the other does not allow or asks for itself"
        if "quoted" in _things(other.uses) and one.case(other.text) != other.text:
            yield f"the demanded {other.text!r} is not in the case that the other asks for"
        yield from (_holds(bound, other.text) for bound in one.bounds)
    yield from (_same_quantity(x, y) for x, y in itertools.product(a.bounds, b.bounds))


# Frequencies of letters in English text, % of all letters (R. E. Lewand, Cryptological Mathematics, 2000).
_LETTER_PERCENT = {
    "a": 8.2, "b": 1.5, "c": 2.8, "d": 4.3, "e": 12.7, "f": 2.2, "g": 2.0, "h": 6.1, "i": 7.0, "j": 0.15, "k": 0.77,
    "l": 4.0, "m": 2.4, "n": 6.7, "o": 7.5, "p": 1.9, "q": 0.095, "r": 6.0, "s": 6.3, "t": 9.1, "u": 2.8, "v": 0.98,
    "w": 2.4, "x": 0.15, "y": 2.0, "z": 0.074,
}  # fmt: skip
_LETTERS_PER_WORD = 4.7
_MOST_WORDS_PER_SENTENCE = 30


def _letters(letter: str, words: float) -> float:
    """The expected count of a letter in this many English words."""
    return words * _LETTERS_PER_WORD * _LETTER_PERCENT.get(letter.lower(), 1.0) / 100


def _budget(held: Sequence[Demands]) -> Iterator[str | None]:
    """Complaints about bounds that the demands of the whole set exceed."""
    lower, upper = ([b for demands in held for b in demands.bounds if b.upper == side] for side in (False, True))
    most_words = min((b.number - 1 for b in upper if b.quantity == "words"), default=None)
    most_sentences = min((b.number - 1 for b in upper if b.quantity == "sentences"), default=None)
    frames = [demands.frame_words for demands in held]
    frames += [QUANTITIES[b.quantity].words_each * b.number for b in lower]
    words = sum(demands.words for demands in held) + max(frames, default=0)
    longest = max([words, *(b.number for b in lower if b.quantity == "words")])
    if most_words is not None and words > most_words:
        yield f"about {words} words are needed, at most {most_words} allowed"
    if most_sentences is not None:
        sentences = sum(demands.sentences for demands in held)
        sentences += max((demands.frame_sentences for demands in held), default=0)
        if sentences > most_sentences:
            yield f"{sentences} sentences are needed, at most {most_sentences} allowed"
        if longest > _MOST_WORDS_PER_SENTENCE * most_sentences:
            yield f"{longest} words in at most {most_sentences} sentences"
    for bound in (b for b in (*lower, *upper) if b.quantity == "letter"):
        if bound.upper and _letters(bound.of, longest) > bound.number:
            yield f"fewer than {bound.number} of {bound.of!r} in so long a text"
        if not bound.upper and most_words is not None and bound.number > 1.5 * _letters(bound.of, most_words):
            yield f"{bound.number} of {bound.of!r} in at most {most_words} words"
    # Lower bounds were compared with each text alone: that several texts together make one empty is accepted.
    text = " ".join(demands.text for demands in held if demands.text)
    yield from (_holds(bound, text) for bound in upper)


class Stated(NamedTuple):
    """A constraint with its demands."""

    constraint: Constraint
    generated: Generated
    demands: Demands


def state(constraint: Constraint) -> Stated:
    """Raises ConstraintError for a type that is not registered with `generated` and for unusable arguments."""
    generated = registry.generated_as(constraint)
    return Stated(constraint, generated, generated.demands(**registry.parsed(constraint)))


def _between(a: Stated, b: Stated) -> str | None:
    """The reason why two constraints do not go together; None if they do."""
    twice = a.generated is b.generated and not a.generated.repeatable
    reason = f"{a.generated.name} twice" if twice else next(filter(None, _pair(a.demands, b.demands)), None)
    return reason and f"{a.constraint.id} and {b.constraint.id}: {reason}"


def clash(constraints: Sequence[Constraint]) -> str | None:
    """The reason why these constraints do not go together in one instruction; None if they do.

    Pairs are compared first, then the sums of the whole set. Raises ConstraintError as `state` does.
    """
    stated = [state(constraint) for constraint in constraints]
    for a, b in itertools.combinations(stated, 2):
        if reason := _between(a, b):
            return reason
    return next(filter(None, _budget([one.demands for one in stated])), None)


def joins(new: Stated, chosen: Sequence[Stated]) -> bool:
    """Whether a constraint may be asked for beside others that go together already."""
    if any(_between(one, new) for one in chosen):
        return False
    return not any(_budget([one.demands for one in (*chosen, new)]))
