"""Dynamic sampling and the overlong punishment against plain loops and hand-worked numbers."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hir_jax.hir import dapo
from hir_jax.types import Verdicts


@pytest.mark.parametrize(
    ("reward", "weight", "expected"),
    [
        ([0, 0, 0], [1, 1, 1], False),
        ([1, 1, 1], [1, 1, 1], False),
        ([0, 1, 0], [1, 1, 1], True),
        ([0, 1, 0], [1, 0, 1], False),  # the success is not usable
        ([0, 1, 1], [1, 1, 0], True),
        ([0, 1, 0], [0, 1, 0], False),  # one usable sample
        ([0, 1, 0], [0, 0, 0], False),  # none
        ([0.5, 0.5, 0.75], [1, 1, 1], True),  # CLA
        ([1 / 3, 1 / 3, 1 / 3], [1, 1, 1], False),
    ],
)
def test_which_groups_differ_worked_by_hand(reward, weight, expected):
    """Between a group that does and one that does not."""
    rewards = np.array([[0, 1, 1], reward, [1, 1, 1]], np.float32).ravel()
    weights = np.array([[1, 1, 1], weight, [1, 1, 1]], np.float32).ravel()
    assert dapo.differing(rewards, weights, 3).tolist() == [True, expected, False]


@given(st.integers(1, 5), st.integers(1, 4), st.data())
@settings(max_examples=60)
def test_groups_that_differ_equal_a_loop(prompts, samples, data):
    size = prompts * samples
    reward = np.array(data.draw(st.lists(st.sampled_from([0, 1 / 3, 1]), min_size=size, max_size=size)), np.float32)
    weight = np.array(data.draw(st.lists(st.sampled_from([0, 1]), min_size=size, max_size=size)), np.float32)
    found = dapo.differing(reward, weight, samples)
    for n in range(prompts):
        usable = {float(reward[b]) for b in range(n * samples, (n + 1) * samples) if weight[b]}
        assert found[n] == (len(usable) > 1)


def test_replacements_worked_by_hand():
    """Places 0, 2 and 3 are open; of the fresh groups 1 and 3 differ: they go to 0 and 2."""
    places, sources = dapo.replacements(np.array([0, 1, 0, 0], bool), np.array([0, 1, 0, 1], bool))
    assert places.tolist() == [0, 2] and sources.tolist() == [1, 3]
    places, sources = dapo.replacements(np.array([1, 1, 0, 1], bool), np.array([0, 1, 1, 1], bool))  # surplus: 2 and 3
    assert places.tolist() == [2] and sources.tolist() == [1]
    for kept, fresh in (([1, 1], [1, 1]), ([0, 0], [0, 0])):
        assert [len(x) for x in dapo.replacements(np.array(kept, bool), np.array(fresh, bool))] == [0, 0]


def test_groups_are_put_in_whole_and_nothing_else_is_touched():
    indices, fresh_indices = np.array([5, 6, 7]), np.array([1, 2, 3])
    met = np.zeros((6, 2), bool)
    kept = indices, np.arange(6.0), Verdicts(met, ~met, ~met)
    fresh = fresh_indices, np.arange(6.0) + 10, Verdicts(~met, met, met)
    found = dapo.with_groups(kept, fresh, np.array([0, 2]), np.array([1, 2]))
    assert found[0].tolist() == [2, 6, 3] and found[1].tolist() == [12, 13, 2, 3, 14, 15]
    assert found[2].satisfied[:, 0].tolist() == [1, 1, 0, 0, 1, 1]
    assert indices.tolist() == [5, 6, 7] and not met.any()


def test_overlong_penalty_worked_by_hand():
    """L_max = 12, L_cache = 4: 0 up to 8 tokens, then a quarter a token, -1 at 12."""
    length = np.array([0, 1, 7, 8, 9, 10, 11, 12], np.int32)
    found = dapo.overlong_penalty(length, 12, 4)
    assert np.asarray(found).tolist() == [0, 0, 0, 0, -0.25, -0.5, -0.75, -1]
    assert np.asarray(dapo.overlong_penalty(length, 12, 12)).tolist() == pytest.approx((-length / 12).tolist())


@given(st.integers(1, 20_480), st.data())
@settings(max_examples=60)
def test_overlong_penalty_equals_equation_13(longest, data):
    cache = data.draw(st.integers(1, longest))
    near = st.sampled_from([longest - cache - 1, longest - cache, longest - cache + 1, longest - 1, longest])
    lengths = data.draw(st.lists(st.one_of(near, st.integers(0, longest)), min_size=8, max_size=8))
    lengths = np.clip(lengths, 0, longest).astype(np.int32)
    expected = []
    for y in lengths.tolist():
        if y <= longest - cache:
            expected.append(0.0)
        elif y <= longest:
            expected.append(((longest - cache) - y) / cache)
        else:
            expected.append(-1.0)
    found = jax.jit(dapo.overlong_penalty, static_argnums=(1, 2))(lengths, longest, cache)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
