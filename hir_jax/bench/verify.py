"""The verify phase: how long it takes to check rows that look like a rollout, in this process, by the pool, on the device.

Responses are made of this project's own words (base tasks, their keywords, wordings of constraints) in the shapes that
constraints ask for: paragraphs, headings, bullet points, highlights, brackets; now and then in one case, like a policy that was
told to. Each batch holds other responses, so that no check profits from the batch before.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import jax
import numpy as np

from hir_jax.bench.machine import spread, timed
from hir_jax.bench.session import Session
from hir_jax.checks.device.conditions import decides, encode
from hir_jax.checks.device.verify import verify_bytes
from hir_jax.checks.verifier import Row, Verifier
from hir_jax.data.generate import synthesis
from hir_jax.data.generate.tasks import BaseTask, base_tasks
from hir_jax.types import Constraint

CONSTRAINTS = 6
TOKENS_PER_WORD = 1.5  # marks included: SmolLM2's tokenizer on these responses
_ENOUGH_WORDS = 170  # no further paragraph after these: 200 words or 300 tokens in the mean
_IN_ONE_CASE = {"change_case:english_capital": str.upper, "change_case:english_lowercase": str.lower}
LANGUAGE_IDS = ("language:response_language", *_IN_ONE_CASE)  # may identify the language of a response
_IFEVAL = dict(sorted(synthesis.draws_of(("ifeval",)).items()))
_WORDINGS = [[wording for wording in one.wordings if wording] for one in _IFEVAL.values()]


def _sentence(rng: random.Random, tasks: tuple[BaseTask, ...]) -> str:
    base, kind = rng.choice(tasks), rng.random()
    if kind < 0.6:
        return base.task
    if kind < 0.8:
        return rng.choice(rng.choice(_WORDINGS)).replace("{", "[").replace("}", "]")
    first, second, third = rng.sample(base.keywords, 3)
    return f"{first.capitalize()}, {second} and *{third}* come to mind!"


def _response(rng: random.Random, tasks: tuple[BaseTask, ...], ids: list[str]) -> str:
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
    tasks, found = base_tasks("train"), []
    for index in range(rows):
        rng = random.Random(f"verify {seed} {index}")
        base = rng.choice(tasks)
        ids = rng.sample(list(_IFEVAL), CONSTRAINTS)
        wanted = [Constraint(id, _IFEVAL[id].draw(base, rng)) for id in ids]
        found.append(Row(wanted, _response(rng, tasks, ids), base.task, f"bench:{seed}:{index}"))
    return found


def _only(rows: list[Row], wanted: Callable[[Constraint], bool]) -> list[Row]:
    return [row._replace(constraints=list(filter(wanted, row.constraints))) for row in rows]


def _check(verifier: Verifier, rows: list[Row]) -> None:
    verdicts = verifier.verify(rows, CONSTRAINTS)
    if not (verdicts.known == verdicts.present).all():
        raise RuntimeError(f"some verdicts are unknown: {dict(verifier.unknown_counts)}")


def _device_checks(batches: list[list[Row]]) -> list[Callable[[], object]]:
    """Calls that check a batch each on the device, from the bytes of its texts to verdicts, and are compiled already."""
    rows, size = [row for batch in batches for row in batch], len(batches[0])
    conditions = encode([row.constraints for row in rows], CONSTRAINTS)
    texts = [np.frombuffer(row.response.encode(), np.uint8) for row in rows]
    length = np.array(list(map(len, texts)), np.int32)
    columns = -(-length.max() // 256) * 256
    whole = conditions, np.stack([np.pad(text, (0, columns - len(text))) for text in texts]), length, length >= 0
    verify = jax.jit(verify_bytes)

    def call(first: int) -> Callable[[], object]:
        part = jax.tree.map(lambda x: x[first : first + size], whole)
        return lambda: jax.block_until_ready(verify(*part))

    calls = [call(first) for first in range(0, len(rows), size)]
    calls[0]()
    return calls


def bench(session: Session) -> dict:
    """Seconds of a batch in this process (these are core-seconds) and by the pool, and in this process the checks of LANGUAGE_IDS
    alone, of other batches. Of batches of `device_checks` checks that the device decides: there, and in this process.

    Everything is warm before the clock starts: the device's function is compiled, and each verifier has checked a small batch.
    """
    rounds, rows, checks = session.sizes.rounds, session.sizes.verify_rows, session.config.constraints
    workers, batches = max(1, checks.workers), [batch(seed, rows) for seed in range(3 * rounds)]
    language = [_only(b, lambda constraint: constraint.id in LANGUAGE_IDS) for b in batches[rounds : 2 * rounds]]
    decided = [_only(b, decides) for b in batches[2 * rounds :]]
    turns = iter(zip(batches[:rounds], language, decided, _device_checks(decided), strict=True))
    with Verifier(0, checks.timeout_seconds) as here, Verifier(workers, checks.timeout_seconds) as pool:

        def one_round() -> dict[str, float]:
            whole, language, decided, device_check = next(turns)
            return {
                "one_core": timed(lambda: _check(here, whole)), "pool": timed(lambda: _check(pool, whole)),
                "language": timed(lambda: _check(here, language)), "device": timed(device_check),
                "device_host": timed(lambda: _check(here, decided)),
            }  # fmt: skip

        for verifier in (here, pool):
            _check(verifier, batch(-1, max(1, rows // 8)))
        laps = session.rounds("verify", one_round)
    found = {name: spread([lap[name] for lap in laps]) for name in laps[0]}
    median = {name: values["median"] for name, values in found.items()}
    one_core, count = found.pop("one_core"), rows * CONSTRAINTS
    words = sum(len(row.response.split()) for row in batches[0])
    on_chip = sum(len(row.constraints) for b in decided for row in b) / rounds
    return {f"{name}_seconds": values for name, values in found.items()} | {
        "rows": rows, "constraints": CONSTRAINTS, "response_tokens": TOKENS_PER_WORD * words / rows, "workers": workers,
        "seconds": one_core, "core_seconds": median["one_core"], "checks_per_s": count / median["one_core"],
        "pool_checks_per_s": count / median["pool"], "pool_core_seconds": median["pool"] * workers,
        "language_share": median["language"] / median["one_core"], "device_checks": on_chip,
        "device_checks_per_s": on_chip / median["device"], "device_host_checks_per_s": on_chip / median["device_host"],
    }  # fmt: skip
