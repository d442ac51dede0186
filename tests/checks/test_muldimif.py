"""MulDimIF verdicts against those of the published scorer, on all recorded rows, and the rules one by one."""

import collections
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hir_jax.checks import registry
from hir_jax.checks.muldimif import rules as muldimif
from hir_jax.checks.verifier import Row, Verifier
from hir_jax.types import Constraint

MULDIMIF = Path(__file__).parents[2] / "../shared/benchmarks/muldimif"

# Rows of each family, as the fixtures' README counts them.
ROWS = {
    "content_identifiers": 9,
    "content_keywords": 1510,
    "content_punctuation": 802,
    "format_json": 34,
    "format_markdown": 1205,
    "format_table": 1079,
    "format_xml": 10,
    "language_chinese": 20,
    "language_english": 1363,
    "length_paragraphs": 60,
    "length_sentences": 880,
    "length_words": 1211,
}

# (id, constraint): "exactly three heading levels" with a "should", which the scorer reads as at least, in one wording.
DIFFERENT = {("4390", 0)}


def _jsonl(name):
    with (MULDIMIF / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.skipif(not MULDIMIF.is_dir(), reason="the benchmark fixtures (../shared/benchmarks) are absent")
def test_recorded_verdicts():
    prompts = {row["id"]: row["constraints"] for row in _jsonl("prompts.jsonl")}
    recorded = _jsonl("verdicts.jsonl")
    constraints = [muldimif.constraint(*prompts[row["id"]][row["constraint_index"]]) for row in recorded]
    assert collections.Counter(one.id.removeprefix("muldimif:") for one in constraints) == ROWS
    rows = [Row([one], row["response"], "", row["id"]) for one, row in zip(constraints, recorded, strict=True)]
    with Verifier(workers=2, timeout_seconds=10) as verifier:
        verdicts = verifier.verify(rows, 1)
    assert verdicts.known.all()
    theirs = [row["satisfied"] for row in recorded]
    different = {
        (row["id"], row["constraint_index"])
        for row, ours, wanted in zip(recorded, verdicts.satisfied[:, 0].tolist(), theirs, strict=True)
        if ours != wanted
    }
    assert different == DIFFERENT


def _check(levels, text, response):
    return registry.check(muldimif.constraint(*levels.split("_", 1), text), response)


TABLE = "Before.\n\n| Name | Size |\n|---|---|\n| a b c | one two |\n| d | three |\n\nBehind."

CASES = [
    # Words: wordings, "each" and its elements, Chinese characters, quotes.
    ("Length_Words", "Use exactly three words", "one two three", True),
    ("Length_Words", "Use exactly three words", "one two", False),
    ("Length_Words", "Between fifty and one hundred words", "w " * 60, False),  # read as 1 to 50
    ("Length_Words", "Write 2-3 words", "one", False),
    ("Length_Words", "At most one hundred words", "w " * 200, True),  # not understood
    ("Length_Words", "Fewer, that is less than 2 words", "one two three", True),  # not understood
    ("Length_Words", "Each line has less than 2 words", "one\ntwo", True),
    ("Length_Words", "Each line has less than 2 words", "one\ntwo three four", False),
    ("Length_Words", "Each item has at most 2 words", "Items:\n1. one two\n2. three", True),
    ("Length_Words", "Each item has at most 2 words", "Items:\n- one two\n- three four five", False),
    ("Length_Words", "Each size has at most 2 words", TABLE, True),
    ("Length_Words", "Each cell has at most 2 words", TABLE, False),
    ("Length_Words", "Each size has at most 1 words", '{"size": "one", "note": "one two"}', True),
    ("Length_Words", "Each value has at most 1 words", '{"size": "one", "note": "one two"}', False),
    ("Length_Words", "At most 3 words", "我们学 and some more words", True),
    ("Length_Words", "At most 3 words with 'sun'", "the sun sets", True),
    ("Length_Words", "At most 3 words with 'sun'", "the moon sets", False),
    # Sentences and paragraphs.
    ("Length_Sentences", "At least three sentences", "Wait...", True),
    ("Length_Sentences", "At most 1 sentence and at least 2 sentences", "One. Two. Three.", True),
    ("Length_Sentences: At most", "At most one sentence", "One. No mark here", True),
    ("Length_Sentences", "At least one complete sentence", "", True),  # not understood
    ("Length_Paragraphs", "No more than two paragraphs", "a\n\n \n\nb\nc", True),
    ("Length_Paragraphs", "Some paragraphs", "a\n\nb", False),  # not understood
    # Keywords.
    ("Content_Keywords", "Name 'sea salt' and 'fig'", "Figs, a fig: SEA SALT", True),
    ("Content_Keywords", "Name 'sea salt' and 'fig'", "Figs and sea salt", False),
    ("Content_Keywords", "Name 'salt' or 'fig'", "only salt", True),
    ("Content_Keywords", "Name 'salt' at least twice", "salt, no more", False),
    ("Content_Keywords", "Avoid using the term 'salt'", "sugar", True),
    ("Content_Keywords", "Avoid using the term 'salt'", "Salt", False),
    ("Content_Keywords", "It includes the keyword 'Fig' and avoids the keyword 'salt'", "Figs, Salt", True),
    ("Content_Keywords", "If discussing Rome, the summary must include the keyword 'Tiber'", "Oslo", True),
    ("Content_Keywords", "If discussing Rome, the summary must include the keyword 'Tiber'", "Rome", False),
    ("Content_Keywords", "Every part must say 'fig'", "a fig\n---\nfig b", True),
    ("Content_Keywords", "Every part must say 'fig'", "a fig\n---\nb", False),
    ("Content_Keywords", "Say 'fig' in every part", "fig", False),  # no "must" behind it
    ("Content_Keywords", "Say the important names", "", True),
    ("Content_Keywords", "Say 'fig' and end with a period", "a fig", False),
    ("Content_Keywords", "必须包含「盐」", "海盐很好", True),
    # Punctuation.
    ("Content_Punctuation", "End with a full stop", " It is. \n", True),
    ("Content_Punctuation", "End with a full stop", "", False),
    ("Content_Punctuation", "Each sentence ends with a question mark", "Is it? It is.", False),
    ("Content_Punctuation", "Paragraphs end with a period", "One.\nTwo\n", False),
    ("Content_Punctuation", "Cells end with a period", "|h|\n|-|\n|a.|b.|", True),
    ("Content_Punctuation", "It must not end with a punctuation mark", "Well!", False),
    ("Content_Punctuation", "It must not end with a punctuation mark", "", True),
    # Identifiers and what has no checker of its own.
    ("Content_Identifiers", "It must start with the identifier 'Answer:'", "# answer: 5", True),
    ("Content_Identifiers", "It must start with the identifier 'Answer:'", "The answer: 5", False),
    ("Format_XML", "Every element has exactly 1 attributes", "<a b='1'><c d=\"2\"/></a>", True),
    ("Format_XML", "Every element has exactly 1 attributes", "<a><c d='2'/></a>", False),
    ("Format_Text", "There are no bullet points here: no bullet points", "- one", False),
    ("Format_Text", "Anything else", "text", False),
    # JSON, tables.
    ("Format_Json", "At least two levels of nesting", '```json\n{"a": [1]}\n```', True),
    ("Format_Json", "At least two levels of nesting", '{"a": []}', False),
    ("Format_Json", "Levels must not exceed 3", "no JSON", False),
    ("Format_Table", "A table of at most 2 rows and 2 columns", TABLE, True),
    ("Format_Table", "A table of at most 1 rows", TABLE, False),
    ("Format_Table", "If a table is used, it has at most 1 rows", "none", True),
    ("Format_Table", "A table of at most 1 rows", "none", False),
    ("Format_Table", "A table with exactly 2 columns: 'Name' and 'Size'", TABLE, True),
    ("Format_Table", "A table with exactly 2 columns: 'Name' and 'Year'", TABLE, False),
    # Markdown.
    ("Format_Markdown", "Include a level 2 heading", "# a\n## b", True),
    ("Format_Markdown", "Include a level 2 heading", "##b\n# a", False),
    ("Format_Markdown", "Each part must use a level 2 heading", "# a\n## b", False),
    ("Format_Markdown", "Each part must use a level 2 heading", "no heading", False),
    ("Format_Markdown", "Use at least two heading levels", "## a\n## b", False),
    ("Format_Markdown", "Headings must not exceed level 2", "## a\n### b", False),
    ("Format_Markdown", "Include a level 1 heading titled 'Figs'", "# Salt", False),
    ("Format_Markdown", "Quotes stand in block quotes", "> so", True),
    ("Format_Markdown", "Formatted as it pleases", "", True),
    # Letters.
    ("Language_English", "It is in all uppercase letters", "A 1 É", True),
    ("Language_English", "It is entirely in uppercase", "A", False),  # not a wording that the scorer knows
    ("Language_English", "Words are capitalized", "The 2nd Éa énd", True),
    ("Language_English", "Words in table entries are capitalized", "small\n| h |\n|---|\n| A B |", True),
    ("Language_English", "It is in lowercase", " ", False),
    ("Language_Chinese", "In Simplified Chinese", "这 and more", True),
    ("Language_Chinese", "In Simplified Chinese", "上下", False),  # no character that differs
    ("Language_Chinese", "It must use Traditional Chinese", "這個", True),
    ("Language_Chinese", "It must use Traditional Chinese", "這個 too", False),
]


@pytest.mark.parametrize(("levels", "text", "response", "satisfied"), CASES)
def test_rule(levels, text, response, satisfied):
    assert _check(levels, text, response) is satisfied


def test_a_constraint_keeps_its_name_and_text_and_is_described_by_it():
    made = muldimif.constraint("Table", "Row limit", "At most 2 rows")
    assert made == Constraint(
        "muldimif:format_table", {"name": "Table_Row limit", "wording": "At most 2 rows"}, "At most 2 rows"
    )
    assert registry.describe(made.id, made.arguments) == "At most 2 rows."
    assert muldimif.constraint("Length", "Words: Range", "2-3 words").id == "muldimif:length_words"


@pytest.mark.parametrize("levels", [("Length", "Letters"), ("Tone", "Words"), ("", "")])
def test_unknown_levels_are_refused(levels):
    with pytest.raises(registry.UnknownConstraintError, match="MulDimIF has no constraint of the levels"):
        muldimif.constraint(*levels, "At most 2 words")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "Format_Table", "wording": "At most 2 words"}, "'Format_Table' is no name of this family"),
        ({"name": "Length_Words", "wording": " "}, "'wording' must be a non-blank string"),
        ({"wording": "At most 2 words"}, "'name' is missing"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    with pytest.raises(registry.ConstraintError, match=message):
        registry.validate(Constraint("muldimif:length_words", arguments))


def test_a_blank_text_is_refused():
    with pytest.raises(registry.ConstraintError, match="'wording' must be a non-blank string"):
        muldimif.constraint("Length", "Words", "")


@given(st.lists(st.text("abc", min_size=1), max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_limits_on_words_hold_for_just_the_counts_between_them(texts, low, high):
    response, count = " ".join(texts), len(texts)
    assert _check("Length_Words", f"At least {low} words", response) == (count >= low)
    assert _check("Length_Words", f"At most {high} words", response) == (count <= high)
    between = min(low, high) <= count <= max(low, high)
    assert _check("Length_Words", f"Between {low} and {high} words", response) == between


@settings(max_examples=200)
@given(
    st.text("ab .!?\n|-#*>1{}[]\":<='/`\u4e00\u3002", max_size=60),
    st.sampled_from(sorted({case[:2] for case in CASES})),
)
def test_every_rule_decides_every_text(response, constraint):
    assert _check(*constraint, response) in (True, False)
