"""Evaluates a run's newest checkpoint (or, in a workdir without one, the config's own model) on a benchmark.

    python -m hir_jax.evaluate --config=configs/X.py --workdir=DIR --benchmark=ifeval --prompts=FILE
        [--limit=N] [--temperature=0.6]

Greedy by default. Writes DIR/evaluations/BENCHMARK-step-S/{responses,verdicts}.jsonl and prints the accuracies as
one JSON object, last on stdout. Prompts that need a judge or a code checker which the config does not name are left out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import Progress

from hir_jax import config as configs
from hir_jax import deciders
from hir_jax.benchmarks import BENCHMARKS, Response, score_rows
from hir_jax.constraints import registry
from hir_jax.constraints.judge import JudgeSettings
from hir_jax.constraints.verifier import Row, Verifier
from hir_jax.engine import Engine
from hir_jax.instructions.roles import encode
from hir_jax.instructions.templates import render
from hir_jax.replay import select
from hir_jax.runs import files
from hir_jax.runs.checkpoints import Checkpoints
from hir_jax.runs.memory import keep_freed_memory
from hir_jax.runs.progress import use_compilation_cache
from hir_jax.types import InputError, Instruction


def accuracies(verifier: Verifier, instructions: Sequence[Instruction], texts: Sequence[str]) -> dict[str, float]:
    """Mean ILA (over decided responses) and CLA of one response to each instruction."""
    rows = [Row(q.constraints, y, render(q), q.source) for q, y in zip(instructions, texts, strict=True)]
    verdicts = verifier.verify(rows, max(len(q.constraints) for q in instructions))
    ila, decided = (np.asarray(x) for x in select.ila(verdicts))
    return {
        "ila": float(ila[decided].mean()) if decided.any() else 0.0,
        "cla": float(np.asarray(select.cla(verdicts)).mean()),
    }


def restored_params(engine: Engine, workdir: Path):
    """(parameters, step) of the run's newest checkpoint; the config's own model at step 0 where there is none."""
    directory = workdir / "checkpoints"
    if directory.is_dir():
        with Checkpoints(directory, keep=engine.config.checkpoint_keep) as saved:
            if (latest := saved.latest()) is not None:
                return saved.restore(latest, engine.abstract_state)[0].params, latest
    return engine.load_params(), 0


def _readable(console: Console, benchmark: str, prompts: str, enabled: frozenset[str]) -> list[Instruction]:
    """The benchmark's prompts that can be used; what is wrong with the others is said on the terminal."""
    instructions, errors = BENCHMARKS[benchmark].read(prompts)
    usable = [q for q in instructions if not registry.missing_decider(q.constraints, enabled)]
    for error in errors:
        console.print(f"left out: {error}", soft_wrap=True, markup=False)
    if len(usable) < len(instructions):
        on = ", ".join(sorted(enabled)) or "none"
        console.print(
            f"left out: {len(instructions) - len(usable)} prompts that need a decider which is off (on: {on})"
        )
    if not usable:
        raise InputError(f"{prompts}: no prompt is left to answer")
    return usable


def evaluate_file(config, workdir: Path, benchmark: str, prompts: str, limit: int | None, temperature: float) -> dict:
    """Samples, scores and writes; returns the summary of `benchmarks.summarise` with the step."""
    if not (temperature >= 0):
        raise InputError(f"--temperature={temperature}: it must not be negative (0 is greedy)")
    console = Console(stderr=True)
    k = config.constraints
    judge = JudgeSettings(**k.judge)
    instructions = _readable(console, benchmark, prompts, deciders.enabled(judge, k.code_checkers))[:limit]
    engine = Engine(config)
    params, step = restored_params(engine, workdir)
    rows = [encode(engine.frame, instruction) for instruction in instructions]
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{benchmark}, step {step}", total=len(rows))
        texts = engine.respond(params, rows, temperature, lambda done: progress.update(task, completed=done))
    answers = [Response(q, y, q.source) for q, y in zip(instructions, texts, strict=True)]
    with ExitStack() as stack:
        verifier = deciders.open_verifier(
            stack, judge, code_checkers=k.code_checkers, workers=k.workers, timeout_seconds=k.timeout_seconds
        )
        scores, summary = score_rows(BENCHMARKS[benchmark], answers, verifier)
    out = workdir / "evaluations" / f"{benchmark}-step-{step}"
    responses = [
        {BENCHMARKS[benchmark].id: q.key, "prompt": render(q), "response": y}
        for q, y in zip(instructions, texts, strict=True)
    ]
    verdicts = [BENCHMARKS[benchmark].output_row(q, s) for q, s in zip(instructions, scores, strict=True)]
    for name, lines in (("responses", responses), ("verdicts", verdicts)):
        files.write_atomically(out / f"{name}.jsonl", "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
    console.print(f"responses and verdicts: {out}", soft_wrap=True, markup=False)
    return summary | {"step": step}


def main(argv) -> None:
    del argv
    args = flags.FLAGS
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax reports through it
    configs.check(args.config)
    use_compilation_cache(args.config.compilation_cache)
    keep_freed_memory()
    found = evaluate_file(
        args.config, Path(args.workdir), args.benchmark, args.prompts, args.limit, args.temperature
    )  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    configs.define_flags("workdir", "prompts")
    flags.DEFINE_enum("benchmark", "ifeval", sorted(BENCHMARKS), "Whose prompts and rules.")
    flags.DEFINE_integer("limit", None, "The first N prompts alone.", lower_bound=1)
    flags.DEFINE_float("temperature", 0.0, "0: greedy. The paper's benchmark decoding: 0.6.")
    flags.mark_flags_as_required(["config", "workdir", "prompts"])
    configs.run_program(main)
