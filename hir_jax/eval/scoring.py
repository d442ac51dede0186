"""Scores responses by a benchmark's rules: verdicts on each constraint, accuracies, and files of recorded responses."""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from hir_jax import paths
from hir_jax.checks import registry
from hir_jax.checks.verifier import Decider, Verifier
from hir_jax.eval.benchmarks import BENCHMARKS, RuleBenchmark
from hir_jax.eval.responses import RefusedError, Response, check_output, read_responses
from hir_jax.eval.statistics import mean, pass_at_k, share, shares
from hir_jax.run.files import write_jsonl
from hir_jax.textfiles import RowError
from hir_jax.types import Instruction

_RESPONSES_AT_A_TIME = 128  # between two calls of `progress`


class Score(NamedTuple):
    """Verdicts on one response, by position of the constraint. Where not `known`, strict and loose are False."""

    strict: list[bool]
    loose: list[bool]
    known: list[bool]


def score_responses(
    benchmark: RuleBenchmark,
    responses: Sequence[Response],
    verifier: Verifier,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Score], dict[str, Any]]:
    """The score of each response, and `summarise` of them. ValueError if there are no responses.

    `progress` is called with the number of responses scored so far.
    """
    scores: list[Score] = []
    for start in range(0, len(responses), _RESPONSES_AT_A_TIME):
        scores += _scores(responses[start : start + _RESPONSES_AT_A_TIME], verifier, benchmark.loose)
        progress(len(scores))
    return scores, summarise(benchmark, [response.instruction for response in responses], scores)


def _scores(responses: Sequence[Response], verifier: Verifier, with_loose: bool) -> list[Score]:
    """The scores of some responses. The loose check runs only where the strict one says no: a strict pass is a loose one by
    definition, and a check that raised or timed out on the response would do so again, as it is the first loose form."""
    rows = [response.row for response in responses]
    width = max((len(row.constraints) for row in rows), default=0)
    strict = verifier.verify(rows, width)
    loose, known = strict.satisfied.copy(), strict.known.copy()
    if with_loose:
        failed = np.argwhere(strict.present & strict.known & ~strict.satisfied)
        again = [rows[index]._replace(constraints=[rows[index].constraints[position]]) for index, position in failed]
        verdicts, at = verifier.verify(again, 1, loose=True), tuple(failed.T)
        loose[at], known[at] = verdicts.satisfied[:, 0], verdicts.known[:, 0]
    return [
        Score(*(mask[index, : len(row.constraints)].tolist() for mask in (strict.satisfied, loose, known)))
        for index, row in enumerate(rows)
    ]


def output_row(benchmark: RuleBenchmark, instruction: Instruction, score: Score) -> dict[str, Any]:
    """The row that is written for one response; "unknown" lists the positions without a verdict, if there are any."""
    verdicts = {"strict": score.strict, "loose": score.loose} if benchmark.loose else {"satisfied": score.strict}
    unknown = [position for position, known in enumerate(score.known) if not known]
    return {benchmark.id: instruction.key} | verdicts | ({"unknown": unknown} if unknown else {})


# ---- figures


def per_prompt(instructions: Sequence[Instruction], scores: Sequence[Score]) -> dict[str, list[float]]:
    """Figure -> its value for each prompt, in the order in which the prompts first come, by the strict verdicts.

    "ila" is the share of a prompt's responses that meet all constraints, "cla" the mean share of constraints that they
    meet. With several responses "pass@k" is added for k = 1, 2, 4, ... and n, the smallest number that a prompt has.
    """
    met = collections.defaultdict(list)
    for instruction, score in zip(instructions, scores, strict=True):
        met[str(instruction.key)].append(score.strict)
    passed = [[all(verdicts) for verdicts in lists] for lists in met.values()]
    most = min(map(len, passed))
    counts = sorted({2**power for power in range(most.bit_length())} | {most}) if most > 1 else []
    return {
        "ila": [share(one) for one in passed],
        "cla": [mean(map(share, lists)) for lists in met.values()],
    } | {f"pass@{k}": [pass_at_k(sum(one), len(one), k) for one in passed] for k in counts}


