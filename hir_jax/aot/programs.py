"""What is compiled of a config: the functions of its Engine with abstract arguments of the largest shapes, and what they must do.

The batch is the config's: N prompts of `data.max_prompt` tokens, `rollout.max_response` tokens each, all of them used: the
longest step there can be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from hir_jax.engine import Engine
from hir_jax.learner import packing
from hir_jax.learner.logprobs import chunk_columns
from hir_jax.model import counting, lora
from hir_jax.model.decode_attention import cache_columns, columns_read
from hir_jax.parallel import mesh as meshes
from hir_jax.sampler.continuous import ring_columns
from hir_jax.types import PromptBatch, PromptParts, Rollout, TrainBatch, Verdicts

# Sizes of what the data decides, for relabelling: constraints of a row, tokens of one, tokens before and behind them
CONSTRAINTS, CONSTRAINT_TOKENS, TAIL_TOKENS = 16, 64, 64


class Work(NamedTuple):
    """What a function must do at least, on one device."""

    flops: float  # of the model: matrix products, nothing counted twice
    computed: float  # FLOPs with what the backward pass computes again
    read: float  # bytes of HBM


class Program(NamedTuple):
    """One function to compile: arguments, what else stays in memory meanwhile, and the trip counts of its loops.

    `learn` is compiled for its memory, and its parts that have work to do for bounds on their time: `work` is None, or `part` is
    True.
    """

    name: str
    function: Any  # jitted
    arguments: tuple
    options: dict[str, Any]
    resident: int  # bytes a device, beside the arguments
    work: Work | None
    loops: tuple[int, ...]  # trip counts that the compiled text does not say, outermost first
    mesh: jax.sharding.Mesh
    part: bool = False


def device_bytes(tree) -> int:
    """Bytes that a device holds of a tree of ShapeDtypeStructs with shardings."""

    def one(x):
        return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(map(one, jax.tree.leaves(tree)))


def _abstract(sharding: NamedSharding, tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _array(dtype, *sizes: int):
    return jax.ShapeDtypeStruct(sizes, dtype)


def _batches(engine: Engine):
    """(Rollout, Verdicts, PromptParts, TrainBatch) of a step, without shardings."""
    config = engine.config
    n, columns, longest = config.data.batch_prompts, config.data.max_prompt, config.rollout.max_response
    b, c = n * engine.settings.samples, CONSTRAINTS
    f32, i32, flag = jnp.float32, jnp.int32, jnp.bool_
    rollout = Rollout(
        _array(i32, b, longest), _array(flag, b, longest), _array(f32, b, longest), _array(f32, b, longest),
        _array(flag, b), _array(flag, b),
    )  # fmt: skip
    verdicts = Verdicts(*(_array(flag, b, c) for _ in Verdicts._fields))
    parts = PromptParts(
        _array(i32, n, columns), _array(i32, n), _array(i32, n, c, 2 * c, CONSTRAINT_TOKENS), _array(i32, n, c, 2 * c),
        _array(i32, n, TAIL_TOKENS), _array(i32, n), _array(i32, n), _array(flag, n, c),
    )  # fmt: skip
    logp, rows = _array(f32, b, longest), _array(f32, b)
    batch = TrainBatch(
        _array(i32, b, columns + longest), _array(i32, b), _array(flag, b, longest), logp, logp, logp, rows, rows,
        _array(i32, b), _array(flag, b),
    )  # fmt: skip
    return rollout, verdicts, parts, batch


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
    rows = config.data.batch_prompts * engine.settings.samples
    lengths = [config.data.max_prompt] * rows
    flops = counting.learner_flops(model, lengths, config.rollout.max_response)
    forward = flops / 3
    if engine.lora:  # frozen matrices have no gradient of their own; the adapters' products are not counted
        flops = 2 * forward
    computed = flops + (forward if model.remat == "full" else 0.0)
    devices, item = engine.mesh.size, jnp.dtype(config.model.param_dtype).itemsize
    trips = config.learner.mini_batches * _learner_loops(engine, rows // config.learner.mini_batches)[0]
    weights = 3 * counting.weight_bytes(model) / engine.mesh.shape["tensor"]  # forward, recomputed, backward
    trained = item * entries(engine.abstract_state.params) / devices
    sums, optimiser = 2 * trained, 7 * trained * config.learner.mini_batches  # gradients are read and written
    return Work(flops / devices, computed / devices, trips * (weights + sums) + optimiser)


def _score_work(engine: Engine) -> Work:
    config, model = engine.config, engine.model
    rows = config.data.batch_prompts * engine.settings.samples
    flops = counting.learner_flops(model, [config.data.max_prompt] * rows, config.rollout.max_response) / 3
    devices = engine.mesh.size
    trips = _learner_loops(engine, rows)[0]
    weights = counting.weight_bytes(model) / engine.mesh.shape["tensor"]
    return Work(flops / devices, flops / devices, trips * weights)


def _sample_work(engine: Engine) -> tuple[Work, int]:
    """The work, and the steps of the decoding loop.

    Read on each step: the weights, and the columns of keys and values that are filled by then of each row that runs, as
    `attend_one` reads them: on TPUs whole blocks, elsewhere all columns of a cache, filled or not. A slot reads its own copy of
    its prompt; without slots the rows of a prompt read it once together (the least: the kernel may fetch it for each of them).
    """
    config, model = engine.config, engine.settings.sampler_model
    n, columns, longest = config.data.batch_prompts, config.data.max_prompt, config.rollout.max_response
    mesh, samples = engine.sampler_mesh, engine.settings.first_samples
    ways, later = meshes.row_devices(mesh), longest - 1  # the first token comes of the prompt
    rows = n * samples // ways
    wide, reads = (partial(f, model.attention) for f in (cache_columns, columns_read))
    slots = engine.settings.slots(n, columns, samples, longest)
    if slots:  # all rows are equally long: they move in and out in waves
        held, own = min(slots // ways, rows), wide(ring_columns(longest))
        waves = [min(held, rows - moved) for moved in range(0, rows, held)]
        steps = len(waves) * later
        read = sum(count * reads(own, i * later, later) for i, count in enumerate(waves)) + rows * later * wide(columns)
    else:
        steps = later
        between = itertools.pairwise((1, *engine.settings.rollout_sampling.all_widths))
        read = rows * sum(reads(wide(b), 0, b - 1) - reads(wide(b), 0, a - 1) for a, b in between)
        read += n // ways * steps * wide(columns)
    flops = counting.rollout_flops(model, [columns] * n, samples, longest)
    cached = read * counting.cache_bytes(model) / engine.settings.kv_ways
    weights = steps * counting.weight_bytes(model) / mesh.shape["tensor"]
    return Work(flops / mesh.size, flops / mesh.size, weights + cached), steps


def entries(tree) -> int:
    """Numbers in a tree of arrays, or of their shapes."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def programs(engine: Engine) -> Sequence[Program]:
    """The functions of a step, in its order, and behind `learn` its parts."""
    config, settings, state = engine.config, engine.settings, engine.abstract_state
    rows, whole = meshes.rows(engine.mesh), meshes.replicated(engine.mesh)
    n, i32 = config.data.batch_prompts, jnp.int32
    rollout, verdicts, parts, batch = _batches(engine)
    frozen = engine.abstract_frozen
    params = lora.join(frozen, state.params)
    reference = frozen or (params if settings.keeps_reference else None)  # LoRA's frozen weights are needed anyhow
    kept = device_bytes(reference) if reference else 0
    everything = device_bytes(state) + kept
    key = _abstract(whole, jax.eval_shape(partial(jax.random.key, 0)))
    prompts = PromptBatch(_array(i32, n, config.data.max_prompt), _array(i32, n), parts)
    asked = prompts.tokens, prompts.length, _array(i32, n, settings.first_samples)
    sample_rows, sample_whole = meshes.rows(engine.sampler_mesh), meshes.replicated(engine.sampler_mesh)
    sample_work, steps = _sample_work(engine)
    jitted = engine.jitted
    held = engine.abstract_sampler_params(params)
    shared = [x for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(held), strict=True) if x is y]
    found = []
    if config.rollout.tensor:
        work = Work(0.0, 0.0, device_bytes(params) + 2 * device_bytes(held))  # cast; exchanged
        resident = everything - device_bytes(params)
        found.append(Program("reshard", jitted["reshard"], (params,), {}, resident, work, (), engine.mesh))
    given = held, *_abstract(sample_rows, asked), _abstract(sample_whole, key)
    found.append(
        Program(
            "sample", jitted["sample"], given, {"sampling": settings.rollout_sampling},
            everything - device_bytes(shared), sample_work, (steps,), engine.sampler_mesh,
        )
    )  # fmt: skip
    given = *_abstract(rows, (prompts, rollout, verdicts)), _abstract(whole, _array(i32)), key
    found.append(
        Program(
            "learn",
            jitted["learn"],
            (state, frozen, None if frozen else reference, *given),
            {},
            0,
            None,
            (),
            engine.mesh,
        )
    )
    scored = {"score": reference} if settings.keeps_reference else {}
    if settings.learner.scores_old:
        scored["score_old"] = params
    for name, weights in scored.items():
        given = weights, *_abstract(rows, (batch.tokens, batch.prompt_length, batch.response_mask))
        loops = _learner_loops(engine, n * settings.samples)
        resident = everything - device_bytes(weights)
        found.append(
            Program(name, jitted["score"], given, {}, resident, _score_work(engine), loops, engine.mesh, part=True)
        )
    loops = _learner_loops(engine, n * settings.samples // config.learner.mini_batches)
    given, resident = (state, _abstract(rows, batch), frozen), 0 if frozen else kept
    found.append(
        Program("update", jitted["update"], given, {}, resident, _update_work(engine), loops, engine.mesh, part=True)
    )
    return found
