"""Runs a suite of `experiments.suites`: every variant with every seed, resumed after an interruption, skipping what is done.

    python -m experiments.run SUITE --config=configs/tiny_hir.py --seeds=5 --workdir=D [--only=LABEL,...] [--tune] [--jobs=1]
        [--config.KEY=VALUE ...]

Where the config names no checkpoint, a base model is fitted first, one for each seed, by the file's variant `:sft`; all variants
start from it. Each run is a process of `python -m hir_jax.train` in D/SUITE/LABEL/seed-S (its output: log.txt there), followed by
an evaluation on the held-out instructions, 8 samples each at temperature 1. On a machine with several GPUs give --jobs: run i
takes the GPU i mod their number.

Protocol. Each variant has the same grid of learning rates, GRID times the config's. `--tune` runs it on seeds that are never
reported (TUNING_SEEDS) and writes, for each variant, the rate with the largest area under held-out ILA to
D/SUITE/learning_rates.json. Without --tune the rates are those in that file, or else in experiments/learning_rates.json; a
variant that stands in neither has the config's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.suites import SUITES, Overrides
from hir_jax import config as configs
from hir_jax.runs import files
from hir_jax.statistics import area_under_curve
from hir_jax.types import InputError

GRID = (1 / 3, 1.0, 3.0)
TUNING_SEEDS = (1001, 1002)  # reported ones are 0, 1, 2, ...
RATES = Path(__file__).parent / "learning_rates.json"
EVALUATION = ("--benchmark=heldout", "--samples=8", "--temperature=1")


@dataclass
class Job:
    """Commands that make a directory, one after the other; `after` must be done before."""

    directory: Path
    overrides: Overrides
    config: str
    total_steps: int
    after: Job | None = None
    evaluates: bool = True
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def trained(self) -> bool:
        return any(row["step"] == self.total_steps for row in read_metrics(self.directory))

    def summary(self) -> Path:
        """Where the evaluation's figures are."""
        return self.directory / "evaluations" / f"heldout-step-{self.total_steps}-t1-n8" / "summary.json"

    def commands(self) -> list[list[str]]:
        """What is still to do; nothing where all is done."""
        left = []
        if not self.trained():
            train = [f"--config={self.config}", f"--workdir={self.directory}"]
            left.append(["hir_jax.train", *train, *(f"--config.{k}={v}" for k, v in self.overrides.items())])
        if self.evaluates and not self.summary().exists():
            left.append(["hir_jax.evaluate", f"--workdir={self.directory}", *EVALUATION])
        return left

    def run(self, environment: dict[str, str]) -> str:
        """Does what is left; "" or what went wrong."""
        with self._lock:  # a base model is wanted by several runs
            if self.after and (error := self.after.run(environment)):
                return error
            for command in self.commands():
                self.directory.mkdir(parents=True, exist_ok=True)
                with open(self.directory / "log.txt", "a", encoding="utf-8") as log:
                    status = subprocess.run(
                        [sys.executable, "-m", *command], stdout=log, stderr=log, env=os.environ | environment
                    ).returncode
                if status:
                    return (
                        f"{self.directory}: {command[0]} ended with status {status}; see {self.directory / 'log.txt'}"
                    )
        return ""


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, without a last line that a kill cut off."""
    path = directory / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise InputError(f"{path}:{number}: not valid JSON ({error}); delete the line") from error
    return rows


def slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9+._-]+", "_", label)


def _base(file: str, root: Path, seed: int) -> Job | None:
    """The fit that the variants of a seed start from, where the config names no checkpoint."""
    config = configs.load_file(f"{file}:sft")
    overrides = {"seed": seed, "save_model": True}
    return Job(root / "base" / f"seed-{seed}", overrides, f"{file}:sft", config.total_steps, evaluates=False)


def jobs(
    suite: str,
    file: str,
    root: Path,
    labels: list[str],
    seeds: list[int],
    rates: dict[str, float],
    extra: Overrides,
    *,
    below: str = "",
    evaluates: bool = True,
) -> list[Job]:
    """One job a variant and seed, seeds outermost, so that an early end leaves whole comparisons; in D/below/SUITE."""
    config, found = configs.load_file(file), []
    steps = int(extra.get("total_steps", config.total_steps))
    for seed in seeds:
        base = None if config.model.checkpoint or "model.checkpoint" in extra else _base(file.split(":")[0], root, seed)
        for label in labels:
            overrides = {"seed": seed, "save_model": False, "checkpoint_every": steps} | extra
            if base:
                overrides["model.checkpoint"] = str(base.directory / "model")
            if label in rates:
                overrides["learner.learning_rate"] = rates[label]
            overrides |= SUITES[suite].variants[label]
            directory = root / below / suite / slug(label) / f"seed-{seed}"
            found.append(Job(directory, overrides, file, steps, base, evaluates))
    return found


def run_all(todo: list[Job], parallel: int) -> list[str]:
    """Runs what is left, `parallel` at a time; the messages of those that failed."""
    started, errors = time.monotonic(), []
    left = [job for job in todo if job.commands()]
    print(f"{len(todo) - len(left)} of {len(todo)} runs are done", flush=True)

    def one(number: int, job: Job) -> None:
        environment = {"CUDA_VISIBLE_DEVICES": str(number % parallel)} if parallel > 1 else {}
        if error := job.run(environment):
            errors.append(error)
        minutes = (time.monotonic() - started) / 60
        print(f"[{minutes:5.1f} min] {'FAILED' if error else 'done'} {job.directory}", flush=True)

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(one, range(len(left)), left))
    return errors


def curves(rows: list[dict]) -> dict[str, list[float]]:
    """Held-out ILA where it was measured, with the step and the number of samples generated until then."""
    generated, found = 0, {"step": [], "samples": [], "ila": []}
    for row in rows:
        generated += row.get("samples") or 0
        if row.get("heldout_ila") is not None:
            for name, value in zip(found, (row["step"], generated, row["heldout_ila"]), strict=True):
                found[name].append(value)
    return found


def tune(suite: str, file: str, root: Path, labels: list[str], extra: Overrides, parallel: int) -> list[str]:
    """Runs the grid and writes the chosen rates; the messages of runs that failed, in which case nothing is chosen."""
    middle, grid = configs.load_file(file).learner.learning_rate, {}
    for factor in GRID:
        rate = float(f"{middle * factor:.3g}")
        where, rates = {"below": f"tuning/lr-{rate:g}", "evaluates": False}, dict.fromkeys(labels, rate)
        grid[rate] = jobs(suite, file, root, labels, list(TUNING_SEEDS), rates, extra, **where)
    if errors := run_all([job for todo in grid.values() for job in todo], parallel):
        return errors
    found = {label: {} for label in labels}
    for rate, todo in grid.items():
        for label in labels:
            runs = [curves(read_metrics(j.directory)) for j in todo if j.directory.parent.name == slug(label)]
            areas = [area_under_curve(run["step"], run["ila"]) for run in runs]
            found[label][f"{rate:g}"] = sum(areas) / len(areas)
    chosen = {label: float(max(areas, key=areas.get)) for label, areas in found.items()}
    path = root / suite / "learning_rates.json"
    text = {"config": file, "suite": suite, "chosen": chosen, "area": found, "seeds": TUNING_SEEDS}
    files.write_atomically(path, json.dumps(text, indent=1) + "\n")
    print(f"learning rates: {path}")
    return []


def chosen_rates(suite: str, file: str, root: Path) -> dict[str, float]:
    """Tuned learning rates by variant: of this directory, or the committed ones of this config."""
    own = root / suite / "learning_rates.json"
    if own.exists():
        return json.loads(own.read_text(encoding="utf-8"))["chosen"]
    committed = json.loads(RATES.read_text(encoding="utf-8")) if RATES.exists() else {}
    return committed.get(file, {}).get(suite, {})


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.run", allow_abbrev=False)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="reported seeds: 0, 1, ...")
    parser.add_argument("--only", default="", help="labels of variants, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one a GPU")
    parser.add_argument("--tune", action="store_true", help="choose learning rates on other seeds, report nothing")
    args, rest = parser.parse_known_args(arguments)
    if wrong := [a for a in rest if not re.fullmatch(r"--config\.[\w.]+=.*", a, re.DOTALL)]:
        parser.error(f"unknown argument {wrong[0]!r}; config overrides are given as --config.KEY=VALUE")
    extra = dict(a.removeprefix("--config.").split("=", 1) for a in rest)
    variants = SUITES[args.suite].variants
    labels = args.only.split(",") if args.only else list(variants)
    if unknown := [label for label in labels if label not in variants]:
        parser.error(f"--only: {args.suite} has no variant {unknown[0]!r}; it has {', '.join(variants)}")
    print(f"{args.suite}: {SUITES[args.suite].question}", flush=True)
    if args.tune:
        errors = tune(args.suite, args.config, args.workdir, labels, extra, args.jobs)
    else:
        rates = chosen_rates(args.suite, args.config, args.workdir)
        errors = run_all(
            jobs(args.suite, args.config, args.workdir, labels, list(range(args.seeds)), rates, extra), args.jobs
        )
    if errors:
        sys.exit("error: " + "\n".join(errors))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