def summarise(benchmark: RuleBenchmark, instructions: Sequence[Instruction], scores: Sequence[Score]) -> dict[str, Any]:
    """Accuracies as fractions, `rows`, `unknown` (constraints without a verdict, which count as not met), `pass_at_k`.

    With a loose mode the four accuracies of IFEval: `prompt_*`, the share of responses that meet all constraints, and
    `instruction_*`, the share of constraints that are met. Without, `overall` (all constraints met), `constraints` (share
    met), and `overall` by the benchmark's labels. `family`: the share strictly met, by constraint type. `pass_at_k`: the
    means over prompts, by k. ValueError if there are no scores.
    """
    if not scores:
        raise ValueError("there are no responses to score")
    scored, summary = list(zip(instructions, scores, strict=True)), {}

    def accuracies(mode: str) -> tuple[float, float]:
        lists = [getattr(score, mode) for score in scores]
        return share(map(all, lists)), share(verdict for verdicts in lists for verdict in verdicts)

    if benchmark.loose:
        for mode in ("strict", "loose"):
            summary[f"prompt_{mode}"], summary[f"instruction_{mode}"] = accuracies(mode)
    else:
        summary["overall"], summary["constraints"] = accuracies("strict")
        for label in benchmark.labels:
            by_label = shares((q.labels.get(label, ""), all(score.strict)) for q, score in scored)
            summary[label] = dict(sorted(by_label.items()))
    by_family = shares((c.id, met) for q, score in scored for c, met in zip(q.constraints, score.strict, strict=True))
    summary["family"] = dict(sorted(by_family.items()))
    summary |= {"rows": len(scores), "unknown": sum(score.known.count(False) for score in scores)}
    found = per_prompt(instructions, scores)
    passes = {name.removeprefix("pass@"): mean(found[name]) for name in found if name.startswith("pass@")}
    return summary | ({"pass_at_k": passes} if passes else {})


# ---- files of recorded responses


def score_files(
    name: str, prompts: str, responses: str, output: str, verifier: Verifier
) -> tuple[dict[str, Any], list[RowError]]:
    """Scores the file `responses` into the file `output`: the summary, and one error for each bad row of both files.

    With errors, an output file that exists is left as it is, and the rows go to OUTPUT.partial. RowError if the prompts
    cannot be read, RefusedError if no row can be scored or the output cannot be written.
    """
    benchmark, target = BENCHMARKS[name], paths.at(output)
    check_output(target, (prompts, responses))
    instructions, errors = benchmark.read(prompts)
    readable, bad = read_responses(responses, instructions, benchmark.id)
    errors = [*errors, *bad]
    for error in errors:
        print(error, file=sys.stderr)
    readable = _decidable(readable, verifier.deciders)
    if not readable:
        raise RefusedError(f"{responses}: no row can be scored")
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("scoring", total=len(readable))
        scores, summary = score_responses(
            benchmark, readable, verifier, lambda done: progress.update(task, completed=done)
        )
    if errors and target.is_file():
        target = target.with_name(target.name + ".partial")
        print(f"{output} is left as it is; the rows that could be scored go to {target}", file=sys.stderr)
    write_jsonl(target, (output_row(benchmark, r.instruction, s) for r, s in zip(readable, scores, strict=True)))
    return summary, errors


def _decidable(responses: Sequence[Response], deciders: Mapping[str, Decider]) -> list[Response]:
    """The responses whose constraints can all be decided; the others are counted on stderr."""
    lacking = [registry.missing_decider(response.instruction.constraints, deciders) for response in responses]
    for name, count in sorted(collections.Counter(filter(None, lacking)).items()):
        print(f"{count} responses are left out: their prompts need the decider {name!r}, which is off", file=sys.stderr)
    return [response for response, name in zip(responses, lacking, strict=True) if not name]
