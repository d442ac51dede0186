"""Gradients added layer by layer against `jax.vjp` of the whole pass."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_cases import LORA_CASES, case_model, random_adapters
from model_cases import CASES

from hir_jax.model import backward, decoder, lora

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 96, (2, 12)))
POSITIONS = jnp.asarray([[0, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5], np.arange(12)])
SEGMENTS = jnp.asarray([[0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2], [1] * 12])
PROMPTS = jnp.asarray([[0, 3, 3, 3, 1, 1, 2, 2, 2, 2, 2, 2], [1] * 12])


def normal(like, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), like)


def agree(model, trained, frozen, **options):
    """Both with gradients of earlier micro-batches; relative to the largest number of each array."""
    earlier, d_hidden = normal(trained, 1), normal(jnp.zeros((2, 12, model.hidden_size), model.compute_dtype), 2)
    given = TOKENS, POSITIONS, SEGMENTS

    @jax.jit
    def found(trained, earlier):
        hidden, pull = backward.hidden_states(model, trained, frozen, *given, **options)
        return hidden, pull(d_hidden, earlier)

    @jax.jit
    def wanted(trained, earlier):
        def run(trained):
            return decoder.hidden_states(model, lora.join(frozen, trained), *given, **options)

        hidden, pull = jax.vjp(run, trained)
        return hidden, jax.tree.map(jnp.add, earlier, pull(d_hidden)[0])

    ours, theirs = found(trained, earlier), wanted(trained, earlier)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (a, b)), rtol=0, atol=2e-6 * jnp.abs(b).max())


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_gradients_of_a_whole_model(remat):
    for name in ("llama_scaled_untied", "qwen2") if remat == "dots" else ("qwen3",):
        model = dataclasses.replace(CASES[name], remat=remat)
        agree(model, decoder.init(model, jax.random.key(1)), None, longest=6)
    agree(model, decoder.init(model, jax.random.key(1)), None, prompts=PROMPTS)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_gradients_of_adapters_alone(remat):
    name = next(iter(LORA_CASES))
    model = dataclasses.replace(case_model(name), remat=remat)
    agree(model, random_adapters(name), decoder.init(model, jax.random.key(1)))


def test_nothing_as_large_as_the_parameters_is_made_beside_the_gradients():
    """Temporary memory of a deep model with few columns is less than its layers' gradients take."""
    model = dataclasses.replace(CASES["llama_tied"], num_layers=64, remat="full")
    params = decoder.abstract_params(model)
    like = jax.ShapeDtypeStruct((2, 12, model.hidden_size), model.compute_dtype)

    @partial(jax.jit, donate_argnums=1)
    def run(params, gradients, d_hidden):
        return backward.hidden_states(model, params, None, TOKENS, POSITIONS, SEGMENTS)[1](d_hidden, gradients)

    memory = run.lower(params, params, like).compile().memory_analysis()
    layers = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params["layers"]))
    assert memory.temp_size_in_bytes < layers / 2
