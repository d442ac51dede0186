"""Evaluates runs: their newest checkpoints, or those of a step, on a benchmark.

    python -m hir_jax.evaluate --workdir=DIR[@STEP],... --benchmark=NAME [--config=configs/X.py] [--prompts=FILE]
        [--limit=N] [--temperature=0.6] [--samples=N] [--control=shuffle|task]
        [--checks=FILE ...] [--coordinator=HOST:PORT --processes=N --process=I]

Benchmarks:
- ifeval, ifbench, if_rlvr, muldimif, hir16k (`--prompts` is the published file);
- heldout, the config's held-out instructions, and unseen, instructions of constraint types that the run never trained on
  (`config.data.unseen_ids`);
- text, the perplexity of the plain text in `--prompts`, cut into windows;
- cfbench, followbench, followbench_zh, complexbench, complexbench_en and infobench (`--prompts` is the published file, too),
  whose responses `python -m hir_jax.judged` judges.

Without --config each run's own config.json is used. DIR@0 is the model that the run starts from; with --config, DIR need not
exist. A directory whose name is DIR@STEP, or has commas in it, is taken as it is.

Greedy by default; with --samples=N each prompt gets N responses, and pass@k is estimated without bias. Writes
DIR/evaluations/BENCHMARK-step-S/{responses,verdicts,prompts}.jsonl and summary.json (with 95% bootstrap intervals over prompts),
and prints the summary, last on stdout, as one JSON object. Several workdirs are compared with the first, on the prompts that both
answered: the object then holds `runs` and `differences`, with paired intervals. Prompts that need a judge or a code checker
which the config does not name are left out.

A control tells whether the responses follow their instructions (`hir.following`). With --control=shuffle they are checked
against the constraints of eight other prompts each, by the rules alone: `ila_shuffled`, `cla_shuffled`, `following` (ILA
minus ila_shuffled), `distinct`, `overlap`, and `by_type`. The last is how often constraints of a type are met by the responses
to prompts that ask for them and, the same constraints, by the responses to prompts that hold none of their type. This control
credits anything that tells the prompts apart, the task too. With --control=task, responses to the task without its constraints
are checked against these constraints, by whoever decides them: `ila_task`, `cla_task` and `following_task` (ILA minus
ila_task). Each figure is a mean over prompts with its interval, and is compared between runs.
"""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path

from absl import flags
from rich.console import Console

from hir_jax import config as configs
from hir_jax import pathflags, paths
from hir_jax.checks import user
from hir_jax.eval.answering import CONTROLS, SHUFFLE, Request, evaluate_run
from hir_jax.eval.benchmarks import BENCHMARKS, JUDGED
from hir_jax.eval.comparing import differences_of_evaluations, show
from hir_jax.parallel import processes
from hir_jax.run.checkpoints import step_of
from hir_jax.run.memory import keep_freed_memory
from hir_jax.run.progress import use_compilation_cache


def _run_of(name: str) -> tuple[Path, int | None]:
    """The workdir and step of DIR or DIR@STEP; a directory of the whole name comes first."""
    directory, _, step = name.rpartition("@")
    if (whole := paths.at(name)).is_dir() or not (directory and step.isdecimal()):
        return whole, None
    return paths.at(directory), int(step)


def main(argv) -> None:
    del argv
    user.load_all(flags.FLAGS.checks)
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax reports through it
    keep_freed_memory()
    with processes.joined(preemption=False):
        evaluate(flags.FLAGS)


def evaluate(args) -> None:
    """Does what the flags ask for."""
    request = Request(args.benchmark, args.prompts, args.limit, args.temperature, args.samples, args.control)
    runs, directories = {}, {}
    for name in args.workdir:  # before the first is answered, which may take hours
        step_of(*_run_of(name))
    for name in args.workdir:
        workdir, step = _run_of(name)
        config = args.config or configs.of_run(workdir)
        configs.check(config)
        use_compilation_cache(config.compilation_cache)
        runs[name], directories[name] = evaluate_run(config, workdir, request, step)
    if not processes.first():
        return
    console, several = Console(stderr=True), {"runs": runs}
    if args.benchmark in JUDGED:
        found = ",".join(str(directory / "responses.jsonl") for directory in directories.values())
        flags_given = (f"--benchmark={args.benchmark}", f"--prompts={args.prompts}", f"--responses={found}")
        command = shlex.join(["python", "-m", "hir_jax.judged", *flags_given])
        console.print(f"to be scored by: {command} ...", soft_wrap=True, markup=False)
    elif len(runs) > 1:
        several["differences"] = differences_of_evaluations(directories)
        show(runs, several["differences"], console)
    print(json.dumps(several if len(runs) > 1 else runs[name]))


def cli() -> None:
    configs.define_flags()
    pathflags.define("prompts", None, "The benchmark's prompts.")
    pathflags.define_list(
        "workdir", None, "Runs: DIR or DIR@STEP, several separated by commas.", lambda name: _run_of(name)[0].is_dir()
    )
    flags.DEFINE_enum("benchmark", "ifeval", list(BENCHMARKS), "Whose prompts and rules.")
    flags.DEFINE_integer("limit", None, "The first N prompts alone.", lower_bound=1)
    flags.DEFINE_float("temperature", 0.0, "0: greedy. The paper's benchmark decoding: 0.6.")
    flags.DEFINE_integer("samples", 1, "Responses to each prompt.", lower_bound=1)
    flags.DEFINE_enum(
        "control", SHUFFLE, CONTROLS, "What tells following from meeting: other prompts, or the task alone."
    )
    user.define_flag()
    processes.define_flags()
    flags.mark_flags_as_required(["workdir"])
    configs.run_program(main, __doc__)


if __name__ == "__main__":
    cli()
