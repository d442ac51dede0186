"""Reads named tensors of a file into the stacked parameter tree, slice by slice, and turns the tree back into named tensors.

A TensorSource knows names and shapes and reads slices; there is one for Hugging Face files and one for GGUF. Both store
matrices as [out, in], so every matrix except the embeddings is transposed on the way.
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

SHOWN = 6  # most names in a message for each kind of fault
Index = tuple[slice, ...]


class CheckpointError(InputError):
    """A checkpoint cannot be read or written; the message names the file or tensors and what to do."""


_LFS = b"version https://git-lfs.github.com/spec/"


def refuse_lfs_pointer(path: Path) -> None:
    """Raises CheckpointError for a file that git-lfs did not fetch, which holds a few lines of text instead of the content."""
    with open(path, "rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise CheckpointError(
                f"{path}: is a git-lfs pointer, not the file itself; run `git lfs pull` in its directory"
            )


class TensorSource(Protocol):
    """The tensors of a file by name."""

    path: str  # for messages
    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str, index: Index) -> np.ndarray:
        """The slice `index` of a tensor, in any float dtype. Raises CheckpointError."""
        ...


# A layer's parameter -> its tensor's name in Hugging Face files (after "model.layers.N.") and in GGUF (after "blk.N.")
_LAYER = {
    "attn_norm": ("input_layernorm.weight", "attn_norm.weight"),
    "q": ("self_attn.q_proj.weight", "attn_q.weight"),
    "k": ("self_attn.k_proj.weight", "attn_k.weight"),
    "v": ("self_attn.v_proj.weight", "attn_v.weight"),
    "o": ("self_attn.o_proj.weight", "attn_output.weight"),
    "q_bias": ("self_attn.q_proj.bias", "attn_q.bias"),
    "k_bias": ("self_attn.k_proj.bias", "attn_k.bias"),
    "v_bias": ("self_attn.v_proj.bias", "attn_v.bias"),
    "q_norm": ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    "k_norm": ("self_attn.k_norm.weight", "attn_k_norm.weight"),
    "mlp_norm": ("post_attention_layernorm.weight", "ffn_norm.weight"),
    "gate": ("mlp.gate_proj.weight", "ffn_gate.weight"),
    "up": ("mlp.up_proj.weight", "ffn_up.weight"),
    "down": ("mlp.down_proj.weight", "ffn_down.weight"),
}
HF_NAMES = {
    "embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "unembed": "lm_head.weight",
    "layers": {ours: f"model.layers.{{}}.{theirs}" for ours, (theirs, _) in _LAYER.items()},
}  # fmt: skip
GGUF_NAMES = {
    "embed": "token_embd.weight", "final_norm": "output_norm.weight", "unembed": "output.weight",
    "layers": {ours: f"blk.{{}}.{theirs}" for ours, (_, theirs) in _LAYER.items()},
}  # fmt: skip


def _keys(path) -> tuple[str, ...]:
    """The dictionary keys of a path in the parameter tree, such as ("layers", "q")."""
    return tuple(key.key for key in path)


def _leaves(config: ModelConfig) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """(keys, shape) of each parameter. Parameters of the layers have the stacked shape."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(decoder.abstract_params(config)):
        yield _keys(path), leaf.shape


def _name(names: Mapping[str, Any], keys: tuple[str, ...], layer: int) -> str:
    return names["layers"][keys[1]].format(layer) if keys[0] == "layers" else names[keys[0]]


def _transposed(keys: tuple[str, ...], shape: tuple[int, ...]) -> bool:
    """Whether the file stores the transpose, [out, in]. shape: of one layer."""
    return len(shape) == 2 and keys != ("embed",)


def expected_shapes(config: ModelConfig, names: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The name and shape in the file of every tensor of a model of this config."""
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
    """Raises CheckpointError that names the tensors that are missing, wrongly shaped, or unknown.

    ignored: function of a name; True for a tensor that may be in the file and is not read.
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
    kinds = {"missing": missing, "wrongly shaped": misshaped, "not known to this model": extra}
    if faults := "; ".join(_listed(what, entries) for what, entries in kinds.items() if entries):
        raise CheckpointError(
            f"{source.path}: tensors do not match the config ({config.family}, {config.num_layers} layers). {faults}. "
            "Check that config and weights are of the same model and that the download is complete."
        )


def _read_leaf(source: TensorSource, names, keys: tuple[str, ...], shape: tuple[int, ...], dtype, index: Index):
    """The slice `index` of one parameter as a NumPy array. Nothing else of the parameter is read."""

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
    """The parameter tree, where each array is made from the slices that its devices hold.

    param_dtype: of the arrays. shardings: a tree of jax.sharding.Sharding like the parameters; None puts all on the first
    device. The host holds the distinct slices of one parameter at a time. Raises CheckpointError.
    """
    check_tensors(config, source, names, ignored)
    dtype, abstract = jnp.dtype(param_dtype), decoder.abstract_params(config)
    if shardings is None:
        shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), abstract)

    def load(path, leaf, sharding) -> jax.Array:
        read: dict[tuple, np.ndarray] = {}  # devices that hold the same slice share one read

        def slice_of(index: Index) -> np.ndarray:
            bounds = tuple(s.indices(size) for s, size in zip(index, leaf.shape, strict=True))
            if bounds not in read:
                read[bounds] = _read_leaf(source, names, _keys(path), leaf.shape, dtype, index)
            return read[bounds]

        return jax.make_array_from_callback(leaf.shape, sharding, slice_of, dtype=dtype)

    return jax.tree_util.tree_map_with_path(load, abstract, shardings)


def named_tensors(config: ModelConfig, params: decoder.Params, names, dtype) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array in the file's layout) of every tensor in `dtype`, with LoRA adapters merged, one layer at a time."""

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
