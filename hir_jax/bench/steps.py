"""The step phase: whole steps of a config as hir_jax.train makes them, in a temporary directory, and what they lose."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from hir_jax import config as configs
from hir_jax import train
from hir_jax.bench.machine import peak_memory_gb, spread
from hir_jax.textfiles import read_jsonl
from hir_jax.types import InputError

# what a step is for; the rest is overhead
PHASES = ("reshard", "sample", "verify", "learn", "update", "step_on_device")


def bench(config, steps: int, compilations) -> dict:
    """`steps` steps, of which those in which nothing was compiled are reported. Evaluation is off; a checkpoint is handed over
    at least three times, so that a reported step holds one."""
    config = copy.deepcopy(config)
    config.total_steps, config.eval_every, config.save_model = steps, 0, False
    config.checkpoint_every = min(config.checkpoint_every, max(1, steps // 3))
    ends: list[float] = []

    class Timed(train.Run):
        def record(self, *given, **named) -> None:
            ends.append(time.perf_counter())
            super().record(*given, **named)

    with tempfile.TemporaryDirectory() as directory:
        compilations.take_seconds()
        train.train(config, Path(directory), Timed)
        lines = [row for _, row in read_jsonl(Path(directory) / "metrics.jsonl")]
    walls = [b - a for a, b in pairwise(ends)]
    return steady(lines[1:], walls, config.checkpoint_every) | {
        "sequences": configs.sequences(config), "compile_seconds": compilations.take_seconds(),
        "peak_memory_gb": peak_memory_gb(),
    }  # fmt: skip


def steady(lines: list[dict], walls: list[float], checkpoint_every: int) -> dict:
    """What the steps have in common in which nothing was compiled: the first, those with a prompt bucket that is new, and the
    first that resamples are counted in `steps_compiling` alone. lines: the metrics of each step from the first on.

    walls: seconds from the line of metrics before to the step's own, so that data, logging and the handing over of the checkpoint
    after the step before are in them; `overhead_share` is the part of them outside PHASES. Copies between host and device are
    made within the phases that need them.
    """
    measured = [(x, wall) for x, wall in zip(lines, walls, strict=True) if not x["seconds/compiling"]]
    if not measured:
        raise InputError(f"something was compiled in each of the {len(lines)} steps: give more of them, as --steps")
    kept, walls = [x for x, _ in measured], [wall for _, wall in measured]
    names = [name for name in kept[0] if name.startswith("seconds/")]
    inside = sum(x.get(f"seconds/{phase}", 0.0) for x in kept for phase in PHASES)
    tokens = sum(x["tokens_per_s"] * x["seconds/step"] for x in kept)
    saved = [x["step"] - 1 for x in kept if x["step"] > 1 and (x["step"] - 1) % checkpoint_every == 0]
    return {
        "steps": len(kept), "steps_compiling": len(lines) - len(kept), "seconds": spread(walls),
        "steps_per_s": len(kept) / sum(walls), "checkpoints": len(saved),
        "phases": {name.removeprefix("seconds/"): statistics.median(x[name] for x in kept) for name in names},
        "padding": statistics.median(x["padding"] for x in kept), "shared": statistics.median(x["shared"] for x in kept),
        "overhead_share": 1 - inside / sum(walls), "sampled_tokens_per_s": tokens / sum(walls),
    }  # fmt: skip
