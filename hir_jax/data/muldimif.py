"""Reading MulDimIF's published prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hir_jax.checks.muldimif import rules as muldimif
from hir_jax.checks.registry import ConstraintError
from hir_jax.data.readers import read_prompts
from hir_jax.textfiles import RowError
from hir_jax.types import Constraint, Instruction


def _prompt(row: dict[str, Any], source: str) -> str:
    turns = row.get("conversations")
    if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], dict):
        raise RowError(f"{source}: 'conversations' must be a list of one turn")
    role, content = turns[0].get("role"), turns[0].get("content")
    if role != "user" or not isinstance(content, str) or not content.strip():
        raise RowError(f"{source}: the turn must have the role 'user' and a non-blank 'content'")
    return content


def read_constraints(value: Any, source: str) -> tuple[Constraint, ...]:
    """The constraints of a row: a non-empty list of [first level, second level, text]. RowError if it is not that."""
    if not isinstance(value, list) or not value:
        raise RowError(f"{source}: 'constraints' must be a non-empty list")
    constraints = []
    for position, item in enumerate(value):
        if not isinstance(item, list) or len(item) != 3 or not all(isinstance(part, str) for part in item):
            raise RowError(f"{source}: constraint {position} must be [first level, second level, text], three strings")
        try:
            constraints.append(muldimif.constraint(*item))
        except ConstraintError as error:
            raise RowError(f"{source}: constraint {position}: {error}") from error
    return tuple(constraints)


def _instruction(row: dict[str, Any], source: str) -> Instruction:
    key = row.get("id")
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise RowError(f"{source}: 'id' must be an integer or a string, not {key!r}")
    labels = {"pattern": row.get("constraint_pattern"), "level": row.get("difficulty")}
    for field, label in zip(("constraint_pattern", "difficulty"), labels.values(), strict=True):
        if not isinstance(label, str) or not label:
            raise RowError(f"{source}: {field!r} must be a non-empty string")
    return Instruction(
        task=_prompt(row, source),
        constraints=read_constraints(row.get("constraints"), source),
        template="verbatim",
        key=key,
        source=source,
        labels=labels,
    )


def read(path: str | Path) -> list[Instruction]:
    """MulDimIF's prompts: rows of id, conversations (one user turn), constraints, constraint_pattern, difficulty.

    The prompt's own wording holds the constraints, so the template is "verbatim"; a constraint's text is kept with it.
    Labels: "pattern" (Example, Listing, Incorporation) and "level" ("Level 1" to "Level 4"). Raises RowError for an
    unreadable or empty file, a broken row, levels without a checker, and a repeated id.
    """
    return read_prompts(path, _instruction)
