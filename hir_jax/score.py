"""Scores recorded responses with a benchmark's rules; measures a judge against labels.

    python -m hir_jax.score --benchmark=ifeval|ifbench|muldimif|hir16k --prompts=FILE --responses=FILE --output=FILE
        [--workers=N] [--judge=KIND:MODEL [--judge_option=NAME=VALUE ...]] [--code_checkers]
    python -m hir_jax.score --judge=KIND:MODEL [--judge_option=NAME=VALUE ...]

`--prompts` is the published file; `--responses` is JSON Lines with `response` and with the prompt's key (`key` or `id`) or
its `prompt` (the key counts where a row has both); several rows may answer one prompt: pass@k is then printed too.
`--output` gets one row per response, in order, one bool per constraint in the prompt's order (written into a device or a pipe,
through a symbolic link):
`{"key", "strict": [...], "loose": [...]}` for ifeval and ifbench, `{"id", "satisfied": [...]}` for muldimif and hir16k,
and `"unknown"`, the positions without a verdict (false in the lists), where there are any. The last line on stdout is the
summary (`benchmarks.summarise`).

A bad row is reported by file and line, the others are scored all the same, and the exit status is 1; an existing output
file is then left as it is and the rows go to `FILE.partial`. Prompts with soft constraints need a judge, "endpoint:NAME"
or "local:CHECKPOINT" with the options of `checks.judge.soft.JudgeSettings`, and those with Python checkers need
`--code_checkers`; without, they are left out and counted.

With a judge and no benchmark, the judge answers the labelled pairs of `constraints/calibration.jsonl`, and its precision
and recall are printed.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from absl import app, flags
from rich.console import Console
from rich.progress import Progress

from hir_jax import pathflags
from hir_jax.checks import registry
from hir_jax.checks.judge.calibration import calibration
from hir_jax.checks.verifier import Decider, Verifier
from hir_jax.data.templates import render
from hir_jax.deciders import judge_settings, open_judge, open_verifier
from hir_jax.eval.benchmarks import BENCHMARKS, Benchmark, Response, score_rows
from hir_jax.run.files import is_stream, write_jsonl
from hir_jax.textfiles import RowError, read_jsonl
from hir_jax.types import InputError, Instruction


class RefusedError(InputError):
    """What was asked for cannot be done; the message is for the user."""


def read_responses(
    path: str | Path, instructions: Sequence[Instruction], name: str = "key"
) -> tuple[list[Response], list[RowError]]:
    """The responses that belong to a prompt, in order, and one error for each row that does not make one.

    name: the field that holds a prompt's key.
    """
    by_key = {str(instruction.key): instruction for instruction in instructions}
    by_prompt = {render(instruction): instruction for instruction in instructions}
    copies = collections.Counter(map(render, instructions))
    responses: list[Response] = []
    errors: list[RowError] = []
    for number, row in read_jsonl(path, errors.append):
        label = f"{path}:{number}"
        if name in row:
            what, instruction = f"{name} {row[name]!r}", by_key.get(str(row[name]))
        elif isinstance(row.get("prompt"), str):
            what, instruction = f"prompt {row['prompt'][:60]!r}", by_prompt.get(row["prompt"])
        else:
            errors.append(RowError(f"{label}: {name!r} is missing, and so is 'prompt'"))
            continue
        if name not in row and copies[row["prompt"]] > 1:
            errors.append(RowError(f"{label}: {copies[row['prompt']]} prompts have this text; give the {name!r}"))
        elif instruction is None:
            errors.append(RowError(f"{label}: no prompt has the {what}"))
        elif not isinstance(row.get("response"), str):
            wrong = "is not a string" if "response" in row else "is missing"
            errors.append(RowError(f"{label}: 'response' {wrong}"))
        else:
            responses.append(Response(instruction, row["response"], label))
    return responses, errors


def check_output(output: Path, inputs: Sequence[str]) -> None:
    """Refuse an output that could not be written, or that would replace an input, before any work is done."""
    if any(Path(path).resolve() == output.resolve() for path in inputs):
        raise RefusedError(f"{output}: the output must not be one of the input files")
    if output.is_dir():
        raise RefusedError(f"{output}: the output must be a file, not a directory")
    target = output if is_stream(output) else Path(os.path.realpath(output)).parent
    if not os.access(target, os.W_OK):
        what = "it" if target == output else "its directory"
        raise RefusedError(f"{output}: {what} does not exist or cannot be written to")


def _decidable(responses: Sequence[Response], deciders: Mapping[str, Decider]) -> list[Response]:
    """The responses whose constraints can all be decided; the others are counted on stderr."""
    lacking = [registry.missing_decider(response.instruction.constraints, deciders) for response in responses]
    for name, count in sorted(collections.Counter(filter(None, lacking)).items()):
        print(f"{count} responses are left out: their prompts need the decider {name!r}, which is off", file=sys.stderr)
    return [response for response, name in zip(responses, lacking, strict=True) if not name]


def _scored_with_progress(benchmark: Benchmark, responses: Sequence[Response], verifier: Verifier):
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("scoring", total=len(responses))
        return score_rows(benchmark, responses, verifier, lambda done: progress.update(task, completed=done))


def score_files(
    name: str, prompts: str, responses: str, output: str, verifier: Verifier
) -> tuple[dict[str, Any], list[RowError]]:
    """Score the file `responses` into the file `output`: the summary, and one error for each bad row of both files.

    Raises RowError if the prompts cannot be read, RefusedError if no row can be scored or the output cannot be written.
    """
    benchmark = BENCHMARKS[name]
    check_output(Path(output), (prompts, responses))
    instructions, errors = benchmark.read(prompts)
    readable, bad = read_responses(responses, instructions, benchmark.id)
    errors = [*errors, *bad]
    for error in errors:
        print(error, file=sys.stderr)
    readable = _decidable(readable, verifier.deciders)
    if not readable:
        raise RefusedError(f"{responses}: no row can be scored")
    scores, summary = _scored_with_progress(benchmark, readable, verifier)
    target = Path(output)
    if errors and target.is_file():
        target = target.with_name(target.name + ".partial")
        print(f"{output} is left as it is; the rows that could be scored go to {target}", file=sys.stderr)
    write_jsonl(target, (benchmark.output_row(r.instruction, s) for r, s in zip(readable, scores, strict=True)))
    return summary, errors


def _define_flags() -> None:
    # Not at import: tests import this module beside programs that have flags of the same names.
    flags.DEFINE_enum("benchmark", None, sorted(BENCHMARKS), "Whose prompts and rules.")
    pathflags.define("prompts", None, "The benchmark's prompts.")
    pathflags.define("responses", None, "Responses to score, JSON Lines.")
    pathflags.define("output", None, "Where the verdicts go, JSON Lines.")
    flags.DEFINE_integer("workers", min(8, os.cpu_count() or 1), "Processes that check; 0: this one.", lower_bound=0)
    flags.DEFINE_float("timeout_seconds", 5.0, "Limit of one check, seconds.", lower_bound=0.001)
    flags.DEFINE_string("judge", "", "endpoint:NAME or local:CHECKPOINT, for soft constraints.")
    flags.DEFINE_multi_string("judge_option", [], "NAME=VALUE, a field of constraints.judge.JudgeSettings.")
    flags.DEFINE_bool("code_checkers", False, "Run the Python checkers that HIR-16K rows carry, caged by bubblewrap.")


def _run(args: flags.FlagValues) -> int:
    names = ("prompts", "responses", "output")
    missing = [f"--{name}" for name in names if not args[name].value]
    if args.benchmark and missing:
        raise RefusedError(f"--benchmark={args.benchmark} needs {', '.join(missing)}")
    if not args.benchmark and not args.judge:
        raise RefusedError(f"give --benchmark, one of {', '.join(sorted(BENCHMARKS))}, or --judge to measure one")
    settings = judge_settings(args.judge, args.judge_option)
    if not args.benchmark:
        with open_judge(settings) as judge:
            print(json.dumps(calibration(judge)))
        return 0
    with ExitStack() as stack:
        verifier = open_verifier(
            stack, settings,
            code_checkers=args.code_checkers, workers=args.workers, timeout_seconds=args.timeout_seconds,
        )  # fmt: skip
        summary, errors = score_files(args.benchmark, args.prompts, args.responses, args.output, verifier)
    print(json.dumps(summary))
    return 1 if errors else 0


def guarded(argv: Sequence[str], run: Callable[[flags.FlagValues], int]) -> int:
    """The exit status of `run`; 1 with the message alone for errors of input."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument: {argv[1]}")
    try:
        return run(flags.FLAGS)
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def main(argv: Sequence[str]) -> int:
    return guarded(argv, _run)


def cli() -> None:
    _define_flags()
    pathflags.run(main, __doc__)


if __name__ == "__main__":
    cli()
