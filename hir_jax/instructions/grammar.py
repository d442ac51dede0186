"""The texts of the tiny environment: a small grammar over `lexicon` with random structure.

Each text has its own habits (which nouns, whether commas, how often a phrase is highlighted, ...), so that a constraint
that holds for one fails for many others.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from hir_jax.instructions import lexicon

MAX_TOKENS = 40  # of a text, the end token included


@dataclass(frozen=True)
class Habits:
    """What one text tends to do; drawn once for each, so that texts differ in kind and not only in words."""

    nouns: tuple[str, ...]
    determiners: tuple[str, ...]
    prepositions: tuple[str, ...]
    commas: bool
    adjectives: float  # the rest are chances, at each place where the thing can stand
    adverbs: float
    places: float
    joins: float
    highlights: float
    placeholders: float
    capitals: float


def _draw_habits(rng: random.Random) -> Habits:
    commas = rng.random() < 0.5
    return Habits(
        nouns=tuple(rng.sample(lexicon.NOUNS, rng.choice((1, 2, 4, 8)))),
        determiners=tuple(rng.sample(lexicon.DETERMINERS, rng.choice((1, 2, 3)))),
        prepositions=tuple(rng.sample(lexicon.PREPOSITIONS, 2)),
        commas=commas,
        adjectives=rng.choice((0.1, 0.4)),
        adverbs=rng.choice((0.2, 0.6)),
        places=rng.choice((0.1, 0.6)),
        joins=0.6 if commas else 0.3,
        highlights=rng.choice((0.0, 0.0, 0.4, 0.8)),
        placeholders=rng.choice((0.0, 0.0, 0.3, 0.6)),
        capitals=rng.choice((0.0, 0.0, 1.0)),
    )


def _noun_phrase(rng: random.Random, habits: Habits, opens: bool) -> str:
    """Determiner, adjectives, noun; `opens` at the beginning of a sentence."""
    words = rng.choice(habits.determiners)
    if opens:
        words = words.capitalize()
    if rng.random() < habits.adjectives:
        first, second = rng.sample(lexicon.ADJECTIVES, 2)
        words += f" {first}, {second}" if habits.commas else f" {first}"
    if rng.random() < habits.placeholders:
        words += " " + rng.choice(lexicon.PLACEHOLDERS)
    else:
        words += " " + rng.choice(habits.nouns)
    return f"*{words}*" if rng.random() < habits.highlights else words


def _clause(rng: random.Random, habits: Habits, opens: bool) -> str:
    text = f"{_noun_phrase(rng, habits, opens)} {rng.choice(lexicon.VERBS)}"
    if rng.random() < habits.adverbs:
        adverb = rng.choice(lexicon.ADVERBS)
        text += " " + (adverb.upper() if rng.random() < habits.capitals else adverb)
    if rng.random() < habits.places:
        text += f" {rng.choice(habits.prepositions)} {_noun_phrase(rng, habits, opens=False)}"
    return text


def _sentence(rng: random.Random, habits: Habits) -> str:
    text = _clause(rng, habits, opens=True)
    if rng.random() < habits.joins:
        text += (", and " if habits.commas else " and ") + _clause(rng, habits, opens=False)
    return text + "."


def _body(rng: random.Random, habits: Habits) -> str:
    shape = rng.choice(("plain", "plain", "stars", "blocks", "bullets", "sections"))
    count = rng.choice((2, 3, 4) if shape in ("plain", "bullets") else (2, 3))
    sentences = [_sentence(rng, habits) for _ in range(count)]
    if shape == "stars":
        return "\n***\n".join(sentences)
    if shape == "blocks":
        return "\n\n".join(sentences)
    if shape == "bullets":
        return "\n".join(f"- {s}" for s in sentences)
    if shape == "sections":
        head = rng.choice(lexicon.SPLITTERS)
        return "\n".join(f"{head} {i}\n{s}" for i, s in enumerate(sentences, start=1))
    return " ".join(sentences)


def _compose(rng: random.Random, habits: Habits) -> str:
    text = _body(rng, habits)
    if rng.random() < 0.3:
        text = f"<<{rng.choice(habits.determiners).capitalize()} {rng.choice(habits.nouns)}>>\n{text}"
    if rng.random() < 0.25:
        text += f"\n{rng.choice(lexicon.POSTSCRIPTS)} {_sentence(rng, habits)}"
    if rng.random() < 0.3:
        text += " " + rng.choice(lexicon.CLOSINGS)
    return f'"{text}"' if rng.random() < 0.25 else text


def draw_text(rng: random.Random) -> str:
    """A random text of the environment, at most MAX_TOKENS tokens long with the end token."""
    while True:
        text = _compose(rng, _draw_habits(rng))
        if len(lexicon.pieces(text)) < MAX_TOKENS:
            return text
