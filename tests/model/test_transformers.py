"""Live comparison with transformers and torch, where torch is installed (`make test TORCH=1`)."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: live comparisons are skipped (recorded ones still run)")

import chat_cases
import torch
from model_cases import CASES, GREEDY, PROMPT_TEXT, TIED, add_output_matrix, case_tokens, greedy, logits_of, write_model
from record_references import load_torch, load_torch_gguf, torch_greedy, torch_logits

from hir_jax.model.files import gguf, hf
from hir_jax.model.files.checkpoint import CheckpointError, open_checkpoint

TOLERANCE = 1e-3  # max absolute difference of float32 logits


def compare(config, params, model, tokens, prompt):
    valid = np.ones(tokens.shape, bool)
    found, wanted = logits_of(config, params, tokens, valid), torch_logits(model, tokens)
    assert np.abs(np.asarray(found) - wanted).max() <= TOLERANCE
    np.testing.assert_array_equal(greedy(config, params, prompt, GREEDY), torch_greedy(model, prompt))


@pytest.mark.parametrize("name", CASES)
def test_random_models_read_by_both(name, tmp_path):
    config = CASES[name]
    directory = write_model(tmp_path / name, config)
    tokens = case_tokens(config)
    compare(config, hf.load_params(directory, config), load_torch(directory), tokens, tokens[:, :8])


@pytest.mark.parametrize("name", CASES)
def test_models_written_by_us_and_read_by_transformers(name, tmp_path):
    config = CASES[name]
    loaded = hf.load_params(write_model(tmp_path / "source", config), config)
    params = jax.tree.map(lambda p: 0.9 * p, loaded)  # as after some training: other values than were read
    hf.save(tmp_path / name, config, params, None, [1], shard_bytes=30_000)
    tokens = case_tokens(config)
    compare(config, params, load_torch(tmp_path / name), tokens, tokens[:, :8])


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_flag_beside_an_output_matrix(same, tmp_path):
    """transformers ties the two where they are equal, and keeps the file's output matrix where they are not; ours as well."""
    directory = write_model(tmp_path / "model", TIED)
    add_output_matrix(directory, same)
    chat_cases.tokenizer("llama3").save_pretrained(directory)
    opened, theirs = open_checkpoint(directory), load_torch(directory)
    assert opened.config.tie_embeddings == same
    assert torch.equal(theirs.lm_head.weight, theirs.model.embed_tokens.weight) == same
    tokens = case_tokens(TIED)
    compare(opened.config, opened.load_params(), theirs, tokens, tokens[:, :8])
    hf.save(tmp_path / "out", opened.config, opened.load_params(), opened.tokenizer, opened.stop_ids)
    compare(opened.config, opened.load_params(), load_torch(tmp_path / "out"), tokens, tokens[:, :8])


def test_smollm2_and_its_written_copy(tmp_path):
    """Takes long because a whole model of 135 M parameters is read, run and written in float32; it protects real checkpoints."""
    try:
        path = gguf.smollm2_wheel_path()
    except CheckpointError as error:
        pytest.skip(str(error))
    opened = open_checkpoint(path)
    params = opened.load_params()
    prompt = np.asarray([opened.tokenizer(PROMPT_TEXT)["input_ids"]], np.int32)
    theirs = load_torch_gguf(path)
    compare(opened.config, params, theirs, prompt, prompt)
    hf.save(tmp_path / "out", opened.config, params, opened.tokenizer, opened.stop_ids)
    written = load_torch(tmp_path / "out")
    for (name, a), (_, b) in zip(theirs.state_dict().items(), written.state_dict().items(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)
