"""Scores recorded responses with a benchmark's rules.

    python -m hir_jax.score --benchmark=ifeval --prompts=FILE --responses=FILE --output=FILE [--workers=N]

FILEs are JSON Lines. `--prompts` is the published file; `--responses` has rows with `response` and with `key` or
`prompt` (`key` counts where a row has both); several rows may answer one prompt. `--output` gets one row per response,
in order: `{"key", "strict": [...], "loose": [...]}`, one bool per constraint in the prompt's order, and `"unknown"`,
the positions without a verdict (false in both lists), where there are any. The last line on stdout is the summary.

A bad response row is reported by file and line, the others are scored all the same, and the exit status is 1; an
existing output file is then left as it is and the rows go to `FILE.partial`.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

from hir_jax.constraints.english import MissingDataError
from hir_jax.constraints.verifier import Row, Verifier
from hir_jax.instructions.readers import RowError, read_ifeval, read_jsonl
from hir_jax.instructions.templates import render
from hir_jax.types import InputError, Instruction

READERS = {"ifeval": read_ifeval}


class RefusedError(InputError):
    """What was asked for cannot be done; the message is for the user."""


class RowScore(NamedTuple):
    """Verdicts on one response, by position of the constraint. Where not `known`, strict and loose are False."""

    strict: list[bool]
    loose: list[bool]
    known: list[bool]


class Response(NamedTuple):
    """A response to score; `label` says where it is from, for messages."""

    instruction: Instruction
    text: str
    label: str


def score_rows(responses: Sequence[Response], verifier: Verifier) -> tuple[list[RowScore], dict[str, Any]]:
    """Strict and loose verdicts per response, and the summary of `summarise`. ValueError if there are no responses.

    The loose check runs where the strict one says no; a strict pass is a loose one by definition, and a check that
    failed or timed out on the response as it is would do so again (it is the first of the loose forms).
    """
    rows = [
        Row(response.instruction.constraints, response.text, render(response.instruction), response.label)
        for response in responses
    ]
    width = max((len(row.constraints) for row in rows), default=0)
    strict = verifier.verify(rows, width)
    failed = [
        (index, position)
        for index, row in enumerate(rows)
        for position in range(len(row.constraints))
        if strict.known[index, position] and not strict.satisfied[index, position]
    ]
    loose = strict.satisfied.copy()
    known = strict.known.copy()
    again = [rows[index]._replace(constraints=[rows[index].constraints[position]]) for index, position in failed]
    verdicts = verifier.verify(again, 1, loose=True)
    for (index, position), satisfied, is_known in zip(
        failed, verdicts.satisfied[:, 0], verdicts.known[:, 0], strict=True
    ):
        loose[index, position] = satisfied
        known[index, position] = is_known
    scores = [
        RowScore(*(mask[index, : len(row.constraints)].tolist() for mask in (strict.satisfied, loose, known)))
        for index, row in enumerate(rows)
    ]
    return scores, summarise(scores)


def summarise(scores: Sequence[RowScore]) -> dict[str, Any]:
    """The four accuracies of IFEval as fractions, `rows`, and `unknown`, the number of constraints without a verdict.

    Per prompt: the share of responses that meet all constraints; per instruction: of constraints that are met. An
    unknown verdict counts as not met. Raises ValueError without any scores.
    """
    if not scores:
        raise ValueError("there are no responses to score")
    summary: dict[str, Any] = {}
    for mode in ("strict", "loose"):
        lists = [getattr(score, mode) for score in scores]
        summary[f"prompt_{mode}"] = sum(map(all, lists)) / len(lists)
        summary[f"instruction_{mode}"] = sum(map(sum, lists)) / sum(map(len, lists))
    summary["rows"] = len(scores)
    summary["unknown"] = sum(score.known.count(False) for score in scores)
    return summary


def output_row(instruction: Instruction, score: RowScore) -> dict[str, Any]:
    """The object that is written for one response."""
    row: dict[str, Any] = {"key": instruction.key, "strict": score.strict, "loose": score.loose}
    unknown = [position for position, known in enumerate(score.known) if not known]
    return row | ({"unknown": unknown} if unknown else {})


def read_responses(path: str | Path, instructions: Sequence[Instruction]) -> tuple[list[Response], list[RowError]]:
    """The responses that belong to a prompt, in order, and one error for each row that does not make one."""
    by_key = {str(instruction.key): instruction for instruction in instructions}
    by_prompt = {render(instruction): instruction for instruction in instructions}
    copies = collections.Counter(map(render, instructions))
    responses: list[Response] = []
    errors: list[RowError] = []
    for number, row in read_jsonl(path, errors.append):
        label = f"{path}:{number}"
        if "key" in row:
            name, instruction = f"key {row['key']!r}", by_key.get(str(row["key"]))
        elif isinstance(row.get("prompt"), str):
            name, instruction = f"prompt {row['prompt'][:60]!r}", by_prompt.get(row["prompt"])
        else:
            errors.append(RowError(f"{label}: 'key' is missing, and so is 'prompt'"))
            continue
        if "key" not in row and copies[row["prompt"]] > 1:
            errors.append(RowError(f"{label}: {copies[row['prompt']]} prompts have this text; give the 'key'"))
        elif instruction is None:
            errors.append(RowError(f"{label}: no prompt has the {name}"))
        elif not isinstance(row.get("response"), str):
            wrong = "is not a string" if "response" in row else "is missing"
            errors.append(RowError(f"{label}: 'response' {wrong}"))
        else:
            responses.append(Response(instruction, row["response"], label))
    return responses, errors


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write all rows or, if anything fails, nothing: a temporary file beside `path` takes its place at the end."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _check_output(output: Path, inputs: Sequence[str]) -> None:
    """Refuse an output that could not be written, or that would replace an input, before any work is done."""
    if any(Path(path).resolve() == output.resolve() for path in inputs):
        raise RefusedError(f"{output}: the output must not be one of the input files")
    if output.is_dir():
        raise RefusedError(f"{output}: the output must be a file, not a directory")
    if not os.access(output.parent, os.W_OK):
        raise RefusedError(f"{output}: its directory does not exist or cannot be written to")


def score_files(
    benchmark: str, prompts: str, responses: str, output: str, verifier: Verifier
) -> tuple[dict[str, Any], list[RowError]]:
    """Score the file `responses` into the file `output`: the summary, and one error for each bad row of responses.

    Raises RowError if the prompts cannot be read, RefusedError if no row can be scored or the output cannot be written.
    """
    _check_output(Path(output), (prompts, responses))
    readable, errors = read_responses(responses, READERS[benchmark](prompts))
    for error in errors:
        print(error, file=sys.stderr)
    if not readable:
        raise RefusedError(f"{responses}: no row can be scored")
    scores, summary = score_rows(readable, verifier)
    target = Path(output)
    if errors and target.exists():
        target = target.with_name(target.name + ".partial")
        print(f"{output} is left as it is; the rows that could be scored go to {target}", file=sys.stderr)
    write_jsonl(target, (output_row(r.instruction, score) for r, score in zip(readable, scores, strict=True)))
    return summary, errors


def _define_flags() -> None:
    # Not at import: the evaluation program imports this module and has flags of the same names.
    flags.DEFINE_enum("benchmark", None, sorted(READERS), "Whose prompts and rules.", required=True)
    flags.DEFINE_string("prompts", None, "The benchmark's prompts, JSON Lines.", required=True)
    flags.DEFINE_string("responses", None, "Responses to score, JSON Lines.", required=True)
    flags.DEFINE_string("output", None, "Where the verdicts go, JSON Lines.", required=True)
    flags.DEFINE_integer("workers", min(8, os.cpu_count() or 1), "Processes that check; 0: this one.", lower_bound=0)
    flags.DEFINE_float("timeout_seconds", 5.0, "Limit of one check, seconds.", lower_bound=0.001)


def main(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument: {argv[1]}")
    args = flags.FLAGS
    try:
        with Verifier(args.workers, args.timeout_seconds) as verifier:
            summary, errors = score_files(args.benchmark, args.prompts, args.responses, args.output, verifier)
    except (RowError, RefusedError, MissingDataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(summary))
    return 1 if errors else 0


if __name__ == "__main__":
    _define_flags()
    app.run(main)
