"""The decoder against logits and greedy tokens recorded from transformers, and its passes against one another."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import (
    CASES,
    DATA,
    GREEDY,
    TIED,
    add_output_matrix,
    case_tokens,
    greedy,
    logits_of,
    positions_of,
    write_model,
)

from hir_jax.model import decoder, decoding
from hir_jax.model.files import hf, hf_config


@pytest.fixture(scope="module")
def references():
    return np.load(DATA / "decoder_references.npz", allow_pickle=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """name -> (config, parameters) of every case, read from directories we did not write."""
    folder = tmp_path_factory.mktemp("models")
    return {name: (c, hf.load_params(write_model(folder / name, c), c)) for name, c in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_tokens_are_those_of_transformers(name, models, references):
    config, params = models[name]
    tokens = case_tokens(config)
    wanted = references[f"{name}/logits"]
    found = logits_of(config, params, tokens, np.ones(tokens.shape, bool))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[:, -wanted.shape[1] :], wanted, atol=1e-4)
    np.testing.assert_array_equal(greedy(config, params, tokens[:, :8], GREEDY), references[f"{name}/greedy"])


def test_an_output_matrix_beside_a_tied_flag_gives_transformers_logits(references, tmp_path):
    """Where the file's differs from the embedding; with the embedding in its place the logits are others."""
    directory = write_model(tmp_path / "model", TIED)
    add_output_matrix(directory, same=False)
    config = hf_config.parse_config(hf_config.read_json(directory / "config.json"), "config.json")
    config = hf.really_tied(config, hf.SafetensorsSource(directory))
    tokens = case_tokens(TIED, length=8)
    found = logits_of(config, hf.load_params(directory, config), tokens, np.ones(tokens.shape, bool))[:, -1:]
    np.testing.assert_allclose(found, references["not_tied/logits"], atol=1e-4)
    tied = logits_of(TIED, hf.load_params(directory, TIED), tokens, np.ones(tokens.shape, bool))[:, -1:]
    assert np.abs(tied - found).max() > 1


@pytest.mark.parametrize("name", ["llama_scaled_untied", "qwen3"])
def test_padding_changes_nothing(name, models):
    """Rows padded on the left or right, or on both sides, have the logits of bare rows."""
    config, params = models[name]
    tokens = case_tokens(config, rows=3, length=12)
    bare = logits_of(config, params, tokens, np.ones(tokens.shape, bool))
    left, width = np.array([0, 3, 7]), 20
    columns = np.arange(width)
    valid = (columns >= left[:, None]) & (columns < left[:, None] + 12)
    padded = np.full((3, width), 5, np.int32)
    padded[valid] = tokens.ravel()
    found = np.asarray(logits_of(config, params, padded, valid))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[valid].reshape(bare.shape), bare, atol=2e-5)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_hidden_states_whose_squares_overflow_are_nan(compute_dtype):
    """The norm of such a vector is 0 and would make a uniform policy; of one that is merely large it is as ever."""
    config = dataclasses.replace(CASES["llama_scaled_untied"], compute_dtype=compute_dtype)
    params, tokens = decoder.init(config, jax.random.key(0)), np.ones((1, 4), np.int32)

    def states(size):
        large = params | {"embed": params["embed"] * size}
        return np.asarray(decoder.hidden_states(config, large, tokens, tokens.cumsum(-1) - 1, tokens == 1), np.float32)

    assert np.isfinite(states(1e15)).all() and np.abs(states(1e15)).max() > 1
    assert np.isnan(states(1e25)).all()


@pytest.mark.parametrize("name", ["llama_scaled_untied", "qwen2", "qwen3"])
def test_prefill_and_decoding_equal_one_full_pass(name, models):
    config, params = models[name]
    tokens = case_tokens(config, rows=2, length=12)
    valid = np.arange(12) >= np.array([[0], [4]])
    positions = positions_of(valid)
    full, prefill, step = (
        jax.jit(f, static_argnums=0) for f in (decoder.hidden_states, decoding.prefill, decoding.decode_step)
    )
    full = full(config, params, tokens, positions, valid)
    hidden, cache = prefill(config, params, tokens[:, :8], positions[:, :8], valid[:, :8])
    np.testing.assert_allclose(hidden, full[:, 7], atol=1e-5)
    samples = 3
    wide_tokens, wide_positions = (np.repeat(np.asarray(a), samples, axis=0) for a in (tokens, positions))
    unstacked, own = decoding.unstack_layers(config, params), decoding.empty_cache(config, 2 * samples, 2)
    for column in range(8, 12):
        if column == 10:
            own = decoding.widen_cache(config, own, 4)
        count, lengths = np.full(2 * samples, column - 7, np.int32), np.array([8, 4], np.int32)
        token, position = wide_tokens[:, column], wide_positions[:, column]
        hidden, own = step(config, unstacked, token, position, jnp.int32(column - 8), cache, lengths, own, count)
        np.testing.assert_allclose(hidden, np.repeat(full[:, column], samples, axis=0), atol=1e-5)


