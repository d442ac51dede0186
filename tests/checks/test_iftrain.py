"""IF-RLVR's further types. Cases were worked out from the published checkers: two that pass, two that fail, two at a boundary."""

import pytest

from hir_jax.checks import registry
from hir_jax.types import Constraint

REPEAT = {"prompt_to_repeat": "Name a colour."}
SPAN = {"prompt_to_repeat": "Name a colour.", "n_start": 5, "n_end": 13}
PHRASE = {"phrase": "Time flies when having fun", "small_n": 2}
COMPOSED = {"n_sent": 2, "n_words": 3}
CASES = {
    "keywords:word_once": [
        ({"keyword": "sea"}, "The sea is calm.", True),
        ({"keyword": "sea "}, "SEA and land", True),
        ({"keyword": "sea"}, "The land.", False),
        ({"keyword": "sea"}, "Sea to sea.", False),
        ({"keyword": "sea"}, "A season.", True),  # within a word
        ({"keyword": "sea"}, "A season at sea.", False),
    ],
    "keywords:word_count_different_numbers": [
        ({"keyword": "sea", "frequency": 2, "relation": "at least"}, "Sea, sea, sea.", True),
        ({"keyword": "sea", "frequency": 2, "relation": "less than"}, "One sea.", True),
        ({"keyword": "sea", "frequency": 2, "relation": "at least"}, "One sea.", False),
        ({"keyword": "sea", "frequency": 2, "relation": "less than"}, "Sea, sea, sea.", False),
        ({"keyword": "sea", "frequency": 2, "relation": "at least"}, "Sea, sea.", True),
        ({"keyword": "sea", "frequency": 2, "relation": "less than"}, "Sea, sea.", False),
    ],
    "count:count_increment_word": [
        ({"keyword1": "sun", "keyword2": "sea"}, "Sun, sea and sea.", True),
        ({"keyword1": ["sun"], "keyword2": ["sea"]}, "The sea, the sun, the sea.", True),
        ({"keyword1": "sun", "keyword2": "sea"}, "Sun and sea.", False),
        ({"keyword1": "sun", "keyword2": "sea"}, "Sun, sun, sea, sea.", False),
        ({"keyword1": "sun", "keyword2": "sea"}, "Sunday at the seaside in the SEA.", True),
        ({"keyword1": "sun", "keyword2": "sea"}, "Sun, sea, sea, sea.", False),
    ],
    "keywords:exclude_word_harder": [
        ({"keyword": "sea"}, "The land is dry.", True),
        ({"keyword": "sea"}, "Overseas travel.", True),
        ({"keyword": "sea"}, "The sea is calm.", False),
        ({"keyword": " sea"}, "At sea again", False),
        ({"keyword": "sea"}, "By the sea.", True),  # beside a mark
        ({"keyword": "sea"}, "The Sea is calm.", True),  # another case
    ],
    "letters:letter_counting": [
        ({"N": 3, "relation": "at least"}, "Four", True),
        ({"N": 3, "relation": "less than"}, "No!", True),
        ({"N": 3, "relation": "at least"}, "No 123", False),
        ({"N": 3, "relation": "less than"}, "Four", False),
        ({"N": 3, "relation": "at least"}, "a, b, C", True),
        ({"N": 3, "relation": "less than"}, "été", True),  # letters with accents do not count
    ],
    "letters:letter_counting2": [
        ({"letter": "e", "let_frequency": 2, "let_relation": "at least"}, "Eleven", True),
        ({"letter": "e", "let_frequency": 2, "let_relation": "less than"}, "One", True),
        ({"letter": "e", "let_frequency": 2, "let_relation": "at least"}, "One", False),
        ({"letter": "e", "let_frequency": 2, "let_relation": "less than"}, "Eleven", False),
        ({"letter": "E", "let_frequency": 2, "let_relation": "at least"}, "eE", True),
        ({"letter": "E", "let_frequency": 2, "let_relation": "less than"}, "eE", False),
    ],
    "count:lowercase_counting": [
        ({"N": 2}, "TWO words HERE too", True),
        ({"N": 2}, "ALL IN CAPITALS", True),
        ({"N": 2}, "three small words", False),
        ({"N": 2}, "it's so", False),  # it, s, so
        ({"N": 2}, "Only two so ", True),
        ({"N": 2}, "a1 b2 Cd e_f", True),  # none is letters alone
    ],
    "count:count_unique": [
        ({}, "Every word differs", True),
        ({}, "One sentence, and no word again.", True),
        ({}, "The cat and the cat.", False),
        ({}, "Ends here. And here", False),
        ({}, "The cat saw the dog.", True),  # cases differ
        ({}, "One. Two.", False),  # the period is a token
    ],
    "keywords:palindrome": [
        ({}, "They sail a kayak there", True),
        ({}, "See level ground", True),
        ({}, "No such word here", False),
        ({}, "My kayak, though", False),  # the comma belongs to it
        ({}, "I saw it", True),  # one letter
        ({}, "Then Anna came", False),  # with its case
    ],
    "keywords:no_adjacent_consecutive": [
        ({}, "Apples cannot fly", True),
        ({}, "Zebras arrive", True),
        ({}, "All birds fly", False),
        ({}, "We x-ray", False),
        ({}, "Birds all", True),  # backwards
        ({}, "Alone", True),
    ],
    "keywords:keyword_specific_position": [
        ({"keyword": "sea", "n": 2, "m": 3}, "Hello there. By the sea we sit.", True),
        ({"keyword": ["sea"], "n": 1, "m": 1}, "sea and land", True),
        ({"keyword": "sea", "n": 2, "m": 3}, "By the sea. Hello to you.", False),
        ({"keyword": "sea", "n": 3, "m": 1}, "sea. sea.", False),
        ({"keyword": "sea", "n": 1, "m": 3}, "Oh, sea and land", True),  # the comma is the second word
        ({"keyword": "sea", "n": 1, "m": 1}, "Sea and land", False),  # in this case
    ],
    "keywords:start_end": [
        ({}, "Rain follows rain", True),
        ({}, "now and Now", True),
        ({}, "Rain follows sun", False),
        ({}, "Rain follows rain.", False),  # the period is the last token
        ({}, "Rain", False),
        ({}, "rain RAIN", True),
    ],
    "first_word:first_word_sent": [
        ({"first_word": "now"}, "Now we go. Now we stay.", True),
        ({"first_word": ["now"]}, "now or never", True),
        ({"first_word": "now"}, "Now we go. Then we stay.", False),
        ({"first_word": "now"}, "We go now.", False),
        ({"first_word": "now"}, "Now, we go.", False),  # the comma belongs to it
        ({"first_word": "now"}, "Now we go.\nNOW you stay", True),
    ],
    "first_word:first_word_answer": [
        ({"first_word": "now"}, "Now we go. We stay.", True),
        ({"first_word": "now"}, "\n NOW or never", True),
        ({"first_word": "now"}, "We go now", False),
        ({"first_word": "now"}, "Nowhere", False),
        ({"first_word": "now"}, "Now, we go.", False),
        ({"first_word": "now"}, "now", True),
    ],
    "last_word:last_word_sent": [
        ({"last_word": "now"}, "We go now. You stay now!", True),
        ({"last_word": ["now"]}, "Go now", True),
        ({"last_word": "now"}, "We go now. You stay here.", False),
        ({"last_word": "now"}, "Now we go.", False),
        ({"last_word": "now"}, 'He said "now". Go (now)?', True),
        ({"last_word": "its"}, "It is it's.", True),  # marks within are left out
    ],
    "last_word:last_word_answer": [
        ({"last_word": "now"}, "You stay. We go now!", True),
        ({"last_word": "now"}, "go NOW", True),
        ({"last_word": "now"}, "Now we go.", False),
        ({"last_word": "now"}, "We go now, yes.", False),
        ({"last_word": "now"}, "We go (now)...\n", True),
        ({"last_word": "now"}, "We go now .", False),  # the last word is a mark
    ],
    "paragraphs:paragraphs": [
        ({}, "One.\n***\nTwo.", True),
        ({}, "One *** Two", True),
        ({}, "One.\n\nTwo.", False),
        ({}, "One *** Two *** Three", False),
        ({}, "*** One *** Two ***", True),  # dividers at the ends
        ({}, "One *** *** Two", False),
    ],
    "paragraphs:paragraphs2": [
        ({}, "One.\n\nTwo.", True),
        ({}, "One.\nStill one.\n\nTwo.", True),
        ({}, "One.\nTwo.", False),
        ({}, "One.\n\nTwo.\n\nThree.", False),
        ({}, "One.\n\nTwo.\n\n", True),
        ({}, "One.\n\n\n\nTwo.", False),
    ],
    "count:counting_composition": [
        (COMPOSED, "We sat. You ran.\n***\nHe sang. I wept.\n***\nAll slept. None woke.", True),
        (COMPOSED, "We sat! You ran?***He sang. I wept.***All slept. None woke", False),  # the last has two tokens
        (COMPOSED, "We sat. You ran.\n***\nHe sang. I wept.", False),
        (COMPOSED, "We sat here. You ran.\n***\nHe sang. I wept.\n***\nAll slept. None woke.", False),
        (COMPOSED, "We sat! You ran?***He sang. I wept.***All slept. None woke at", True),  # without a mark: three words
        (COMPOSED, "We sat. You ran.***He sang. I wept.***All slept. None woke.***", False),  # a divider at the end
    ],
    "punctuation:punctuation_dot": [
        ({}, "No full stop!", True),
        ({}, "One, two; three", True),
        ({}, "The end.", False),
        ({}, "Wait...", False),
        ({}, "3.5 km", False),
        ({}, "The end。", True),
    ],
    "punctuation:punctuation_exclamation": [
        ({}, "Calm.", True),
        ({}, "Why?", True),
        ({}, "Stop!", False),
        ({}, "a != b", False),
        ({}, "¡Hola", True),
        ({}, "Stop！", True),
    ],
    "detectable_format:square_brackets": [
        ({}, "[All] [of] [it]", True),
        ({}, "[One]", True),
        ({}, "[All] of [it]", False),
        ({}, "[All of it]", False),
        ({}, "[It.]\n[is]", True),
        ({}, "[It].", False),
    ],
    "detectable_format:bigram_wrapping": [
        ({}, "<<I am>> <<at home>>", True),
        ({}, "<<I\nam>>", True),
        ({}, "I am at home", False),
        ({}, "<<I am>> at home", False),
        ({}, "<<I am>> alone", True),  # the odd word
        ({}, "Alone", True),
    ],
    "detectable_format:sentence_hyphens": [
        ({}, "We sat.-You ran.", True),
        ({}, "We sat.-You ran.-All slept.", True),
        ({}, "We sat. - You ran.", False),
        ({}, "A well-known thing.", False),
        ({}, "One sentence alone.", True),
        ({}, "We sat. You ran.", False),
    ],
    "copy:copy": [
        (REPEAT, "Name a colour.", True),
        (REPEAT, "name a COLOUR.", True),
        (REPEAT, "Red.", False),
        (REPEAT, "Name a colour. Red.", False),
        (REPEAT, "\n Name a colour. ", True),
        (REPEAT, "Name a  colour.", False),
    ],
    "copy:copying_simple": [
        (REPEAT, "Name a colour.", True),
        (REPEAT, "NAME A COLOUR.", True),
        (REPEAT, "Sure: Name a colour.", False),
        (REPEAT, "Red.", False),
        (REPEAT, "Name a colour.\n", True),
        (REPEAT, "Name a colour", False),
    ],
    "copy:copying_multiple": [
        (REPEAT | {"N": 2}, "Name a colour.******Name a colour.", True),
        (REPEAT | {"N": 3}, "Name a colour.\n******\nName a colour.\n******\nname a colour.", True),
        (REPEAT | {"N": 2}, "Name a colour.", False),
        (REPEAT | {"N": 2}, "Name a colour.******Red.", False),
        (REPEAT | {"N": 2}, "Name a colour.******Name a colour.******", False),
        (REPEAT | {"N": 2}, "Name a colour. ****** name a Colour.", True),
    ],
    "new:copy_span_idx": [
        (SPAN, "a colour", True),
        (SPAN, " A COLOUR\n", True),
        (SPAN, "Name a", False),
        (SPAN, "colour", False),
        (SPAN, "a colour.", False),  # the character at n_end is not part of it
        (SPAN | {"n_start": 4}, "a colour", True),  # white space around
    ],
    "copy:repeat_phrase": [
        (PHRASE, "Time flies while having fun. Time flies when having big fun.", False),  # one word too many
        (PHRASE, "Time flies while having fun, Time flies when making fun", True),
        (PHRASE, "Time crawls when having fun and Time flies when losing fun", True),
        (PHRASE, "Time flies while having fun", False),
        (PHRASE, "Time flies when having fun. Time flies while having fun.", True),  # only the last must differ
        (PHRASE, "Time flies while having fun. Time flies when having fun.", False),
        (PHRASE, "Time runs while having fun. Time flies while having fun.", False),  # two words
    ],
}  # fmt: skip


