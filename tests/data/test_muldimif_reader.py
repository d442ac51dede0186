"""Reading MulDimIF's prompts."""

import collections
import json
from pathlib import Path

import pytest

from hir_jax.data.readers import RowError, read_muldimif
from hir_jax.data.templates import render
from hir_jax.types import Constraint, Instruction

PROMPTS = Path(__file__).parents[2] / "../shared/benchmarks/muldimif/prompts.jsonl"

GOOD = {
    "id": "7",
    "conversations": [{"role": "user", "content": "Describe a fig in at most nine words."}],
    "constraints": [["Length", "Words: At most", "at most nine words"]],
    "constraint_pattern": "Incorporation",
    "difficulty": "Level 1",
}


def _written(tmp_path, *rows):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_row(tmp_path):
    path = _written(tmp_path, GOOD)
    (instruction,) = read_muldimif(path)
    arguments = {"name": "Length_Words: At most", "wording": "at most nine words"}
    assert instruction == Instruction(
        task="Describe a fig in at most nine words.",
        constraints=(Constraint("muldimif:length_words", arguments, "at most nine words"),),
        template="verbatim",
        key="7",
        source=f"{path}:1",
        labels={"pattern": "Incorporation", "level": "Level 1"},
    )
    assert render(instruction) == "Describe a fig in at most nine words."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "'id' must be an integer or a string, not None"),
        ({"conversations": []}, "'conversations' must be a list of one turn"),
        ({"conversations": [{"role": "system", "content": "x"}]}, "must have the role 'user'"),
        ({"constraints": []}, "'constraints' must be a non-empty list"),
        (
            {"constraints": [["Length", "at most nine words"]]},
            r"constraint 0 must be \[first level, second level, text\]",
        ),
        ({"constraints": [["Length", "Letters", "x"]]}, "constraint 0: MulDimIF has no constraint of the levels"),
        ({"constraints": [["Length", "Words", " "]]}, "constraint 0: .*'wording' must be a non-blank string"),
        ({"constraint_pattern": 3}, "'constraint_pattern' must be a non-empty string"),
        ({"difficulty": ""}, "'difficulty' must be a non-empty string"),
    ],
)
def test_a_broken_row_is_named(tmp_path, change, message):
    path = _written(tmp_path, GOOD, GOOD | {"id": "8"} | change)
    with pytest.raises(RowError, match=f"^{path}:2: .*{message}"):
        read_muldimif(path)


def test_a_repeated_id_and_an_empty_file_are_refused(tmp_path):
    path = _written(tmp_path, GOOD, GOOD)
    with pytest.raises(RowError, match=f"^{path}:2: key '7' was used before, in {path}:1"):
        read_muldimif(path)
    path.write_text("\n")
    with pytest.raises(RowError, match="holds no rows"):
        read_muldimif(path)


@pytest.mark.skipif(not PROMPTS.is_file(), reason="the benchmark fixtures (../shared/benchmarks) are absent")
def test_the_published_prompts():
    instructions = read_muldimif(PROMPTS)
    assert len(instructions) == 1200
    assert sum(len(instruction.constraints) for instruction in instructions) == 4180
    patterns = collections.Counter(instruction.labels["pattern"] for instruction in instructions)
    levels = collections.Counter(instruction.labels["level"] for instruction in instructions)
    assert patterns == dict.fromkeys(("Example", "Listing", "Incorporation"), 400)
    assert levels == {f"Level {level}": 300 for level in range(1, 5)}
    assert all(constraint.text for instruction in instructions for constraint in instruction.constraints)
