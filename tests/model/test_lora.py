"""LoRA against numbers recorded from peft, and against peft itself where it is installed."""

import dataclasses
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learner_settings import learner_settings
from lora_cases import LORA_CASES, case_batch, case_model, random_adapters
from model_cases import CASES, DATA, GREEDY, case_tokens, greedy, logits_of, write_model
from safetensors.numpy import load_file

from hir_jax.data.generate.tiny import lexicon
from hir_jax.learner.update import gradients
from hir_jax.model import decoder, lora
from hir_jax.model.config import MATRICES
from hir_jax.model.files import hf, peft
from hir_jax.parallel import mesh as meshes

SETTINGS = learner_settings(loss="sft")


@pytest.fixture(scope="module")
def references():
    return np.load(DATA / "lora_references.npz", allow_pickle=False)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """name -> (directory, its parameters)."""
    folder = tmp_path_factory.mktemp("bases")
    found = {name: write_model(folder / name, CASES[name]) for name in LORA_CASES}
    return {name: (path, hf.load_params(path, CASES[name])) for name, path in found.items()}


@pytest.mark.parametrize("name", LORA_CASES)
def test_logits_and_greedy_tokens_are_those_of_peft(name, bases, references):
    """The full pass applies adapters, decoding merges them."""
    model, params = case_model(name), lora.join(bases[name][1], random_adapters(name))
    tokens, wanted = case_tokens(model), references[f"{name}/logits"]
    found = logits_of(model, params, tokens, np.ones(tokens.shape, bool))
    np.testing.assert_allclose(found[:, -wanted.shape[1] :], wanted, atol=1e-4)
    plain = logits_of(model, bases[name][1], tokens, np.ones(tokens.shape, bool))
    assert np.abs(found - plain).max() > 1  # the adapters matter
    np.testing.assert_array_equal(greedy(model, params, tokens[:, :8], GREEDY), references[f"{name}/greedy"])


@pytest.mark.parametrize(("name", "remat"), [("llama_scaled_untied", "dots"), ("qwen2", "full")])
def test_gradients_are_those_of_peft_and_of_adapters_alone(name, remat, bases, references):
    model, frozen = dataclasses.replace(case_model(name), remat=remat), bases[name][1]
    batch, adapters = case_batch(name), random_adapters(name)
    compute = jax.jit(partial(gradients, model=model, settings=SETTINGS))
    found, _ = compute(adapters, batch, batch.behaviour_logp, frozen)
    assert jax.tree.structure(found) == jax.tree.structure(adapters)
    for key, value in found["layers"].items():
        wanted = references[f"{name}/gradients/{key}"]
        np.testing.assert_allclose(value, wanted, atol=2e-5 * np.abs(wanted).max(), err_msg=key)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_no_gradient_of_a_frozen_matrix_is_ever_made(remat):
    """A gradient of a stack of matrices, or a merged stack, would be an array of its shape in the lowered program beside the
    frozen one, which is bfloat16; without LoRA there are such."""
    name = "llama_scaled_untied"
    model = dataclasses.replace(case_model(name), remat=remat)
    frozen = decoder.abstract_params(model, jnp.bfloat16)
    batch = case_batch(name)
    compute = jax.jit(partial(gradients, model=model, settings=SETTINGS))
    adapters = random_adapters(name)
    text = compute.lower(adapters, batch, batch.behaviour_logp, frozen).as_text()
    whole = compute.lower(decoder.abstract_params(model), batch, batch.behaviour_logp).as_text()
    for matrix in MATRICES:
        shape = "x".join(map(str, decoder.matrix_shape(model, matrix)))
        assert f"tensor<{shape}xbf16>" in text and f"tensor<{shape}xf32>" not in text, matrix
        assert f"tensor<{shape}xf32>" in whole


def test_the_start_is_the_frozen_model_exactly(bases):
    name = "llama_scaled_untied"
    model, settings = case_model(name), LORA_CASES[name]
    adapters = lora.init(model, settings, jax.random.key(5))
    assert jax.tree.structure(adapters) == jax.tree.structure(random_adapters(name))
    for key, leaf in adapters["layers"].items():
        bound = leaf.shape[1] ** -0.5
        if key.endswith("_b"):
            assert not leaf.any()
        else:
            assert np.abs(leaf).max() <= bound and np.abs(leaf).max() > 0.9 * bound
            assert float(leaf.std()) == pytest.approx(bound / math.sqrt(3), rel=0.15)  # uniform
    tokens = case_tokens(model)
    valid = np.ones(tokens.shape, bool)
    found = logits_of(model, lora.join(bases[name][1], adapters), tokens, valid)
    np.testing.assert_array_equal(found, logits_of(model, bases[name][1], tokens, valid))


