"""Log-probs and entropies of given tokens, in chunks, without ever holding [B, T, V].

The columns of packed bins that predict a response token are brought to the front, and only as many chunks of them are
projected to the vocabulary as there are: prompt columns cost nothing here. The number of chunks is known at run time only, so
nothing differentiates through the loop; each chunk yields its own gradients, at once with its loss.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int

from hir_jax.model import decoder
from hir_jax.model.config import ModelConfig
from hir_jax.types import Array

CHUNK_ELEMENTS = 1 << 27  # logits a device makes at once, at most: 512 MB in float32
CHUNK_TOKENS = 128  # a chunk's tokens, at least: the gradient of the output matrix is added up once a chunk


def token_logprobs(
    hidden: Float[Array, "*T D"],
    target: Int[Array, "*T"],
    matrix: Float[Array, "D V"],
    temperature: float,
    shard: decoder.Shard = decoder.no_shard,
) -> tuple[Float32[Array, "*T"], Float32[Array, "*T"]]:
    """Log-prob of each target under softmax(hidden @ matrix / temperature), and the entropy of that distribution in nats,
    through which no gradient flows. matrix: as `head_params` splits it: devices that share the words exchange hidden states
    and sums, never logits."""
    hidden, target = shard(hidden, ("lookup_batch", "length", "embed")), shard(target, ("lookup_batch", "length"))
    matrix = matrix.astype(hidden.dtype)
    logits = jnp.matmul(hidden, matrix, preferred_element_type=jnp.float32) / temperature
    logits = shard(logits, ("lookup_batch", "length", "lookup_vocab"))
    log_total = jax.nn.logsumexp(logits, axis=-1)
    fixed = jax.lax.stop_gradient(logits)
    fixed_total = jax.lax.stop_gradient(log_total)
    entropy = fixed_total - (jnp.exp(fixed - fixed_total[..., None]) * fixed).sum(-1)
    chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return chosen - log_total, entropy


def head_params(model: ModelConfig, params: decoder.Params, shard: decoder.Shard = decoder.no_shard) -> decoder.Params:
    """The part of the parameters that `decoder.unembed_matrix` takes, in the compute dtype, its words split among all devices
    that share parameters; {} where they do not hold it."""
    name, axes = (
        ("embed", ("lookup_vocab", "embed")) if model.tie_embeddings else ("unembed", ("embed", "lookup_vocab"))
    )
    if name not in params:
        return {}
    return {name: shard(params[name].astype(model.compute_dtype), axes)}


def chunk_columns(columns: int, words: int) -> int:
    """Columns of a chunk, out of `columns` on a device."""
    return min(columns, max(1, CHUNK_ELEMENTS // words), max(CHUNK_TOKENS, columns // 8))


def _predicting_first(predicts: Array) -> tuple[Array, Array, Array]:
    """Of bool[G, T]: (order i32[G, T], predicting columns first; its inverse; the largest number of them, i32[])."""
    count = predicts.sum(-1, dtype=jnp.int32)
    place = jnp.where(predicts, jnp.cumsum(predicts, 1), count[:, None] + jnp.cumsum(~predicts, 1)) - 1
    # a sort would give the same; XLA takes minutes to compile one of this width for TPUs
    groups, columns = (jnp.arange(size, dtype=jnp.int32) for size in predicts.shape)
    order = jnp.zeros_like(place).at[groups[:, None], place].set(columns, unique_indices=True)
    return order, place, count.max()


def over_chunks(predicts: Bool[Array, "G T"], words: int, hidden: Array, fields, body: Callable, outputs, carry):
    """Runs `body(carry, hidden, predicts, fields) -> (carry, found)` over chunks of the columns that predict something.

    hidden: dtype[G, T, D]; fields: a tree of [G, T]; G devices share the work, each with columns of its own. `outputs` are
    trees of zeros [G, T, ...] like `found` [G, chunk, ...], whose values are put back at their columns; 0 remains where
    nothing is predicted. Returns (carry, outputs).
    """
    order, place, most = _predicting_first(predicts)
    columns = order.shape[1]
    size = chunk_columns(columns, words)
    padding = -columns % size
    order = jnp.pad(order, ((0, 0), (0, padding)))
    padded = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2)), outputs)

    def chunk(i, state):
        carry, outputs = state
        at = jax.lax.dynamic_slice_in_dim(order, i * size, size, axis=1)
        here = jax.tree.map(lambda x: jnp.take_along_axis(x, at, axis=1, mode="clip"), (predicts, fields))
        real = here[0] & (i * size + jnp.arange(size) < columns)
        carry, found = body(carry, jnp.take_along_axis(hidden, at[..., None], axis=1, mode="clip"), real, here[1])
        put = jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, i * size, axis=1), outputs, found)
        return carry, put

    carry, padded = jax.lax.fori_loop(0, -(-most // size), chunk, (carry, padded))

    def back(x):
        return jnp.take_along_axis(x, place.reshape(place.shape + (1,) * (x.ndim - 2)), axis=1, mode="clip")

    return carry, jax.tree.map(back, padded)
