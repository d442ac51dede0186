"""Losses summed over response tokens; the caller divides by the token count of the whole mini-batch, never of a micro-batch."""

from __future__ import annotations

import jax.numpy as jnp

from hir_jax.types import Array


def policy_loss(
    logp: Array, old: Array, advantage: Array, mask: Array, *, clip_low: float, clip_high: float, dual_clip: float
) -> tuple[Array, dict[str, Array]]:
    """PPO's clipped surrogate with dual clip, summed over masked tokens; all arrays [B, R], mask f32.

    -min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A), and for A < 0 never above -dual_clip * A
    (Ye et al. 2020); rho = exp(logp - old). verl averages it per micro-batch and then over those; here the sum goes over the
    whole mini-batch. Also returns sums for metrics: clipped tokens and the k3 estimate of KL(old || new).
    """
    difference = jnp.clip(logp - old, -20.0, 20.0)  # as verl: keeps the ratio finite
    ratio = jnp.exp(difference)
    plain = -advantage * ratio
    clipped = -advantage * jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    loss = jnp.maximum(plain, clipped)
    loss = jnp.where(advantage < 0, jnp.minimum(loss, -advantage * dual_clip), loss)
    sums = {
        "clipped": ((clipped > plain) * mask).sum(),
        "kl_old": ((ratio - 1 - difference) * mask).sum(),
    }
    return (loss * mask).sum(), sums


def nll_loss(logp: Array, mask: Array) -> Array:
    """Negative log-likelihood of the response tokens (SFT), summed over masked tokens."""
    return -(logp * mask).sum()
