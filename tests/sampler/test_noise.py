"""The vocabulary noise against what uniform, independent bits and the exponential distribution would give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hir_jax.sampler.noise import exponentials, word_bits
from hir_jax.sampler.sample import row_keys

COUNT = 50_000


def keys_at(rows, position):
    keys = row_keys(jax.random.key(0), jnp.arange(rows))
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, position)


@pytest.fixture(scope="module")
def bits():
    """u32[4 positions, 8 rows, COUNT]."""
    return np.stack([np.asarray(word_bits(keys_at(8, t), COUNT)) for t in range(4)])


def p_values(counts):
    """Chi-square of each row of counts against equal shares."""
    return stats.chisquare(counts, axis=-1).pvalue


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_each_byte_is_uniform_over_words(bits, shift):
    counts = np.stack([np.bincount((row >> shift) & 255, minlength=256) for row in bits.reshape(-1, COUNT)])
    assert p_values(counts).min() > 1e-5  # of 32 samples
    assert stats.kstest(p_values(counts), "uniform").pvalue > 1e-3  # nor suspiciously even


@pytest.mark.parametrize(("name", "axis"), [("positions", 0), ("rows", 1), ("words", 2)])
def test_neighbours_are_independent(bits, name, axis):
    """Chi-square of the joint histogram of the top four bits of neighbours, and of the lowest four."""
    first, second = (np.moveaxis(b, axis, 0) for b in (bits, bits))
    for shift in (28, 0):
        pairs = ((first[:-1] >> shift) & 15) * 16 + ((second[1:] >> shift) & 15)
        assert p_values(np.bincount(pairs.ravel(), minlength=256)) > 1e-4, (name, shift)


def test_bits_of_neighbouring_words_do_not_correlate(bits):
    """All 32 x 32 pairs of a bit of one word and a bit of the next: correlations as of coins."""
    coins = ((bits.reshape(-1, COUNT)[:, :, None] >> np.arange(32)) & 1).astype(np.float32) - 0.5
    first, second = (x.reshape(-1, 32) for x in (coins[:, :-1], coins[:, 1:]))
    z = 4 * (first.T @ second) / np.sqrt(len(first))
    assert np.abs(z).max() < 5.5  # of 1024 normal values


def test_a_word_draws_the_same_in_any_slice():
    whole = np.asarray(word_bits(keys_at(5, 3), 100))
    np.testing.assert_array_equal(np.asarray(word_bits(keys_at(5, 3)[2:4], 60)), whole[2:4, :60])
    assert len(np.unique(whole)) == whole.size


def test_exponentials_follow_their_law_and_reach_small_values():
    drawn = np.asarray(exponentials(keys_at(32, 0), COUNT), np.float64)
    assert np.isfinite(drawn).all() and (drawn > 0).all()
    assert stats.kstest(drawn.ravel(), "expon").pvalue > 1e-3
    lowest = np.sort(drawn.ravel())[:1000]  # the winners of races: as even as uniform ones, and all different
    assert stats.kstest(lowest / lowest[-1], "uniform").pvalue > 1e-3
    assert len(np.unique(lowest)) > 990
