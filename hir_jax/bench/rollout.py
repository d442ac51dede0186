"""The rollout phase: prompts x samples responses of exactly new_tokens tokens. No stop tokens: all rows run to the end."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial

import numpy as np

from hir_jax.backbone import Backbone
from hir_jax.bench import peer_hf
from hir_jax.bench.machine import Ceilings, timed
from hir_jax.bench.session import Session, Work
from hir_jax.bench.sizes import NO_STOP, PROMPT_LONGEST, Sizes, prompt_lengths, random_prompts
from hir_jax.engine import SAMPLE, Engine
from hir_jax.model import counting
from hir_jax.model.config import ModelConfig
from hir_jax.types import PromptBatch


def bench_engine(config, new_tokens: int, backbone: Backbone | None = None) -> Engine:
    """An Engine of the config with responses of `new_tokens` tokens, one optimiser update a step, and no stop tokens."""
    config = copy.deepcopy(config)
    config.rollout.max_response = new_tokens
    config.learner.mini_batches = 1
    engine = Engine(config, backbone=backbone)
    engine.settings = dataclasses.replace(engine.settings, stop_ids=NO_STOP)
    return engine


class Rollout(Work):
    """Sampling by the config's model: `run()` draws once, with fresh noise each time. prompt: tokens of each prompt; None:
    `prompt_lengths`."""

    def __init__(self, engine: Engine, params, sizes: Sizes, prompt: int | None = None):
        self.engine, self.params = engine, engine.for_sampling(params)
        self.lengths = np.full(sizes.prompts, prompt, np.int32) if prompt else prompt_lengths(sizes.prompts)
        self.prompts = random_prompts(engine.model.vocab_size, self.lengths, prompt or PROMPT_LONGEST)
        self.rows = np.arange(sizes.rows).reshape(sizes.prompts, sizes.samples)
        self.new_tokens = engine.config.rollout.max_response
        self.tokens = sizes.rows * self.new_tokens
        self.flops = counting.rollout_flops(engine.model, self.lengths, sizes.samples, self.new_tokens)
        self._calls = 0

    def run(self) -> None:
        self._calls += 1
        prompts, sampling = (
            PromptBatch(self.prompts, self.lengths, None),
            self.engine.settings.sampling(temperature=1.0),
        )
        found = self.engine.sample(self.params, prompts, self.rows, self.engine.key(SAMPLE, self._calls), sampling)
        if int(found.mask.sum()) != self.tokens:
            raise RuntimeError(f"rollout drew {int(found.mask.sum())} tokens instead of {self.tokens}")


def bench(session: Session) -> dict:
    """Figures of sampling, and the seconds of one token alone: the prefill with a single draw."""
    sizes, engine = session.sizes, bench_engine(session.config, session.sizes.new_tokens)
    params, model = engine.load_params(), engine.settings.sampler_model
    ours = Rollout(engine, params, sizes)
    found = session.measure("rollout", ours, peer_hf.Rollout(engine, params, ours) if session.peer == "hf" else None)
    session.trace(ours, "rollout")
    prefill = Rollout(bench_engine(session.config, 1), params, sizes)
    prefill.run()
    found["prefill_seconds"] = min(timed(prefill.run) for _ in range(sizes.rounds))
    decoding = found["seconds"]["median"] - found["prefill_seconds"]
    session.fractions["rollout"] = partial(fractions, found, model, ours.lengths, sizes)
    return found | {
        "decode_step_seconds": decoding / max(1, sizes.new_tokens - 1), "dtype": model.compute_dtype,
        "rows": sizes.rows, "prompt_tokens": float(ours.lengths.mean()), "new_tokens": sizes.new_tokens, "stops": "off",
        "slots": session.config.rollout.slots,
    }  # fmt: skip


def fractions(found: dict, model: ModelConfig, lengths: np.ndarray, sizes: Sizes, ceilings: Ceilings) -> dict:
    """`floor_seconds` (see `counting.rollout_floor_seconds`) at the sampler's dtype, floor / median, and FLOPs / peak."""
    limits = ceilings.flops_per_s[model.compute_dtype], ceilings.bytes_per_s
    floor = counting.rollout_floor_seconds(model, lengths, sizes.samples, sizes.new_tokens, *limits)
    halfway = sizes.new_tokens // 2
    computing, reading = counting.decode_floor_seconds(model, lengths, sizes.samples, halfway, *limits)
    return {
        "floor_seconds": floor, "fraction_of_floor": floor / found["seconds"]["median"],
        "fraction_of_matmul": found["flops_per_s"] / limits[0],
        "decode_step_floor_seconds": {"computing": computing, "reading": reading},
    }  # fmt: skip
