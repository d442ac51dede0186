"""One decoder for Llama, Qwen2 and Qwen3.

Flax NNX modules declare and initialise the parameters; everything else is a pure function of (config, plain dict).
The tree, weights laid out [in, out] and stacked over the L layers:

    embed [V, D]   final_norm [D]   unembed [D, V] (untied only)
    layers: attn_norm, mlp_norm [L, D]   q [L, D, Hq*Dh]   k, v [L, D, Hkv*Dh]   o [L, Hq*Dh, D]
            gate, up [L, D, F]   down [L, F, D]   q_bias, k_bias, v_bias (Qwen2)   q_norm, k_norm [L, Dh] (Qwen3)
            q_lora_a [L, D, r]   q_lora_b [L, r, Hq*Dh]   and likewise for any matrix (LoRA, see `model.lora`)

Letters: B rows, T columns, S cache columns, P prompt columns, D hidden, F intermediate, V words, L layers, Hq query
heads, Hkv key/value heads, G = Hq / Hkv, Dh head size. "dtype" stands for the compute dtype of the config.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Float, Float32, Int, Shaped

from hir_jax.model import attention
from hir_jax.model.config import MATRICES, ModelConfig
from hir_jax.types import Array

Params = dict[str, Any]
Axes = tuple[str | None, ...]
Shard = Any  # a NoShard, or what has its methods


class NoShard:
    """The `shard` of a single device: leaves everything as it is. On a mesh it is a `parallel.mesh.ActivationShard`."""

    def __call__(self, x: Array, axes: Axes) -> Array:
        """`x`, split by the logical names of its axes."""
        return x

    def parameters(self, params: Params, axes: Params) -> Params:
        """A tree like the parameters, split as they are."""
        return params

    def map(self, function: Callable, axes: Sequence[Axes], arrays: Sequence[Array]) -> Array:
        """function(*arrays), each device on its part of them; the result is laid out like the first of the arrays."""
        return function(*arrays)


no_shard = NoShard()


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


def matrix_shape(config: ModelConfig, name: str) -> tuple[int, int, int]:
    """(layers, inputs, outputs) of one of the layers' stacked matrices."""
    return _shape(config, param_axes(config)["layers"][name])


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


def init(config: ModelConfig, key: Array, param_dtype=jnp.float32) -> Params:
    """Random parameters as a plain nested dict (see the module's docstring for names and shapes). Jit-able."""
    _, state = nnx.split(Decoder(config, param_dtype, nnx.Rngs(params=key)))
    return nnx.to_pure_dict(state)


def abstract_params(config: ModelConfig, param_dtype=jnp.float32) -> Params:
    """The parameter tree of jax.ShapeDtypeStruct: nothing is allocated."""
    return jax.eval_shape(partial(init, config, param_dtype=param_dtype), jax.random.key(0))


# ---- parts of a layer --------------------------------------------------------------------------------------------


def rms_norm(x: Float[Array, "*X"], scale: Float[Array, " D"], eps: float, axis: int = -1) -> Float[Array, "*X"]:
    """x / rms(x) * scale over one axis, in float32; the result has x's dtype."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=axis, keepdims=True) + eps)
    behind = x.ndim - 1 - axis % x.ndim
    return (x32 * inverse * scale.astype(jnp.float32).reshape(-1, *(1,) * behind)).astype(x.dtype)


def rope_frequencies(config: ModelConfig) -> Float32[Array, " half"]:
    """Radians per position: theta^(-2i/Dh), stretched as Llama 3 does where the config says so."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_max_position * frequencies / (2 * jnp.pi)  # full turns within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)  # 1: as it was, 0: divided by the factor
    return frequencies * (kept + (1.0 - kept) / scaling.factor)


def rope_tables(config: ModelConfig, positions: Array) -> tuple[Array, Array]:
    """cos and sin, f32[..., 1, Dh/2], of i32[...] positions; the axis of size one is for the heads."""
    angles = positions.astype(jnp.float32)[..., None, None] * rope_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turns channel i with channel i + Dh/2 (the Hugging Face order of channels). x: dtype[..., H, Dh]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _matmul(x: Array, matrix: Array, **options) -> Array:
    """x @ matrix over the last axis, as a product of two matrices: with more axes XLA's CPU backend transposes whole
    activations for the gradient of the matrix (110 of 340 ms of SmolLM2's MLP at 8 x 256)."""
    flat = jnp.matmul(x.reshape(-1, x.shape[-1]), matrix.astype(x.dtype), **options)
    return flat.reshape(*x.shape[:-1], matrix.shape[-1])


def thin_matmul(matrix: Array, x: Array, contracted: int = 0, **options) -> Array:
    """matrix [..., in] times few rows, dtype[in, B] (or [B, in] with `contracted` 1): dtype[..., B]. As matrix @ x it takes
    1 / 1.4 to 1 / 1.9 of the time of x.T @ matrix.T on CPU; the barrier keeps XLA from turning it round."""
    axes = (((matrix.ndim - 1,), (contracted,)), ((), ()))
    return jax.lax.optimization_barrier(jax.lax.dot_general(matrix.astype(x.dtype), x, axes, **options))


