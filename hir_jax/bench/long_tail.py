"""The long_tail phase: continuous batching against the plain loop where few responses are far longer than most.

"synthetic": each row has a limit, of log-normal lengths, the longest ten times the median; the plain loop has no limits and runs
all rows until the longest ends. "real": the model answers the config's instructions, with its own stop tokens.
"""

from __future__ import annotations

import copy
import dataclasses
from functools import partial

import jax
import numpy as np

from hir_jax.bench.session import Session, Work
from hir_jax.bench.sizes import NO_STOP, PROMPT_LONGEST, long_tail, prompt_lengths, random_prompts
from hir_jax.data import dataset
from hir_jax.engine import SAMPLE, Engine
from hir_jax.eval.verifiers import deciders_of
from hir_jax.parallel import mesh as meshes
from hir_jax.sampler.continuous import sample_continuous
from hir_jax.sampler.sample import sample
from hir_jax.types import PromptBatch


class _Sampler(Work):
    """`run()` draws with the same key each time and keeps the result on the host. useful: how many of the drawn tokens count;
    None: all."""

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


def _measure(session: Session, name: str, engine: Engine, params, arrays, settings, limits=None):
    """(figures, continuous batching, the plain loop) on the same rows. arrays: prompts and their lengths; limits: of the rows'
    lengths, for continuous batching alone."""
    sizes, useful = session.sizes, None if limits is None else int(limits.sum())
    arrays = *arrays, np.arange(sizes.rows, dtype=np.int32).reshape(sizes.prompts, sizes.samples)
    fixed = {"model": engine.settings.sampler_model, "shard": engine.settings.shard, "settings": settings}

    def all_rows(*given):
        return sample(*given, **fixed), None

    in_slots = partial(sample_continuous, **fixed, slots=sizes.slots, queues=meshes.row_devices(engine.mesh))
    ours = _Sampler(engine, params, in_slots, arrays if limits is None else (*arrays, limits), useful)
    plain = _Sampler(engine, params, all_rows, arrays, useful)
    found = session.measure(f"long_tail, {name}", ours, plain)
    usage, drawn, plain_steps = ours.usage, ours.rollout.mask.sum(-1), int(plain.rollout.mask.sum(-1).max())
    return found | {
        "rows": sizes.rows, "slots": int(usage.slots), "steps": int(usage.steps), "peer_steps": plain_steps,
        "utilisation": float(usage.busy / max(1, usage.slots * usage.steps)),
        # a row's first token is drawn before the loop, in which a step gives every slot one
        "peer_utilisation": float((drawn - 1).sum() / max(1, sizes.rows * (plain_steps - 1))),
        "response_tokens": {
            "mean": float(drawn.mean()), "median": float(np.median(drawn)), "longest": int(drawn.max()),
        },
    }, ours, plain  # fmt: skip


def _synthetic(session: Session, engine: Engine, params) -> dict:
    sizes = session.sizes
    limits = long_tail(sizes.rows, sizes.tail_tokens).reshape(sizes.prompts, sizes.samples)
    lengths = prompt_lengths(sizes.prompts)
    arrays = random_prompts(engine.model.vocab_size, lengths, PROMPT_LONGEST), lengths
    engine.settings = dataclasses.replace(engine.settings, stop_ids=NO_STOP)
    settings = engine.settings.sampling(temperature=1.0)
    found, ours, _ = _measure(session, "synthetic", engine, params, arrays, settings, limits)
    if ours.rollout.mask.sum() != limits.sum():
        raise RuntimeError(f"continuous batching drew {ours.rollout.mask.sum()} tokens instead of {limits.sum()}")
    return found


def _prompts(engine: Engine, count: int) -> PromptBatch:
    """The first instructions of the config's data."""
    config = copy.deepcopy(engine.config)
    config.data.size, config.data.eval_size = 8 * count, 1
    wanted = deciders_of(config.constraints)
    data = dataset.load(config, engine.backbone.frame, engine.backbone.end_id, wanted)
    return engine.prompts(data.rows[:count], data.shapes)


def _real(session: Session, engine: Engine, params) -> dict:
    prompts = _prompts(engine, session.sizes.prompts)
    settings = engine.settings.sampling(engine.config.rollout.temperature)
    found, ours, plain = _measure(session, "real", engine, params, (prompts.tokens, prompts.length), settings)
    same = (ours.rollout.tokens == plain.rollout.tokens).all(-1)
    return found | {
        "truncated": float((~ours.rollout.ended).mean()), "rows_with_the_plain_tokens": float(same.mean()),
        "prompt_tokens": float(prompts.length.mean()), "stop_ids": list(settings.stop_ids),
    }  # fmt: skip


def bench(session: Session) -> dict:
    config = copy.deepcopy(session.config)
    config.rollout.max_response = session.sizes.tail_tokens
    engine = Engine(config)
    params = engine.load_params()
    real = _real(session, engine, params)
    return {"synthetic": _synthetic(session, engine, params), "real": real}
