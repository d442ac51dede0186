"""The phases step and start: whole steps of a config as hir_jax.train makes them, here or in programs that are started."""

from __future__ import annotations

import copy
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hir_jax import config as configs
from hir_jax import train
from hir_jax.bench.machine import peak_memory_gb, spread
from hir_jax.bench.session import Session
from hir_jax.textfiles import read_jsonl
from hir_jax.types import InputError

# the work of a step; the rest is overhead
PHASES = ("reshard", "sample", "verify", "learn", "update", "step_on_device")
_SAID = re.compile(r"(\d+) compilations, ([\d.]+) s; (\d+) of them read from the cache")  # run.progress.Compilations


def bench(session: Session) -> dict:
    """`--steps` steps in a temporary directory, of which those in which nothing was compiled are reported. Evaluation is off; the
    run saves a checkpoint at least three times, so that a reported step holds one."""
    config, steps = copy.deepcopy(session.config), session.sizes.steps
    config.total_steps, config.eval_every, config.save_model = steps, 0, False
    config.checkpoint_every = min(config.checkpoint_every, max(1, steps // 3))
    walls, last = [], None

    class Timed(train.Run):
        def record(self, *given, **named) -> None:
            nonlocal last
            if last is not None:  # after the line of step 0
                walls.append(time.perf_counter() - last)
                session.took("step", {"ours": walls[-1]}, steps)
            last = time.perf_counter()
            super().record(*given, **named)

    with tempfile.TemporaryDirectory() as directory:
        session.compile_seconds()
        train.train(config, Path(directory), Timed)
        lines = [row for _, row in read_jsonl(Path(directory) / "metrics.jsonl")]
    return steady(lines[1:], walls, config.checkpoint_every) | {
        "sequences": configs.sequences(config), "compile_seconds": session.compile_seconds(),
        "peak_memory_gb": peak_memory_gb(),
    }  # fmt: skip


def steady(lines: list[dict], walls: list[float], checkpoint_every: int) -> dict:
    """Figures of the steps in which nothing was compiled. Those that compile (the first, those with a new prompt bucket, the
    first that resamples) are counted in `steps_compiling` alone. lines: the metrics of each step from the first on.

    walls: seconds from the metrics line before to the step's own, so that they include data, logging and saving after the step
    before; `overhead_share` is their part outside PHASES. Copies between host and device are made within the phases that need
    them.
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


def bench_start(session: Session) -> dict:
    """The config started twice on one compilation cache, which is empty at first, and the second start's seconds as a share of
    the first's. Each start is a process with a work directory of its own that makes one step without evaluation."""
    with tempfile.TemporaryDirectory() as name:
        directory, found = Path(name), []
        changes = {"total_steps": 1, "eval_every": 0, "save_model": False, "compilation_cache": directory / "cache"}
        given = [f"--config.{key}={value}" for key, value in (session.overrides | changes).items()]
        for run in ("first", "second"):
            found.append(_start([f"--config={session.config_file}", *given], directory / run))
            session.took("start", {run: found[-1]["seconds"]}, 2)
    return compared(*found)


def _start(given: list[str], workdir: Path) -> dict:
    """Figures of one process, which runs to its end."""
    begin, command = time.time(), [sys.executable, "-m", "hir_jax.train", *given, f"--workdir={workdir}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"hir_jax.train ended with status {done.returncode}:\n{done.stderr[-2000:].strip()}")
    metrics = workdir / "metrics.jsonl"
    *_, (_, only) = read_jsonl(metrics)  # nothing follows the line of the only step
    return start_figures(metrics.stat().st_mtime - begin, only["seconds/step"], done.stdout)


def start_figures(seconds: float, step: float, output: str) -> dict:
    """seconds: from the start to the end of the first step; step: those of the step; output: what the program printed.
    Compilations are counted to the end of the program; one that was read from the cache counts with the seconds of reading it."""
    said = _SAID.search(output)
    if not said:
        raise RuntimeError(f"hir_jax.train did not say what it compiled: {output[-500:]}")
    return {
        "seconds": seconds, "seconds_to_step": seconds - step, "compilations": int(said[1]),
        "compile_seconds": float(said[2]), "from_cache": int(said[3]),
    }  # fmt: skip


def compared(first: dict, second: dict) -> dict:
    shares = {f"{name}_ratio": second[name] / first[name] for name in ("seconds", "compile_seconds")}
    return {"first": first, "second": second} | shares
