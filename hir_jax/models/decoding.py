"""Decoding with a cache: a column of every row at a time, over the keys and values of prompts that rows share.

Letters as in `models.decoder`, and N prompts of B / N rows each.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hir_jax.models import attention, decoder
from hir_jax.models.config import ModelConfig

Cache = tuple[tuple[jax.Array, jax.Array], ...]  # per layer (k, v), each dtype[B, Hkv, S, Dh]


def unstack_layers(config: ModelConfig, params: decoder.Params) -> decoder.Params:
    """The same parameters as `decode_step` takes them: `layers` a tuple of L dicts, their matrices laid out [out, in].

    Matrices that read the same input are one: `qkv` [Hkv, G + 2, Dh, D] (its G query heads, then k and v, by key head) and
    `gate_up` [2, F, D], so that a product of few rows has as many outputs as can be; no axis that a mesh splits is joined.
    """
    heads = (config.num_kv_heads, -1, config.head_dim)

    def join(layer):
        turned = {name: layer[name].T for name in ("q", "k", "v", "o", "gate", "up", "down")}
        qkv = [turned[name].reshape(*heads, config.hidden_size) for name in "qkv"]
        joined = {"qkv": jnp.concatenate(qkv, axis=1), "gate_up": jnp.stack([turned["gate"], turned["up"]])}
        if config.attention_bias:
            biases = [layer[f"{name}_bias"].reshape(heads) for name in "qkv"]
            joined["qkv_bias"] = jnp.concatenate(biases, axis=1)
        kept = {name: layer[name] for name in ("attn_norm", "mlp_norm", "q_norm", "k_norm") if name in layer}
        return kept | joined | {"o": turned["o"], "down": turned["down"]}

    layers = (join(jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])) for i in range(config.num_layers))
    return params | {"layers": tuple(layers)}


def prefill(
    config: ModelConfig,
    params: decoder.Params,
    tokens: jax.Array,
    positions: jax.Array,
    valid: jax.Array,
    shard: decoder.Shard = decoder.no_shard,
) -> tuple[jax.Array, Cache]:
    """Runs right-aligned prompts, i32[N, P]; parameters are stacked.

    Returns the hidden states of the last column after the final norm, dtype[N, D], and the cache, a tuple over layers
    of (k, v), each dtype[N, Hkv, P, Dh].
    """
    x, (k, v) = decoder.run_layers(config, params, tokens, positions, valid, shard, keep_cache=True)
    hidden = decoder.rms_norm(x[:, -1], params["final_norm"], config.rms_norm_eps)
    return hidden, tuple((k[i], v[i]) for i in range(config.num_layers))


def empty_cache(config: ModelConfig, rows: int, columns: int) -> Cache:
    """Keys and values of `rows` responses of which nothing has been read yet, `columns` places each."""
    place = jnp.zeros((rows, config.num_kv_heads, columns, config.head_dim), config.compute_dtype)
    return ((place, place),) * config.num_layers


def widen_cache(cache: Cache, columns: int) -> Cache:
    """The same with `columns` places a row."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, columns - x.shape[2]), (0, 0))), cache)


def _attend_one(q: jax.Array, prompt, prompt_bias: jax.Array, own, own_bias: jax.Array) -> jax.Array:
    """Softmax attention of one column to its prompt's keys and values, which S rows share, and to its own.

    q: dtype[B, Hkv, G, Dh], scaled; prompt: k and v, dtype[N, Hkv, P, Dh], with B = N * S; own: dtype[B, Hkv, T, Dh];
    biases: f32[N, P] and [B, T]. Returns dtype[B, Hkv, G, Dh]. The queries that meet a prompt's key head are the rows of
    one matrix: no expanded copy, and P columns are read N times, not B times. The own scores are made as keys @ queries,
    which is faster than queries @ keys for a few queries on CPU; the barrier keeps XLA from turning it round.
    """
    count, samples = prompt[0].shape[0], q.shape[0] // prompt[0].shape[0]
    num_kv, group = q.shape[1:3]

    def by_prompt(x):  # [B, Hkv, G, X] -> [N, Hkv, S * G, X]
        x = x.reshape(count, samples, num_kv, group, x.shape[-1]).swapaxes(1, 2)
        return x.reshape(count, num_kv, samples * group, x.shape[-1])

    def by_row(x):  # and back
        x = x.reshape(count, num_kv, samples, group, x.shape[-1]).swapaxes(1, 2)
        return x.reshape(count * samples, num_kv, group, x.shape[-1])

    shared = jnp.einsum("nkmd,nkpd->nkmp", by_prompt(q), prompt[0], preferred_element_type=jnp.float32)
    shared = by_row(shared + prompt_bias[:, None, None])
    alone = jnp.einsum("bktd,bkgd->bktg", own[0], q, preferred_element_type=jnp.float32)
    alone = jax.lax.optimization_barrier(alone).swapaxes(2, 3) + own_bias[:, None, None]
    top = jnp.maximum(shared.max(-1, keepdims=True), alone.max(-1, keepdims=True))
    shared, alone = jnp.exp(shared - top), jnp.exp(alone - top)
    total = shared.sum(-1, keepdims=True) + alone.sum(-1, keepdims=True)
    dtype = q.dtype
    attended = by_row(jnp.einsum("nkmp,nkpd->nkmd", by_prompt(shared.astype(dtype)), prompt[1]))
    attended += jnp.einsum("bkgt,bktd->bkgd", alone.astype(dtype), own[1])
    return (attended / total).astype(dtype)


