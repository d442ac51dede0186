"""The rollout phase: prompts x samples responses of exactly new_tokens tokens (no stops: all rows run to the end)."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np

from hir_jax.bench import machine
from hir_jax.bench.machine import Ceilings, Work, measure, timed
from hir_jax.bench.sizes import NO_STOP, PROMPT_LONGEST, Sizes, prompt_lengths, random_prompts
from hir_jax.engine import SAMPLE, Engine
from hir_jax.model import counting
from hir_jax.model.config import ModelConfig
from hir_jax.types import PromptBatch


def bench_engine(config, new_tokens: int) -> Engine:
    """An Engine of the config whose responses have `new_tokens` tokens, with one optimiser update a step and no stops."""
    config = copy.deepcopy(config)
    config.rollout.max_response = new_tokens
    config.learner.mini_batches = 1
    engine = Engine(config)
    engine.settings = dataclasses.replace(engine.settings, stop_ids=NO_STOP)
    return engine


class Rollout(Work):
    """Sampling by the config's model: `run()` draws once, with fresh noise each time."""

    def __init__(self, engine: Engine, params, sizes: Sizes):
        self.engine, self.params = engine, engine.for_sampling(params)
        self.lengths = prompt_lengths(sizes.prompts)
        self.prompts = random_prompts(engine.model.vocab_size, self.lengths, PROMPT_LONGEST)
        self.rows = np.arange(sizes.rows).reshape(sizes.prompts, sizes.samples)
        self.new_tokens = engine.config.rollout.max_response
        self.tokens = sizes.rows * self.new_tokens
        self.flops = counting.rollout_flops(engine.model, self.lengths, sizes.samples, self.new_tokens)
        self._calls = 0

    def run(self) -> None:
        self._calls += 1
        engine, prompts = self.engine, PromptBatch(self.prompts, self.lengths, None)
        found = engine.sample(
            self.params, prompts, self.rows, engine.key(SAMPLE, self._calls), engine.settings.sampling(temperature=1.0)
        )
        if int(found.mask.sum()) != self.tokens:
            raise RuntimeError(f"rollout drew {int(found.mask.sum())} tokens instead of {self.tokens}")


def bench(config, sizes: Sizes, make_peer, compilations, trace: Path | None = None) -> tuple[dict, ModelConfig]:
    """Sampling, and apart from it what a single token costs: the prefill with one draw. Also the sampler's model."""
    engine = bench_engine(config, sizes.new_tokens)
    params = engine.load_params()
    ours = Rollout(engine, params, sizes)
    found = measure(ours, make_peer and make_peer(engine, params, ours), sizes.rounds, compilations)
    machine.trace(ours, trace and trace / "rollout")
    prefill = Rollout(bench_engine(config, 1), params, sizes)
    prefill.run()
    found["prefill_seconds"] = min(timed(prefill.run) for _ in range(sizes.rounds))
    decoding = found["seconds"]["median"] - found["prefill_seconds"]
    found["decode_step_seconds"] = decoding / max(1, sizes.new_tokens - 1)
    model = engine.settings.sampler_model
    found |= {
        "dtype": model.compute_dtype, "rows": sizes.rows, "prompt_tokens": float(ours.lengths.mean()),
        "new_tokens": sizes.new_tokens, "stops": "off", "slots": config.rollout.slots,
    }  # fmt: skip
    return found, model


def against_ceilings(found: dict, model: ModelConfig, sizes: Sizes, ceilings: Ceilings) -> dict:
    """`floor_seconds` (see `counting.rollout_floor_seconds`) at the sampler's dtype, and floor / median."""
    lengths, limits = prompt_lengths(sizes.prompts), (ceilings.flops_per_s[model.compute_dtype], ceilings.bytes_per_s)
    floor = counting.rollout_floor_seconds(model, lengths, sizes.samples, sizes.new_tokens, *limits)
    halfway = sizes.new_tokens // 2
    computing, reading = counting.decode_floor_seconds(model, lengths, sizes.samples, halfway, *limits)
    return {
        "floor_seconds": floor, "fraction_of_floor": floor / found["seconds"]["median"],
        "fraction_of_matmul": found["flops_per_s"] / limits[0],
        "decode_step_floor_seconds": {"computing": computing, "reading": reading},
    }  # fmt: skip
