"""Selection against a NumPy version written from docs/method.md, in plain loops."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hir_jax.hir import select
from hir_jax.types import Rollout, Verdicts


def reference_schedule(step, lambda_0, eta):
    try:
        return min(lambda_0 * (1 + eta) ** step, select.LAMBDA_CAP)
    except OverflowError:
        return select.LAMBDA_CAP


def reference_selection(scores, candidate, group, budget, scope, prompts):
    """Row indices, best first, ties to the lower row."""
    best_first = sorted((i for i in range(len(scores)) if candidate[i]), key=lambda i: (-scores[i], i))
    if scope == "batch":
        return best_first[:budget]
    by_prompt = {n: [i for i in best_first if group[i] == n] for n in range(prompts)}
    if scope == "group":
        chosen = {i for rows in by_prompt.values() for i in rows[: budget // prompts]}
    else:  # water-filling: one after the other gives its next best until nothing is left to spend
        chosen, level = set(), 0
        while len(chosen) < budget and any(len(rows) > level for rows in by_prompt.values()):
            for n in range(prompts):
                if level < len(by_prompt[n]) and len(chosen) < budget:
                    chosen.add(by_prompt[n][level])
            level += 1
    return [i for i in best_first if i in chosen][:budget]


PROMPTS, SAMPLES, CONSTRAINTS = (
    4,
    5,
    4,
)  # one shape, so that it is compiled once; what is smaller leaves a part of it empty


@st.composite
def situations(draw):
    """Up to 4 prompts with up to 5 samples each and 4 constraints."""
    prompts, samples = draw(st.integers(1, PROMPTS)), draw(st.integers(1, SAMPLES))
    rows = PROMPTS * SAMPLES
    bits = st.lists(st.booleans(), min_size=rows * CONSTRAINTS, max_size=rows * CONSTRAINTS)
    kind = draw(st.sampled_from(["random", "no failures", "all failures"]))
    satisfied = np.array(draw(bits)).reshape(rows, CONSTRAINTS)
    satisfied = {"no failures": np.ones_like(satisfied), "all failures": np.zeros_like(satisfied)}.get(kind, satisfied)
    known = np.array(draw(bits)).reshape(rows, CONSTRAINTS) if draw(st.booleans()) else np.ones_like(satisfied)
    present = np.ones_like(satisfied)
    present[:, draw(st.integers(1, CONSTRAINTS)) :] = False
    # few distinct values, so that there are ties
    entropy = np.array(draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=rows * 3, max_size=rows * 3)))
    lengths = np.array(draw(st.lists(st.integers(1, 3), min_size=rows, max_size=rows)))
    mask = np.arange(3) < lengths[:, None]
    filled, ended = (np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows))) for _ in range(2))
    filled &= (np.arange(rows) // SAMPLES < prompts) & (np.arange(rows) % SAMPLES < samples)
    entropy = np.where(mask, entropy.reshape(rows, 3), 0).astype(np.float32)
    rollout = Rollout(np.zeros((rows, 3), np.int32), mask, entropy, entropy, ended, filled)
    return rollout, Verdicts(satisfied & known, known, present)


@given(
    situations(),
    st.sampled_from(["curriculum", "entropy", "integrity"]),
    st.sampled_from(select.SCOPES),
    st.sampled_from(["mean", "sum"]),
    st.integers(1, 3 * PROMPTS),
    st.sampled_from([1, 7, 10_000]),
    st.booleans(),
)
@settings(max_examples=150)
def test_selection_equals_numpy(situation, strategy, scope, reduce, budget, step, truncated):
    rollout, verdicts = situation
    rows = len(rollout.filled)
    config = SimpleNamespace(
        strategy=strategy,
        entropy=reduce,
        schedule="exponential",
        lambda_0=2.0,
        eta=0.05,
        min_integrity=0.4,
        min_kept=2,
        truncated=truncated,
    )
    expected_strict = np.zeros(rows, bool)

    expected_score, expected_candidate = np.zeros(rows), np.zeros(rows, bool)
    for b in range(rows):
        counted = [verdicts.satisfied[b, c] for c in range(verdicts.present.shape[1]) if verdicts.present[b, c]]
        all_known = all(verdicts.known[b, c] for c in range(len(counted)))
        known = [verdicts.satisfied[b, c] for c in range(len(counted)) if verdicts.known[b, c]]
        integrity = sum(known) / len(known) if known else 0.0
        expected_candidate[b] = rollout.filled[b] and all_known and 0 < integrity < 1
        expected_strict[b] = expected_candidate[b] and integrity >= 0.4 and sum(known) >= 2
        expected_strict[b] &= truncated or bool(rollout.ended[b])
        tokens = rollout.entropy[b][rollout.mask[b]]
        diversity = tokens.mean() if reduce == "mean" else tokens.sum()
        weight = np.float32(reference_schedule(step, 2.0, 0.05))
        parts = {"entropy": diversity, "integrity": integrity, "curriculum": diversity + weight * integrity}
        expected_score[b] = parts[strategy]

    scores = np.asarray(select.select_score(rollout, verdicts, step, jax.random.key(0), config, horizon=100))
    candidate = np.asarray(select.replayable(verdicts, rollout.filled))
    np.testing.assert_allclose(scores, expected_score, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(candidate, expected_candidate)
    for mask_truncated in (False, True):
        strict = select.candidates(rollout, verdicts, config, mask_truncated=mask_truncated)
        expected = expected_strict & (rollout.ended if mask_truncated else True)
        np.testing.assert_array_equal(strict, expected)

    group, places = np.arange(rows) // SAMPLES, 3 * PROMPTS
    found = select.choose(scores, candidate, group, budget, scope=scope, places=places, prompts=PROMPTS)
    expected = reference_selection(scores, candidate, group, budget, scope, PROMPTS)
    assert np.asarray(found.row)[np.asarray(found.valid)].tolist() == expected
    assert np.asarray(found.valid).tolist() == sorted(np.asarray(found.valid).tolist(), reverse=True)


def test_rewards_worked_by_hand():
    """Met, met | met, failed | unknown, failed | unknown, met | an empty slot | met, met, but cut at the greatest length."""
    satisfied = np.array([[1, 1], [1, 0], [0, 0], [0, 1], [1, 1], [1, 1]], bool)
    known = np.array([[1, 1], [1, 1], [0, 1], [0, 1], [1, 1], [1, 1]], bool)
    verdicts = Verdicts(satisfied, known, np.ones_like(known))
    zeros = np.zeros((6, 3), np.float32)
    filled, ended = np.arange(6) != 4, np.arange(6) != 5
    rollout = Rollout(zeros.astype(np.int32), zeros == 0, zeros, zeros, ended, filled)

    def rewards(**how):
        how = {"fractional": False, "successes_only": False, "mask_truncated": False} | how
        reward, weight = select.rewards(rollout, verdicts, **how)
        return [r if w else None for r, w in zip(reward.tolist(), weight.tolist(), strict=True)]

    assert rewards() == [1, 0, 0, None, None, 1]  # one known failure decides
    assert rewards(fractional=True) == [1, 0.5, None, None, None, 1]
    assert rewards(successes_only=True) == [1, None, None, None, None, 1]
    assert rewards(mask_truncated=True) == [1, 0, 0, None, None, None]


@pytest.mark.parametrize("budget", [0, 3, 7])
@pytest.mark.parametrize("scope", select.SCOPES)
def test_budget_below_the_places(scope, budget):
    """After e further rounds (k - e) * N replays are wanted, in arrays of k * N places."""
    rng = np.random.default_rng(budget)
    scores, candidate = rng.normal(size=20).astype(np.float32), rng.random(20) < 0.7
    group = np.arange(20) // 5
    found = select.choose(scores, candidate, group, budget, scope=scope, places=8, prompts=4)
    expected = reference_selection(scores, candidate, group, budget, scope, 4)
    assert np.asarray(found.row)[np.asarray(found.valid)].tolist() == expected


@pytest.mark.parametrize("step", [0, 1, 60, 1_800, 10_000, 10_000_000])
def test_schedule_grows_and_stays_finite(step):
    value = float(select.schedule(step, "exponential", 2.0, 0.05, 100))
    assert math.isfinite(value)
    assert value == pytest.approx(reference_schedule(step, 2.0, 0.05), rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("constant", {1: 2.0, 100: 2.0}),
        ("linear", {0: 2.0, 10: 3.0, 100: 12.0, 200: 22.0}),
        ("cosine", {0: 2.0, 50: 7.0, 100: 12.0, 200: 12.0}),
        ("exponential", {0: 2.0, 1: 2.1, 2: 2.205}),
    ],
)
def test_schedules_worked_by_hand(kind, points):
    """lambda_0 2, eta 0.05 (exponential) or 0.05 * s, over 100 steps."""
    for step, expected in points.items():
        assert float(select.schedule(step, kind, 2.0, 0.05, 100)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["exponential", "constant", "linear", "cosine"])
def test_no_weight_of_integrity_at_all(kind):
    assert float(select.schedule(7, kind, 0.0, 0.05, 100)) == 0


def test_random_strategy_depends_on_the_key_alone():
    rollout = Rollout(*(np.zeros((6, 2), t) for t in (np.int32, bool, np.float32, np.float32)), None, None)
    config = SimpleNamespace(strategy="random")
    one, again, other = (
        np.asarray(select.select_score(rollout, Verdicts(None, None, None), 1, jax.random.key(seed), config, 100))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_one_known_failure_decides():
    """A known failure decides ILA; an unknown verdict decides nothing, and forbids replay."""
    satisfied = np.array([[True, True], [True, False], [True, False], [False, False]])
    known = np.array([[True, True], [True, True], [True, False], [True, False]])
    verdicts = Verdicts(satisfied, known, np.ones_like(known))
    ila, decided = select.ila(verdicts)
    assert np.asarray(ila).tolist() == [1, 0, 0, 0]
    assert np.asarray(decided).tolist() == [True, True, False, True]
    assert np.asarray(select.replayable(verdicts, np.ones(4, bool))).tolist() == [False, True, False, False]


@pytest.mark.parametrize(("candidates", "rounds"), [(8, 0), (9, 0), (7, 1), (5, 1), (4, 1), (3, 2), (0, 2)])
def test_missing_rounds(candidates, rounds):
    """e = ceil((k*N - R) / N) with k = 2, N = 4."""
    assert select.missing_rounds(candidates, prompts=4, k=2) == rounds
