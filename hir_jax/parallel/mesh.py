"""Builds the device mesh, and shardings by rules from logical axes to mesh axes. No other module builds a mesh or a sharding.

Axes: `data` (rows, parameters replicated), `fsdp` (rows, parameters split), `tensor` (heads, MLP, vocabulary split).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hir_jax.types import InputError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")

# logical axis -> mesh axes, for parameters and their optimiser state
PARAMETER_RULES: Mapping[str, Any] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "layers": None,
    "head_dim": None,
    "rank": None,
}
# For parameters half-way from shards over `fsdp` to the same devices as data x tensor: each `tensor` group has exchanged its
# shards, and a device still gathers from the other groups only its own part of a stack.
HALF_WAY_RULES: Mapping[str, Any] = {**PARAMETER_RULES, "embed": "data"}
# For activations
ACTIVATION_RULES: Mapping[str, Any] = {
    "batch": ROWS,
    "length": None,
    "embed": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    # Embedding lookup and log-probs: the devices of `fsdp` split the width or the vocabulary, not the rows.
    "lookup_batch": "data",
    "lookup_embed": "fsdp",
    "lookup_vocab": ("fsdp", "tensor"),
}


class MeshError(InputError):
    """The mesh does not fit the devices or the batch; the message says what to change."""


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A (data, fsdp, tensor) mesh. At most one size may be -1, which takes the remaining devices."""
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise MeshError(f"mesh (data, fsdp, tensor) = {tuple(sizes)}: sizes are positive, and at most one is -1")
    if -1 in sizes:
        others = math.prod(s for s in sizes if s != -1)
        sizes[sizes.index(-1)] = max(1, len(devices) // others)
    if math.prod(sizes) != len(devices):
        raise MeshError(
            f"mesh (data, fsdp, tensor) = {tuple(sizes)} wants {math.prod(sizes)} devices, there are {len(devices)}: "
            "change config.mesh, or give one of its sizes as -1"
        )
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def row_devices(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return _parts(mesh, ROWS)


def _parts(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    """Into how many parts these mesh axes split an array axis."""
    return math.prod(mesh.shape[a] for a in ([axes] if isinstance(axes, str) else axes or ()))


def _spec(mesh: Mesh, rules: Mapping[str, Any], names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """The PartitionSpec of logical axes. An axis that does not divide evenly (3 key/value heads on 2 devices) stays whole."""
    chosen = []
    for name, size in zip(names, shape, strict=True):
        axes = rules[name] if name is not None else None
        parts = _parts(mesh, axes)
        chosen.append(axes if parts > 1 and size % parts == 0 else None)
    return PartitionSpec(*chosen)


@dataclass(frozen=True)
class ActivationShard:
    """The function `shard(x, logical axes)` that models call to lay out activations. Hashable, so it can be a static argument."""

    mesh: Mesh

    def __call__(self, x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        spec = _spec(self.mesh, ACTIVATION_RULES, names, x.shape)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def parameters(self, params, axes, rules: Mapping[str, Any] = PARAMETER_RULES):
        """A tree like the parameters, constrained to their shardings. axes: `decoder.param_axes`."""
        return jax.lax.with_sharding_constraint(params, parameter_shardings(self.mesh, axes, params, rules))

    def map(self, function, axes, arrays):
        """function(*arrays) under jax.shard_map. The result is laid out like the first array."""
        specs = tuple(_spec(self.mesh, ACTIVATION_RULES, names, x.shape) for names, x in zip(axes, arrays, strict=True))
        run = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
        return run(*arrays)

    def ways(self, name: str, size: int) -> int:
        """Over how many devices a logical axis of this size is split."""
        return _parts(self.mesh, _spec(self.mesh, ACTIVATION_RULES, (name,), (size,))[0])


def parameter_shardings(mesh: Mesh, axes, shapes, rules: Mapping[str, Any] = PARAMETER_RULES):
    """The tree of NamedShardings for a tree of logical axis names and a matching tree of shapes."""
    return jax.tree.map(lambda shape, names: NamedSharding(mesh, _spec(mesh, rules, names, shape.shape)), shapes, axes)


def state_shardings(mesh: Mesh, shapes, parameters):
    """Shardings of a state that holds arrays like the parameters (an optimiser's moments). A leaf is sharded like the parameter
    whose path its own path ends with; every other leaf is replicated."""
    known = {
        jax.tree_util.keystr(path): sharding for path, sharding in jax.tree_util.tree_flatten_with_path(parameters)[0]
    }

    def find(path, _):
        for start in range(len(path)):
            found = known.get(jax.tree_util.keystr(path[start:]))
            if found is not None:
                return found
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(find, shapes)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """The sharding that splits the leading axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def put_rows(mesh: Mesh, tree):
    """Puts host arrays on the devices, rows split. Raises MeshError if they do not split evenly."""
    ways = row_devices(mesh)
    for leaf in jax.tree.leaves(tree):
        if leaf.shape[0] % ways:
            raise MeshError(
                f"{leaf.shape[0]} rows do not split over {ways} devices (data x fsdp): make config.data.batch_prompts "
                "(for evaluation, eval_batch) a multiple of it, or change config.mesh"
            )
    return put(rows(mesh), tree)


def put(sharding: NamedSharding, tree):
    """Puts arrays on the devices. Host arrays must be equal in all processes; each process puts its own devices' shards."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def one(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(one, tree)


@lru_cache
def _gathering(mesh: Mesh):
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def gather(mesh: Mesh, tree):
    """Arrays that this process can read whole: a copy on every device if other processes hold shards of them, otherwise the
    arrays themselves. All processes must call this together."""
    return tree if replicated(mesh).is_fully_addressable else _gathering(mesh)(tree)


def connect(mesh: Mesh) -> None:
    """Opens the connections between the processes of a mesh, by one sum over each group of its axes.

    Call it while all processes are at the same place. Later one may still be compiling a function that another has read from
    the cache (on CPUs only the first process finds anything there), and gloo gives up connecting after 30 s without an answer;
    an open connection waits.
    """
    if replicated(mesh).is_fully_addressable:
        return
    axes = [name for name in AXES if mesh.shape[name] > 1]
    for group in (group for size in range(len(axes)) for group in itertools.combinations(axes, size + 1)):
        ones = np.ones(math.prod(mesh.shape[name] for name in group), np.float32)
        fetch(mesh, put(NamedSharding(mesh, PartitionSpec(group)), ones).sum())


def fetch(mesh: Mesh, tree):
    """Whole NumPy copies of arrays on the mesh, in every process."""
    return jax.device_get(gather(mesh, tree))


def for_first_host(mesh: Mesh, params):
    """Parameters in a form that the first process can write. With several processes, which must all call this, the first gets
    NumPy arrays, fetched one layer of a stack at a time so that no device holds a whole stack; the others get None instead."""
    if replicated(mesh).is_fully_addressable:
        return params
    layer = jax.jit(lambda x, i: x[i], out_shardings=replicated(mesh))

    def whole(x):
        parts = [jax.device_get(layer(x, i)) for i in range(len(x))] if x.ndim > 2 else fetch(mesh, x)
        return np.asarray(parts) if jax.process_index() == 0 else None

    return jax.tree.map(whole, params)
