"""The encode phase: how long it takes to tokenise by roles a row of many numbered constraints, the most costly template."""

from __future__ import annotations

import random
from collections.abc import Callable

from hir_jax.bench.machine import spread, timed
from hir_jax.bench.sizes import Sizes
from hir_jax.data.generate.tiny import lexicon
from hir_jax.data.segments import encode
from hir_jax.engine import Engine
from hir_jax.types import Constraint, Instruction

CONSTRAINTS = 30
WORDS = 8  # of a constraint, known to every tokenizer that a config can name
ROWS = 8  # of a round


def rows(seed: int) -> list[Instruction]:
    """ROWS rows of template type3, other ones for each seed."""
    draw = random.Random(f"encode {seed}")

    def text() -> str:
        return " ".join(draw.sample((*lexicon.NOUNS, *lexicon.ADJECTIVES), WORDS))

    return [
        Instruction(text(), tuple(Constraint("", {}, text()) for _ in range(CONSTRAINTS)), "type3") for _ in range(ROWS)
    ]


def bench(config, sizes: Sizes) -> dict:
    """Seconds of a row, spread over the rounds; before the clock starts, one round is encoded."""
    frame = Engine(config).backbone.frame

    def round_of(seed: int) -> Callable[[], object]:
        made = rows(seed)
        return lambda: [encode(frame, row) for row in made]

    round_of(-1)()
    seconds = [timed(round_of(seed)) / ROWS for seed in range(sizes.rounds)]
    return {"constraints": CONSTRAINTS, "words": WORDS, "rows": ROWS * sizes.rounds, "seconds": spread(seconds)}
