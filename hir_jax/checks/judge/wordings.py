"""Generated soft constraints: requirements that only a judge can decide, in wordings of our own (`wordings.json`).

Each wording belongs to an aspect of a text, and an instruction has at most one of each aspect, so that no two of them
concern the same thing. None asks for a form, a length or a layout, which the verifiable constraints are about.
"""

from __future__ import annotations

import itertools
import json
import random
import string
from pathlib import Path

from hir_jax.checks.compatibility import Demands
from hir_jax.checks.generation import Arguments, Generated, Task

_TEXTS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
WORDINGS: dict[str, list[str]] = _TEXTS["wordings"]  # aspect -> wordings, whose slots are filled from SLOTS
SLOTS: dict[str, list[str]] = _TEXTS["slots"]

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
        wordings=tuple(wordings),
        fill=_fill,
        texts=texts,
    )


GENERATED = tuple(map(_generated, WORDINGS))
