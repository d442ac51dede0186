"""From named tensors in files to the stacked parameter tree, slice by slice, and back.

A TensorSource knows names and shapes and reads slices; Hugging Face and GGUF files are two of them. Both lay matrices
out [out, in], so every matrix but the embeddings is transposed on the way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from hir_jax.model import decoder
from hir_jax.model.config import ModelConfig
from hir_jax.types import InputError

SHOWN = 6  # names shown of each kind of fault
Index = tuple[slice, ...]


class CheckpointError(InputError):
    """A checkpoint that cannot be read or written as asked; the message names the file or tensors and what to do."""


_LFS = b"version https://git-lfs.github.com/spec/"


def refuse_lfs_pointer(path: Path) -> None:
    """Raises CheckpointError for a file that git-lfs did not fetch: a few lines of text that say where the content is."""
    with open(path, "rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise CheckpointError(
                f"{path}: is a git-lfs pointer, not the file itself; run `git lfs pull` in its directory"
            )


class TensorSource(Protocol):
    """Tensors by name, as a file stores them."""

    path: str  # for messages
    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str, index: Index) -> np.ndarray:
        """The slice `index` of a tensor, in any float dtype. Raises CheckpointError."""
        ...


HF_NAMES = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "unembed": "lm_head.weight",
    "layers": {
        "attn_norm": "model.layers.{}.input_layernorm.weight",
        "q": "model.layers.{}.self_attn.q_proj.weight",
        "k": "model.layers.{}.self_attn.k_proj.weight",
        "v": "model.layers.{}.self_attn.v_proj.weight",
        "o": "model.layers.{}.self_attn.o_proj.weight",
        "q_bias": "model.layers.{}.self_attn.q_proj.bias",
        "k_bias": "model.layers.{}.self_attn.k_proj.bias",
        "v_bias": "model.layers.{}.self_attn.v_proj.bias",
        "q_norm": "model.layers.{}.self_attn.q_norm.weight",
        "k_norm": "model.layers.{}.self_attn.k_norm.weight",
        "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
        "gate": "model.layers.{}.mlp.gate_proj.weight",
        "up": "model.layers.{}.mlp.up_proj.weight",
        "down": "model.layers.{}.mlp.down_proj.weight",
    },
}

GGUF_NAMES = {
    "embed": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "unembed": "output.weight",
    "layers": {
        "attn_norm": "blk.{}.attn_norm.weight",
        "q": "blk.{}.attn_q.weight",
        "k": "blk.{}.attn_k.weight",
        "v": "blk.{}.attn_v.weight",
        "o": "blk.{}.attn_output.weight",
        "q_bias": "blk.{}.attn_q.bias",
        "k_bias": "blk.{}.attn_k.bias",
        "v_bias": "blk.{}.attn_v.bias",
        "q_norm": "blk.{}.attn_q_norm.weight",
        "k_norm": "blk.{}.attn_k_norm.weight",
        "mlp_norm": "blk.{}.ffn_norm.weight",
        "gate": "blk.{}.ffn_gate.weight",
        "up": "blk.{}.ffn_up.weight",
        "down": "blk.{}.ffn_down.weight",
    },
}


def _leaves(config: ModelConfig) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """(keys, shape) of each parameter, ("layers", "q") and the stacked shape for those of layers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(decoder.abstract_params(config)):
        yield tuple(key.key for key in path), leaf.shape


def _name(names: Mapping[str, Any], keys: tuple[str, ...], layer: int) -> str:
    return names["layers"][keys[1]].format(layer) if keys[0] == "layers" else names[keys[0]]


def _transposed(keys: tuple[str, ...], shape: tuple[int, ...]) -> bool:
    """Whether the file stores [out, in]; `shape` is that of one layer."""
    return len(shape) == 2 and keys != ("embed",)


