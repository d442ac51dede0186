"""The sampler against full passes of the same model, NumPy's soft-max, and transformers' logit warpers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from hir_jax.learner.logprobs import token_logprobs
from hir_jax.model import decoder
from hir_jax.model.config import ModelConfig
from hir_jax.sampler.sample import Sampling, _restrict, draw, row_keys, sample

MODEL = ModelConfig("qwen3", 61, 32, 64, 3, 4, 2, 16, qk_norm=True, tie_embeddings=False)
SETTINGS = Sampling(max_response=12, stop_ids=(3, 5), pad_id=0)
LENGTHS = np.array([9, 4, 1], np.int32)


@pytest.fixture(scope="module")
def params():
    made = decoder.init(MODEL, jax.random.key(0))
    return jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, made)  # sharper than a fresh model's even soft-max


@pytest.fixture(scope="module")
def prompts():
    tokens = np.random.default_rng(0).integers(6, 61, (3, 9)).astype(np.int32)
    return np.where(np.arange(9) >= 9 - LENGTHS[:, None], tokens, 0).astype(np.int32)


def roll(params, prompts, rows=None, key=7, **changes):
    rows = np.arange(12).reshape(3, 4) if rows is None else rows
    settings = dataclasses.replace(SETTINGS, **changes)
    run = jax.jit(sample, static_argnames=("model", "settings"))
    return jax.device_get(run(params, prompts, LENGTHS, rows, jax.random.key(key), model=MODEL, settings=settings))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_trainer(params, prompts, temperature):
    found = roll(params, prompts, temperature=temperature, policy_temperature=temperature, top_k=20, top_p=0.9)
    assert found.mask.sum() > 40
    width = 9 + SETTINGS.max_response

    @jax.jit
    def trained(tokens, length):  # of one row, left-aligned
        at = jnp.arange(width)[None]
        hidden = decoder.hidden_states(MODEL, params, tokens[None], at, at < length)
        matrix = decoder.unembed_matrix(MODEL, params)
        return token_logprobs(hidden[0, :-1], tokens[1:], matrix, temperature)

    for b, (row, mask) in enumerate(zip(found.tokens, found.mask, strict=True)):
        start, length = LENGTHS[b // 4], mask.sum()
        tokens = np.zeros(width, np.int32)
        tokens[:start], tokens[start : start + length] = prompts[b // 4, 9 - start :], row[mask]
        logp, entropy = (x[start - 1 : start - 1 + length] for x in trained(tokens, start + length))
        np.testing.assert_allclose(found.sampler_logp[b, mask], logp, atol=1e-4)
        np.testing.assert_allclose(found.entropy[b, mask], entropy, atol=1e-4)


def test_greedy_equals_repeated_full_passes(params, prompts):
    width = 9 + SETTINGS.max_response

    @jax.jit
    def next_word(tokens, length):
        at = jnp.arange(width)[None]
        hidden = decoder.hidden_states(MODEL, params, tokens[None], at, at < length)
        return decoder.logits(MODEL, params, hidden)[0, length - 1].argmax()

    found = roll(params, prompts, rows=np.arange(3)[:, None], temperature=0.0)
    for n in range(3):
        tokens = prompts[n, 9 - LENGTHS[n] :].tolist()
        for t in range(SETTINGS.max_response):
            word = int(next_word(np.array(tokens + [0] * (width - len(tokens))), len(tokens)))
            assert found.mask[n, t] and found.tokens[n, t] == word
            tokens.append(word)
            if word in SETTINGS.stop_ids:
                break
        assert found.mask[n].sum() == t + 1
        assert found.ended[n] == (tokens[-1] in SETTINGS.stop_ids)


def test_ends_at_any_stop_token_and_pads_behind_it(params, prompts):
    found = roll(params, prompts)
    for tokens, mask, ended in zip(found.tokens, found.mask, found.ended, strict=True):
        length = mask.sum()
        assert mask[:length].all()
        stops = np.isin(tokens[:length], SETTINGS.stop_ids)
        assert not stops[:-1].any() and stops[-1] == ended
        assert ended or length == SETTINGS.max_response
        assert (tokens[length:] == SETTINGS.pad_id).all()
    assert (found.sampler_logp[~found.mask] == 0).all() and (found.entropy[~found.mask] == 0).all()


def test_noise_is_a_function_of_seed_and_row(params, prompts):
    """Sample 2 of prompt 1 is the same alone, in another place of the batch, and beside other samples."""
    together = roll(params, prompts)
    alone = roll(params, prompts, rows=np.array([[2], [6], [10]]))
    for n in range(3):
        np.testing.assert_array_equal(alone.tokens[n], together.tokens[4 * n + 2])
    assert not np.array_equal(roll(params, prompts, key=8).tokens, together.tokens)


@pytest.mark.parametrize("widths", [(1,), (4, 8), (3, 12, 20)])
def test_a_cache_that_grows_changes_nothing(params, prompts, widths):
    for a, b in zip(roll(params, prompts, widths=widths), roll(params, prompts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("method", ["gumbel", "inverse_cdf"])
def test_draws_follow_the_softmax(method):
    """Chi-square of 20,000 draws against NumPy's soft-max."""
    logits = np.array([0.5, 2.0, -1.0, 0.0, 1.0], np.float32)
    keys = row_keys(jax.random.key(0), jnp.arange(20_000))
    settings = dataclasses.replace(SETTINGS, method=method)
    tokens, logp, entropy = draw(jnp.tile(logits, (20_000, 1)), keys, 3, settings)
    p = np.exp(logits) / np.exp(logits).sum()
    counts = np.bincount(np.asarray(tokens), minlength=5)
    assert ((counts - 20_000 * p) ** 2 / (20_000 * p)).sum() < 18.5  # 99.9% quantile at 4 degrees of freedom
    np.testing.assert_allclose(logp, np.log(p)[np.asarray(tokens)], atol=1e-5)
    np.testing.assert_allclose(entropy, -(p * np.log(p)).sum(), atol=1e-5)


