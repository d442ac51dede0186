"""Scores recorded responses with CFBench, FollowBench, ComplexBench or InFoBench, by recorded judgements or by a judge.

    python -m hir_jax.judged --benchmark=NAME --prompts=FILE --responses=FILE --judgements=FILE [--published_quirks]
    python -m hir_jax.judged --benchmark=NAME --prompts=FILE --responses=FILE --judge=endpoint:MODEL --output=FILE
        [--judge_option=NAME=VALUE ...] [--published_quirks]

NAME is cfbench, followbench, followbench_zh, complexbench, complexbench_en or infobench. `--prompts` is the published file
as the module of the benchmark describes it. `--responses` is JSON Lines with `response` and the prompt's key or its
`prompt`, as in `hir_jax.score`; one response per prompt. `--judgements` is JSON Lines, {KEY: of the prompt, "replies": [a
judge's text or null, ...]} or {KEY: ..., "verdicts": [true, false or null, ...]}; `hir_jax.eval.judged.records` says more. With
a judge, `--output` gets such rows as they come, and a file that is there is continued. A judge is any
server of OpenAI's chat completions, with the options of `checks.judge.soft.JudgeSettings`.

The last line on stdout is the summary: the figures of the benchmark's `aggregate`, "unknown" verdicts, which count as not
met, and "missing", prompts without a response, which do not count (but for FollowBench: a level without a response counts as
failed where another of its group has one). With `--published_quirks` the figures are those of the published aggregation.
"intervals" are 95% bootstrap intervals over prompts of ILA (all questions about a response are met) and CLA (the share that
is, the mean over prompts), always without those quirks.

Several models or checkpoints are compared by as many files, separated by commas, in --responses and in --judgements or
--output: the object then holds `runs` (by file of responses) and `differences` of ILA and CLA from the first, with paired
intervals, over the prompts that both answered. `python -m hir_jax.evaluate` writes such files.

A bad row is reported by file and line, the others are scored all the same, and the exit status is 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from hir_jax import pathflags
from hir_jax.checks.judge.soft import JudgeSettings
from hir_jax.deciders import judge_settings
from hir_jax.eval.judged import JUDGED, as_instructions, records, scored_rows
from hir_jax.eval.judged.base import JudgedBenchmark, Row, row_accuracies
from hir_jax.eval.statistics import bootstrap, paired_differences
from hir_jax.score import RefusedError, check_output, guarded, read_responses
from hir_jax.textfiles import RowError


def score_files(
    name: str,
    prompts: str,
    responses: str,
    judgements: str = "",
    output: str = "",
    settings: JudgeSettings | None = None,
    published_quirks: bool = False,
) -> tuple[dict[str, Any], dict[Any, dict[str, float]], list[RowError]]:
    """The summary, ILA and CLA by key of the prompt, and one error for each bad row. Judged by the file `judgements`, or with
    `settings` into `output`.

    RowError if the prompts cannot be read, RefusedError if no row can be scored or the output cannot be written.
    """
    benchmark = JUDGED[name]
    if settings:
        check_output(Path(output), (prompts, responses))
    rows = scored_rows(name, prompts)
    texts, errors = _responses(benchmark, rows, responses)
    answered = [row for row in rows if row.key in texts]
    if settings:
        found, bad = _judge(benchmark, answered, texts, output, settings)
    else:
        found, bad = records.read(judgements, benchmark, rows, texts)
    errors += bad
    for error in errors:
        print(error, file=sys.stderr)
    if complaint := records.unreadable(benchmark, answered, texts, found):
        print(complaint, file=sys.stderr)
    if not answered:
        raise RefusedError(f"{responses}: no row can be scored")
    judged = records.judgements(benchmark, answered, texts, found, published_quirks)
    summary = benchmark.aggregate(answered, judged, published_quirks)
    plain = records.judgements(benchmark, answered, texts, found, False) if published_quirks else judged
    figures = {row.key: row_accuracies(benchmark, row, plain[row.key]) for row in answered}
    intervals = {figure: bootstrap([one[figure] for one in figures.values()]) for figure in ("ila", "cla")}
    return summary | {"missing": len(rows) - len(answered), "intervals": intervals}, figures, errors


def _responses(benchmark: JudgedBenchmark, rows: Sequence[Row], path: str) -> tuple[dict[Any, str], list[RowError]]:
    """Responses by key of the prompt; a second one for a prompt is an error."""
    texts: dict[Any, str] = {}
    readable, errors = read_responses(path, as_instructions(rows, path), benchmark.id)
    for response in readable:
        if response.instruction.key in texts:
            errors.append(RowError(f"{response.label}: a second response for {response.instruction.key!r}"))
        else:
            texts[response.instruction.key] = response.text
    return texts, errors


def _judge(
    benchmark: JudgedBenchmark, rows: Sequence[Row], texts: dict[Any, str], output: str, settings: JudgeSettings
):
    from hir_jax.checks.judge.endpoint import Endpoint  # takes seconds, and recorded judgements do without

    endpoint = Endpoint(settings)
    with endpoint.conversations() as answer:
        found = records.judge_rows(benchmark, rows, texts, output, settings.model, answer, settings.concurrency)
    usage = endpoint.usage
    print(
        f"{usage.requests} requests, {usage.prompt_tokens} prompt and {usage.completion_tokens} completion tokens, "
        f"cost {usage.cost:g}",
        file=sys.stderr,
    )
    return found


def _define_flags() -> None:
    # Not at import: tests import this module beside programs that have flags of the same names.
    flags.DEFINE_enum("benchmark", None, sorted(JUDGED), "Whose prompts and metrics.", required=True)
    pathflags.define("prompts", None, "The benchmark's prompts.", required=True)
    pathflags.define_list(
        "responses", None, "Responses to score, JSON Lines; several files are compared.", required=True
    )
    pathflags.define_list("judgements", [], "Recorded judgements, JSON Lines, of each file of responses.")
    pathflags.define_list("output", [], "Where the judge's replies go, JSON Lines; continued if it is there.")
    flags.DEFINE_string("judge", "", "endpoint:MODEL.")
    flags.DEFINE_multi_string("judge_option", [], "NAME=VALUE, a field of constraints.judge.JudgeSettings.")
    flags.DEFINE_bool("published_quirks", False, "Aggregate as the published scorer does, oddities included.")


def _run(args: flags.FlagValues) -> int:
    settings = judge_settings(args.judge, args.judge_option)
    if bool(args.judgements) == bool(settings.kind):
        raise RefusedError("give either --judgements, a file of them, or --judge")
    if settings.kind == "local":
        raise RefusedError(
            "--judge=local: a local judge gives only yes or no, not the replies wanted here; use endpoint:MODEL"
        )
    if bool(settings.kind) != bool(args.output):
        raise RefusedError("--judge needs --output, a file for its replies, and --judgements has none")
    name, beside = ("output", args.output) if settings.kind else ("judgements", args.judgements)
    if len(args.responses) == 1:
        beside = [",".join(beside)]
    if len(beside) != len(args.responses):
        raise RefusedError(f"--{name}: {len(beside)} files for {len(args.responses)} of --responses; give one for each")
    if len(set(args.responses)) < len(args.responses) or len(set(args.output)) < len(args.output):
        raise RefusedError("--responses, --output: the same file is given twice")
    summaries, figures, wrong = {}, {}, 0
    for responses, path in zip(args.responses, beside, strict=True):
        summaries[responses], figures[responses], errors = score_files(
            args.benchmark, args.prompts, responses, **{name: path}, settings=settings if settings.kind else None,
            published_quirks=args.published_quirks,
        )  # fmt: skip
        wrong += len(errors)
    first, *others = args.responses
    compared = {other: paired_differences(figures[first], figures[other]) for other in others}
    found = {"runs": summaries, "differences": compared} if others else summaries[first]
    print(json.dumps(found, ensure_ascii=False))
    return 1 if wrong else 0


def main(argv: Sequence[str]) -> int:
    return guarded(argv, _run)


def cli() -> None:
    _define_flags()
    pathflags.run(main, __doc__)


if __name__ == "__main__":
    cli()
