"""Reads and writes native JSONL, the format in which users write their own instructions.

One JSON object a line, UTF-8, blank lines ignored:

    {"task": "Describe a storm at sea.",
     "constraints": [{"id": "punctuation:no_comma", "arguments": {}, "text": "Avoid commas."},
                     {"id": "length_constraints:number_words",
                      "arguments": {"relation": "at least", "num_words": 60}}],
     "template": "type3", "key": "storm-1", "response": "The wind rose before dawn. ..."}

(on one line). The fields:

- `task` (text): the request without its constraints.
- `constraints` (list, at least one): `id` of the registry, `arguments` of its check (optional if it takes none) and
  `text`, the constraint's wording in the instruction (optional; if empty or absent, the registry's own wording).
- `template` (text): how they are joined, one of `templates.TEMPLATES`.
- `key` (text or integer, optional): a name for the row.
- `response` (text, optional): a response that meets the constraints, used by `method = "sft"` only.

Every row is checked when it is read; one that cannot be used raises a `RowError` that names file and line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hir_jax.checks import registry
from hir_jax.data.templates import TEMPLATES
from hir_jax.run.files import write_jsonl
from hir_jax.textfiles import RowError, read_jsonl
from hir_jax.types import Constraint, Instruction

Pair = tuple[Instruction, str]  # an instruction with its response, "" if it has none

_ROW = {"task": (str,), "constraints": (list,), "template": (str,), "key": (str, int), "response": (str,)}
_ROW_NEEDS = ("task", "constraints", "template")
_CONSTRAINT = {"id": (str,), "arguments": (dict,), "text": (str,)}
_CONSTRAINT_NEEDS = ("id",)
_NAMES = {str: "a string", int: "an integer", list: "a list", dict: "an object"}


def unanswered(instructions: Iterable[Instruction]) -> list[Pair]:
    """Pairs without responses."""
    return [(instruction, "") for instruction in instructions]


class _FaultError(Exception):
    """What is wrong with a row; the reader adds its file and line."""


def _check_fields(row: Any, fields: Mapping[str, tuple[type, ...]], needs: Sequence[str], what: str) -> None:
    if not isinstance(row, dict):
        raise _FaultError(f"{what} must be an object with the fields {', '.join(fields)}, not {row!r}")
    for name in row:
        if name not in fields:
            nearest = get_close_matches(name, fields, n=1, cutoff=0.0)[0]
            raise _FaultError(f"unknown field {name!r} in {what}; the nearest known one is {nearest!r}")
    for name in needs:
        if name not in row:
            raise _FaultError(f"field {name!r} is missing in {what}")
    for name, value in row.items():
        if not isinstance(value, fields[name]) or isinstance(value, bool):
            wanted = " or ".join(_NAMES[kind] for kind in fields[name])
            raise _FaultError(f"field {name!r} in {what} must be {wanted}, not {value!r}")


def _constraint(item: Any, position: int) -> Constraint:
    what = f"constraint {position}"
    _check_fields(item, _CONSTRAINT, _CONSTRAINT_NEEDS, what)
    constraint = Constraint(item["id"], item.get("arguments", {}), item.get("text", ""))
    try:
        registry.validate(constraint)
        if constraint.text.strip():
            return constraint
        return Constraint(constraint.id, constraint.arguments, registry.describe(constraint.id, constraint.arguments))
    except registry.ConstraintError as error:
        raise _FaultError(f"{what}: {error}") from error


def _instruction(row: Any, source: str) -> Instruction:
    _check_fields(row, _ROW, _ROW_NEEDS, "the row")
    if not row["task"].strip():
        raise _FaultError("field 'task' is blank; write the request there")
    if row["template"] not in TEMPLATES:
        raise _FaultError(f"unknown template {row['template']!r}; known: {', '.join(TEMPLATES)}")
    if not row["constraints"]:
        raise _FaultError("field 'constraints' is empty; an instruction needs at least one")
    constraints = tuple(_constraint(item, i) for i, item in enumerate(row["constraints"], start=1))
    return Instruction(row["task"], constraints, row["template"], row.get("key", ""), source)


def _pairs(path: str | Path, *, needs_response: bool) -> list[Pair]:
    pairs = []
    for line, row in read_jsonl(path):
        source = f"{path}:{line}"
        try:
            instruction = _instruction(row, source)
            response = row.get("response", "")
            if needs_response and not response.strip():
                raise _FaultError("field 'response' is missing or blank; each row needs an answer here")
        except _FaultError as fault:
            raise RowError(f"{source}: {fault}") from fault
        pairs.append((instruction, response))
    if not pairs:
        raise RowError(f"{path}: holds no rows")
    return pairs


def read(path: str | Path) -> list[Instruction]:
    """The instructions of a native JSONL file, without responses; their `source` is "FILE:LINE".

    Raises RowError for a file that cannot be read or is empty, and for the first row that cannot be used.
    """
    return [instruction for instruction, _ in _pairs(path, needs_response=False)]


def read_pairs(path: str | Path) -> list[Pair]:
    """(instruction, response) of every row, for supervised training. Raises RowError for a row without a response."""
    return _pairs(path, needs_response=True)


def _row(instruction: Instruction) -> dict[str, Any]:
    constraints = [
        {"id": item.id, "arguments": dict(item.arguments), "text": item.text} for item in instruction.constraints
    ]
    row: dict[str, Any] = {"task": instruction.task, "constraints": constraints, "template": instruction.template}
    if instruction.key != "":
        row["key"] = instruction.key
    return row


def write(path: str | Path, instructions: Sequence[Instruction], responses: Sequence[str] | None = None) -> None:
    """Writes the file that `read` reads, or with `responses`, one for each instruction, the file that `read_pairs` reads.

    `source` is not written, since reading sets it to the place in the file. The file appears whole or not at all
    (`files.write_atomically`).
    """
    rows = [_row(instruction) for instruction in instructions]
    if responses is not None:
        if len(responses) != len(rows):
            raise ValueError(f"{len(responses)} responses for {len(rows)} instructions")
        rows = [row | {"response": response} for row, response in zip(rows, responses, strict=True)]
    write_jsonl(path, rows)
