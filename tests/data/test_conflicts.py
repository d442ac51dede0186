"""Which constraints go together: what is allowed has a witness that the real checks accept, contradictions are refused."""

import itertools
import random

import pytest
from witness import build

from hir_jax.checks import registry
from hir_jax.checks.compatibility import clash, joins, state
from hir_jax.data.generate import synthesis
from hir_jax.data.generate.tasks import base_tasks
from hir_jax.types import Constraint

C = Constraint
IFEVAL = synthesis.draws_of(("ifeval",))
WORDS, SENTENCES = ("length_constraints:number_words", "length_constraints:number_sentences")
LETTER, FREQUENCY, EXISTENCE = ("keywords:letter_frequency", "keywords:frequency", "keywords:existence")
FORBIDDEN, CAPITAL_WORDS = ("keywords:forbidden_words", "change_case:capital_word_frequency")
PARAGRAPHS, NTH = ("length_constraints:number_paragraphs", "length_constraints:nth_paragraph_first_word")
REPEAT, END, POSTSCRIPT = ("combination:repeat_prompt", "startend:end_checker", "detectable_content:postscript")
SECTIONS, BULLETS = ("detectable_format:multiple_sections", "detectable_format:number_bullet_lists")

capital, lower = C("change_case:english_capital"), C("change_case:english_lowercase")
json_format, title = C("detectable_format:json_format"), C("detectable_format:title")
choice, two, quotation = (
    C("detectable_format:constrained_response"),
    C("combination:two_responses"),
    C("startend:quotation"),
)
no_comma = C("punctuation:no_comma")


def words(relation, n):
    return C(WORDS, {"relation": relation, "num_words": n})


def sentences(relation, n):
    return C(SENTENCES, {"relation": relation, "num_sentences": n})


def letter(letter, relation, n):
    return C(LETTER, {"letter": letter, "let_relation": relation, "let_frequency": n})


def frequency(keyword, relation, n):
    return C(FREQUENCY, {"keyword": keyword, "relation": relation, "frequency": n})


def capitals(relation, n):
    return C(CAPITAL_WORDS, {"capital_relation": relation, "capital_frequency": n})


def existence(*keywords):
    return C(EXISTENCE, {"keywords": list(keywords)})


def forbidden(*keywords):
    return C(FORBIDDEN, {"forbidden_words": list(keywords)})


def language(code):
    return C("language:response_language", {"language": code})


def end(phrase):
    return C(END, {"end_phrase": phrase})


def postscript(marker):
    return C(POSTSCRIPT, {"postscript_marker": marker})


def repeat(prompt):
    return C(REPEAT, {"prompt_to_repeat": prompt})


def paragraphs(n):
    return C(PARAGRAPHS, {"num_paragraphs": n})


def nth(n, i, word):
    return C(NTH, {"num_paragraphs": n, "nth_paragraph": i, "first_word": word})


def sections(word, n):
    return C(SECTIONS, {"section_spliter": word, "num_sections": n})


def bullets(n):
    return C(BULLETS, {"num_bullets": n})


