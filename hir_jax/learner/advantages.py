"""Advantages: REINFORCE++ and GRPO, as verl computes them (method.md). Shapes: rewards f32[B], the rest [B, R]."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hir_jax.types import Array, TrainBatch

ESTIMATORS = ("reinforce_plus_plus", "grpo")


def token_rewards(batch: TrainBatch, kl: float) -> Array:
    """r_t = -kl * (logp_old_t - logp_ref_t) + [t is last] * R (KL in reward, k1 estimator), f32[B, R]."""
    index = jnp.arange(batch.response_mask.shape[1])
    is_last = index == batch.response_mask.sum(-1, keepdims=True) - 1
    reward = jnp.where(is_last, batch.reward[:, None], 0.0)
    if kl:
        reward -= kl * (batch.behaviour_logp - batch.ref_logp)
    return jnp.where(batch.response_mask, reward, 0.0)


def returns_to_go(rewards: Array) -> Array:
    """G_t = sum of r_u for u >= t (gamma = 1)."""
    return jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]


def whiten(values: Array, mask: Array) -> Array:
    """(x - mean) / sqrt(var + 1e-8) over all masked entries, var unbiased (ddof = 1); 0 outside the mask."""
    count = mask.sum()
    mean = jnp.where(mask, values, 0.0).sum() / jnp.maximum(count, 1)
    centred = jnp.where(mask, values - mean, 0.0)
    variance = (centred**2).sum() / jnp.maximum(count - 1, 1)
    return centred * jax.lax.rsqrt(variance + 1e-8)


def reinforce_plus_plus(batch: TrainBatch, kl: float) -> Array:
    """REINFORCE++ (verl): whitened return-to-go over every response token of the batch, f32[B, R].

    Rows of weight 0 count neither in the mean nor in the variance.
    """
    mask = batch.response_mask & (batch.weight > 0)[:, None]
    return whiten(returns_to_go(token_rewards(batch, kl)), mask)


def grpo(batch: TrainBatch, kl: float) -> Array:
    """GRPO: A = (R - mean_group) / (std_group + 1e-6), std unbiased; a group of one has mean 0 and std 1. f32[B, R].

    R sums the token rewards (so KL in reward enters); all replays and originals of a prompt are one group.
    """
    total = token_rewards(batch, kl).sum(-1)
    counted = (batch.weight > 0).astype(jnp.float32)
    groups = batch.group.shape[0]  # an upper bound on the number of prompts
    size = jax.ops.segment_sum(counted, batch.group, groups)
    mean = jax.ops.segment_sum(counted * total, batch.group, groups) / jnp.maximum(size, 1)
    centred = (total - mean[batch.group]) * counted
    std = jnp.sqrt(jax.ops.segment_sum(centred**2, batch.group, groups) / jnp.maximum(size - 1, 1))
    alone = (size <= 1)[batch.group]
    score = jnp.where(alone, total, centred) / (jnp.where(alone, 1.0, std[batch.group]) + 1e-6)
    return jnp.where(batch.response_mask & (counted > 0)[:, None], score[:, None], 0.0)


def advantages(batch: TrainBatch, estimator: str, kl: float) -> Array:
    """f32[B, R] of the whole batch, before it is split into mini-batches. Raises ValueError for an unknown estimator."""
    if estimator == "reinforce_plus_plus":
        return reinforce_plus_plus(batch, kl)
    if estimator == "grpo":
        return grpo(batch, kl)
    raise ValueError(f"unknown learner.estimator {estimator!r}; known: {', '.join(ESTIMATORS)}")
