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
    "Decoder", "Layer", "ModelConfig", "RopeScaling", "abstract_params", "decode_step", "empty_cache",
    "hidden_states", "init", "logits", "param_axes", "prefill", "unembed_matrix", "unstack_layers", "widen_cache",
]  # fmt: skip

Params = dict[str, Any]
Cache = tuple[tuple[jax.Array, jax.Array], ...]  # per layer (k, v), each dtype[B, Hkv, S, Dh]
Shard = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]

BLOCK = 128  # queries, at least, of a block that attends to its own range of keys
MOST_BLOCKS = 8  # of a pass; each is compiled
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


def unstack_layers(config: ModelConfig, params: Params) -> Params:
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


# ---- parts of a layer --------------------------------------------------------------------------------------------


def _rms_norm(x: jax.Array, scale: jax.Array, eps: float, axis: int = -1) -> jax.Array:
    """x / rms(x) * scale over one axis, in float32; the result has x's dtype."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=axis, keepdims=True) + eps)
    behind = x.ndim - 1 - axis % x.ndim
    return (x32 * inverse * scale.astype(jnp.float32).reshape(-1, *(1,) * behind)).astype(x.dtype)


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


def _thin(matrix: jax.Array, x: jax.Array, contracted: int = 0, **options) -> jax.Array:
    """matrix [..., in] times few rows, dtype[in, B] (or [B, in] with `contracted` 1): dtype[..., B]. As matrix @ x it takes
    1 / 1.4 to 1 / 1.9 of the time of x.T @ matrix.T on CPU; the barrier keeps XLA from turning it round."""
    axes = (((matrix.ndim - 1,), (contracted,)), ((), ()))
    return jax.lax.optimization_barrier(jax.lax.dot_general(matrix.astype(x.dtype), x, axes, **options))


def _dense(x: jax.Array, layer: Params, name: str) -> jax.Array:
    y = _matmul(x, layer[name])
    bias = layer.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(x.dtype)


def _qkv(config: ModelConfig, layer: Params, x: jax.Array, rope) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q [..., Hq, Dh], k and v [..., Hkv, Dh] of dtype[..., D], normalised and rotated."""
    heads = (*x.shape[:-1], -1, config.head_dim)
    q, k, v = (_dense(x, layer, name).reshape(heads) for name in ("q", "k", "v"))
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


def _mlp(config: ModelConfig, layer: Params, x: jax.Array, shard: Shard) -> jax.Array:
    """The gated MLP with its norm and residual. x: dtype[B, T, D]."""
    y = _rms_norm(x, layer["mlp_norm"], config.rms_norm_eps)
    inner = jax.nn.silu(_dense(y, layer, "gate")) * _dense(y, layer, "up")
    inner = shard(inner, ("batch", "length", "mlp"))
    return shard(x + _dense(inner, layer, "down"), ("batch", "length", "embed"))


def _embed(config: ModelConfig, params: Params, tokens: jax.Array) -> jax.Array:
    return params["embed"][tokens].astype(config.compute_dtype)


# ---- full pass ---------------------------------------------------------------------------------------------------


