"""Advantages of a TrainBatch by REINFORCE++, GRPO, RLOO or Dr. GRPO.

`baseline` says which rows the means and deviations are taken over: "all", originals and replays together (as the released
run), or "originals" alone, so that replays, whose reward is always 1, do not raise what an original is compared with.
`std_floor` is the least deviation that is divided by (0: none).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32

from hir_jax.types import Array, TrainBatch

BASELINES = ("all", "originals")


def token_rewards(batch: TrainBatch, kl: float) -> Float32[Array, "B R"]:
    """r_t = -kl * (logp_old_t - logp_ref_t) + [t is last] * R (KL in reward, k1 estimator)."""
    index = jnp.arange(batch.response_mask.shape[1])
    is_last = index == batch.response_mask.sum(-1, keepdims=True) - 1
    reward = jnp.where(is_last, batch.reward[:, None], 0.0)
    if kl:
        reward -= kl * (batch.behaviour_logp - batch.ref_logp)
    return jnp.where(batch.response_mask, reward, 0.0)


def returns_to_go(rewards: Float[Array, "B R"]) -> Float32[Array, "B R"]:
    """G_t = sum of r_u for u >= t (gamma = 1)."""
    return jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]


def _counted(batch: TrainBatch, baseline: str) -> Bool[Array, " B"]:
    """The rows that statistics are taken over; never one of weight 0."""
    counted = batch.weight > 0
    return counted & ~batch.is_replay if baseline == "originals" else counted


def whiten(
    values: Float[Array, "B R"], mask: Bool[Array, "B R"], counted: Bool[Array, "B R"], std_floor: float = 0.0
) -> Float32[Array, "B R"]:
    """(x - mean) / max(sqrt(var + 1e-8), std_floor), mean and unbiased var (ddof = 1) over the entries `counted`; 0 outside
    the mask."""
    count = counted.sum()
    mean = jnp.where(counted, values, 0.0).sum() / jnp.maximum(count, 1)
    variance = jnp.where(counted, (values - mean) ** 2, 0.0).sum() / jnp.maximum(count - 1, 1)
    return jnp.where(mask, values - mean, 0.0) / jnp.maximum(jnp.sqrt(variance + 1e-8), std_floor)


def reinforce_plus_plus(batch: TrainBatch, kl: float, baseline: str, std_floor: float) -> Float32[Array, "B R"]:
    """REINFORCE++ (Hu 2025, arXiv 2501.03262, as in verl): A_t = whitened return-to-go over every counted response token of
    the batch."""
    mask = batch.response_mask & (batch.weight > 0)[:, None]
    counted = batch.response_mask & _counted(batch, baseline)[:, None]
    return whiten(returns_to_go(token_rewards(batch, kl)), mask, counted, std_floor)


def _groups(batch: TrainBatch, kl: float, baseline: str) -> tuple[Float32[Array, " B"], ...]:
    """Per row: R (the sum of its token rewards, so that KL in reward enters), whether it is counted, and the sum and number
    of the counted rows of its prompt. All replays and originals of a prompt are one group."""
    total = token_rewards(batch, kl).sum(-1)
    counted = _counted(batch, baseline).astype(jnp.float32)
    groups = batch.group.shape[0]  # an upper bound on the number of prompts
    sums = jax.ops.segment_sum(counted * total, batch.group, groups)[batch.group]
    size = jax.ops.segment_sum(counted, batch.group, groups)[batch.group]
    return total, counted, sums, size


def _on_tokens(batch: TrainBatch, advantage: Float[Array, " B"]) -> Float32[Array, "B R"]:
    """The advantage of each row on all tokens of its response; 0 in rows of weight 0."""
    return jnp.where(batch.response_mask & (batch.weight > 0)[:, None], advantage[:, None], 0.0)


def grpo(batch: TrainBatch, kl: float, baseline: str, std_floor: float) -> Float32[Array, "B R"]:
    """GRPO (Shao et al. 2024, arXiv 2402.03300, as in verl): A = (R - mean_group) / (max(std_group, std_floor) + 1e-6), std
    unbiased; where at most one row of a group counts, mean 0 and std 1."""
    total, counted, sums, size = _groups(batch, kl, baseline)
    centred = total - sums / jnp.maximum(size, 1)
    squares = jax.ops.segment_sum(counted * centred**2, batch.group, batch.group.shape[0])[batch.group]
    std = jnp.maximum(jnp.sqrt(squares / jnp.maximum(size - 1, 1)), std_floor)
    return _on_tokens(batch, jnp.where(size <= 1, total / (1 + 1e-6), centred / (std + 1e-6)))


def dr_grpo(batch: TrainBatch, kl: float, baseline: str, std_floor: float) -> Float32[Array, "B R"]:
    """Dr. GRPO (Liu et al. 2025, arXiv 2503.20783): A = R - mean_group, not divided by a deviation. Its other half, a loss not
    divided by lengths, is `learner.average = "constant"`."""
    total, _, sums, size = _groups(batch, kl, baseline)
    return _on_tokens(batch, total - sums / jnp.maximum(size, 1))


def rloo(batch: TrainBatch, kl: float, baseline: str, std_floor: float) -> Float32[Array, "B R"]:
    """RLOO (Ahmadian et al. 2024, arXiv 2402.14740): A = R - mean of the other counted rows of its group; A = R where there
    are none."""
    total, counted, sums, size = _groups(batch, kl, baseline)
    return _on_tokens(batch, total - (sums - counted * total) / jnp.maximum(size - counted, 1))


ESTIMATORS = {"reinforce_plus_plus": reinforce_plus_plus, "grpo": grpo, "rloo": rloo, "dr_grpo": dr_grpo}


def advantages(
    batch: TrainBatch, estimator: str, kl: float, *, baseline: str = "all", std_floor: float = 0.0
) -> Float32[Array, "B R"]:
    """Advantages of the whole batch, before it is split into mini-batches; `kl`: of the KL in reward. Raises ValueError for an
    unknown estimator."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown learner.estimator {estimator!r}; known: {', '.join(ESTIMATORS)}")
    return ESTIMATORS[estimator](batch, kl, baseline, std_floor)
