"""Causal self-attention of whole sequences: one function, whose implementation the platform decides.

| `ModelConfig.attention` | platform | what |
|---|---|---|
| plain | CPU | XLA, in blocks of queries; scores of a block are in memory |
| splash | TPU | jax's Pallas splash attention: no scores in memory, blocks that nothing attends to are left out |
| triton | GPU | tokamax's Triton flash attention (Ampere and later); blocks before the segments of all its queries are left out |

cuDNN's and tokamax's Mosaic kernels for GPUs do not compile ahead of time without one, and no interpreter runs them on a CPU, so
nothing could be proven of them here. jax 0.12 deprecates its Triton backend, on which tokamax's kernel is built too.

All agree within rounding, in tests with numbers of a normal distribution, the kernels interpreted on a CPU: values with float64's
within 2e-5 in float32 and 3e-2 in bfloat16, gradients with the plain float32 ones within 2e-4 and 2e-2 of the largest
(tests/model/test_attention.py). With several devices the kernels run under shard_map, rows and key heads split, which changes
less than 1e-5; a mesh that does not divide the key heads leaves them whole.

Letters as in `model.decoder`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
from absl import flags
from einops import rearrange
from jaxtyping import Bool, Float, Float32, Int, Shaped

from hir_jax.types import Array

BLOCK = 128  # queries, at least, of a block that attends to its own range of keys
MOST_BLOCKS = 8  # of a pass; each is compiled
MASKED = -1e30  # finite: a row of padding attends evenly to all columns instead of giving NaN
LANES = 128  # columns and head sizes of the splash kernel are multiples of it
SPLASH_BLOCKS = (512, 256, 128)  # columns; the first that divides the sequence
TRITON_BLOCK = 64  # columns

Attend = Callable[[Array, Array, Array], Array]


def causal(
    implementation: str,
    segments: Shaped[Array, "B T"],
    window: int,
    shard,
    prompts: Int[Array, "B T"] | None = None,
) -> Attend:
    """Attention of T queries to T keys: none later than itself, nor `window` or more columns earlier, and only of its own segment
    or its prompt's.

    segments: i32 or bool; prompts: the segment of each column's prompt (plain only), or None. Returns
    attend(q, k, v) for q: dtype[B, T, Hq, Dh] and k, v: dtype[B, Hkv, T, Dh], which gives dtype[B, T, Hq*Dh]; no segment has
    more than `window` columns.
    """
    if implementation == "plain":
        bias = causal_bias(segments, prompts)
        return lambda q, k, v: _plain(q, k, v, bias, window)
    if prompts is not None:
        raise ValueError(f"attention {implementation!r} cannot share the columns of a prompt; plain can")
    kernel = {"splash": splash, "triton": triton}[implementation]

    def attend(q, k, v):
        q = rearrange(q, "b t (k g) d -> b k g t d", k=k.shape[1])
        many, few = ("batch", "kv_heads", None, None, None), ("batch", "kv_heads", None, None)
        run = shard.map(partial(kernel, window=window), (many, few, few, ("batch", None)), (q, k, v, segments))
        return rearrange(run, "b k g t d -> b t (k g d)")

    return attend


# ---- plain -------------------------------------------------------------------------------------------------------


def mask_bias(mask: Bool[Array, "..."]) -> Float32[Array, "..."]:
    """0 where attention is allowed, MASKED elsewhere (adding is faster than selecting on CPU)."""
    return jnp.where(mask, 0.0, MASKED)


def causal_bias(segments: Shaped[Array, "B T"], prompts: Int[Array, "B T"] | None = None) -> Float32[Array, "B T T"]:
    """Lets column t attend to a column s <= t of its own segment, or of its prompt's."""
    columns = jnp.arange(segments.shape[1])
    allowed = segments[:, :, None] == segments[:, None, :]
    if prompts is not None:
        allowed |= prompts[:, :, None] == segments[:, None, :]
    return mask_bias((columns[:, None] >= columns[None, :]) & allowed)


def _attend(
    q: Float[Array, "B T Hq Dh"],
    k: Float[Array, "B Hkv S Dh"],
    v: Float[Array, "B Hkv S Dh"],
    bias: Float32[Array, "B T S"],
) -> Float[Array, "B T Hq*Dh"]:
    """Softmax attention of grouped queries, float32 inside, no repeated keys or values.

    bias: 0 or MASKED. The queries that share a key head are rows of one matrix, so that both products are plain batched ones.
    """
    columns, num_kv, head_dim = q.shape[1], k.shape[1], q.shape[3]
    q = rearrange(q * head_dim**-0.5, "b t (k g) d -> b k (g t) d", k=num_kv)
    scores = jnp.einsum("bkmd,bksd->bkms", q, k, preferred_element_type=jnp.float32)
    scores = rearrange(scores, "b k (g t) s -> b k g t s", t=columns) + bias[:, None, None]
    weights = rearrange(jax.nn.softmax(scores, axis=-1).astype(v.dtype), "b k g t s -> b k (g t) s")
    attended = jnp.einsum("bkms,bksd->bkmd", weights, v)
    return rearrange(attended, "b k (g t) d -> b t (k g d)", t=columns)


