"""The training types: cases worked by hand, and laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hir_jax.checks import registry
from hir_jax.types import Constraint

CASES = [
    ("first_word", {"word": "today"}, "Today, we rest.", True),
    ("first_word", {"word": "today"}, "# **Today** we rest.", True),
    ("first_word", {"word": "today"}, "We rest today.", False),
    ("first_word", {"word": "today"}, "Today's rest is long.", False),
    ("last_word", {"word": "done"}, 'It is "done"!', True),
    ("last_word", {"word": "done"}, "It is done. Ah", False),
    ("last_word", {"word": "done"}, "It is undone.", False),
    ("same_ends", {}, "Rain follows rain.", True),
    ("same_ends", {}, "Rain follows sun.", False),
    ("same_ends", {}, "Rain.", False),
    ("sentence_letter", {"letter": "s"}, "She sings. (So do we!) Say yes?", True),
    ("sentence_letter", {"letter": "S"}, "She sings. We do.", False),
    ("sentence_letter", {"letter": "S"}, "...", False),
    ("varied_starts", {}, "One is here. Two are there.", True),
    ("varied_starts", {}, "One is here. Two are there. one more.", False),
    ("varied_starts", {}, "One is here", False),
    ("sentence_length", {"most": 3}, "One two three. Four five!", True),
    ("sentence_length", {"most": 3}, "One two three. Four five six seven.", False),
    ("sentence_length", {"most": 3}, "Mr. Two three.", True),  # no sentence ends behind a title
    ("questions", {"number": 2}, "Why? How? So.", True),
    ("questions", {"number": 2}, "Why?? How?", False),
    ("word_times", {"word": "sea", "times": 2}, "Sea, the SEA-side seas", True),
    ("word_times", {"word": "sea", "times": 2}, "Sea, the seaside", False),
    ("word_times", {"word": "sea", "times": 0}, "the seaside", True),
    ("paragraph_keyword", {"number": 2, "word": "sea", "paragraphs": 2}, "a\nb\n\nthe sea", True),
    ("paragraph_keyword", {"number": 2, "word": "sea", "paragraphs": 2}, "the sea\n\nthe sea", False),
    ("paragraph_keyword", {"number": 2, "word": "sea", "paragraphs": 2}, "a\n \n\nthe sea\n\nb", False),
    ("paragraph_end", {"paragraphs": 2, "ending": "!"}, "One. Two! \n\nThree!", True),
    ("paragraph_end", {"paragraphs": 2, "ending": "!"}, "One!\nTwo!", False),
    ("paragraph_end", {"paragraphs": 2, "ending": "!"}, "One!\n\nTwo.", False),
    ("line_count", {"lines": 3}, "a\n\nb\n  \nc\n", True),
    ("line_count", {"lines": 3}, "a\nb", False),
    ("numbered_list", {"items": 3}, "These:\n1. a\n2) b\n  3. c\nEnd.", True),
    ("numbered_list", {"items": 3}, "1. a\n2. b\n4. c", False),
    ("numbered_list", {"items": 3}, "1. a\n2. b\n3. c\n4. d", False),
    ("numbered_list", {"items": 3}, "1.a 2.b 3.c", False),
    ("hyphenated", {"number": 2}, "A well-known, state-of-the-art thing", True),
    ("hyphenated", {"number": 2}, "Well-known is well-known - and 3-4 or --x-", False),
    ("long_words", {"number": 2, "letters": 9}, "Beautiful wonderful", True),
    ("long_words", {"number": 2, "letters": 9}, "Beautiful beautiful abc-defghi 1234567890", False),
    ("without", {"signs": "digits"}, "Two (2)", False),
    ("without", {"signs": "parentheses"}, "Two", True),
    ("without", {"signs": "double quotation marks"}, "“Two”", False),
    ("without", {"signs": "apostrophes"}, "It’s", False),
    ("copy_span", {"span": "the old sea", "times": 2}, "By the old sea, the old  sea.", True),
    ("copy_span", {"span": "the old sea", "times": 2}, "By the old sea, The old sea.", False),
    ("copy_span", {"span": "the old sea", "times": 2}, "By the old sea, bathe old sea the old seas.", False),
]


def check(name, arguments, response):
    return registry.check(Constraint(f"training:{name}", arguments), response)


@pytest.mark.parametrize(("name", "arguments", "response", "wanted"), CASES)
def test_cases_by_hand(name, arguments, response, wanted):
    assert check(name, arguments, response) is wanted


def test_each_type_has_a_true_and_a_false_case_and_a_text():
    ids = {id for id in registry.ids() if id.startswith("training:")}
    for wanted in (True, False):
        assert {f"training:{name}" for name, _, _, truth in CASES if truth is wanted} == ids
    for name, arguments, _, _ in CASES:
        text = registry.describe(f"training:{name}", arguments)
        assert text.endswith(".")
        assert all(str(value).lower() in text.lower() for value in arguments.values()), text


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("first_word", {"word": "two words"}, "'word' must be one word"),
        ("sentence_letter", {"letter": "ß"}, "'letter' must be a letter"),
        ("paragraph_keyword", {"number": 3, "word": "sea", "paragraphs": 2}, "no paragraph 3 of 2"),
        ("without", {"signs": "vowels"}, "'signs' must be one of"),
        ("line_count", {"lines": 0}, "'lines' must be an integer >= 1"),
        ("copy_span", {"span": " ", "times": 1}, "'span' must be a non-blank"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(name, arguments, message):
    with pytest.raises(registry.ConstraintError, match=message):
        check(name, arguments, "x")


WORDS = st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=2, max_size=20)


@given(WORDS)
def test_ends_follow_the_words(words):
    text = " ".join(words).capitalize() + "."
    assert check("first_word", {"word": words[0]}, text) and check("last_word", {"word": words[-1]}, text)
    assert check("same_ends", {}, text) == (words[0] == words[-1])
    assert check("word_times", {"word": words[0], "times": words.count(words[0])}, text)
    assert check("sentence_length", {"most": len(words)}, text)
    assert not check("sentence_length", {"most": len(words) - 1}, text)


@given(st.text(max_size=200))
def test_counts_hold_for_one_number_only_and_nothing_raises(text):
    for name, argument in (("questions", "number"), ("line_count", "lines"), ("numbered_list", "items")):
        fits = [n for n in range(1, 30) if check(name, {argument: n}, text)]
        assert len(fits) <= 1
    for name, arguments, _, _ in CASES:
        check(name, arguments, text)


@given(WORDS)
def test_what_is_met_by_n_is_met_by_fewer(words):
    text = " ".join(words) + " " + "-".join(words)
    for name, more in (("hyphenated", {}), ("long_words", {"letters": 5})):
        met = [check(name, {"number": n, **more}, text) for n in range(1, 12)]
        assert met == sorted(met, reverse=True)
    met = [check("sentence_length", {"most": n}, text) for n in range(1, 12)]
    assert met == sorted(met)
