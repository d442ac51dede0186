"""The registry: what is refused at load time, and the wording of constraints."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hir_jax.checks import registry, responses
from hir_jax.checks.arguments import COUNT
from hir_jax.checks.registry import ConstraintError, UnknownConstraintError
from hir_jax.types import Constraint

IFEVAL = Path(__file__).parents[2] / "../shared/benchmarks/ifeval"

# One usable constraint of each id, and words that its text has to hold beside the arguments' values.
USABLE = {
    "change_case:capital_word_frequency": {"capital_frequency": 3, "capital_relation": "less than"},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "combination:repeat_prompt": {"prompt_to_repeat": "Write a haiku about snow."},
    "combination:two_responses": {},
    "detectable_content:number_placeholders": {"num_placeholders": 4},
    "detectable_content:postscript": {"postscript_marker": "P.P.S"},
    "detectable_format:constrained_response": {},
    "detectable_format:json_format": {},
    "detectable_format:multiple_sections": {"section_spliter": "Day", "num_sections": 5},
    "detectable_format:number_bullet_lists": {"num_bullets": 6},
    "detectable_format:number_highlighted_sections": {"num_highlights": 7},
    "detectable_format:title": {},
    "keywords:existence": {"keywords": ["river", "stone"]},
    "keywords:forbidden_words": {"forbidden_words": ["rock", "sand"]},
    "keywords:frequency": {"keyword": "story", "frequency": 8, "relation": "at least"},
    "keywords:letter_frequency": {"letter": "q", "let_frequency": 9, "let_relation": "at least"},
    "language:response_language": {"language": "de"},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 12, "nth_paragraph": 11, "first_word": "Rain"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 13},
    "length_constraints:number_sentences": {"num_sentences": 14, "relation": "at least"},
    "length_constraints:number_words": {"num_words": 15, "relation": "less than"},
    "punctuation:no_comma": {},
    "startend:end_checker": {"end_phrase": "That is all."},
    "startend:quotation": {},
}
IN_OTHER_WORDS = {"less than": "fewer than", "de": "German"}


def test_every_ifeval_type_is_registered():
    assert set(USABLE) <= set(registry.ids())
    if (IFEVAL / "prompts.jsonl").exists():
        rows = map(json.loads, (IFEVAL / "prompts.jsonl").open(encoding="utf-8"))
        assert {id for row in rows for id in row["instruction_id_list"]} == set(USABLE)


@pytest.mark.parametrize("id", USABLE)
def test_the_text_is_a_sentence_that_names_every_argument(id):
    registry.validate(Constraint(id, USABLE[id]))
    text = registry.describe(id, USABLE[id])
    assert text.endswith(".") and text[0].isupper() and "\n" not in text
    for value in USABLE[id].values():
        for item in value if isinstance(value, list) else [value]:
            assert IN_OTHER_WORDS.get(item, str(item)) in text


def test_a_single_one_is_not_put_in_the_plural():
    assert "1 word " in registry.describe(
        "length_constraints:number_words", {"num_words": 1, "relation": "at least"}
    ).replace(".", " ")
    assert "each" not in registry.describe("keywords:existence", {"keywords": ["river"]})


def test_an_unknown_id_names_the_nearest_one():
    with pytest.raises(UnknownConstraintError, match=r"'keywords:existance'.*nearest.*'keywords:existence'"):
        registry.validate(Constraint("keywords:existance", {"keywords": ["a"]}))
    with pytest.raises(UnknownConstraintError):
        registry.check(Constraint("no such thing"), "text")
    with pytest.raises(UnknownConstraintError):
        registry.describe("", {})


def _changed(id, **changes):
    return id, {**USABLE[id], **changes}


UNUSABLE = [
    _changed("keywords:existence", keywords=[]),
    _changed("keywords:existence", keywords="river"),
    _changed("keywords:existence", keywords=["river", " "]),
    _changed("keywords:existence", keywords=["C**"]),
    _changed("keywords:existence", keywords=["(a"]),
    _changed("keywords:existence", keywords=["a{99999999999999999999}"]),
    _changed("keywords:existence", keywords=None),
    _changed("keywords:forbidden_words", forbidden_words=["(?i)a"]),  # wrong only where it is searched, inside \b...\b
    _changed("keywords:frequency", keyword=""),
    _changed("keywords:frequency", frequency=-1),
    _changed("keywords:frequency", frequency="3"),
    _changed("keywords:frequency", frequency=True),
    _changed("keywords:frequency", frequency=2.5),
    _changed("keywords:frequency", frequency=float("inf")),
    _changed("keywords:frequency", frequency=float("nan")),
    _changed("keywords:frequency", relation="at most"),
    _changed("keywords:letter_frequency", letter="#"),
    _changed("keywords:letter_frequency", letter="ab"),
    _changed("keywords:letter_frequency", letter="é"),
    _changed("keywords:letter_frequency", letter=""),
    _changed(
        "language:response_language", language="zh-cn"
    ),  # spelt "zh" in the data; langdetect's spelling never fits
    _changed("language:response_language", language="tlh"),
    _changed("length_constraints:nth_paragraph_first_word", nth_paragraph=13),
    _changed("length_constraints:nth_paragraph_first_word", nth_paragraph=0),
    _changed("length_constraints:nth_paragraph_first_word", first_word=""),
    _changed("detectable_content:postscript", postscript_marker=" "),
    _changed("detectable_content:postscript", postscript_marker="P.S.("),
    _changed("detectable_format:multiple_sections", section_spliter="["),
    _changed("startend:end_checker", end_phrase="\n"),
    _changed("combination:repeat_prompt", prompt_to_repeat=""),
    _changed("punctuation:no_comma", num_commas=0),
]


@pytest.mark.parametrize(("id", "arguments"), UNUSABLE)
def test_unusable_arguments_are_refused_and_never_pass(id, arguments):
    constraint = Constraint(id, arguments)
    for refused in (
        lambda: registry.validate(constraint),
        lambda: registry.check(constraint, "river stone"),
        lambda: registry.check(constraint, "", loose=True),
        lambda: registry.describe(id, arguments),
    ):
        with pytest.raises(ConstraintError, match=f"^{id}: ") as caught:
            refused()
        assert not isinstance(caught.value, UnknownConstraintError)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("id", [id for id, arguments in USABLE.items() if arguments])
def test_each_argument_is_required(id):
    for name in USABLE[id]:
        rest = {other: value for other, value in USABLE[id].items() if other != name}
        with pytest.raises(ConstraintError, match=f"^{id}: argument '{name}' is missing; it must be "):
            registry.validate(Constraint(id, rest))


def test_integers_written_as_floats_are_integers():
    floats = {"num_paragraphs": 3.0, "nth_paragraph": 2.0, "first_word": "Two"}
    assert registry.check(Constraint("length_constraints:nth_paragraph_first_word", floats), "One\n\nTwo\n\nThree")
    assert "3 paragraphs" in registry.describe("length_constraints:nth_paragraph_first_word", floats)


def test_a_check_whose_parameters_are_not_its_arguments_cannot_be_registered():
    with pytest.raises(ValueError, match="test:odd"):

        @registry.register("test:odd", lambda count: "Odd.", count=COUNT)
        def odd(response):
            return False

    assert "test:odd" not in registry.ids()


def test_an_id_belongs_to_one_module():
    with pytest.raises(ValueError, match=r"already registered by hir_jax\.checks\.ifeval"):

        @registry.register("punctuation:no_comma", lambda: "No comma.")
        def no_comma(response):
            return True


def _variants_by_definition(response):
    """The eight forms, written out one by one from the benchmark's description."""
    first_cut = response[response.index("\n") + 1 :] if "\n" in response else ""
    last_cut = response[: response.rindex("\n")] if "\n" in response else ""
    both_cut = response[response.index("\n") + 1 : response.rindex("\n")] if response.count("\n") > 1 else ""
    forms = [response, first_cut.strip(), last_cut.strip(), both_cut.strip()]
    return {form for form in forms + [form.replace("*", "") for form in forms] if form.strip()}


@given(st.text(alphabet="ab* \n", max_size=24))
def test_loose_variants(response):
    assert set(responses.loose_variants(response)) == _variants_by_definition(response)


CHEAP = [id for id in USABLE if id.split(":")[0] not in ("change_case", "language")]


@given(st.sampled_from(CHEAP), st.text(alphabet='aq.,*-[]<>{}"\n river1', max_size=60))
def test_a_strict_pass_is_a_loose_pass_and_blank_never_passes(id, response):
    constraint = Constraint(id, USABLE[id])
    assert registry.check(constraint, response) <= registry.check(constraint, response, loose=True)
    if not response.strip():
        assert not registry.check(constraint, response, loose=True)
