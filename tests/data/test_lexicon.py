"""The lexicon's tokenizer against the text itself, against Python's `re`, and through transformers' own saving."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hir_jax.data.generate.tiny import grammar, lexicon, witness
from hir_jax.data.templates import REWRITABLE, render


@pytest.fixture(scope="module")
def tokenizer():
    return lexicon.build_tokenizer()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rows = witness.generate(3, 150, min_constraints=1, max_constraints=6, templates=REWRITABLE)
    return [text for instruction, response in rows for text in (render(instruction), response)]


def test_size_and_distinct_entries():
    entries = lexicon.vocabulary()
    assert 150 <= len(entries) <= 500
    assert len(set(entries)) == len(entries)


def test_no_content_word_lies_inside_another_entry():
    content = (*lexicon.NOUNS, *lexicon.SUBJECTS, *lexicon.ADJECTIVES, *lexicon.VERBS, *lexicon.ADVERBS)
    content += (*lexicon.PRESENT_OR_ABSENT, *lexicon.DETERMINERS, lexicon.REPEATED)
    for word in content:
        clashes = [e for e in lexicon.vocabulary() if word in e.lower() and e.strip().lower() != word]
        assert not clashes, f"{word!r} is part of {clashes}"


def test_every_text_of_the_environment_comes_back_to_the_letter(tokenizer, texts):
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.unk_token_id not in ids, text
        assert tokenizer.decode(ids) == text


def test_every_entry_is_one_token(tokenizer):
    for i, entry in enumerate(lexicon.vocabulary()):
        assert tokenizer.encode(entry, add_special_tokens=False) == [i]


@given(text=st.text(alphabet="ab ABZPS.,*[]<>\n-\"'12#é", max_size=40))
def test_python_splitting_is_that_of_the_tokenizer(tokenizer, text):
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [piece for piece, _ in split] == lexicon.pieces(text)
    assert "".join(lexicon.pieces(text)) == text


def test_offsets_cut_the_text_into_its_tokens(tokenizer, texts):
    for text in texts:
        encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        assert [text[a:b] for a, b in encoded["offset_mapping"]] == tokenizer.convert_ids_to_tokens(
            encoded["input_ids"]
        )


def test_chat_template_and_stop_token(tokenizer):
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "List exactly 2 bullets."}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|user|>List exactly 2 bullets.<|end|><|assistant|>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<|user|>",
        "List",
        " exactly",
        " 2",
        " bullets",
        ".",
        "<|end|>",
        "<|assistant|>",
    ]
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.bos_token is None
    assert tokenizer.decode(ids, skip_special_tokens=True) == "List exactly 2 bullets."


def test_saved_tokenizer_is_an_ordinary_one(tokenizer, texts, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast
    for name in ("eos_token_id", "pad_token_id", "unk_token_id", "padding_side", "chat_template"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    for text in texts[:50]:
        ids = loaded.encode(text)
        assert ids == tokenizer.encode(text)
        assert loaded.decode(ids) == text


def test_generating_texts_needs_no_transformers():
    code = "import sys, json; from hir_jax.data.generate.tiny import witness; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"transformers", "jax", "torch"} & set(json.loads(run.stdout))


def test_a_text_fits_its_budget(tokenizer):
    rng = random.Random(0)
    lengths = [len(tokenizer.encode(grammar.compose(rng, grammar.draw_specification(rng)))) + 1 for _ in range(300)]
    assert max(lengths) <= grammar.MAX_TOKENS
    assert min(lengths) >= 8
