"""Measures sampling, learning and whole steps of a config's model, beside this machine's own limits and a peer.

    python -m hir_jax.bench --config=configs/smollm2_135m_hir.py [--peer=hf|trl] [--phase=rollout,learner] [--scaling]
        [--rounds=5] [--prompts=6] [--samples=8] [--new_tokens=128] [--trace=DIR] [--output=FILE]

Phases, each through the functions that train.py calls (the docstring of its module says more):
    rollout    prompts x samples responses of new_tokens tokens each after prompts of 80 tokens in the mean
    learner    one optimiser update on as many sequences, without padding and with; its layers' matrix products alone
    long_tail  continuous batching in --slots slots against the plain loop, responses of up to --tail_tokens tokens
    step       --steps steps of the config by hir_jax.train, those that compile left out: seconds, their phases, the share of
               overhead, padding, memory
    start      the config started twice on an empty compilation cache: seconds to the first step and to its end, compilations
    grpo       a whole `ilr` and `hir` step on prompts of up to --grpo_prompt_tokens tokens
    encode     a row of 30 numbered constraints, tokenised by roles with the config's tokenizer
    verify     checks of --verify_rows responses, by one core, by the pool of workers, on the device; needs no model
    scaling    growth of cost with batch, response length, model and virtual devices; needs no model

--peer=hf: in rollout and learner, transformers' generate and a torch update of the same weights on the same tokens, at the
same dtype, in turn with ours: A, B, A, B. --peer=trl: in grpo, one step of TRL's GRPOTrainer. Both need `make peers`.
The ceilings (matrix products in each dtype, reading of memory) are measured in the same run, before and after.
--trace=DIR: after measuring, jax.profiler records one more call of ours in rollout and learner: `tensorboard --logdir=DIR`
(with its profile plugin) shows it, or https://ui.perfetto.dev the file DIR/*/plugins/profile/*/*.trace.json.gz.

Progress and a table go to stderr; the last line on stdout is one JSON object. --output writes it too, after every round: a run
that is stopped leaves its finished phases, and the rounds of the last one under "unfinished". `python -m hir_jax.bench.table
FILES` turns such files into Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from hir_jax import config as configs
from hir_jax import pathflags
from hir_jax.bench import encode, grpo, learner, long_tail, machine, rollout, scaling, steps, table, verify
from hir_jax.bench.session import Session
from hir_jax.bench.sizes import Sizes
from hir_jax.run import files
from hir_jax.run.memory import keep_freed_memory
from hir_jax.types import InputError

PEERS = {"hf": ("torch",), "trl": ("torch", "trl", "accelerate", "datasets")}  # with the packages that they need
NAMED_ALONE = {"trl": ["grpo"], "hf": ["rollout", "learner"], None: ["rollout", "learner"]}
TRACED = ("rollout", "learner")
BENCHES = {
    "rollout": rollout.bench, "learner": learner.bench, "long_tail": long_tail.bench, "grpo": grpo.bench,
    "encode": encode.bench, "verify": verify.bench, "scaling": scaling.bench,
}  # fmt: skip


def measure(session: Session, phases: Sequence[str]) -> dict:
    """All figures as one JSON-able dict."""
    if session.peer:
        machine.require(PEERS[session.peer], f"--peer={session.peer}")
    if "start" in phases:  # before this process holds a device that the started programs need
        session.run("start", steps.bench_start)
    session.describe_machine()
    if "step" in phases:  # before the others, while the process is small: its peak memory is a figure
        session.run("step", steps.bench)
    session.measure_ceilings()
    for phase in BENCHES:
        if phase in phases:
            session.run(phase, BENCHES[phase])
    session.measure_ceilings()
    return session.report()


def show(found: dict, console: Console) -> None:
    """Prints the figures as a table."""
    shown = Table(*table.HEADER, title=table.caption(found))
    for line in table.lines(found):
        shown.add_row(*line)
    console.print(shown)


def _phases(named: Sequence[str], peer: str | None, with_scaling: bool) -> list[str]:
    for name in named:
        if name not in table.PHASES:
            raise InputError(
                f"--phase={name}: unknown; known are {', '.join(table.PHASES)}, several separated by commas"
            )
    if peer and named and not set(named) & set(NAMED_ALONE[peer]):
        raise InputError(
            f"--peer={peer} is measured in {' and '.join(NAMED_ALONE[peer])} alone, not in {', '.join(named)}: add one of "
            "them to --phase, or leave the peer out"
        )
    if with_scaling:
        return [*(named or (NAMED_ALONE[peer] if peer else [])), "scaling"]
    return list(named) or NAMED_ALONE[peer]


def main(argv) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)  # the libraries' own messages would hide the progress
    args = flags.FLAGS
    configs.check(args.config)
    keep_freed_memory()  # as the programs do, for both sides
    phases = _phases(args.phase, args.peer, args.scaling)
    if args.trace and not set(phases) & set(TRACED):
        raise InputError(f"--trace is of {' and '.join(TRACED)}: add one of them to --phase, or leave --trace out")
    sizes = Sizes(**{field.name: getattr(args, field.name) for field in fields(Sizes)})
    file, given = (f(args["config"]) for f in (config_flags.get_config_filename, config_flags.get_override_values))
    trace, output = (Path(name) if name else None for name in (args.trace, args.output))
    found = measure(Session(args.config, file, given, sizes, args.peer, trace, output), phases)
    show(found, Console(stderr=True))
    text = json.dumps(found)
    if output:
        files.write_atomically(output, text + "\n")
    print(text)


def cli() -> None:
    configs.define_flags()
    pathflags.define("output", None, "A file for the figures.", local=True)
    flags.DEFINE_enum("peer", None, list(PEERS), "Measure transformers and torch, or TRL, too, in turn with ours.")
    flags.DEFINE_list(
        "phase", [], f"What to measure: {', '.join(table.PHASES)}. Without: rollout,learner; with --peer=trl: grpo."
    )
    pathflags.define("trace", None, f"A directory for profiles of {' and '.join(TRACED)}.", local=True)
    flags.DEFINE_boolean("scaling", False, "Measure the phase scaling (too, where --phase names others).")
    for field in fields(Sizes):
        flags.DEFINE_integer(field.name, field.default, **field.metadata)
    flags.mark_flags_as_required(["config"])
    configs.run_program(main, __doc__)


if __name__ == "__main__":
    cli()
