"""The benchmarks: whose prompts, by which rules, and what is reported of the verdicts.

`BENCHMARKS` has one entry each. IFEval and IFBench are scored strictly and loosely; MulDimIF and HIR-16K know one verdict.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hir_jax.checks.verifier import Row, Verifier
from hir_jax.data import hir16k
from hir_jax.data.readers import read_ifbench, read_ifeval, read_muldimif
from hir_jax.data.templates import render
from hir_jax.eval.statistics import pass_at_k
from hir_jax.textfiles import RowError
from hir_jax.types import Instruction

_ROWS_AT_A_TIME = 128  # between two calls of `progress`


class Response(NamedTuple):
    """A response to score; `label` says where it is from, for messages."""

    instruction: Instruction
    text: str
    label: str


class RowScore(NamedTuple):
    """Verdicts on one response, by position of the constraint. Where not `known`, strict and loose are False."""

    strict: list[bool]
    loose: list[bool]
    known: list[bool]


class Benchmark(NamedTuple):
    """`read`: path -> (instructions, errors of single rows); RowError where the whole file cannot be used.

    `loose`: there is a loose mode. `id`: the name of a prompt's key in its files. `labels`: of the instructions, by which
    accuracies are broken down.
    """

    read: Callable[[str | Path], tuple[list[Instruction], list[RowError]]]
    loose: bool
    id: str
    labels: tuple[str, ...] = ()

    def output_row(self, instruction: Instruction, score: RowScore) -> dict[str, Any]:
        """The object that is written for one response; "unknown" lists the positions without a verdict, if there are any."""
        verdicts = {"strict": score.strict, "loose": score.loose} if self.loose else {"satisfied": score.strict}
        unknown = [position for position, known in enumerate(score.known) if not known]
        return {self.id: instruction.key} | verdicts | ({"unknown": unknown} if unknown else {})


def _strictly(read: Callable[[str | Path], list[Instruction]]):
    """A reader that raises for its first bad row: a published file has none."""
    return lambda path: (read(path), [])


BENCHMARKS = {
    "ifeval": Benchmark(_strictly(read_ifeval), True, "key"),
    "ifbench": Benchmark(_strictly(read_ifbench), True, "key"),
    "muldimif": Benchmark(_strictly(read_muldimif), False, "id", ("pattern", "level")),
    # Published rows name no template. To a verdict only the words of the request matter, which are the same in each.
    "hir16k": Benchmark(partial(hir16k.read, template="type1"), False, "id", ("source",)),
}


def score_rows(
    benchmark: Benchmark,
    responses: Sequence[Response],
    verifier: Verifier,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[RowScore], dict[str, Any]]:
    """Verdicts per response, and the summary of `summarise`. ValueError if there are no responses.

    `progress` is called with the number of responses done so far.
    """
    scores: list[RowScore] = []
    for start in range(0, len(responses), _ROWS_AT_A_TIME):
        scores += _scored(responses[start : start + _ROWS_AT_A_TIME], verifier, benchmark.loose)
        progress(len(scores))
    return scores, summarise(benchmark, [response.instruction for response in responses], scores)


def _scored(responses: Sequence[Response], verifier: Verifier, with_loose: bool) -> list[RowScore]:
    """The loose check runs where the strict one says no; a strict pass is a loose one by definition, and a check that
    failed or timed out on the response as it is would do so again (it is the first of the loose forms)."""
    rows = [
        Row(response.instruction.constraints, response.text, render(response.instruction), response.label)
        for response in responses
    ]
    width = max((len(row.constraints) for row in rows), default=0)
    strict = verifier.verify(rows, width)
    loose, known = strict.satisfied.copy(), strict.known.copy()
    if with_loose:
        failed = [
            (index, position)
            for index, row in enumerate(rows)
            for position in range(len(row.constraints))
            if strict.known[index, position] and not strict.satisfied[index, position]
        ]
        again = [rows[index]._replace(constraints=[rows[index].constraints[position]]) for index, position in failed]
        verdicts = verifier.verify(again, 1, loose=True)
        for (index, position), satisfied, is_known in zip(
            failed, verdicts.satisfied[:, 0], verdicts.known[:, 0], strict=True
        ):
            loose[index, position], known[index, position] = satisfied, is_known
    return [
        RowScore(*(mask[index, : len(row.constraints)].tolist() for mask in (strict.satisfied, loose, known)))
        for index, row in enumerate(rows)
    ]


def _share(verdicts: Iterable[float]) -> float:
    verdicts = list(verdicts)
    return sum(verdicts) / len(verdicts)


def per_prompt(instructions: Sequence[Instruction], strict: Sequence[list[bool]]) -> dict[str, list[float]]:
    """Per prompt, in the order in which they first come: "ila" and "cla", the shares of its responses that meet everything and
    of constraints met, and with several responses "pass@k" for k = 1, 2, 4, ... and n, the smallest number that a prompt has."""
    met = collections.defaultdict(list)
    for instruction, verdicts in zip(instructions, strict, strict=True):
        met[str(instruction.key)].append(verdicts)
    passed = [[all(verdicts) for verdicts in lists] for lists in met.values()]
    most = min(map(len, passed))
    counts = sorted({2**power for power in range(most.bit_length())} | {most}) if most > 1 else []
    return {
        "ila": [_share(one) for one in passed],
        "cla": [_share(map(_share, lists)) for lists in met.values()],
    } | {f"pass@{k}": [pass_at_k(sum(one), len(one), k) for one in passed] for k in counts}


def _passes(instructions: Sequence[Instruction], strict: Sequence[list[bool]]) -> dict[str, float]:
    """The means of `per_prompt`'s pass@k by k."""
    found = per_prompt(instructions, strict)
    return {name.removeprefix("pass@"): _share(values) for name, values in found.items() if name.startswith("pass@")}


