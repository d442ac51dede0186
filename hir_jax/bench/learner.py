"""The learner phase: one optimiser update (gradients, clipping, AdamW) of prompts x samples sequences, twice.

"even": all prompts and all responses of one length, so that nobody has any padding. "packed": responses of log-normal
length, cut at new_tokens, as real samples end early: we drop the padding, the peer computes it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hir_jax.bench import machine
from hir_jax.bench.machine import Ceilings, Work, measure
from hir_jax.bench.rollout import bench_engine
from hir_jax.bench.sizes import PROMPT_LONGEST, PROMPT_TOKENS, Sizes, learner_lengths, random_prompts
from hir_jax.engine import Engine
from hir_jax.model import counting
from hir_jax.types import TrainBatch


class Learner(Work):
    """Training steps on one fixed batch: `run()` makes one update. A token is one of a prompt or a response."""

    def __init__(self, engine: Engine, params, prompts: np.ndarray, responses: np.ndarray, columns: int):
        self.engine, rows, longest = engine, len(prompts), int(responses.max())
        rng = np.random.default_rng(1)
        mask = np.arange(longest) < responses[:, None]
        answers = rng.integers(0, engine.model.vocab_size, mask.shape).astype(np.int32)
        logp = np.where(mask, -np.log(engine.model.vocab_size), 0.0).astype(np.float32)
        self.batch = TrainBatch(
            tokens=np.concatenate([random_prompts(engine.model.vocab_size, prompts, columns), answers * mask], axis=1),
            prompt_length=prompts, response_mask=mask, behaviour_logp=logp, ref_logp=logp,
            importance=np.ones_like(logp),
            reward=(np.arange(rows) % 2).astype(np.float32), weight=np.ones(rows, np.float32),
            group=np.arange(rows, dtype=np.int32), is_replay=np.zeros(rows, bool),
        )  # fmt: skip
        self.state, self.metrics = engine.init_state(params), {}
        self.tokens = int(prompts.sum() + responses.sum())
        self.flops = counting.learner_flops(engine.model, prompts, responses)
        self.micro_rows = max(1, engine.settings.learner.micro_batch_tokens // self.batch.tokens.shape[1])

    def run(self) -> None:
        self.state, self.metrics = self.engine.update(self.state, self.batch)

    @property
    def padding(self) -> float:
        """Share of the batch as it is given that holds no token."""
        return 1.0 - self.tokens / self.batch.tokens.size


def _one(ours: Learner, make_peer, params, rounds: int, compilations) -> dict:
    found = measure(ours, make_peer and make_peer(ours.engine, params, ours), rounds, compilations)
    rows, columns = ours.batch.tokens.shape
    found |= {"rows": rows, "columns": columns, "padding_given": ours.padding}
    if "padding" in ours.metrics:
        found["padding_computed"] = ours.metrics["padding"]
    if make_peer:
        found["peer_micro_batch_rows"] = ours.micro_rows
    return found


def bench(config, sizes: Sizes, make_peer, compilations, trace: Path | None = None) -> dict:
    engine = bench_engine(config, sizes.new_tokens)
    params = engine.load_params()
    settings = engine.settings.learner
    found = {"loss": settings.loss, "micro_batch_tokens": settings.micro_batch_tokens, "remat": engine.model.remat}
    even = np.full(sizes.rows, PROMPT_TOKENS, np.int32), np.full(sizes.rows, sizes.new_tokens, np.int32)
    packed = learner_lengths(sizes.rows, sizes.new_tokens)
    for name, lengths, columns in (("even", even, PROMPT_TOKENS), ("packed", packed, PROMPT_LONGEST)):
        ours = Learner(engine, params, *lengths, columns)
        found[name] = _one(ours, make_peer, params, sizes.rounds, compilations)
        machine.trace(ours, trace and trace / f"learner_{name}")
        found[name]["response_tokens"] = float(lengths[1].mean())
        del ours
    return found


def against_ceilings(found: dict, dtype: str, ceilings: Ceilings) -> None:
    """Adds the fraction of the peak of the matrix products in the compute dtype."""
    for part in (found["even"], found["packed"]):
        part["fraction_of_matmul"] = part["flops_per_s"] / ceilings.flops_per_s[dtype]
