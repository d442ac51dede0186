"""Attention of one column of every row to caches, in two implementations (see `model.attention` for the platforms).

A cache is a ring of S columns a row, of which the `count` ones up to column `end` are filled. XLA reads all S;
the Pallas kernel for TPUs fetches the blocks that hold something, of each row by itself.

Letters as in `model.decoder`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from hir_jax.model.attention import MASKED, mask_bias
from hir_jax.types import Array

BLOCKS = (512, 256, 128)  # columns that the kernel fetches at a time; the first that divides the cache
ALIGNMENT = 128


class Filled(NamedTuple):
    """Which columns of a cache may be attended."""

    end: Array  # i32[]: the last one
    count: Array  # i32[X], of each row (or prompt)


def cache_columns(implementation: str, columns: int) -> int:
    """The columns of a cache for at least `columns`: the kernel's blocks must divide them."""
    return -(-columns // ALIGNMENT) * ALIGNMENT if implementation == "splash" else columns


def _block(columns: int) -> int:
    return next(b for b in BLOCKS if columns % b == 0)


def columns_read(implementation: str, columns: int, first: int, steps: int) -> int:
    """Columns that `attend_one` reads of one row's own cache, a ring of `columns`, in `steps` steps that each fill one more from
    column `first` on. XLA reads all of them in every step, the kernel the blocks that hold something."""
    if implementation != "splash":
        return steps * columns
    block = _block(columns)
    before = first % block  # of the first block

    def blocks(filled: int) -> int:
        """Sum over n = 1 .. filled of the blocks that n columns from a block's start take, at most all."""
        within = min(filled, columns)
        whole, rest = divmod(within, block)
        return block * whole * (whole + 1) // 2 + rest * (whole + 1) + (filled - within) * (columns // block)

    return block * (blocks(before + steps) - blocks(before))


def valid_columns(filled: Filled, columns: int) -> Array:
    """bool[X, S]."""
    return (filled.end - jnp.arange(columns)) % columns < filled.count[:, None]


def attend_one(implementation: str, q, prompt, prompt_filled: Filled, own, own_filled: Filled, shard) -> Array:
    """Softmax attention of one column to its prompt's keys and values, which S rows share, and to its own.

    q: dtype[B, Hkv, G, Dh], scaled; prompt: k and v, dtype[N, Hkv, P, Dh], with B = N * S; own: dtype[B, Hkv, T, Dh].
    Returns dtype[B, Hkv, G, Dh].
    """
    if implementation != "splash":
        biases = (mask_bias(valid_columns(f, kv[0].shape[2])) for f, kv in ((prompt_filled, prompt), (own_filled, own)))
        return _plain(q, prompt, next(biases), own, next(biases))
    heads, rows = ("batch", "kv_heads", None, None), ("batch",)
    run = shard.map(
        _filled_part, (heads, heads, heads, rows, heads, heads, (None,), rows),
        (q, *prompt, prompt_filled.count, *own, own_filled.end[None], own_filled.count),
    )  # fmt: skip
    return run


def _plain(q: Array, prompt, prompt_bias: Array, own, own_bias: Array) -> Array:
    """Over all columns; biases: f32[N, P] and [B, T]. The queries that meet a prompt's key head are the rows of one matrix: no
    expanded copy, and P columns are read N times, not B times. The own scores are made as keys @ queries, which is faster
    than queries @ keys for a few queries on CPU; the barrier keeps XLA from turning it round."""
    samples = q.shape[0] // prompt[0].shape[0]

    def by_prompt(x):
        return rearrange(x, "(n s) k g x -> n k (s g) x", s=samples)

    def by_row(x):  # and back
        return rearrange(x, "n k (s g) x -> (n s) k g x", s=samples)

    shared = jnp.einsum("nkmd,nkpd->nkmp", by_prompt(q), prompt[0], preferred_element_type=jnp.float32)
    shared = by_row(shared + prompt_bias[:, None, None])
    alone = jnp.einsum("bktd,bkgd->bktg", own[0], q, preferred_element_type=jnp.float32)
    alone = rearrange(jax.lax.optimization_barrier(alone), "b k t g -> b k g t") + own_bias[:, None, None]
    top = jnp.maximum(shared.max(-1, keepdims=True), alone.max(-1, keepdims=True))
    shared, alone = jnp.exp(shared - top), jnp.exp(alone - top)
    total = shared.sum(-1, keepdims=True) + alone.sum(-1, keepdims=True)
    dtype = q.dtype
    attended = by_row(jnp.einsum("nkmp,nkpd->nkmd", by_prompt(shared.astype(dtype)), prompt[1]))
    attended += jnp.einsum("bkgt,bktd->bkgd", alone.astype(dtype), own[1])
    return (attended / total).astype(dtype)


# ---- the kernel --------------------------------------------------------------------------------------------------


def _filled_part(q, prompt_k, prompt_v, prompt_count, own_k, own_v, own_end, own_count, *, interpret: bool = False):
    """The kernel over both caches, and the two results by their shares of the soft-max."""
    own_end = jnp.broadcast_to(own_end, own_count.shape)
    samples = q.shape[0] // prompt_count.shape[0]
    count = repeat(prompt_count, "n -> (n s)", s=samples)
    end = jnp.full_like(count, prompt_k.shape[2] - 1)
    parts = [
        _over_blocks(q, prompt_k, prompt_v, end, count, samples, interpret),
        _over_blocks(q, own_k, own_v, own_end, own_count, 1, interpret),
    ]
    (a, top_a), (b, top_b) = parts
    share = jax.nn.sigmoid(top_a - top_b)[..., None]
    return (a * share + b * (1 - share)).astype(q.dtype)


def _over_blocks(q, k, v, end, count, samples: int, interpret: bool):
    """(f32[B, Hkv, G, Dh], log of the soft-max's sum f32[B, Hkv, G]) of rows over their filled columns; row b reads cache row
    b // samples. Where nothing is filled, 0 and MASKED."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    rows, num_kv, group, head_dim = q.shape
    columns = k.shape[2]
    block = _block(columns)
    blocks = columns // block
    start = (end - count + 1) % columns
    first = start // block
    # a full ring meets its first block again at the end, which masks have dealt with: it is visited once
    visits = jnp.clip((start % block + count + block - 1) // block, 1, blocks)

    def at(b, j, first, visits, *_):
        return b // samples, 0, (first[b] + jnp.minimum(j, visits[b] - 1)) % blocks, 0

    def own(b, j, *_):
        return b, 0, 0, 0

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=4,
        grid=(rows, blocks),
        in_specs=[
            pl.BlockSpec((1, num_kv, group, head_dim), own),
            pl.BlockSpec((1, num_kv, block, head_dim), at),
            pl.BlockSpec((1, num_kv, block, head_dim), at),
        ],
        out_specs=[pl.BlockSpec((1, num_kv, group, head_dim), own), pl.BlockSpec((1, num_kv, group, ALIGNMENT), own)],
        scratch_shapes=[
            pltpu.VMEM((num_kv, group, head_dim), jnp.float32),
            pltpu.VMEM((num_kv, group, 1), jnp.float32),
            pltpu.VMEM((num_kv, group, 1), jnp.float32),
        ],
    )
    out, top = pl.pallas_call(
        partial(_kernel, columns=columns, block=block, blocks=blocks),
        grid_spec=spec,
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, jnp.float32),
            jax.ShapeDtypeStruct((rows, num_kv, group, ALIGNMENT), jnp.float32),
        ],
        interpret=interpret,
        name="attend_one",
    )(first, visits, end, count, q, k, v)
    return out, top[..., 0]


def _kernel(first, visits, end, count, q, k, v, out, top, summed, largest, total, *, columns, block, blocks):
    """One block of one row: a step of the running soft-max."""
    from jax.experimental import pallas as pl

    b, j = pl.program_id(0), pl.program_id(1)

    @pl.when(j == 0)
    def _():
        summed[...] = jnp.zeros_like(summed)
        largest[...] = jnp.full_like(largest, MASKED)
        total[...] = jnp.zeros_like(total)

    @pl.when((j < visits[b]) & (count[b] > 0))
    def _():
        place = (first[b] + j) % blocks * block + jax.lax.broadcasted_iota(jnp.int32, (1, 1, block), 2)
        age = end[b] - place
        seen = jnp.where(age < 0, age + columns, age) < count[b]
        batched = (((2,), (2,)), ((0,), (0,)))
        scores = jax.lax.dot_general(q[0], k[0], batched, preferred_element_type=jnp.float32)  # [Hkv, G, block]
        scores = jnp.where(seen, scores, MASKED)
        new = jnp.maximum(largest[...], scores.max(-1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - new), 0.0)
        shrink = jnp.exp(largest[...] - new)
        more = jax.lax.dot_general(
            weights.astype(v.dtype), v[0], (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32
        )
        summed[...] = summed[...] * shrink + more
        total[...] = total[...] * shrink + weights.sum(-1, keepdims=True)
        largest[...] = new

    @pl.when(j == blocks - 1)
    def _():
        some = total[...] > 0
        out[0] = jnp.where(some, summed[...] / jnp.where(some, total[...], 1.0), 0.0)
        found = jnp.where(some, largest[...] + jnp.log(jnp.where(some, total[...], 1.0)), MASKED)
        top[0] = jnp.broadcast_to(found, top.shape[1:])