def _attend_causal(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, window: int) -> jax.Array:
    """`_attend` of T queries to T keys, none later than itself nor `window` or more columns earlier, as `bias` says too.

    Blocks of queries leave out the keys that none of them may attend to: half of all for long sequences.
    """
    columns = q.shape[1]
    size = max(BLOCK, -(-columns // MOST_BLOCKS))
    blocks = []
    for start in range(0, columns, size):
        end, first = min(start + size, columns), max(0, start - window + 1) // 16 * 16
        blocks.append(_attend(q[:, start:end], k[:, :, first:end], v[:, :, first:end], bias[:, start:end, first:end]))
    return jnp.concatenate(blocks, axis=1)


def _layer_pass(config: ModelConfig, shard: Shard, layer: Params, x: jax.Array, rope, bias: jax.Array, window: int):
    """One layer over dtype[B, T, D]; also returns its keys and values, dtype[B, Hkv, T, Dh]."""
    axes = ("batch", "length")
    y = _rms_norm(x, layer["attn_norm"], config.rms_norm_eps)
    q, k, v = _qkv(config, layer, y, rope)
    q = shard(q, (*axes, "heads", None))
    k, v = (shard(t.swapaxes(1, 2), ("batch", "kv_heads", "length", None)) for t in (k, v))
    attended = shard(_attend_causal(q, k, v, bias, window), (*axes, "heads"))
    x = shard(x + _dense(attended, layer, "o"), (*axes, "embed"))
    return _mlp(config, layer, x, shard), (k, v)


def _mask_bias(mask: jax.Array) -> jax.Array:
    """f32 of bool: 0 where attention is allowed, MASKED elsewhere (adding is faster than selecting on CPU)."""
    return jnp.where(mask, 0.0, MASKED)


def _causal_bias(segments: jax.Array) -> jax.Array:
    """f32[B, T, T]: column t may attend to column s: not a later one, and of the same segment."""
    columns = jnp.arange(segments.shape[1])
    return _mask_bias((columns[:, None] >= columns[None, :]) & (segments[:, :, None] == segments[:, None, :]))


def _run(config: ModelConfig, params: Params, tokens, positions, segments, shard: Shard, keep_cache: bool, window=None):
    """Embedding and all layers: (dtype[B, T, D] before the final norm, stacked (k, v) [L, B, Hkv, T, Dh] or None)."""
    rope, bias = _rope_tables(config, positions), _causal_bias(segments)

    def body(x, layer):
        x, cache = _layer_pass(config, shard, layer, x, rope, bias, window or tokens.shape[1])
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
    segments: jax.Array,
    shard: Shard = no_shard,
    *,
    longest: int | None = None,
) -> jax.Array:
    """Hidden states after the final norm, dtype[B, T, D], of a causal pass.

    tokens, positions: i32[B, T]; segments: i32 or bool[B, T]: columns attend within their segment. Padding, on any
    side, is a segment of its own (0, or False where the rest is one sequence); its hidden states are finite and mean
    nothing. No other segment has more than `longest` columns (default: T), which spares work. Parameters are stacked,
    as `init` gives them. `shard(x, axes)` puts a sharding constraint on an activation by the logical names of its axes
    ("batch", "length", "embed", "heads", "kv_heads", "mlp", "vocab", or None).
    """
    x, _ = _run(config, params, tokens, positions, segments, shard, keep_cache=False, window=longest)
    return _rms_norm(x, params["final_norm"], config.rms_norm_eps)


def unembed_matrix(config: ModelConfig, params: Params) -> jax.Array:
    """The output projection, param_dtype[D, V]; a transposed view of the embeddings where they are tied."""
    return params["embed"].T if config.tie_embeddings else params["unembed"]


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """f32[..., V] of dtype[..., D] hidden states after the final norm; products accumulate in float32."""
    if config.tie_embeddings and hidden.ndim == 2:
        return _thin(params["embed"], hidden, 1, preferred_element_type=jnp.float32).T
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
    config: ModelConfig, layer: Params, x: jax.Array, rope, column, prompt, prompt_bias, own, own_bias, shard
):
    """One layer for one column of every row; x: dtype[D, B], rows last, as the products of `_thin` give it."""

    def norm(x, name):
        return _rms_norm(x, layer[name], config.rms_norm_eps, axis=-2)

    def turn(x, factor=1.0):
        """`_rotate` times a factor, of [..., Dh, B]; a reversal costs less than a concatenation here."""
        halves = x.astype(jnp.float32).reshape(*x.shape[:-2], 2, -1, x.shape[-1])
        cos, sin = (table * factor for table in rope)
        turned = halves * cos + jnp.flip(halves, -3) * jnp.stack([-sin, sin])
        return turned.reshape(x.shape).astype(x.dtype)

    heads = _thin(layer["qkv"], norm(x, "attn_norm"))  # [Hkv, G + 2, Dh, B]
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
    x = shard(x + _thin(layer["o"], shard(attended, ("batch", "heads")), 1), ("embed", "batch"))
    gate, up = shard(_thin(layer["gate_up"], norm(x, "mlp_norm")), (None, "mlp", "batch"))
    return shard(x + _thin(layer["down"], jax.nn.silu(gate) * up), ("embed", "batch")), own


def decode_step(
    config: ModelConfig,
    params: Params,
    token: jax.Array,
    position: jax.Array,
    column: jax.Array,
    prompt: Cache,
    prompt_valid: jax.Array,
    own: Cache,
    own_valid: jax.Array,
    shard: Shard = no_shard,
) -> tuple[jax.Array, Cache]:
    """One token per row: hidden states after the final norm, dtype[B, D], and the own cache with column `column` written.

    params: from `unstack_layers`; token, position: i32[B]; column: i32[], the column of `own` that becomes this token's;
    prompt: from `prefill`, of N prompts of which each has B / N rows in succession; prompt_valid: bool[N, P];
    own_valid: bool[B, T], the own columns that may be attended, `column` among them. Layers are unrolled so that each
    layer's cache is its own buffer, which dynamic_update_slice updates in place in a while_loop; a scan over layers would
    copy them all.
    """
    rope = tuple(table[:, 0].T for table in _rope_tables(config, position))  # [Dh / 2, B]
    biases = _mask_bias(prompt_valid), _mask_bias(own_valid)
    x = shard(_embed(config, params, token).T, ("embed", "batch"))
    written = []
    for layer, shared, alone in zip(params["layers"], prompt, own, strict=True):
        x, alone = _decode_layer(config, layer, x, rope, column, shared, biases[0], alone, biases[1], shard)
        written.append(alone)
    return _rms_norm(x.T, params["final_norm"], config.rms_norm_eps), tuple(written)
