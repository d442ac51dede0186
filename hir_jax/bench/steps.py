"""The step phase: whole steps of a config as hir_jax.train makes them, in a temporary directory, and what they lose."""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from pathlib import Path

from hir_jax import config as configs
from hir_jax import train
from hir_jax.bench.machine import peak_memory_gb, spread

PHASES = ("sample", "verify", "relabel", "update", "step_on_device")  # what a step is for; the rest is overhead


def bench(config, steps: int, compilations) -> dict:
    """`steps` steps; the first, which compiles, is left out. Evaluation is off; a checkpoint is handed over at least once.

    A step's seconds are those from one line of metrics to the next, so that data, logging and the handing over of checkpoints
    are in them; `overhead_share` is the part of them outside PHASES, compiling left out. Copies between host and device are made
    within the phases that need them.
    """
    config = copy.deepcopy(config)
    config.total_steps, config.eval_every, config.save_model = steps, 0, False
    config.checkpoint_every = min(config.checkpoint_every, max(1, steps - 1))
    ends: list[float] = []

    class Timed(train.Run):
        def record(self, *given, **named) -> None:
            ends.append(time.perf_counter())
            super().record(*given, **named)

    with tempfile.TemporaryDirectory() as directory:
        compilations.take_seconds()
        train.train(config, Path(directory), Timed)
        lines = [json.loads(x) for x in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    walls = [b - a for a, b in zip(ends[-steps:], ends[-steps + 1 :], strict=False)]
    measured = lines[-len(walls) :]
    names = [name for name in measured[0] if name.startswith("seconds/")]
    phases = {name.removeprefix("seconds/"): statistics.median(x[name] for x in measured) for name in names}
    inside = sum(x.get(f"seconds/{phase}", 0.0) for x in measured for phase in PHASES)
    compiling = sum(x["seconds/compiling"] for x in measured)
    tokens = sum(x["tokens_per_s"] * x["seconds/step"] for x in measured)
    return {
        "steps": len(walls), "seconds": spread(walls), "steps_per_s": len(walls) / sum(walls), "phases": phases,
        "overhead_share": (sum(walls) - inside) / (sum(walls) - compiling), "sampled_tokens_per_s": tokens / sum(walls),
        "sequences": configs.sequences(config), "checkpoints": (steps - 1) // config.checkpoint_every,
        "compile_seconds": compilations.take_seconds(),
        "compile_seconds_after_warm_up": compiling,
        "peak_memory_gb": peak_memory_gb(),
    }  # fmt: skip
