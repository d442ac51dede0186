"""The programs that are compiled: the functions of a step with abstract arguments of the largest shapes, and their work.

The batch is the config's: N prompts of `data.max_prompt` tokens and responses of `rollout.max_response` tokens, the longest
step that there can be.
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

# Sizes that the data decides, for relabelling: constraints of a row, tokens of one, tokens behind them
CONSTRAINTS, CONSTRAINT_TOKENS, TAIL_TOKENS = 16, 64, 64


class Work(NamedTuple):
    """The least that a function must do, on one device."""

    flops: float  # of the model: matrix products, nothing counted twice
    computed: float  # FLOPs with those that the backward pass repeats
    read: float  # bytes of HBM


class Program(NamedTuple):
    """One function to compile.

    `learn` is compiled for its memory and has no `work`. Its parts that have work to do are compiled for bounds on their time;
    for them `part` is True.
    """

    name: str
    function: Any  # jitted
    arguments: tuple
    options: dict[str, Any]
    resident: int  # bytes a device holds beside the arguments
    work: Work | None
    loops: tuple[int, ...]  # trip counts that the compiled text does not say, outermost first
    mesh: jax.sharding.Mesh
    part: bool = False


def device_bytes(tree) -> int:
    """Bytes that a device holds of a tree of ShapeDtypeStructs with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def entries(tree) -> int:
    """Numbers in a tree of arrays, or of their shapes."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _abstract(sharding: NamedSharding, tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _array(dtype, *sizes: int):
    return jax.ShapeDtypeStruct(sizes, dtype)


def _batches(engine: Engine):
    """(PromptBatch, Rollout, Verdicts, TrainBatch) of a step, without shardings."""
    config = engine.config
    n, columns, longest = config.data.batch_prompts, config.data.max_prompt, config.rollout.max_response
    b, c = n * engine.settings.samples, CONSTRAINTS
    f32, i32, flag = (partial(_array, dtype) for dtype in (jnp.float32, jnp.int32, jnp.bool_))
    logp, rows = f32(b, longest), f32(b)
    parts = PromptParts(
        i32(n, columns), i32(n), i32(n, c, 2 * c, CONSTRAINT_TOKENS), i32(n, c, 2 * c), i32(n, TAIL_TOKENS), i32(n), i32(n),
        flag(n, c),
    )  # fmt: skip
    rollout = Rollout(i32(b, longest), flag(b, longest), logp, logp, flag(b), flag(b))
    verdicts = Verdicts(*(flag(b, c) for _ in Verdicts._fields))
    batch = TrainBatch(
        i32(b, columns + longest), i32(b), flag(b, longest), logp, logp, logp, rows, rows, i32(b), flag(b)
    )
    return PromptBatch(i32(n, columns), i32(n), parts), rollout, verdicts, batch


def _learner_loops(engine: Engine, mini_batches: int = 1) -> tuple[int, int]:
    """(micro-batches, chunks of log-probs in one) for the rows of a mini-batch, all of the greatest length."""
    config, ways = engine.config, meshes.row_devices(engine.mesh)
    rows = config.data.batch_prompts * engine.settings.samples // mini_batches
    columns = config.data.max_prompt + config.rollout.max_response
    width = packing.bin_columns(columns, config.learner.pack_columns)
    size = packing.sizes(rows, columns - 1, width, ways, config.learner.micro_batch_tokens)
    used = -(-rows // (width // (columns - 1) * ways))
    chunk = chunk_columns(size.micro * width, engine.model.vocab_size)
    predicted = min(size.micro * width, size.micro * (width // (columns - 1)) * config.rollout.max_response)
    return -(-used // size.micro), -(-predicted // chunk)


def _forward_flops(engine: Engine) -> float:
    """FLOPs of one forward pass of all sequences of a step, on all devices."""
    config = engine.config
    lengths = [config.data.max_prompt] * (config.data.batch_prompts * engine.settings.samples)
    return counting.learner_flops(engine.model, lengths, config.rollout.max_response) / 3


def _update_work(engine: Engine) -> Work:
    learner, forward = engine.config.learner, _forward_flops(engine)
    flops = (2 if engine.lora else 3) * forward  # frozen matrices have no gradient; adapters are not counted
    computed = flops + (forward if engine.model.remat == "full" else 0.0)
    devices, item = engine.mesh.size, jnp.dtype(engine.config.model.param_dtype).itemsize
    trips = learner.mini_batches * _learner_loops(engine, learner.mini_batches)[0]
    weights = 3 * counting.weight_bytes(engine.model) / engine.mesh.shape["tensor"]  # forward, recomputed, backward
    trained = item * entries(engine.abstract_state.params) / devices
    sums, optimiser = 2 * trained, 7 * trained * learner.mini_batches  # gradients are read and written
    return Work(flops / devices, computed / devices, trips * (weights + sums) + optimiser)


def _logprobs_work(engine: Engine) -> Work:
    flops = _forward_flops(engine) / engine.mesh.size
    weights = counting.weight_bytes(engine.model) / engine.mesh.shape["tensor"]
    return Work(flops, flops, _learner_loops(engine)[0] * weights)


def _sample_work(engine: Engine) -> tuple[Work, int]:
    """The work, and the steps of the decoding loop.

    Each step reads the weights, and of each running row the filled columns of keys and values, as `attend_one` reads them:
    whole blocks on TPUs, elsewhere all columns of a cache, filled or not. A slot reads its own copy of its prompt; without
    slots the rows of a prompt read it once together (the least: the kernel may fetch it for each of them).
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


