"""What a constraint claims of a response: by this, constraints of different families are held against each other.

`conflicts` knows the pairs of IFEval's 25 types one by one. With every further family such a table would grow by the
square, so here a constraint says what it takes for itself, and two go together where nobody takes what another holds.
Conservative on purpose, as there.

The things to claim:

- start, end: the first and the last words or marks; whole: all of the response is one JSON or XML document;
- layout: how paragraphs or lines are divided; lines: some lines that are no prose (a list, a title, a postscript, ...);
- list, headings, table: one of a kind; two: there are two responses, so that a count may be of either;
- case, language; english: words or letters of English are meant, latin: words and marks as in Latin script;
- verbatim: text in a given case; stars: asterisks; markup: emphasis within a line; long: long words;
- sentences: sentences as marks cut them; starts: how they start; length: how long they are; brief: few of them;
  dots: full stops that end none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hir_jax.data.generate import conflicts as c
from hir_jax.types import Constraint

WHOLE = ("whole", "start", "end", "layout")  # what JSON and XML own
NO_DOCUMENT = ("lines", "sentences", "table", "headings", "list", "markup")  # what they bar


def _nothing(text: str) -> bool:
    return False


THINGS = frozenset((
    "start", "end", "whole", "layout", "lines", "list", "headings", "table", "two", "case", "language", "english",
    "latin", "verbatim", "stars", "markup", "long", "sentences", "starts", "length", "brief", "dots",
))  # fmt: skip


def things(*names: str) -> frozenset[str]:
    """Some of THINGS. ValueError for a name that is none of them: it would clash with nothing."""
    if not THINGS.issuperset(names):
        raise ValueError(f"no such thing to claim: {sorted(set(names) - THINGS)}")
    return frozenset(names)


@dataclass(frozen=True)
class Claims:
    """What a constraint owns goes with no other owner of it, and what it bars with nobody who owns or uses that."""

    owns: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()
    bars: frozenset[str] = frozenset()
    same: tuple[Constraint, ...] = ()  # IFEval constraints that ask for the same, to be judged by `conflicts`
    shows: str = ""  # text (or marks) that every response which meets it holds
    refuses: Callable[[str], bool] = _nothing  # whether a response that holds a text cannot meet it
    words: int = 0  # that it takes at the least
    sentences: int = 0


_IFEVAL: dict[str, Claims] = {
    c.CAPITAL: Claims(things("case"), things("english"), things("verbatim")),
    c.LOWER: Claims(things("case"), things("english"), things("verbatim")),
    c.CAPITAL_WORDS: Claims(uses=things("latin")),
    c.REPEAT: Claims(things("start"), things("verbatim", "english")),
    c.TWO: Claims(things("layout"), things("lines", "two", "stars")),
    c.PLACEHOLDERS: Claims(shows="[name]"),
    c.POSTSCRIPT: Claims(things("end"), things("lines", "dots", "verbatim")),
    c.CHOICE: Claims(uses=things("verbatim", "english")),
    c.JSON: Claims(things(*WHOLE), bars=things(*NO_DOCUMENT), shows='{"a": "b"}'),
    c.SECTIONS: Claims(things("start", "layout"), things("lines", "verbatim")),
    c.BULLETS: Claims(things("list"), things("lines", "stars")),
    c.HIGHLIGHTS: Claims(uses=things("markup", "stars"), shows="*a*"),
    c.TITLE: Claims(things("start"), things("lines"), shows="<<a>>"),
    c.EXISTENCE: Claims(uses=things("english")),
    c.FREQUENCY: Claims(uses=things("english")),
    c.FORBIDDEN: Claims(uses=things("english")),
    c.LETTER: Claims(uses=things("latin")),
    c.NTH: Claims(things("layout"), things("english", "starts"), things("headings", "table")),
    c.PARAGRAPHS: Claims(things("layout"), things("lines", "stars")),
    c.SENTENCES: Claims(uses=things("latin")),
    c.WORDS: Claims(uses=things("latin")),
    c.NO_COMMA: Claims(refuses=lambda text: "," in text),
    c.END: Claims(things("end"), things("verbatim", "english")),
    c.QUOTATION: Claims(things("start", "end"), shows='"'),
}


def of_ifeval(constraint: Constraint) -> Claims:
    """The claims of one of IFEval's types. KeyError for another id."""
    if constraint.id == c.LANGUAGE:
        foreign = constraint.arguments["language"] != "en"
        return Claims(things("language"), bars=things("english") if foreign else frozenset(), same=(constraint,))
    claims = _IFEVAL[constraint.id]
    owns, uses, bars = claims.owns, claims.uses, claims.bars
    if constraint.id == c.NTH and constraint.arguments["nth_paragraph"] == 1:
        owns |= things("start")
    if constraint.id == c.SENTENCES and c.is_upper_bound(constraint):
        uses, bars = uses | things("brief"), bars | things("dots")
    shows = c.literal_text(constraint) or claims.shows
    return Claims(owns, uses, bars, (constraint,), shows, claims.refuses)


def clash(a: Claims, b: Claims) -> str | None:
    """Why two sets of claims do not go together, or None. Symmetric."""
    if shared := a.owns & b.owns:
        return f"both claim {', '.join(sorted(shared))}"
    for one, other in ((a, b), (b, a)):
        if barred := one.bars & (other.owns | other.uses):
            return f"one has no room for {', '.join(sorted(barred))}"
        if other.shows and one.refuses(other.shows):
            return f"one demands {other.shows!r}, which the other does not allow"
    return None