def test_every_type_of_the_family_has_its_cases():
    module = "hir_jax.checks.iftrain."
    ids = {id for id in registry.ids() if getattr(registry._entry(id).check, "__module__", "").startswith(module)}
    assert ids == set(CASES) and len(ids) == 29
    for id, cases in CASES.items():
        verdicts = [verdict for _, _, verdict in cases]
        assert len(cases) >= 6 and verdicts.count(True) >= 2 and verdicts.count(False) >= 2, id


@pytest.mark.parametrize(("id", "case"), [(id, case) for id, cases in CASES.items() for case in cases])
def test_cases(id, case):
    arguments, response, verdict = case
    constraint = Constraint(id, arguments)
    assert registry.check(constraint, response) is verdict
    assert registry.check(constraint, " \n") is False
    text = registry.describe(id, arguments)
    assert text.endswith(".") and "\n" not in text


@pytest.mark.parametrize(
    ("id", "arguments", "message"),
    [
        ("keywords:word_once", {"keyword": "("}, "invalid regular expression"),
        ("keywords:word_once", {"keyword": ["a", "b"]}, "a non-blank regular expression"),
        ("first_word:first_word_sent", {"first_word": " "}, "a non-blank string"),
        ("letters:letter_counting", {"N": 0, "relation": "at least"}, "an integer >= 1, not 0"),
        ("letters:letter_counting", {"N": 3, "relation": "at most"}, "one of 'less than', 'at least'"),
        ("copy:copying_multiple", {"N": 2}, "'prompt_to_repeat' is missing"),
        ("copy:repeat_phrase", {"phrase": "(sic) it is", "small_n": 2, "n": 1}, "unknown argument 'n'"),
        ("copy:repeat_phrase", {"phrase": "( it is", "small_n": 2}, "invalid regular expression"),
    ],
)
def test_unusable_arguments_are_named(id, arguments, message):
    with pytest.raises(registry.ConstraintError, match=message.replace("(", r"\(")):
        registry.validate(Constraint(id, arguments))


def test_a_number_that_the_published_scorer_draws_is_told_apart():
    with pytest.raises(registry.DrawnArgumentError, match="'n_start' must be an integer >= 1, not 0"):
        registry.validate(Constraint("new:copy_span_idx", SPAN | {"n_start": 0}))