def matrix(config: ModelConfig, layer: Params, name: str) -> Array:
    """A layer's matrix [in, out]; with a LoRA adapter, the two merged, in float32."""
    if f"{name}_lora_a" not in layer:
        return layer[name]
    a, b = (layer[f"{name}_lora_{factor}"].astype(jnp.float32) for factor in "ab")
    # TPUs multiply float32 in bfloat16 unless they are told not to
    return layer[name].astype(jnp.float32) + config.lora_scaling * jnp.matmul(a, b, precision="highest")


def _dense(config: ModelConfig, x: Array, layer: Params, name: str) -> Array:
    """x @ matrix + bias. A LoRA adapter is applied to x: merging it would make a copy of the matrix, and a gradient as large."""
    y = _matmul(x, layer[name])
    if f"{name}_lora_a" in layer:
        y += _matmul(config.lora_scaling * _matmul(x, layer[f"{name}_lora_a"]), layer[f"{name}_lora_b"])
    bias = layer.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(x.dtype)


def _qkv(config: ModelConfig, layer: Params, x: Array, rope) -> tuple[Array, Array, Array]:
    """q [..., Hq, Dh], k and v [..., Hkv, Dh] of dtype[..., D], normalised and rotated."""
    q, k, v = (rearrange(_dense(config, x, layer, name), "... (h d) -> ... h d", d=config.head_dim) for name in "qkv")
    if config.qk_norm:
        q = rms_norm(q, layer["q_norm"], config.rms_norm_eps)
        k = rms_norm(k, layer["k_norm"], config.rms_norm_eps)
    return _rotate(q, *rope), _rotate(k, *rope), v


def _mlp(config: ModelConfig, layer: Params, x: Array, shard: Shard) -> Array:
    """The gated MLP with its norm and residual. x: dtype[B, T, D]."""
    y = rms_norm(x, layer["mlp_norm"], config.rms_norm_eps)
    inner = jax.nn.silu(_dense(config, y, layer, "gate")) * _dense(config, y, layer, "up")
    inner = shard(inner, ("batch", "length", "mlp"))
    return shard(x + _dense(config, inner, layer, "down"), ("batch", "length", "embed"))


LOOKUP_TOKENS = 4096  # rows added to the table's gradient at once: XLA compiles a scatter of 98,304 for hours for TPUs


@jax.custom_vjp
def _lookup(table: Array, tokens: Array) -> Array:
    """table[tokens], [B, T, D]; its gradient is added up in parts of LOOKUP_TOKENS."""
    return table[tokens]


def _lookup_forward(table: Array, tokens: Array):
    return table[tokens], (tokens, jnp.zeros_like(table, shape=(0, *table.shape)))


