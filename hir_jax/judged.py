"""Judges recorded responses with CFBench, FollowBench, ComplexBench or InFoBench, by recorded judgements or by a judge.

    python -m hir_jax.judged --benchmark=NAME --prompts=FILE --responses=FILE --judgements=FILE [--published_quirks]
    python -m hir_jax.judged --benchmark=NAME --prompts=FILE --responses=FILE --judge=endpoint:MODEL --output=FILE
        [--judge_option=NAME=VALUE ...] [--published_quirks]

NAME is cfbench, followbench, followbench_zh, complexbench, complexbench_en or infobench. `--prompts` is the published file
as the benchmark's module in `hir_jax.eval.judged` describes it. `--responses` is JSON Lines with `response` and the prompt's
key or its `prompt`, as in `hir_jax.score`; one response per prompt. `--judgements` is JSON Lines, {KEY: of the prompt,
"replies": [a judge's text or null, ...]} or {KEY: ..., "verdicts": [true, false or null, ...]};
`hir_jax.eval.judging` says more. With a judge, `--output` gets such rows as they come, and a file that exists is
continued. A judge is any server of OpenAI's chat completions, with the options of `checks.judge.soft.JudgeSettings`.

The last line on stdout is the summary: the figures of the benchmark's `aggregate`; "unknown" verdicts, which count as not
met; and "missing", prompts without a response, which do not count. (In FollowBench a level without a response counts as
failed if another level of its group has one.) With `--published_quirks` the figures are those of the published aggregation.
"intervals" are 95% bootstrap intervals over prompts of ILA (1 if all questions about the response are met) and CLA (the share
that is met), means over prompts, always without those quirks.

Several models or checkpoints are compared by several files, separated by commas, in --responses and as many in --judgements
or --output. The object then holds `runs` (by file of responses) and `differences` of ILA and CLA from the first, with paired
intervals, over the prompts that both answered. `python -m hir_jax.evaluate` writes such files.

A bad row is reported by file and line, the others are judged all the same, and the exit status is 1.
"""

from __future__ import annotations

import json

from absl import flags

from hir_jax import pathflags
from hir_jax.eval.benchmarks import JUDGED
from hir_jax.eval.comparing import differences
from hir_jax.eval.judging import judge_files
from hir_jax.eval.responses import RefusedError
from hir_jax.eval.verifiers import judge_settings


def main(argv) -> int:
    del argv
    args = flags.FLAGS
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
        summaries[responses], figures[responses], errors = judge_files(
            args.benchmark, args.prompts, responses, **{name: path}, settings=settings if settings.kind else None,
            published_quirks=args.published_quirks,
        )  # fmt: skip
        wrong += len(errors)
    several = {"runs": summaries, "differences": differences(figures)}
    print(json.dumps(several if len(summaries) > 1 else summaries[responses], ensure_ascii=False))
    return 1 if wrong else 0


def cli() -> None:
    flags.DEFINE_enum("benchmark", None, JUDGED, "Whose prompts and metrics.", required=True)
    pathflags.define("prompts", None, "The benchmark's prompts.", required=True)
    pathflags.define_list(
        "responses", None, "Responses to score, JSON Lines; several files are compared.", required=True
    )
    pathflags.define_list("judgements", [], "Recorded judgements, JSON Lines, of each file of responses.")
    pathflags.define_list("output", [], "Where the judge's replies go, JSON Lines; continued if it is there.")
    flags.DEFINE_string("judge", "", "endpoint:MODEL.")
    flags.DEFINE_multi_string("judge_option", [], "NAME=VALUE, a field of checks.judge.soft.JudgeSettings.")
    flags.DEFINE_bool("published_quirks", False, "Aggregate as the published scorer does, oddities included.")
    pathflags.run(main, __doc__, prefix="")


if __name__ == "__main__":
    cli()
