"""Compiles the functions of the first step in the background, while the step runs up to them.

It begins when the weights are there: tracing holds Python's lock, for which a thread that reads weights would wait thousands
of times. A function that was lowered and compiled for the shapes and shardings of its arguments is in jax's caches when it is
called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hir_jax.engine import SAMPLE, SELECT, Engine
from hir_jax.model import decoder, lora
from hir_jax.parallel import mesh as meshes
from hir_jax.types import PromptBatch, Rollout, Verdicts

log = logging.getLogger(__name__)

Jobs = dict[str, Callable[[], None]]  # by the names that `Engine.compiled` waits for, in the order of the calls


def start(stack: ExitStack, engine: Engine, prompts: PromptBatch, conditions, whole: bool) -> None:
    """Begins to compile what a step of such prompts calls; `engine.compiling` holds what is not done yet.

    prompts: NumPy, of N prompts; conditions: their constraints where the device takes part in the checks, or None; whole: whether
    a step is one function. What fails is left to the call, which says why. At the end of `stack` what has not begun is dropped.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="compile-ahead")
    stack.callback(thread.shutdown, cancel_futures=True)
    params = lora.join(engine.abstract_frozen, engine.abstract_state.params)
    jobs: Jobs = {}
    if whole:
        jobs |= _whole_step(engine, prompts, conditions)
    else:
        in_parts = conditions is None and engine.in_parts
        jobs |= (_parts if in_parts else _sample)(engine, params, prompts) | _learn(engine, prompts)
    for name, job in jobs.items():
        engine.compiling[name] = thread.submit(_attempt, name, job)


def _attempt(name: str, job: Callable[[], None]) -> None:
    try:
        job()
    except Exception as error:
        log.debug("%s is not compiled ahead: %r", name, error)


def _like(sharding, tree):
    """The shapes of arrays, or of their shapes, with a sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _given(engine: Engine, mesh, prompts: PromptBatch):
    """The arguments of sampling functions behind the parameters."""
    ids = jax.ShapeDtypeStruct((len(prompts.tokens), engine.settings.first_samples), jnp.int32)
    return *_like(meshes.rows(mesh), (prompts.tokens, prompts.length, ids)), engine.key(SAMPLE)


def _sample(engine: Engine, params, prompts: PromptBatch) -> Jobs:
    function, mesh = engine.jitted["sample"], engine.sampler_mesh

    def job():
        given = engine.abstract_sampler_params(params), *_given(engine, mesh, prompts)
        with jax.set_mesh(mesh):
            function.lower(*given, sampling=engine.settings.rollout_sampling).compile()

    return {"sample": job}


def _parts(engine: Engine, params, prompts: PromptBatch) -> Jobs:
    begin, advance, sampling = engine.jitted["begin"], engine.jitted["advance"], engine.settings.rollout_sampling
    latest = None  # (context, progress, cache) as shapes with shardings

    def first():
        nonlocal latest
        given = engine.abstract_sampler_params(params), *_given(engine, engine.mesh, prompts)
        with jax.set_mesh(engine.mesh):
            latest = begin.lower(*given, settings=sampling).compile().out_info

    def further(width: int):
        nonlocal latest
        context, progress, cache = latest
        with jax.set_mesh(engine.mesh):
            found = advance.lower(context, progress, cache=cache, width=width, settings=sampling)
            latest = context, *found.compile().out_info

    widths = sampling.all_widths
    return {"begin": first} | {f"advance {width}": partial(further, width) for width in widths}


def _reference(engine: Engine):
    """Shapes and shardings of the reference policy's parameters, or None as in `Engine.learn`."""
    if not engine.settings.keeps_reference or engine.lora:
        return None
    shapes = decoder.abstract_params(engine.model, jnp.dtype(engine.config.model.param_dtype))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, engine.param_shardings
    )


def _learn(engine: Engine, prompts: PromptBatch) -> Jobs:
    function, length = engine.jitted["learn"], engine.config.rollout.max_response
    b, constraints = len(prompts.tokens) * engine.settings.samples, prompts.parts.present.shape[1]

    def job():
        shape = jax.ShapeDtypeStruct
        flags, numbers, ended = shape((b, length), bool), shape((b, length), jnp.float32), shape((b,), bool)
        rollout = Rollout(shape((b, length), jnp.int32), flags, numbers, numbers, ended, ended)
        verdicts = Verdicts(*(shape((b, constraints), bool) for _ in Verdicts._fields))
        given = *_like(meshes.rows(engine.mesh), (prompts, rollout, verdicts)), np.int32(0), engine.key(SELECT)
        with jax.set_mesh(engine.mesh):
            function.lower(engine.abstract_state, engine.abstract_frozen, _reference(engine), *given).compile()

    return {"learn": job}


def _whole_step(engine: Engine, prompts: PromptBatch, conditions) -> Jobs:
    function = engine.jitted_whole_step

    def job():
        table = _like(meshes.replicated(engine.mesh), engine.token_bytes)
        given = *_like(meshes.rows(engine.mesh), (prompts, conditions)), engine.key(SAMPLE), engine.key(SELECT)
        models = engine.abstract_state, engine.abstract_frozen, _reference(engine)
        with jax.set_mesh(engine.mesh):
            function.lower(*models, given[0], table, *given[1:]).compile()

    return {"whole_step": job}
