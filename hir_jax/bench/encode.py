"""The encode phase: how long it takes to tokenise by roles a row of many numbered constraints, the most costly template."""

from __future__ import annotations

import random

from hir_jax.bench.machine import spread, timed
from hir_jax.bench.session import Session
from hir_jax.data.generate.tiny import lexicon
from hir_jax.data.segments import encode
from hir_jax.engine import Engine
from hir_jax.types import Constraint, Instruction

CONSTRAINTS = 30
WORDS = 8  # of a constraint, known to every tokenizer that a config can name
ROWS = 8  # of a round


def rows(seed: int) -> list[Instruction]:
    """ROWS rows of template type3, other ones for each seed."""
    draw, words = random.Random(f"encode {seed}"), (*lexicon.NOUNS, *lexicon.ADJECTIVES)

    def text() -> str:
        return " ".join(draw.sample(words, WORDS))

    return [
        Instruction(text(), tuple(Constraint("", {}, text()) for _ in range(CONSTRAINTS)), "type3") for _ in range(ROWS)
    ]


def bench(session: Session) -> dict:
    """Seconds of a row, spread over the rounds; one round is encoded before the clock starts."""
    frame, seeds = Engine(session.config).backbone.frame, iter(range(-1, session.sizes.rounds))

    def one_round() -> dict[str, float]:
        made = rows(next(seeds))
        return {"a row": timed(lambda: [encode(frame, row) for row in made]) / ROWS}

    one_round()
    seconds = [lap["a row"] for lap in session.rounds("encode", one_round)]
    return {"constraints": CONSTRAINTS, "words": WORDS, "rows": ROWS * len(seconds), "seconds": spread(seconds)}