def _loss(params, config, tokens, valid):
    hidden = decoder.hidden_states(config, params, tokens, positions_of(valid), valid)
    return jnp.mean(jnp.where(valid[..., None], hidden, 0) ** 3)


def test_remat_changes_no_gradient_and_padding_gives_no_nan(models):
    config, params = models["qwen3"]
    tokens = case_tokens(config, rows=3, length=10)
    valid = np.arange(10) >= np.array([[0], [4], [10]])  # the last row is nothing but padding
    gradients = [
        jax.jit(jax.grad(_loss), static_argnums=1)(params, dataclasses.replace(config, remat=remat), tokens, valid)
        for remat in ("none", "dots", "full")
    ]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    for other in gradients[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients[0], other)


def test_gradient_is_the_slope_of_the_loss(models):
    """Along a random direction, against a central difference in the same precision."""
    config, params = models["qwen2"]
    tokens, valid = case_tokens(config, rows=2, length=8), np.ones((2, 8), bool)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda p: 0.1 * rng.standard_normal(p.shape, np.float32), params)

    @jax.jit
    def along(step):
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        return _loss(moved, config, tokens, valid)

    step = 1e-2
    difference = (along(step) - along(-step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(along))(0.0), difference, rtol=2e-2)


def test_bfloat16_compute_stays_near_and_logits_are_float32(models):
    config, params = models["llama_tied"]
    tokens, valid = case_tokens(config, rows=2, length=16), np.ones((2, 16), bool)
    low = dataclasses.replace(config, compute_dtype="bfloat16")
    hidden = jax.eval_shape(partial(decoder.hidden_states, low), params, tokens, positions_of(valid), valid)
    assert hidden.dtype == jnp.bfloat16
    found = logits_of(low, params, tokens, valid)
    wanted = logits_of(config, params, tokens, valid)
    assert found.dtype == jnp.float32
    assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted)  # 8 bits of mantissa, 3 layers


def test_init_gives_the_declared_tree():
    config = CASES["qwen3"]
    params = jax.jit(decoder.init, static_argnums=(0, 2))(config, jax.random.key(3), jnp.bfloat16)
    shapes = decoder.abstract_params(config, jnp.bfloat16)
    assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == jax.tree.map(lambda s: (s.shape, s.dtype), shapes)
    q = params["layers"]["q"].astype(jnp.float32)
    assert float(q.std()) == pytest.approx(config.hidden_size**-0.5, rel=0.1)
    assert not np.array_equal(q[0], q[1])


@pytest.mark.parametrize("name", CASES)
def test_axes_name_every_axis_of_every_parameter(name):
    config = CASES[name]
    ranks = jax.tree.map(lambda p: p.ndim, decoder.abstract_params(config))
    assert jax.tree.map(len, decoder.param_axes(config), is_leaf=lambda a: isinstance(a, tuple)) == ranks


def test_shard_is_called_with_the_axes_of_its_array(models):
    config, params = models["llama_tied"]
    tokens, valid = case_tokens(config, rows=2, length=6), np.ones((2, 6), bool)
    seen = set()

    def shard(x, axes):
        assert x.ndim == len(axes)
        seen.update(axes)
        return x

    def run(params):
        _, cache = decoding.prefill(config, params, tokens, positions_of(valid), valid, shard)
        unstacked, own = decoding.unstack_layers(config, params), decoding.empty_cache(config, 2, 1)
        here, count = jnp.full(2, 6), jnp.ones(2, jnp.int32)
        decoding.decode_step(config, unstacked, tokens[:, 0], here, jnp.int32(0), cache, here, own, count, shard)

    jax.eval_shape(run, params)
    assert seen == {"batch", "length", "embed", "heads", "kv_heads", "mlp", "lookup_batch", "lookup_embed", None}


@pytest.mark.parametrize("change", [{"num_kv_heads": 3}, {"head_dim": 7}, {"remat": "some"}, {"family": "gpt2"}])
def test_impossible_shapes_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(CASES["llama_tied"], **change)


@pytest.mark.parametrize("part", [1, 5, 12, 100])
def test_gradient_of_the_embedding_in_parts(part, monkeypatch):
    """Equal to that of indexing, with words that occur often and parts that the tokens do not fill."""
    monkeypatch.setattr(decoder, "LOOKUP_TOKENS", part)
    keys = jax.random.split(jax.random.key(0), 3)
    table, weights = jax.random.normal(keys[0], (9, 4)), jax.random.normal(keys[1], (3, 8, 4))
    tokens = jax.random.randint(keys[2], (3, 8), 0, 5)

    def gradient(lookup):
        return jax.jit(jax.grad(lambda table: (lookup(table, tokens) * weights).sum()))(table)

    wanted = gradient(lambda table, tokens: table[tokens])
    np.testing.assert_allclose(gradient(decoder._lookup), wanted, rtol=1e-6, atol=1e-6)
