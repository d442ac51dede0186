"""IFEval verdicts against those of the published scorer, on every recorded and every crafted row."""

import json
import re
from pathlib import Path

import pytest

from hir_jax.checks import english, registry
from hir_jax.checks.verifier import Row, Verifier
from hir_jax.types import Constraint

IFEVAL = Path(__file__).parents[2] / "../shared/benchmarks/ifeval"

with_fixtures = pytest.mark.skipif(
    not IFEVAL.is_dir(), reason="the benchmark fixtures (../shared/benchmarks) are absent"
)


def _rows(name):
    with (IFEVAL / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=2, timeout_seconds=10) as verifier:
        yield verifier


@with_fixtures
@pytest.mark.parametrize("model", ["llama_3b", "qwen25_7b"])
def test_recorded_verdicts(verifier, model):
    prompts = {row["key"]: row for row in _rows("prompts.jsonl")}
    recorded = _rows(f"responses.{model}.jsonl")
    assert len(recorded) == 539
    rows = []
    for row in recorded:
        prompt = prompts[row["key"]]
        pairs = zip(prompt["instruction_id_list"], prompt["kwargs"], strict=True)
        rows.append(Row([Constraint(*pair) for pair in pairs], row["response"], prompt["prompt"], str(row["key"])))
    width = max(len(row.constraints) for row in rows)
    for mode, loose in (("strict", False), ("loose", True)):
        verdicts = verifier.verify(rows, width, loose=loose)
        assert (verdicts.known == verdicts.present).all()
        ours = [satisfied[present].tolist() for satisfied, present in zip(verdicts.satisfied, verdicts.present)]
        theirs = [row[mode] for row in recorded]
        assert [row["key"] for row, a, b in zip(recorded, ours, theirs) if a != b] == []


@with_fixtures
def test_crafted_verdicts():
    rows = _rows("crafted.jsonl")
    assert len(rows) == 198
    refused = []
    for row in rows:
        constraint = Constraint(row["instruction_id"], row["kwargs"])
        if "error" in row:
            refused.append((row["instruction_id"], row["kwargs"]))
            continue
        assert registry.check(constraint, row["response"]) == row["strict"], row
        assert registry.check(constraint, row["response"], loose=True) == row["loose"], row
    # The published scorer stops at this row with re.error; here its arguments are refused before any check.
    assert refused == [("keywords:existence", {"keywords": ["C**"]})]
    with pytest.raises(registry.ConstraintError, match=r"'C\*\*'.*multiple repeat"):
        registry.validate(Constraint(*refused[0]))


DEEP = 200_000


@pytest.mark.parametrize(
    "text", ["[" * DEEP, '{"a":' * DEEP, "[" * DEEP + "]" * DEEP, '["\\"' * DEEP, "[1]" + "[" * DEEP]
)
def test_deeply_nested_brackets_are_decided(text):
    """A quadratic search would take an hour here, and a recursive parser an exception."""
    assert not registry.check(Constraint("detectable_format:json_format"), text, loose=True)
    count = min(text.count("]"), 1)
    for number in (1, 2):
        placeholders = Constraint("detectable_content:number_placeholders", {"num_placeholders": number})
        assert registry.check(placeholders, text) == (number <= count)


def test_brackets_in_strings_are_no_nesting_and_hundreds_of_levels_are_json():
    for text in ("[" * 700 + "]" * 700, '["' + "[{" * DEEP + '"]', '{"a\\"[": ["[", "\\\\"]}'):
        assert registry.check(Constraint("detectable_format:json_format"), text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("[a] [b\nc] [[d]] []", 3), ("] [ [x]\r]", 1), ("[\u2028] [é]", 2), ("[a\n]", 0), ("[[", 0)],
)
def test_placeholders_are_the_shortest_within_a_line(text, count):
    assert count == len(re.findall(r"\[.*?\]", text))
    for number, met in ((count, True), (count + 1, False)):
        constraint = Constraint("detectable_content:number_placeholders", {"num_placeholders": number})
        assert registry.check(constraint, text) == met


@with_fixtures
def test_published_prompts_with_random_defaults_are_refused_and_no_others():
    refused = {}
    for row in _rows("prompts.jsonl"):
        for id, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            try:
                registry.validate(Constraint(id, arguments))
            except registry.ConstraintError as error:
                refused[row["key"]] = str(error)
    assert set(refused) == {1122, 1129}
    assert "'letter' must be one letter from a to z, not '#'" in refused[1122]


def test_language_names_cover_what_langdetect_knows():
    from langdetect.detector_factory import PROFILES_DIRECTORY

    from hir_jax.checks.ifeval.keywords import LANGUAGES

    known = {path.name for path in Path(PROFILES_DIRECTORY).iterdir() if not path.name.startswith(("_", "."))}
    assert set(LANGUAGES) == known - {"zh-cn"} | {"zh"}


def test_without_punkt_parameters_there_is_one_clear_error(monkeypatch):
    import nltk.tokenize.punkt

    def not_downloaded(language):
        raise LookupError("Resource punkt_tab not found.")

    monkeypatch.setattr(nltk.tokenize.punkt, "PunktTokenizer", not_downloaded)
    english.sentence_tokenizer.cache_clear()
    try:
        with pytest.raises(english.MissingDataError, match=r"pip install --no-deps llama-index-core==0\.14\.25"):
            Verifier(workers=0, timeout_seconds=1)
    finally:
        english.sentence_tokenizer.cache_clear()
