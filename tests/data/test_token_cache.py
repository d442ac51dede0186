"""Tokenised rows from the cache are those of the tokenizer, for the same data and tokenizer alone."""

import dataclasses
import logging

import numpy as np
import pytest

from hir_jax.data import chat, segments, token_cache
from hir_jax.data.chat import EncodeError
from hir_jax.data.chat_frame import chat_frame
from hir_jax.data.generate.tiny import lexicon
from hir_jax.types import Constraint, Instruction


def row(task, template, *texts):
    constraints = tuple(Constraint("punctuation:no_comma", {}, text) for text in texts)
    return Instruction(task, constraints, template, "", f"row {task!r}")


ROWS = [
    row("Write a story.", "type1", "Begin with a title.", "Use 3 words."),
    row("Write a poem.", "type3", "Begin with a title.", "Use 3 words.", "End with a question."),
    row("No constraints.", "type2"),
    row("All of it is in here.", "verbatim", "x", "y"),
    row("Refused.", "type6", "a", " ", "c"),
]


@pytest.fixture(autouse=True)
def all_is_kept(monkeypatch):
    monkeypatch.setattr(token_cache, "WORTH_SECONDS", -1.0)


@pytest.fixture
def frame():
    return chat_frame(lexicon.build_tokenizer())


def same(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        if isinstance(b, EncodeError):
            assert (str(a), a.reason, type(a)) == (str(b), b.reason, type(b))
        else:
            assert a == b
    return True


@pytest.mark.parametrize("roles", [True, False])
def test_the_second_start_tokenises_nothing(frame, roles, tmp_path, monkeypatch):
    wanted = segments.encode_all(frame, ROWS, roles=roles)
    assert any(isinstance(one, EncodeError) for one in wanted) == roles
    assert same(token_cache.encode_all(frame, ROWS, roles=roles, directory=tmp_path), wanted)
    (kept,) = tmp_path.rglob("*.npz")
    monkeypatch.setattr(segments, "encode_all", None)
    assert same(token_cache.encode_all(frame, ROWS, roles=roles, directory=tmp_path), wanted)
    assert list(tmp_path.rglob("*.npz")) == [kept]


def test_other_data_and_tokenizers_have_files_of_their_own(frame, tmp_path):
    def encode(rows=ROWS, frame=frame, roles=True):
        found = token_cache.encode_all(frame, rows, roles=roles, directory=tmp_path)
        assert same(found, segments.encode_all(frame, rows, roles=roles))

    encode()
    encode(ROWS[:-1])
    encode([row("Write a story!", "type1", "Begin with a title.", "Use 3 words."), *ROWS[1:]])
    encode([row("Write a story.", "type1", "Begin with a title.", "Use 4 words."), *ROWS[1:]])
    encode([dataclasses.replace(ROWS[0], template="type2"), *ROWS[1:]])
    encode(roles=False)
    other = lexicon.build_tokenizer()
    other.add_tokens(["story"])
    encode(frame=chat_frame(other))
    encode(frame=chat_frame(lexicon.build_tokenizer(), {"date_string": "1 Jan 2025"}))
    talk = lexicon.build_tokenizer()
    talk.chat_template += "\n"
    encode(frame=dataclasses.replace(frame, chat=chat.Chat(talk)))
    assert len(list(tmp_path.rglob("*.npz"))) == 9


def test_damaged_files_are_made_anew(frame, tmp_path, caplog):
    wanted = token_cache.encode_all(frame, ROWS, roles=True, directory=tmp_path)
    (kept,) = tmp_path.rglob("*.npz")
    whole = kept.read_bytes()
    with np.load(kept) as file:
        parts = dict(file)
    for damage in (
        lambda: kept.write_bytes(whole[:-20]),
        lambda: kept.write_bytes(b""),
        lambda: np.savez(kept, **parts | {"tokens": parts["tokens"][1:]}),
        lambda: np.savez(kept, **parts | {"rows": parts["rows"][:-1]}),
    ):
        caplog.clear()
        damage()
        assert same(token_cache.encode_all(frame, ROWS, roles=True, directory=tmp_path), wanted)
        assert caplog.text.count(f"{kept}: cannot be read") == 1
        assert kept.read_bytes() == whole


def test_a_directory_that_cannot_be_written_to_is_no_error(frame, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "tokens").write_text("a file")
    wanted = segments.encode_all(frame, ROWS)
    assert same(token_cache.encode_all(frame, ROWS, roles=True, directory=tmp_path), wanted)
    assert "are not kept for the next start" in caplog.text


def test_what_is_tokenised_fast_is_not_kept(frame, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "WORTH_SECONDS", 60.0)
    token_cache.encode_all(frame, ROWS, roles=True, directory=tmp_path)
    assert not list(tmp_path.rglob("*"))
