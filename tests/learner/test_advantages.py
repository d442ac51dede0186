"""Estimators against NumPy in plain loops and hand-worked numbers."""

import numpy as np
import pytest

from hir_jax.learner.advantages import ESTIMATORS, advantages, returns_to_go, token_rewards
from hir_jax.types import TrainBatch


def batch_of(seed, rows=8, columns=5, groups=3):
    rng = np.random.default_rng(seed)
    mask = np.arange(columns) < rng.integers(1, columns + 1, rows)[:, None]
    return TrainBatch(
        tokens=np.zeros((rows, columns), np.int32),
        prompt_length=np.ones(rows, np.int32),
        response_mask=mask,
        behaviour_logp=(rng.normal(size=mask.shape) * mask).astype(np.float32),
        importance=np.ones(mask.shape, np.float32),
        ref_logp=(rng.normal(size=mask.shape) * mask).astype(np.float32),
        reward=rng.integers(0, 2, rows).astype(np.float32),
        weight=np.where(np.arange(rows) < 2, 1, rng.random(rows) < 0.8).astype(np.float32),
        group=np.sort(rng.integers(0, groups, rows)).astype(np.int32),
        is_replay=(rng.random(rows) < 0.3) & (np.arange(rows) >= 2),
    )


def reference_rewards(batch, kl):
    out = np.zeros(batch.behaviour_logp.shape)
    for b, mask in enumerate(batch.response_mask):
        for t in range(mask.sum()):
            out[b, t] = -kl * (batch.behaviour_logp[b, t] - batch.ref_logp[b, t])
        out[b, mask.sum() - 1] += batch.reward[b]
    return out


def counted_rows(batch, baseline):
    return [
        b for b in range(len(batch.weight)) if batch.weight[b] and not (baseline == "originals" and batch.is_replay[b])
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize(("baseline", "floor"), [("all", 0.0), ("all", 0.6), ("originals", 0.0), ("originals", 0.6)])
def test_reinforce_plus_plus_equals_numpy(seed, kl, baseline, floor):
    batch = batch_of(seed)
    rewards = reference_rewards(batch, kl)
    np.testing.assert_allclose(token_rewards(batch, kl), rewards, atol=1e-6)
    returns = np.array([[row[t:].sum() for t in range(len(row))] for row in rewards])
    np.testing.assert_allclose(returns_to_go(rewards), returns, atol=1e-6)
    values = np.concatenate([returns[b][batch.response_mask[b]] for b in counted_rows(batch, baseline)])
    std = max(np.sqrt(values.var(ddof=1) + 1e-8), floor)
    trained = batch.response_mask & (batch.weight > 0)[:, None]
    expected = np.where(trained, (returns - values.mean()) / std, 0)
    found = advantages(batch, "reinforce_plus_plus", kl, baseline=baseline, std_floor=floor)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize(("baseline", "floor"), [("all", 0.0), ("all", 0.6), ("originals", 0.0), ("originals", 0.6)])
@pytest.mark.parametrize("estimator", ["grpo", "rloo", "dr_grpo"])
def test_group_estimators_equal_numpy(estimator, seed, kl, baseline, floor):
    batch = batch_of(seed)
    total = reference_rewards(batch, kl).sum(-1)
    expected = np.zeros(batch.behaviour_logp.shape)
    for b in range(len(total)):
        if not batch.weight[b]:
            continue
        members = [i for i in counted_rows(batch, baseline) if batch.group[i] == batch.group[b]]
        others = [total[i] for i in members if i != b]
        if estimator == "rloo":
            score = total[b] - (np.mean(others) if others else 0.0)
        elif estimator == "dr_grpo":
            score = total[b] - (total[members].mean() if members else 0.0)
        else:
            mean, std = (total[members].mean(), total[members].std(ddof=1)) if len(members) > 1 else (0.0, None)
            score = (total[b] - mean) / ((1.0 if std is None else max(std, floor)) + 1e-6)
        expected[b] = score * batch.response_mask[b]
    found = advantages(batch, estimator, kl, baseline=baseline, std_floor=floor)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_worked_by_hand():
    """Two rows of one and three tokens, rewards 1 and 0: returns 1 | 0 0 0, mean 1/4, unbiased variance 1/4."""
    mask = np.array([[True, False, False], [True, True, True]])
    zeros = np.zeros((2, 3), np.float32)
    batch = batch_of(0, 2, 3)._replace(
        response_mask=mask, behaviour_logp=zeros, ref_logp=zeros, reward=np.array([1.0, 0.0], np.float32),
        weight=np.ones(2, np.float32), group=np.zeros(2, np.int32),
    )  # fmt: skip
    expected = np.array([[1.5, 0, 0], [-0.5, -0.5, -0.5]])
    np.testing.assert_allclose(advantages(batch, "reinforce_plus_plus", 0.0), expected, atol=1e-6)
    root_half = np.sqrt(0.5)  # GRPO: mean 1/2, std 1/sqrt(2)
    expected = np.array([[root_half, 0, 0], [-root_half] * 3])
    np.testing.assert_allclose(advantages(batch, "grpo", 0.0), expected, atol=1e-5)
    np.testing.assert_allclose(advantages(batch, "dr_grpo", 0.0), [[0.5, 0, 0], [-0.5] * 3], atol=1e-6)
    np.testing.assert_allclose(advantages(batch, "rloo", 0.0), [[1, 0, 0], [-1] * 3], atol=1e-6)
    with_replay = batch._replace(
        is_replay=np.array([True, False])
    )  # compared with the one original: 1 - 0 and 0 - nothing
    np.testing.assert_allclose(
        advantages(with_replay, "rloo", 0.0, baseline="originals"), [[1, 0, 0], [0] * 3], atol=1e-6
    )


def test_no_success_at_all_gives_no_advantage():
    """Zero variance: no division by zero, no signal."""
    batch = batch_of(1)._replace(reward=np.zeros(8, np.float32))
    for estimator in ESTIMATORS:
        assert np.abs(advantages(batch, estimator, 0.0)).max() == 0


def test_unknown_estimator_is_named():
    with pytest.raises(ValueError, match=r"learner\.estimator 'ppo'"):
        advantages(batch_of(0), "ppo", 0.0)
