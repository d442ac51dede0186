"""Runs a suite of `experiments.suites`: every variant with every seed. Started again, it resumes, and skips finished runs.

    python -m experiments.run SUITE --config=configs/tiny_hir.py --seeds=5 --workdir=D [--only=NAME,...] [--tune] [--jobs=N]
        [--config.KEY=VALUE ...]

If the config names no checkpoint, base models are fitted first, one for each seed, by the file's variant `:sft`, or by
`:VARIANT_sft` if the config is FILE:VARIANT and has one (D/base, shared by suites). All variants start from it, except those
that ask for another one by overrides `base.KEY`. Each run is a process of `python -m hir_jax.train` in D/SUITE/LABEL/seed-S
(its output: log.txt there), followed by an evaluation on the held-out instructions, 8 samples each at the temperature of its
rollouts. If another suite of D has made a run with exactly the same config already, the run's directory becomes a link to that
one. D/SUITE/commands.txt lists the commands that have worked on the suite, with their commits. --jobs=N makes N runs at a time,
each with its share of the cores and a GPU of its own. Default: one a GPU; on a CPU one a core if the base model is fitted here
(it is small then), else one.

Protocol (PROTOCOL.md beside this file). Each variant has the same grid: with each weight of the KL in KLS, the learning rates
FACTORS times the config's, and one rate more if the best is at the edge (a weight given by override is the only one, a rate
given by override the middle); methods without a KL take the first weight alone. `--tune` runs the grid on seeds that are never
reported (TUNING_SEEDS) and writes, for each variant, the pair with the largest mean of held-out following over generated samples
to D/SUITE/tuned.json. Without --tune the pairs come from that file, or else from experiments/tuned.json (a variant that is in
neither takes its method's); others have the config's. Overrides on the command line take precedence over
them, a variant's own overrides over both.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import queue
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.suites import SUITES, Overrides
from hir_jax import config as configs
from hir_jax.data.generate.tiny.witness import MAX_CONSTRAINTS
from hir_jax.eval.statistics import area_under_curve
from hir_jax.pathflags import expanded
from hir_jax.paths import local
from hir_jax.run import files
from hir_jax.textfiles import read_json, read_jsonl, read_text
from hir_jax.types import InputError

FACTORS = (1 / 3, 1.0, 3.0)
KLS = (0.001, 0.03)
WITHOUT_KL = ("rft", "dpo")  # their loss has no reward for the KL to be part of, so all its weights give the same run
RATE, KL, UNSEEN = "learner.learning_rate", "learner.kl", "data.unseen_ids"
TUNING_SEEDS = (1001, 1002)  # reported ones are 0, 1, 2, ...
TUNED = Path(__file__).parent / "tuned.json"
COMMANDS = "commands.txt"
SAMPLES = 8  # responses to each held-out instruction after the last step


@dataclass
class Job:
    """The commands that make one run's directory. The job of its base model, `after`, must be done before."""

    directory: Path
    overrides: Overrides
    config: str
    total_steps: int
    after: Job | None = None
    evaluates: bool = True
    temperature: float = 1.0

    def trained(self) -> bool:
        """Whether the metrics hold the last step and its checkpoint or model is written: a kill can come between the two."""
        kept = self.directory / ("model" if self.overrides.get("save_model") else f"checkpoints/{self.total_steps}")
        return kept.is_dir() and any(row["step"] == self.total_steps for row in read_metrics(self.directory))

    def summary(self) -> Path:
        """The file with the evaluation's figures."""
        return summary(self.directory, self.total_steps, self.temperature)

    def commands(self) -> list[list[str]]:
        """The commands that are still to be run; [] for a finished run."""
        left = []
        if not self.trained():
            train = [f"--config={self.config}", f"--workdir={self.directory}"]
            left.append(["hir_jax.train", *train, *(f"--config.{k}={v}" for k, v in self.overrides.items())])
        if self.evaluates and not self.summary().exists():
            how = "--benchmark=heldout", f"--samples={SAMPLES}", f"--temperature={self.temperature:g}"
            left.append(["hir_jax.evaluate", f"--workdir={self.directory}", *how])
        return left

    def run(self, environment: dict[str, str]) -> str:
        """Runs the commands that are left; returns "", or a message about a failure."""
        if self.after and not self.after.trained():
            return f"{self.directory}: not started, its base model {self.after.directory} is not there"
        for command in self.commands():
            self.directory.mkdir(parents=True, exist_ok=True)
            with open(self.directory / "log.txt", "a", encoding="utf-8") as log:
                status = subprocess.run(
                    [sys.executable, "-m", *command], stdout=log, stderr=log, env=os.environ | environment
                ).returncode
            if status:
                return f"{self.directory}: {command[0]} ended with status {status}; see {self.directory / 'log.txt'}"
        return ""