def summarise(benchmark: Benchmark, instructions: Sequence[Instruction], scores: Sequence[RowScore]) -> dict[str, Any]:
    """Accuracies as fractions, `rows`, `unknown` (constraints without a verdict, which count as not met), `pass_at_k`.

    With a loose mode the four of IFEval: per prompt the share of responses that meet all constraints, per instruction
    the share of constraints that are met. Without, `overall` (all constraints met), `constraints` (share met), and
    `overall` by the benchmark's labels. `family`: the share met (strictly) by constraint type. ValueError without any scores.
    """
    if not scores:
        raise ValueError("there are no responses to score")
    strict, summary = [score.strict for score in scores], {}
    if benchmark.loose:
        for mode in ("strict", "loose"):
            lists = [getattr(score, mode) for score in scores]
            summary[f"prompt_{mode}"] = _share(map(all, lists))
            summary[f"instruction_{mode}"] = _share(verdict for verdicts in lists for verdict in verdicts)
    else:
        summary["overall"] = _share(map(all, strict))
        summary["constraints"] = _share(verdict for verdicts in strict for verdict in verdicts)
        for label in benchmark.labels:
            summary[label] = _by_label(label, instructions, strict)
    summary["family"] = _by_family(instructions, strict)
    summary["rows"] = len(scores)
    summary["unknown"] = sum(score.known.count(False) for score in scores)
    passes = _passes(instructions, strict)
    return summary | ({"pass_at_k": passes} if passes else {})


def _by_label(label: str, instructions: Sequence[Instruction], strict: Sequence[list[bool]]) -> dict[str, float]:
    groups = collections.defaultdict(list)
    for instruction, verdicts in zip(instructions, strict, strict=True):
        groups[instruction.labels.get(label, "")].append(all(verdicts))
    return {name: _share(groups[name]) for name in sorted(groups)}


def _by_family(instructions: Sequence[Instruction], strict: Sequence[list[bool]]) -> dict[str, float]:
    groups = collections.defaultdict(list)
    for instruction, verdicts in zip(instructions, strict, strict=True):
        for constraint, verdict in zip(instruction.constraints, verdicts, strict=True):
            groups[constraint.id].append(verdict)
    return {name: _share(groups[name]) for name in sorted(groups)}
