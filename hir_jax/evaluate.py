"""Evaluates a run's newest checkpoint (or, in a workdir without one, the config's own model) on a benchmark.

    python -m hir_jax.evaluate --config=configs/X.py --workdir=DIR --benchmark=ifeval --prompts=FILE
        [--limit=N] [--temperature=0.6]

Greedy by default. Writes DIR/evaluations/BENCHMARK-step-S/{responses,verdicts}.jsonl and prints the four accuracies as
one JSON object, last on stdout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import Progress

from hir_jax import config as configs
from hir_jax import score
from hir_jax.constraints.verifier import Row, Verifier
from hir_jax.engine import Engine
from hir_jax.instructions.roles import encode
from hir_jax.instructions.templates import render
from hir_jax.replay import select
from hir_jax.runs import files
from hir_jax.runs.checkpoints import Checkpoints
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


def evaluate_file(config, workdir: Path, benchmark: str, prompts: str, limit: int | None, temperature: float) -> dict:
    """Samples, scores and writes; returns the summary of `score.summarise` with the step."""
    if not (temperature >= 0):
        raise InputError(f"--temperature={temperature}: it must not be negative (0 is greedy)")
    instructions = score.READERS[benchmark](prompts)[:limit]
    console = Console(stderr=True)
    engine = Engine(config)
    params, step = restored_params(engine, workdir)
    rows = [encode(engine.frame, instruction) for instruction in instructions]
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{benchmark}, step {step}", total=len(rows))
        texts = engine.respond(params, rows, temperature, lambda done: progress.update(task, completed=done))
    answers = [score.Response(q, y, q.source) for q, y in zip(instructions, texts, strict=True)]
    with Verifier(config.constraints.workers, config.constraints.timeout_seconds) as verifier:
        scores, summary = score.score_rows(answers, verifier)
    out = workdir / "evaluations" / f"{benchmark}-step-{step}"
    responses = [{"key": q.key, "prompt": render(q), "response": y} for q, y in zip(instructions, texts, strict=True)]
    verdicts = [score.output_row(q, s) for q, s in zip(instructions, scores, strict=True)]
    for name, lines in (("responses", responses), ("verdicts", verdicts)):
        files.write_atomically(out / f"{name}.jsonl", "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
    console.print(f"responses and verdicts: {out}", soft_wrap=True, markup=False)
    return summary | {"step": step}


def main(argv) -> None:
    del argv
    args = flags.FLAGS
    configs.check(args.config)
    found = evaluate_file(
        args.config, Path(args.workdir), args.benchmark, args.prompts, args.limit, args.temperature
    )  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    configs.define_flags("workdir", "prompts")
    flags.DEFINE_enum("benchmark", "ifeval", sorted(score.READERS), "Whose prompts and rules.")
    flags.DEFINE_integer("limit", None, "The first N prompts alone.", lower_bound=1)
    flags.DEFINE_float("temperature", 0.0, "0: greedy. The paper's benchmark decoding: 0.6.")
    flags.mark_flags_as_required(["config", "workdir", "prompts"])
    configs.run_program(main)