def summary(directory: Path, step: int, temperature: float) -> Path:
    """Where the evaluation of a run on its held-out instructions writes its figures."""
    return directory / "evaluations" / f"heldout-step-{step}-t{temperature:g}-n{SAMPLES}" / "summary.json"


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, without an unfinished last line, which a kill leaves."""
    path = directory / "metrics.jsonl"
    return [row for _, row in read_jsonl(path, own=True)] if path.exists() else []


def slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9+._-]+", "_", label)


def _written(config: dict[str, Any]) -> frozenset[tuple[str, str]]:
    """Keys and values of a flat config, or of a part of one, as text, since the command line gives text and JSON has lists for
    tuples."""
    return frozenset((key, str(tuple(v) if isinstance(v, list) else v)) for key, v in config.items())


def _base_file(file: str) -> str:
    """The config of the fit that runs of `file` start from: the variant VARIANT_sft if the file has it, else sft."""
    path, _, variant = file.partition(":")
    try:
        configs.load_file(own := f"{path}:{variant}_sft")
    except InputError:
        return f"{path}:sft"
    return own


def _base(file: str, root: Path, seed: int, overrides: Overrides, extra: Overrides) -> Job:
    """The job of the fit that the variants of a seed start from. overrides: of the fit's own config; those that repeat its values
    are dropped, so that suites share the fit. extra: overrides of the command line."""
    fit = _base_file(file)
    config = configs.load_file(fit)
    unseen = {UNSEEN: extra[UNSEEN]} if UNSEEN in extra else {}  # the fit must not see them either
    given = _written(configs.flatten(config))
    overrides = {key: value for key, value in (overrides | unseen).items() if not _written({key: value}) <= given}
    name = slug(",".join(f"{key}={value}" for key, value in overrides.items())) or "default"
    own = {"seed": seed, "save_model": True, "checkpoint_every": config.total_steps} | overrides
    of = [] if fit.endswith(":sft") else [fit.partition(":")[2]]
    return Job(root.joinpath("base", *of, name, f"seed-{seed}"), own, fit, config.total_steps, evaluates=False)


def fits_base_models(file: str, extra: Overrides) -> bool:
    return not configs.load_file(file).model.checkpoint and "model.checkpoint" not in extra


def jobs(
    suite: str,
    file: str,
    root: Path,
    labels: list[str],
    seeds: list[int],
    tuned: dict[str, Overrides],
    extra: Overrides,
    *,
    below: str = "",
    evaluates: bool = True,
) -> list[Job]:
    """One job a variant and seed, seeds outermost, so that an early end leaves whole comparisons; in D/below/SUITE."""
    config, found = configs.load_file(file), []
    fits = fits_base_models(file, extra)
    for seed in seeds:
        for label in labels:
            overrides = {"seed": seed, "save_model": False} | tuned.get(label, {}) | extra
            steps = int(SUITES[suite].variants[label].get("total_steps", extra.get("total_steps", config.total_steps)))
            if fits:  # small models: starting again is faster than saving
                overrides = {"checkpoint_every": steps} | overrides
            own, base = {}, None
            for key, value in SUITES[suite].variants[label].items():
                (own if key.startswith("base.") else overrides)[key.removeprefix("base.")] = value
            if own and not fits:
                raise InputError(f"{suite}, {label}: asks for a base model of its own; give no config.model.checkpoint")
            if fits:
                base = _base(file, root, seed, (SUITES[suite].base or {}) | own, extra)
                overrides["model.checkpoint"] = str(base.directory / "model")
            directory = root / below / suite / slug(label) / f"seed-{seed}"
            temperature = float(overrides.get("rollout.temperature", config.rollout.temperature))
            found.append(Job(directory, overrides, file, steps, base, evaluates, temperature))
    return found


def link_same(todo: list[Job], root: Path) -> None:
    """Where a finished run of another suite in `root` has the config of a job, links the job's directory to it."""
    finished = {}
    for path in root.glob("*/*/seed-*/config.json"):
        config = files.read_config(path.parent)
        if not path.parent.is_symlink() and any(
            row["step"] == config["total_steps"] for row in read_metrics(path.parent)
        ):
            finished[_written(config)] = path.parent
    for job in todo:
        same = finished.get(_written(configs.flatten(configs.load_file(job.config)) | job.overrides))
        if same and not job.directory.exists():
            job.directory.parent.mkdir(parents=True, exist_ok=True)
            job.directory.symlink_to(same.resolve())
            print(f"{job.directory}: the same run as {same}", flush=True)


