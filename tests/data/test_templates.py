"""The six templates against strings written by hand from their published description, and pieces that add up to these."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hir_jax.data.templates import REWRITABLE, TEMPLATES, render, render_pieces
from hir_jax.types import Constraint, Instruction

TEXTS = ("Use no commas", "Is it short?", 'End with "Bye".')
WHOLE = {
    "type1": 'Tell a joke. Use no commas. Is it short? End with "Bye".',
    "type2": 'Tell a joke.\nUse no commas. Is it short? End with "Bye".',
    "type3": "Tell a joke.\n\nThe output must follow the following rules:\n"
    '1. Use no commas\n2. Is it short?\n3. End with "Bye".',
    "type4": 'Tell a joke.\n\n- Use no commas\n- Is it short?\n- End with "Bye".',
    "type5": 'Use no commas. Is it short? End with "Bye".\n\nTell a joke.',
    "type6": 'Tell a joke.\n\nUse no commas\nIs it short?\nEnd with "Bye".',
    "verbatim": "Tell a joke.",
}
WITHOUT_FIRST = {
    "type1": 'Tell a joke. Is it short? End with "Bye".',
    "type2": 'Tell a joke.\nIs it short? End with "Bye".',
    "type3": 'Tell a joke.\n\nThe output must follow the following rules:\n1. Is it short?\n2. End with "Bye".',
    "type4": 'Tell a joke.\n\n- Is it short?\n- End with "Bye".',
    "type5": 'Is it short? End with "Bye".\n\nTell a joke.',
    "type6": 'Tell a joke.\n\nIs it short?\nEnd with "Bye".',
}


def instruction(template):
    return Instruction("Tell a joke.", tuple(Constraint("x", {}, text) for text in TEXTS), template)


@pytest.mark.parametrize("template", TEMPLATES)
def test_written_out(template):
    assert render(instruction(template)) == WHOLE[template]


@pytest.mark.parametrize("template", REWRITABLE)
def test_the_hindsight_instruction_keeps_the_met_constraints_in_order(template):
    assert render(instruction(template), [False, True, True]) == WITHOUT_FIRST[template]


@pytest.mark.parametrize("text", ["a,", "a.", "a?", "a!"])
def test_no_second_mark_behind_one(text):
    assert render_pieces("T.", [text], "type1") == ("T.", [f" {text}"], "")


@given(st.lists(st.text('ab." ', min_size=1), min_size=1, max_size=4), st.sampled_from(REWRITABLE))
def test_one_piece_a_constraint(texts, template):
    before, pieces, after = render_pieces("Task.", texts, template)
    assert len(pieces) == len(texts)
    joined = before + "".join(pieces) + after
    assert "Task." in joined
    for text in texts:
        assert text.strip() in joined


def test_unknown_template_is_named():
    with pytest.raises(ValueError, match=r"unknown template 'type7'.*type6"):
        render_pieces("T.", ["a"], "type7")
