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


def truncated_importance(trainer: Array, sampler: Array, mask: Array, cap: float) -> tuple[Array, dict[str, Array]]:
    """min(pi_trainer / pi_sampler, cap) of each token, f32[B, R], 1 outside the mask: the weight that corrects the expectation
    of a loss over tokens which a sampler of other precision drew (truncated importance sampling, Ionides 2008; Yao et al.
    2025 for this use). trainer, sampler: f32[B, R] log-probs under the same parameters. Also returns metrics: the mean
    absolute gap between the two and the share of weights that are cut.
    """
    gap = jnp.where(mask, trainer - sampler, 0.0)
    ratio = jnp.exp(jnp.clip(gap, -20.0, 20.0))
    count = jnp.maximum(mask.sum(), 1)
    metrics = {"sampler_gap": jnp.abs(gap).sum() / count, "importance_cut": (mask & (ratio > cap)).sum() / count}
    return jnp.minimum(ratio, cap), metrics


def nll_loss(logp: Array, mask: Array) -> Array:
    """Negative log-likelihood of the response tokens (SFT), summed over masked tokens."""
    return -(logp * mask).sum()
