"""Losses of single response tokens, f32[...]; the caller weighs and sums them over the whole mini-batch, never a micro-batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Shaped

from hir_jax.types import Array

# By d = log pi - log pi_ref (Schulman 2020, "Approximating KL divergence").
KL_ESTIMATORS = {"k1": lambda d: d, "k2": lambda d: d**2 / 2, "k3": lambda d: jnp.exp(-d) - 1 + d}


def policy_loss(
    logp: Float[Array, "*T"],
    old: Float[Array, "*T"],
    advantage: Float[Array, "*T"],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
) -> tuple[Float32[Array, "*T"], dict[str, Shaped[Array, "*T"]]]:
    """PPO's clipped surrogate with dual clip; one entry a token.

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


def kl_loss(logp: Float[Array, "*T"], ref: Float[Array, "*T"], estimator: str) -> Float32[Array, "*T"]:
    """Estimate of KL(policy || reference) from one token drawn by the policy (see KL_ESTIMATORS),
    with d = logp - ref: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. As a loss, k1 pulls nowhere in the mean: its gradient is the
    score function, whose expectation is 0; the gradient of k2 is the true KL's."""
    d = jnp.clip(logp - ref, -20.0, 20.0)
    return KL_ESTIMATORS[estimator](d)


def preference_coefficients(
    chosen: Float[Array, " K"], rejected: Float[Array, " K"], beta: float
) -> tuple[Float32[Array, " K"], Float32[Array, " K"]]:
    """DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7) as coefficients of the log-probs: its gradient equals the
    gradient of c * (logp_rejected - logp_chosen) with c held fixed.

    chosen, rejected: sums over a response of logp - ref under the current policy. Returns (loss =
    -log sigmoid(beta * (chosen - rejected)), c = beta * sigmoid(-beta * (chosen - rejected))).
    """
    margin = beta * (chosen - rejected)
    return jax.nn.softplus(-margin), beta * jax.nn.sigmoid(-margin)


def truncated_importance(
    trainer: Float[Array, "B R"], sampler: Float[Array, "B R"], mask: Bool[Array, "B R"], cap: float
) -> tuple[Float32[Array, "B R"], dict[str, Float32[Array, ""]]]:
    """min(pi_trainer / pi_sampler, cap) of each token, 1 outside the mask: the weight that corrects the expectation
    of a loss over tokens which a sampler of other precision drew (truncated importance sampling, Ionides 2008; Yao et al.
    2025 for this use); 1 everywhere if cap is 0. trainer, sampler: log-probs under the same parameters. Also
    returns metrics: the mean absolute gap between the two and, with a cap, the share of weights that are cut.
    """
    gap = jnp.where(mask, trainer - sampler, 0.0)
    ratio = jnp.exp(jnp.clip(gap, -20.0, 20.0))
    count = jnp.maximum(mask.sum(), 1)
    metrics = {"sampler_gap": jnp.abs(gap).sum() / count}
    if not cap:
        return jnp.ones_like(ratio), metrics
    return jnp.minimum(ratio, cap), metrics | {"importance_cut": (mask & (ratio > cap)).sum() / count}
