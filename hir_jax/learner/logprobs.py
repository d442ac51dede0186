"""Log-probs and entropies of response tokens, in chunks, without ever holding [B, T, V]."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hir_jax.models import decoder
from hir_jax.models.config import ModelConfig
from hir_jax.types import Array

CHUNK_ELEMENTS = 1 << 25  # logits made at once: 128 MB in float32


def _chunk(hidden: Array, target: Array, matrix: Array, temperature: float) -> tuple[Array, Array]:
    """f32[B, T] log-prob of `target` and entropy (nats) of softmax(hidden @ matrix / temperature), in float32."""
    logits = jnp.matmul(hidden, matrix, preferred_element_type=jnp.float32) / temperature
    log_total = jax.nn.logsumexp(logits, axis=-1)
    fixed = jax.lax.stop_gradient(logits)
    entropy = jax.lax.stop_gradient(log_total) - (jax.nn.softmax(fixed) * fixed).sum(-1)
    chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return chosen - log_total, entropy


def token_logprobs(hidden: Array, target: Array, matrix: Array, temperature: float) -> tuple[Array, Array]:
    """Log-prob of each target and the entropy there; no gradient flows through the entropy.

    hidden: dtype[B, T, D]; target: i32[B, T]; matrix: [D, V]. Returns f32[B, T] twice. At most
    CHUNK_ELEMENTS logits (or one column's, if that is more) are made at a time; where that takes several chunks of columns,
    the backward pass makes each again instead of keeping them all.
    """
    rows, columns = target.shape
    size = min(columns, max(1, CHUNK_ELEMENTS // (rows * matrix.shape[1])))
    count = -(-columns // size)
    size = -(-columns // count)  # even chunks waste least
    padding = ((0, 0), (0, count * size - columns))
    matrix = matrix.astype(hidden.dtype)

    def chunked(x):
        x = jnp.pad(x, padding + ((0, 0),) * (x.ndim - 2))
        return x.reshape(rows, count, size, *x.shape[2:]).swapaxes(0, 1)

    if count == 1:
        return _chunk(hidden, target, matrix, temperature)

    @jax.checkpoint
    def body(_, chunk):
        return None, _chunk(*chunk, matrix, temperature)

    _, found = jax.lax.scan(body, None, (chunked(hidden), chunked(target)))
    logp, entropy = (x.swapaxes(0, 1).reshape(rows, count * size)[:, :columns] for x in found)
    return logp, entropy


def response_logprobs(
    params: decoder.Params,
    tokens: Array,
    prompt_length: Array,
    response_mask: Array,
    *,
    model: ModelConfig,
    temperature: float,
    shard: decoder.Shard = decoder.no_shard,
) -> tuple[Array, Array]:
    """Log-probs and entropies of the response tokens, f32[B, R] each, 0 outside the mask.

    tokens: i32[B, P + R], prompts right-aligned in the first P columns; prompt_length: i32[B]; response_mask: bool[B, R].
    Positions count from the first prompt token, as the sampler's do.
    """
    responses = response_mask.shape[1]
    columns = tokens.shape[1] - responses
    start = columns - prompt_length[:, None]
    index = jnp.arange(tokens.shape[1])
    valid = (index >= start) & ((index < columns) | jnp.pad(response_mask, ((0, 0), (columns, 0))))
    positions = jnp.maximum(index - start, 0)
    # the last column's hidden state predicts nothing
    hidden = decoder.hidden_states(model, params, tokens[:, :-1], positions[:, :-1], valid[:, :-1], shard)
    logp, entropy = token_logprobs(
        hidden[:, columns - 1 :], tokens[:, columns:], decoder.unembed_matrix(model, params), temperature
    )
    return jnp.where(response_mask, logp, 0.0), jnp.where(response_mask, entropy, 0.0)
