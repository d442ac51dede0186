"""Noise over the vocabulary from a counter: a hash of (key, word), so that any slice of it can be made anywhere.

A threefry draw of B x V words cost 95 of 410 ms of a decode step of SmolLM2 on a CPU, this hash about 7. The key of a row
and position is still made by jax.random, so only the words of one draw depend on the hash's quality (tests/sampler).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float32, Key, UInt32

from hir_jax.types import Array


def _mix(x: Array) -> Array:
    """The 32-bit finaliser of MurmurHash3 (Appleby, public domain): a bijection in which each bit moves every other."""
    x ^= x >> 16
    x *= jnp.uint32(0x85EBCA6B)
    x ^= x >> 13
    x *= jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def word_bits(keys: Key[Array, " B"], count: int) -> UInt32[Array, "B {count}"]:
    """Uniform bits, independent over rows and words; two rounds, one half of the key in each."""
    halves = jax.vmap(lambda key: jax.random.bits(key, (2,)))(keys)
    words = jnp.arange(count, dtype=jnp.uint32)
    return _mix(_mix(words + halves[:, :1]) ^ halves[:, 1:])


def exponentials(keys: Key[Array, " B"], count: int) -> Float32[Array, "B {count}"]:
    """Draws of the exponential distribution with mean 1, finite and above 0.

    -log1p(-v) with v uniform in (0, 1): small values, which decide a race, keep float32's relative precision down to
    2^-33, where -log(u) with u close to 1 would know but multiples of 2^-24.
    """
    uniform = (word_bits(keys, count).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-32)
    return -jnp.log1p(-jnp.minimum(uniform, 1.0 - 2.0**-24))
