"""The gradient of a full pass, added layer by layer to gradients that are there already.

`jax.vjp` of the scan over layers gives a tree as large as the parameters, which is then added to those of earlier micro-batches:
another such tree in memory, and three passes over it. Here the loop that goes back through the layers adds each layer's
gradient to its place. What a layer saves for its gradient is decided by `jax.vjp` and `ModelConfig.remat` as before.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from hir_jax.model import decoder, lora
from hir_jax.model.config import ModelConfig
from hir_jax.types import Array

Pull = Callable[[Array, decoder.Params], decoder.Params]


def hidden_states(
    config: ModelConfig,
    trained: decoder.Params,
    frozen: decoder.Params | None,
    tokens: Array,
    positions: Array,
    segments: Array,
    shard: decoder.Shard = decoder.no_shard,
    *,
    longest: int | None = None,
    prompts: Array | None = None,
) -> tuple[Float[Array, "B T D"], Pull]:
    """`decoder.hidden_states` of the joined parameters, and pull(d_hidden, gradients), which returns the gradients (a tree like
    `trained`) with that of `trained` added."""
    params = lora.join(frozen, trained)
    outside = {name: x for name, x in trained.items() if name != "layers"}
    fixed = {name: x for name, x in params["layers"].items() if name not in trained["layers"]}
    body = decoder.layer_function(config, params["layers"], positions, segments, shard, window=longest, prompts=prompts)
    x, pull_embed = jax.vjp(lambda some: decoder.embed(config, params | some, tokens, shard), outside)
    x, pull_layers = _layers(body, trained["layers"], fixed, x)
    hidden, pull_norm = jax.vjp(lambda some, x: decoder.final_norm(config, params | some, x), outside, x)

    def pull(d_hidden: Array, gradients: decoder.Params) -> decoder.Params:
        d_norm, d_x = pull_norm(d_hidden)
        d_x, layers = pull_layers(d_x, gradients["layers"])
        (d_embed,) = pull_embed(d_x)
        others = jax.tree.map(lambda a, b, c: a + b + c, {name: gradients[name] for name in outside}, d_norm, d_embed)
        return others | {"layers": layers}

    return hidden, pull


def _layers(body: Callable, trained: decoder.Params, fixed: decoder.Params, x: Array) -> tuple[Array, Callable]:
    """The scan of `body` over layers, and pull(d_x, gradients) -> (d_x before the first layer, gradients + those of `trained`).

    The leaves of a layer's pull-back are what the layer saved, its own arguments, and arrays that are the same for all layers.
    Only the first are stacked; a trace of one layer tells which they are."""

    def run(x, layer, other):
        return jax.vjp(lambda x, layer: body(x, other | layer)[0], x, layer)

    stacked = trained, fixed
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stacked)
    program, (_, like) = jax.make_jaxpr(run, return_shape=True)(jax.ShapeDtypeStruct(x.shape, x.dtype), *one)
    parameters = {id(var): i for i, var in enumerate(program.jaxpr.invars[1:])}
    constants = {id(var): x for var, x in zip(program.jaxpr.constvars, program.consts, strict=True)}
    leaves = [id(var) for var in program.jaxpr.outvars[1:]]
    saved = [i for i, var in enumerate(leaves) if var not in parameters and var not in constants]

    def forward(x, layer):
        x, pull = run(x, *layer)
        found = jax.tree.leaves(pull)
        return x, [found[i] for i in saved]

    x, kept = jax.lax.scan(forward, x, stacked)

    def rebuilt(layer, kept):
        own, kept = jax.tree.leaves(layer), dict(zip(saved, kept, strict=True))
        found = [
            kept[i] if i in kept else own[parameters[var]] if var in parameters else constants[var]
            for i, var in enumerate(leaves)
        ]
        return jax.tree.unflatten(jax.tree.structure(like), found)

    def back(carry, given):
        d_x, gradients = carry
        index, layer, kept = given
        d_x, more = rebuilt(layer, kept)(d_x)

        def add(sum, part):
            here = jax.lax.dynamic_index_in_dim(sum, index, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(sum, here + part, index, 0)

        return (d_x, jax.tree.map(add, gradients, more)), None

    def pull(d_x, gradients):
        layers = jax.tree.leaves(trained)[0].shape[0]
        carry, _ = jax.lax.scan(back, (d_x, gradients), (jnp.arange(layers), stacked, kept), reverse=True)
        return carry

    return x, pull
