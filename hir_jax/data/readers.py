"""Reads the published prompts of IFEval, IFBench and MulDimIF.

A row that cannot be read raises a `RowError` that says where it is; nothing is guessed or skipped in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hir_jax.checks import registry
from hir_jax.checks.muldimif import rules as muldimif
from hir_jax.textfiles import RowError, read_jsonl
from hir_jax.types import Constraint, Instruction


def read_prompts(path: str | Path, make: Callable[[dict[str, Any], str], Instruction]) -> list[Instruction]:
    """`make(row, "PATH:LINE")` of every row of a published file.

    Raises RowError for an unreadable or empty file and for a repeated key, and whatever `make` raises.
    """
    instructions: dict[str, Instruction] = {}
    for number, row in read_jsonl(path):
        instruction = make(row, f"{path}:{number}")
        first = instructions.setdefault(str(instruction.key), instruction)
        if first is not instruction:
            raise RowError(f"{path}:{number}: key {instruction.key!r} was used before, in {first.source}")
    if not instructions:
        raise RowError(f"{path}: holds no rows")
    return list(instructions.values())


def _key(row: dict[str, Any], field: str, source: str) -> str | int:
    key = row.get(field)
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise RowError(f"{source}: {field!r} must be an integer or a string, not {key!r}")
    return key


# ---- IFEval and IFBench


def _ifeval_instruction(row: dict[str, Any], source: str) -> Instruction:
    key, prompt = _key(row, "key", source), row.get("prompt")
    ids, arguments = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(prompt, str) or not prompt.strip():
        raise RowError(f"{source}: 'prompt' must be a non-blank string")
    if not isinstance(ids, list) or not ids or not all(isinstance(id, str) for id in ids):
        raise RowError(f"{source}: 'instruction_id_list' must be a non-empty list of strings")
    if not isinstance(arguments, list) or not all(isinstance(one, dict) for one in arguments):
        raise RowError(f"{source}: 'kwargs' must be a list of objects")
    if len(ids) != len(arguments):
        raise RowError(f"{source}: {len(ids)} instruction ids, but {len(arguments)} kwargs")
    constraints = tuple(
        Constraint(id, {name: value for name, value in one.items() if value is not None})
        for id, one in zip(ids, arguments, strict=True)
    )
    for constraint in constraints:
        try:
            registry.validate_published(constraint)
        except registry.ConstraintError as error:
            raise RowError(f"{source}: {error}") from error
    return Instruction(task=prompt, constraints=constraints, template="verbatim", key=key, source=source)


def read_ifeval(path: str | Path) -> list[Instruction]:
    """IFEval's prompts: rows of key, prompt, instruction_id_list and kwargs, as published.

    The prompt's own wording holds the constraints, so the template is "verbatim" and constraint texts are empty. Null
    arguments are dropped. Raises RowError for an unreadable or empty file, a broken row, an unknown constraint id,
    arguments that its check cannot use, and a repeated key. Exception: a letter outside a to z does not raise, since two
    published rows have one (keys 1122 and 1129, where the published scorer draws a random letter); a verifier's verdict
    on it is unknown.
    """
    return read_prompts(path, _ifeval_instruction)


def read_ifbench(path: str | Path) -> list[Instruction]:
    """IFBench's prompts, in the form and by the rules of IFEval's (`read_ifeval`).

    Keys are strings. Many integers are written as 5.0, which the constraints accept. An `n_start` of 0 does not raise,
    since one published row has it (key "286", where the published scorer draws a random position).
    """
    return read_prompts(path, _ifeval_instruction)


# ---- MulDimIF


def _user_turn(row: dict[str, Any], source: str) -> str:
    turns = row.get("conversations")
    if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], dict):
        raise RowError(f"{source}: 'conversations' must be a list of one turn")
    role, content = turns[0].get("role"), turns[0].get("content")
    if role != "user" or not isinstance(content, str) or not content.strip():
        raise RowError(f"{source}: the turn must have the role 'user' and a non-blank 'content'")
    return content


def _muldimif_constraints(value: Any, source: str) -> tuple[Constraint, ...]:
    if not isinstance(value, list) or not value:
        raise RowError(f"{source}: 'constraints' must be a non-empty list")
    constraints = []
    for position, item in enumerate(value):
        if not isinstance(item, list) or len(item) != 3 or not all(isinstance(part, str) for part in item):
            raise RowError(f"{source}: constraint {position} must be [first level, second level, text], three strings")
        try:
            constraints.append(muldimif.constraint(*item))
        except registry.ConstraintError as error:
            raise RowError(f"{source}: constraint {position}: {error}") from error
    return tuple(constraints)


def _muldimif_instruction(row: dict[str, Any], source: str) -> Instruction:
    key = _key(row, "id", source)
    labels = {"pattern": row.get("constraint_pattern"), "level": row.get("difficulty")}
    for field, label in zip(("constraint_pattern", "difficulty"), labels.values(), strict=True):
        if not isinstance(label, str) or not label:
            raise RowError(f"{source}: {field!r} must be a non-empty string")
    task, constraints = _user_turn(row, source), _muldimif_constraints(row.get("constraints"), source)
    return Instruction(task, constraints, "verbatim", key, source, labels)


def read_muldimif(path: str | Path) -> list[Instruction]:
    """MulDimIF's prompts: rows of id, conversations (one user turn), constraints, constraint_pattern and difficulty.

    The prompt's own wording holds the constraints, so the template is "verbatim"; each constraint also keeps its text.
    Labels: "pattern" (Example, Listing, Incorporation) and "level" ("Level 1" to "Level 4"). Raises RowError for an
    unreadable or empty file, a broken row, levels without a checker, and a repeated id.
    """
    return read_prompts(path, _muldimif_instruction)
