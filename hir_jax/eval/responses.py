"""Recorded responses: reading them, the rows in which they are written, and the check of where results go."""

from __future__ import annotations

import collections
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hir_jax import paths
from hir_jax.checks.verifier import Row
from hir_jax.data.templates import render
from hir_jax.run.files import is_stream
from hir_jax.textfiles import RowError, read_jsonl
from hir_jax.types import InputError, Instruction


class RefusedError(InputError):
    """A request that cannot be carried out; the message is for the user."""


class Response(NamedTuple):
    """A response to an instruction; `label` says in messages where it comes from."""

    instruction: Instruction
    text: str
    label: str

    @property
    def row(self) -> Row:
        """The response as a verifier checks it: against all constraints of its instruction."""
        return Row(self.instruction.constraints, self.text, render(self.instruction), self.label)


def read_responses(
    path: str | Path, instructions: Sequence[Instruction], id: str = "key"
) -> tuple[list[Response], list[RowError]]:
    """The responses to `instructions` in a JSON Lines file, in order, and one error for each row that is not one.

    A row names its prompt by the prompt's key, in the field `id`, or by its text, in `prompt`; the key goes first.
    """
    by_key = {str(instruction.key): instruction for instruction in instructions}
    by_prompt = {render(instruction): instruction for instruction in instructions}
    copies = collections.Counter(map(render, instructions))
    responses: list[Response] = []
    errors: list[RowError] = []
    for number, row in read_jsonl(path, errors.append):
        label, prompt = f"{path}:{number}", row.get("prompt")
        if id in row:
            what, instruction = f"{id} {row[id]!r}", by_key.get(str(row[id]))
        elif isinstance(prompt, str):
            what, instruction = f"prompt {prompt[:60]!r}", by_prompt.get(prompt)
        else:
            errors.append(RowError(f"{label}: {id!r} is missing, and so is 'prompt'"))
            continue
        if id not in row and copies[prompt] > 1:
            errors.append(RowError(f"{label}: {copies[prompt]} prompts have this text; give the {id!r}"))
        elif instruction is None:
            errors.append(RowError(f"{label}: no prompt has the {what}"))
        elif not isinstance(row.get("response"), str):
            wrong = "is not a string" if "response" in row else "is missing"
            errors.append(RowError(f"{label}: 'response' {wrong}"))
        else:
            responses.append(Response(instruction, row["response"], label))
    return responses, errors


def response_rows(id: str, responses: Sequence[Response]) -> list[dict[str, Any]]:
    """The rows of a file that `read_responses` reads."""
    return [{id: one.instruction.key, "prompt": one.row.prompt, "response": one.text} for one in responses]


def check_output(output: Path, inputs: Sequence[str]) -> None:
    """RefusedError, before any work is done, for an output that cannot be written or that would replace an input."""
    if any(Path(path).resolve() == output.resolve() for path in inputs):
        raise RefusedError(f"{output}: the output must not be one of the input files")
    if output.is_dir():
        raise RefusedError(f"{output}: the output must be a file, not a directory")
    if paths.in_bucket(output):
        return
    target = output if is_stream(output) else Path(os.path.realpath(output)).parent
    if not os.access(target, os.W_OK):
        what = "it" if target == output else "its directory"
        raise RefusedError(f"{output}: {what} does not exist or cannot be written to")