CONTRADICTIONS = [
    # no response at all meets both
    (capital, lower),
    (capital, language("fr")),
    (lower, capitals("at least", 2)),
    (capital, capitals("less than", 5)),
    (json_format, title),
    (json_format, bullets(3)),
    (json_format, paragraphs(2)),
    (json_format, two),
    (json_format, repeat("Write a poem.")),
    (two, paragraphs(2)),
    (repeat("Write a poem about tea, please."), no_comma),
    (repeat("Write a poem."), quotation),
    (repeat("Write a poem about tea."), forbidden("tea")),
    (repeat("Write a poem about tea."), nth(2, 1, "today")),
    (repeat("Write a poem about tea and toast."), letter("t", "less than", 5)),
    (repeat("Write a poem about tea."), frequency("tea", "less than", 1)),
    (existence("river", "stone"), forbidden("stone")),
    (existence("river"), frequency("river", "less than", 1)),
    (existence("jazz"), letter("z", "less than", 2)),
    (frequency("river", "at least", 3), frequency("river", "less than", 3)),
    (frequency("rivers", "at least", 3), frequency("river", "less than", 3)),
    (frequency("river", "at least", 3), forbidden("river")),
    (end("That is all, folks."), no_comma),
    (end("Thank you for your time."), forbidden("time")),
    (nth(3, 2, "however"), forbidden("however")),
    (nth(3, 2, "however"), nth(4, 2, "however")),
    (paragraphs(2), paragraphs(3)),
    (words("at least", 100), words("less than", 100)),
    (sentences("at least", 5), sentences("less than", 5)),
    (sentences("at least", 12), words("less than", 12)),
    (frequency("river", "at least", 9), words("less than", 9)),
    (letter("q", "at least", 3), letter("q", "less than", 3)),
    (capitals("at least", 5), capitals("less than", 5)),
    (sections("SECTION", 4), capitals("less than", 4)),
    (choice, capital),
    (choice, lower),
    (sections("Section", 2), capital),
    (sections("SECTION", 2), lower),
    # a response could be contrived, but the wording or the count says otherwise
    (paragraphs(2), nth(2, 1, "today")),
    (paragraphs(2), sections("Part", 4)),
    (language("de"), existence("river")),
    (language("de"), end("I hope this helps.")),
    (language("de"), choice),
    (language("hi"), capitals("at least", 3)),
    (postscript("P.S."), lower),
    (postscript("P.S."), end("I hope this helps.")),
    (postscript("P.S."), quotation),
    (quotation, end("I hope this helps.")),
    (end("I hope this helps."), lower),
    (end("I hope this helps."), capital),
    (json_format, no_comma),
    (two, bullets(3)),
    (repeat("Write a poem."), capital),
    (letter("e", "less than", 5), words("at least", 100)),
    (letter("z", "at least", 12), words("less than", 40)),
    (words("at least", 200), sentences("less than", 3)),
    # one is empty beside the other
    (words("at least", 50), words("at least", 80)),
    (frequency("river", "at least", 2), existence("river")),
    (repeat("Write a poem about tea."), existence("tea")),
    (sections("SECTION", 4), capitals("at least", 3)),
    (capital, capitals("at least", 3)),
    (language("de"), forbidden("river")),
]
ALLOWED = [
    (words("at least", 50), words("less than", 100)),
    (sentences("at least", 3), sentences("less than", 8)),
    (frequency("river", "at least", 2), frequency("stone", "at least", 2)),
    (frequency("river", "at least", 2), frequency("river", "less than", 5)),
    (existence("river"), frequency("river", "less than", 3)),
    (letter("q", "less than", 3), letter("t", "at least", 10)),
    (repeat("Write a poem about tea."), title),
    (repeat("Write a poem about tea."), existence("leaf")),
    (repeat("Write a poem about tea."), no_comma),
    (language("de"), paragraphs(3)),
    (language("en"), existence("river")),
    (json_format, existence("river")),
    (json_format, lower),
    (postscript("P.S."), capital),
    (postscript("P.S."), bullets(3)),
    (end("so it goes."), lower),
    (sections("SECTION", 3), capital),
    (choice, words("at least", 50)),
    (two, title),
    (nth(3, 2, "however"), lower),
]


def name(pair):
    return " + ".join(f"{c.id.split(':')[1]}({','.join(map(str, c.arguments.values()))})" for c in pair)


@pytest.mark.parametrize("pair", CONTRADICTIONS, ids=name)
def test_known_contradictions_are_refused_in_both_orders(pair):
    for constraint in pair:
        registry.validate(constraint)
    assert clash(pair)
    assert clash(pair[::-1])
    assert clash(pair) is not None
    assert clash((no_comma, *pair)) is not None and clash((*pair, title)) is not None


@pytest.mark.parametrize("pair", ALLOWED, ids=name)
def test_pairs_that_go_together_are_allowed_and_have_a_witness(pair):
    assert clash(pair) is None
    assert clash(pair[::-1]) is None
    assert build(pair) is not None


def test_all_types_of_ifeval_can_be_drawn():
    assert len(IFEVAL) == 25 and set(IFEVAL) <= set(registry.ids())


def test_every_pair_of_ids_that_is_allowed_has_a_witness():
    """Over all 325 pairs of ids, with drawn arguments: allowed means that a text passing both checks is known."""
    rng = random.Random(7)
    tasks = base_tasks("train")
    for ids in itertools.combinations_with_replacement(sorted(IFEVAL), 2):
        for _ in range(3):
            base = rng.choice(tasks)
            pair = tuple(Constraint(id, IFEVAL[id].draw(base, rng)) for id in ids)
            reason = clash(pair)
            assert bool(reason) == bool(clash(pair[::-1]))
            assert reason or build(pair) is not None, pair


def test_an_id_stands_twice_only_where_its_arguments_differ_in_kind():
    for id in IFEVAL:
        arguments = IFEVAL[id].draw(base_tasks("train")[0], random.Random(0))
        assert clash((Constraint(id, arguments), Constraint(id, arguments))), id


def test_demands_that_only_together_exceed_a_limit_are_refused():
    parts = (existence("river", "stone", "bridge"), frequency("water", "at least", 4), bullets(5))
    limit = words("less than", 20)
    assert all(clash((part, limit)) is None for part in parts)
    assert clash((*parts, limit)) is not None
    assert "words" in clash((*parts, limit))


def test_a_constraint_joins_a_set_unless_the_whole_clashes():
    """What is drawn one by one is judged as the whole set is, for sets that go together so far."""
    for row in synthesis.generate(4, 60, max_constraints=10, families=("ifeval", "muldimif", "training", "soft")):
        *rest, new = row.constraints
        for other in (new, *(c for one in synthesis.generate(5, 4) for c in one.constraints)):
            joined = joins(state(other), [state(one) for one in rest])
            assert joined == (clash([*rest, other]) is None)
