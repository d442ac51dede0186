"""Losses of single response tokens, f32[...]; the caller weighs and sums them over the whole mini-batch, never a micro-batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hir_jax.types import Array

KL_ESTIMATORS = ("k1", "k2", "k3")


def policy_loss(
    logp: Array, old: Array, advantage: Array, *, clip_low: float, clip_high: float, dual_clip: float
) -> tuple[Array, dict[str, Array]]:
    """PPO's clipped surrogate with dual clip; all arrays f32[...], one entry a token.

    -min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A), and for A < 0 never above -dual_clip * A (Ye et al. 2020); rho =
    exp(logp - old). clip_high above clip_low is DAPO's "clip higher" (Yu et al. 2025, arXiv 2503.14476). Also returns, for
    metrics, where the clip took effect and the k3 estimate of KL(old || new).
    """
    difference = jnp.clip(logp - old, -20.0, 20.0)  # as verl: keeps the ratio finite
    ratio = jnp.exp(difference)
    plain = -advantage * ratio
    clipped = -advantage * jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    loss = jnp.maximum(plain, clipped)
    loss = jnp.where(advantage < 0, jnp.minimum(loss, -advantage * dual_clip), loss)
    return loss, {"clipped": clipped > plain, "kl_old": ratio - 1 - difference}


def kl_loss(logp: Array, ref: Array, estimator: str) -> Array:
    """Estimate of KL(policy || reference) from one token drawn by the policy (Schulman 2020, "Approximating KL divergence"),
    with d = logp - ref: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. As a loss, k1 pulls nowhere in the mean: its gradient is the
    score function, whose expectation is 0; the gradient of k2 is that of the true KL."""
    d = jnp.clip(logp - ref, -20.0, 20.0)
    return {"k1": lambda: d, "k2": lambda: d**2 / 2, "k3": lambda: jnp.exp(-d) - 1 + d}[estimator]()


def preference_coefficients(chosen: Array, rejected: Array, beta: float) -> tuple[Array, Array]:
    """DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7) as coefficients of the log-probs: its gradient is that of
    c * (logp_rejected - logp_chosen) with c held fixed.

    chosen, rejected: f32[K], sums over a response of logp - ref under the current policy. Returns (loss f32[K] =
    -log sigmoid(beta * (chosen - rejected)), c f32[K] = beta * sigmoid(-beta * (chosen - rejected))).
    """
    margin = beta * (chosen - rejected)
    return jax.nn.softplus(-margin), beta * jax.nn.sigmoid(-margin)


def truncated_importance(trainer: Array, sampler: Array, mask: Array, cap: float) -> tuple[Array, dict[str, Array]]:
    """min(pi_trainer / pi_sampler, cap) of each token, f32[B, R], 1 outside the mask: the weight that corrects the expectation
    of a loss over tokens which a sampler of other precision drew (truncated importance sampling, Ionides 2008; Yao et al.
    2025 for this use); 1 everywhere if cap is 0. trainer, sampler: f32[B, R] log-probs under the same parameters. Also
    returns metrics: the mean absolute gap between the two and, with a cap, the share of weights that are cut.
    """
    gap = jnp.where(mask, trainer - sampler, 0.0)
    ratio = jnp.exp(jnp.clip(gap, -20.0, 20.0))
    count = jnp.maximum(mask.sum(), 1)
    metrics = {"sampler_gap": jnp.abs(gap).sum() / count}
    if not cap:
        return jnp.ones_like(ratio), metrics
    return jnp.minimum(ratio, cap), metrics | {"importance_cut": (mask & (ratio > cap)).sum() / count}
