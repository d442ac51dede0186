"""The verify phase: how long it takes to check rows that look like a rollout, in this process, by the pool, on the device.

Responses are made of this project's own words (base tasks, their keywords, wordings of constraints) in the shapes that
constraints ask for: paragraphs, headings, bullet points, highlights, brackets; now and then in one case, as a policy
writes that was told to. Each batch holds other responses, so that nothing is remembered from the one before.
"""

from __future__ import annotations

import random
import time

import jax
import numpy as np

from hir_jax.bench.machine import spread
from hir_jax.bench.sizes import Sizes
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
    base = rng.choice(tasks)
    kind = rng.random()
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
    tasks = base_tasks("train")
    found = []
    for index in range(rows):
        rng = random.Random(f"verify {seed} {index}")
        base = rng.choice(tasks)
        ids = rng.sample(list(_IFEVAL), CONSTRAINTS)
        wanted = [Constraint(id, _IFEVAL[id].draw(base, rng)) for id in ids]
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


def _on_device(batches: list[list[Row]]) -> tuple[list[list[Row]], list[float]]:
    """The batches with the checks that the device decides alone, and its seconds for each, text to verdicts."""
    only = [[row._replace(constraints=[c for c in row.constraints if decides(c)]) for row in b] for b in batches]
    rows = [row for batch in only for row in batch]
    conditions = encode([row.constraints for row in rows], CONSTRAINTS)
    texts = [row.response.encode() for row in rows]
    length = np.array([len(text) for text in texts], np.int32)
    bytes_of = np.zeros((len(rows), -(-length.max() // 256) * 256), np.uint8)
    for place, text in zip(bytes_of, texts, strict=True):
        place[: len(text)] = np.frombuffer(text, np.uint8)
    verify, seconds, size = jax.jit(verify_bytes), [], len(batches[0])
    whole = (conditions, bytes_of, length, length >= 0)
    parts = [jax.tree.map(lambda x, i=i: x[i * size : (i + 1) * size], whole) for i in range(len(batches))]
    for part in (parts[0], *parts):  # the first twice: it compiles
        start = time.perf_counter()
        jax.block_until_ready(verify(*part))
        seconds.append(time.perf_counter() - start)
    return only, seconds[1:]


def measure(rounds: int, rows: int, workers: int, timeout_seconds: float) -> dict:
    """Seconds of `rounds` batches, a list each: in this process ("seconds"), by a pool ("pool_seconds"), and in this
    process the checks of LANGUAGE_IDS alone, of as many other batches ("language_seconds"). Of batches of `device_checks`
    checks that the device decides: there ("device_seconds") and in this process ("device_host_seconds").

    workers: of the pool; 0: one. Before the clock starts, the verifiers do, and each checks a small batch; what runs on
    the device is compiled.
    """
    workers = max(1, workers)
    batches = [batch(seed, rows) for seed in range(3 * rounds)]
    words = sum(len(row.response.split()) for row in batches[0])
    found: dict = {"rows": rows, "constraints": CONSTRAINTS, "response_tokens": TOKENS_PER_WORD * words / rows}
    found |= {"workers": workers, "seconds": [], "pool_seconds": [], "language_seconds": [], "device_host_seconds": []}
    warm_up = batch(-1, max(1, rows // 8))
    only, found["device_seconds"] = _on_device(batches[2 * rounds :])
    found["device_checks"] = sum(len(row.constraints) for b in only for row in b) / rounds
    with Verifier(0, timeout_seconds) as here, Verifier(workers, timeout_seconds) as pool:
        for verifier in (here, pool):
            verifier.verify(warm_up, CONSTRAINTS)
        for one, other, third in zip(batches[:rounds], batches[rounds : 2 * rounds], only, strict=True):
            found["seconds"].append(_seconds(here, one))
            found["pool_seconds"].append(_seconds(pool, one))
            found["language_seconds"].append(_seconds(here, _only(other, LANGUAGE_IDS)))
            found["device_host_seconds"].append(_seconds(here, third))
    return found


def bench(config, sizes: Sizes) -> dict:
    """Seconds of a batch in this process, which are core-seconds; those of its language checks; and by the pool."""
    checks = config.constraints
    found = measure(sizes.rounds, sizes.verify_rows, checks.workers, checks.timeout_seconds)
    laps = {name: spread(values) for name, values in found.items() if name.endswith("seconds")}
    one, pool = laps["seconds"]["median"], laps["pool_seconds"]["median"]
    count = found["rows"] * found["constraints"]
    return found | laps | {
        "checks_per_s": count / one, "pool_checks_per_s": count / pool, "core_seconds": one,
        "pool_core_seconds": pool * found["workers"], "language_share": laps["language_seconds"]["median"] / one,
        "device_checks_per_s": found["device_checks"] / laps["device_seconds"]["median"],
        "device_host_checks_per_s": found["device_checks"] / laps["device_host_seconds"]["median"],
    }  # fmt: skip
