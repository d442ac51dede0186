"""Reading the published IFEval and IFBench prompts.

A row that cannot be read is a `RowError` that says where it is; nothing is guessed or skipped in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hir_jax.checks import registry
from hir_jax.textfiles import RowError, read_jsonl
from hir_jax.types import Constraint, Instruction


def _verbatim_instruction(row: dict[str, Any], source: str) -> Instruction:
    key, prompt = row.get("key"), row.get("prompt")
    ids, arguments = row.get("instruction_id_list"), row.get("kwargs")
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise RowError(f"{source}: 'key' must be an integer or a string, not {key!r}")
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


def read_prompts(path: str | Path, make: Callable[[dict[str, Any], str], Instruction]) -> list[Instruction]:
    """`make(row, "PATH:LINE")` of every row of a published file.

    Raises RowError for an unreadable or empty file and for a repeated key, and what `make` raises.
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


def read_ifeval(path: str | Path) -> list[Instruction]:
    """IFEval's prompts (rows of key, prompt, instruction_id_list, kwargs) in the form they are published in.

    The prompt's own wording holds the constraints, so the template is "verbatim" and constraint texts are empty; null
    arguments are dropped. Raises RowError for an unreadable or empty file, a broken row, an unknown constraint id,
    arguments that its check cannot use and a repeated key. Only a letter outside a to z does not raise: two published rows
    have one (keys 1122 and 1129, where the published scorer draws a random letter); a verifier's verdict on it is unknown.
    """
    return read_prompts(path, _verbatim_instruction)


def read_ifbench(path: str | Path) -> list[Instruction]:
    """IFBench's prompts, which have the form and the rules of IFEval's (`read_ifeval`).

    Keys are strings, and many integers are written as 5.0: the constraints take them as they are. What does not raise here
    is an `n_start` of 0, which one published row has (key "286", where the published scorer draws a random position).
    """
    return read_prompts(path, _verbatim_instruction)