def _lookup_backward(saved, gradient: Array):
    tokens, like = saved
    found = jnp.zeros_like(like, shape=like.shape[1:])
    tokens, gradient = tokens.reshape(-1), gradient.reshape(-1, gradient.shape[-1])
    parts = -(-tokens.size // LOOKUP_TOKENS)
    if parts == 1:
        return found.at[tokens].add(gradient), None
    behind = -tokens.size % parts
    tokens = jnp.pad(tokens, (0, behind)).reshape(parts, -1)  # rows of zeros, for word 0
    gradient = jnp.pad(gradient, ((0, behind), (0, 0))).reshape(parts, -1, gradient.shape[-1])
    found, _ = jax.lax.scan(lambda sum, part: (sum.at[part[0]].add(part[1]), None), found, (tokens, gradient))
    return found, None


_lookup.defvjp(_lookup_forward, _lookup_backward)


def embed(config: ModelConfig, params: Params, tokens: Int[Array, "B T"], shard: Shard) -> Float[Array, "B T D"]:
    """Embeddings in the compute dtype. Where the width of the table is split among devices that share rows, each looks up its
    part of the width for all their rows, which then change places: the table is not gathered."""
    axes = ("lookup_batch", "length")
    x = shard(_lookup(params["embed"], shard(tokens, axes)).astype(config.compute_dtype), (*axes, "lookup_embed"))
    return shard(x, ("batch", "length", "embed"))


# ---- full pass ---------------------------------------------------------------------------------------------------


def _layer_pass(config: ModelConfig, shard: Shard, layer: Params, x: Array, rope, attend: attention.Attend):
    """One layer over dtype[B, T, D]; also returns its keys and values, dtype[B, Hkv, T, Dh]."""
    axes = ("batch", "length")
    y = rms_norm(x, layer["attn_norm"], config.rms_norm_eps)
    q, k, v = _qkv(config, layer, y, rope)
    q = shard(q, (*axes, "heads", None))
    k, v = (shard(rearrange(x, "b t h d -> b h t d"), ("batch", "kv_heads", "length", None)) for x in (k, v))
    attended = shard(attend(q, k, v), (*axes, "heads"))
    x = shard(x + _dense(config, attended, layer, "o"), (*axes, "embed"))
    return _mlp(config, layer, x, shard), (k, v)


def _gathered(config: ModelConfig, layer: Params, shard: Shard) -> Params:
    """One layer's parameters with the matrices whole in their width, in the compute dtype. Said here, they are gathered once a
    layer; left to XLA, each product becomes a loop over the devices' slices, which TPUs do slowly and compile for minutes.
    Gradients go straight to the layout of the parameters: each device gets the sum of its part, and nothing else."""
    axes = {name: names for name, names in _layer_axes(config).items() if name in MATRICES}
    matrices = {name: layer[name] for name in axes}
    dtypes = {name: x.dtype for name, x in matrices.items()}

    @jax.custom_vjp
    def gather(matrices):
        return {name: shard(x.astype(config.compute_dtype), axes[name]) for name, x in matrices.items()}

    def back(_, gradients):
        split = shard.parameters(gradients, axes)
        return ({name: x.astype(dtypes[name]) for name, x in split.items()},)

    gather.defvjp(lambda matrices: (gather(matrices), None), back)
    return layer | gather(matrices)


def _products_saved(layers: Params):
    """The checkpoint policy of remat "dots". A LoRA adapter's second product is not saved: it would double what is, and is
    made again from rank columns."""
    ranks = {leaf.shape[-1] for name, leaf in layers.items() if name.endswith("_lora_a")}

    def policy(primitive, *inputs, **options):
        saved = jax.checkpoint_policies.dots_saveable(primitive, *inputs, **options)
        return saved and not (inputs[1].ndim == 2 and inputs[1].shape[0] in ranks)

    return policy


def layer_function(
    config: ModelConfig, layers: Params, positions, segments, shard: Shard, keep_cache: bool = False, window=None,
    prompts=None,
):  # fmt: skip
    """body(x, layer) -> (x after the layer, its (k, v) or None), which computes again in its gradient what `config.remat` says.
    layers: the stacked parameters that `layer` is one of."""
    rope = rope_tables(config, positions)
    attend = attention.causal(config.attention, segments, window or positions.shape[1], shard, prompts)

    def body(x, layer):
        x, cache = _layer_pass(config, shard, _gathered(config, layer, shard), x, rope, attend)
        return x, (cache if keep_cache else None)

    if config.remat == "none":
        return body
    saved = _products_saved(layers) if config.remat == "dots" else None
    return jax.checkpoint(body, policy=saved, prevent_cse=False)  # a scan already keeps XLA from merging the two


def run_layers(config: ModelConfig, params: Params, tokens, positions, segments, shard: Shard, **options):
    """Embedding and all layers: (dtype[B, T, D] before the final norm, stacked (k, v) [L, B, Hkv, T, Dh] or None)."""
    body = layer_function(config, params["layers"], positions, segments, shard, **options)
    return jax.lax.scan(body, embed(config, params, tokens, shard), params["layers"])


def final_norm(config: ModelConfig, params: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The final norm; NaN where a hidden state's square overflows float32."""
    # The norm of a vector whose square overflows is 0, and the policy uniform: with NaN a broken model does not look like one.
    squares = jnp.square(x.astype(jnp.float32)).mean(-1, keepdims=True)
    return jnp.where(jnp.isfinite(squares), rms_norm(x, params["final_norm"], config.rms_norm_eps), jnp.nan)


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segments: Shaped[Array, "B T"],
    shard: Shard = no_shard,
    *,
    longest: int | None = None,
    prompts: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """Hidden states after the final norm, in the compute dtype, of a causal pass; NaN where one's square overflows float32.

    segments: i32 or bool: columns attend within their segment. Padding, on any
    side, is a segment of its own (0, or False where the rest is one sequence); its hidden states are finite and mean
    nothing. No column attends to one that is `longest` or more columns earlier (default: T), which spares work. prompts:
    the segment of each column's prompt, where several segments share one. Parameters are stacked, as `init` gives them.
    `shard(x, axes)` puts a sharding constraint on an activation by the logical names of its axes ("batch", "length", "embed",
    "heads", "kv_heads", "mlp", "vocab", or None).
    """
    x, _ = run_layers(config, params, tokens, positions, segments, shard, window=longest, prompts=prompts)
    return final_norm(config, params, x)


def unembed_matrix(config: ModelConfig, params: Params) -> Float[Array, "D V"]:
    """The output projection, in its parameter's dtype; a transposed view of the embeddings where they are tied."""
    return params["embed"].T if config.tie_embeddings else params["unembed"]


def logits(config: ModelConfig, params: Params, hidden: Float[Array, "... D"]) -> Float32[Array, "... V"]:
    """Logits of hidden states after the final norm; products accumulate in float32."""
    if config.tie_embeddings and hidden.ndim == 2:
        return thin_matmul(params["embed"], hidden, 1, preferred_element_type=jnp.float32).T
    return _matmul(hidden, unembed_matrix(config, params), preferred_element_type=jnp.float32)
