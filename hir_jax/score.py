"""Scores recorded responses with a benchmark's rules; measures a judge against labels.

    python -m hir_jax.score --benchmark=ifeval|ifbench|if_rlvr|muldimif|hir16k --prompts=FILE --responses=FILE --output=FILE
        [--workers=N] [--judge=KIND:MODEL [--judge_option=NAME=VALUE ...]] [--code_checkers] [--checks=FILE ...]
    python -m hir_jax.score --judge=KIND:MODEL [--judge_option=NAME=VALUE ...]

`--prompts` is the published file. `--responses` is JSON Lines with `response` and with the prompt's key (`key` or `id`) or
its `prompt` (the key counts where a row has both). Several rows may answer one prompt: pass@k is then printed too.
`--output` gets one row per response, in order, with one bool per constraint in the prompt's order:
`{"key", "strict": [...], "loose": [...]}` for ifeval and ifbench, `{"key", "satisfied": [...]}` for if_rlvr (`"id"` for
muldimif and hir16k), and `"unknown"`, the positions without a verdict (false in the lists), where there are any. It may
be a device, a pipe or a symbolic link, which is written through. The last line on stdout is the summary
(`eval.scoring.summarise`).

A bad row is reported by file and line, the others are scored all the same, and the exit status is 1; an existing output
file is then left as it is and the rows go to `FILE.partial`. Prompts with soft constraints need a judge, "endpoint:NAME"
or "local:CHECKPOINT" with the options of `checks.judge.soft.JudgeSettings`, and those with Python checkers need
`--code_checkers`. Without these, such prompts are left out and counted.

With a judge and no benchmark, the judge answers the labelled pairs of `checks/judge/calibration.jsonl`, and its precision
and recall are printed.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack

from absl import flags

from hir_jax import pathflags
from hir_jax.checks import user
from hir_jax.checks.judge.calibration import calibration
from hir_jax.eval.benchmarks import SCORED
from hir_jax.eval.responses import RefusedError
from hir_jax.eval.scoring import score_files
from hir_jax.eval.verifiers import judge_settings, open_judge, open_verifier


def main(argv) -> int:
    del argv
    args = flags.FLAGS
    names = ("prompts", "responses", "output")
    missing = [f"--{name}" for name in names if not args[name].value]
    if args.benchmark and missing:
        raise RefusedError(f"--benchmark={args.benchmark} needs {', '.join(missing)}")
    if not args.benchmark and not args.judge:
        raise RefusedError(f"give --benchmark, one of {', '.join(SCORED)}, or --judge to measure one")
    user.load_all(args.checks)
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


def cli() -> None:
    flags.DEFINE_enum("benchmark", None, SCORED, "Whose prompts and rules.")
    pathflags.define("prompts", None, "The benchmark's prompts.")
    pathflags.define("responses", None, "Responses to score, JSON Lines.")
    pathflags.define("output", None, "Where the verdicts go, JSON Lines.")
    flags.DEFINE_integer("workers", min(8, os.cpu_count() or 1), "Processes that check; 0: this one.", lower_bound=0)
    flags.DEFINE_float("timeout_seconds", 5.0, "Limit of one check, seconds.", lower_bound=0.001)
    flags.DEFINE_string("judge", "", "endpoint:NAME or local:CHECKPOINT, for soft constraints.")
    flags.DEFINE_multi_string("judge_option", [], "NAME=VALUE, a field of checks.judge.soft.JudgeSettings.")
    flags.DEFINE_bool("code_checkers", False, "Run the Python checkers that HIR-16K rows carry, caged by bubblewrap.")
    user.define_flag()
    pathflags.run(main, __doc__, prefix="")


if __name__ == "__main__":
    cli()
