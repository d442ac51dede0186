"""How long the host takes to verify a batch: rows that look like a rollout, checked in this process and by the pool.

Responses are made of this project's own words (base tasks, their keywords, wordings of constraints) in the shapes that
constraints ask for: paragraphs, headings, bullet points, highlights, brackets; now and then in one case, as a policy
writes that was told to. Each batch holds other responses, so that nothing is remembered from the one before.
"""

from __future__ import annotations

import random
import time

from hir_jax.constraints.verifier import Row, Verifier
from hir_jax.instructions import conflicts, phrasings, synthesis
from hir_jax.types import Constraint

ROWS, CONSTRAINTS = 512, 6
TOKENS_PER_WORD = 1.5  # marks included: SmolLM2's tokenizer on these responses
_ENOUGH_WORDS = 170  # no further paragraph after these: 200 words or 300 tokens in the mean
LANGUAGE_IDS = (conflicts.LANGUAGE, conflicts.CAPITAL, conflicts.LOWER)  # may identify the language of a response
_IN_ONE_CASE = {conflicts.CAPITAL: str.upper, conflicts.LOWER: str.lower}


def _sentence(rng: random.Random, tasks: tuple[synthesis.BaseTask, ...]) -> str:
    base = rng.choice(tasks)
    kind = rng.random()
    if kind < 0.6:
        return base.task
    if kind < 0.8:
        return rng.choice(rng.choice(list(phrasings.PHRASINGS.values()))).replace("{", "[").replace("}", "]")
    first, second, third = rng.sample(base.keywords, 3)
    return f"{first.capitalize()}, {second} and *{third}* come to mind!"


def _response(rng: random.Random, tasks: tuple[synthesis.BaseTask, ...], ids: list[str]) -> str:
    blocks, words = [f"<<{rng.choice(tasks).keywords[0]}>>"], 0
    while words < _ENOUGH_WORDS:
        sentences = [_sentence(rng, tasks) for _ in range(rng.randint(2, 5))]
        words += sum(len(sentence.split()) for sentence in sentences)
        mark = rng.choice((" ", " ", " ", "\n* ", "\n- "))
        blocks.append(rng.choice(("", "", "", "Part 1\n", "***\n")) + mark.join(sentences))
    text = "\n\n".join(blocks)
    for id in ids:
        if id in _IN_ONE_CASE and rng.random() < 0.5:
            text = _IN_ONE_CASE[id](text)
    return text


def batch(seed: int, rows: int) -> list[Row]:
    """Rows of CONSTRAINTS different IFEval types each, all 25 equally often, with arguments drawn as for training."""
    tasks = synthesis.base_tasks("train")
    found = []
    for index in range(rows):
        rng = random.Random(f"verify {seed} {index}")
        base = rng.choice(tasks)
        ids = rng.sample(sorted(synthesis.DRAWS), CONSTRAINTS)
        wanted = [Constraint(id, synthesis.DRAWS[id](base, rng)) for id in ids]
        found.append(Row(wanted, _response(rng, tasks, ids), base.task, f"bench:{seed}:{index}"))
    return found


def _only(rows: list[Row], ids: tuple[str, ...]) -> list[Row]:
    return [row._replace(constraints=[c for c in row.constraints if c.id in ids]) for row in rows]


def _seconds(verifier: Verifier, rows: list[Row]) -> float:
    start = time.perf_counter()
    verdicts = verifier.verify(rows, CONSTRAINTS)
    seconds = time.perf_counter() - start
    if not (verdicts.known == verdicts.present).all():
        raise RuntimeError(f"some verdicts are unknown: {dict(verifier.unknown_counts)}")
    return seconds


def measure(rounds: int, rows: int, workers: int, timeout_seconds: float) -> dict:
    """Seconds of `rounds` batches, a list each: in this process ("seconds"), by a pool ("pool_seconds"), and in this
    process the checks of LANGUAGE_IDS alone, of as many other batches ("language_seconds"); and what was measured.

    workers: of the pool; 0: one. Before the clock starts, the verifiers do, and each checks a small batch.
    """
    workers = max(1, workers)
    batches = [batch(seed, rows) for seed in range(2 * rounds)]
    words = sum(len(row.response.split()) for row in batches[0])
    found: dict = {"rows": rows, "constraints": CONSTRAINTS, "response_tokens": TOKENS_PER_WORD * words / rows}
    found |= {"workers": workers, "seconds": [], "pool_seconds": [], "language_seconds": []}
    warm_up = batch(-1, max(1, rows // 8))
    with Verifier(0, timeout_seconds) as here, Verifier(workers, timeout_seconds) as pool:
        for verifier in (here, pool):
            verifier.verify(warm_up, CONSTRAINTS)
        for one, other in zip(batches[:rounds], batches[rounds:], strict=True):
            found["seconds"].append(_seconds(here, one))
            found["pool_seconds"].append(_seconds(pool, one))
            found["language_seconds"].append(_seconds(here, _only(other, LANGUAGE_IDS)))
    return found
