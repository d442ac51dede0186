"""Tokenizers of directories: broken and absent files are one line each; tokenizer, stop ids and embedding must fit together."""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from model_cases import CASES, write_model

sys.path.insert(0, str(Path(__file__).parents[1] / "instructions"))
import chat_cases

from hir_jax.models import hf
from hir_jax.models.checkpoint import CheckpointError, open_checkpoint
from hir_jax.models.tokenizer import ids_of, read_tokenizer, refuse_misfit, warn_of_unused_ends

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
    assert "eos_token_id is" in refused(hf.read_stop_ids, directory)
