"""One decoder for Llama, Qwen2 and Qwen3.

Flax NNX modules declare and initialise the parameters; everything else is a pure function of (config, plain dict).
The tree, weights laid out [in, out] and stacked over the L layers:

    embed [V, D]   final_norm [D]   unembed [D, V] (untied only)
    layers: attn_norm, mlp_norm [L, D]   q [L, D, Hq*Dh]   k, v [L, D, Hkv*Dh]   o [L, Hq*Dh, D]
            gate, up [L, D, F]   down [L, F, D]   q_bias, k_bias, v_bias (Qwen2)   q_norm, k_norm [L, Dh] (Qwen3)

Letters: B rows, T columns, S cache columns, P prompt columns, D hidden, F intermediate, V words, L layers, Hq query
heads, Hkv key/value heads, G = Hq / Hkv, Dh head size. "dtype" stands for the compute dtype of the config.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hir_jax.models.config import ModelConfig, RopeScaling

__all__ = [
    "Decoder", "Layer", "ModelConfig", "RopeScaling", "abstract_params", "decode_step", "expand_cache",
    "hidden_states", "init", "logits", "param_axes", "prefill", "unembed_matrix", "unstack_layers",
]  # fmt: skip

Params = dict[str, Any]
Cache = tuple[tuple[jax.Array, jax.Array], ...]  # per layer (k, v), each dtype[B, Hkv, S, Dh]
Shard = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]
Product = Callable[..., jax.Array]  # _matmul or _thin_matmul

MASKED = -1e30  # finite: a row of padding attends evenly to all columns instead of giving NaN


def no_shard(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """The `shard` of a single device: leaves `x` as it is."""
    return x


# ---- parameters --------------------------------------------------------------------------------------------------


def _layer_axes(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    axes = {
        "attn_norm": ("embed",),
        "q": ("embed", "heads"),
        "k": ("embed", "kv_heads"),
        "v": ("embed", "kv_heads"),
        "o": ("heads", "embed"),
        "mlp_norm": ("embed",),
        "gate": ("embed", "mlp"),
        "up": ("embed", "mlp"),
        "down": ("mlp", "embed"),
    }
    if config.attention_bias:
        axes |= {"q_bias": ("heads",), "k_bias": ("kv_heads",), "v_bias": ("kv_heads",)}
    if config.qk_norm:
        axes |= {"q_norm": ("head_dim",), "k_norm": ("head_dim",)}
    return axes


def param_axes(config: ModelConfig) -> Params:
    """The parameter tree with the logical axis names of each array in place of the array.

    Names: "layers", "vocab", "embed" (D), "heads" (Hq*Dh), "kv_heads" (Hkv*Dh), "head_dim" (Dh), "mlp" (F). The rules
    from these names to mesh axes live in `parallel/`.
    """
    axes = {
        "embed": ("vocab", "embed"),
        "layers": {name: ("layers", *names) for name, names in _layer_axes(config).items()},
        "final_norm": ("embed",),
    }
    if not config.tie_embeddings:
        axes["unembed"] = ("embed", "vocab")
    return axes


def _shape(config: ModelConfig, axes: tuple[str, ...]) -> tuple[int, ...]:
    sizes = {
        "vocab": config.vocab_size,
        "embed": config.hidden_size,
        "heads": config.num_heads * config.head_dim,
        "kv_heads": config.num_kv_heads * config.head_dim,
        "head_dim": config.head_dim,
        "mlp": config.intermediate_size,
        "layers": config.num_layers,
    }
    return tuple(sizes[name] for name in axes)


def _param(config: ModelConfig, name: str, axes: tuple[str, ...], dtype, rngs: nnx.Rngs) -> nnx.Param:
    shape = _shape(config, axes)
    if name.endswith("_norm"):
        return nnx.Param(jnp.ones(shape, dtype))
    if name.endswith("_bias"):
        return nnx.Param(jnp.zeros(shape, dtype))
    scale = config.hidden_size**-0.5 if name == "embed" else shape[0] ** -0.5  # matrices are [in, out]
    return nnx.Param((scale * jax.random.normal(rngs.params(), shape)).astype(dtype))


class Layer(nnx.Module):
    """The parameters of one layer: normal matrices of variance 1 / inputs, norms of one, biases of zero."""

    def __init__(self, config: ModelConfig, param_dtype, rngs: nnx.Rngs):
        for name, axes in _layer_axes(config).items():
            setattr(self, name, _param(config, name, axes, param_dtype, rngs))


class Decoder(nnx.Module):
    """All parameters; `layers` is one Layer whose arrays have a leading axis of L, made by vmap over L keys."""

    def __init__(self, config: ModelConfig, param_dtype, rngs: nnx.Rngs):
        def layer(key):
            return Layer(config, param_dtype, nnx.Rngs(params=key))

        for name, axes in param_axes(config).items():
            if name != "layers":
                setattr(self, name, _param(config, name, axes, param_dtype, rngs))
        self.layers = nnx.vmap(layer)(jax.random.split(rngs.params(), config.num_layers))


def init(config: ModelConfig, key: jax.Array, param_dtype=jnp.float32) -> Params:
    """Random parameters as a plain nested dict (see the module's docstring for names and shapes). Jit-able."""
    _, state = nnx.split(Decoder(config, param_dtype, nnx.Rngs(params=key)))
    return nnx.to_pure_dict(state)


def abstract_params(config: ModelConfig, param_dtype=jnp.float32) -> Params:
    """The parameter tree of jax.ShapeDtypeStruct: nothing is allocated."""
    return jax.eval_shape(partial(init, config, param_dtype=param_dtype), jax.random.key(0))


def unstack_layers(params: Params) -> Params:
    """The same parameters as `decode_step` takes them: `layers` a tuple of L dicts, their matrices laid out [out, in]."""
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    layers = tuple(jax.tree.map(lambda leaf, i=i: leaf[i].T, params["layers"]) for i in range(count))
    return params | {"layers": layers}


# ---- parts of a layer --------------------------------------------------------------------------------------------


def _rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale over the last axis, in float32; the result has x's dtype."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * inverse * scale.astype(jnp.float32)).astype(x.dtype)


def rope_frequencies(config: ModelConfig) -> jax.Array:
    """f32[Dh/2], radians per position: theta^(-2i/Dh), stretched as Llama 3 does where the config says so."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_max_position * frequencies / (2 * jnp.pi)  # full turns within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)  # 1: as it was, 0: divided by the factor
    return frequencies * (kept + (1.0 - kept) / scaling.factor)


def _rope_tables(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin, f32[..., 1, Dh/2], of i32[...] positions; the axis of one is that of the heads."""
    angles = positions.astype(jnp.float32)[..., None, None] * rope_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns channel i with channel i + Dh/2 (the Hugging Face order of channels). x: dtype[..., H, Dh]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _matmul(x: jax.Array, matrix: jax.Array, **options) -> jax.Array:
    """x @ matrix over the last axis, as a product of two matrices: with more axes XLA's CPU backend transposes whole
    activations for the gradient of the matrix (110 of 340 ms of SmolLM2's MLP at 8 x 256)."""
    flat = jnp.matmul(x.reshape(-1, x.shape[-1]), matrix.astype(x.dtype), **options)
    return flat.reshape(*x.shape[:-1], matrix.shape[-1])


def _thin_matmul(x: jax.Array, matrix: jax.Array, **options) -> jax.Array:
    """x @ matrix.T for few rows, dtype[B, in] and [out, in], as the product matrix @ x.T: on CPU 1.4 to 1.9 times faster
    than x @ matrix with 32 rows. The barrier keeps XLA from turning it round again."""
    turned = jax.lax.dot_general(matrix.astype(x.dtype), x, (((1,), (1,)), ((), ())), **options)
    return jax.lax.optimization_barrier(turned).T


def _dense(x: jax.Array, layer: Params, name: str, product: Product = _matmul) -> jax.Array:
    y = product(x, layer[name])
    bias = layer.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(x.dtype)


def _qkv(
    config: ModelConfig, layer: Params, x: jax.Array, rope, product: Product = _matmul
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q [..., Hq, Dh], k and v [..., Hkv, Dh] of dtype[..., D], normalised and rotated."""
    heads = (*x.shape[:-1], -1, config.head_dim)
    q, k, v = (_dense(x, layer, name, product).reshape(heads) for name in ("q", "k", "v"))
    if config.qk_norm:
        q = _rms_norm(q, layer["q_norm"], config.rms_norm_eps)
        k = _rms_norm(k, layer["k_norm"], config.rms_norm_eps)
    return _rotate(q, *rope), _rotate(k, *rope), v


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    """Softmax attention of grouped queries, float32 inside, no repeated keys or values.

    q: dtype[B, T, Hq, Dh]; k, v: dtype[B, Hkv, S, Dh]; bias: f32[B, T, S], 0 or MASKED. Returns dtype[B, T, Hq*Dh].
    The queries that share a key head are rows of one matrix, so that both products are plain batched ones.
    """
    rows, columns, num_heads, head_dim = q.shape
    num_kv, length = k.shape[1:3]
    group = num_heads // num_kv
    q = (q * head_dim**-0.5).reshape(rows, columns, num_kv, group, head_dim).transpose(0, 2, 3, 1, 4)
    q = q.reshape(rows, num_kv, group * columns, head_dim)
    scores = jnp.einsum("bkmd,bksd->bkms", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(rows, num_kv, group, columns, length) + bias[:, None, None]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(rows, num_kv, group * columns, length)
    attended = jnp.einsum("bkms,bksd->bkmd", weights, v).reshape(rows, num_kv, group, columns, head_dim)
    return attended.transpose(0, 3, 1, 2, 4).reshape(rows, columns, num_heads * head_dim)


def _attend_one(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    """`_attend` for one column: q: dtype[B, Hq, Dh]; k, v: dtype[B, Hkv, S, Dh]; bias: f32[B, S]. Gives dtype[B, Hq*Dh].

    The scores are made as keys @ queries, which is half the time of queries @ keys for a few queries on CPU; the barrier
    keeps XLA from turning it round again.
    """
    rows, num_heads, head_dim = q.shape
    q = (q * head_dim**-0.5).reshape(rows, k.shape[1], -1, head_dim)
    scores = jnp.einsum("bksd,bkgd->bksg", k, q, preferred_element_type=jnp.float32)
    scores = jax.lax.optimization_barrier(scores).swapaxes(2, 3) + bias[:, None, None]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgs,bksd->bkgd", weights, v).reshape(rows, num_heads * head_dim)


def _mlp(
    config: ModelConfig,
    layer: Params,
    x: jax.Array,
    shard: Shard,
    axes: tuple[str, ...],
    product: Product = _matmul,
) -> jax.Array:
    """The gated MLP with its norm and residual. x: dtype[*axes, D]."""
    y = _rms_norm(x, layer["mlp_norm"], config.rms_norm_eps)
    inner = jax.nn.silu(_dense(y, layer, "gate", product)) * _dense(y, layer, "up", product)
    inner = shard(inner, (*axes, "mlp"))
    return shard(x + _dense(inner, layer, "down", product), (*axes, "embed"))


def _embed(config: ModelConfig, params: Params, tokens: jax.Array) -> jax.Array:
    return params["embed"][tokens].astype(config.compute_dtype)


# ---- full pass ---------------------------------------------------------------------------------------------------


def _layer_pass(config: ModelConfig, shard: Shard, layer: Params, x: jax.Array, rope, bias: jax.Array):
    """One layer over dtype[B, T, D]; also returns its keys and values, dtype[B, Hkv, T, Dh]."""
    axes = ("batch", "length")
    y = _rms_norm(x, layer["attn_norm"], config.rms_norm_eps)
    q, k, v = _qkv(config, layer, y, rope)
    q = shard(q, (*axes, "heads", None))
    k, v = (shard(t.swapaxes(1, 2), ("batch", "kv_heads", "length", None)) for t in (k, v))
    attended = shard(_attend(q, k, v, bias), (*axes, "heads"))
    x = shard(x + _dense(attended, layer, "o"), (*axes, "embed"))
    return _mlp(config, layer, x, shard, axes), (k, v)


def _mask_bias(mask: jax.Array) -> jax.Array:
    """f32 of bool: 0 where attention is allowed, MASKED elsewhere (adding is faster than selecting on CPU)."""
    return jnp.where(mask, 0.0, MASKED)


def _causal_bias(valid: jax.Array) -> jax.Array:
    """f32[B, T, T]: column t may attend to column s: not a later one, not padding."""
    columns = jnp.arange(valid.shape[1])
    return _mask_bias((columns[:, None] >= columns[None, :]) & valid[:, None, :])


def _run(config: ModelConfig, params: Params, tokens, positions, valid, shard: Shard, keep_cache: bool):
    """Embedding and all layers: (dtype[B, T, D] before the final norm, stacked (k, v) [L, B, Hkv, T, Dh] or None)."""
    rope, bias = _rope_tables(config, positions), _causal_bias(valid)

    def body(x, layer):
        x, cache = _layer_pass(config, shard, layer, x, rope, bias)
        return x, (cache if keep_cache else None)

    if config.remat != "none":
        saved = jax.checkpoint_policies.dots_saveable if config.remat == "dots" else None
        body = jax.checkpoint(body, policy=saved, prevent_cse=False)  # a scan already keeps XLA from merging the two
    x = shard(_embed(config, params, tokens), ("batch", "length", "embed"))
    return jax.lax.scan(body, x, params["layers"])


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    valid: jax.Array,
    shard: Shard = no_shard,
) -> jax.Array:
    """Hidden states after the final norm, dtype[B, T, D], of a causal pass.

    tokens, positions: i32[B, T]; valid: bool[B, T], False on padding, on either side. Padding is attended by nobody;
    its own hidden states are finite and mean nothing. Parameters are stacked, as `init` gives them. `shard(x, axes)`
    puts a sharding constraint on an activation by the logical names of its axes ("batch", "length", "embed", "heads",
    "kv_heads", "mlp", "vocab", or None).
    """
    x, _ = _run(config, params, tokens, positions, valid, shard, keep_cache=False)
    return _rms_norm(x, params["final_norm"], config.rms_norm_eps)


def unembed_matrix(config: ModelConfig, params: Params) -> jax.Array:
    """The output projection, param_dtype[D, V]; a transposed view of the embeddings where they are tied."""
    return params["embed"].T if config.tie_embeddings else params["unembed"]


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """f32[..., V] of dtype[..., D] hidden states after the final norm; products accumulate in float32."""
    if config.tie_embeddings and hidden.ndim == 2:
        return _thin_matmul(hidden, params["embed"], preferred_element_type=jnp.float32)
    return _matmul(hidden, unembed_matrix(config, params), preferred_element_type=jnp.float32)


# ---- decoding ----------------------------------------------------------------------------------------------------


def prefill(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    valid: jax.Array,
    shard: Shard = no_shard,
) -> tuple[jax.Array, Cache]:
    """Runs right-aligned prompts, i32[N, P]; parameters are stacked.

    Returns the hidden states of the last column after the final norm, dtype[N, D], and the cache, a tuple over layers
    of (k, v), each dtype[N, Hkv, P, Dh].
    """
    x, (k, v) = _run(config, params, tokens, positions, valid, shard, keep_cache=True)
    hidden = _rms_norm(x[:, -1], params["final_norm"], config.rms_norm_eps)
    return hidden, tuple((k[i], v[i]) for i in range(config.num_layers))


def expand_cache(cache: Cache, repeats: int, columns: int) -> Cache:
    """Each row `repeats` times (row n becomes rows n*repeats ...), with `columns` empty columns behind: [N, ., P, .]
    becomes [N*repeats, ., P + columns, .]."""

    def expand(x):
        return jnp.pad(jnp.repeat(x, repeats, axis=0), ((0, 0), (0, 0), (0, columns), (0, 0)))

    return jax.tree.map(expand, cache)


def decode_step(
    config: ModelConfig,
    params: Params,
    token: jax.Array,
    position: jax.Array,
    column: jax.Array,
    valid: jax.Array,
    cache: Cache,
    shard: Shard = no_shard,
) -> tuple[jax.Array, Cache]:
    """One token per row: hidden states after the final norm, dtype[B, D], and the cache with column `column` written.

    params: from `unstack_layers`; token, position: i32[B]; column: i32[], the cache column of this token; valid:
    bool[B, S], the columns that may be attended, `column` among them. Layers are unrolled so that each layer's cache is
    its own buffer, which dynamic_update_slice updates in place in a while_loop; a scan over layers would copy them all.
    """
    rope, bias = _rope_tables(config, position), _mask_bias(valid)
    x = shard(_embed(config, params, token), ("batch", "embed"))
    written = []
    for layer, (keys, values) in zip(params["layers"], cache, strict=True):
        y = _rms_norm(x, layer["attn_norm"], config.rms_norm_eps)
        q, k, v = _qkv(config, layer, y, rope, _thin_matmul)
        keys = jax.lax.dynamic_update_slice(keys, k[:, :, None], (0, 0, column, 0))
        values = jax.lax.dynamic_update_slice(values, v[:, :, None], (0, 0, column, 0))
        keys, values = (shard(t, ("batch", "kv_heads", None, None)) for t in (keys, values))
        written.append((keys, values))
        attended = shard(_attend_one(q, keys, values, bias), ("batch", "heads"))
        x = shard(x + _dense(attended, layer, "o", _thin_matmul), ("batch", "embed"))
        x = _mlp(config, layer, x, shard, ("batch",), _thin_matmul)
    return _rms_norm(x, params["final_norm"], config.rms_norm_eps), tuple(written)
