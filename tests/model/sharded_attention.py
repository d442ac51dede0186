"""The attention kernels, interpreted, under shard_map on eight virtual devices against the plain ones.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/model/sharded_attention.py

prints their largest differences, of the largest number, as one line of JSON.
"""

import json
from functools import partial

import interpreted
import jax
import jax.numpy as jnp
import numpy as np

from hir_jax.model import attention, decode_attention
from hir_jax.parallel import mesh as meshes

ROWS, COLUMNS, HEADS, KEY_HEADS, SIZE = 4, 200, 4, 2, 16
SHARD = meshes.ActivationShard(meshes.make_mesh(2, 2, 2))


def difference(found, wanted) -> float:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)


def whole_sequences(rng) -> dict[str, float]:
    arrays = (
        rng.standard_normal((ROWS, COLUMNS, HEADS, SIZE)),
        *rng.standard_normal((2, ROWS, KEY_HEADS, COLUMNS, SIZE)),
    )
    arrays = tuple(jnp.asarray(x, jnp.float32) for x in arrays)
    segments = jnp.asarray(np.sort(rng.integers(0, 3, (ROWS, COLUMNS)), axis=1))
    ramp = jnp.linspace(0.5, 1.5, ROWS * COLUMNS * HEADS * SIZE).reshape(ROWS, COLUMNS, -1)

    @partial(jax.jit, static_argnums=0)
    def run(implementation, arrays):
        def total(arrays):
            found = attention.causal(implementation, segments, COLUMNS, SHARD)(*arrays)
            return (found**2 * ramp).sum(), found

        grads, found = jax.grad(total, has_aux=True)(arrays)
        return found, grads

    wanted = run("plain", arrays)
    return {name: difference(run(name, arrays), wanted) for name in ("splash", "triton")}


def one_column(rng) -> float:
    """Eight rows, two a prompt; rings of two blocks, of which some are full and some hold little."""
    q = rng.standard_normal((8, KEY_HEADS, HEADS // KEY_HEADS, SIZE)).astype(np.float32)
    prompt = tuple(rng.standard_normal((2, 4, KEY_HEADS, 128, SIZE)).astype(np.float32))
    own = tuple(rng.standard_normal((2, 8, KEY_HEADS, 256, SIZE)).astype(np.float32))
    filled = decode_attention.Filled(jnp.int32(127), jnp.asarray([128, 3, 50, 1]))
    own_filled = decode_attention.Filled(jnp.int32(37), jnp.asarray([1, 256, 38, 0, 200, 39, 128, 7]))
    run = jax.jit(
        lambda name, q: decode_attention.attend_one(name, q, prompt, filled, own, own_filled, SHARD), static_argnums=0
    )
    return difference(run("splash", q), run("plain", q))


if __name__ == "__main__":
    rng = np.random.default_rng(7)
    with jax.set_mesh(SHARD.mesh), interpreted.kernels():
        print(json.dumps(whole_sequences(rng) | {"decoding": one_column(rng)}))