def test_adapters_are_split_like_their_matrices():
    model, settings = case_model("qwen2"), lora.LoraSettings(4, 8.0, MATRICES)
    adapters = jax.eval_shape(partial(lora.init, model, settings), jax.random.key(0))
    whole = lora.join(decoder.abstract_params(model), adapters)
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    found = meshes.parameter_shardings(mesh, lora.param_axes(model, whole), whole)["layers"]
    alone = meshes.parameter_shardings(mesh, lora.param_axes(model, adapters), adapters)["layers"]
    for name in MATRICES:
        layers, inputs, outputs = found[name].spec
        assert inputs and outputs
        assert tuple(found[f"{name}_lora_a"].spec) == tuple(alone[f"{name}_lora_a"].spec) == (layers, inputs, None)
        assert tuple(found[f"{name}_lora_b"].spec) == tuple(alone[f"{name}_lora_b"].spec) == (layers, None, outputs)
    params = decoder.abstract_params(model)
    assert lora.param_axes(model, params) == decoder.param_axes(model)


def test_checksum_tells_one_changed_bit(bases):
    params = bases["qwen2"][1] | {"final_norm": jnp.ones(32, jnp.bfloat16)}
    wanted = sum(
        int(np.asarray(leaf).view(f"u{leaf.dtype.itemsize}").sum(dtype=np.uint64)) for leaf in jax.tree.leaves(params)
    )
    assert int(lora.checksum(params)) == wanted % 2**32
    other = params | {
        "embed": jnp.asarray(np.nextafter(params["embed"], np.where(np.arange(32) == 3, 9, params["embed"])))
    }
    assert lora.checksum(other) != lora.checksum(params)


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=LORA_CASES)
def written(request, bases, tmp_path_factory):
    """(name, directory of the base, merged directory, adapter's directory)."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    params = lora.join(bases[name][1], random_adapters(name))
    hf.save(folder / "merged", case_model(name), params, None, [1], shard_bytes=30_000)
    base = str(bases[name][0])
    peft.save(folder / "adapter", params, LORA_CASES[name], base, lexicon.build_tokenizer())
    return name, bases[name][0], folder / "merged", folder / "adapter"


def test_merged_weights_have_the_logits_of_peft(written, references):
    """As our own reader reads them: an ordinary model without adapters."""
    name, _, merged, _ = written
    model, tokens, wanted = CASES[name], case_tokens(CASES[name]), references[f"{name}/logits"]
    found = logits_of(model, hf.load_params(merged, model), tokens, np.ones(tokens.shape, bool))
    np.testing.assert_allclose(found[:, -wanted.shape[1] :], wanted, atol=1e-4)


def test_adapter_files(written):
    name, base, _, adapter = written
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base) and config["r"] == LORA_CASES[name].rank
    tensors, given = load_file(adapter / "adapter_model.safetensors"), random_adapters(name)["layers"]
    assert len(tensors) == len(given) * CASES[name].num_layers
    place = "base_model.model.model.layers.2.self_attn.q_proj.lora_{}.weight"
    np.testing.assert_array_equal(tensors[place.format("A")], given["q_lora_a"][2].T)
    np.testing.assert_array_equal(tensors[place.format("B")], given["q_lora_b"][2].T)
    assert (adapter / "tokenizer.json").exists()


def test_peft_and_transformers_load_what_was_written(written, references):
    pytest.importorskip("torch", reason="torch is not installed (recorded numbers are still compared)")
    theirs = pytest.importorskip("peft", reason="peft is not installed: pip install --no-deps peft accelerate")
    from record_lora_references import load_peft, torch_gradients
    from record_references import load_torch, torch_logits

    name, base, merged, adapter = written
    tokens = case_tokens(CASES[name])
    wanted = torch_logits(load_peft(base, name), tokens)
    np.testing.assert_allclose(torch_logits(load_torch(merged), tokens), wanted, atol=1e-3)
    loaded = theirs.PeftModel.from_pretrained(load_torch(base), str(adapter), is_trainable=True)
    np.testing.assert_allclose(torch_logits(loaded, tokens), wanted, atol=1e-5)
    for key, value in torch_gradients(loaded, name).items():  # of the adapters as peft reads them
        recorded = references[f"{name}/gradients/{key}"]
        np.testing.assert_allclose(value, recorded, atol=2e-5 * np.abs(recorded).max(), err_msg=key)


def test_initial_adapters_are_drawn_as_by_peft(bases):
    """Bounds and spread of A over many of peft's own draws; B is zero in both."""
    pytest.importorskip("torch", reason="torch is not installed")
    theirs = pytest.importorskip("peft", reason="peft is not installed: pip install --no-deps peft accelerate")
    from record_lora_references import named_adapters
    from record_references import load_torch

    settings = lora.LoraSettings(8, 8.0, MATRICES)
    config = theirs.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    drawn = {}
    for (key, _), parameter in named_adapters(theirs.get_peft_model(load_torch(bases["qwen2"][0]), config)):
        drawn.setdefault(key, []).append(parameter.detach().numpy().T)
    ours = lora.init(CASES["qwen2"], settings, jax.random.key(1))["layers"]
    assert ours.keys() == drawn.keys()
    for key, layers in drawn.items():
        layers = np.stack(layers)
        assert layers.shape == ours[key].shape
        for statistic in (np.std, lambda x: np.abs(x).max()):
            assert statistic(np.asarray(ours[key])) == pytest.approx(statistic(layers), rel=0.1, abs=1e-9), key
