"""Reads HIR-16K, the training data of HiR (arXiv 2512.23457), as Instructions with template, constraints and checks.

A row has `id`, `source`, `prompt`, `criteria`, `ground_truth` and, in `extra_info`, `question`, `criteria` and `q_type`.
`source` says who scores it: type1 IFEval's rules, type2 IFBench's, type3 MulDimIF's, type4 an LLM judge and small
checker functions. `q_type`, whose values look alike, says how it is rendered and is one of `templates.REWRITABLE`.

The published description leaves the form partly open. We assume the following, in part from how public code reads the file:

- `id` is an integer or a string and unique. `criteria` are the texts of the constraints in the order of the ground
  truth, one for each of its entries; given twice, they are equal.
- `prompt` is a string or a chat of one user message. If there is an `extra_info.question`, that is the task, and the prompt
  is either its rendering (up to white space around it and before its lines) or the task alone; a row with any other prompt
  is refused, because its template is not known. Otherwise (as in the published HIR_trainv1.jsonl) the prompt is the task,
  and the template, which the row does not name, must be given to `read`.
- `ground_truth` and `extra_info` are objects or JSON strings of objects. In training files made for verl, `source` may
  be called `data_source`, and the ground truth may be inside `reward_model`. Null entries of an object count as absent.
- type1, type2: {instruction_id_list, kwargs}, kwargs a list of objects. An id or arguments that our check cannot use
  (the published scorers would draw a random value or raise) break the row.
- type3: {constraints, constraint_pattern}, constraints a list of [first level, second level, text].
- type4: {checker, functions}, two lists of strings. A checker starts with "[llm]" (soft: a judge decides the criterion, its
  function is not used) or "[rule]" (its function is Python source that defines `check_following`, see
  `checks.sandbox.code`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hir_jax.checks import registry
from hir_jax.checks.judge import soft as judge
from hir_jax.checks.muldimif import rules as muldimif
from hir_jax.checks.sandbox import code
from hir_jax.data.rows import BrokenRowError, FaultError, read_each, valid_key, validated
from hir_jax.data.templates import REWRITABLE, render
from hir_jax.textfiles import RowError, parse_json
from hir_jax.types import Constraint, Instruction

_CHECKER_FUNCTION = "check_following"
# Prefixes of the constraint ids, before the colon.
_IFEVAL = (
    *("change_case", "combination", "detectable_content", "detectable_format", "keywords", "language"),
    *("length_constraints", "punctuation", "startend"),
)
_IFBENCH = ("count", "custom", "format", "ratio", "repeat", "sentence", "words")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise FaultError("field", f"{name} must be a non-blank string, not {value!r:.80}")
    return value


def _texts(value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise FaultError("field", f"{name} must be a non-empty list of strings, not {value!r:.80}")
    return [_text(item, f"{name}[{i}]") for i, item in enumerate(value)]


def _object(value: Any, name: str) -> dict[str, Any]:
    """The non-null entries of an object or of a JSON string of one."""
    if isinstance(value, str):
        try:
            value = parse_json(value, name)
        except RowError as error:
            detail = str(error).removeprefix(f"{name}: ")
            raise FaultError("field", f"{name} is a string, but {detail}") from error
    if not isinstance(value, Mapping):
        raise FaultError("field", f"{name} must be an object or a JSON string of one, not {value!r:.80}")
    return {key: entry for key, entry in value.items() if entry is not None}


def _prompt(value: Any) -> str:
    if not isinstance(value, list):
        return _text(value, "prompt")
    if len(value) != 1 or not isinstance(value[0], Mapping) or value[0].get("role") != "user":
        raise FaultError("field", "prompt must be a string or a chat of one message by the user")
    return _text(value[0].get("content"), "prompt[0].content")


def _criteria(row: Mapping[str, Any], extra: Mapping[str, Any]) -> list[str]:
    given = [side["criteria"] for side in (row, extra) if "criteria" in side]
    if len(given) == 2 and given[0] != given[1]:
        raise FaultError("criteria differ", "the row's criteria are not those in its extra_info")
    return _texts(given[0] if given else None, "criteria")


def _entries(truth: Mapping[str, Any], name: str, wanted: int) -> list[Any]:
    value = truth.get(name)
    if not isinstance(value, list):
        raise FaultError("field", f"ground_truth.{name} must be a list, not {value!r:.80}")
    if len(value) != wanted:
        raise FaultError("lengths differ", f"{wanted} criteria, but {len(value)} entries in ground_truth.{name}")
    return value


# ---- the constraints of a row, by source: (ground truth, criteria) -> constraints, not validated


def _verifiable(truth: Mapping[str, Any], criteria: list[str], families: tuple[str, ...]) -> Iterator[Constraint]:
    ids = _entries(truth, "instruction_id_list", len(criteria))
    arguments = _entries(truth, "kwargs", len(criteria))
    for i, (id, given, text) in enumerate(zip(ids, arguments, criteria, strict=True)):
        if _text(id, f"ground_truth.instruction_id_list[{i}]").partition(":")[0] not in families:
            raise registry.UnknownConstraintError(f"{id!r} is of none of its source's families, {', '.join(families)}")
        yield Constraint(id, _object(given, f"ground_truth.kwargs[{i}]"), text)


def _muldimif(truth: Mapping[str, Any], criteria: list[str]) -> Iterator[Constraint]:
    for i, (entry, text) in enumerate(zip(_entries(truth, "constraints", len(criteria)), criteria, strict=True)):
        name = f"ground_truth.constraints[{i}]"
        levels = _texts(entry, name)
        if len(levels) != 3:
            raise FaultError("field", f"{name} must be [first level, second level, text], not {len(levels)} strings")
        yield replace(muldimif.constraint(*levels), text=text)


def _judged(truth: Mapping[str, Any], criteria: list[str]) -> Iterator[Constraint]:
    checkers = _entries(truth, "checker", len(criteria))
    functions = _entries(truth, "functions", len(criteria))
    for i, (checker, source, text) in enumerate(zip(checkers, functions, criteria, strict=True)):
        name = f"ground_truth.checker[{i}]"
        kind = _text(checker, name)
        if kind.startswith("[llm]"):
            yield Constraint(judge.SOFT, {}, text)
        elif kind.startswith("[rule]"):
            yield Constraint(code.ID, {"source": source, "function": _CHECKER_FUNCTION}, text)
        else:
            raise FaultError("unknown checker", f"{name} starts with neither [llm] nor [rule]: {kind!r:.80}")


_SOURCES: dict[str, Callable[[Mapping[str, Any], list[str]], Iterator[Constraint]]] = {
    "type1": functools.partial(_verifiable, families=_IFEVAL),
    "type2": functools.partial(_verifiable, families=_IFBENCH),
    "type3": _muldimif,
    "type4": _judged,
}


def _constraints(source: Any, truth: Mapping[str, Any], criteria: list[str]) -> tuple[Constraint, ...]:
    if source not in _SOURCES:
        raise FaultError("unknown source", f"source must be one of {', '.join(_SOURCES)}, not {source!r:.80}")
    return validated(_SOURCES[source](truth, criteria))


def _lines(text: str) -> str:
    """The text without white space around it and before its lines, as template type6 strips it."""
    return re.sub(r"\n\s+", "\n", text.strip())


def _instruction(row: Mapping[str, Any], place: str, template: str | None) -> Instruction:
    row = {name: value for name, value in row.items() if value is not None}
    extra = _object(row.get("extra_info", {}), "extra_info")
    key = valid_key(row.get("id"), "id")
    criteria = _criteria(row, extra)
    truth = row.get("ground_truth", _object(row.get("reward_model", {}), "reward_model").get("ground_truth"))
    source = row.get("source", row.get("data_source"))
    constraints = _constraints(source, _object(truth, "ground_truth"), criteria)
    template = extra.get("q_type", template)
    if template is None:
        raise FaultError("no template", "there is no extra_info.q_type, and no template was given for such rows")
    if template not in REWRITABLE:
        raise FaultError("unknown template", f"q_type must be one of {', '.join(REWRITABLE)}, not {template!r:.80}")
    prompt, labels = _prompt(row.get("prompt")), {"source": source}
    if "question" not in extra:
        if all(text in prompt for text in criteria):
            raise FaultError("no task", "the prompt holds all criteria already, and there is no extra_info.question")
        return Instruction(prompt, constraints, template, key, place, labels)
    task = _text(extra["question"], "extra_info.question")
    instruction = Instruction(task, constraints, template, key, place, labels)
    if _lines(prompt) not in (_lines(render(instruction)), _lines(instruction.task)):
        raise FaultError("prompt differs", f"the prompt is not question and criteria rendered with {template}")
    return instruction


def read(path: str | Path, *, template: str | None = None) -> tuple[list[Instruction], list[BrokenRowError]]:
    """(the instructions, one `BrokenRowError` for each row that breaks the schema), both in the order of the rows.

    path: a JSON Lines or parquet file, a directory that the `datasets` library saved, a directory of such files, or a
      hub id ("sastpg/HIR-16K"). An instruction's `source` is "FILE:NUMBER", with the number of the line or row from 1;
      its label "source" is the row's (type1 to type4).
    template: of rows that name none; if not given, such rows are errors.

    Soft constraints have the id "soft", those with a checker "code:python". Both need a decider (`checks.verifier`); the
    caller leaves out the rows for which there is none. Raises RowError if the path cannot be read at all or holds no rows,
    ValueError for an unknown template.
    """
    if template is not None and template not in REWRITABLE:
        raise ValueError(f"unknown template {template!r}; known: {', '.join(REWRITABLE)}")
    return read_each(path, lambda row, place: _instruction(row, place, template))
