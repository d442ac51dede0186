"""Generated soft constraints: requirements that only a judge can decide, in wordings of our own.

Each wording belongs to an aspect of a text, and an instruction has at most one of each aspect, so that no two of them
concern the same thing. None asks for a form, a length or a layout, which the verifiable constraints are about.
"""

from __future__ import annotations

import itertools
import random
import string

from hir_jax.checks.compatibility import Demands
from hir_jax.checks.generation import Arguments, Generated, Task

# Aspect -> wordings, whose slots are filled from `SLOTS`.
WORDINGS: dict[str, tuple[str, ...]] = {
    "tone": (
        "Keep the tone {tone} from beginning to end.",
        "The text should sound {tone}.",
        "Strike a {tone} note and hold it throughout.",
        "Sound like someone who is {mood} about the subject.",
        "Let a quiet sense of humour come through without making fun of anyone.",
        "Stay matter-of-fact, and let no enthusiasm or regret show.",
        "Be polite but distant, as among people who have just met.",
    ),
    "audience": (
        "Address {reader}.",
        "Write so that {reader} would find it worth reading.",
        "Choose examples and words that suit {reader}.",
        "Assume that the text will be read by {reader}.",
        "Take no knowledge of the subject for granted on the part of the reader.",
        "Assume a reader who knows the basics and wants to go deeper.",
    ),
    "viewpoint": (
        "Write in the first person, as someone who has lived through it.",
        "Avoid the first person; keep yourself out of the text.",
        "Speak to the reader directly as you.",
        "Speak as {narrator} would.",
        "Tell everything from the point of view of {narrator}.",
        "Write as part of a group, with we and us in place of I and me.",
    ),
    "wording": (
        "Use plain everyday words and no jargon.",
        "Prefer vivid verbs to adjectives.",
        "Use concrete nouns in place of abstract ones wherever possible.",
        "Avoid clichés and worn-out phrases.",
        "Choose words with care for their sound, so that the text reads well aloud.",
        "Use at least one technical term and make its meaning clear in passing.",
        "Avoid filler words and say nothing twice.",
    ),
    "rhythm": (
        "Vary the length of the sentences in a noticeable way.",
        "Keep the sentences short and direct.",
        "Let the sentences flow into one another with smooth transitions.",
        "Write mainly in the active voice.",
    ),
    "imagery": (
        "Include a metaphor drawn from {field}.",
        "Use one comparison that is taken from {field}.",
        "Appeal to {sense} at one point.",
        "Make the reader feel what {sense} would tell of the place or the thing.",
        "Use no figurative language whatsoever.",
        "Give a thing without life a human trait at one point.",
    ),
    "opening": (
        "Open with a surprising fact about the subject.",
        "Begin in the middle of things, without any introduction.",
        "Start from a small everyday scene.",
        "Open with the main point and argue for it afterwards.",
        "Begin by saying why the subject matters to the reader.",
    ),
    "closing": (
        "Close with a thought that looks to the future.",
        "Leave the reader with something concrete to do.",
        "Come back to the opening idea at the end.",
        "Finish on a hopeful note.",
        "End with the most important point of all.",
    ),
    "order": (
        "Move from the general to the particular.",
        "Arrange the points from the least to the most important.",
        "Let every thought follow from the one before in a clear logical order.",
        "Build up tension before you come to the main point.",
        "Follow the order in which things happen in time.",
    ),
    "content": (
        "Bring in {theme} in a natural way.",
        "Touch on {theme} without making it the main subject.",
        "Connect the subject with {theme}.",
        "Give an example from daily life.",
        "Mention a common mistake or misunderstanding and put it right.",
        "Point out one drawback or difficulty.",
        "Include a detail that most people would not think of.",
        "Make clear what is certain and what is only a guess.",
    ),
    "setting": (
        "Place examples and scenes in {place}.",
        "Let it be felt that it is {season}.",
        "Give it the atmosphere of {place}.",
    ),
    "values": (
        "Avoid stereotypes, and keep the text fit for every culture.",
        "Show understanding for people who see it differently.",
        "Be honest about the limits of what you know.",
        "Encourage the reader without making promises.",
        "Do not moralise or lecture.",
    ),
}

SLOTS: dict[str, tuple[str, ...]] = {
    "tone": ("warm and friendly", "calm and reassuring", "playful", "formal", "confident", "modest", "melancholy"),
    "mood": ("curious", "enthusiastic", "sceptical", "proud", "amused", "deeply moved"),
    "reader": (
        "a curious ten-year-old", "busy office workers", "retired teachers", "people who are new in the country",
        "students in their first year", "experts in the field", "parents of small children", "night-shift workers",
    ),
    "narrator": ("a patient teacher", "a tired traveller", "an old friend", "a careful scientist", "a local guide"),
    "field": ("cooking", "music", "gardening", "the sea", "sport", "architecture", "the weather", "a workshop"),
    "sense": ("the sense of smell", "the sense of touch", "the sense of taste", "the ear"),
    "theme": (
        "friendship", "the passing of time", "saving money", "patience", "teamwork", "family traditions",
        "care for the environment", "learning from failure", "health", "craft and skill",
    ),
    "place": ("a small fishing town", "a big city", "a mountain village", "a quiet suburb", "an island in the north"),
    "season": ("the middle of winter", "a hot summer", "early spring", "a rainy autumn"),
}  # fmt: skip

# Genres whose tasks settle the aspect themselves, or have no room for it.
_UNFIT = {
    "audience": {"science for children", "email", "letter", "dialogue", "speech", "workplace", "interview"},
    "viewpoint": {"dialogue", "interview", "code", "brainstorm", "email", "letter", "summary", "product", "plan"},
    "order": {"dialogue", "brainstorm", "interview", "code", "social"},
    "opening": {"dialogue", "brainstorm", "interview", "code", "plan", "email", "letter"},
    "setting": {"code", "science for children", "explanation", "history", "summary", "travel", "workplace", "verdict"},
    "imagery": {"code", "plan", "interview", "brainstorm"},
    "content": {"dialogue", "poem"},
}

_DEMANDS = {
    "opening": Demands("start", bars="whole two", words=12, sentences=1),
    "closing": Demands("end", bars="whole two", words=12, sentences=1),
    "order": Demands(bars="whole", words=30),
    "rhythm": Demands("length starts", bars="whole brief lines", words=30),
    "wording": Demands(uses="english", bars="long", words=15),
}


def _fillings(wording: str) -> list[str]:
    """The wording with every choice for its slots."""
    slots = [name for _, name, _, _ in string.Formatter().parse(wording) if name]
    choices = itertools.product(*(SLOTS[name] for name in slots))
    return [wording.format_map(dict(zip(slots, chosen, strict=True))) for chosen in choices]


def _fill(wording: str, arguments: Arguments, rng: random.Random) -> str:
    return rng.choice(_fillings(wording))


def _generated(aspect: str) -> Generated:
    def draw(task: Task, rng: random.Random) -> Arguments | None:
        return None if task.genre in _UNFIT.get(aspect, ()) else {}

    wordings, demands = WORDINGS[aspect], _DEMANDS.get(aspect, Demands(words=10))
    texts = frozenset(text for wording in wordings for text in _fillings(wording))
    return Generated(
        family="soft",
        name=f"soft:{aspect}",
        demands=lambda: demands,
        draw=draw,
        wordings=wordings,
        fill=_fill,
        texts=texts,
    )


GENERATED = tuple(map(_generated, WORDINGS))
