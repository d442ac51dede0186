"""The long_tail phase: continuous batching against the plain loop where few responses are far longer than most.

"synthetic": limits of log-normal lengths, the longest ten times the median; the plain loop, which knows no limits, runs all
rows until the longest ends. "real": what the model itself answers to the config's instructions, its own stop tokens on.
"""

from __future__ import annotations

import copy
import dataclasses
from functools import partial

import jax
import numpy as np

from hir_jax.bench.machine import Work, measure
from hir_jax.bench.sizes import NO_STOP, PROMPT_LONGEST, Sizes, long_tail, prompt_lengths, random_prompts
from hir_jax.data import dataset
from hir_jax.engine import SAMPLE, Engine
from hir_jax.eval.verifiers import deciders_of
from hir_jax.parallel import mesh as meshes
from hir_jax.sampler.continuous import sample_continuous
from hir_jax.sampler.sample import sample


class _Sampler(Work):
    """`run()` draws from the same key each time and keeps what it drew on the host. useful: tokens that are wanted of
    what is drawn; None: all."""

    flops = 0

    def __init__(self, engine: Engine, params, call, arrays, useful: int | None = None):
        self._engine, self._params, self._call, self._useful = engine, params, jax.jit(call), useful
        self._arguments = (*meshes.put_rows(engine.mesh, arrays[:3]), engine.key(SAMPLE, 0), *arrays[3:])

    def run(self) -> None:
        with jax.set_mesh(self._engine.mesh):
            self.rollout, self.usage = jax.device_get(self._call(self._params, *self._arguments))

    @property
    def tokens(self) -> int:
        return int(self.rollout.mask.sum()) if self._useful is None else self._useful


def _pair(engine: Engine, params, prompts, lengths, sizes: Sizes, settings, limits=None) -> tuple[_Sampler, _Sampler]:
    """Continuous batching and the plain loop on the same rows."""
    rows = np.arange(sizes.rows, dtype=np.int32).reshape(sizes.prompts, sizes.samples)
    fixed = {"model": engine.settings.sampler_model, "shard": engine.settings.shard, "settings": settings}
    ways = meshes.row_devices(engine.mesh)
    in_slots = partial(sample_continuous, **fixed, slots=sizes.slots, queues=ways)
    arrays = prompts, lengths, rows
    ours = _Sampler(engine, params, in_slots, arrays if limits is None else (*arrays, limits))
    useful = None if limits is None else int(limits.sum())
    return ours, _Sampler(engine, params, lambda *given: (sample(*given, **fixed), None), arrays, useful)


def _figures(ours: _Sampler, plain: _Sampler, rounds: int, compilations) -> dict:
    found = measure(ours, plain, rounds, compilations)
    usage, lengths = ours.usage, ours.rollout.mask.sum(-1)
    rows, plain_steps = len(lengths), int(plain.rollout.mask.sum(-1).max())
    return found | {
        "rows": rows, "slots": int(usage.slots), "steps": int(usage.steps), "peer_steps": plain_steps,
        "utilisation": float(usage.busy / max(1, usage.slots * usage.steps)),
        # a row's first token is drawn before the loop, in which a step gives every slot one
        "peer_utilisation": float((lengths - 1).sum() / max(1, rows * (plain_steps - 1))),
        "response_tokens": {
            "mean": float(lengths.mean()), "median": float(np.median(lengths)), "longest": int(lengths.max()),
        },
    }  # fmt: skip


def _synthetic(engine: Engine, params, sizes: Sizes, compilations) -> dict:
    limits = long_tail(sizes.rows, sizes.tail_tokens).reshape(sizes.prompts, sizes.samples)
    lengths = prompt_lengths(sizes.prompts)
    prompts = random_prompts(engine.model.vocab_size, lengths, PROMPT_LONGEST)
    engine.settings = dataclasses.replace(engine.settings, stop_ids=NO_STOP)
    ours, plain = _pair(engine, params, prompts, lengths, sizes, engine.settings.sampling(temperature=1.0), limits)
    found = _figures(ours, plain, sizes.rounds, compilations)
    if ours.tokens != plain.tokens:
        raise RuntimeError(f"continuous batching drew {ours.tokens} tokens instead of {plain.tokens}")
    return found


def instructions(config, engine: Engine, count: int) -> tuple[list, object]:
    """The first rows of the config's data, encoded, and their PartShapes."""
    config = copy.deepcopy(config)
    config.data.size, config.data.eval_size = 8 * count, 1
    wanted = deciders_of(config.constraints)
    data = dataset.load(config, engine.backbone.frame, engine.backbone.end_id, wanted)
    return data.rows[:count], data.shapes


def _real(config, engine: Engine, params, sizes: Sizes, compilations) -> dict:
    rows, shapes = instructions(config, engine, sizes.prompts)
    prompts = engine.prompts(rows, shapes)
    settings = engine.settings.sampling(config.rollout.temperature)
    ours, plain = _pair(engine, params, prompts.tokens, prompts.length, sizes, settings)
    found = _figures(ours, plain, sizes.rounds, compilations)
    same = (ours.rollout.tokens == plain.rollout.tokens).all(-1)
    return found | {
        "truncated": float((~ours.rollout.ended).mean()), "rows_with_the_plain_tokens": float(same.mean()),
        "prompt_tokens": float(prompts.length.mean()), "stop_ids": list(settings.stop_ids),
    }  # fmt: skip


def bench(config, sizes: Sizes, compilations) -> dict:
    config = copy.deepcopy(config)
    config.rollout.max_response = sizes.tail_tokens
    engine = Engine(config)
    params = engine.load_params()
    real = _real(config, engine, params, sizes, compilations)
    return {"synthetic": _synthetic(engine, params, sizes, compilations), "real": real}
