"""The native JSONL format: rows are read back as written, and the error for a bad row names its file and line."""

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hir_jax.checks import registry
from hir_jax.data import native
from hir_jax.data.generate import synthesis
from hir_jax.data.readers import RowError
from hir_jax.data.templates import TEMPLATES
from hir_jax.types import Constraint, Instruction

GOOD = {"task": "Describe a storm.", "constraints": [{"id": "punctuation:no_comma"}], "template": "type1"}
SHORT = {"relation": "less than", "num_words": 60}


def put(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


nonblank = st.text(min_size=1, max_size=40).filter(str.strip)
words = st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=8), min_size=1, max_size=4)
counts = st.integers(0, 500)
relations = st.sampled_from(("at least", "less than"))
constraints = st.one_of(
    st.builds(Constraint, st.just("punctuation:no_comma"), st.just({}), nonblank),
    st.builds(Constraint, st.just("keywords:existence"), st.fixed_dictionaries({"keywords": words}), nonblank),
    st.builds(Constraint, st.just("startend:end_checker"), st.fixed_dictionaries({"end_phrase": nonblank}), nonblank),
    st.builds(
        Constraint,
        st.just("length_constraints:number_words"),
        st.fixed_dictionaries({"num_words": counts, "relation": relations}),
        nonblank,
    ),
)
instructions = st.builds(
    Instruction,
    nonblank,
    st.lists(constraints, min_size=1, max_size=4).map(tuple),
    st.sampled_from(TEMPLATES),
    st.one_of(st.integers(), st.text(max_size=10)),
)


@settings(max_examples=40)
@given(rows=st.lists(st.tuples(instructions, nonblank), min_size=1, max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("native") / "rows.jsonl"
    plain = [row for row, _ in rows]
    with_place = [
        Instruction(r.task, r.constraints, r.template, r.key, f"{path}:{i}") for i, r in enumerate(plain, start=1)
    ]
    native.write(path, plain)
    assert native.read(path) == with_place
    native.write(path, plain, [response for _, response in rows])
    assert native.read_pairs(path) == [(row, response) for row, (_, response) in zip(with_place, rows, strict=True)]
    assert native.read(path) == with_place


def test_generated_rows_go_through_a_file(tmp_path):
    rows = synthesis.generate(0, 30)
    native.write(tmp_path / "rows.jsonl", rows)
    read = native.read(tmp_path / "rows.jsonl")
    assert [(r.task, r.constraints, r.template, r.key) for r in read] == [
        (r.task, r.constraints, r.template, r.key) for r in rows
    ]


def test_the_example_of_the_documentation_is_readable(tmp_path):
    lines = native.__doc__.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith('    {"task"'))
    end = next(i for i, line in enumerate(lines) if i > start and line.endswith("}"))
    example = " ".join(line.strip() for line in lines[start : lines.index("", start)])
    assert end >= start
    ((instruction, response),) = native.read_pairs(put(tmp_path / "doc.jsonl", example))
    assert instruction.key == "storm-1" and response.startswith("The wind")
    assert [c.id for c in instruction.constraints] == ["punctuation:no_comma", "length_constraints:number_words"]


def test_a_missing_text_is_the_registrys(tmp_path):
    row = GOOD | {"constraints": [{"id": "length_constraints:number_words", "arguments": SHORT, "text": " "}]}
    (read,) = native.read(put(tmp_path / "rows.jsonl", row))
    assert read.constraints[0].text == registry.describe("length_constraints:number_words", SHORT)
    assert read.key == ""


def changed(**fields):
    return GOOD | fields


def one(**constraint):
    return GOOD | {"constraints": [constraint]}


BAD = {
    "broken json": ('{"task": "x"', []),
    "not an object": ("[1]", []),
    "missing task": ({k: v for k, v in GOOD.items() if k != "task"}, ["'task'", "missing"]),
    "missing template": ({k: v for k, v in GOOD.items() if k != "template"}, ["'template'", "missing"]),
    "unknown field": (changed(templat="type1"), ["'templat'", "'template'"]),
    "blank task": (changed(task=" "), ["'task'", "blank"]),
    "task no text": (changed(task=7), ["'task'", "a string", "7"]),
    "key a bool": (changed(key=True), ["'key'", "True"]),
    "constraints no list": (changed(constraints={"id": "x"}), ["'constraints'", "a list"]),
    "no constraints": (changed(constraints=[]), ["'constraints'", "empty"]),
    "constraint no object": (changed(constraints=["punctuation:no_comma"]), ["constraint 1", "object"]),
    "constraint without id": (one(arguments={}), ["constraint 1", "'id'"]),
    "constraint field": (one(id="punctuation:no_comma", args={}), ["'args'", "'arguments'"]),
    "arguments no object": (one(id="punctuation:no_comma", arguments=[]), ["'arguments'", "an object"]),
    "text no text": (one(id="punctuation:no_comma", text=None), ["'text'", "a string"]),
    "unknown template": (changed(template="type7"), ["'type7'", "type6"]),
    "unknown id": (one(id="punctuation:no_coma"), ["constraint 1", "punctuation:no_coma", "punctuation:no_comma"]),
    "missing argument": (one(id="length_constraints:number_words", arguments={}), ["num_words"]),
    "bad argument": (
        one(id="length_constraints:number_words", arguments=SHORT | {"relation": "about"}),
        ["relation", "about"],
    ),
    "response no text": (changed(response=3), ["'response'", "a string"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_with_its_place(tmp_path, case):
    row, parts = BAD[case]
    path = put(tmp_path / "rows.jsonl", GOOD, "", row)
    for read in (native.read, lambda p: native.read_pairs(p)):
        if read is not native.read:
            path = put(tmp_path / "pairs.jsonl", GOOD | {"response": "Rain."}, "", row)
        with pytest.raises(RowError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}:3: ") and "\n" not in message
        assert all(part in message for part in parts), message


def test_pairs_need_a_response_and_files_need_rows(tmp_path):
    with pytest.raises(RowError, match=r"rows.jsonl:1: .*'response'"):
        native.read_pairs(put(tmp_path / "rows.jsonl", GOOD))
    with pytest.raises(RowError, match="holds no rows"):
        native.read(put(tmp_path / "empty.jsonl"))
    with pytest.raises(RowError, match=r"nowhere\.jsonl"):
        native.read(tmp_path / "nowhere.jsonl")


def test_writing_needs_one_response_for_each_row_and_keeps_the_old_file_if_it_fails(tmp_path):
    path = put(tmp_path / "rows.jsonl", GOOD)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="2 responses for 1 instructions"):
        native.write(path, native.read(path), ["a", "b"])
    assert path.read_bytes() == before