def run_all(todo: list[Job], parallel: int) -> list[str]:
    """Runs the jobs that are left, `parallel` at a time, base models first. Returns the messages of those that failed."""
    started, errors = time.monotonic(), []
    left = [job for job in todo if job.commands()]
    print(f"{len(todo) - len(left)} of {len(todo)} runs are done", flush=True)
    bases = {job.after.directory: job.after for job in left if job.after and job.after.commands()}
    cores, gpus, slots = _cores(), _gpus(), queue.SimpleQueue()
    for slot in range(parallel):
        slots.put(slot)

    def one(job: Job) -> None:
        slot = slots.get()
        if own := cores[slot::parallel]:
            os.sched_setaffinity(0, own)  # of this thread, whose processes inherit it
        error = job.run({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus and parallel > 1 else {})
        slots.put(slot)
        if error:
            errors.append(error)
        minutes = (time.monotonic() - started) / 60
        print(f"[{minutes:5.1f} min] {'FAILED' if error else 'done'} {job.directory}", flush=True)

    with ThreadPoolExecutor(parallel) as pool:
        for stage in (bases.values(), left):  # several runs want the same base model
            list(pool.map(one, stage))
    return errors


def _cores() -> list[int]:
    """The cores of this process; [] on a system that does not tell (macOS)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []


def _gpus() -> list[str]:
    """Names of the usable GPUs, as in CUDA_VISIBLE_DEVICES."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]
    return [name.strip() for name in named.split(",") if name.strip()]


def usual_jobs(fits: bool) -> int:
    """The default number of runs at a time. `fits`: the base models are fitted here. A TPU serves one process."""
    tpu = any(Path(name).exists() for name in ("/dev/accel0", "/dev/vfio/0"))
    return len(_gpus()) or (len(_cores()) if fits and not tpu else 0) or 1


def curves(rows: list[dict]) -> dict[str, list[float]]:
    """Held-out following at the steps where it was measured, with the number of samples generated until then."""
    generated, found = 0, {"step": [], "samples": [], "following": []}
    for row in rows:
        generated += row.get("generated", row.get("samples")) or 0  # older runs discarded none
        if row.get("heldout_following") is not None:
            for name, value in zip(found, (row["step"], generated, row["heldout_following"]), strict=True):
                found[name].append(value)
    return found


def tune(suite: str, file: str, root: Path, labels: list[str], extra: Overrides, parallel: int) -> list[str]:
    """Runs the grid and writes the chosen settings. If runs fail, returns their messages and chooses nothing."""
    middle = float(extra.get(RATE, configs.load_file(file).learner.learning_rate))
    kls = (float(extra[KL]),) if KL in extra else KLS
    extra = {key: value for key, value in extra.items() if key not in (RATE, KL)}
    found: dict[tuple[str, float], dict[float, float]] = {
        (label, kl): {}
        for label in labels
        for kl in (kls[:1] if SUITES[suite].variants[label]["method"] in WITHOUT_KL else kls)
    }
    wanted = {each: [middle * factor for factor in FACTORS] for each in found}
    while any(wanted.values()):
        todo = {}
        for (label, kl), rate in ((each, float(f"{rate:.2g}")) for each, rates in wanted.items() for rate in rates):
            setting = {RATE: rate, KL: kl}
            where = {"below": f"tuning/lr-{rate:g},kl-{kl:g}", "evaluates": False}
            todo[label, kl, rate] = jobs(
                suite, file, root, [label], list(TUNING_SEEDS), {label: setting}, extra, **where
            )
        if errors := run_all([job for some in todo.values() for job in some], parallel):
            return errors
        for (label, kl, rate), some in todo.items():
            runs = [curves(read_metrics(job.directory)) for job in some]
            areas = [area_under_curve(run["samples"], run["following"]) for run in runs]
            found[label, kl][rate] = sum(areas) / len(areas)
        wanted = {each: _beyond(areas) for each, areas in found.items()}
    chosen, table = {}, {}
    for label in labels:
        areas = {
            (kl, rate): a for (name, kl), each in found.items() if name == label for rate, a in sorted(each.items())
        }
        kl, rate = max(areas, key=areas.get)
        chosen[label] = {RATE: rate, KL: kl}
        table[label] = {f"lr {rate:g}, kl {kl:g}": round(area, 5) for (kl, rate), area in areas.items()}
    path = root / suite / "tuned.json"
    text = {"config": file, "suite": suite, "seeds": TUNING_SEEDS, "chosen": chosen, "area": table}
    files.write_atomically(path, json.dumps(text, indent=1) + "\n")
    print(f"learning rates and weights of the KL: {path}")
    return []


def _beyond(areas: dict[float, float]) -> list[float]:
    """The next rate beyond the grid if the best one is at its edge. Only once: the grid gets at most one rate more."""
    best = max(areas, key=areas.get)
    if len(areas) > len(FACTORS) or best not in (min(areas), max(areas)):
        return []
    return [best / 3 if best == min(areas) else best * 3]


def chosen(suite: str, file: str, root: Path) -> dict[str, Overrides]:
    """The tuned settings by variant: those of this directory, else the committed ones for this config file, else those of its
    method in the suite reward_signal."""
    own = root / suite / "tuned.json"
    here = read_json(own)["chosen"] if own.exists() else {}
    path = os.path.relpath(file.split(":")[0], Path(__file__).parents[1])  # as tuned.json has it, wherever this is run
    committed = read_json(TUNED).get(path, {}) if TUNED.exists() else {}
    methods = committed.get("reward_signal", {})
    found = {label: methods.get(v["method"]) for label, v in SUITES[suite].variants.items()}
    return {label: setting for label, setting in (found | committed.get(suite, {}) | here).items() if setting}


def _too_many(file: str, variant: Overrides) -> bool:
    """Whether the variant wants more constraints than the texts of the tiny environment can have."""
    witness = configs.load_file(file).data.source == "witness"
    return witness and variant.get("data.max_constraints", 0) > MAX_CONSTRAINTS


def note_command(suite: Path, arguments: list[str]) -> None:
    """Adds a line to D/SUITE/commands.txt: date, commit of this checkout, version of jax, and the command."""
    made = f"{datetime.date.today()}, commit {files.commit()}, jax {version('jax')}: "
    line, path = made + shlex.join(["python", "-m", "experiments.run", *arguments]) + "\n", suite / COMMANDS
    before = read_text(path) if path.exists() else ""
    if line not in before:
        files.write_atomically(path, before + line)


def seeds(text: str) -> list[int]:
    """ "5": 0 to 4; "7,8": 7 and 8; "7,": 7 alone."""
    return [int(part) for part in text.split(",") if part] if "," in text else list(range(int(text)))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.run", allow_abbrev=False)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--config", required=True, type=expanded)
    parser.add_argument("--workdir", required=True, type=lambda name: local(expanded(name)))
    parser.add_argument("--seeds", type=seeds, default="5", help="how many (0, 1, ...), or which: 1001,1002")
    parser.add_argument("--only", default="", help="variants by the names of their directories, separated by commas")
    parser.add_argument("--jobs", type=int, help="runs at a time")
    parser.add_argument("--tune", action="store_true", help="choose learning rate and weight of the KL on other seeds")
    args, rest = parser.parse_known_args(arguments)
    if wrong := [a for a in rest if not re.fullmatch(r"--config\.[\w.]+=.*", a, re.DOTALL)]:
        parser.error(f"unknown argument {wrong[0]!r}; config overrides are given as --config.KEY=VALUE")
    extra = dict(a.removeprefix("--config.").split("=", 1) for a in rest)
    variants = SUITES[args.suite].variants
    by_name = {slug(label): label for label in variants}
    names = [slug(name) for name in args.only.split(",")] if args.only else list(by_name)
    if unknown := [name for name in names if name not in by_name]:
        parser.error(f"--only: {args.suite} has no variant {unknown[0]!r}; it has {', '.join(by_name)}")
    labels = [by_name[name] for name in names]
    print(f"{args.suite}: {SUITES[args.suite].question}", flush=True)
    if left_out := [label for label in labels if _too_many(args.config, variants[label])]:
        print(f"left out, the witness generator draws at most {MAX_CONSTRAINTS} constraints: {', '.join(left_out)}")
        labels = [label for label in labels if label not in left_out]
    parallel = args.jobs or usual_jobs(fits_base_models(args.config, extra))
    note_command(args.workdir / args.suite, arguments)
    if args.tune:
        errors = tune(args.suite, args.config, args.workdir, labels, extra, parallel)
    else:
        tuned = chosen(args.suite, args.config, args.workdir)
        todo = jobs(args.suite, args.config, args.workdir, labels, args.seeds, tuned, extra)
        link_same(todo, args.workdir)
        errors = run_all(todo, parallel)
    if errors:
        sys.exit("error: " + "\n".join(errors))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