def _plain(q: Array, k: Array, v: Array, bias: Array, window: int) -> Array:
    """Blocks of queries leave out the keys that none of them may attend to: half of all for long sequences."""
    columns = q.shape[1]
    size = max(BLOCK, -(-columns // MOST_BLOCKS))
    blocks = []
    for start in range(0, columns, size):
        end, first = min(start + size, columns), max(0, start - window + 1) // 16 * 16
        blocks.append(_attend(q[:, start:end], k[:, :, first:end], v[:, :, first:end], bias[:, start:end, first:end]))
    return jnp.concatenate(blocks, axis=1)


# ---- kernels -----------------------------------------------------------------------------------------------------


def _pad(x: Array, axis: int, multiple: int, value=0) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths, constant_values=value) if widths[axis][1] else x


def splash(q, k, v, segments, window: int, *, interpret: bool = False) -> Array:
    """q: dtype[B, Hkv, G, T, Dh]; k, v: dtype[B, Hkv, T, Dh]; segments: [B, T]. Returns dtype[B, Hkv, G, T, Dh]."""
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    num_kv, columns, head_dim = q.shape[1], *q.shape[3:]
    q = rearrange(q * head_dim**-0.5, "b k g t d -> b (k g) t d")
    q, k, v = (_pad(_pad(x, 3, LANES), 2, LANES) for x in (q, k, v))
    segments = _pad(segments.astype(jnp.int32), 1, LANES, value=-1)
    width = q.shape[2]
    block = next(b for b in SPLASH_BLOCKS if width % b == 0)
    blocks = kernels.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    near = kernels.CausalMask((width, width))
    if window < columns:
        near = kernels.LocalMask((width, width), (window - 1, 0), 0)
    mask = kernels.MultiHeadMask([near] * q.shape[1])
    make = {"mask": mask, "block_sizes": blocks, "head_shards": 1, "q_seq_shards": 1, "interpret": interpret}
    kernel = jax.vmap(kernels.make_splash_mha(**make))
    found = kernel(q, k, v, segment_ids=kernels.SegmentIds(segments, segments))
    return rearrange(found[:, :, :columns, :head_dim], "b (k g) t d -> b k g t d", k=num_kv)


def triton(q, k, v, segments, window: int) -> Array:
    """As `splash`, for segments of adjacent columns. `window` spares nothing here: no segment is longer."""
    from jax.experimental import pallas
    from jax.experimental.pallas import triton as pallas_of_triton
    from tokamax._src.ops.attention import base, pallas_triton, pallas_triton_vjp  # the public function has no segments

    pallas.dot = pallas_of_triton.dot  # jax has moved it, and tokamax 0.0.12 looks for it in its old place
    if not flags.FLAGS.is_parsed():  # tokamax would take any program's arguments for flags
        flags.FLAGS.mark_as_parsed()
    columns, num_kv = q.shape[3], k.shape[1]
    q = _pad(rearrange(q, "b k g t d -> b t (k g) d"), 1, TRITON_BLOCK)
    k, v = (_pad(rearrange(x, "b k t d -> b t k d"), 1, TRITON_BLOCK) for x in (k, v))
    starts = _starts(_pad(segments.astype(jnp.int32), 1, TRITON_BLOCK, value=-1))
    # Without a config tokamax looks up one by the device that jax would run on, which is another one ahead of time.
    launch = {"num_warps": 4, "num_stages": 2}
    forward = pallas_triton.Config(block_q=TRITON_BLOCK, block_k=TRITON_BLOCK, **launch)
    backward = pallas_triton_vjp.Config(block_m1=32, block_n1=64, block_m2=64, block_n2=32, **launch)
    gradient = pallas_triton_vjp.PallasTritonFlashAttentionVjp(config=backward)
    kernel = pallas_triton.PallasTritonFlashAttention(config=forward, vjp=gradient)
    found = kernel(q, k, v, mask=base.Mask(is_causal=True, k_start=starts[:, None]))
    return rearrange(found[:, :columns], "b t (k g) d -> b k g t d", k=num_kv)


def _starts(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The first column of each column's segment, whose columns are adjacent."""
    columns = jnp.arange(segments.shape[1])
    first = jnp.diff(segments, axis=1, prepend=segments[:, :1] - 1) != 0
    return jax.lax.cummax(jnp.where(first, columns, 0), axis=1)


def for_absent_devices():
    """A context in which kernels may be compiled for devices that are not here."""
    if importlib.util.find_spec("tokamax") is None:
        return nullcontext()
    from tokamax import config

    return config.cross_compile(True)
