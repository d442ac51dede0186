"""The count of words in capitals, which skips sentences, against NLTK's tokens of every sentence."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize.destructive import NLTKWordTokenizer

from hir_jax.checks import english

BENCHMARKS = Path(__file__).parents[2] / "../shared/benchmarks"
RECORDED = sorted(BENCHMARKS.glob("if*/responses.*.jsonl"))
# What the tokenizer takes apart, marks, and capitals in all positions.
PIECES = (
    "Can", "not", "CAN", "caN", "Not", "'Tis", " 'Tis ", "'t", "was", "Was", "In", "n't", "N'T", "D'ye", "d'Ye", "More", "'n",
    "Gim", "me", "Me", "ME", "Wan", "na", "Lem", "Gon", "Got", "ta", "A", "I", "I'm", "'LL", "'Re", "'s", "'S", "’s", "Don't",
    "An't", "Xn't", " ", "  ", "\n", "\t", ".", "...", "!", "?", "--", "-", "_", ",", ";", ":", '"', "'", "`", "“", "’", "(", ")",
    "*", "—", "Ph.D.", "U.S.", "etc.", "a1B", "B2", "3.5", "Word", "word", "iPhone", "McDonald", "NASA", "Ab", "Abc", "ABc",
    "Étude", "É", "é", "ß", "Ⅷ", "ǅ",
)  # fmt: skip


def counted(text):
    tokenize = NLTKWordTokenizer().tokenize
    return sum(token.isupper() for sentence in english.sentences(text) for token in tokenize(sentence))


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_any_pieces(text):
    assert english.capital_tokens(text) == counted(text)


@settings(max_examples=200)
@given(st.text(max_size=30))
def test_any_text(text):
    assert english.capital_tokens(text) == counted(text)


@pytest.mark.skipif(not RECORDED, reason="the benchmark fixtures (../shared/benchmarks) are absent")
def test_a_tenth_of_the_recorded_responses():
    texts = [
        json.loads(line)["response"] for path in RECORDED for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert [text[:60] for text in texts[::10] if english.capital_tokens(text) != counted(text)] == []
