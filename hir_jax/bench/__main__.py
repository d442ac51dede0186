"""Measures sampling, learning and whole steps of a config's model, beside this machine's own limits and a peer.

    python -m hir_jax.bench --config=configs/smollm2_135m_hir.py [--peer=hf|trl] [--phase=rollout,learner] [--scaling]
        [--rounds=5] [--prompts=6] [--samples=8] [--new_tokens=128] [--trace=DIR] [--output=FILE]

Phases, each through the functions that train.py calls (what each does is said at the top of its module):
    rollout    prompts x samples responses of new_tokens tokens each after prompts of 80 tokens in the mean
    learner    one optimiser update on as many sequences, without padding and with
    long_tail  continuous batching in --slots slots against the plain loop, responses of up to --tail_tokens tokens
    step       --steps steps of the config by hir_jax.train, those that compile left out: seconds, their phases, the share of
               overhead, padding, memory
    start      the config started twice on an empty compilation cache: seconds to the end of the first step, compilations
    grpo       a whole `ilr` and `hir` step on prompts of up to --grpo_prompt_tokens tokens
    encode     a row of 30 numbered constraints, tokenised by roles with the config's tokenizer
    verify     checks of --verify_rows responses, by one core, by the pool of workers, on the device; needs no model
    scaling    growth of cost with batch, response length, model and virtual devices; needs no model

--peer=hf: in rollout and learner, transformers' generate and a torch update of the same weights on the same tokens, at the
same dtype, in turn with ours: A, B, A, B. --peer=trl: in grpo, one step of TRL's GRPOTrainer. Both need `make peers`.
The ceilings (matrix products in each dtype, reading of memory) are measured in the same run, before and after.
--trace=DIR: after measuring, one more call of ours in rollout and learner, as jax.profiler writes it: `tensorboard
--logdir=DIR` (with its profile plugin) shows it, or https://ui.perfetto.dev the file DIR/*/plugins/profile/*/*.trace.json.gz.

A table goes to stderr; the last line on stdout is one JSON object, which --output writes too and
`python -m hir_jax.bench.table FILES` turns into Markdown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from hir_jax import config as configs
from hir_jax import pathflags
from hir_jax.bench import (
    encode,
    grpo,
    learner,
    long_tail,
    machine,
    peer_hf,
    peer_trl,
    rollout,
    scaling,
    start,
    steps,
    table,
    verify,
)
from hir_jax.bench.sizes import Sizes
from hir_jax.run import files
from hir_jax.run.memory import keep_freed_memory
from hir_jax.run.progress import Compilations
from hir_jax.types import InputError

PEERS = {"hf": peer_hf.PACKAGES, "trl": peer_trl.PACKAGES}
NAMED_ALONE = {"trl": ["grpo"], "hf": ["rollout", "learner"], None: ["rollout", "learner"]}
TRACED = ("rollout", "learner")


def measure(config, phases: Sequence[str], sizes: Sizes, peer: str | None, trace: Path | None = None) -> dict:
    """All figures as one JSON-able dict, but those of the phase start."""
    if peer:
        machine.require(PEERS[peer], f"--peer={peer}")
    compilations = Compilations()
    used = config.model.compute_dtype, config.rollout.dtype or config.model.compute_dtype
    dtypes = tuple(dict.fromkeys(("float32", *used)))
    load = [os.getloadavg()[0]]
    hf, found = peer == "hf", machine.description() | {"dtype": config.model.compute_dtype, "peer": peer}
    if "step" in phases:  # first, while the process is small: its memory is what is asked for
        found["step"] = steps.bench(config, sizes.steps, compilations)
    seen = [machine.ceilings(dtypes)]
    if "rollout" in phases:
        found["rollout"], model = rollout.bench(config, sizes, peer_hf.Rollout if hf else None, compilations, trace)
    if "learner" in phases:
        found["learner"] = learner.bench(config, sizes, peer_hf.Learner if hf else None, compilations, trace)
    others = {
        "long_tail": partial(long_tail.bench, config, sizes, compilations),
        "grpo": partial(grpo.bench, config, sizes, peer_trl.measure if peer == "trl" else None, compilations),
        "encode": partial(encode.bench, config, sizes),
        "verify": partial(verify.bench, config, sizes),
        "scaling": partial(scaling.bench, sizes.rounds),
    }
    found |= {name: run() for name, run in others.items() if name in phases}
    seen.append(machine.ceilings(dtypes))
    best = machine.Ceilings.best(seen)
    found |= {"matmul_flops_per_s": best.flops_per_s, "read_bytes_per_s": best.bytes_per_s}
    if "rollout" in found:
        found["rollout"] |= rollout.against_ceilings(found["rollout"], model, sizes, best)
    if "learner" in found:
        learner.against_ceilings(found["learner"], found["dtype"], best)
    return found | {"load_average": [*load, os.getloadavg()[0]], "peak_memory_gb": machine.peak_memory_gb()}


def show(found: dict, console: Console) -> None:
    """The figures as a table."""
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
    logging.set_verbosity(logging.WARNING)  # what the libraries say of themselves is no figure
    args = flags.FLAGS
    configs.check(args.config)
    keep_freed_memory()  # as the programs do, for both sides
    sizes = Sizes(**{field.name: getattr(args, field.name) for field in fields(Sizes)})
    phases = _phases(args.phase, args.peer, args.scaling)
    if args.trace and not set(phases) & set(TRACED):
        raise InputError(f"--trace is of {' and '.join(TRACED)}: add one of them to --phase, or leave --trace out")
    flag, found = args["config"], {}
    file = config_flags.get_config_filename(flag)
    if "start" in phases:  # before this process holds a device that the started ones need
        found["start"] = start.bench(file, config_flags.get_override_values(flag))
    found |= measure(args.config, phases, sizes, args.peer, Path(args.trace) if args.trace else None)
    found |= {"config_file": file, "config": configs.flatten(args.config)}
    found["sizes"] = {field.name: getattr(sizes, field.name) for field in fields(Sizes)}
    show(found, Console(stderr=True))
    text = json.dumps(found)
    if args.output:
        files.write_atomically(Path(args.output), text + "\n")
    print(text)


def cli() -> None:
    configs.define_flags()
    pathflags.define("output", None, "A file for the figures.")
    flags.DEFINE_enum("peer", None, list(PEERS), "Measure transformers and torch, or TRL, too, in turn with ours.")
    flags.DEFINE_list(
        "phase", [], f"What to measure: {', '.join(table.PHASES)}. Without: rollout,learner; with --peer=trl: grpo."
    )
    pathflags.define("trace", None, f"A directory for profiles of {' and '.join(TRACED)}.")
    flags.DEFINE_boolean("scaling", False, "Measure the phase scaling (too, where --phase names others).")
    for name, least, help in (
        ("rounds", 1, "Measurements of each; the median is reported."),
        ("prompts", 1, "Prompts of a batch."),
        ("samples", 2, "Sequences of each prompt, in all phases."),
        ("new_tokens", 2, "Most tokens of each response."),
        ("tail_tokens", 16, "The same in the phase long_tail."),
        ("slots", 1, "Slots of continuous batching in the phase long_tail."),
        ("steps", 2, "Steps of the phase step; those that compile are not reported."),
        ("grpo_prompt_tokens", 16, "Longest prompt of the phase grpo."),
        ("verify_rows", 1, "Responses to verify."),
    ):
        flags.DEFINE_integer(name, getattr(Sizes, name), help, lower_bound=least)
    flags.mark_flags_as_required(["config"])
    configs.run_program(main, __doc__)


if __name__ == "__main__":
    cli()
