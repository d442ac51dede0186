"""The tiny environment's own constraint types: cases worked by hand, and their relation to IFEval's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hir_jax.checks import registry
from hir_jax.types import Constraint


def begins(phrase):
    return Constraint("tiny:begins_with", {"phrase": phrase})


@pytest.mark.parametrize(
    ("phrase", "text", "met"),
    [
        ("My", "My tiger waits.", True),
        ("My", '  "my tiger waits."', True),
        ("My", "Mystery", False),
        ("My", "The tiger. My", False),
        ("My tiger", "My tiger", True),
        ("My", "My", True),
        ("My", " ", False),
        (" My ", "My, my", True),
        ("a.b", "axb", False),
    ],
)
def test_begins_with(phrase, text, met):
    assert registry.check(begins(phrase), text) is met


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("The river waits.", True),
        ("River, river", True),
        ("The river and the lamp.", False),
        ("The lamp waits.", False),
        ("The riverside waits.", False),
        ("The river and the lampshade.", True),
        ("", False),
    ],
)
def test_one_of(text, met):
    assert registry.check(Constraint("tiny:one_of", {"word": "river", "others": ["lamp", "Castle"]}), text) is met


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"word": "river", "others": ["lamp", "River"]}, "'river' is both the word that is wanted"),
        ({"word": "river", "others": []}, "'others' must be a non-empty list of words"),
        ({"word": "the river", "others": ["lamp"]}, "'word' must be one word"),
        ({"word": "river", "others": "lamp"}, "'others' must be a non-empty list of words"),
    ],
)
def test_bad_arguments_of_one_of(arguments, message):
    with pytest.raises(registry.ConstraintError, match=message):
        registry.validate(Constraint("tiny:one_of", arguments))


@given(st.lists(st.sampled_from(["P.S.", "p.s.", "P. S.", "PS.", "P.P.S", " ", "\n", "x"]), max_size=8).map("".join))
def test_no_postscript_is_met_exactly_where_ifevals_postscript_is_not(text):
    with_one = registry.check(Constraint("detectable_content:postscript", {"postscript_marker": "P.S."}), text)
    assert registry.check(Constraint("tiny:no_postscript"), text) == (bool(text.strip()) and not with_one)
