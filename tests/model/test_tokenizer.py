"""Tokenizers of directories: broken and absent files are one line each; tokenizer, stop ids and embedding must fit together."""

import json
import logging
from dataclasses import replace

import chat_cases
import pytest
import wrong_results
from model_cases import CASES, write_model
from small_runs import small_config

from hir_jax.engine import Engine
from hir_jax.model.files import hf, hf_config
from hir_jax.model.files.checkpoint import CheckpointError, open_checkpoint
from hir_jax.model.files.tokenizer import ids_of, read_tokenizer, refuse_misfit, warn_of_unused_ends

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9085657\n"


def tokenizer_directory(path):
    chat_cases.tokenizer("llama3").save_pretrained(path)
    return path


def refused(call, *arguments):
    """The message, which is one line."""
    with pytest.raises(CheckpointError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (POINTER, "git-lfs pointer"),
        ("", "not JSON"),
        ("{}", "does not load"),
        ('{"model": {"type": "BPE"', "not JSON"),
        ('{"version": "1.0", "model": {"type": "Unheard"}}', "does not load"),
        ("[]", "not an object"),
    ],
)
def test_broken_tokenizer_files_are_one_line(text, said, tmp_path):
    (tokenizer_directory(tmp_path) / "tokenizer.json").write_text(text, encoding="utf-8")
    found = refused(read_tokenizer, tmp_path)
    assert said in found and str(tmp_path) in found


def test_a_sentencepiece_model_alone_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    assert "no tokenizer.json beside it" in refused(read_tokenizer, tmp_path)


def test_weights_that_git_lfs_did_not_fetch(tmp_path):
    config = replace(CASES["llama_tied"], vocab_size=ids_of(chat_cases.tokenizer("llama3")))
    directory = tokenizer_directory(write_model(tmp_path / "model", config))
    open_checkpoint(directory)
    (directory / hf.WEIGHTS).write_text(POINTER, encoding="utf-8")
    assert "git-lfs pointer" in refused(open_checkpoint, directory)


def test_a_tokenizer_larger_than_the_embedding_is_refused_with_both_sizes(tmp_path):
    directory = tokenizer_directory(write_model(tmp_path / "model", CASES["llama_tied"]))
    ids = ids_of(chat_cases.tokenizer("llama3"))
    found = refused(open_checkpoint, directory)
    assert f"{ids} token ids" in found and f"{CASES['llama_tied'].vocab_size} rows" in found
    refuse_misfit(chat_cases.tokenizer("llama3"), [ids - 1], ids, "here")
    assert f"stop ids {ids}, 999 " in refused(refuse_misfit, chat_cases.tokenizer("llama3"), [0, ids, 999], ids, "here")


def test_recorded_sizes(tmp_path):
    tokenizer = chat_cases.tokenizer("llama3", words=[f"word{i}" for i in range(400)])
    tokenizer.save_pretrained(tmp_path)
    for case in wrong_results.cases("5 sizes"):
        size = case["config"]["vocab_size"]
        assert case["right"] == "refused, both sizes named" and ids_of(tokenizer) > size
        found = refused(open_checkpoint, write_model(tmp_path, replace(CASES["llama_tied"], vocab_size=size)))
        assert f"{ids_of(tokenizer)} token ids" in found and f"{size} rows" in found


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_stop_ids_without_a_row_are_refused_when_a_checkpoint_is_opened(place, tmp_path):
    """A stop id may be a padding row, since an embedding is often larger than its tokenizer."""
    ids = ids_of(chat_cases.tokenizer("llama3"))
    config = replace(CASES["llama_tied"], vocab_size=ids + 3)
    directory = tokenizer_directory(write_model(tmp_path / "model", config))
    written = hf_config.read_json(directory / "config.json")
    for last, outside in ((ids + 2, False), (ids + 3, True)):
        settings = (written if place == "config.json" else {}) | {"eos_token_id": [5, last]}
        (directory / place).write_text(json.dumps(settings), encoding="utf-8")
        if outside:
            found = refused(open_checkpoint, directory)
            assert f"stop ids {last} (eos_token_id)" in found and str(ids + 3) in found
        else:
            assert open_checkpoint(directory).stop_ids == (5, last)


def test_opening_a_model_warns_once(tmp_path, caplog):
    """One warning, through the engine, about the tokenizer's end token and the turn's end token."""
    tokenizer = chat_cases.tokenizer("llama3")
    config = replace(CASES["llama_tied"], vocab_size=ids_of(tokenizer))
    directory = tokenizer_directory(write_model(tmp_path / "model", config))  # its config.json has 1
    with caplog.at_level(logging.WARNING, logger="hir_jax"):
        Engine(small_config(model__checkpoint=str(directory)))
    (record,) = caplog.records
    for name in ("<|end_of_text|>", "<|eot_id|>"):
        assert f"{name!r} ({tokenizer.convert_tokens_to_ids(name)})" in record.getMessage()
    assert f"{tokenizer.convert_ids_to_tokens(1)!r} (1) alone" in record.getMessage()


def test_an_end_token_that_is_no_stop_id_is_warned_of_once(caplog):
    tokenizer = chat_cases.tokenizer("llama3")
    text_end, turn_end = map(tokenizer.convert_tokens_to_ids, ("<|end_of_text|>", "<|eot_id|>"))
    with caplog.at_level(logging.WARNING):
        warn_of_unused_ends(tokenizer, turn_end, [text_end, turn_end])
        assert not caplog.records
        warn_of_unused_ends(tokenizer, turn_end, [turn_end])
    (record,) = caplog.records
    assert f"'<|end_of_text|>' ({text_end})" in record.getMessage()
    assert f"'<|eot_id|>' ({turn_end})" in record.getMessage()


@pytest.mark.parametrize("ids", [[], "2", [1, None], -1, [1.0], True])
def test_stop_ids_that_are_none_are_refused(ids, tmp_path):
    directory = write_model(tmp_path / "model", CASES["llama_tied"])
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}), encoding="utf-8")
    assert "eos_token_id is" in refused(hf_config.read_stop_ids, directory)
