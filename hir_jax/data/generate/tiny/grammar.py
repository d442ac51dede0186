"""Texts of the tiny environment: a specification is drawn first, and a text is composed from it.

A specification gives each of nine features one of two to four values that exclude one another, drawn uniformly and
independently. So a text that ignores its instruction meets a constraint on a feature of n values with probability 1/n,
whatever the text: only a policy that reads the instruction does better.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hir_jax.data.generate.tiny import lexicon

MAX_TOKENS = 48  # of a text, including the end token
ENOUGH_WORDS = 24  # the feature "long": at least this many words, or fewer
_MOST_WORDS = 29
_MOST_SENTENCES = 6

# Feature -> its values. "presence": whether each of two words occurs; a constraint on it is about one of them.
FEATURES: dict[str, tuple[Any, ...]] = {
    "paragraphs": (1, 2, 3, 4),
    "bullets": (0, 1, 2, 3),
    "repeated": (0, 1, 2, 3),  # number of times that lexicon.REPEATED occurs
    "opening": lexicon.OPENINGS,
    "closing": lexicon.CLOSINGS,
    "subject": lexicon.SUBJECTS,
    "postscript": (True, False),
    "long": (True, False),
    "presence": ((True, True), (True, False), (False, True), (False, False)),
}
Specification = Mapping[str, Any]  # feature -> value


def draw_specification(rng: random.Random) -> dict[str, Any]:
    """A value of each feature, uniform and independent."""
    return {feature: rng.choice(values) for feature, values in FEATURES.items()}


@dataclass
class _Sentence:
    """Determiner, adjective, noun, verb, adverbs, place; empty parts are left out."""

    determiner: str
    noun: str
    verb: str
    adjective: str = ""
    adverbs: list[str] = field(default_factory=list)
    place: str = ""

    def __str__(self) -> str:
        parts = (self.determiner.capitalize(), self.adjective, self.noun, self.verb, *self.adverbs, self.place)
        return " ".join(filter(None, parts)) + "."


def _count(text: str) -> int:
    """The number of words as IFEval counts them: "P.S." is two."""
    return len(text.replace(".", " ").replace("-", " ").replace("*", " ").split())


class _Draft:
    """A text under construction."""

    def __init__(self, rng: random.Random, specification: Specification):
        self._rng, self._spec = rng, specification
        self._nouns = rng.sample(lexicon.NOUNS, 4)
        s = specification
        least = max(s["paragraphs"], s["repeated"] + 1, 2 if s["bullets"] else 1)
        self.sentences = [self._sentence() for _ in range(least)]
        self.bullets = [rng.choice(self._nouns) for _ in range(s["bullets"])]
        self.postscript = (
            f"\nP.S. {rng.choice(lexicon.DETERMINERS)} {rng.choice(self._nouns)}." if s["postscript"] else ""
        )
        for sentence in rng.sample(self.sentences[1:], s["repeated"]):
            sentence.determiner = lexicon.REPEATED
        self.sentences[0].determiner = s["opening"].lower()
        rng.choice(self.sentences).noun = s["subject"]
        for word, present in zip(lexicon.PRESENT_OR_ABSENT, s["presence"], strict=True):
            if present:
                rng.choice(self.sentences).adverbs.append(word)

    def _sentence(self) -> _Sentence:
        rng = self._rng
        return _Sentence(rng.choice(lexicon.DETERMINERS), rng.choice(self._nouns), rng.choice(lexicon.VERBS))

    def words(self) -> int:
        parts = (*map(str, self.sentences), *self.bullets, self.postscript, self._spec["closing"])
        return sum(map(_count, parts))

    def grow(self, target: int) -> None:
        """Adds adjectives, adverbs, places and sentences up to `target` words, never past it."""
        rng = self._rng
        while room := target - self.words():
            ways = [(s, "adjective") for s in self.sentences if not s.adjective]
            ways += [(s, "adverb") for s in self.sentences if not s.adverbs]
            if room >= 3:
                ways += [(s, "place") for s in self.sentences if not s.place]
                ways += [(None, "sentence")] * 2 * (len(self.sentences) < _MOST_SENTENCES)
            ways = ways or [(s, "adverb") for s in self.sentences]
            sentence, kind = rng.choice(ways)
            if kind == "adjective":
                sentence.adjective = rng.choice(lexicon.ADJECTIVES)
            elif kind == "adverb":
                sentence.adverbs.append(rng.choice(lexicon.ADVERBS))
            elif kind == "place":
                where = rng.choice(lexicon.PREPOSITIONS), rng.choice(lexicon.DETERMINERS), rng.choice(self._nouns)
                sentence.place = " ".join(where)
            else:
                self.sentences.insert(rng.randint(1, len(self.sentences)), self._sentence())

    def __str__(self) -> str:
        rng, s = self._rng, self._spec
        breaks = set(rng.sample(range(1, len(self.sentences)), s["paragraphs"] - 1))
        listed = rng.randrange(len(self.sentences) - 1) if self.bullets else None
        text = ""
        for i, sentence in enumerate(self.sentences):
            if i in breaks:
                text += "\n***\n"
            elif i:
                text += "\n" if i - 1 == listed else " "
            text += str(sentence)
            if i == listed:
                text += "".join(f"\n- {noun}" for noun in self.bullets)
        return f"{text}{self.postscript} {s['closing']}"


def compose(rng: random.Random, specification: Specification) -> str:
    """A text with these features, of at most MAX_TOKENS tokens with the end token."""
    draft = _Draft(rng, specification)
    least = draft.words()
    low, high = (ENOUGH_WORDS, _MOST_WORDS) if specification["long"] else (least, min(ENOUGH_WORDS - 1, least + 6))
    draft.grow(rng.randint(max(low, least), high))
    return str(draft)
