"""LoRA (Hu et al. 2021, arXiv 2106.09685): y = x W + (alpha / rank) (x A) B, with W frozen and A, B trained.

The parameters of a run are two trees: frozen ones, and those that a TrainState holds. Without LoRA the first is None. With it
the second holds adapters alone, stacked over layers and laid out [in, out] like the matrices that they are added to:

    layers: q_lora_a [L, D, r]   q_lora_b [L, r, Hq*Dh]   and likewise for every target

`join` makes one tree of the two, for everything that takes a model's parameters (`decoder` applies what it finds).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from hir_jax.model import decoder
from hir_jax.model.config import ModelConfig
from hir_jax.types import Array


@dataclass(frozen=True)
class LoraSettings:
    """The `lora` group of the config."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # of MATRICES

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank


def join(frozen: decoder.Params | None, trained: decoder.Params) -> decoder.Params:
    """The whole model: the leaves of both trees, none of them copied."""
    if frozen is None:
        return trained
    return frozen | trained | {"layers": frozen["layers"] | trained["layers"]}


def param_axes(model: ModelConfig, params: decoder.Params) -> decoder.Params:
    """Logical axis names, as `decoder.param_axes`, of a tree with all parameters, adapters alone, or both. An adapter's are those
    of its matrix, and "rank"."""
    known = decoder.param_axes(model)

    def of_layers(name: str) -> tuple[str, ...]:
        matrix, _, factor = name.partition("_lora_")
        axes = known["layers"][matrix]
        return {"": axes, "a": (*axes[:2], "rank"), "b": (axes[0], "rank", axes[-1])}[factor]

    layers = {name: of_layers(name) for name in params["layers"]}
    return {name: layers if name == "layers" else known[name] for name in params}


def init(model: ModelConfig, settings: LoraSettings, key: Array, param_dtype=jnp.float32) -> decoder.Params:
    """Adapters that leave the model as it is: A uniform within 1 / sqrt(inputs), B zero. Jit-able.

    peft's LoraLayer.reset_lora_parameters says kaiming_uniform_(A, a=sqrt(5)): a bound of sqrt(6 / (1 + 5) / inputs).
    """
    adapters = {}
    for name, one in zip(settings.targets, jax.random.split(key, len(settings.targets)), strict=True):
        layers, inputs, outputs = decoder.matrix_shape(model, name)
        bound = inputs**-0.5
        a = jax.random.uniform(one, (layers, inputs, settings.rank), minval=-bound, maxval=bound)
        adapters[f"{name}_lora_a"] = a.astype(param_dtype)
        adapters[f"{name}_lora_b"] = jnp.zeros((layers, settings.rank, outputs), param_dtype)
    return {"layers": adapters}


@jax.jit
def checksum(params: decoder.Params) -> Array:
    """u32[]: the sum of all bit patterns. The same on any mesh; tells a model from another one, not from a forged one."""

    def one(x: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(x, jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint32)
        return bits.sum(dtype=jnp.uint32)

    return sum(one(leaf) for leaf in jax.tree.leaves(params))