def expected_shapes(config: ModelConfig, names: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape in the file of every tensor that a model of this config has."""
    shapes = {}
    for keys, shape in _leaves(config):
        stacked = keys[0] == "layers"
        one = shape[1:] if stacked else shape
        for layer in range(shape[0] if stacked else 1):
            shapes[_name(names, keys, layer)] = one[::-1] if _transposed(keys, one) else one
    return shapes


def _listed(what: str, entries: list[str]) -> str:
    more = f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    return f"{len(entries)} {what}: {', '.join(entries[:SHOWN])}{more}"


def check_tensors(config: ModelConfig, source: TensorSource, names: Mapping[str, Any], ignored) -> None:
    """Raises CheckpointError naming the tensors that are missing, wrongly shaped, or unknown.

    ignored: function of a name; True for one that may be there and is not read.
    """
    expected = expected_shapes(config, names)
    found = source.shapes
    missing = [name for name in expected if name not in found]
    misshaped = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    extra = [name for name in found if name not in expected and not ignored(name)]
    faults = [("missing", missing), ("wrongly shaped", misshaped), ("not known to this model", extra)]
    found_faults = [_listed(what, entries) for what, entries in faults if entries]
    if found_faults:
        raise CheckpointError(
            f"{source.path}: tensors do not match the config ({config.family}, {config.num_layers} layers). "
            + "; ".join(found_faults)
            + ". Check that config and weights are of the same model and that the download is complete."
        )


def _read_leaf(source: TensorSource, names, keys: tuple[str, ...], shape: tuple[int, ...], dtype, index: Index):
    """The slice `index` of one parameter as a NumPy array: only what it covers is read."""

    def read(layer: int, one: tuple[int, ...], index: Index) -> np.ndarray:
        name = _name(names, keys, layer)
        if not _transposed(keys, one):
            return source.read(name, index)
        return source.read(name, index[::-1]).T

    bounds = tuple(range(*s.indices(size)) for s, size in zip(index, shape, strict=True))
    if keys[0] != "layers":
        return np.ascontiguousarray(read(0, shape, index)).astype(dtype, copy=False)
    out = np.empty([len(b) for b in bounds], dtype)
    for row, layer in enumerate(bounds[0]):
        out[row] = read(layer, shape[1:], index[1:])
    return out


def load_tree(config: ModelConfig, source: TensorSource, names, ignored, param_dtype, shardings=None) -> decoder.Params:
    """The parameter tree, each array made out of the slices that its devices hold.

    param_dtype: of the arrays. shardings: a tree like the parameters of jax.sharding.Sharding; None puts all on the
    first device. The host holds one parameter's distinct slices at a time. Raises CheckpointError.
    """
    check_tensors(config, source, names, ignored)
    params = {"layers": {}}
    for keys, shape in _leaves(config):
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        if shardings is not None:
            sharding = shardings[keys[0]][keys[1]] if len(keys) == 2 else shardings[keys[0]]
        read: dict[tuple, np.ndarray] = {}  # devices that hold the same slice share one reading

        def slice_of(index: Index, keys=keys, shape=shape, read=read) -> np.ndarray:
            bounds = tuple(s.indices(size) for s, size in zip(index, shape, strict=True))
            if bounds not in read:
                read[bounds] = _read_leaf(source, names, keys, shape, jnp.dtype(param_dtype), index)
            return read[bounds]

        array = jax.make_array_from_callback(shape, sharding, slice_of, dtype=jnp.dtype(param_dtype))
        if len(keys) == 2:
            params["layers"][keys[1]] = array
        else:
            params[keys[0]] = array
    return params


def named_tensors(config: ModelConfig, params: decoder.Params, names, dtype) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array in the file's layout) of every tensor, LoRA adapters merged, one layer at a time, cast to `dtype`."""

    def one(keys, layer: int):
        if keys[0] != "layers":
            return params[keys[0]]
        parts = {name: leaf[layer] for name, leaf in params["layers"].items() if name.split("_lora_")[0] == keys[1]}
        return decoder.matrix(config, parts, keys[1])

    for keys, shape in _leaves(config):
        for layer in range(shape[0] if keys[0] == "layers" else 1):
            array = np.asarray(one(keys, layer)).astype(jnp.dtype(dtype))
            yield _name(names, keys, layer), np.ascontiguousarray(array.T if _transposed(keys, array.shape) else array)


def byte_size(shape: tuple[int, ...], dtype) -> int:
    return math.prod(shape) * jnp.dtype(dtype).itemsize
