"""Decoding with a cache: a column of every row at a time, over the keys and values of prompts that rows share.

Letters as in `model.decoder`, and N prompts of B / N rows each.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange

from hir_jax.model import decoder
from hir_jax.model.config import MATRICES, ModelConfig
from hir_jax.model.decode_attention import Filled, attend_one, cache_columns
from hir_jax.types import Array

Cache = tuple[tuple[Array, Array], ...]  # per layer (k, v), each dtype[B, Hkv, S, Dh]


def unstack_layers(config: ModelConfig, params: decoder.Params) -> decoder.Params:
    """The same parameters as `decode_step` takes them: `layers` a tuple of L dicts, their matrices laid out [out, in].

    LoRA adapters are merged with their matrices here, where a copy is made anyhow: once a rollout, so that a token costs no
    more than without them. In bfloat16 a change below half a unit in the last place of its weight is lost (prompts, and the
    learner, apply adapters without merging); the log-probs belong to the merged weights that were sampled from, so the ratio
    corrects it.

    Matrices that read the same input are one: `qkv` [Hkv, G + 2, Dh, D] (its G query heads, then k and v, by key head) and
    `gate_up` [2, F, D], so that a product of few rows has as many outputs as can be; no axis that a mesh splits is joined.
    """
    heads = {"k": config.num_kv_heads, "d": config.head_dim}

    def join(layer):
        def turn(name):
            return decoder.matrix(config, layer, name).astype(layer[name].dtype).T

        turned = {name: turn(name) for name in MATRICES}
        qkv = [rearrange(turned[name], "(k g d) e -> k g d e", **heads) for name in "qkv"]
        joined = {"qkv": jnp.concatenate(qkv, axis=1), "gate_up": jnp.stack([turned["gate"], turned["up"]])}
        if config.attention_bias:
            biases = [rearrange(layer[f"{name}_bias"], "(k g d) -> k g d", **heads) for name in "qkv"]
            joined["qkv_bias"] = jnp.concatenate(biases, axis=1)
        kept = {name: layer[name] for name in ("attn_norm", "mlp_norm", "q_norm", "k_norm") if name in layer}
        return kept | joined | {"o": turned["o"], "down": turned["down"]}

    layers = (join(jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])) for i in range(config.num_layers))
    return params | {"layers": tuple(layers)}


def prefill(
    config: ModelConfig,
    params: decoder.Params,
    tokens: Array,
    positions: Array,
    valid: Array,
    shard: decoder.Shard = decoder.no_shard,
) -> tuple[Array, Cache]:
    """Runs right-aligned prompts, i32[N, P]; parameters are stacked.

    Returns the hidden states of the last column after the final norm, dtype[N, D], and the cache, a tuple over layers
    of (k, v), each dtype[N, Hkv, P, Dh], with more columns on the left where the kernel for decoding wants them.
    """
    x, (k, v) = decoder.run_layers(config, params, tokens, positions, valid, shard, keep_cache=True)
    hidden = decoder.rms_norm(x[:, -1], params["final_norm"], config.rms_norm_eps)
    columns = tokens.shape[1]
    left = cache_columns(config.attention, columns) - columns
    k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (left, 0), (0, 0))) if left else x for x in (k, v))
    return hidden, tuple((k[i], v[i]) for i in range(config.num_layers))


def empty_cache(config: ModelConfig, rows: int, columns: int) -> Cache:
    """Keys and values of `rows` responses of which nothing has been read yet, `columns` places each, or a few more."""
    columns = cache_columns(config.attention, columns)
    place = jnp.zeros((rows, config.num_kv_heads, columns, config.head_dim), config.compute_dtype)
    return ((place, place),) * config.num_layers


def widen_cache(config: ModelConfig, cache: Cache, columns: int) -> Cache:
    """The same with `columns` places a row, or a few more."""
    columns = cache_columns(config.attention, columns)
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, columns - x.shape[2]), (0, 0))), cache)


def _decode_layer(
    config: ModelConfig, layer: decoder.Params, x: Array, rope, prompt, prompt_filled, own, own_filled, shard
):
    """One layer for one column of every row; x: dtype[D, B], rows last, as the products of `decoder.thin_matmul` give it.

    A body of its own beside the decoder's: with few rows those products take 1 / 1.4 to 1 / 1.9 of the time of x @ matrix on a
    CPU, and q, k, v and gate, up are one product each.
    """

    def norm(x, name):
        return decoder.rms_norm(x, layer[name], config.rms_norm_eps, axis=-2)

    def turn(x, factor=1.0):
        """`decoder._rotate` times a factor, of [..., Dh, B]; a reversal costs less than a concatenation here."""
        halves = rearrange(x.astype(jnp.float32), "... (two d) b -> ... two d b", two=2)
        cos, sin = (table * factor for table in rope)
        turned = halves * cos + jnp.flip(halves, -3) * jnp.stack([-sin, sin])
        return rearrange(turned, "... two d b -> ... (two d) b").astype(x.dtype)

    heads = decoder.thin_matmul(layer["qkv"], norm(x, "attn_norm"))  # [Hkv, G + 2, Dh, B]
    if config.attention_bias:
        heads += layer["qkv_bias"][..., None].astype(x.dtype)
    q, k, v = heads[:, :-2], heads[:, -2], heads[:, -1]
    if config.qk_norm:
        q, k = norm(q, "q_norm"), norm(k, "k_norm")
    q, k = turn(q, config.head_dim**-0.5), turn(k)
    q = shard(rearrange(q, "k g d b -> b k g d"), ("batch", "kv_heads", None, None))

    def write(cache, new):
        cache = jax.lax.dynamic_update_slice(cache, rearrange(new, "k d b -> b k 1 d"), (0, 0, own_filled.end, 0))
        return shard(cache, ("batch", "kv_heads", None, None))

    own = write(own[0], k), write(own[1], v)
    attended = attend_one(config.attention, q, prompt, prompt_filled, own, own_filled, shard)
    attended = rearrange(attended, "b k g d -> b (k g d)")
    x = shard(x + decoder.thin_matmul(layer["o"], shard(attended, ("batch", "heads")), 1), ("embed", "batch"))
    gate, up = shard(decoder.thin_matmul(layer["gate_up"], norm(x, "mlp_norm")), (None, "mlp", "batch"))
    return shard(x + decoder.thin_matmul(layer["down"], jax.nn.silu(gate) * up), ("embed", "batch")), own


def decode_step(
    config: ModelConfig,
    params: decoder.Params,
    token: Array,
    position: Array,
    column: Array,
    prompt: Cache,
    prompt_length: Array,
    own: Cache,
    own_count: Array,
    shard: decoder.Shard = decoder.no_shard,
) -> tuple[Array, Cache]:
    """One token per row: hidden states after the final norm, dtype[B, D], and the own cache with column `column` written.

    params: from `unstack_layers`; token, position: i32[B]; column: i32[], the column of `own` that becomes this token's;
    prompt: from `prefill`, of N prompts of which each has B / N rows in succession; prompt_length: i32[N];
    own_count: i32[B], how many own columns up to `column`, in the ring, may be attended. Layers are unrolled so that each
    layer's cache is its own buffer, which dynamic_update_slice updates in place in a while_loop; a scan over layers would
    copy them all.
    """
    rope = tuple(table[:, 0].T for table in decoder.rope_tables(config, position))  # [Dh / 2, B]
    prompt_filled = Filled(jnp.int32(prompt[0][0].shape[2] - 1), prompt_length)
    own_filled = Filled(column, own_count)
    x = shard(decoder.embed(config, params, token[:, None], shard)[:, 0].T, ("embed", "batch"))
    written = []
    for layer, shared, alone in zip(params["layers"], prompt, own, strict=True):
        x, alone = _decode_layer(config, layer, x, rope, shared, prompt_filled, alone, own_filled, shard)
        written.append(alone)
    return decoder.rms_norm(x.T, params["final_norm"], config.rms_norm_eps), tuple(written)
