"""What is compiled of a config: the Engine's functions with abstract arguments of the largest shapes, and what they must do.

The batch is the config's: N prompts of `data.max_prompt` tokens, `rollout.max_response` tokens each, all of them used: the
longest step there can be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from hir_jax.bench import counting
from hir_jax.engine import Engine
from hir_jax.learner import packing
from hir_jax.learner.logprobs import chunk_columns
from hir_jax.parallel import mesh as meshes
from hir_jax.rollout.continuous import ring_columns
from hir_jax.types import PromptParts, Replays, Rollout, TrainBatch, Verdicts

# Sizes of what the data decides, for relabelling: constraints of a row, tokens of one, tokens before and behind them
CONSTRAINTS, CONSTRAINT_TOKENS, TAIL_TOKENS = 16, 64, 64


class Work(NamedTuple):
    """What a function must do at least, on one device."""

    flops: float  # of the model: matrix products, nothing counted twice
    computed: float  # FLOPs with what the backward pass computes again
    read: float  # bytes of HBM


class Program(NamedTuple):
    """One function to compile: arguments, what else stays in memory meanwhile, and the trip counts of its loops."""

    name: str
    function: Any  # jitted
    arguments: tuple
    options: dict[str, Any]
    resident: int  # bytes a device, beside the arguments
    work: Work
    loops: tuple[int, ...]  # trip counts that the compiled text does not say, outermost first
    mesh: jax.sharding.Mesh


def device_bytes(tree) -> int:
    """Bytes that a device holds of a tree of ShapeDtypeStructs with shardings."""

    def one(x):
        return math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize

    return sum(map(one, jax.tree.leaves(tree)))


def _abstract(sharding: NamedSharding, tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _array(dtype, *sizes: int):
    return jax.ShapeDtypeStruct(sizes, dtype)


def _batches(engine: Engine):
    """(Rollout, Verdicts, Replays, PromptParts, TrainBatch) of a step, without shardings."""
    config = engine.config
    n, columns, longest = config.data.batch_prompts, config.data.max_prompt, config.rollout.max_response
    b, c = n * engine.samples, CONSTRAINTS
    f32, i32, flag = jnp.float32, jnp.int32, jnp.bool_
    rollout = Rollout(
        _array(i32, b, longest), _array(flag, b, longest), _array(f32, b, longest), _array(f32, b, longest),
        _array(flag, b), _array(flag, b),
    )  # fmt: skip
    verdicts = Verdicts(*(_array(flag, b, c) for _ in Verdicts._fields))
    k = config.replay.k * n if engine.replays else 0
    replays = Replays(_array(i32, k), _array(f32, k), _array(flag, k))
    parts = PromptParts(
        _array(i32, n, columns), _array(i32, n), _array(i32, n, c, 2 * c, CONSTRAINT_TOKENS), _array(i32, n, c, 2 * c),
        _array(i32, n, TAIL_TOKENS), _array(i32, n), _array(i32, n), _array(flag, n, c),
    )  # fmt: skip
    logp, rows = _array(f32, b, longest), _array(f32, b)
    batch = TrainBatch(
        _array(i32, b, columns + longest), _array(i32, b), _array(flag, b, longest), logp, logp, logp, rows, rows,
        _array(i32, b), _array(flag, b),
    )  # fmt: skip
    return rollout, verdicts, replays, parts, batch


def _learner_loops(engine: Engine, rows: int) -> tuple[int, int]:
    """(micro-batches, chunks of log-probs in one) for rows that all have the greatest length."""
    config, ways = engine.config, meshes.row_devices(engine.mesh)
    columns = config.data.max_prompt + config.rollout.max_response
    width = packing.bin_columns(columns, config.learner.pack_columns)
    size = packing.sizes(rows, columns - 1, width, ways, config.learner.micro_batch_tokens)
    used = -(-rows // (width // (columns - 1) * ways))
    chunk = chunk_columns(size.micro * width, engine.model.vocab_size)
    predicted = min(size.micro * width, size.micro * (width // (columns - 1)) * config.rollout.max_response)
    return -(-used // size.micro), -(-predicted // chunk)


def _update_work(engine: Engine) -> Work:
    config, model = engine.config, engine.model
    rows = config.data.batch_prompts * engine.samples
    lengths = [config.data.max_prompt] * rows
    flops = counting.learner_flops(model, lengths, config.rollout.max_response)
    again = {"full": 4 / 3, "dots": 1.0, "none": 1.0}[model.remat]
    devices, item = engine.mesh.size, jnp.dtype(config.model.param_dtype).itemsize
    trips = config.learner.mini_batches * _learner_loops(engine, rows // config.learner.mini_batches)[0]
    tensor = engine.mesh.shape["tensor"]
    weights = 3 * counting.weight_bytes(model) / tensor  # forward, recomputed, backward
    sums = 2 * item * parameter_count(engine) / devices  # gradients, read and written
    optimiser = 7 * item * parameter_count(engine) / devices * config.learner.mini_batches
    return Work(flops / devices, flops * again / devices, trips * (weights + sums) + optimiser)


def _score_work(engine: Engine) -> Work:
    config, model = engine.config, engine.model
    rows = config.data.batch_prompts * engine.samples
    flops = counting.learner_flops(model, [config.data.max_prompt] * rows, config.rollout.max_response) / 3
    devices = engine.mesh.size
    trips = _learner_loops(engine, rows)[0]
    weights = counting.weight_bytes(model) / engine.mesh.shape["tensor"]
    return Work(flops / devices, flops / devices, trips * weights)


def _sample_work(engine: Engine) -> tuple[Work, int]:
    """The work, and the steps of the decoding loop."""
    config, model = engine.config, engine.sampler_model
    n, columns, longest = config.data.batch_prompts, config.data.max_prompt, config.rollout.max_response
    samples, ways = engine.first_samples, meshes.row_devices(engine.sampler_mesh)
    rows = n * samples
    slots = engine.slots(n, columns, samples, longest) or rows
    steps = -(-rows // slots) * (longest - 1)
    tensor = engine.sampler_mesh.shape["tensor"]
    flops = counting.rollout_flops(model, [columns] * n, samples, longest)
    own = ring_columns(longest)
    held = slots / ways * (columns + own) * counting.cache_bytes(model) / engine.kv_ways
    read = steps * (counting.weight_bytes(model) / tensor + held)
    devices = engine.sampler_mesh.size
    return Work(flops / devices, flops / devices, read), steps


def parameter_count(engine: Engine) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(engine.abstract_state.params))


def programs(engine: Engine) -> Sequence[Program]:
    """The functions of a step, in its order."""
    config, state = engine.config, engine.abstract_state
    rows, whole = meshes.rows(engine.mesh), meshes.replicated(engine.mesh)
    n = config.data.batch_prompts
    rollout, verdicts, replays, parts, batch = _batches(engine)
    b = n * engine.samples
    i32, f32 = jnp.int32, jnp.float32
    params = state.params
    keeps_reference = config.learner.kl > 0
    reference = device_bytes(params) if keeps_reference else 0
    everything = device_bytes(state) + reference
    key = _abstract(whole, jax.eval_shape(partial(jax.random.key, 0)))
    prompts = _array(i32, n, config.data.max_prompt), _array(i32, n), _array(i32, n, engine.first_samples)
    sample_rows = meshes.rows(engine.sampler_mesh)
    sample_work, steps = _sample_work(engine)
    functions = engine.functions
    none = Work(0.0, 0.0, 0.0)
    found = [
        Program(
            "sample", functions["sample"],
            (params, *_abstract(sample_rows, prompts), _abstract(meshes.replicated(engine.sampler_mesh), key)),
            {"settings": engine.rollout_sampling}, everything - device_bytes(params), sample_work, (steps,),
            engine.sampler_mesh,
        )
    ]  # fmt: skip
    if keeps_reference:
        given = batch.tokens, batch.prompt_length, batch.response_mask
        loops = _learner_loops(engine, b)
        found.append(
            Program(
                "score", functions["score"], (params, *_abstract(rows, given)), {}, everything - reference,
                _score_work(engine), loops, engine.mesh,
            )
        )  # fmt: skip
    found += [
        Program(
            "select", functions["select"],
            (*_abstract(rows, (rollout, verdicts)), _abstract(whole, _array(i32)), key),
            {"rounds": _abstract(whole, _array(i32))}, everything, none, (), engine.mesh,
        ),
        Program(
            "relabel", functions["relabel"],
            (
                *_abstract(rows, (_array(i32, n, config.data.max_prompt), _array(i32, n), parts, rollout)),
                *_abstract(rows, (batch.ref_logp, batch.importance, _array(f32, b), _array(f32, b), verdicts)),
                _abstract(whole, replays),
            ),
            {}, everything, none, (), engine.mesh,
        ),
        Program(
            "update", functions["update"], (state, _abstract(rows, batch)), {}, reference, _update_work(engine),
            _learner_loops(engine, b // config.learner.mini_batches), engine.mesh,
        ),
    ]  # fmt: skip
    return found


def heads_split(engine: Engine) -> bool:
    """Whether the sampler's cache is split by heads as far as its mesh wants it."""
    tensor = engine.sampler_mesh.shape["tensor"]
    return int(np.gcd(tensor, engine.model.num_kv_heads)) == tensor