def programs(engine: Engine) -> Sequence[Program]:
    """The functions of a step in its order; the parts of `learn` follow it."""
    config, settings, state, jitted = engine.config, engine.settings, engine.abstract_state, engine.jitted
    rows, whole = meshes.rows(engine.mesh), meshes.replicated(engine.mesh)
    sample_rows, sample_whole = meshes.rows(engine.sampler_mesh), meshes.replicated(engine.sampler_mesh)
    prompts, rollout, verdicts, batch = _batches(engine)
    frozen, found = engine.abstract_frozen, []
    params = lora.join(frozen, state.params)
    reference = frozen or (params if settings.keeps_reference else None)  # LoRA needs its frozen weights anyhow
    kept = device_bytes(reference) if reference else 0
    everything = device_bytes(state) + kept

    def add(
        name: str, arguments: tuple, resident: int, work: Work | None, loops=(), mesh=engine.mesh, **options
    ) -> None:
        function = jitted["logprobs" if name == "logprobs_old" else name]
        part = name in ("logprobs", "logprobs_old", "update")
        found.append(Program(name, function, arguments, options, resident, work, loops, mesh, part))

    held = engine.abstract_sampler_params(params)
    if config.rollout.tensor:
        work = Work(0.0, 0.0, device_bytes(params) + 2 * device_bytes(held))  # cast; exchanged
        add("reshard", (params,), everything - device_bytes(params), work)
    key = jax.eval_shape(partial(jax.random.key, 0))
    ids = _array(jnp.int32, config.data.batch_prompts, settings.first_samples)
    given = held, *_abstract(sample_rows, (prompts.tokens, prompts.length, ids)), _abstract(sample_whole, key)
    shared = [x for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(held), strict=True) if x is y]
    work, steps = _sample_work(engine)
    resident, sampling = everything - device_bytes(shared), settings.rollout_sampling
    add("sample", given, resident, work, (steps,), engine.sampler_mesh, sampling=sampling)
    given = *_abstract(rows, (prompts, rollout, verdicts)), *_abstract(whole, (_array(jnp.int32), key))
    add("learn", (state, frozen, None if frozen else reference, *given), 0, None)
    given_weights = {"logprobs": reference} if settings.keeps_reference else {}
    if settings.learner.recomputes_old:
        given_weights["logprobs_old"] = params
    for name, weights in given_weights.items():
        given = weights, *_abstract(rows, (batch.tokens, batch.prompt_length, batch.response_mask))
        add(name, given, everything - device_bytes(weights), _logprobs_work(engine), _learner_loops(engine))
    given, loops = (state, _abstract(rows, batch), frozen), _learner_loops(engine, config.learner.mini_batches)
    add("update", given, 0 if frozen else kept, _update_work(engine), loops)
    return found
