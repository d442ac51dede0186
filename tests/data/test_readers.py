"""Reading JSON Lines, and the published prompts of IFEval and IFBench."""

import json
import math
from pathlib import Path

import pytest

from hir_jax.data.readers import RowError, read_ifbench, read_ifeval, read_jsonl
from hir_jax.data.templates import render
from hir_jax.types import Constraint, Instruction

BENCHMARKS = Path(__file__).parents[2] / "../shared/benchmarks"

GOOD = {
    "key": 5,
    "prompt": "Say hello without commas.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{"keywords": None}, {"num_words": 3, "relation": "at least", "language": None}],
}


def _second(**arguments):
    """A row's kwargs with changed arguments of the second constraint."""
    return {"kwargs": [GOOD["kwargs"][0], GOOD["kwargs"][1] | arguments]}


def test_lines_end_at_newlines_only_and_blank_ones_are_passed_over(tmp_path):
    path = tmp_path / "rows"
    path.write_bytes('{"a": "x\u2028y"}\r\n\n  \n{"a": 2}'.encode())
    assert list(read_jsonl(path)) == [(1, {"a": "x\u2028y"}), (4, {"a": 2})]


def test_bad_lines_are_raised_or_handed_over(tmp_path):
    path = tmp_path / "rows"
    deep = b"[" * 100_000
    path.write_bytes(b'{"a": 1}\n{"a": \n"text"\n{"a": "\xff"}\n' + deep + b'\n{"a": 2}\n')
    rows = read_jsonl(path)
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(RowError, match=f"^{path}:2: not JSON: "):
        next(rows)
    errors = []
    assert list(read_jsonl(path, errors.append)) == [(1, {"a": 1}), (6, {"a": 2})]
    places = [f"{path}:2: not JSON", f"{path}:3: a JSON object", f"{path}:4: not JSON", f"{path}:5: not JSON"]
    assert [str(error)[: len(place)] for error, place in zip(errors, places, strict=True)] == places


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(RowError, match=f"{tmp_path / 'absent'}: cannot be read: No such file"):
        list(read_jsonl(tmp_path / "absent", on_error=lambda error: None))


def test_an_ifeval_row(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    (instruction,) = read_ifeval(path)
    assert instruction == Instruction(
        task="Say hello without commas.",
        constraints=(
            Constraint("punctuation:no_comma", {}),
            Constraint("length_constraints:number_words", {"num_words": 3, "relation": "at least"}),
        ),
        template="verbatim",
        key=5,
        source=f"{path}:1",
    )
    assert render(instruction) == GOOD["prompt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": None}, "'key' must be an integer or a string, not None"),
        ({"key": True}, "'key' must be"),
        ({"prompt": " "}, "'prompt' must be a non-blank string"),
        ({"instruction_id_list": []}, "'instruction_id_list' must be a non-empty list"),
        ({"instruction_id_list": "punctuation:no_comma"}, "'instruction_id_list' must be"),
        ({"kwargs": [{}]}, "2 instruction ids, but 1 kwargs"),
        ({"kwargs": [{}, None]}, "'kwargs' must be a list of objects"),
        ({"kwargs": None}, "'kwargs' must be"),
        ({"instruction_id_list": ["punctuation:no_comma", "a:b"]}, "unknown constraint id 'a:b'; the nearest known"),
        ({"key": "5"}, "key '5' was used before, in "),
        (
            _second(num_words=math.nan),
            "length_constraints:number_words: argument 'num_words' must be an integer >= 0, not nan",
        ),
        (
            _second(num_words="3"),
            "length_constraints:number_words: argument 'num_words' must be an integer >= 0, not '3'",
        ),
        (_second(num_words=None), "length_constraints:number_words: argument 'num_words' is missing"),
        (_second(words=3), "length_constraints:number_words: unknown argument 'words' (it takes: num_words, relation)"),
        (
            {"kwargs": [{"relation": "at least"}, GOOD["kwargs"][1]]},
            "punctuation:no_comma: unknown argument 'relation'",
        ),
    ],
)
def test_a_broken_ifeval_row_is_named(tmp_path, changes, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "key": 6, **changes}) + "\n")
    with pytest.raises(RowError) as caught:
        read_ifeval(path)
    assert str(caught.value).startswith(f"{path}:2: {message}")


def test_an_empty_file_of_prompts_is_an_error(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("\n")
    with pytest.raises(RowError, match="holds no rows"):
        read_ifeval(tmp_path / "prompts.jsonl")


def test_an_ifbench_row(tmp_path):
    row = {
        "key": "7",
        "prompt": "Name three fruits, with two numbers.",
        "instruction_id_list": ["count:numbers", "format:no_whitespace"],
        "kwargs": [{"N": 2.0}, {}],
    }
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (instruction,) = read_ifbench(path)
    assert instruction.key == "7" and render(instruction) == row["prompt"]
    assert instruction.constraints == (Constraint("count:numbers", {"N": 2}), Constraint("format:no_whitespace", {}))
    path.write_text(json.dumps({**row, "instruction_id_list": ["count:number", "format:no_whitespace"]}) + "\n")
    with pytest.raises(RowError, match=r":1: unknown constraint id 'count:number'; .* 'count:numbers'"):
        read_ifbench(path)
    path.write_text(json.dumps({**row, "kwargs": [{"N": math.nan}, {}]}) + "\n")
    with pytest.raises(RowError, match=r":1: count:numbers: argument 'N' must be an integer >= 0, not nan"):
        read_ifbench(path)


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmark fixtures (../shared/benchmarks) are absent")
@pytest.mark.parametrize(
    ("read", "name", "rows", "constraints", "ids"),
    [(read_ifeval, "ifeval", 541, 834, 25), (read_ifbench, "ifbench", 294, 335, 57)],
)
def test_the_published_prompts(read, name, rows, constraints, ids):
    instructions = read(BENCHMARKS / name / "prompts.jsonl")
    assert len(instructions) == rows
    assert sum(len(instruction.constraints) for instruction in instructions) == constraints
    assert len({c.id for instruction in instructions for c in instruction.constraints}) == ids