def _decode_layer(
    config: ModelConfig, layer: decoder.Params, x: jax.Array, rope, column, prompt, prompt_bias, own, own_bias, shard
):
    """One layer for one column of every row; x: dtype[D, B], rows last, as the products of `decoder.thin_matmul` give it."""

    def norm(x, name):
        return decoder.rms_norm(x, layer[name], config.rms_norm_eps, axis=-2)

    def turn(x, factor=1.0):
        """`decoder._rotate` times a factor, of [..., Dh, B]; a reversal costs less than a concatenation here."""
        halves = x.astype(jnp.float32).reshape(*x.shape[:-2], 2, -1, x.shape[-1])
        cos, sin = (table * factor for table in rope)
        turned = halves * cos + jnp.flip(halves, -3) * jnp.stack([-sin, sin])
        return turned.reshape(x.shape).astype(x.dtype)

    heads = decoder.thin_matmul(layer["qkv"], norm(x, "attn_norm"))  # [Hkv, G + 2, Dh, B]
    if config.attention_bias:
        heads += layer["qkv_bias"][..., None].astype(x.dtype)
    q, k, v = heads[:, :-2], heads[:, -2], heads[:, -1]
    if config.qk_norm:
        q, k = norm(q, "q_norm"), norm(k, "k_norm")
    q, k = turn(q, config.head_dim**-0.5), turn(k)
    q = shard(jnp.moveaxis(q, -1, 0), ("batch", "kv_heads", None, None))

    def write(cache, new):
        cache = jax.lax.dynamic_update_slice(cache, jnp.moveaxis(new, -1, 0)[:, :, None], (0, 0, column, 0))
        return shard(cache, ("batch", "kv_heads", None, None))

    own = write(own[0], k), write(own[1], v)
    attended = _attend_one(q, prompt, prompt_bias, own, own_bias).reshape(x.shape[1], -1)
    x = shard(x + decoder.thin_matmul(layer["o"], shard(attended, ("batch", "heads")), 1), ("embed", "batch"))
    gate, up = shard(decoder.thin_matmul(layer["gate_up"], norm(x, "mlp_norm")), (None, "mlp", "batch"))
    return shard(x + decoder.thin_matmul(layer["down"], jax.nn.silu(gate) * up), ("embed", "batch")), own


def decode_step(
    config: ModelConfig,
    params: decoder.Params,
    token: jax.Array,
    position: jax.Array,
    column: jax.Array,
    prompt: Cache,
    prompt_valid: jax.Array,
    own: Cache,
    own_valid: jax.Array,
    shard: decoder.Shard = decoder.no_shard,
) -> tuple[jax.Array, Cache]:
    """One token per row: hidden states after the final norm, dtype[B, D], and the own cache with column `column` written.

    params: from `unstack_layers`; token, position: i32[B]; column: i32[], the column of `own` that becomes this token's;
    prompt: from `prefill`, of N prompts of which each has B / N rows in succession; prompt_valid: bool[N, P];
    own_valid: bool[B, T], the own columns that may be attended, `column` among them. Layers are unrolled so that each
    layer's cache is its own buffer, which dynamic_update_slice updates in place in a while_loop; a scan over layers would
    copy them all.
    """
    rope = tuple(table[:, 0].T for table in decoder.rope_tables(config, position))  # [Dh / 2, B]
    biases = attention.mask_bias(prompt_valid), attention.mask_bias(own_valid)
    x = shard(decoder.embed(config, params, token[:, None], shard)[:, 0].T, ("embed", "batch"))
    written = []
    for layer, shared, alone in zip(params["layers"], prompt, own, strict=True):
        x, alone = _decode_layer(config, layer, x, rope, column, shared, biases[0], alone, biases[1], shard)
        written.append(alone)
    return decoder.rms_norm(x.T, params["final_norm"], config.rms_norm_eps), tuple(written)