@pytest.mark.parametrize("method", ["gumbel", "inverse_cdf"])
def test_draws_over_many_words_and_masked_ones(method):
    """Several of inverse CDF's blocks of words, likely ones at their edges, whole blocks masked: chi-square over all words that
    can come."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=1000).astype(np.float32)
    logits[[0, 255, 256, 511, 999]] += 5
    logits[512:768] = -1e30
    logits[rng.choice(512, 200, replace=False)] = -1e30
    keys = row_keys(jax.random.key(1), jnp.arange(60_000)).reshape(20, 3000)
    settings, many = dataclasses.replace(SETTINGS, method=method), jnp.tile(logits, (3000, 1))
    tokens = jax.jit(lambda keys: jax.lax.map(lambda k: draw(many, k, 0, settings)[0], keys))(keys).ravel()
    p = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    counts, possible = np.bincount(np.asarray(tokens), minlength=1000), p > 0
    assert counts[~possible].sum() == 0
    frequent = p * 60_000 >= 5
    statistic = ((counts - 60_000 * p) ** 2 / np.where(possible, 60_000 * p, 1))[frequent].sum()
    assert statistic < scipy.stats.chi2.ppf(0.999, frequent.sum())


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.8), (10, 0.6), (100, 0.99), (1, 1.0)])
def test_top_k_and_top_p_equal_transformers(top_k, top_p):
    torch = pytest.importorskip("torch", reason="torch is optional: make test TORCH=1")
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(1).normal(size=(6, 61)).astype(np.float32) * 2
    expected = torch.tensor(logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    found = _restrict(jnp.asarray(logits), dataclasses.replace(SETTINGS, top_k=top_k, top_p=top_p))
    np.testing.assert_array_equal(np.asarray(found) > -1e29, np.isfinite(expected.numpy()))


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    for top_p, kept in ((0.4, 1), (0.6, 2), (0.85, 3), (0.99, 4)):
        found = _restrict(logits, dataclasses.replace(SETTINGS, top_p=top_p))
        assert int((found > -1e29).sum()) == kept
