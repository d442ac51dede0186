"""Compiles a config's functions for accelerators that are not there, and says whether they fit and how fast they can be.

    python -m hir_jax.aot --config=configs/X.py --topology=v5p:2x2x2 [--config.key=value ...] [--output=FILE] [--layers=N]
                          [--functions=sample,learn] [--text=DIR]
    python -m hir_jax.aot --collect=DIR

Topologies: v5e:4x4, v5p:2x2x2, v6e:4x4, ... (TPU), h100:8 (GPUs of one machine). Nothing is downloaded: a checkpoint that is
not a local directory is known by its published shape (model/files/published.py). Prints a table and, last, one line of JSON,
which --output writes to a file too. --layers compiles a model of fewer layers, to find faults fast; --text keeps the compiled
text. --collect prints one table of the JSON files in a directory.

Memory is the compiler's own account. Times are bounds: work at the longest lengths over the published peak rates, where
computing, reading and communication overlap entirely. Needs packages of requirements-aot.txt.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import jax
from absl import flags

from hir_jax import config as configs
from hir_jax import pathflags
from hir_jax.aot import chips
from hir_jax.aot.compiling import advice, judge
from hir_jax.aot.programs import entries, programs
from hir_jax.backbone import Backbone
from hir_jax.bench import machine
from hir_jax.bench.table import markdown_table, number
from hir_jax.engine import Engine
from hir_jax.model.files.checkpoint import open_checkpoint
from hir_jax.model.files.published import PUBLISHED, Outline, outline
from hir_jax.run.files import write_atomically
from hir_jax.textfiles import read_json
from hir_jax.types import InputError

SIZES = ("arguments", "outputs", "temporaries", "resident", "used")  # of a device's memory
HEADER = ("function", *SIZES[:-1], "GB used", "fits", "least seconds", "limit", "MFU at most")
COLUMNS = (
    "model", "devices", "fits", "GB used", "of", "least seconds a step",
    "sampling + reference (+ old log-probs) + update", "known by",
)  # fmt: skip
REPORTED = ("method", "model", "lora", "data", "rollout", "replay", "learner", "mesh")  # groups of the config


def find_outline(name: str) -> Outline:
    """The published shape, or that of a local checkpoint."""
    if not name:
        raise InputError(
            "config.model.checkpoint is empty: name a published checkpoint, such as " + next(iter(PUBLISHED))
        )
    if name in PUBLISHED:
        return outline(name)
    opened = open_checkpoint(name)
    pad = opened.tokenizer.pad_token_id
    return Outline(opened.config, tuple(opened.stop_ids), opened.stop_ids[0] if pad is None else pad)


def table(found: dict) -> str:
    """Gigabytes (10^9 bytes) a device of every function, and the bound on its time."""
    rows = [HEADER]
    for name, one in found.items():
        sizes = [f"{one['hbm'][k] / 1e9:.2f}" if k in one["hbm"] else "?" for k in SIZES]
        times = "", "", ""
        if "bound" in one:
            share = f"{one['mfu_bound']:.0%}" if one["flops"] else ""
            times = number(one["bound"]["seconds"]), one["limit"], share
        rows.append((name, *sizes, "yes" if one["fits"] else "NO", *times))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def report(config, topology_name: str, *, layers: int, only: str, text: str) -> dict:
    """Compiles everything, with a line of progress for each function, and prints the table."""
    topology, known = chips.parse(topology_name), find_outline(config.model.checkpoint)
    if layers:
        known = known._replace(config=dataclasses.replace(known.config, num_layers=layers))
    engine = Engine(config, chips.devices(topology), Backbone(known.config, known.stop_ids, known.pad_id))
    chip, found = topology.chip, {}
    for program in programs(engine):
        if not only or program.name in only.split(","):
            print(f"compiling {program.name} for {topology_name} ...", file=sys.stderr, flush=True)
            found[program.name] = judge(program, chip, Path(text) / f"{program.name}.txt" if text else None)
    lines = advice(config, found, engine.settings.kv_ways == engine.sampler_mesh.shape["tensor"])
    parameters = entries(engine.abstract_frozen) + entries(engine.abstract_state.params)
    print(f"{config.model.checkpoint}, {parameters / 1e9:.2f} billion parameters, {topology_name}:")
    print(f"GB (10^9 bytes) on each of {topology.count} {chip.name} with {chip.hbm_bytes / 1e9:.0f} GB")
    print("\n".join([table(found), *lines]))
    made, data, rollout = machine.description(), config.data, config.rollout
    slots = engine.settings.slots(
        data.batch_prompts, data.max_prompt, engine.settings.first_samples, rollout.max_response
    )
    return {
        "config": {key: value for key, value in configs.flatten(config).items() if key.split(".")[0] in REPORTED},
        "checkpoint": config.model.checkpoint, "parameters": parameters, "layers": known.config.num_layers,
        "topology": topology_name, "chip": chip._asdict(), "devices": topology.count,
        "mesh": dict(engine.mesh.shape), "sampler_mesh": dict(engine.sampler_mesh.shape),
        "attention": engine.model.attention, "slots": slots, "functions": found, "advice": lines,
        "step_seconds_bound": _bound_seconds(found), "fits": all(one["fits"] for one in _in_memory(found)),
        **{key: made[key] for key in ("date", "commit", "command", "versions")},
    }  # fmt: skip


def _bound_seconds(functions: dict) -> float:
    return sum(one["bound"]["seconds"] for one in functions.values() if "bound" in one)


def _in_memory(functions: dict) -> list[dict]:
    """The functions that run as they were compiled: the parts of `learn` were compiled alone, for their bounds."""
    whole = [one for one in functions.values() if not one.get("part")]
    return whole or list(functions.values())


def collected(directory: Path) -> str:
    """A Markdown table of backbone by hardware, from the --output files of a directory."""
    files = sorted(directory.glob("*.json"))
    if not files:
        raise InputError(f"--collect={directory}: no .json files there; --output writes them")
    rows = [COLUMNS]
    for path in files:
        try:
            rows.append(_row(read_json(path)))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not a file of --output ({error!r}); take it out of the directory") from error
    return markdown_table(rows)


def _row(found: dict) -> tuple[str, ...]:
    functions = found["functions"]
    bounds = [one["bound"]["seconds"] for one in functions.values() if one.get("flops")]  # not resharding
    model, rank = found["checkpoint"].split("/")[-1], found["config"].get("lora.rank")
    used = max(one["hbm"].get("used", float("nan")) for one in _in_memory(functions))
    return (
        f"{model}, LoRA {rank}" if rank else model, f"{found['devices']} {found['chip']['name']} ({found['topology']})",
        "yes" if found["fits"] else "no", f"{used / 1e9:.1f}", f"{found['chip']['hbm_bytes'] / 1e9:.0f}",
        number(_bound_seconds(functions)), " + ".join(map(number, bounds)), f"AOT, {found['date'][:10]}",
    )  # fmt: skip


def main(_) -> None:
    f = flags.FLAGS
    if f.collect:
        return print(collected(Path(f.collect)))
    if f.config is None or f.topology is None:
        raise InputError("give --config=configs/X.py and --topology=CHIP:SIZES (v5p:2x2x2, h100:8, ...)")
    configs.check(f.config)
    os.environ.update(chips.ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    line = json.dumps(report(f.config, f.topology, layers=f.layers, only=f.functions or "", text=f.text or ""))
    if f.output:
        write_atomically(f.output, line + "\n")
    print(line)


def cli() -> None:
    configs.define_flags("topology", "functions")
    for name in ("output", "text", "collect"):
        pathflags.define(name, None, f"See the program's docstring: {name}.", local=True)
    flags.DEFINE_integer("layers", 0, "Compile a model of so many layers; 0: all.", lower_bound=0)
    configs.run_program(main, __doc__)


if __name__ == "__main__":
    cli()
